package agent

import (
	"fmt"
	"sync/atomic"
	"time"

	"probity/runtime/cgroup"
)

// How long others wait for what is done in turn with one container, before they
// go on without it.
const (
	turnFor = 5 * time.Second
	// stuckAfter is when what does not come back is a gap: a file system of
	// the container may never answer.
	stuckAfter = 60 * time.Second
)

// turn is held by whoever looks at a container's files and processes: one at a
// time. Make it with newTurn.
type turn struct {
	free  chan struct{}
	since atomic.Int64 // boot time since which it is held; 0: it is not
	told  atomic.Int64 // since, of whom it was told that he does not come back
}

func newTurn() *turn {
	t := &turn{free: make(chan struct{}, 1)}
	t.free <- struct{}{}
	return t
}

func (t *turn) Lock() {
	<-t.free
	t.since.Store(cgroup.BootTime())
}

func (t *turn) Unlock() {
	t.since.Store(0)
	t.free <- struct{}{}
}

// inTurn calls f when nobody else looks at the container. It waits at most so
// long for that, and then for f: files are the container's, and what reads them
// may take its time or never come back, which must cost nobody else anything.
// Without begun f is not called at all; without done it goes on, and what it
// writes must not be read.
func (l *live) inTurn(wait, most time.Duration, f func()) (begun, done bool) {
	select {
	case <-l.checking.free:
	default:
		if wait == 0 {
			return false, false
		}
		late := time.NewTimer(wait)
		defer late.Stop()
		select {
		case <-l.checking.free:
		case <-late.C:
			return false, false
		}
	}
	l.checking.since.Store(cgroup.BootTime())
	end := make(chan struct{})
	go func() {
		defer close(end)
		defer l.checking.Unlock()
		f()
	}()
	late := time.NewTimer(most)
	defer late.Stop()
	select {
	case <-end:
		return true, true
	case <-late.C:
		return true, false
	}
}

// stuck signs that looking at a container does not come back, once for each
// time.
func (a *Agent) stuck(l *live) {
	// Nobody need hold the turn for that long: there may always be somebody else.
	if last := l.checked.Load(); last != 0 && a.clocks.awake(last) > stuckAfter && l.toldUnchecked.Swap(last) != last {
		a.witness.UnarmedMapping(l.id, "", last, 0, fmt.Sprintf("its files were not checked for more than %v: others looked at it all the time", stuckAfter))
	}
	since := l.checking.since.Load()
	if since == 0 || a.clocks.awake(since) < stuckAfter || l.checking.told.Swap(since) == since {
		return
	}
	a.log.Warn("looking at a container does not come back", "container", l.container, "after", stuckAfter)
	a.witness.UnarmedMapping(l.id, "", since, 0, fmt.Sprintf("looking at its files takes more than %v: what it runs is not proven", stuckAfter))
}
