package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"probity/evidence"
	"probity/evidence/redact"
	"probity/evidence/spool"
	"probity/evidence/witness"
	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/runtime/handoff"
	"probity/runtime/handoff/wire"
	"probity/runtime/nri"
	"probity/runtime/oci"
)

// sweepEvery is how often the agent looks whether the ring buffer was full: a
// first hit whose event was dropped is on disk within a second all the same,
// half of which is the spool's.
const sweepEvery = 300 * time.Millisecond

// barrierMargin is how much longer the sources wait than the agent: it must be
// the agent that lets a container go, because it signs when.
const barrierMargin = 150 * time.Millisecond

// serve starts everything that runs as long as the agent does.
func (a *Agent) serve(g *errgroup.Group, ctx context.Context) {
	if a.ring != nil {
		// Not in the group's time: the last runs are sealed after the sources
		// have ended, and need the ring. Close ends it.
		go func() {
			if err := a.ring.run(); err != nil {
				a.deafToKernel(err)
			}
		}()
		go a.identifyAll()
		g.Go(func() error { return a.tellAllCalls(ctx) })
		g.Go(func() error { return a.engine.Run(ctx) })
		g.Go(func() error { return a.engine.Guard(ctx) })
		g.Go(func() error { return a.sweep(ctx) })
	}
	g.Go(func() error { return a.keptIsOver(ctx) })
	g.Go(func() error { return a.pulse(ctx) })
	g.Go(func() error { return a.health(ctx) })
	g.Go(func() error { return a.living(ctx) })
	g.Go(func() error { return a.patrol(ctx) })
	g.Go(func() error { return a.catchingUp(ctx) })
	g.Go(func() error { return a.stacking(ctx) })
	g.Go(func() error { return a.lookAhead(ctx) })
	g.Go(func() error { return a.adopting(ctx) })
	a.begin() // until what runs is told of
	g.Go(func() error { return a.scanStates(ctx) })
	g.Go(func() error { return a.serveAdmin(ctx, a.admin) })
	g.Go(func() error { return a.reloading(ctx) })
	if a.hooks != nil {
		srv := handoff.New(a.hooks, handoff.Config{
			Handle: a.hook, Deadline: a.cfg.Barrier + barrierMargin, Log: a.log.With("in", "hook"),
			Late:     a.hookLate,
			Rejected: a.hookRejected,
		})
		g.Go(func() error { return srv.Run(ctx) })
		a.source("hook", "listening on "+a.cfg.HookSocket)
	}
	if a.userHooks != nil {
		srv := handoff.New(a.userHooks, handoff.Config{
			Handle: a.hookOfUser, Deadline: a.cfg.Barrier + barrierMargin, Log: a.log.With("in", "rootless"),
			Late: a.userLate, Rejected: a.userRejected, Admit: a.admitUser, Every: usersEvery,
		})
		g.Go(func() error { return srv.Run(ctx) })
		g.Go(func() error { return a.tellMissed(ctx) })
		a.source(noUser, "listening on "+a.cfg.RootlessHookSocket)
	}
	for _, socket := range a.cfg.NRISockets {
		g.Go(func() error { return a.nri(ctx, socket) })
	}
	if a.cfg.ContainerdEvents == "on" {
		g.Go(func() error { return a.events(ctx, a.cfg.ContainerdAddress) })
	}
}

// deafToKernel signs that nothing is told of what containers execute any more: the
// counters go on, and what is new in a container is not armed.
func (a *Agent) deafToKernel(err error) {
	a.problem("detail of hits is lost from now on, and what appears in containers is not armed: %v", err)
	a.mu.Lock()
	a.deafSince = err
	a.mu.Unlock()
	for _, l := range a.runs() {
		a.tellDeaf(l)
	}
}

// tellDeaf does so for one run.
func (a *Agent) tellDeaf(l *live) {
	a.mu.Lock()
	err := a.deafSince
	a.mu.Unlock()
	if err != nil {
		a.witness.UnarmedMapping(l.id, "", cgroup.BootTime(), 0, fmt.Sprintf("it is not told any more what is executed: %v", err))
	}
}

// undecodable takes why a record of the kernel could not be decoded. It may have
// been of an execve in any container.
func (a *Agent) undecodable(err error) {
	a.witness.Undecodable(err)
	for _, l := range a.runs() {
		a.witness.UnarmedMapping(l.id, "", cgroup.BootTime(), 0, fmt.Sprintf("what the kernel told of some container could not be read: %v", err))
	}
}

