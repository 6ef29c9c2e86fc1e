package witness

import (
	"fmt"
	"slices"

	"probity/evidence"
	"probity/evidence/redact"
)

// what of a run goes into lines.
type what uint8

const (
	changed    what = 1 << iota // sites whose state or detail, and gaps that, differ from their last line
	counts                      // and whose count differs
	allSites                    // all of them
	allEntries                  // all entries of sets, also those that have not changed
	coverage                    // the coverage line
	sparing                     // not those of which only the count is new

	everything = counts | allSites | coverage
)

// growEvery is how often at most a run's lines tell of gaps whose count has only
// grown, in nanoseconds. A container that fills the ring all the time would else
// fill the spool too. Nothing is lost by it: the latest count is told.
const growEvery = 10e9

// countEvery is how often at most a run's lines tell of sites of which only the
// count is another, in nanoseconds, unless counts are asked for. What is not told
// stays for the next lines: a container chooses how often it has gaps.
const countEvery = 1e9

// onlyCount reports whether nothing but the count is new. Of a set, that is how
// many things it has.
func (s *site) onlyCount(now said) bool {
	now.count = s.said.count
	return s.Set == "" && now == s.said
}

// due reports whether there is something for lines that tell what has changed.
func (r *run) due(now int64) bool {
	if len(r.unsaid) > 0 {
		return true
	}
	for _, i := range r.stale {
		if s := &r.sites[i]; now-r.countAt >= countEvery || !s.onlyCount(r.saying(s)) {
			return true
		}
	}
	return false
}

// batch is what one append tells, and what is to be remembered once it is taken.
type batch struct {
	lines   []redact.Line
	sites   []toldSite
	entries []*Entry
	memory  *entryLines // of the entries' lines
	grown   bool        // with the gaps that had only grown
	counted bool        // with sites of which only the count is new
	later   []int32     // sites of which that is so, and that are not told of now
}

type toldSite struct {
	at int32
	said
}

// emit hands the run's lines, as of the given boot time, to the sink. The sink
// takes all of them or none, so if it refuses, those that cannot be written
// are left out: what one container makes unwritable must cost nothing else.
func (w *Witness) emit(r *run, to int64, of what) {
	if r.over {
		return
	}
	if !r.public {
		if !r.waits {
			r.waits = true
			close(r.news)
		}
		return
	}
	to = max(to, r.last) // read later than the caller looked at the clock
	to = max(to, r.said) // a later line never reaches less far
	of, later := w.spare(r, to, of)
	if later {
		return
	}
	var b batch
	defer func() { b.memory.put() }()
	err := w.cfg.Sink.Append(r.runID, func(c evidence.Clock) []redact.Line {
		b.memory.put()
		b = w.lines(r, c, to, of)
		return b.lines
	})
	if err != nil {
		w.cfg.Log.Error("evidence was not taken", "run", r.runID, "err", err)
		unwritable := r.unwritable
		err = w.cfg.Sink.Append(r.runID, func(c evidence.Clock) []redact.Line {
			r.unwritable = unwritable
			b.memory.put()
			b = w.lines(r, c, to, of)
			return r.writable(c, b.lines)
		})
	}
	if err != nil {
		w.cfg.Log.Error("evidence was not taken, in parts neither", "run", r.runID, "err", err)
		return
	}
	r.said = to
	r.told(b, to)
}

// told remembers what the sink has taken.
func (r *run) told(b batch, to int64) {
	for _, g := range r.unsaid {
		g.queued, g.grown, g.told = false, false, true
	}
	r.unsaid = r.unsaid[:0]
	if b.grown {
		for _, g := range r.grown {
			g.grown = false
		}
		r.grown, r.grewAt = r.grown[:0], to
	}
	for _, s := range b.sites {
		r.sites[s.at].said = s.said
	}
	if b.counted {
		r.countAt = to
	}
	for _, i := range r.stale {
		r.sites[i].stale = false
	}
	r.stale = r.stale[:0]
	for _, i := range b.later {
		r.touch(int(i))
	}
	for _, e := range b.entries {
		e.said = e.Count
	}
	clear(r.fresh)
	r.fresh = r.fresh[:0]
}

