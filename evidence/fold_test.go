package evidence_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"probity/evidence"
)

// naiveWindows is the specification, instant by instant: boot time is cut into
// instants, and each knows which windows cover it.
func naiveWindows(first, end int64, ws []evidence.Window) (evidence.State, evidence.NotArmedReason) {
	count := map[evidence.State]int{}
	for _, w := range ws {
		count[w.State]++
	}
	if count[evidence.Hit] > 0 {
		return evidence.Hit, ""
	}
	if count[evidence.NotArmed] == len(ws) {
		if len(ws) == 0 {
			return evidence.NotArmed, ""
		}
		return evidence.NotArmed, ws[0].Reason
	}
	if count[evidence.ArmedNoHit] != len(ws) {
		return evidence.Partial, ""
	}
	for t := first; t < end; t++ {
		if !slices.ContainsFunc(ws, func(w evidence.Window) bool { return w.From <= t && t < w.To }) {
			return evidence.Partial, ""
		}
	}
	return evidence.ArmedNoHit, ""
}

func TestFoldWindows(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	states := map[evidence.State]int{}
	for range 300_000 {
		first := r.Int64N(4)
		end := first + r.Int64N(12)
		// Mostly armed windows, mostly adjoining: else nearly all would be partial.
		kinds := []evidence.State{evidence.ArmedNoHit, evidence.ArmedNoHit, evidence.ArmedNoHit, evidence.ArmedNoHit}
		if r.IntN(3) == 0 {
			kinds = append(kinds, evidence.States...)
		}
		if r.IntN(8) == 0 {
			kinds = []evidence.State{evidence.NotArmed}
		}
		var ws []evidence.Window
		at := first - r.Int64N(2) + r.Int64N(8)/7
		for range r.IntN(5) {
			w := evidence.Window{State: kinds[r.IntN(len(kinds))], From: at, To: at + r.Int64N(6)}
			if w.State == evidence.NotArmed {
				w.Reason = evidence.NotArmedReasons[r.IntN(len(evidence.NotArmedReasons))]
			}
			ws = append(ws, w)
			at = max(w.From, w.To-r.Int64N(2)+r.Int64N(8)/7)
		}
		slices.SortStableFunc(ws, func(a, b evidence.Window) int { return int(a.From - b.From) })
		gotState, gotReason := evidence.FoldWindows(first, end, ws)
		wantState, wantReason := naiveWindows(first, end, ws)
		if gotState != wantState || gotReason != wantReason {
			t.Fatalf("[%d, %d) %v: %s %q, want %s %q", first, end, ws, gotState, gotReason, wantState, wantReason)
		}
		states[gotState]++
	}
	for _, s := range evidence.States {
		if states[s] < 1000 {
			t.Errorf("only %d results were %s: the generator is no good", states[s], s)
		}
	}
}

func TestFoldWindowsEdges(t *testing.T) {
	armed := func(from, to int64) evidence.Window {
		return evidence.Window{State: evidence.ArmedNoHit, From: from, To: to}
	}
	for _, c := range []struct {
		why  string
		ws   []evidence.Window
		want evidence.State
	}{
		{"no window", nil, evidence.NotArmed},
		{"one nanosecond late", []evidence.Window{armed(1, 10)}, evidence.Partial},
		{"one nanosecond short", []evidence.Window{armed(0, 9)}, evidence.Partial},
		{"a hole of one nanosecond", []evidence.Window{armed(0, 4), armed(5, 10)}, evidence.Partial},
		{"adjoining", []evidence.Window{armed(0, 5), armed(5, 10)}, evidence.ArmedNoHit},
		{"a window after the end", []evidence.Window{armed(0, 10), armed(12, 15)}, evidence.ArmedNoHit},
		{"a window that another holds", []evidence.Window{armed(0, 10), armed(2, 3)}, evidence.ArmedNoHit},
		{"armed, then not", []evidence.Window{armed(0, 5), {State: evidence.NotArmed, Reason: evidence.OverBudget, From: 5, To: 10}}, evidence.Partial},
		{"a hit outside of everything", []evidence.Window{armed(0, 10), {State: evidence.Hit, From: 20, To: 21}}, evidence.Hit},
		{"a state that is none", []evidence.Window{{State: "other", From: 0, To: 10}}, evidence.Partial},
	} {
		if got, _ := evidence.FoldWindows(0, 10, c.ws); got != c.want {
			t.Errorf("%s: %s, want %s", c.why, got, c.want)
		}
	}
}

func naiveSites(complete bool, sites []evidence.State) evidence.State {
	all := func(s evidence.State) bool {
		return !slices.ContainsFunc(sites, func(x evidence.State) bool { return x != s })
	}
	switch {
	case slices.Contains(sites, evidence.Hit):
		return evidence.Hit
	case len(sites) == 0 || all(evidence.NotArmed):
		return evidence.NotArmed
	case complete && all(evidence.ArmedNoHit):
		return evidence.ArmedNoHit
	}
	return evidence.Partial
}

// Every combination of up to five sites: order never matters, and a claim never
// becomes stronger when the search was not complete.
func TestFoldSites(t *testing.T) {
	states := append(slices.Clone(evidence.States), "other")
	for n := range 6 {
		total := 1
		for range n {
			total *= len(states)
		}
		for code := range total {
			var sites []evidence.State
			for c, i := code, 0; i < n; i++ {
				sites = append(sites, states[c%len(states)])
				c /= len(states)
			}
			for _, complete := range []bool{true, false} {
				if got, want := evidence.FoldSites(complete, sites), naiveSites(complete, sites); got != want {
					t.Fatalf("%v, search complete %v: %s, want %s", sites, complete, got, want)
				}
			}
			if evidence.FoldSites(false, sites) == evidence.ArmedNoHit {
				t.Fatalf("%v: armedNoHit without a complete search", sites)
			}
		}
	}
}
