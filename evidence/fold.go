package evidence

// Window is the state of one site over one stretch of boot time [From, To).
type Window struct {
	State  State // Hit, ArmedNoHit or NotArmed; Partial where it was folded before
	Reason NotArmedReason
	From   int64
	To     int64
}

// FoldWindows folds the windows of one site, in order of time, into its state
// over [first, end), where first is the container's first instruction:
//
//   - hit if any window is;
//   - else notArmed if all are, or there are none, with the first reason;
//   - else armedNoHit if all are and they cover [first, end) without a hole;
//   - else partial.
func FoldWindows(first, end int64, ws []Window) (State, NotArmedReason) {
	allNot, allArmed := true, true
	at := first
	for _, w := range ws {
		switch w.State {
		case Hit:
			return Hit, ""
		case NotArmed:
			allArmed = false
		case ArmedNoHit:
			allNot = false
			if w.From > at && at < end {
				allArmed = false
			}
			at = max(at, w.To)
		default:
			allNot, allArmed = false, false
		}
	}
	switch {
	case allNot:
		if len(ws) == 0 {
			return NotArmed, ""
		}
		return NotArmed, ws[0].Reason
	case allArmed && at >= end:
		return ArmedNoHit, ""
	}
	return Partial, ""
}

// FoldSites folds the states of a probe's sites into the probe's:
//
//   - hit if any site is;
//   - else notArmed if there is no site or all are;
//   - else armedNoHit if all are and the search for sites was complete;
//   - else partial.
func FoldSites(searchComplete bool, sites []State) State {
	allNot, allArmed := true, searchComplete
	for _, s := range sites {
		switch s {
		case Hit:
			return Hit
		case ArmedNoHit:
			allNot = false
		case NotArmed:
			allArmed = false
		default:
			allNot, allArmed = false, false
		}
	}
	switch {
	case allNot:
		return NotArmed
	case allArmed:
		return ArmedNoHit
	}
	return Partial
}