// lines makes the lines. It changes nothing, because the sink may ask for them
// again with another clock.
func (w *Witness) lines(r *run, c evidence.Clock, to int64, of what) (b batch) {
	add := func(l evidence.Line) { b.lines = append(b.lines, r.redact.Line(l)) }
	// A run of which an agentDown gap comes after its coverage is taken for one that
	// nobody has taken up (tlog.Live).
	for _, g := range r.unsaid {
		if g.reason == evidence.GapAgentDown {
			add(r.gapLine(c, g))
		}
	}
	if of&coverage != 0 {
		add(r.cover(c, to))
	}
	for _, g := range r.unsaid {
		if g.reason != evidence.GapAgentDown {
			add(r.gapLine(c, g))
		}
	}
	if b.grown = len(r.grown) > 0 && (of&coverage != 0 || to-r.grewAt >= growEvery); b.grown {
		for _, g := range r.grown {
			if !g.queued {
				add(r.gapLine(c, g))
			}
		}
	}
	look := func(i int32) {
		s := &r.sites[i]
		if s.withheld {
			return
		}
		now := r.saying(s)
		if of&allSites != 0 || now != s.said {
			only := of&(counts|allSites) == 0 && s.onlyCount(now)
			switch {
			case only && of&sparing != 0:
				return // who asks for counts finds it
			case only && to-r.countAt < countEvery:
				b.later = append(b.later, i)
				return
			case only:
				b.counted = true
			}
			add(r.observe(c, s, to, w.cfg.Log))
			b.sites = append(b.sites, toldSite{i, now})
		}
	}
	switch {
	case of&allSites != 0:
		for i := range r.sites {
			look(int32(i))
		}
	case of&counts != 0:
		for i := range r.sites {
			if s := &r.sites[i]; s.stale || s.said.count != s.counter.Count {
				look(int32(i))
			}
		}
	default: // one of thousands was hit: the others are not looked at
		for _, i := range r.stale {
			look(i)
		}
	}
	if b.entries = r.telling(of); len(b.entries) > 0 {
		b.memory = entryMemory.Get().(*entryLines)
		b.lines = b.memory.add(b.lines, r, c, b.entries, to)
	}
	return b
}

// telling lists the entries that have lines: the new ones, and, where counts are
// asked for, those that were seen again.
func (r *run) telling(of what) (entries []*Entry) {
	if of&(counts|allEntries) == 0 {
		return r.fresh
	}
	for _, name := range evidence.Sets {
		if set := r.sets[name]; set != nil {
			for _, e := range set.order {
				if of&allEntries != 0 || e.Count != e.said {
					entries = append(entries, e)
				}
			}
		}
	}
	return entries
}

func (r *run) gapLine(c evidence.Clock, g *gap) *evidence.Gap {
	l := g.line(c)
	l.RunID, l.ContainerID = r.runID, r.id.ID
	if g.named != "" {
		r.redact.Named(l, g.named)
	}
	return l
}

// writable leaves out the lines that cannot be written, and counts them in a
// gap. A coverage line is cut down to what every run has.
func (r *run) writable(c evidence.Clock, lines []redact.Line) (out []redact.Line) {
	var why error
	for _, l := range lines {
		err := fits(l.Evidence())
		if v, ok := l.Evidence().(*evidence.Coverage); ok && err != nil {
			v.ContainerName, v.Image, v.CgroupPath, v.Pod, v.Probes = "", "", "", nil, nil
			v.Redacted = slices.DeleteFunc(v.Redacted, func(x evidence.Redaction) bool { return x.Member != "imageDigestReason" })
			r.unwritable, why = r.unwritable+1, err
			err = fits(v)
		}
		if err != nil {
			r.unwritable, why = r.unwritable+1, err
			continue
		}
		out = append(out, l)
	}
	if why == nil {
		return out
	}
	r.sum(evidence.GapSpoolDropped, wholeRun, r.armedAt, r.unwritable, clip(fmt.Sprintf("a line could not be written: %v", why), maxDetail))
	return append(out, r.redact.Line(r.gapLine(c, r.openGap(evidence.GapSpoolDropped, wholeRun))))
}

func fits(l evidence.Line) error {
	if _, err := evidence.Encode(l); err != nil {
		return err
	}
	return evidence.Validate(l)
}
