package agent

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
// and of each set, with the node's own times. The wall clock has more, because
// the machine may be busy.
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
	b := newBoxOf(t, map[string][]byte{"bin/target": bin, "bin/events": program}, 1, "serve")
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()

	// What is not armed is told in the first lines already.
	hits, without := map[string]*evidence.Observation{}, map[string]evidence.NotArmedReason{}
	onDisk := map[string]time.Time{} // when the hit's chunk was found there
	read := map[string]bool{}
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
				case !ok || o.ContainerID != "c1":
				case o.State == evidence.NotArmed:
					without[o.ProbeID] = o.Reason
				case o.State == evidence.Hit && hits[o.ProbeID] == nil:
					hits[o.ProbeID], onDisk[o.ProbeID] = o, now
				}
			}
		}
	}
	for id, o := range hits {
		first := o.FirstAt.Std()
		told, there := o.To.Std().Sub(first), onDisk[id].Sub(first)
		t.Logf("%s as %s: told after %v, on disk after %v", id, o.ProbeType, told, there)
		if told < 0 || told > time.Second || there > 5*time.Second {
			t.Errorf("%s: first at %v, told at %v, on disk at %v", id, first, o.To.Std(), onDisk[id])
		}
	}
	for id, reason := range without {
		t.Logf("%s: %s", id, reason)
		if reason != evidence.KernelUnsupported || strings.HasPrefix(id, "u") {
			t.Errorf("%s: %s", id, reason)
		}
	}
	for _, id := range []string{"uprobe", "offset", "duration", "uretprobe", "usdt", "rawTracepoint", "exec", "libraries", "syscalls", "network", "files"} {
		if hits[id] == nil {
			t.Errorf("%s: no hit", id)
		}
	}
}
