package runtimes

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"probity/evidence"
)

var load = flag.Bool("load", false, "have the tests of load start 200 pods at once, and 1,000 containers in a row")

// sized is how many of something a test of load has.
func sized(small, whole int) int {
	if *load {
		return whole
	}
	return small
}

// loose is a test to which several goroutines report: one that fails ends alone.
type loose struct{ *testing.T }

func (l loose) Fatalf(format string, args ...any) {
	l.Helper()
	l.Errorf(format, args...)
	runtime.Goexit()
}

// Pods that are all started at once are each in the evidence, once. The agent may hold a
// fifth of the runtime's time, so most of them are let go before they are armed: of these
// the gap says since when they are, and from then on the counts are exact. How long the
// runtime waited for the plugin is told, and not judged: it has the machine's load in it,
// and the agent's own bound, of what it spends, is runtime/nri's to show.
func TestPodsAtOnce(t *testing.T) {
	pods := sized(24, 200)
	if unit, err := os.ReadFile(filepath.Join(repository(t), "packaging/systemd/probity.service")); err != nil || !strings.Contains(string(unit), "\nNice="+unitNice+"\n") {
		t.Errorf("the unit does not have the priority that is measured here: %v", err)
	}
	d := containerdDriver{StartContainerd(t)}
	lock := watchNRI(t, d.NRISocket)
	a := StartAgent(t, AgentOptions{Policies: []string{targetPolicy}, NRISockets: []string{lock.socket}, Containerd: d.Address, Nice: true})
	d.attach(t, a)
	targetImage(t, d)
	before := descriptors(t, a)

	list := make([]*Container, pods)
	took := make([]time.Duration, pods)
	all := func(do func(i int)) {
		t.Helper()
		var done sync.WaitGroup
		for i := range list {
			done.Go(func() { do(i) })
		}
		done.Wait()
		if t.Failed() {
			t.FailNow()
		}
	}
	all(func(i int) {
		list[i] = d.Create(loose{t}, Spec{Image: targetName, Name: fmt.Sprintf("pod%d", i), Args: []string{"hello", "hello", "wait", "goodbye", "goodbye", "goodbye"}})
	})
	all(func(i int) {
		begin := time.Now()
		list[i].Start(loose{t})
		took[i] = time.Since(begin)
	})
	slices.Sort(took)
	waitArmed(t, a, pods)
	most, calls := lock.held()
	t.Logf("%d pods at once: a start takes %v, the slowest %v; the plugin held the lock for %v of any 10 s, in %v", pods, took[pods/2], took[pods-1], most, calls)
	if calls["StartContainer"] < pods || most == 0 {
		t.Errorf("the lock was not watched: %v", calls)
	}
	for _, x := range list {
		if err := os.WriteFile(filepath.Join(d.Scratch.Dir, "containerd/state/io.containerd.runtime.v2.task/k8s.io", x.ID, "rootfs/go"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range list {
		if code := x.Wait(t); code != 0 {
			t.Errorf("%s: exit code %d", x.Spec.Name, code)
		}
	}
	e := settled(t, a)
	late := 0
	for _, x := range list {
		want(t, e, x.ID, "fn", "goodbye", evidence.Hit, "", 3) // all of this came after they were armed
		o := e.Latest(x.ID, "fn", "hello")
		switch gaps := e.GapsOf(x.ID, evidence.GapLateAttach); {
		case len(runGaps(gaps)) == 0:
			if o.State != evidence.Hit || *o.Count != 2 || !o.Complete {
				t.Errorf("%s: without a gap: %+v", x.Spec.Name, o)
			}
		default:
			late++
			if o.Complete || *o.Count > 2 || o.State != evidence.Hit && o.State != evidence.Partial || o.State == evidence.Hit && *o.Count == 0 {
				t.Errorf("%s: let go before it was armed: %+v", x.Spec.Name, o)
			}
		}
	}
	t.Logf("%d of them were let go before they were armed", late)
	notMore(t, a, before)
}

// Containers in a row, of which each ends at once, and whose ids are used again and
// again: each is a run of its own, armed before its first instruction, and nothing of
// them stays.
func TestContainersInARow(t *testing.T) {
	ids, rounds := sized(6, 50), sized(4, 20)
	s := runcSuite(t).(ociSuite)
	a := StartAgent(t, s.agent(AgentOptions{Policies: []string{rowPolicy}}))
	s.attach(t, a)
	s.image(t)
	var before int
	list := make([]life, ids)
	for round := range rounds {
		for i := range list {
			if round == 0 {
				var err error
				if list[i], err = s.try(t, fmt.Sprintf("row%d", i), manner{}, "hello", "exit", fmt.Sprint(i%7)); err != nil {
					t.Fatal(err)
				}
			} else {
				list[i] = list[i].again(t)
			}
			if code := list[i].wait(t); code != i%7 {
				t.Fatalf("round %d, %d: exit code %d", round, i, code)
			}
		}
		if round == 1 {
			a.WaitIdle(t)
			before = descriptors(t, a)
		}
	}
	e := settled(t, a)
	runs := map[string]map[string]bool{}
	for _, c := range e.Coverage {
		if runs[c.ContainerID] == nil {
			runs[c.ContainerID] = map[string]bool{}
		}
		runs[c.ContainerID][c.RunID] = true
	}
	hits := map[string]uint64{}
	for _, o := range e.Observations {
		if o.Final && o.Symbol == "hello" {
			if o.State != evidence.Hit || !o.Complete {
				t.Errorf("%+v", o)
			} else {
				hits[o.ContainerID] += uint64(*o.Count)
			}
		}
	}
	for _, c := range list {
		if len(runs[c.id()]) != rounds || hits[c.id()] != uint64(rounds) {
			t.Errorf("%s: %d runs with %d hits, want %d of each", c.id(), len(runs[c.id()]), hits[c.id()], rounds)
		}
	}
	for _, g := range e.Gaps {
		if g.RunID != "" {
			t.Errorf("a gap of a run: %+v", g)
		}
	}
	notMore(t, a, before)
}

const rowPolicy = `
name: row
select:
  runtimes: [runc]
probes:
  - id: fn
    type: uprobe
    file: /bin/target
    symbols: [hello, goodbye]
`

// waitArmed waits until so many runs are live, and all of them armed.
func waitArmed(t *testing.T, a *Agent, runs int) {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	for {
		live, err := a.live(t)
		if err != nil {
			t.Fatal(err)
		}
		armed := 0
		for _, l := range live {
			if l.Armed > 0 {
				armed++
			}
		}
		if armed == runs {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%d of %d are armed\n%s", armed, runs, a.server.tail())
		}
		pause(ctx)
	}
}

// descriptors counts what the agent has open.
func descriptors(t *testing.T, a *Agent) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// notMore waits until the agent has no more open than before, but for the links of
// files that the next container may have, too.
func notMore(t *testing.T, a *Agent, before int) {
	t.Helper()
	const spare = 8
	ctx, cancel := within(t, Patience)
	defer cancel()
	for descriptors(t, a) > before+spare {
		if ctx.Err() != nil {
			t.Fatalf("%d descriptors, %d before", descriptors(t, a), before)
		}
		pause(ctx)
	}
}
