package agent

import (
	"context"
	"slices"
	"testing"
	"time"

	"probity/evidence"
	"probity/runtime/cgroup"
)

// A container that takes the breakpoint out of its own memory runs unseen; the
// evidence says from when on, and does not claim that nothing was executed.
func TestUnarmedMapping(t *testing.T) {
	n := newNodeWith(t, Config{Health: 20 * time.Millisecond}, wanted)
	b := newBox(t, 1, "hide", "never")
	n.notify(context.Background(), b.notice("c1"), yes)
	armed := n.witness.Live()[0].ArmedAt
	b.run()
	until(t, func() bool {
		l := n.witness.Live()
		return len(l) == 1 && slices.Contains(l[0].Gaps, "unarmedMapping /bin/target")
	})
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, gaps := n.lines("c1")
	for _, id := range []string{"hello", "never"} {
		if o := obs[id]; o.State != evidence.Partial || o.Complete || len(o.Gaps) != 1 || o.Gaps[0].Reason != evidence.GapUnarmedMapping {
			t.Errorf("%s: %+v", id, o)
		}
	}
	if len(gaps) == 0 {
		t.Fatal("no gap")
	}
	for _, g := range gaps {
		if g.Reason != evidence.GapUnarmedMapping || g.Path != "/bin/target" || g.Scope != evidence.ScopeFile {
			t.Errorf("%+v", g)
		}
	}
	if from := obs["never"].From; gaps[0].From.Std().Before(from.Std()) || armed == 0 {
		t.Errorf("the gap begins at %v, the window at %v", gaps[0].From, from)
	}
}

func until(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(failsafe); !ok(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("it does not come")
		}
	}
}

// What was found in one process is signed also if the round over all of them does
// not come to its end before the container does.
func TestFoundInARoundThatDoesNotEnd(t *testing.T) {
	n := newNodeWith(t, Config{Health: time.Hour}, wanted)
	b := newBox(t, 1, "hide", "never")
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	l := n.onlyRun()
	until(t, func() bool { // that it has hidden itself
		l.checking.Lock()
		got, err := n.look(l, b.cmd.Process.Pid, l.looked)
		l.checking.Unlock()
		return err == nil && len(got.Troubles) > 0
	})
	out, begun := n.lookInTurn(l, b.cmd.Process.Pid)
	if !begun {
		t.Fatal("not begun")
	}
	<-out
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, _ := n.lines("c1")
	if o := obs["hello"]; o.State != evidence.Partial || len(o.Gaps) != 1 || o.Gaps[0].Reason != evidence.GapUnarmedMapping {
		t.Errorf("%+v", o)
	}
}

// A container at which somebody always looks is never checked: that is a gap,
// although nobody looks at it for long.
func TestNeverChecked(t *testing.T) {
	n := newNodeWith(t, Config{Health: time.Hour}, wanted)
	b := newBox(t, 1, "never")
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	l := n.onlyRun()
	last := cgroup.BootTime() - int64(2*stuckAfter)
	l.checked.Store(last)
	for range 3 {
		l.checking.Lock()
		if n.check(l, 0, patience) {
			t.Error("checked beside another")
		}
		l.checking.Unlock()
	}
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, _ := n.lines("c1")
	if o := obs["hello"]; o.State != evidence.Partial || len(o.Gaps) != 1 || o.Gaps[0].Count.N != 1 {
		t.Errorf("%+v", o)
	}
}
