package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"probity/bpf/probe"
	"probity/evidence"
	"probity/runtime/cgroup"
	"probity/runtime/process"
)

// patrolShare is how much longer than looking the patrol rests: looking at
// processes takes half a percent of one processor, of which each run that has
// processes left to look at has the same part. What is looked at for very long is
// looked at again after longestRest all the same.
const (
	patrolShare = 200
	longestRest = 10 * time.Second
)

// rest notes a look that took so long; under is how many runs have the share.
func (r *round) rest(took time.Duration, under int) {
	r.waitFor(time.Duration(under)*min(patrolShare*took, longestRest), time.Now())
}

// roundWithin is how long the patrol may take to look at all processes of a run:
// what takes longer is signed.
const roundWithin = 5 * time.Minute

// patrol looks at the processes of all runs, in turn, for as long as the agent
// runs: whether they would be seen executing what is armed. With few processes
// it comes by every health; with many, or with processes that are slow to look
// at, it takes as long as the run's share allows, and the others do not wait.
type patrol struct {
	health time.Duration
	runs   func() []*live
	// list returns a run's processes; whole is false if there are more.
	list func(*live) (pids []int, whole bool, err error)
	// look begins to look at a process, if nobody else looks at the container.
	look func(l *live, pid int) (<-chan look, bool)
	// found passes on what a look at all processes found, or one that takes too
	// long; began is when a look began that found nothing, else 0. It reports
	// whether it could.
	found func(l *live, troubles []probe.Trouble, began int64) bool

	rounds map[*live]*round
}

// look is what one look at a process came to.
type look struct {
	troubles []probe.Trouble
	took     time.Duration
}

// round is one look at all processes of a run.
type round struct {
	pace
	open     bool // it is under way
	since    time.Time
	began    int64 // boot time
	pids     []int
	at       int
	out      <-chan look // of the look that has not come back
	troubles []probe.Trouble
	told     map[string]bool
	overdue  bool // and that was passed on
}

func (r *round) tell(t probe.Trouble) {
	if !r.told[t.Path] {
		r.told[t.Path] = true
		r.troubles = append(r.troubles, t)
	}
}

func (a *Agent) patrol(ctx context.Context) error {
	p := &patrol{
		health: a.cfg.Health, runs: a.rootsRuns, found: a.patrolled,
		list: func(l *live) ([]int, bool, error) {
			return a.cgroups.Procs(l.notice.Identity.CgroupPath, l.notice.Identity.CgroupID)
		},
		look: a.lookInTurn,
	}
	return p.run(ctx)
}

func (p *patrol) run(ctx context.Context) error {
	p.rounds = map[*live]*round{}
	rest := time.NewTimer(p.health)
	defer rest.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-rest.C:
		}
		rest.Reset(max(p.turn(ctx), 5*time.Millisecond))
	}
}

// turn does the next piece of each run whose turn it is, and returns how long
// there is nothing to do.
func (p *patrol) turn(ctx context.Context) time.Duration {
	runs, under := p.runs(), 0
	there := make(map[*live]bool, len(runs))
	for _, l := range runs {
		there[l] = true
		if r := p.rounds[l]; r != nil && r.open {
			under++
		}
	}
	for l := range p.rounds {
		if !there[l] {
			delete(p.rounds, l)
		}
	}
	next := time.Now().Add(p.health)
	for _, l := range runs {
		if ctx.Err() != nil {
			return 0
		}
		if !l.isArmed() {
			continue
		}
		r := p.rounds[l]
		if r == nil {
			r = &round{}
			p.rounds[l] = r
		}
		if r.due(time.Now()) {
			p.step(l, r, max(1, under))
		}
		if r.next.Before(next) {
			next = r.next
		}
	}
	return time.Until(next)
}

