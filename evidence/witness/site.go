package witness

import (
	"cmp"
	"slices"

	"probity/bpf"
	"probity/bpf/probe"
	"probity/evidence"
)

// site is one site and what was last said of it. There are a hundred thousand
// of them, and of most there is nothing to say but that they are armed.
type site struct {
	*probe.Site // the caller's; not changed after it was handed over
	*seen       // only read; own makes one to write to

	said  said
	stale bool // is to be looked at for the next lines
	calm  bool // in the run's list of them
	// withheld: an earlier agent's line says more than that it cannot be armed now.
	withheld bool
}

// seen is what is known of a site since it was armed.
type seen struct {
	// The same instruction, armed before under another number: a process that has
	// mapped the file as it was then executes it under that number still. The
	// engine bounds how many there are, as sites of the container.
	earlier []*probe.Site
	before  bpf.Counter // counted by an earlier agent
	counter bpf.Counter // of all of them together
	process *evidence.Process
	stack   *evidence.Stack // both of the first hit
	gaps    []*gap          // of this site alone
}

// nothing is what is known of all the sites of which nothing is. It is never
// written to.
var nothing seen

// own returns what is known of the site, to write to it.
func (s *site) own() *seen {
	if s.seen == &nothing {
		s.seen = new(seen)
	}
	return s.seen
}

// said is what the last line about a site said; a change makes a new line.
type said struct {
	count uint64
	state saidState
	gaps  uint8
	stack bool
}

// saidState is an evidence.State in one byte; 0 is that of a site without a line.
type saidState uint8

const (
	saidNothing saidState = iota
	saidNotArmed
	saidArmedNoHit
	saidPartial
	saidHit
)

func (s *site) path() string {
	if s.File == nil {
		return ""
	}
	return s.File.Match.Path
}

// name is the symbol, or the kernel function.
func (s *site) name() string {
	if s.Function != "" {
		return s.Function
	}
	return s.Symbol
}

// counted reports whether the site has a counter in the kernel. A set's entries
// are told one by one.
func (s *site) counted() bool { return s.Armed && (s.Set == "" || s.ID != 0) }

// identity is what makes two sites one for a reader of the evidence: a file that
// was touched is another inode, and the same instruction. But one of the image
// and its copy in the writable layer are two: only the first speaks for the image.
// Whether it is armed does not make it another site: the later of two lines about
// one place is believed.
type identity struct {
	probe, path, origin, digest, symbol, function, event, set string
	offset                                                    uint64
	hasOffset                                                 bool
}

func (r *run) identityOf(s *probe.Site) identity {
	id := identity{probe: s.Probe.ID, symbol: s.Symbol, function: s.Function, event: s.Event + s.Marker, set: s.Set, hasOffset: s.HasOffset}
	if s.HasOffset {
		id.offset = s.Offset
	}
	if s.File != nil {
		id.path, id.origin = s.File.Match.Path, s.File.Match.Origin
		id.digest, _ = r.digest(s.File)
	}
	return id
}

// index orders the armed sites by their number in the kernel, so that an event
// finds its own among thousands.
func (r *run) index() {
	r.byID = r.byID[:0]
	for i := range r.sites {
		s := &r.sites[i]
		if s.Armed && s.Set == "" {
			r.byID = append(r.byID, numbered{s.ID, int32(i)})
			for _, e := range s.earlier {
				r.byID = append(r.byID, numbered{e.ID, int32(i)})
			}
		}
	}
	slices.SortFunc(r.byID, func(a, b numbered) int { return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.at, b.at)) })
}

type numbered struct {
	id uint32
	at int32 // in run.sites
}

// with returns the places of the sites with a number: several probes may want
// one instruction.
func (r *run) with(id uint32) []numbered {
	i, _ := slices.BinarySearchFunc(r.byID, id, func(n numbered, id uint32) int { return cmp.Compare(n.id, id) })
	j := i
	for j < len(r.byID) && r.byID[j].id == id {
		j++
	}
	return r.byID[i:j]
}

