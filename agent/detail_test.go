package agent

import (
	"context"
	"testing"

	"probity/evidence"
)

const detailPolicy = `name: detail
probes:
  - id: once
    type: uprobe
    file: /bin/target
    symbols: [hello]
    stack: true
    stopAfter: 1
  - id: timed
    type: uprobe
    file: /bin/target
    symbols: [hello]
    duration: true
`

// The first hit's stack, the moment at which a site has its answer, and how
// long a function runs are on the lines of the run.
func TestDetail(t *testing.T) {
	n := newNodeWith(t, Config{}, detailPolicy)
	b := newBox(t, 1, "hello", "hello", "hello")
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, gaps := n.lines("c1")
	once, timed := obs["once"], obs["timed"]
	if once.State != evidence.Hit || *once.Count != 1 || once.Complete || !once.Final {
		t.Errorf("once: %+v", once)
	}
	if s := once.Stack; s == nil || len(s.Frames) == 0 || s.Frames[0].Symbol != "hello" || s.Frames[0].Path != "/bin/target" || s.Frames[0].BuildID != once.BuildID {
		t.Errorf("its stack: %+v", s)
	}
	for _, g := range gaps { // its beginning, and its end with the run
		if g.Reason != evidence.GapStoodDown || g.GapID != gaps[0].GapID || g.From.String() != once.LastAt.String() || g.ProbeID != "once" {
			t.Errorf("gap: %+v", g)
		}
	}
	if len(gaps) == 0 || gaps[len(gaps)-1].To.IsZero() {
		t.Errorf("%d lines of gaps, and none that ends", len(gaps))
	}
	if *timed.Count != 3 || !timed.Complete || timed.Stack != nil {
		t.Errorf("timed: %+v", timed)
	}
	if d := timed.Duration; d == nil || d.Count != 3 || d.Unmatched != 0 || d.SumNs == 0 {
		t.Errorf("its duration: %+v", d)
	}
}
