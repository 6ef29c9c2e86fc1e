package witness

import (
	"fmt"

	"probity/evidence"
)

// what of a run goes into lines.
type what uint8

const (
	changed  what = 1 << iota // sites whose state, count or gaps differ from their last line
	allSites                  // all of them
	coverage                  // the coverage line

	everything = allSites | coverage
)

// emit hands the run's lines, as of the given boot time, to the sink. The sink
// takes all of them or none, so if it refuses, those that cannot be written
// are left out: what one container makes unwritable must cost nothing else.
func (w *Witness) emit(r *run, to int64, of what) {
	if !r.public {
		return
	}
	for i := range r.sites {
		to = max(to, r.sites[i].counter.LastNs) // read later than the caller looked at the clock
	}
	to = max(to, r.said) // a later line never reaches less far
	var done []func()
	err := w.cfg.Sink.Append(r.runID, func(c evidence.Clock) []evidence.Line {
		var lines []evidence.Line
		lines, done = r.lines(c, to, of, w.cfg.Policies)
		return lines
	})
	if err != nil {
		w.cfg.Log.Error("evidence was not taken", "run", r.runID, "err", err)
		err = w.cfg.Sink.Append(r.runID, func(c evidence.Clock) []evidence.Line {
			var lines []evidence.Line
			lines, done = r.lines(c, to, of, w.cfg.Policies)
			return r.writable(c, lines)
		})
	}
	if err != nil {
		w.cfg.Log.Error("evidence was not taken, in parts neither", "run", r.runID, "err", err)
		return
	}
	r.said = to
	for _, f := range done {
		f()
	}
}

// lines makes the lines, and what is to be remembered once they are taken.
func (r *run) lines(c evidence.Clock, to int64, of what, policies string) (lines []evidence.Line, done []func()) {
	for _, g := range r.gaps {
		if g.dirty {
			lines = append(lines, r.gapLine(c, g))
			done = append(done, func() { g.dirty = false })
		}
	}
	states := map[string][]evidence.State{}
	for i := range r.sites {
		s := &r.sites[i]
		if of == changed && s.said.count == s.counter.Count && s.gapsSeen == r.gapChanges {
			continue // one of thousands was hit: the others are not looked at
		}
		o := r.observe(c, s, to)
		states[s.Probe.ID] = append(states[s.Probe.ID], o.State)
		now, gaps := said{o.State, s.counter.Count, len(o.Gaps)}, r.gapChanges
		if of&allSites != 0 || of&changed != 0 && now != s.said {
			lines = append(lines, o)
		}
		done = append(done, func() { s.said, s.gapsSeen = now, gaps })
	}
	if of&coverage != 0 {
		lines = append([]evidence.Line{r.cover(c, to, states, policies)}, lines...)
	}
	return lines, done
}

func (r *run) gapLine(c evidence.Clock, g *gap) *evidence.Gap {
	l := g.line(c)
	l.RunID, l.ContainerID = r.runID, r.id.ID
	return l
}

// writable leaves out the lines that cannot be written, and counts them in a
// gap. A coverage line is cut down to what every run has.
func (r *run) writable(c evidence.Clock, lines []evidence.Line) (out []evidence.Line) {
	var why error
	for _, l := range lines {
		err := fits(l)
		if v, ok := l.(*evidence.Coverage); ok && err != nil {
			v.ContainerName, v.Image, v.CgroupPath, v.Pod, v.Probes = "", "", "", nil, nil
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
	r.sum(evidence.GapSpoolDropped, evidence.ScopeRun, r.unwritable, clip(fmt.Sprintf("a line could not be written: %v", why), maxDetail))
	return append(out, r.gapLine(c, r.openGap(evidence.GapSpoolDropped, "")))
}

func fits(l evidence.Line) error {
	if _, err := evidence.Encode(l); err != nil {
		return err
	}
	return evidence.Validate(l)
}
