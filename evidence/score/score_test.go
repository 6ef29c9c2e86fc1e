package score_test

import (
	"slices"
	"testing"

	"probity/evidence"
	"probity/evidence/score"
)

var (
	attributions = []string{score.AttributionCgroup, score.AttributionCurrent, score.AttributionNamespace, score.AttributionUnknown, "", "other"}
	symbols      = []string{score.SymbolOffset, score.SymbolEvent, score.SymbolFunc, score.SymbolAlias, score.SymbolIfunc, score.SymbolClone, score.SymbolFolded, score.SymbolInlined, score.SymbolKernel, score.SymbolUnknown, "", "other"}
	losses       = []evidence.Losses{
		{},
		{RingFull: evidence.Loss{N: 9}},
		{KernelMissed: evidence.Loss{Unknowable: true}, Reason: "kernel before 6.7"},
		{KernelMissed: evidence.Loss{N: 1}},
	}
)

// The promised order, as ranks: a lower rank never has a lower
// confidence for otherwise equal inputs, and where strict is set, a higher one.
func TestOrderOfProbeTypes(t *testing.T) {
	ranks := [][]evidence.ProbeType{
		{evidence.Uprobe, evidence.Uretprobe},
		{evidence.USDT, evidence.Fentry, evidence.Fexit},
		{evidence.RawTracepoint, evidence.Tracepoint},
		{evidence.Kprobe, evidence.Kretprobe},
		{evidence.UnknownProbe, ""},
	}
	strict := []bool{false, true, true, true} // between rank i and i+1
	var listed []evidence.ProbeType
	for _, r := range ranks {
		listed = append(listed, r...)
	}
	for _, pt := range evidence.ProbeTypes {
		if !slices.Contains(listed, pt) {
			t.Fatalf("probe type %s has no rank", pt)
		}
	}
	for _, a := range attributions {
		for _, s := range symbols {
			for _, l := range losses {
				for i := range ranks {
					for j := i; j < len(ranks); j++ {
						wantStrict := slices.Contains(strict[i:j], true)
						for _, hi := range ranks[i] {
							for _, lo := range ranks[j] {
								h, w := score.Confidence(hi, a, s, l).Value, score.Confidence(lo, a, s, l).Value
								if i == j && h != w || h < w || wantStrict && h <= w {
									t.Fatalf("%q %g against %q %g with (%q, %q, %v)", hi, h, lo, w, a, s, l)
								}
							}
						}
					}
				}
			}
		}
	}
}

// No input ever makes a confidence better than the best of that input, every
// value lies in (0,1], and it can be computed again from what it states.
func TestProduct(t *testing.T) {
	for _, pt := range append(slices.Clone(evidence.ProbeTypes), "", "new") {
		for _, a := range attributions {
			for _, s := range symbols {
				best := score.Confidence(pt, score.AttributionCgroup, score.SymbolOffset, evidence.Losses{}).Value
				last := 2.0
				for _, l := range losses {
					c := score.Confidence(pt, a, s, l)
					if c.Value <= 0 || c.Value > best || c.Value > last {
						t.Fatalf("%v: value out of order (best %g, before %g)", c, best, last)
					}
					last = c.Value
					if v, ok := score.Of(c); !ok || v != c.Value {
						t.Fatalf("%v computes to %g, %v", c, v, ok)
					}
					if in := c.Inputs; in.ProbeType == "" || in.Attribution == "" || in.Symbol == "" || in.Losses == "" {
						t.Fatalf("%v: an input is not stated", c)
					}
				}
				if n := score.NotArmed(pt, a, s); n.Value != 0 || n.Version != score.Version {
					t.Fatalf("notArmed: %v", n)
				}
			}
		}
	}
	if _, ok := score.Of(evidence.Confidence{Version: "0"}); ok {
		t.Fatal("a version that was never issued is known")
	}
}

// What version 1 said of symbols that it did not know is still what its lines say.
func TestVersion1(t *testing.T) {
	for symbol, want := range map[string]float64{score.SymbolInlined: 0.5, score.SymbolKernel: 0.5, score.SymbolFunc: 0.98, score.SymbolOffset: 1} {
		c := score.Confidence(evidence.Uprobe, score.AttributionCgroup, symbol, evidence.Losses{})
		c.Version = "1"
		if v, ok := score.Of(c); !ok || v != want {
			t.Errorf("%s: %g, %v, want %g", symbol, v, ok, want)
		}
	}
}

// Version 2 did not know that an event may be an interrupt's.
func TestVersion2(t *testing.T) {
	c := score.Confidence(evidence.Tracepoint, score.AttributionCurrent, score.SymbolEvent, evidence.Losses{})
	if c.Value != 0.855 {
		t.Errorf("%v, want 0.95 * 0.9", c)
	}
	c.Version = "2"
	if v, ok := score.Of(c); !ok || v != 0.285 {
		t.Errorf("%g, %v, want 0.95 * 0.3", v, ok)
	}
}
