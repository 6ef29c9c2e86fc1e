package evidence

import "cmp"

// SiteLine is a site's line, with the clock of its chunk.
type SiteLine struct {
	Line  *Observation
	Clock Clock
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
