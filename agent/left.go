package agent

import (
	"cmp"
	"context"
	"slices"

	"probity/evidence"
	"probity/evidence/redact"
	"probity/evidence/spool"
	"probity/evidence/witness"
	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/runtime/lifecycle"
)

// left is a run that an earlier agent armed and did not see the end of. Until a
// source tells of it there is nothing but its evidence, whose gap is open.
type left struct {
	spool.OpenRun
	kept bool // its counters go on: guarded by Agent.mu
	// anew says that it lives, and is armed under other policies now: what is kept for it
	// is to be read. Nobody else reads it.
	anew bool
	why  string          // the gap's detail, where it is not that nothing was kept
	ctx  context.Context // ends with stop
	stop context.CancelFunc
}

// nothingKept is the detail of a run's agentDown gap.
const nothingKept = "no agent, and nothing that kept its counters"

func (a *Agent) nothingKept() string {
	if a.notKept != "" {
		return a.notKept
	}
	return nothingKept
}

// leave signs the gap of a run that an earlier agent left open, unless one before
// this has done so, and enters it into the table. It returns it if its counters are kept
// and are not to go on, because it has ended or was armed under other policies: then
// readKept reads them.
func (a *Agent) leave(r spool.OpenRun) (over *left) {
	cov := r.Coverage
	// Where its counters go on there is no gap, unless nobody takes it up.
	kept := r.GapID == "" && !r.Cut && a.isKept(&cov)
	if r.GapID == "" && !kept {
		r.GapID = witness.NewGapID()
		if !a.signLeft(r, nil, nil, a.nothingKept()) {
			return nil
		}
	}
	x := &left{OpenRun: r, kept: kept, anew: kept && cov.Policies != a.inForce().Digest}
	x.ctx, x.stop = context.WithCancel(context.Background())
	id := container.Identity{
		Runtime: container.Runtime(cov.Runtime), ID: cov.ContainerID, BootID: cov.BootID, CgroupID: uint64(cov.CgroupID), CgroupPath: cov.CgroupPath,
	}
	a.mu.Lock()
	taken := len(a.table.Left(cov.RunID, id, cov.Source)) > 0
	if taken {
		a.left[cov.RunID] = x
	}
	if taken && kept {
		a.parked[id.CgroupID] = &parked{}
		a.parking.Store(true)
	}
	a.mu.Unlock()
	switch {
	case !taken:
		x.stop()
	case cov.BootID != a.bootID: // it ended with the machine, at the latest
		a.endLeft(x, nil, 0)
	case id.CgroupID == 0 || a.cgErr != nil:
		// Only a source can tell whether it lives.
	default:
		alive, err := a.cgroups.PopulatedID(id.CgroupPath, id.CgroupID)
		over := err == nil && !alive
		switch {
		case kept && (over || x.anew):
			x.anew = !over
			return x
		case !over:
			a.work.Go(func() { a.watchLeft(x) })
		default:
			a.endLeft(x, nil, cgroup.BootTime())
		}
	}
	return nil
}

// readKept writes what was counted while there was no agent for runs whose counters do not
// go on: it seals those that have ended, and has the others armed anew. If ctx ends before
// their last lines are read it leaves them to the next agent.
func (a *Agent) readKept(ctx context.Context, progress func(), over ...*left) {
	if len(over) == 0 {
		return
	}
	runs := map[string]bool{}
	for _, x := range over {
		runs[x.Coverage.RunID] = true
	}
	last, err := spool.LastLines(ctx, a.cfg.Spool, a.key(), runs, progress)
	if err != nil && ctx.Err() != nil {
		return
	}
	if err != nil {
		a.problem("what was counted while there was no agent is not in lines: %v", err)
	}
	for _, x := range over {
		if x.anew {
			a.dropKept(x, last[x.Coverage.RunID])
			a.work.Go(func() { a.watchLeft(x) })
		} else {
			a.endLeft(x, last[x.Coverage.RunID], cgroup.BootTime())
		}
	}
}

