package evidence

import (
	"cmp"
	"slices"
)

// SiteLine is a site's line, with the clock of its chunk.
type SiteLine struct {
	Line  *Observation
	Clock Clock
}

// By is the line, or a copy, with its times by another clock of the same boot: the wall
// clock may have been set since.
func (s SiteLine) By(c Clock) *Observation {
	if s.Clock == c {
		return s.Line
	}
	o := *s.Line
	o.Gaps = slices.Clone(o.Gaps)
	times := []*Time{&o.From, &o.To, &o.FirstAt, &o.LastAt}
	for i := range o.Gaps {
		times = append(times, &o.Gaps[i].From, &o.Gaps[i].To)
	}
	for _, t := range times {
		if !t.IsZero() {
			*t = c.Time(s.Clock.Boot(*t))
		}
	}
	return &o
}

// SiteID tells the lines about one site, of one run, from those about another, as
// FORMAT.md has it. It is comparable. Its texts are the line's own.
type SiteID struct {
	probe, path, origin, digest, symbol, function, event, set string
	offset                                                    Uint64
	hasOffset                                                 bool
}

// SiteOf returns which site of its run an observation is about.
func SiteOf(o *Observation) SiteID {
	id := SiteID{probe: o.ProbeID, path: o.Path, origin: o.Origin, digest: o.FileDigest, symbol: o.Symbol, function: o.Function, event: o.Event, set: o.Set}
	if o.Offset != nil {
		id.offset, id.hasOffset = *o.Offset, true
	}
	return id
}

// Compare orders the sites of a run.
func (a SiteID) Compare(b SiteID) int {
	return cmp.Or(cmp.Compare(a.probe, b.probe), cmp.Compare(a.path, b.path), cmp.Compare(a.origin, b.origin), cmp.Compare(a.digest, b.digest),
		cmp.Compare(a.symbol, b.symbol), cmp.Compare(a.function, b.function), cmp.Compare(a.event, b.event), cmp.Compare(a.set, b.set), cmp.Compare(a.offset, b.offset))
}
