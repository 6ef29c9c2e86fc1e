package probe

import (
	"strings"
	"testing"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/evidence"
)

// A breakpoint in the middle of an instruction would make another one of it:
// an offset that a policy gives is refused where that can be seen.
func TestOffsetInsideInstruction(t *testing.T) {
	b := newWays(t)
	e := newEngine(t, bpf.Options{}, Config{})
	leaf := b.arm(e, symbols("leaf"))
	at := leaf.Sites[0].Offset
	must(t, leaf.Close())
	h := b.arm(e, policy.Probe{ID: "p", Type: policy.Uprobe, File: "/bin/target", Offsets: []policy.Offset{{Value: at}, {Value: at + 1}}})
	if s := h.Sites[0]; !s.Armed {
		t.Errorf("the first instruction: %s %s", s.Reason, s.Detail)
	}
	if s := h.Sites[1]; s.Armed || s.Reason != evidence.UnprobeableInstruction || !strings.Contains(s.Detail, "inside an instruction, at leaf+0x1") {
		t.Errorf("its second byte: armed %v, %s %s", s.Armed, s.Reason, s.Detail)
	}
	b.run(nil, "call") // it fails if the instruction is not what it was
	if c, err := h.Counter(h.Sites[0]); err != nil || c.Count != 1 {
		t.Errorf("%+v, %v", c, err)
	}
}
