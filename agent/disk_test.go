package agent

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"probity/bpf/probe"
	"probity/evidence"
	"probity/tests/need"
)

const eventsPolicy = `name: events
probes:
  - {id: uprobe, type: uprobe, file: /bin/events, symbols: [called]}
  - {id: offset, type: uprobe, file: /bin/events, offsets: [entry]}
  - {id: duration, type: uprobe, file: /bin/events, symbols: [called], duration: true}
  - {id: uretprobe, type: uretprobe, file: /bin/events, symbols: [called]}
  - {id: usdt, type: usdt, file: /bin/events, markers: ["events:passed"]}
  - {id: kprobe, type: kprobe, syscalls: [getppid]}
  - {id: kretprobe, type: kretprobe, syscalls: [getppid]}
  - {id: fentry, type: fentry, syscalls: [getppid]}
  - {id: fexit, type: fexit, syscalls: [getppid]}
  - {id: tracepoint, type: tracepoint, event: "sched:sched_process_exec"}
  - {id: rawTracepoint, type: rawTracepoint, event: sched_process_exec}
  - {id: exec, set: exec}
  - {id: libraries, set: libraries}
  - {id: syscalls, set: syscalls}
  - {id: network, set: network}
  - {id: files, set: files}
`

// A first hit is on disk within a second: of each probe type that there is here,
// and of each set, with the node's own times. What the machine did for others
// meanwhile is not the agent's; and where it was slow in what cannot be told apart
// so, such as its disk, another container is another try. None may miss a hit.
func TestFirstHitIsOnDisk(t *testing.T) {
	need.Root(t)
	need.Command(t, "gcc")
	events := filepath.Join(t.TempDir(), "events")
	if out, err := exec.Command("gcc", "-O2", "-static", "-o", events, "testdata/events.c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program, err := os.ReadFile(events)
	must(t, err)
	bin, err := target()
	must(t, err)
	n := newNodeWith(t, Config{}, eventsPolicy)
	others := watchOthers(t)
	read := map[string]bool{}
	var slow []string
	for try, end := 1, time.Now().Add(failsafe); try == 1 || len(slow) > 0; try++ {
		if time.Now().After(end) {
			t.Fatalf("in %d tries:\n%s", try-1, strings.Join(slow, "\n"))
		}
		b := newBoxOf(t, map[string][]byte{"bin/target": bin, "bin/events": program}, 1, "serve")
		id := fmt.Sprint("c", try)
		n.notify(context.Background(), b.notice(id), yes)
		b.run()
		slow = nil
		hits, without := n.firstHits(b, id, read)
		for id, h := range hits {
			first := h.FirstAt.Std()
			told, there := h.To.Std().Sub(first), h.found.Sub(first)
			t.Logf("%s as %s: told after %v, on disk after %v, without others after %v", id, h.ProbeType, told, there, told-others.between(first, h.To.Std()))
			if told < 0 {
				t.Errorf("%s: first at %v, told at %v", id, first, h.To.Std())
			}
			if told-others.between(first, h.To.Std()) > time.Second || there-others.between(first, h.found) > 2*time.Second {
				slow = append(slow, fmt.Sprintf("%s: first at %v, told at %v, on disk at %v", id, first, h.To.Std(), h.found))
			}
		}
		for id, reason := range without {
			t.Logf("%s: %s", id, reason)
			if reason != evidence.KernelUnsupported || strings.HasPrefix(id, "u") {
				t.Errorf("%s: %s", id, reason)
			}
		}
		for _, id := range []string{"uprobe", "offset", "duration", "uretprobe", "usdt", "rawTracepoint", "exec", "libraries", "syscalls", "network", "files"} {
			if _, ok := hits[id]; !ok {
				t.Errorf("%s: no hit", id)
			}
		}
		b.end()
	}
}

// To hash a file may take longer than a hit in it may wait for its line, here
// because others hash theirs. Then the line says so, and where it takes less it has
// the digest.
func TestFirstHitDoesNotWaitForADigest(t *testing.T) {
	n := newNodeWith(t, Config{}, latePolicy)
	others := watchOthers(t)
	for range cap(n.hashers) {
		n.hashers <- struct{}{}
	}
	free := sync.OnceFunc(func() {
		for range cap(n.hashers) {
			<-n.hashers
		}
	})
	defer free()
	hit := func(id string) *evidence.Observation {
		b := newBox(t, 1, "serve")
		n.notify(context.Background(), b.notice(id), yes)
		b.run()
		b.exec("/bin/target", "hello")
		var first *evidence.Observation
		until(t, func() bool {
			lines := n.published(id)
			if len(lines) > 0 {
				first = lines[0]
			}
			return first != nil && slices.ContainsFunc(lines, func(o *evidence.Observation) bool { return o.State == evidence.Hit })
		})
		b.end()
		must(t, n.waitIdle(context.Background()))
		return first
	}
	var o *evidence.Observation
	for try, end := 1, time.Now().Add(failsafe); ; try++ {
		o = hit(fmt.Sprint("c", try))
		told := o.To.Std().Sub(o.FirstAt.Std()) - others.between(o.FirstAt.Std(), o.To.Std())
		if o.State == evidence.Hit && told <= time.Second/2 { // the other half is the spool's
			break
		}
		if t.Logf("try %d: %v after the hit: %+v", try, told, o); try == 5 || time.Now().After(end) {
			t.Fatal("its first line waits too long")
		}
	}
	if o.FileDigest != "" || !strings.Contains(o.Detail, probe.ErrNotHashed.Error()) {
		t.Errorf("%+v", o)
	}
	free()
	later := 0
	until(t, func() bool {
		later++
		return hit(fmt.Sprint("later", later)).FileDigest != ""
	})
}

// published are the observations of a container that are on disk, in their order.
func (n *node) published(container string) (out []*evidence.Observation) {
	n.t.Helper()
	files, err := filepath.Glob(n.cfg.Spool + "/ready/*/*.ndjson")
	must(n.t, err)
	for _, f := range files {
		data, err := os.ReadFile(f)
		must(n.t, err)
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		for _, line := range lines[1 : len(lines)-1] {
			l, err := evidence.Decode(line)
			must(n.t, err)
			if o, ok := l.(*evidence.Observation); ok && o.ContainerID == container {
				out = append(out, o)
			}
		}
	}
	return out
}

// firstHit is the first line that says that a probe was hit, and when its chunk was
// found on disk.
type firstHit struct {
	*evidence.Observation
	found time.Time
}

// firstHits runs the box's program until there is a line of each probe on disk: that
// it was hit, or why it is not armed. Chunks that were read are not read again.
func (n *node) firstHits(b *box, container string, read map[string]bool) (hits map[string]firstHit, without map[string]evidence.NotArmedReason) {
	t := n.t
	t.Helper()
	hits, without = map[string]firstHit{}, map[string]evidence.NotArmedReason{}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	want := strings.Count(eventsPolicy, "id:")
	for end := time.After(failsafe); len(hits)+len(without) < want; {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("there are %v, and not armed are %v", hits, without)
		}
		b.exec("/bin/events", "again") // where the machine is busy, some are armed late
		files, err := filepath.Glob(n.cfg.Spool + "/ready/*/*.ndjson")
		must(t, err)
		for _, f := range files {
			if read[f] {
				continue
			}
			read[f] = true
			now := time.Now()
			data, err := os.ReadFile(f)
			must(t, err)
			lines := strings.Split(strings.TrimSpace(string(data)), "\n")
			for _, line := range lines[1 : len(lines)-1] {
				l, err := evidence.Decode(line)
				must(t, err)
				o, ok := l.(*evidence.Observation)
				switch {
				case !ok || o.ContainerID != container:
				case o.State == evidence.NotArmed:
					without[o.ProbeID] = o.Reason
				case o.State == evidence.Hit && hits[o.ProbeID].Observation == nil:
					hits[o.ProbeID] = firstHit{o, now}
				}
			}
		}
	}
	return hits, without
}

// others tells how long this process wanted to run and did not, because the machine
// ran others: by how much later than asked it was woken, again and again.
type others struct {
	mu   sync.Mutex
	late []lateness
}

type lateness struct{ from, to time.Time }

func watchOthers(t *testing.T) *others {
	const every = 10 * time.Millisecond
	w, stop, stopped := &others{}, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			due := time.Now().Add(every)
			timer := time.NewTimer(every)
			select {
			case <-stop:
				timer.Stop()
				return
			case <-timer.C:
			}
			w.mu.Lock()
			w.late = append(w.late, lateness{due, time.Now()})
			w.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
	})
	return w
}

// between is how much of that lies between two times.
func (w *others) between(from, to time.Time) (sum time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.late {
		if l.from.Before(from) {
			l.from = from
		}
		if l.to.After(to) {
			l.to = to
		}
		sum += max(0, l.to.Sub(l.from))
	}
	return sum
}