func (a *Agent) nri(ctx context.Context, socket string) error {
	name := "nri:" + socket
	// From the agent's start on until the runtime is connected, containers
	// start unseen.
	a.sourceLost(name, cgroup.BootTime(), "not connected yet")
	src := nri.New(nri.Config{
		Hook:   a.hookFor,
		Socket: socket, Barrier: a.cfg.Barrier + barrierMargin, Log: a.log.With("in", "nri", "socket", socket),
		Notify: func(ctx context.Context, n container.Notice) error {
			a.byNRI.hear(n)
			return refusalOf(a.notify(ctx, n, nil))
		},
		Late:   func(n container.Notice, waits bool) error { return refusalOf(a.late(n, waits)) },
		Insist: func(n container.Notice) bool { return obeys(n) && a.inForce().MayRefuse(n.Identity) != "" },
		Lost:   func(from, to int64) { a.deaf(name, from, to) },
		Synced: func() {
			a.sourceBack(name, cgroup.BootTime())
			a.heard(name)
		},
	})
	return src.Run(ctx)
}

// hook answers one OCI hook. Whatever is wrong with the request, the container goes
// on, unless a policy may require probes of it.
func (a *Agent) hook(ctx context.Context, r handoff.Request) handoff.Answer {
	at := cgroup.BootTime()
	n, err := oci.Notice(r.Stage.String(), r.Body, r.Peer.Pid)
	if r.Stage == wire.CreateRuntime {
		a.hookHeard(n, r.Body, at)
	}
	if err != nil && !errors.Is(err, oci.ErrSharedCgroup) { // that one is signed
		a.problem("a hook's container was not believed: %v", err)
		answer := handoff.Answer{Message: "probity: not armed: " + err.Error()}
		if r.Stage == wire.CreateRuntime {
			if why := a.missed(at, err); why != "" {
				answer = refusal(why)
			}
		}
		return answer
	}
	if r.Stage == wire.CreateRuntime && !r.Peer.Alive() {
		a.missed(at, fmt.Errorf("the hook of container %s did not wait for the answer", n.Identity.ID))
		return handoff.Answer{}
	}
	a.who(&n.Identity)
	refused := a.notify(ctx, n, r.Peer.Alive)
	if n.Kind == container.Stopped {
		a.hookEnded(n)
	}
	return refusal(refused)
}

// hookLate is told by the hook socket that a hook does not wait any more.
func (a *Agent) hookLate(r handoff.Request, waits bool) handoff.Answer {
	if r.Stage != wire.CreateRuntime {
		return handoff.Answer{}
	}
	st, err := oci.ParseState(r.Body)
	if err != nil {
		return refusal(a.mayRefuse(unknown, err.Error()))
	}
	a.told.hear(st.ID, cgroup.BootTime())
	return refusal(a.late(container.Notice{Source: oci.Source, Kind: container.Starting, Pid: st.Pid, Identity: container.Identity{ID: st.ID, Cut: true}}, waits))
}

// hookRejected is told of a request that could not be taken. Nobody but root can
// start a container that the agent is told of.
func (a *Agent) hookRejected(p handoff.Peer, err error) handoff.Answer {
	a.problem("a request on the hook socket was not taken (pid %d, uid %d): %v", p.Pid, p.Uid, err)
	if p.Uid != 0 {
		return handoff.Answer{}
	}
	return refusal(a.missed(cgroup.BootTime(), err))
}

// missed signs that the hook told of a container that could not be taken: it
// started unseen, or is refused, and then it returns why.
func (a *Agent) missed(from int64, err error) (refused string) {
	detail := err.Error()
	if refused = a.mayRefuse(unknown, detail); refused != "" {
		detail = "refused: " + refused
	}
	a.witness.SourceMissed(oci.Source, from, cgroup.BootTime(), detail)
	return refused
}

func (a *Agent) source(name, state string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sources[name] = state
}

// connected is what status says of a runtime that is.
const connected = "connected"

// deaf is told by a source that it could not hear from from to to; to is 0 when
// that begins.
func (a *Agent) deaf(name string, from, to int64) {
	a.mu.Lock()
	up := a.sources[name] == connected
	a.mu.Unlock()
	switch {
	case to == 0:
		a.sourceLost(name, from, "the connection to the runtime is gone")
	case up:
		// Not the end of a disconnection, which Synced closes: the runtime told
		// more than could be queued.
		a.witness.SourceMissed(name, from, to, "notices past the bound of the queue were not taken")
	}
}

func (a *Agent) sourceLost(name string, at int64, why string) {
	a.mu.Lock()
	gap := len(a.table.SourceLost(name, at)) > 0
	if gap {
		a.sources[name] = "disconnected: " + why
	}
	a.mu.Unlock()
	if gap {
		a.witness.SourceLost(name, at, why)
	}
}

func (a *Agent) sourceBack(name string, at int64) {
	a.mu.Lock()
	a.sources[name] = connected
	a.table.SourceBack(name, at) // the cgroup watchers look by themselves
	a.mu.Unlock()
	a.witness.SourceBack(name, at)
}

// believed is how long one proof of what containers share stands for all of them.
const believed = time.Second

