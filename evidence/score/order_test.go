package score_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"probity/evidence"
	"probity/evidence/score"
)

// rank is a probe type's place in the promised order, 0 the best. What nobody knows
// reads as unknown, and so does nothing at all.
func rank(t evidence.ProbeType) int {
	for i, r := range [][]evidence.ProbeType{
		{evidence.Uprobe, evidence.Uretprobe},
		{evidence.USDT, evidence.Fentry, evidence.Fexit},
		{evidence.RawTracepoint, evidence.Tracepoint},
		{evidence.Kprobe, evidence.Kretprobe},
	} {
		if slices.Contains(r, t) {
			return i
		}
	}
	return 4
}

// holds checks the order between two values that differ in their probe types only.
func holds(t testing.TB, a, b evidence.Confidence, of, other evidence.ProbeType) {
	t.Helper()
	i, j := rank(of), rank(other)
	if i > j {
		a, b, i, j = b, a, j, i
	}
	switch {
	case i == j && a.Value != b.Value:
		t.Errorf("%q and %q differ: %+v, %+v", of, other, a, b)
	case a.Value < b.Value:
		t.Errorf("%q against %q: %+v is below %+v", of, other, a, b)
	case j >= 2 && i != j && a.Value <= b.Value: // all but the first two ranks are apart
		t.Errorf("%q against %q: %+v is not above %+v", of, other, a, b)
	}
}

// inputs are whatever a record may say, in every version there is.
func checkOrder(t testing.TB, of, other evidence.ProbeType, attribution, symbol string, l evidence.Losses) {
	t.Helper()
	a, b := score.Confidence(of, attribution, symbol, l), score.Confidence(other, attribution, symbol, l)
	holds(t, a, b, of, other)
	for _, version := range []string{"1", score.Version2, score.Version} {
		a, b := a, b
		a.Version, b.Version = version, version
		var known [2]bool
		a.Value, known[0] = score.Of(a)
		b.Value, known[1] = score.Of(b)
		if !known[0] || !known[1] {
			t.Fatalf("version %s is not known", version)
		}
		holds(t, a, b, of, other)
	}
}

func randomText(r *rand.Rand, known []string) string {
	if r.IntN(4) > 0 {
		return known[r.IntN(len(known))]
	}
	b := make([]byte, r.IntN(12))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// For otherwise equal inputs the order of design.md holds, whatever the inputs are.
func TestOrderHoldsForAnyInput(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	var types []string
	for _, p := range evidence.ProbeTypes {
		types = append(types, string(p))
	}
	for range 20_000 {
		loss := func() evidence.Loss {
			return evidence.Loss{N: r.Uint64() >> r.IntN(65), Unknowable: r.IntN(4) == 0}
		}
		l := evidence.Losses{RingFull: loss(), KernelMissed: loss()}
		checkOrder(t, evidence.ProbeType(randomText(r, types)), evidence.ProbeType(randomText(r, types)), randomText(r, attributions), randomText(r, symbols), l)
		if t.Failed() {
			return
		}
	}
}

func FuzzOrder(f *testing.F) {
	f.Add("uprobe", "kprobe", "cgroup", "func", uint64(0), false)
	f.Add("", "fentry", "current", "inlined", uint64(3), true)
	f.Fuzz(func(t *testing.T, of, other, attribution, symbol string, missed uint64, unknowable bool) {
		checkOrder(t, evidence.ProbeType(of), evidence.ProbeType(other), attribution, symbol, evidence.Losses{KernelMissed: evidence.Loss{N: missed, Unknowable: unknowable}})
	})
}

// A record without a probe type reads as unknown wherever it is scored and counted.
func TestNoProbeTypeReadsAsUnknown(t *testing.T) {
	for _, s := range symbols {
		for _, l := range losses {
			if a, b := score.Confidence("", "cgroup", s, l), score.Confidence(evidence.UnknownProbe, "cgroup", s, l); a != b {
				t.Errorf("%+v, as unknown %+v", a, b)
			}
			if a, b := score.NotArmed("", "cgroup", s), score.NotArmed(evidence.UnknownProbe, "cgroup", s); a != b {
				t.Errorf("%+v, as unknown %+v", a, b)
			}
		}
	}
	var tally evidence.Tally
	tally.Add(&evidence.Observation{State: evidence.Hit})
	tally.Add(&evidence.Observation{State: evidence.Hit, ProbeType: evidence.UnknownProbe})
	counts := tally.Statement(evidence.Header{}, "").Predicate.Probity.Observations
	if len(counts) != 1 || counts[0].ProbeType != evidence.UnknownProbe || counts[0].Count != 2 {
		t.Errorf("counted as %+v", counts)
	}
}
