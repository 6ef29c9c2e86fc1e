package witness

import (
	"slices"

	"probity/evidence"
)

// Bounds on what is kept per run about gaps.
const (
	maxGapFiles = 256 // files with gaps of one reason; past it one gap is the whole run's
	manyGaps    = 32  // closed gaps of a run, or of a site, before those of one kind are folded into one
)

// selector says which sites of a run a gap is of. An empty member leaves open
// which are meant, as in the gap's line.
type selector struct {
	scope     string
	path      string
	probe     string
	symbol    string // or the kernel function
	offset    evidence.Uint64
	hasOffset bool
	probeType evidence.ProbeType
}

// gap is one gap of a run, of the node or of a source; or several closed ones of
// one reason and selector, folded.
type gap struct {
	selector
	id     string
	reason evidence.GapReason
	source string
	named  string // what a process called the file that detail is about; empty if it is about none
	detail string
	from   int64
	to     int64 // 0 while open
	count  uint64
	health bool  // opened by a health check, which closes it too
	unread bool  // of what could not be read
	folded int64 // nanoseconds together, of a gap that stands for several

	queued bool // for the next lines
	told   bool // there is a line of it
	grown  bool // its count is not what its last line says; that is no hurry
}

// losesDetail reports whether the gap costs detail only: counters, and so
// states, stay exact.
func (g *gap) losesDetail() bool { return g.reason.DetailOnly() }

// covers reports whether the gap is one of the site's window.
func (g *gap) covers(s *site) bool {
	is := func(of, site string) bool { return of == "" || of == site }
	if g.reason == evidence.GapCoalesced {
		return false // it is one of the lines, and not of the site
	}
	switch g.scope {
	case evidence.ScopeRun:
		return is(string(g.probeType), string(s.Type))
	case evidence.ScopeFile:
		return s.path() == g.path
	case evidence.ScopeSite:
		return is(g.path, s.path()) && is(g.probe, s.Probe.ID) && is(g.symbol, s.name()) && is(string(g.probeType), string(s.Type)) &&
			(!g.hasOffset || s.HasOffset && uint64(g.offset) == s.Offset)
	}
	return false
}

// length is the gap's length as of the given time.
func (g *gap) length(to int64) int64 {
	switch {
	case g.folded != 0:
		return g.folded
	case g.to == 0:
		return max(0, to-g.from)
	}
	return g.to - g.from
}

// addGap opens a gap, or notes one that is over, of every site that it covers.
func (r *run) addGap(g *gap) *gap {
	g.id = NewGapID()
	r.gaps = r.compact(append(r.gaps, g))
	r.queue(g)
	for i := range r.sites {
		if g.covers(&r.sites[i]) {
			r.touch(i)
		}
	}
	return g
}

// addSiteGap does the same for one site alone.
func (r *run) addSiteGap(i int, g *gap) {
	s := &r.sites[i]
	g.id, g.selector = NewGapID(), s.selector()
	own := s.own()
	own.gaps = r.compact(append(own.gaps, g))
	r.queue(g)
	r.touch(i)
}

// selector is the narrowest one that a line can say of the site.
func (s *site) selector() selector {
	sel := selector{scope: evidence.ScopeSite, path: s.path(), probe: s.Probe.ID, symbol: s.name(), hasOffset: s.HasOffset}
	if s.HasOffset {
		sel.offset = evidence.Uint64(s.Offset)
	}
	return sel
}

func (r *run) queue(g *gap) {
	if !slices.Contains(r.reasons, g.reason) {
		r.reasons = append(r.reasons, g.reason)
	}
	if !g.queued {
		g.queued = true
		r.unsaid = append(r.unsaid, g)
	}
}

// close ends the gap: never before it began, whatever the clocks of those who
// saw the one and the other.
func (r *run) close(g *gap, at int64) {
	g.to = max(at, g.from)
	r.queue(g)
	for i := range r.sites {
		if g.covers(&r.sites[i]) {
			r.touch(i)
		}
	}
}

func (r *run) closeSite(i int, g *gap, at int64) {
	g.to = max(at, g.from)
	r.queue(g)
	r.touch(i)
}

// compact folds closed gaps of one reason and selector into the first of them: a
// container that lives for months has as many as it likes. Those that have lines fold
// into one that has, and those that wait for theirs into one that waits, so that each
// is counted in one line. Of the latter each is a line that is left out.
func (r *run) compact(gaps []*gap) []*gap {
	if len(gaps) < manyGaps || len(gaps)%manyGaps != 0 {
		return gaps
	}
	return r.fold(gaps)
}

func (r *run) fold(gaps []*gap) []*gap {
	type kind struct {
		selector
		reason evidence.GapReason
		told   bool
	}
	leftOut := uint64(0)
	first := map[kind]*gap{}
	out := gaps[:0]
	for _, g := range gaps {
		// One that is neither has just been made, and the maker queues it.
		if settled, waits := g.told && !g.queued, !g.told && g.queued; g.to == 0 || g.grown || !settled && !waits {
			out = append(out, g)
			continue
		}
		k := kind{g.selector, g.reason, g.told}
		f := first[k]
		if f == nil {
			first[k] = g
			out = append(out, g)
			continue
		}
		f.folded = max(1, f.length(0)+g.length(0)) // 0 would say that nothing is folded
		f.from, f.to, f.count = min(f.from, g.from), max(f.to, g.to), f.count+g.count
		if g.queued {
			g.queued = false
			leftOut++
		}
	}
	clear(gaps[len(out):])
	if leftOut > 0 {
		r.unsaid = slices.DeleteFunc(r.unsaid, func(g *gap) bool { return !g.queued })
		r.folded += leftOut
	}
	return out
}

// openGap returns the open gap of exactly this reason and selector.
func (r *run) openGap(reason evidence.GapReason, sel selector) *gap {
	for _, g := range r.gaps {
		if g.reason == reason && g.selector == sel && g.to == 0 {
			return g
		}
	}
	return nil
}

var wholeRun = selector{scope: evidence.ScopeRun}

// sum keeps one gap per reason and selector whose count is a total of events,
// for the reasons that count events instead of time.
func (r *run) sum(reason evidence.GapReason, sel selector, from int64, total uint64, detail string) {
	g := r.openGap(reason, sel)
	if g == nil {
		r.addGap(&gap{selector: sel, reason: reason, from: from, count: total, detail: detail})
		return
	}
	r.grow(g, total)
}

// grow raises a gap's count. Its line waits for the next occasion: a container
// that makes losses all the time would else write lines all the time.
func (r *run) grow(g *gap, total uint64) {
	if g.count == total {
		return
	}
	g.count = total
	if !g.queued && !g.grown {
		g.grown = true
		r.grown = append(r.grown, g)
	}
}

// line is the gap as a line; the run's ids are added by the caller.
func (g *gap) line(c evidence.Clock) *evidence.Gap {
	l := &evidence.Gap{
		GapID: g.id, Scope: g.scope, Reason: g.reason, From: c.Time(g.from), Count: evidence.Loss{N: g.count},
		Source: g.source, Path: evidence.Spell(g.path), ProbeID: g.probe, Symbol: evidence.Spell(g.symbol), ProbeType: g.probeType, Detail: g.detail,
	}
	if g.hasOffset {
		off := g.offset
		l.Offset = &off
	}
	if g.to != 0 {
		l.To = c.Time(g.to)
	}
	return l
}
