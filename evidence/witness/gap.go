package witness

import (
	"probity/evidence"
)

// gap is one gap of a run, of the node or of a source.
type gap struct {
	id     string
	reason evidence.GapReason
	scope  string
	source string
	path   string
	detail string
	from   int64
	to     int64 // 0 while open
	count  uint64
	dirty  bool // not written since it changed
}

// losesDetail reports whether the gap costs detail only: counters, and so
// states, stay exact.
func (g *gap) losesDetail() bool {
	switch g.reason {
	case evidence.GapRingFull, evidence.GapSetFull, evidence.GapDecodeError, evidence.GapSpoolDropped, evidence.GapClockStep:
		return true
	}
	return false
}

// covers reports whether the gap is one of the site's window.
func (g *gap) covers(s *site) bool {
	switch g.scope {
	case evidence.ScopeRun:
		return true
	case evidence.ScopeFile:
		return s.File != nil && s.File.Match.Path == g.path
	}
	return false
}

func (r *run) addGap(g *gap) {
	g.id, g.dirty = NewGapID(), true
	r.gaps = append(r.gaps, g)
	r.gapChanges++
}

// close ends the gap: never before it began, whatever the clocks of those who
// saw the one and the other.
func (r *run) close(g *gap, at int64) {
	g.to, g.dirty = max(at, g.from), true
	r.gapChanges++
}

func (r *run) openGap(reason evidence.GapReason, path string) *gap {
	for _, g := range r.gaps {
		if g.reason == reason && g.path == path && g.to == 0 {
			return g
		}
	}
	return nil
}

// sum keeps one gap per reason whose count is a total of events, for the
// reasons that count events instead of time.
func (r *run) sum(reason evidence.GapReason, scope string, total uint64, detail string) {
	g := r.openGap(reason, "")
	if g == nil {
		g = &gap{reason: reason, scope: scope, from: r.armedAt, detail: detail}
		r.addGap(g)
	}
	if g.count != total {
		g.count, g.dirty = total, true
	}
}

// line is the gap as a line; the run's ids are added by the caller.
func (g *gap) line(c evidence.Clock) *evidence.Gap {
	l := &evidence.Gap{
		GapID: g.id, Scope: g.scope, Reason: g.reason, From: c.Time(g.from), Count: evidence.Loss{N: g.count},
		Source: g.source, Path: g.path, Detail: g.detail,
	}
	if g.to != 0 {
		l.To = c.Time(g.to)
	}
	return l
}