// step does a run's next piece: it lists its processes, or looks at one, or passes
// on what was found.
func (p *patrol) step(l *live, r *round, under int) {
	began := time.Now()
	switch {
	case !r.open:
		*r = round{pace: r.pace, open: true, since: began, began: cgroup.BootTime(), told: map[string]bool{}}
		var whole bool
		var err error
		switch r.pids, whole, err = p.list(l); {
		case err != nil:
			r.tell(blind("its processes could not be listed: %v", err))
		case !whole:
			r.tell(blind("it has more processes or cgroups than are looked at"))
		}
		r.rest(time.Since(began), under)
	case r.out == nil && r.at == len(r.pids): // passing it on waited for its turn
	case r.out == nil:
		var begun bool
		if r.out, begun = p.look(l, r.pids[r.at]); !begun {
			r.out = nil
			r.waitFor(patience, time.Now())
			break
		}
		r.at++
		late := time.NewTimer(patience)
		defer late.Stop()
		select {
		case x := <-r.out:
			r.take(x, under)
		case <-late.C:
			r.waitFor(patience, time.Now())
		}
	default:
		select {
		case x := <-r.out:
			r.take(x, under)
		default:
			r.waitFor(patience, time.Now())
		}
	}
	if r.out == nil && r.at == len(r.pids) { // what was found waits for nothing
		p.finish(l, r)
	}
	if r.open && !r.overdue && time.Since(r.since) > roundWithin {
		r.overdue = p.found(l, append(slices.Clone(r.troubles), blind("%d of its %d processes were not looked at within %v", len(r.pids)-r.at, len(r.pids), roundWithin)), 0)
	}
}

// finish ends a round, if what was found can be passed on.
func (p *patrol) finish(l *live, r *round) {
	now, clean := time.Now(), r.began
	if len(r.troubles) > 0 {
		clean = 0
	}
	if !p.found(l, r.troubles, clean) {
		r.waitFor(patience, now)
		return
	}
	r.open, r.pids = false, nil
	if at := now.Add(p.health); r.due(at) {
		r.next = at
	}
}

func (r *round) take(x look, under int) {
	r.out = nil
	for _, t := range x.troubles {
		r.tell(t)
	}
	r.rest(x.took, under)
}

// lookInTurn looks at a process of a run. One that could not be looked at is not
// one in which nothing was found.
func (a *Agent) lookInTurn(l *live, pid int) (<-chan look, bool) {
	out := make(chan look, 1)
	begun, _ := l.inTurn(0, 0, func() {
		began := time.Now()
		got, err := a.look(l, pid, l.looked)
		if err != nil && !errors.Is(err, process.ErrGone) {
			got.Troubles = append(got.Troubles, blind("process %d could not be looked at: %v", pid, err))
		}
		l.find(got.Troubles)
		out <- look{got.Troubles, time.Since(began)}
	})
	if !begun {
		a.stuck(l)
	}
	return out, begun
}

// find keeps what one look found for the next check, at the latest that of the
// run's end: the round that it is of may not come to its own. With l.checking
// held.
func (l *live) find(troubles []probe.Trouble) {
	for _, t := range troubles {
		if !slices.ContainsFunc(l.found, func(f probe.Trouble) bool { return f.Path == t.Path && f.Reason == t.Reason }) {
			t.Since = l.looked
			l.found = append(l.found, t)
		}
	}
}

// patrolled passes on what the patrol found in a run to its next health check,
// which it makes if something is new.
func (a *Agent) patrolled(l *live, troubles []probe.Trouble, began int64) bool {
	begun, _ := l.inTurn(0, patience, func() {
		changed := len(troubles) > 0 || len(l.found) > 0
		for i := range troubles {
			troubles[i].Since = l.looked
		}
		l.found = troubles
		if began != 0 {
			l.looked = began
		}
		if changed {
			a.checkNow(l)
		}
	})
	if !begun {
		a.stuck(l)
	}
	return begun
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
	p, err := a.openOwn(l, pid)
	if err != nil {
		return probe.Looked{}, err
	}
	defer p.Close()
	got, err := l.handle.Look(p)
	if err == nil {
		a.mapped(l, p, got.Other, from)
	}
	return got, err
}
