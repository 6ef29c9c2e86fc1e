package agent

import (
	"context"
	"testing"
	"time"

	"probity/evidence"
)

const restingPolicy = `name: resting
probes:
  - id: once
    type: uprobe
    file: /bin/target
    symbols: [hello]
    stopAfter: 2
    stack: true
  - id: timed
    type: uprobe
    file: /bin/target
    symbols: [never]
    duration: true
`

// A probe that has its answer stands down, and the evidence says from when on
// it has counted nothing; its first hit has a stack, and a pair its duration.
func TestStandingDown(t *testing.T) {
	n := newNodeWith(t, Config{Health: 50 * time.Millisecond}, restingPolicy)
	b := newBox(t, 1, "serve")
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	for range 5 {
		b.exec("/bin/target", "hello")
		b.exec("/bin/target", "never")
	}
	until(t, func() bool { l := n.witness.Live(); return len(l) == 1 && len(l[0].Gaps) == 1 })
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, gaps := n.lines("c1")
	once := obs["once"]
	if once.State != evidence.Hit || *once.Count != 2 || once.Complete || len(once.Gaps) != 1 || once.Gaps[0].Reason != evidence.GapStoodDown {
		t.Errorf("once: %+v", once)
	}
	if once.Stack == nil || len(once.Stack.Frames) < 2 || once.Stack.Frames[0].Symbol != "hello" {
		t.Errorf("its stack: %+v", once.Stack)
	}
	timed := obs["timed"]
	if timed.State != evidence.Hit || *timed.Count != 5 || !timed.Complete || timed.Duration == nil || timed.Duration.Count != 5 {
		t.Errorf("timed: %+v, %+v", timed, timed.Duration)
	}
	if len(gaps) == 0 || gaps[0].Reason != evidence.GapStoodDown || gaps[0].Scope != evidence.ScopeSite {
		t.Errorf("gaps: %+v", gaps)
	}
}
