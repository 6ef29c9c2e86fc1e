package probe

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/evidence"
)

// A set's quota is its policy's, the larger one of two, and else the set's own.
// What is more than there is for all containers is refused.
func TestQuota(t *testing.T) {
	const execs = 4 // each another entry
	for name, c := range map[string]struct {
		quotas []uint64
		full   uint64
		refuse bool
	}{
		"none given":    {quotas: []uint64{0}},
		"too small":     {quotas: []uint64{3}, full: 1},
		"the larger":    {quotas: []uint64{3, 4}},
		"given or not":  {quotas: []uint64{3, 0}},
		"more than all": {quotas: []uint64{1000}, refuse: true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, newLower(t))
			e := newEngine(t, bpf.Options{SetEntries: 999}, Config{})
			var probes []policy.Probe
			for i, q := range c.quotas {
				probes = append(probes, policy.Probe{ID: string(rune('a' + i)), Set: policy.SetExec, Quota: q})
			}
			h := b.arm(e, probes...)
			if c.refuse {
				if s := h.Sites[0]; s.Armed || s.Reason != evidence.OverBudget {
					t.Errorf("%v %s: %s", s.Armed, s.Reason, s.Detail)
				}
				return
			}
			program, err := os.ReadFile(filepath.Join(b.merged, "bin/target"))
			must(t, err)
			for i := range execs {
				name := fmt.Sprint("bin/copy", i)
				must(t, os.WriteFile(filepath.Join(b.merged, name), program, 0o755))
				b.runAt(name, nil, "none")
			}
			all, err := h.SetCounts()
			must(t, err)
			if got := all[bpf.SetExec]; got.Used != execs-c.full || got.Full != c.full {
				t.Errorf("%+v", got)
			}
		})
	}
}
