package agent

import (
	"context"
	"time"

	"probity/bpf"
)

// standings tells the witness which of a run's sites stood down, or count
// again, since it was last asked.
func (a *Agent) standings(l *live) {
	if !l.isArmed() {
		return
	}
	for _, s := range l.handle.Stood() {
		a.witness.Stood(l.id, s.Reason, s.From, s.Detail, s.Site)
		if s.To != 0 {
			a.witness.Rearmed(l.id, s.To, s.Site)
		}
	}
}

// stacking names the frames of the stacks that come with first hits. It looks
// at the processes and their files, which takes its time: the ring goes on
// meanwhile.
func (a *Agent) stacking(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-a.stacks:
			a.name(e)
		}
	}
}

func (a *Agent) name(e bpf.Event) {
	a.naming.Lock()
	defer a.naming.Unlock()
	a.mu.Lock()
	l := a.armedIn[e.Cgroup]
	a.mu.Unlock()
	began := time.Now()
	if l == nil || l.user || !l.share(l.naming, began) {
		return
	}
	a.witness.Stack(e.Cgroup, e.Site, l.handle.Stack(e))
	l.naming += time.Since(began)
}

// named returns when every stack that the ring had has been named, or when that
// takes too long: their files are the containers'.
func (a *Agent) named() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case e := <-a.stacks:
				a.name(e)
			default:
				a.naming.Lock() // the one that somebody else has taken
				defer a.naming.Unlock()
				return
			}
		}
	}()
	late := time.NewTimer(identifyFor)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
	}
}

// stack has a stack named. When there are too many, the hit goes without: its
// count and its process are elsewhere.
func (a *Agent) stack(e bpf.Event) {
	select {
	case a.stacks <- e:
	default:
		a.log.Debug("a stack was left out: too many at once", "cgroup", e.Cgroup, "site", e.Site)
	}
}
