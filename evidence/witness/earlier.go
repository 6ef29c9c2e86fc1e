package witness

import (
	"cmp"
	"log/slog"
	"slices"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/evidence"
)

// Earlier is what is known of a run that ran before this agent armed it.
type Earlier struct {
	// From is the boot time at which the run's window begins: when its first
	// process started, or where the lines of an earlier agent have it begin.
	From int64
	// Reason is GapAdopted, or GapAgentDown where an earlier agent had armed it. The
	// gap lasts from Since until the run is armed.
	Reason evidence.GapReason
	Since  int64
	Detail string
	// Kept: the counters of sites that say so (probe.Site.Kept) went on meanwhile. They
	// have no gap, and count what earlier lines say of them once more, but for Before.
	Kept bool
	// Before is what lines had of such a site before its counter began, by the site's
	// number, 0 for the container's execs: see [Witness.Before].
	Before map[uint32]bpf.Counter
	// Changed says that other policies were in force: that a probe has no earlier
	// lines does not say then that it saw nothing, nor that it was there.
	Changed bool
	// GapID is that of the gap, if lines have it open already.
	GapID string
	// FirstExec and Reasons are from earlier lines.
	FirstExec int64
	Reasons   []evidence.GapReason
	// FailPolicyEnforced and Refused are from earlier lines, too; nil if they say
	// nothing of it.
	FailPolicyEnforced *bool
	Refused            string
	// Gaps are earlier ones of the whole run, of which there are lines.
	Gaps []EarlierGap
	// Sites are sites of which earlier lines say more than that they were armed, and that
	// they had Gaps: what was counted stays counted.
	Sites []evidence.SiteLine
}

// EarlierGap is one or several gaps of one reason, in boot time.
type EarlierGap struct {
	Reason     evidence.GapReason
	From, To   int64
	DurationNs int64 // together
	Count      uint64
}

// foldedSite is the state of a site of which this run has no line.
type foldedSite struct {
	probe string
	state evidence.State
}

// takeUp goes on where earlier lines left off, and opens the gap in between, which
// ends with the arming. With its files' digests known, since they tell sites apart.
func (r *run) takeUp(log *slog.Logger) {
	e := r.earlier
	if e == nil {
		return
	}
	for _, reason := range e.Reasons {
		r.knowReason(reason)
	}
	r.carry(e, log)
	for _, x := range e.Gaps {
		r.knowReason(x.Reason)
		g := &gap{selector: wholeRun, id: NewGapID(), reason: x.Reason, from: max(x.From, r.first), to: x.To, count: x.Count, told: true}
		g.to = max(g.to, g.from)
		if x.DurationNs < g.to-g.from { // several
			g.folded = max(1, x.DurationNs)
		}
		r.gaps = append(r.gaps, g)
	}
	if e.Changed {
		r.close(r.addGap(&gap{selector: wholeRun, reason: evidence.GapPolicyChanged, from: r.first, count: 1, detail: "the agent that armed it before had other policies"}), r.armedAt)
	}
	since := gap{reason: e.Reason, from: max(e.Since, r.first), count: 1, detail: clip(e.Detail, maxDetail)}
	if e.Kept && r.arm != nil {
		since.to = r.armedAt
		for i := range r.sites {
			if s := &r.sites[i]; s.Armed && !s.Kept {
				g := since
				r.addSiteGap(i, &g)
			}
		}
		return
	}
	since.selector = wholeRun
	g := r.addGap(&since)
	g.id = cmp.Or(e.GapID, g.id)
	if r.arm != nil { // else it lasts until the end
		r.close(g, r.armedAt)
	}
}

// Before returns, by the numbers of a run's sites, what earlier lines say that was
// counted before their counters began; 0 is the container's execs. Who goes on with those
// counters has to know it. It is complete when Publish has returned.
func (w *Witness) Before(runID string) map[uint32]bpf.Counter {
	r := w.run(runID)
	if r == nil {
		return nil
	}
	defer r.mu.Unlock()
	out := map[uint32]bpf.Counter{}
	for i := range r.sites {
		if s := &r.sites[i]; s.before.Count > 0 && s.Set == "" && (s.ID != 0 || s.Event == policy.ProcessExec) {
			out[s.ID] = s.before
		}
	}
	return out
}

func (r *run) knowReason(reason evidence.GapReason) {
	if !slices.Contains(r.reasons, reason) {
		r.reasons = append(r.reasons, reason)
	}
}

