package verify

import (
	"fmt"
	"slices"

	"probity/evidence"
)

// narrow leaves out of the report what was not asked for.
func (r *Report) narrow(f *fold, opts Options) {
	if opts.Since.IsZero() && len(opts.Images) == 0 {
		return
	}
	r.Images = opts.Images
	if !opts.Since.IsZero() {
		r.Since = evidence.TimeOf(opts.Since)
	}
	wanted := func(digest, name string) bool {
		return len(opts.Images) == 0 || slices.ContainsFunc(opts.Images, func(i string) bool { return i != "" && (i == digest || i == name) })
	}
	late := func(to evidence.Time) bool { return to.IsZero() || !to.Std().Before(opts.Since) }
	images := map[ownID]bool{} // runs of a wanted image
	for id, run := range f.runs {
		images[id] = wanted(run.digest, run.image)
	}
	r.Rows = slices.DeleteFunc(r.Rows, func(x Row) bool {
		is := wanted(x.ImageDigest, x.Image)
		images[x.run] = images[x.run] || is
		return !is || !late(x.To)
	})
	r.Gaps = slices.DeleteFunc(r.Gaps, func(g GapRow) bool {
		return g.RunID != "" && !images[g.run] && len(opts.Images) > 0 || !late(g.To)
	})
}

func (r Report) onlyIncomplete() bool {
	return len(r.Findings) > 0 && !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Kind != Incomplete })
}

// incompletes returns why what is reported may not be all that happened: chunks that
// are not here, or of which nobody can know whether they are; containers that may
// have lived unseen; sites that were not covered throughout, or not found because not
// everything was searched. That a run still lives is none of it: it is complete as of
// its rows' To.
func (r *Report) incompletes(f *fold) (out []Finding) {
	say := func(format string, args ...any) {
		out = append(out, Finding{Kind: Incomplete, Reason: fmt.Sprintf(format, args...)})
	}
	switch {
	case r.Chunks == 0:
		say("there is no sound chunk")
	case f.loose > 0:
		say("whether chunks are missing nobody can know: %s in no log that was checked", plural(f.loose, "chunk"))
	}
	for _, l := range r.Logs {
		if l.Removed > 0 {
			say("removed by the node itself, which signed that it did: %s of %.200s, whose lines are not here", plural(l.Removed, "chunk"), l.Origin)
		}
		if l.After != nil && !slices.ContainsFunc(r.Logs, func(o LogReport) bool { return o.Origin == l.After.Origin }) {
			say("the log %.200s, which was before %.200s, is not here", l.After.Origin, l.Origin)
		}
	}
	for _, image := range r.Images {
		if !slices.ContainsFunc(r.Rows, func(x Row) bool { return x.ImageDigest == image || x.Image == image }) {
			say("no container of the image %.200s is in this evidence", image)
		}
	}
	for _, g := range r.Gaps {
		// Of what was given up nobody knows whose it was: all of a run, perhaps. While the
		// machine slept nobody lived.
		unseen := !g.Reason.DetailOnly() && !g.ofClock() || g.Reason == evidence.GapSpoolDropped
		if unseen && (g.Scope == evidence.ScopeNode || g.Scope == evidence.ScopeSource) {
			say("containers may have lived unseen: %s", g.text())
		}
	}
	for from := 0; from < len(r.Rows); { // a probe's rows follow one another
		first, bad, to := &r.Rows[from], 0, from
		var why string
		for ; to < len(r.Rows) && r.Rows[to].run == first.run && r.Rows[to].ProbeID == first.ProbeID; to++ {
			if x := &r.Rows[to]; !x.covered() {
				if bad++; why == "" {
					why = x.state()
				}
			}
		}
		where := fmt.Sprintf("probe %s of container %s", first.ProbeID, first.container())
		if bad > 0 {
			say("%s: %d of %s not covered throughout, the first is %s", where, bad, plural(to-from, "row"), why)
		}
		if first.SearchReason != "" {
			say("%s: not all files were searched: %s", where, first.SearchReason)
		}
		from = to
	}
	return out
}

// covered reports whether a row says all that happened at its site. That a file or a
// symbol is not there is an answer. A window that a later gap ended is not all: of what
// came after nothing is known. A set says it only with all its entries.
func (r *Row) covered() bool {
	switch r.State {
	case evidence.NotArmed:
		return r.Reason == evidence.SymbolNotFound || r.Reason == evidence.FileNotFound
	case evidence.Partial:
		return false
	}
	if slices.ContainsFunc(r.Gaps, func(g evidence.GapReason) bool { return !g.DetailOnly() }) {
		return false
	}
	return r.Complete && (r.Set == "" || r.Entry != nil || !slices.ContainsFunc(r.Gaps, costsEntries))
}

// costsEntries reports whether a set with such a gap may have had entries that have no
// lines (FORMAT.md, "Sets").
func costsEntries(g evidence.GapReason) bool {
	switch g {
	case evidence.GapSetFull, evidence.GapRingFull, evidence.GapDecodeError, evidence.GapSpoolDropped:
		return true
	}
	return false
}
