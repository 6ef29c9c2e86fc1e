package witness

import (
	"sort"

	"probity/evidence"
	"probity/evidence/score"
)

// observe makes a site's observation.
func (r *run) observe(c evidence.Clock, s *site, to int64) *evidence.Observation {
	o := &evidence.Observation{
		RunID: r.runID, ContainerID: r.id.ID, Runtime: string(r.id.Runtime),
		ImageDigest: r.id.Image.Digest, ImageDigestReason: r.id.Image.DigestReason,
		ProbeID: s.Probe.ID, RequestedProbeType: s.Requested, ProbeType: s.Type,
		Symbol: s.Symbol, SymbolKind: s.Kind, Inline: s.Inline, Event: s.Probe.Event,
		Final: r.final, From: c.Time(r.first), To: c.Time(to),
	}
	if s.HasOffset {
		off := evidence.Uint64(s.Offset)
		o.Offset = &off
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
		o.Confidence = score.NotArmed(s.Requested, attribution, precision(s))
		return o
	}
	count := evidence.Uint64(s.counter.Count)
	o.Count = &count
	if s.counter.Count > 0 {
		o.FirstAt, o.LastAt = c.Time(s.counter.FirstNs), c.Time(max(s.counter.LastNs, s.counter.FirstNs))
	}
	o.Process = s.process
	if s.Requested == evidence.Tracepoint {
		o.Processes = r.processes
	}
	o.State, o.Complete = r.state(s, to)
	o.Gaps = r.siteGaps(c, s, to)
	o.Confidence = score.Confidence(s.Type, attribution, precision(s), r.lost)
	return o
}

func (r *run) describeFile(o *evidence.Observation, s *site) {
	m := s.File.Match
	o.Path, o.Origin, o.LayerDiffID, o.BuildID, o.Copies = m.Path, m.Origin, m.Layer.DiffID, s.File.BuildID, s.Copies
	if s.File.Digest == nil {
		return
	}
	d, err := s.File.Digest()
	if err != nil {
		o.Detail = clip(err.Error(), maxDetail)
		return
	}
	o.FileDigest = d
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

// windows cuts [first, to) at the site's gaps.
func (r *run) windows(s *site, to int64) (ws []evidence.Window, complete bool) {
	var gaps []*gap
	for _, g := range r.gaps {
		if g.covers(s) && !g.losesDetail() {
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
		if g.to != 0 && g.to == g.from {
			// A gap without length is one of number: what it lost may have been anywhere.
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
	index := map[evidence.GapReason]int{}
	for _, g := range r.gaps {
		if !g.covers(s) {
			continue
		}
		i, ok := index[g.reason]
		if !ok {
			i = len(out)
			index[g.reason] = i
			out = append(out, evidence.SiteGap{Reason: g.reason, From: c.Time(g.from)})
		}
		e := &out[i]
		end := g.to
		if end == 0 {
			end = to
			e.To = evidence.Time{}
		} else {
			e.To = c.Time(g.to)
		}
		e.DurationNs += evidence.Uint64(max(0, end-g.from))
		e.Count.N += g.count
	}
	return out
}

const attribution = score.AttributionCgroup

func precision(s *site) string {
	switch {
	case s.Kind != "":
		return s.Kind
	case s.HasOffset:
		return score.SymbolOffset
	}
	return score.SymbolEvent
}

// cover makes the run's coverage line.
func (r *run) cover(c evidence.Clock, to int64, states map[string][]evidence.State, policies string) *evidence.Coverage {
	v := &evidence.Coverage{
		RunID: r.runID, ContainerID: r.id.ID, ContainerName: r.id.Name, Runtime: string(r.id.Runtime),
		Image: r.id.Image.Name, ImageDigest: r.id.Image.Digest, ImageIndexDigest: r.id.Image.IndexDigest,
		ImageConfigDigest: r.id.Image.ConfigDigest, ImageDigestReason: r.id.Image.DigestReason,
		BootID: r.id.BootID, CgroupID: evidence.Uint64(r.id.CgroupID), CgroupPath: r.id.CgroupPath,
		Attribution: attribution, Source: r.source, From: c.Time(r.first), To: c.Time(to), Final: r.final,
		Policies: policies, Losses: r.lost, Probes: []evidence.ProbeFold{},
	}
	if p := r.id.Pod; p != nil && p.Name != "" && p.Namespace != "" {
		v.Pod = &evidence.Pod{Name: p.Name, Namespace: p.Namespace, UID: p.UID}
	}
	for _, t := range []struct {
		at  int64
		set *evidence.Time
	}{{r.kernel.FirstExecNs, &v.FirstExec}, {r.notified, &v.Started}, {r.ended, &v.Ended}} {
		if t.at != 0 {
			*t.set = c.Time(t.at)
		}
	}
	// All of them together stay well below a line's bound (see probe.MaxProbes).
	reason := min(maxDetail, maxSearchReasons/max(1, len(r.searches)))
	for _, s := range r.searches {
		v.Probes = append(v.Probes, evidence.ProbeFold{
			ProbeID: s.ProbeID, State: evidence.FoldSites(s.Complete, states[s.ProbeID]), Sites: len(states[s.ProbeID]),
			SearchComplete: s.Complete, SearchReason: plain(s.Why, reason),
		})
	}
	seen := map[evidence.GapReason]bool{}
	for _, g := range r.gaps {
		if !seen[g.reason] {
			seen[g.reason] = true
			v.GapReasons = append(v.GapReasons, g.reason)
		}
	}
	return v
}
