package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"probity/bpf/probe"
	"probity/evidence"
	"probity/runtime/cgroup"
	"probity/runtime/process"
)

// patrolShare is how much longer than looking the patrol rests: looking at
// processes takes half a percent of one processor at most.
const patrolShare = 200

// longestRest bounds the rest after one look: a container chooses how long that
// takes, and the others wait for their turn.
const longestRest = 10 * time.Second

// patrol looks at the processes of all runs in turn, for as long as the agent
// runs: whether they would be seen executing what is armed. With few processes
// it comes by every Health; with many it takes as long as its share allows.
func (a *Agent) patrol(ctx context.Context) error {
	rest := time.NewTimer(a.cfg.Health)
	defer rest.Stop()
	pause := func(d time.Duration) bool {
		rest.Reset(d)
		select {
		case <-ctx.Done():
			return false
		case <-rest.C:
			return true
		}
	}
	for pause(a.cfg.Health) {
		for _, l := range a.runs() {
			began := time.Now()
			a.patrolRun(l, func() bool {
				spent := time.Since(began)
				defer func() { began = time.Now() }()
				return pause(min(spent*patrolShare, longestRest))
			})
			if ctx.Err() != nil {
				return nil
			}
		}
	}
	return nil
}

// patrolRun looks at every process of a run, and passes what it found on to the
// run's next health check, which it makes. rest is called after each process;
// it returns false when there is no more time. A process that could not be
// looked at is not one in which nothing was found.
func (a *Agent) patrolRun(l *live, rest func() bool) {
	if !l.isArmed() {
		return
	}
	began := cgroup.BootTime()
	pids, whole, err := a.cgroups.Procs(l.notice.Identity.CgroupPath, l.notice.Identity.CgroupID)
	var troubles []probe.Trouble
	told := map[string]bool{}
	tell := func(t probe.Trouble) {
		if !told[t.Path] {
			told[t.Path] = true
			t.Since = l.looked
			troubles = append(troubles, t)
		}
	}
	switch {
	case err != nil:
		tell(blind("its processes could not be listed: %v", err))
	case !whole:
		tell(blind("it has more processes or cgroups than are looked at"))
	}
	for i, pid := range pids {
		if i > 0 && !rest() || l.ctx.Err() != nil {
			return
		}
		var got probe.Looked
		var err error
		begun, done := l.inTurn(time.Second, turnFor, func() { got, err = a.look(l, pid, l.looked) })
		switch {
		case !begun || !done: // the next time
			a.stuck(l)
			return
		case err == nil:
			for _, t := range got.Troubles {
				tell(t)
			}
		case !errors.Is(err, process.ErrGone):
			tell(blind("process %d could not be looked at: %v", pid, err))
		}
	}
	defer rest() // what was found waits for nothing
	changed := false
	_, done := l.inTurn(turnFor, turnFor, func() {
		changed = len(troubles) > 0 || len(l.found) > 0
		l.found = troubles
		if len(troubles) == 0 {
			l.looked = began
		}
	})
	if done && changed {
		a.check(l, turnFor)
	}
}

// blind is a trouble of any file.
func blind(format string, args ...any) probe.Trouble {
	return probe.Trouble{Reason: evidence.GapUnarmedMapping, Detail: fmt.Sprintf(format, args...)}
}

// look looks at one process, if it still is one of the run's, and arms what it
// has mapped of files that appeared since the boot time from. With l.checking
// held.
func (a *Agent) look(l *live, pid int, from int64) (probe.Looked, error) {
	if l.disarmed {
		return probe.Looked{}, process.ErrGone
	}
	p, err := process.Open(pid)
	if err != nil {
		return probe.Looked{}, err
	}
	defer p.Close()
	path, _, err := a.cgroups.OfPid(pid)
	own := l.notice.Identity.CgroupPath
	switch {
	case errors.Is(err, cgroup.ErrGone):
		return probe.Looked{}, process.ErrGone
	case err != nil:
		return probe.Looked{}, err
	case path != own && !strings.HasPrefix(path, own+"/"):
		return probe.Looked{}, process.ErrGone // it has left, or is another with its number
	}
	got, err := l.handle.Look(p)
	if err == nil {
		a.mapped(l, p, got.Other, from)
	}
	return got, err
}
