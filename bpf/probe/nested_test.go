package probe

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/policy"
)

// nestedProbes are of every kind that has its own way to tell whose an event is.
func nestedProbes() []policy.Probe {
	return []policy.Probe{
		{ID: "function", Type: "uprobe", File: "/bin/target", Symbols: []string{"hello"}},
		{ID: "event", Type: "tracepoint", Event: "task:task_rename"},
		{ID: "raw", Type: "rawTracepoint", Event: "task_rename"},
		{ID: "call", Type: "kprobe", Syscalls: []string{"getppid"}},
		{ID: "calls", Set: "syscalls"},
	}
}

// byProbe reads a container's counters.
func byProbe(t *testing.T, h *Handle) map[string]uint64 {
	t.Helper()
	out := map[string]uint64{}
	for _, s := range h.Sites {
		if s.Set != "" {
			continue
		}
		if !s.Armed {
			t.Fatalf("%s: %s %s", s.Probe.ID, s.Reason, s.Detail)
		}
		c, err := h.Counter(s)
		must(t, err)
		out[s.Probe.ID] = c.Count
	}
	return out
}

// A container's cgroup subtree has those of the containers within it. What is
// done in there is done in each that is around it, and what a process does that
// has been moved out of the inner ones is done in the outer ones still. In each
// order of arming.
func TestNestedContainers(t *testing.T) {
	calls := []int{unix.SYS_GETPPID, unix.SYS_PRCTL, unix.SYS_CLOCK_NANOSLEEP}
	for _, order := range [][3]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			lower := newLower(t)
			var boxes [3]*box
			var around []uint64
			var targets [3]Target
			parent := filepath.Dir(newBox(t, lower).cgroup)
			for i := range boxes {
				boxes[i] = newBoxIn(t, lower, parent, i+1)
				parent = boxes[i].cgroup
				targets[i] = boxes[i].target()
				targets[i].Around = slices.Clone(around)
				around = slices.Insert(around, 0, boxes[i].id)
			}
			e := newEngine(t, bpf.Options{}, Config{})
			var handles [3]*Handle
			for _, i := range order {
				h, err := e.Arm(t.Context(), targets[i], boxes[i].plan(nestedProbes()...))
				must(t, err)
				t.Cleanup(func() { must(t, h.Close()) })
				handles[i] = h
			}

			// Each round ends with hello, and then waits for a byte.
			cmd, entered := boxes[2].command("bin/target", nil,
				"getppid", "rename", "hello", "wait",
				"getppid", "rename", "hello", "wait",
				"getppid", "rename", "slow", "hello", "wait",
				"getppid", "rename", "hello")
			in, err := cmd.StdinPipe()
			must(t, err)
			must(t, cmd.Start())
			must(t, entered.Close())
			want := [3]uint64{}
			for round, to := range []string{"", boxes[1].cgroup, boxes[0].cgroup, filepath.Dir(boxes[0].cgroup)} {
				if to != "" {
					must(t, os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(fmt.Sprint(cmd.Process.Pid)), 0))
					_, err := io.WriteString(in, ".")
					must(t, err)
				}
				for i := range max(0, 3-round) {
					want[i]++
				}
				if round < 3 {
					until(t, func() bool { return byProbe(t, handles[0])["function"] == want[0] })
				}
			}
			must(t, cmd.Wait())
			for i, h := range handles {
				for id, got := range byProbe(t, h) {
					if n := want[i]; got != n {
						t.Errorf("container %d: %s counted %d, want %d", i, id, got, n)
					}
				}
				run, err := h.Run()
				must(t, err)
				if run.Left != 1 || run.Untracked != 0 {
					t.Errorf("container %d: %+v; want one to have left", i, run)
				}
				sets, err := h.SystemCalls()
				must(t, err)
				did := map[int]bool{}
				for _, s := range sets {
					for _, n := range s.Numbers {
						did[n] = true
					}
				}
				// The call of the round after a container was left is none of its own.
				if sleeps := i == 0; !did[calls[0]] || !did[calls[1]] || did[calls[2]] != sleeps {
					t.Errorf("container %d: system calls %v; want it to sleep: %v", i, slices.Sorted(maps.Keys(did)), sleeps)
				}
			}
		})
	}
}

// Who is within whom is right whatever comes and goes in whatever order.
func TestNests(t *testing.T) {
	e := newEngine(t, bpf.Options{}, Config{})
	chain := []uint64{5, 4, 3, 2, 1} // innermost first
	target := func(id uint64) Target {
		return Target{Cgroup: id, Around: chain[slices.Index(chain, id)+1:]}
	}
	for _, step := range []struct {
		in, out uint64
		want    map[uint64]uint64
	}{
		{in: 3, want: map[uint64]uint64{3: 0}},
		{in: 5, want: map[uint64]uint64{3: 0, 5: 3}},
		{in: 1, want: map[uint64]uint64{1: 0, 3: 1, 5: 3}},
		{in: 4, want: map[uint64]uint64{1: 0, 3: 1, 4: 3, 5: 4}},
		{out: 3, want: map[uint64]uint64{1: 0, 4: 1, 5: 4}},
		{out: 4, want: map[uint64]uint64{1: 0, 5: 1}},
		{in: 2, want: map[uint64]uint64{1: 0, 2: 1, 5: 2}},
		{out: 1, want: map[uint64]uint64{2: 0, 5: 2}},
		{out: 9, want: map[uint64]uint64{2: 0, 5: 2}},
	} {
		if step.in != 0 {
			must(t, e.enter(target(step.in)))
		} else {
			must(t, e.exit(step.out))
		}
		got := map[uint64]uint64{}
		for id, n := range e.nests {
			got[id] = n.outer
			if outer, err := e.obj.Outer(id); err != nil || outer != n.outer {
				t.Errorf("after %+v the kernel has %d around %d (%v), want %d", step, outer, id, err, n.outer)
			}
		}
		if !maps.Equal(got, step.want) {
			t.Errorf("after %+v: %v", step, got)
		}
	}
	for _, id := range []uint64{2, 5} {
		must(t, e.exit(id))
		must(t, e.obj.SetOuter(id, 0))
	}
}
