package witness

import (
	"iter"
	"log/slog"
	"slices"
	"sort"
	"strings"

	"probity/bpf/probe"
	"probity/evidence"
	"probity/evidence/score"
)

// begin makes what all observations of a site's probe have alike.
func (r *run) begin(c evidence.Clock, s *site, to int64) *evidence.Observation {
	return &evidence.Observation{
		RunID: r.runID, ContainerID: r.id.ID, Runtime: string(r.id.Runtime),
		ImageDigest: r.id.Image.Digest, ImageDigestReason: r.id.Image.DigestReason,
		ProbeID: s.Probe.ID, RequestedProbeType: s.Requested, ProbeType: s.Type, Set: s.Set,
		Confidence: score.Confidence(s.Type, attributionOf(s), precision(s), r.losses(s)),
		Final:      r.final, From: c.Time(r.first), To: c.Time(to),
	}
}

// observe makes a site's observation.
func (r *run) observe(c evidence.Clock, s *site, to int64, log *slog.Logger) *evidence.Observation {
	o := r.begin(c, s, to)
	switch {
	case s.Set != "":
	case s.Function != "":
		o.Function, o.Wanted = s.Function, s.Wanted
	default:
		o.Symbol, o.SymbolKind, o.Inline, o.Event = evidence.Spell(s.Symbol), s.Kind, s.Inline, s.Event
		for _, x := range s.InlinedAt {
			o.InlinedAt = append(o.InlinedAt, evidence.Instance{Offset: evidence.Uint64(x.Offset), In: x.Function})
		}
		if o.Inline == "inlinedAt" && len(o.InlinedAt) == 0 {
			o.Inline = "unknown" // known to be somewhere, and nobody says where
		}
		o.Demangled, o.Wanted, o.InlinedIn, o.Implements = s.Demangled, s.Wanted, s.InlinedIn, s.Implements
		if s.Marker != "" {
			o.Event = s.Marker
		}
		if s.HasOffset {
			off := evidence.Uint64(s.Offset)
			o.Offset = &off
		}
	}
	switch {
	case s.File != nil:
		r.describeFile(o, s)
	case s.Reason == evidence.FileNotFound:
		o.Path = s.Probe.File
	}
	if !s.Armed {
		o.State, o.Reason, o.Detail = evidence.NotArmed, s.Reason, clip(s.Detail, maxDetail)
		o.ProbeType = s.Requested
		o.Confidence = score.NotArmed(s.Requested, attributionOf(s), precision(s))
		evidence.Cut(o)
		return o
	}
	if s.Detail != "" && o.Detail == "" { // such as why the kernel used another type
		o.Detail = clip(s.Detail, maxDetail)
	}
	count := evidence.Uint64(s.counter.Count)
	o.Count = &count
	o.State, o.Complete = r.state(s, to)
	o.Gaps = r.siteGaps(c, s, to)
	if o.State == evidence.Hit {
		o.FirstAt, o.LastAt = c.Time(s.counter.FirstNs), c.Time(max(s.counter.LastNs, s.counter.FirstNs))
		o.Process, o.Stack = s.process, s.stack
		if s.Requested == evidence.Tracepoint && s.ID == 0 {
			o.Processes, o.Redacted = r.processes, r.procGone
		}
		o.Duration = r.duration(s, log)
		r.describeSet(o, s)
	}
	evidence.Cut(o)
	return o
}

// duration reads how long the function ran, where that is counted, under all
// numbers of the site. If one of them cannot be read, nothing is said: a part
// would be taken for the whole.
func (r *run) duration(s *site, log *slog.Logger) (sum *evidence.Duration) {
	t, ok := r.arm.(Timer)
	if !ok || !s.Probe.Duration {
		return nil
	}
	for _, n := range append([]*probe.Site{s.Site}, s.earlier...) {
		d, err := t.Duration(*n)
		if err != nil {
			log.Error("read a duration", "run", r.runID, "probe", s.Probe.ID, "err", err)
			return nil
		}
		sum = sum.Plus(d)
	}
	return sum
}

func (r *run) describeSet(o *evidence.Observation, s *site) {
	set := r.sets[s.Set]
	switch {
	case set == nil:
	case s.Set == evidence.SetSyscalls:
		o.SystemCalls, o.IOUring = set.calls.Calls, set.calls.IOUring
	default:
		o.Entries = max(set.before, evidence.Uint64(len(set.order)))
	}
}