// touch makes the site one that the next lines look at.
func (r *run) touch(i int) {
	if !r.sites[i].stale && !r.sites[i].withheld {
		r.sites[i].stale = true
		r.stale = append(r.stale, int32(i))
	}
}

// recall makes the calm sites ones that the next lines look at.
func (r *run) recall() {
	for _, i := range r.calm {
		r.sites[i].calm = false
		r.touch(int(i))
	}
	r.calm = r.calm[:0]
}

// seen notes the first hit of the sites with a number.
func (r *run) seen(id uint32, e bpf.Event) (changed bool) {
	for _, n := range r.with(id) {
		s := &r.sites[n.at]
		own := s.own()
		if own.process == nil {
			own.process = r.process(e)
		}
		if own.counter.FirstNs == 0 || e.Ns < own.counter.FirstNs {
			own.counter.FirstNs = e.Ns
		}
		own.counter.LastNs = max(own.counter.LastNs, e.Ns)
		if c, err := r.count(s); err == nil {
			s.merge(c)
		}
		own.counter.Count = max(own.counter.Count, 1)
		r.last = max(r.last, own.counter.LastNs)
		if s.said.state != saidHit {
			r.touch(int(n.at))
			changed = true
		}
	}
	return changed
}

// count reads the site's counters.
func (r *run) count(s *site) (bpf.Counter, error) {
	sum, err := r.arm.Counter(*s.Site)
	if err != nil {
		return sum, err
	}
	for _, e := range s.earlier {
		c, err := r.arm.Counter(*e)
		if err != nil {
			return sum, err
		}
		sum = sum.Plus(c)
	}
	return sum.Plus(s.before), nil
}

// merge takes a counter as read. First is the earlier of both: two processors
// may both have seen the first hit. A count never falls.
func (s *site) merge(c bpf.Counter) {
	if c == s.counter {
		return // of most sites: nothing
	}
	if c.Count > 0 && c.FirstNs == 0 { // read between two stores of another processor
		c.FirstNs = c.LastNs
	}
	own := s.own()
	first := own.counter.FirstNs
	c.Count, c.LastNs = max(c.Count, own.counter.Count), max(c.LastNs, own.counter.LastNs)
	own.counter = c
	if first != 0 && (c.FirstNs == 0 || first < c.FirstNs) {
		own.counter.FirstNs = first
	}
}

// add takes a site that was armed after the start, or was not. It reports where it
// is, and whether it is new to the reader. What was armed before is not taken back:
// that it is not armed any more is a gap, from from on.
func (r *run) add(p *probe.Site, known map[identity]int, from, now int64) (at int, fresh bool) {
	id := r.identityOf(p)
	at, ok := known[id]
	if !ok {
		at = len(r.sites)
		known[id] = at
		r.sites = append(r.sites, site{Site: p, seen: &nothing})
		r.names += p.NameBytes()
		r.touch(at)
		return at, true
	}
	s := &r.sites[at]
	switch {
	case p.Armed && s.Armed:
		if p.ID != s.ID {
			s.own().earlier = append(s.earlier, s.Site)
			s.Site = p
		}
		if g := r.notArmedNow(s); g != nil {
			r.closeSite(at, g, now)
		}
	case p.Armed:
		s.Site, s.said, s.withheld = p, said{}, false
		if from > r.first {
			r.addSiteGap(at, &gap{reason: evidence.GapAttachFailed, from: r.first, to: from, count: 1, detail: "it could not be armed before"})
		}
		r.touch(at)
		return at, true
	case !s.Armed:
		if p.Reason != s.Reason || p.Detail != s.Detail {
			s.Site, s.said = p, said{}
			r.touch(at)
		}
	case r.notArmedNow(s) == nil:
		r.addSiteGap(at, &gap{reason: evidence.GapAttachFailed, from: from, count: 1, detail: clip("it is not armed as it is now: "+string(p.Reason)+": "+p.Detail, maxDetail)})
	}
	return at, false
}

// notArmedNow returns the open gap of a site that was armed and could not be armed
// again.
func (r *run) notArmedNow(s *site) *gap { return r.standing(s, evidence.GapAttachFailed) }