// carry finds the sites that earlier lines are about.
func (r *run) carry(e *Earlier, log *slog.Logger) {
	if len(e.Sites) == 0 {
		return
	}
	at := make(map[evidence.SiteID]int, len(r.sites))
	nameless := map[int]bool{} // sites whose path is redacted, until their lines are found
	for i := range r.sites {
		o := r.observe(evidence.Clock{}, &r.sites[i], r.armedAt, log)
		r.redact.Line(o)
		at[evidence.SiteOf(o)] = i
		if evidence.IsRedacted(o.Redacted, "path") {
			nameless[i] = true
		}
	}
	since := e.Since // what was open may have ended by then
	if e.Kept {      // nothing else says so of the time until now
		since = r.armedAt
	}
	lost := map[string]bool{} // probes with lines about such a site, which may be any of them
	for _, x := range e.Sites {
		if x.Line.State == evidence.NotArmed {
			continue
		}
		state := evidence.Partial
		if x.Line.State == evidence.Hit {
			state = evidence.Hit
		}
		i, ok := at[evidence.SiteOf(x.Line)]
		if ok {
			delete(nameless, i)
		} else if evidence.IsRedacted(x.Line.Redacted, "path") {
			lost[x.Line.ProbeID] = true
		}
		switch {
		case !ok: // its last line stands
			r.gone = append(r.gone, foldedSite{x.Line.ProbeID, state})
		case !r.sites[i].Armed:
			// To say now that it is not armed would take back what was seen.
			r.sites[i].withheld = true
			r.gone = append(r.gone, foldedSite{x.Line.ProbeID, state})
			r.carrySite(e, &r.sites[i], x, since)
		default:
			r.carrySite(e, &r.sites[i], x, since)
			r.touch(i)
		}
	}
	for i := range r.sites { // the key of the tokens was the earlier agent's own
		if nameless[i] && lost[r.sites[i].Probe.ID] && r.sites[i].Armed {
			r.addSiteGap(i, &gap{reason: evidence.GapAgentDown, from: r.first, to: max(r.first, e.Since), count: 1, detail: "what the agent before saw there is under another token"})
		}
	}
}

// carrySite gives a site what earlier lines say of it.
func (r *run) carrySite(e *Earlier, s *site, x evidence.SiteLine, since int64) {
	o, own := x.Line, s.own()
	if o.State == evidence.Hit {
		before := bpf.Counter{Count: uint64(*o.Count), FirstNs: x.Clock.Boot(o.FirstAt), LastNs: x.Clock.Boot(o.LastAt)}
		own.before = before
		if s.Kept { // its counter has the rest
			own.before = e.Before[s.ID]
		}
		s.merge(own.before)
		r.last = max(r.last, before.LastNs)
		if len(o.Redacted) == 0 { // else which members are, would be forgotten
			own.process, own.stack = o.Process, o.Stack
		}
		if set := r.sets[s.Set]; set != nil {
			set.before = max(set.before, o.Entries)
			if len(o.SystemCalls) > 0 {
				set.calls = SystemCalls{First: before.FirstNs, Last: before.LastNs, Calls: o.SystemCalls, IOUring: o.IOUring}
				set.counter = before
			}
		}
	}
	for _, g := range o.Gaps {
		r.knowReason(g.Reason)
		was := &gap{selector: s.selector(), id: NewGapID(), reason: g.Reason, from: max(x.Clock.Boot(g.From), r.first), to: since, count: g.Count.N, told: true}
		if !g.To.IsZero() {
			was.to = x.Clock.Boot(g.To)
		}
		was.to = max(was.to, was.from)
		if d := int64(g.DurationNs); d < was.to-was.from { // several
			was.folded = max(1, d)
		}
		own.gaps = append(own.gaps, was)
	}
}

// firstExec is the boot time of the container's first execve, if it was seen.
func (r *run) firstExec() int64 {
	if r.earlier != nil {
		return r.earlier.FirstExec // what was seen since is another one
	}
	return r.kernel.FirstExecNs
}

// union is the system calls of both.
func union(a, b []evidence.SystemCalls) []evidence.SystemCalls {
	out := slices.Clone(a)
	for _, x := range b {
		i := slices.IndexFunc(out, func(y evidence.SystemCalls) bool { return y.Arch == x.Arch })
		if i < 0 {
			out = append(out, x)
			continue
		}
		numbers := slices.Concat(out[i].Numbers, x.Numbers)
		slices.Sort(numbers)
		out[i].Numbers, out[i].Beyond = slices.Compact(numbers), out[i].Beyond || x.Beyond
	}
	return out
}
