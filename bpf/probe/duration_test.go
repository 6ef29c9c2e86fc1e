package probe

import (
	"testing"

	"probity/bpf/policy"
	"probity/evidence"
	"probity/tests/need"
)

// ways in which the return of a function in a file is seen.
func durationPlan(t *testing.T, b *box, way string, symbol string) Plan {
	t.Helper()
	plan := b.plan(policy.Probe{ID: "p", Type: "uprobe", File: "/bin/target", Symbols: []string{symbol}, Duration: true})
	s := &plan.Sites[0]
	if !s.Duration || len(s.Returns) == 0 {
		t.Fatalf("not planned: %+v", s)
	}
	if way == "uretprobe" {
		s.Returns = nil
	}
	return plan
}

func duration(t *testing.T, h *Handle) evidence.Duration {
	t.Helper()
	d, err := h.Duration(h.Sites[0])
	must(t, err)
	if d == nil {
		return evidence.Duration{}
	}
	return *d
}

func TestDuration(t *testing.T) {
	for _, way := range []string{"return instructions", "uretprobe"} {
		for rung, o := range rungs {
			t.Run(way+"/"+rung, func(t *testing.T) {
				lower := newLower(t)
				b, other := newBox(t, lower), newBox(t, lower)
				e := newEngine(t, o, Config{})
				h, h2 := b.armPlan(e, durationPlan(t, b, way, "slow")), other.armPlan(e, durationPlan(t, other, way, "slow"))
				if s := h.Sites[0]; !s.Armed || s.Detail != "" {
					t.Fatalf("%+v", s)
				}
				if d := duration(t, h); d.Count+d.Unmatched != 0 {
					t.Errorf("before: %+v", d)
				}
				b.run(nil, "slow", "slow", "slow", "slow") // two by each return
				d := duration(t, h)
				if d.Count != 4 || d.Unmatched != 0 || d.SumNs < 6e6 || d.SumNs > 60e9 {
					t.Errorf("%+v", d)
				}
				for i, n := range d.Counts {
					if n > 0 && i < 19 { // 2^20 ns is a millisecond
						t.Errorf("%d of 2^%d ns, and the shortest takes a millisecond", n, i)
					}
				}
				if d := duration(t, h2); d.Count+d.Unmatched != 0 {
					t.Errorf("the other container: %+v", d)
				}
				if c, err := h.Counter(h.Sites[0]); err != nil || c.Count != 4 {
					t.Errorf("hits: %+v, %v", c, err)
				}
				if tr := h.Check(); len(tr) != 0 {
					t.Errorf("troubles: %v", tr)
				}
			})
		}
	}
}

// Calls that nest are told apart, those that are left without a return or are
// too deep are counted as unmatched.
func TestNestedDuration(t *testing.T) {
	for _, way := range []string{"return instructions", "uretprobe"} {
		for _, c := range []struct {
			name             string
			args             []string
			count, unmatched evidence.Uint64
		}{
			{"nested", []string{"nested3", "nested2"}, 5, 0},
			{"as deep as is kept", []string{"nested8"}, 8, 0},
			{"too deep", []string{"nested11"}, 8, 3},
			// What is left behind shows when the function is called again.
			{"left by longjmp", []string{"jump3", "nested1"}, 1, 3},
			{"left twice", []string{"jump2", "jump2", "nested2"}, 2, 4},
		} {
			t.Run(way+"/"+c.name, func(t *testing.T) {
				b := newBox(t, newLower(t))
				e := newEngine(t, rungs["multi"], Config{})
				h := b.armPlan(e, durationPlan(t, b, way, "nested"))
				b.run(nil, c.args...)
				if d := duration(t, h); d.Count != c.count || d.Unmatched != c.unmatched {
					t.Errorf("%d pairs and %d unmatched, want %d and %d", d.Count, d.Unmatched, c.count, c.unmatched)
				}
			})
		}
	}
}

// A system call is timed by whatever shows its entry and its return.
func TestKernelDuration(t *testing.T) {
	need.Tracefs(t)
	for _, rung := range []string{"multi", "fixed"} {
		t.Run(rung, func(t *testing.T) {
			b := newBox(t, newLower(t))
			e := newEngine(t, rungs[rung], Config{})
			h := b.armPlan(e, kernelPlan(policy.Probe{ID: "p", Type: "kprobe", Syscalls: []string{"clock_nanosleep"}, Duration: true}))
			if s := h.Sites[0]; !s.Armed {
				t.Fatalf("%+v", s)
			}
			b.run(nil, "slow", "slow")
			if d := duration(t, h); d.Count != 3 || d.Unmatched != 0 || d.SumNs < 3e6 {
				t.Errorf("%+v", d)
			}
		})
	}
}
