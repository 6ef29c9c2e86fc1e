package evidence_test

import (
	"testing"

	"probity/evidence"
)

// A reader of version 2 does not know the reason: wherever a line names it, the line is
// of version 3.
func TestCoalescedIsOfVersion3(t *testing.T) {
	for _, reason := range []evidence.GapReason{evidence.GapCoalesced, evidence.GapSpoolDropped} {
		want := map[bool]string{true: evidence.Format3, false: evidence.Format1}[reason == evidence.GapCoalesced]
		for _, l := range []evidence.Line{
			&evidence.Coverage{GapReasons: []evidence.GapReason{evidence.GapSpoolDropped, reason}},
			&evidence.Observation{Gaps: []evidence.SiteGap{{Reason: evidence.GapSpoolDropped}, {Reason: reason}}},
			&evidence.Gap{Reason: reason},
		} {
			if got := evidence.FormatOf(l); got != want {
				t.Errorf("%T with %s is of %s, want %s", l, reason, got, want)
			}
		}
	}
}