// dropKept reads the counters of a run that lives, and lets go of them: it was armed
// under other policies, and is armed anew. Nobody else knows of it yet.
func (a *Agent) dropKept(x *left, last []evidence.SiteLine) {
	now := cgroup.BootTime()
	more, detail := a.endKept(x, last, "the policies are others now: its counters were read, and it is armed anew")
	x.GapID, x.why = witness.NewGapID(), detail
	a.signLeft(x.OpenRun, nil, more, detail)
	x.Coverage.Probes = hitBy(x.Coverage.Probes, more)
	for _, m := range more {
		// In the chunk's time of the line before. The gap of the time without an agent
		// is the run's, and not repeated.
		clock := m.last.Clock
		line := m.line(clock, clock.Time(x.ToBootNs), clock.Time(now), false)
		line.Gaps = m.last.Line.Gaps
		site := evidence.SiteLine{Line: line, Clock: clock}
		of := evidence.SiteOf(line)
		if i := slices.IndexFunc(x.Sites, func(s evidence.SiteLine) bool { return evidence.SiteOf(s.Line) == of }); i >= 0 {
			x.Sites[i] = site
		} else {
			x.Sites = append(x.Sites, site)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	x.kept, x.anew = false, false
}

// hitBy returns the folds of probes, of which these sites were hit.
func hitBy(probes []evidence.ProbeFold, more []moreHits) []evidence.ProbeFold {
	probes = slices.Clone(probes)
	for i, p := range probes {
		if slices.ContainsFunc(more, func(m moreHits) bool { return m.last.Line.ProbeID == p.ProbeID }) {
			probes[i].State = evidence.Hit
		}
	}
	return probes
}

// giveBack seals a run that was taken up and that ended before it could be armed: what
// its counters have is read as if nobody had taken it up.
func (a *Agent) giveBack(l *live) {
	a.begin()
	defer a.end() // tells who waits for all runs' ends
	x := l.kept
	x.ctx, x.stop = context.WithCancel(l.ctx)
	a.mu.Lock()
	a.table.Armed(l.id, false)
	a.left[l.id] = x
	close(l.armed)
	a.mu.Unlock()
	a.readKept(x.ctx, nil, x)
	a.mu.Lock()
	delete(a.live, l.id) // not before: who waits for all runs' ends waits for this one's
	a.mu.Unlock()
}

// watchLeft seals a run that nobody has taken up when it ends.
func (a *Agent) watchLeft(x *left) {
	err := a.cgroups.WaitEmptyID(x.ctx, x.Coverage.CgroupPath, uint64(x.Coverage.CgroupID))
	switch {
	case x.ctx.Err() != nil:
	case err != nil:
		a.problem("the end of container %s, which an earlier agent armed, could not be watched: %v", x.Coverage.ContainerID, err)
	default:
		a.mu.Lock()
		kept := x.kept
		a.mu.Unlock()
		if kept {
			a.readKept(x.ctx, nil, x)
		} else {
			a.endLeft(x, nil, cgroup.BootTime())
		}
	}
}

// endLeft seals it: at is when its cgroup was found empty, 0 says that it ended in
// an earlier boot. last are its last lines, if its counters were kept.
func (a *Agent) endLeft(x *left, last []evidence.SiteLine, at int64) {
	a.begin()
	defer a.end()
	defer x.stop()
	a.mu.Lock()
	var actions []lifecycle.Action
	kept := false
	if a.left[x.Coverage.RunID] == x { // else it was taken up
		actions = a.table.CgroupEmpty(x.Coverage.RunID, at)
		delete(a.left, x.Coverage.RunID)
		kept = x.kept
	}
	a.mu.Unlock()
	detail := cmp.Or(x.why, a.nothingKept())
	var more []moreHits
	if kept {
		x.GapID = witness.NewGapID()
		more, detail = a.endKept(x, last, "it ended before an agent took it up")
	}
	for _, act := range actions {
		if s, ok := act.(lifecycle.Seal); ok {
			a.signLeft(x.OpenRun, &s.At, more, detail)
		}
	}
}

// signLeft writes the coverage line and the gap of a run that an earlier agent left
// open. At its end both are the last: ended is when that was, 0 says in an earlier
// boot, nil that it may live. more are sites that were hit since their last lines.
func (a *Agent) signLeft(r spool.OpenRun, ended *int64, more []moreHits, detail string) bool {
	err := a.appendLeft(r, ended, more, detail)
	if err != nil {
		a.problem("the gap of run %s was not signed: %v", r.Coverage.RunID, err)
	}
	return err == nil
}

func (a *Agent) appendLeft(r spool.OpenRun, ended *int64, more []moreHits, detail string) error {
	last := r.Coverage
	last.Final, last.To = ended != nil, r.To
	last.GapReasons = slices.Clone(last.GapReasons)
	if !slices.Contains(last.GapReasons, evidence.GapAgentDown) {
		last.GapReasons = append(last.GapReasons, evidence.GapAgentDown)
	}
	last.Probes = hitBy(last.Probes, more)
	for i, p := range last.Probes {
		if last.Final && p.State == evidence.ArmedNoHit { // up to the gap, and not up to the end
			last.Probes[i].State = evidence.Partial
		}
	}
	gap := evidence.Gap{
		GapID: r.GapID, Scope: evidence.ScopeRun, Reason: evidence.GapAgentDown, From: r.To,
		Count: evidence.Loss{N: 1}, RunID: last.RunID, ContainerID: last.ContainerID,
		Detail: detail,
	}
	return a.spool.Append(last.RunID, func(c evidence.Clock) []redact.Line {
		cov, g := last, gap
		if r.Coverage.BootID == a.bootID { // by this chunk's clock, whatever it was set by since
			cov.From, cov.To = c.Time(r.FromBootNs), c.Time(r.ToBootNs)
			g.From = cov.To
			if r.StartedBootNs != 0 {
				cov.Started = c.Time(r.StartedBootNs)
			}
			if r.FirstExecBootNs != 0 {
				cov.FirstExec = c.Time(r.FirstExecBootNs)
			}
		}
		if ended != nil {
			at := later(g.From, c.Time(*ended)) // 0 is this boot's start
			if *ended != 0 {
				cov.Ended = at
			}
			cov.To, g.To = at, at
		}
		lines, to := []evidence.Line{&cov, &g}, g.To
		if ended == nil {
			to = later(g.From, c.Time(cgroup.BootTime()))
		}
		for _, m := range more {
			lines = append(lines, m.line(c, g.From, to, ended != nil))
		}
		return a.redactor().Lines(lines...) // what was redacted then stays, and the rules may be others now
	})
}

// takeUp returns what is known of a run from an earlier agent, if it armed it, and
// when it had started. With mu held.
func (a *Agent) takeUp(runID string, under *policies) (e *witness.Earlier, started int64) {
	x := a.left[runID]
	if x == nil {
		return nil, 0
	}
	delete(a.left, runID)
	x.stop()
	since := min(x.ToBootNs, cgroup.BootTime())
	e = &witness.Earlier{
		From: min(x.FromBootNs, since), Since: since, Reason: evidence.GapAgentDown, GapID: x.GapID,
		Detail: cmp.Or(x.why, a.nothingKept()), Before: a.before[uint64(x.Coverage.CgroupID)], Kept: x.kept, FirstExec: x.FirstExecBootNs, Sites: x.Sites, Changed: x.Coverage.Policies != under.Digest,
		FailPolicyEnforced: x.Coverage.FailPolicyEnforced, Refused: x.Coverage.Refused,
	}
	for _, g := range x.Gaps {
		e.Gaps = append(e.Gaps, witness.EarlierGap(g))
	}
	for _, r := range x.Coverage.GapReasons {
		if r != evidence.GapAgentDown {
			e.Reasons = append(e.Reasons, r)
		}
	}
	return e, x.StartedBootNs
}

// heard says that a source has told of everything that runs: what lived wholly since
// the last agent was there is not known.
func (a *Agent) heard(source string) {
	a.mu.Lock()
	from, told := a.away, a.heardOf[source]
	a.heardOf[source] = true
	a.mu.Unlock()
	if from.IsZero() || told {
		return
	}
	a.signNode(&evidence.Gap{
		GapID: witness.NewGapID(), Scope: evidence.ScopeSource, Source: source, Reason: evidence.GapAgentDown, Count: evidence.Loss{N: 1},
		Detail: "containers that it started and that ended until it was heard again are not known",
	}, func(g *evidence.Gap, c evidence.Clock, now evidence.Time) {
		g.From = from.By(c, a.bootID)
		g.To = later(g.From, now)
	})
}