func (r *run) describeFile(o *evidence.Observation, s *site) {
	m := s.File.Match
	o.Path, o.Origin, o.LayerDiffID, o.BuildID, o.Copies = evidence.Spell(m.Path), m.Origin, m.Layer.DiffID, s.File.BuildID, s.Copies
	d, err := r.digest(s.File)
	if err != nil {
		o.Detail = clip(err.Error(), maxDetail)
		return
	}
	o.FileDigest = d
}

// digest is the digest of a file, as the run's lines have it.
func (r *run) digest(f *probe.File) (string, error) {
	if err := r.unhashed[f]; err != nil || f.Digest == nil {
		return "", err
	}
	return f.Digest()
}

// state folds the site's windows.
func (r *run) state(s *site, to int64) (evidence.State, bool) {
	covered, complete := r.windows(s, to)
	if s.counter.Count > 0 {
		return evidence.Hit, complete
	}
	st, _ := evidence.FoldWindows(r.first, to, covered)
	return st, complete
}

// saying is what a line about the site would now say, as far as a change makes a
// new line. It is what observe says (TestSaying), without making the line: one
// gap may be of thousands of sites that have said all of it.
func (r *run) saying(s *site) said {
	if !s.Armed {
		return said{state: saidNotArmed}
	}
	now := said{state: saidArmedNoHit, count: s.counter.Count, stack: s.stack != nil}
	var reasons [8]evidence.GapReason // more is rare, and makes at most a line too many
	for g := range r.gapsOf(s) {
		if !g.losesDetail() {
			now.state = saidPartial // each lies within the window: nothing begins before the first instruction
		}
		if !slices.Contains(reasons[:min(int(now.gaps), len(reasons))], g.reason) {
			if int(now.gaps) < len(reasons) {
				reasons[now.gaps] = g.reason
			}
			now.gaps++
		}
	}
	if s.counter.Count > 0 {
		now.state = saidHit
	} else {
		now.stack = false
	}
	return now
}

// windows cuts [first, to) at the site's gaps.
func (r *run) windows(s *site, to int64) (ws []evidence.Window, complete bool) {
	var gaps []*gap
	for g := range r.gapsOf(s) {
		if !g.losesDetail() {
			gaps = append(gaps, g)
		}
	}
	sort.Slice(gaps, func(i, j int) bool { return gaps[i].from < gaps[j].from })
	at := r.first
	for _, g := range gaps {
		if g.from > at {
			ws = append(ws, evidence.Window{State: evidence.ArmedNoHit, From: at, To: g.from})
		}
		end := g.to
		if end == 0 {
			end = to
		}
		if g.to != 0 && g.to == g.from || g.folded != 0 {
			// A gap without length is one of number: what it lost may have been
			// anywhere. Of several together it is not known where each was.
			ws = append(ws, evidence.Window{State: evidence.Partial, From: g.from, To: g.to})
			continue
		}
		if end > at {
			ws = append(ws, evidence.Window{State: evidence.NotArmed, From: max(at, g.from), To: end})
			at = end
		}
	}
	if to > at || len(ws) == 0 {
		ws = append(ws, evidence.Window{State: evidence.ArmedNoHit, From: at, To: max(to, at)})
	} else if allNotArmed(ws) {
		// Armed once, if only for an instant: the evidence is partial, not absent.
		ws = append(ws, evidence.Window{State: evidence.Partial, From: at, To: at})
	}
	return ws, len(gaps) == 0
}

// gapsOf yields the gaps of the site: those of several sites, then its own.
func (r *run) gapsOf(s *site) iter.Seq[*gap] {
	return func(yield func(*gap) bool) {
		for _, g := range r.gaps {
			if g.covers(s) && !yield(g) {
				return
			}
		}
		for _, g := range s.gaps {
			if !yield(g) {
				return
			}
		}
	}
}

func allNotArmed(ws []evidence.Window) bool {
	for _, w := range ws {
		if w.State != evidence.NotArmed {
			return false
		}
	}
	return true
}