// health proves every few seconds that what was armed still is.
func (a *Agent) health(ctx context.Context) error {
	tick := time.NewTicker(a.cfg.Health)
	defer tick.Stop()
	hour := time.NewTicker(time.Hour)
	defer hour.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			a.healthTurns.begin()
			// What containers share is proven once for all of them, but for who
			// comes so late that it says little about him.
			asOf := cgroup.BootTime()
			for _, l := range a.runs() {
				a.healthTurns.further()
				if now := cgroup.BootTime(); now-asOf > int64(believed) {
					asOf = now
				}
				a.checkAsOf(l, 0, patience, asOf)
				a.tellLosses(l)
			}
			a.healthTurns.end()
		case <-hour.C:
			a.healthTurns.begin()
			for _, l := range a.runs() {
				a.healthTurns.further()
				a.sweepSets(l)
			}
			a.witness.Hourly()
			a.healthTurns.end()
		}
	}
}

// sweep reads all counters when the ring had no room for an event, and those of
// runs in which a probe stood down.
func (a *Agent) sweep(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	var seen, stood uint64
	var behind bool // some had no turn
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		a.sweepTurns.begin()
		switch n, err := a.obj.Stood(); {
		case err != nil:
			return err
		case n != stood:
			stood = n
			for _, l := range a.runs() {
				a.sweepTurns.further()
				a.standings(l)
			}
		}
		n, err := a.obj.RingFull()
		if err != nil {
			return err
		}
		if n != seen {
			seen = n
			a.witness.Sweep()
			behind = true
		}
		if behind {
			behind = a.sweepDropped()
		}
		a.sweepTurns.end()
	}
}

// recover signs what the spool of an earlier agent leaves open: nothing is
// known of those runs since their last line, and of containers that lived
// wholly in the time without an agent nothing at all. If ctx ends before the spool is
// read it signs what the next agent could not find, and returns that error.
func (a *Agent) recover(ctx context.Context) error {
	found, err := spool.Recover(ctx, a.cfg.Spool, a.key(), a.cfg.Starting)
	if err != nil && ctx.Err() != nil {
		a.signPowerLoss() // the next agent would not know of it
		return err
	}
	if err != nil {
		a.problem("the spool that was found: %v", err)
	}
	a.spool.Account(found)
	gap, from := found.Stopped, found.StoppedAt
	if gap == nil {
		if from = found.Until; from.IsZero() { // a shipper took the chunks away
			from = spool.Moment{Time: evidence.TimeOf(a.spool.Earlier())}
		}
		if !from.IsZero() {
			gap = &evidence.Gap{
				GapID: witness.NewGapID(), Scope: evidence.ScopeNode, Reason: evidence.GapAgentDown, Count: evidence.Loss{N: 1},
				Detail: "the agent ended without saying when; containers may have started and ended unseen",
			}
		}
	}
	if gap != nil {
		a.mu.Lock()
		a.away = from
		a.mu.Unlock()
		if gap.Detail == "" {
			gap.Detail = "no agent; containers may have started and ended unseen"
		}
		a.signNode(gap, func(g *evidence.Gap, c evidence.Clock, now evidence.Time) {
			g.From = from.By(c, a.bootID)
			g.To = later(g.From, now)
		})
	}
	a.signPowerLoss()
	defer a.spool.Seal() // this must not wait for more
	var over []*left
	for _, r := range found.Runs {
		a.log.Warn("an earlier agent left a run open", "run", r.Coverage.RunID, "container", r.Coverage.ContainerID, "last", r.To, "sites", len(r.Sites))
		if r.Cut { // what was counted could not be carried on whole, and a later line would take it back
			a.problem("run %s is not taken up again: it had most of the sites with hits or gaps, of which all runs have more than can be carried on", r.Coverage.RunID)
		}
		if x := a.leave(r); x != nil {
			over = append(over, x)
		}
	}
	a.readKept(ctx, a.cfg.Starting, over...)
	a.unmark()
	return nil
}

// signPowerLoss signs what went with the machine, if an earlier agent did.
func (a *Agent) signPowerLoss() {
	if from, lost := a.spool.PowerLoss(); lost {
		a.signNode(&evidence.Gap{
			GapID: witness.NewGapID(), Scope: evidence.ScopeNode, Reason: evidence.GapPowerLoss, From: from, Count: evidence.Loss{Unknowable: true},
			Detail: "the last agent was in another boot and did not end in order: what it had not written yet went with the machine",
		}, func(g *evidence.Gap, _ evidence.Clock, now evidence.Time) { g.To = later(g.From, now) })
	}
}

// signNode hands a gap of the node to the spool, completed with the time.
func (a *Agent) signNode(g *evidence.Gap, complete func(*evidence.Gap, evidence.Clock, evidence.Time)) {
	err := a.spool.Append("", func(c evidence.Clock) []redact.Line {
		complete(g, c, c.Time(cgroup.BootTime()))
		return a.redactor().Lines(g)
	})
	if err != nil {
		a.problem("the time without an agent was not signed: %v", err)
	}
}

// later keeps a gap from ending before it began, if the clock was set back.
func later(a, b evidence.Time) evidence.Time {
	if b.Std().Before(a.Std()) {
		return a
	}
	return b
}
