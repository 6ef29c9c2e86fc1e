package verify

import (
	"cmp"
	"slices"

	"probity/evidence"
)

// moment is a time of a line, with the clock of the chunk that the line is in. Between
// two chunks somebody may have set the wall clock, so their times are compared as boot
// times, unless they are of two boots.
type moment struct {
	in *placed
	at evidence.Time
}

func (m moment) before(n moment) bool {
	if m.in.boot == n.in.boot {
		return m.in.clock.Boot(m.at) < n.in.clock.Boot(n.at)
	}
	return m.at.Std().Before(n.at.Std())
}

// by writes the moment by the clock of another chunk: all times of a row are by one.
func (m moment) by(in *placed) evidence.Time {
	if m.in.boot != in.boot {
		return m.at
	}
	return in.clock.Time(m.in.clock.Boot(m.at))
}

// nodeClocks are the gaps of nodes' clocks: what a window may have over it without
// losing anything by it.
type nodeClocks map[ofBoot][]clockGaps

// ofBoot is a boot of a node, whose name is there where several are trusted.
type ofBoot struct{ node, boot string }

// clockGaps are those of one reason, by their beginnings.
type clockGaps struct {
	reason evidence.GapReason
	from   []int64 // boot time
	to     []int64 // the latest end of this one and all before it
}

// ofClock reports whether the gap says what the node's clocks did.
func (g *GapRow) ofClock() bool {
	return g.Scope == evidence.ScopeNode && slices.Contains(ofClocks, g.Reason)
}

var ofClocks = []evidence.GapReason{evidence.GapSuspended, evidence.GapClockStep}

func clocksOf(gaps map[ownID]*latestGap) nodeClocks {
	type span struct{ from, to int64 }
	spans := map[ofBoot]map[evidence.GapReason][]span{}
	for id, g := range gaps {
		if !g.ofClock() || g.To.IsZero() {
			continue
		}
		of := ofBoot{id.node, g.at.in.boot}
		if spans[of] == nil {
			spans[of] = map[evidence.GapReason][]span{}
		}
		spans[of][g.Reason] = append(spans[of][g.Reason], span{g.at.in.clock.Boot(g.From), g.at.in.clock.Boot(g.To)})
	}
	out := nodeClocks{}
	for of, byReason := range spans {
		for _, reason := range ofClocks {
			all := byReason[reason]
			if len(all) == 0 {
				continue
			}
			slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.from, b.from) })
			c := clockGaps{reason: reason}
			for i, s := range all {
				if i > 0 {
					s.to = max(s.to, c.to[i-1])
				}
				c.from, c.to = append(c.from, s.from), append(c.to, s.to)
			}
			out[of] = append(out[of], c)
		}
	}
	return out
}

// within lists the reasons of those that lie in a window, be it in part.
func (n nodeClocks) within(of ofBoot, from, to int64) (reasons []evidence.GapReason) {
	for _, c := range n[of] {
		begun, _ := slices.BinarySearch(c.from, to) // so many begin before its end
		if begun > 0 && c.to[begun-1] > from {
			reasons = append(reasons, c.reason)
		}
	}
	return reasons
}