// siteGaps sums up the site's gaps, one entry per reason.
func (r *run) siteGaps(c evidence.Clock, s *site, to int64) []evidence.SiteGap {
	var out []evidence.SiteGap
	type span struct {
		from, to int64
		open     bool
	}
	var spans []span
	for g := range r.gapsOf(s) {
		i := slices.IndexFunc(out, func(e evidence.SiteGap) bool { return e.Reason == g.reason })
		if i < 0 {
			i = len(out)
			out = append(out, evidence.SiteGap{Reason: g.reason})
			spans = append(spans, span{from: g.from})
		}
		sp, e := &spans[i], &out[i]
		sp.from, sp.to, sp.open = min(sp.from, g.from), max(sp.to, g.to), sp.open || g.to == 0
		e.DurationNs += evidence.Uint64(g.length(to))
		e.Count.N += g.count
	}
	for i, sp := range spans {
		out[i].From = c.Time(sp.from)
		if !sp.open {
			out[i].To = c.Time(sp.to)
		}
	}
	return out
}

const attribution = score.AttributionCgroup

// attributionOf says how a site's events are attributed. By a function or an
// event of the kernel an interrupt may come while a container's task is current:
// its work is not the container's, and cannot be told from it. By system calls
// and what becomes of processes none does.
func attributionOf(s *site) string {
	switch {
	case s.Set != "", s.Syscall, s.Function == "" && s.Event == "", s.Marker != "":
		return attribution
	}
	group, name, _ := strings.Cut(s.Event, ":")
	if name == "" {
		name = group // of a raw tracepoint
	}
	switch {
	case group == "syscalls", strings.HasPrefix(name, "sched_process_ex"), strings.HasPrefix(name, "task_"),
		name == "sched_process_fork", name == "sys_enter", name == "sys_exit":
		return attribution
	}
	return score.AttributionCurrent
}

func precision(s *site) string {
	switch {
	case s.Function != "":
		return score.SymbolKernel
	case s.Kind != "":
		return s.Kind
	case s.Marker != "":
		return score.SymbolEvent
	case s.HasOffset:
		return score.SymbolOffset
	}
	return score.SymbolEvent
}

// cover makes the run's coverage line.
func (r *run) cover(c evidence.Clock, to int64) *evidence.Coverage {
	states := map[string][]evidence.State{}
	for i := range r.sites {
		s := &r.sites[i]
		if s.withheld {
			continue
		}
		st := evidence.NotArmed
		if s.Armed {
			st, _ = r.state(s, to)
		}
		states[s.Probe.ID] = append(states[s.Probe.ID], st)
	}
	for _, g := range r.gone {
		states[g.probe] = append(states[g.probe], g.state)
	}
	v := &evidence.Coverage{
		RunID: r.runID, ContainerID: r.id.ID, ContainerName: r.id.Name, Runtime: string(r.id.Runtime),
		Image: r.id.Image.Name, ImageDigest: r.id.Image.Digest, ImageIndexDigest: r.id.Image.IndexDigest,
		ImageConfigDigest: r.id.Image.ConfigDigest, ImageDigestReason: r.id.Image.DigestReason,
		BootID: r.id.BootID, CgroupID: evidence.Uint64(r.id.CgroupID), CgroupPath: r.id.CgroupPath,
		Attribution: attribution, Source: r.source, From: c.Time(r.first), To: c.Time(to), Final: r.final,
		Policies: r.policies, FailPolicyEnforced: r.enforced, Refused: r.refused, Losses: r.lost, Probes: []evidence.ProbeFold{},
	}
	if p := r.id.Pod; p != nil && p.Name != "" && p.Namespace != "" {
		v.Pod = &evidence.Pod{Name: p.Name, Namespace: p.Namespace, UID: p.UID}
	}
	for _, t := range []struct {
		at  int64
		set *evidence.Time
	}{{r.firstExec(), &v.FirstExec}, {r.notified, &v.Started}, {r.ended, &v.Ended}} {
		if t.at != 0 {
			*t.set = c.Time(t.at)
		}
	}
	// All of them together stay well below a line's bound (see probe.MaxProbes).
	reason := min(maxDetail, maxSearchReasons/max(1, len(r.searches)))
	for _, s := range r.searches {
		v.Probes = append(v.Probes, evidence.ProbeFold{
			ProbeID: s.ProbeID, State: evidence.FoldSites(s.Complete, states[s.ProbeID]), Sites: len(states[s.ProbeID]), Entries: evidence.Uint64(r.entriesOf(s)),
			SearchComplete: s.Complete, SearchReason: plain(s.Why, reason),
		})
	}
	v.GapReasons = slices.Clone(r.reasons)
	return v
}
