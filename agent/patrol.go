package agent

import (
	"context"
	"errors"
	"strings"
	"time"

	"probity/bpf/probe"
	"probity/runtime/cgroup"
	"probity/runtime/process"
)

// patrolShare is how much longer than looking the patrol rests: looking at
// processes takes half a percent of one processor at most.
const patrolShare = 200

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
				return pause(spent * patrolShare)
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
// it returns false when there is no more time.
func (a *Agent) patrolRun(l *live, rest func() bool) {
	select {
	case <-l.armed:
	default:
		return
	}
	if l.handle == nil {
		return
	}
	began := cgroup.BootTime()
	pids, _, err := a.cgroups.Procs(l.notice.Identity.CgroupPath, l.notice.Identity.CgroupID)
	if err != nil {
		a.log.Debug("list a container's processes", "container", l.container, "err", err)
	}
	var troubles []probe.Trouble
	told := map[string]bool{}
	for _, pid := range pids {
		got, err := a.look(l, pid, l.looked)
		if err != nil {
			if !errors.Is(err, process.ErrGone) {
				a.log.Debug("look at a process", "container", l.container, "pid", pid, "err", err)
			}
			continue
		}
		for _, t := range got.Troubles {
			if !told[t.Path] {
				told[t.Path] = true
				t.Since = l.looked
				troubles = append(troubles, t)
			}
		}
		if !rest() || l.ctx.Err() != nil {
			return
		}
	}
	l.checking.Lock()
	changed := len(troubles) > 0 || len(l.found) > 0
	l.found = troubles
	if len(troubles) == 0 {
		l.looked = began
	}
	l.checking.Unlock()
	if changed {
		a.check(l)
	}
}

// look looks at one process, if it still is one of the run's, and arms what it
// has mapped of files that appeared since the boot time from.
func (a *Agent) look(l *live, pid int, from int64) (probe.Looked, error) {
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
	l.checking.Lock()
	defer l.checking.Unlock()
	got, err := l.handle.Look(p)
	if err == nil {
		a.mapped(l, p, got.Other, from)
	}
	return got, err
}
