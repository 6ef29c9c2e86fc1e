package witness

import (
	"probity/evidence"
)

// While the sink has little room, or little for this container ([Thrift]), lines that
// a later one replaces are left out: counts are cumulative, and gaps of a kind can be
// told together. What changes a state, and what is new, is told as ever, and so are
// coverage lines and a run's last ones; nothing that is left out is lost, and an open
// coalesced gap says that something is.

// spareEvery is how often at most a line about a gap that changes no state is written
// then, in nanoseconds: as many as wait are told at once, after as many times as long.
const spareEvery = 10e9

// spare says what of a run goes into lines now, or that nothing does until later.
func (w *Witness) spare(r *run, to int64, of what) (now what, later bool) {
	thrift, ok := w.cfg.Sink.(Thrift)
	if !ok {
		return of, false
	}
	thrifty := of&allSites == 0 && thrift.Thrifty(r.id.ID)
	every := int64(max(1, len(r.unsaid))) * spareEvery
	later = thrifty && of == changed && to-r.said < every && !r.urgent()
	if !later {
		r.recall()
	}
	if thrifty && !later {
		r.gaps = r.fold(r.gaps)
	}
	n := r.folded
	r.folded = 0
	switch {
	case !thrifty:
		if n > 0 {
			w.leave(r, to, n)
		}
		if r.spared != nil {
			r.close(r.spared, to)
			r.spared = nil
			of |= counts // and with it all that was left out
		}
		return of, false
	case later:
		w.leave(r, to, n)
		return of, true
	case of&counts != 0:
		n += r.counted()
		of = of&^counts | changed
	}
	if n > 0 {
		w.leave(r, to, n)
	}
	return of | sparing, false
}

// leave signs that so many lines more are left out, or that some are late.
func (w *Witness) leave(r *run, at int64, n uint64) {
	w.leftOut.Add(n)
	if r.spared == nil {
		r.spared = r.addGap(&gap{
			selector: wholeRun, reason: evidence.GapCoalesced, from: at, count: n, detail: "the spool, or this container's share of it, is nearly full: counts wait for later lines",
		})
		return
	}
	r.grow(r.spared, r.spared.count+n)
}

// urgent reports whether lines would tell of a new entry or a new state. Each site is
// looked at once for that, however many there are and however long their lines wait:
// who is calm is looked at again when it is touched again.
func (r *run) urgent() bool {
	if len(r.fresh) > 0 {
		return true
	}
	for n, i := range r.stale {
		s := &r.sites[i]
		now := r.saying(s)
		if now.state != s.said.state {
			r.stale = append(r.stale[:0], r.stale[n:]...)
			return true
		}
		s.stale = false
		if now != s.said && !s.calm {
			s.calm = true
			r.calm = append(r.calm, i)
		}
	}
	r.stale = r.stale[:0]
	return false
}

// counted is how many sites and entries have been counted further than their last
// lines say, and nothing else is new of them.
func (r *run) counted() (n uint64) {
	for i := range r.sites {
		if s := &r.sites[i]; s.said.count != s.counter.Count && s.onlyCount(r.saying(s)) {
			n++
		}
	}
	for _, set := range r.sets {
		for _, e := range set.order {
			if e.said != 0 && e.said != e.Count {
				n++
			}
		}
	}
	return n
}
