// Package score computes how much one observation can be trusted to mean what
// it says, as a product of stated inputs.
//
// In: what the record already states (probe type, attribution, symbol
// precision, losses). Out: an [evidence.Confidence] that carries its inputs and
// the version of the table, so that a reader can compute the number again;
// evidence/verify does. The package trusts its caller for the inputs, is pure,
// and is not a control: a confidence is advice to a reader, never a state, and
// a high one does not prove that the node told the truth.
package score

import (
	"math"

	"probity/evidence"
)

// Version names the factors below. A change of any factor is a new version.
// Version 2 knows the symbols "inlined" and "function", version 3 the
// attribution "current"; all else is as in the one before. Older ones are still
// computed again.
const (
	Version  = "3"
	Version2 = "2"
	version1 = "1"
)

// What an attribution can be, best first.
const (
	AttributionCgroup    = "cgroup"    // by the container's own cgroup subtree, in the kernel
	AttributionCurrent   = "current"   // likewise, but what an interrupt did meanwhile may have been counted
	AttributionNamespace = "namespace" // by a namespace's inode: recycled soon after a container dies
	AttributionUnknown   = "unknown"
)

// What is known of the symbol a site was found by: the symbol kinds of a
// line, or one of these where no symbol was looked up.
const (
	SymbolOffset  = "offset" // the policy named the instruction itself
	SymbolEvent   = "event"  // a kernel event, nothing to look up
	SymbolFunc    = "func"
	SymbolAlias   = "alias"    // one of several names of the same instruction
	SymbolIfunc   = "ifunc"    // the resolver picks an implementation at run time
	SymbolClone   = "clone"    // a compiler's partial or specialised copy
	SymbolFolded  = "folded"   // identical functions share this instruction
	SymbolInlined = "inlined"  // one place where the compiler put the function's code, by DWARF or Go's tables
	SymbolKernel  = "function" // a function of the kernel, by its name
	SymbolUnknown = "unknown"
)

// What the loss counters say.
const (
	LossesNone       = "none"       // counted, and zero
	LossesUnknowable = "unknowable" // this kernel does not count all of them
	LossesSome       = "some"       // counted, and not zero
)

// probeFactor holds the one order that readers may rely on for otherwise equal
// inputs: uprobe, uretprobe >= usdt, fentry, fexit > rawTracepoint, tracepoint
// > kprobe, kretprobe > unknown.
func probeFactor(t string) float64 {
	switch evidence.ProbeType(t) {
	case evidence.Uprobe, evidence.Uretprobe:
		return 1
	case evidence.USDT, evidence.Fentry, evidence.Fexit:
		return 0.98
	case evidence.RawTracepoint, evidence.Tracepoint:
		return 0.95
	case evidence.Kprobe, evidence.Kretprobe:
		return 0.85
	}
	return 0.3
}

func attributionFactor(version, a string) float64 {
	if version == Version && a == AttributionCurrent {
		return 0.9
	}
	switch a {
	case AttributionCgroup:
		return 1
	case AttributionNamespace:
		return 0.6
	}
	return 0.3
}

func symbolFactor(version, s string) float64 {
	if version != version1 {
		switch s {
		case SymbolKernel:
			return 1
		case SymbolInlined:
			return 0.9 // optimised code moves: its first instruction may be shared or left out
		}
	}
	switch s {
	case SymbolOffset, SymbolEvent:
		return 1
	case SymbolFunc:
		return 0.98
	case SymbolAlias:
		return 0.95
	case SymbolIfunc:
		return 0.9
	case SymbolClone:
		return 0.8
	}
	return 0.5 // folded, unknown, and whatever a later version may name
}

// lossFactor looks at what the probe itself missed. A counted loss is worse
// than an unknowable one: it did happen.
func lossFactor(l string) float64 {
	switch l {
	case LossesNone:
		return 1
	case LossesUnknowable:
		return 0.9
	}
	return 0.6
}

// Losses names what loss counters mean for a confidence. Only what the kernel
// missed counts: a full ring loses detail of an event, never its count.
func Losses(l evidence.Losses) string {
	switch {
	case l.KernelMissed.Unknowable:
		return LossesUnknowable
	case l.KernelMissed.N > 0:
		return LossesSome
	}
	return LossesNone
}

// Confidence returns the confidence of an armed site or event. An empty text
// or probe type reads as unknown.
func Confidence(probeType evidence.ProbeType, attribution, symbol string, losses evidence.Losses) evidence.Confidence {
	in := inputs(probeType, attribution, symbol, Losses(losses))
	return evidence.Confidence{Value: product(Version, in), Version: Version, Inputs: in}
}

// NotArmed returns the confidence of a notArmed line: 0, because nothing was
// observed, with the inputs as far as they are known. probeType is the type
// that was asked for.
func NotArmed(probeType evidence.ProbeType, attribution, symbol string) evidence.Confidence {
	return evidence.Confidence{Version: Version, Inputs: inputs(probeType, attribution, symbol, LossesNone)}
}

// Of computes the value again from a confidence's own inputs. ok is false if
// the version is not one that this package knows.
func Of(c evidence.Confidence) (value float64, ok bool) {
	if c.Version != Version && c.Version != Version2 && c.Version != version1 {
		return 0, false
	}
	return product(c.Version, c.Inputs), true
}

func inputs(probeType evidence.ProbeType, attribution, symbol, losses string) evidence.Inputs {
	if probeType == "" {
		probeType = evidence.UnknownProbe
	}
	if attribution == "" {
		attribution = AttributionUnknown
	}
	if symbol == "" {
		symbol = SymbolUnknown
	}
	return evidence.Inputs{ProbeType: string(probeType), Attribution: attribution, Symbol: symbol, Losses: losses}
}

// product multiplies the factors and rounds to four decimals, so that every
// language writes the same number.
func product(version string, in evidence.Inputs) float64 {
	p := probeFactor(in.ProbeType) * attributionFactor(version, in.Attribution) * symbolFactor(version, in.Symbol) * lossFactor(in.Losses)
	return math.Round(p*1e4) / 1e4
}
