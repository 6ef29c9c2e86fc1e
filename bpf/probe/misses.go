package probe

import (
	"maps"
	"slices"

	"github.com/cilium/ebpf/link"

	"probity/bpf"
	"probity/evidence"
)

// Misses is how many program runs the kernel says it skipped since the engine
// was made, of all probe types; unknowable on kernels that do not count them
// all.
func (e *Engine) Misses() evidence.Loss {
	if !e.cfg.Kernel.CountsMisses.Yes {
		return evidence.Loss{Unknowable: true}
	}
	var sum evidence.Loss
	for _, k := range bpf.Kinds {
		n, err := e.obj.Misses(k)
		if err != nil {
			return evidence.Loss{Unknowable: true}
		}
		sum.N += n
	}
	sum.N += e.kprobesMissed()
	n, err := e.lineageMisses()
	if err != nil {
		return evidence.Loss{Unknowable: true}
	}
	sum.N += n
	for _, t := range evidence.ProbeTypes {
		n, err := e.obj.SetMisses(string(t))
		if err != nil {
			return evidence.Loss{Unknowable: true}
		}
		sum.N += n
	}
	return sum
}

// MissesOf is how many program runs the kernel says it skipped of one probe
// type; unknowable if this kernel does not count all of them. Types that share
// a program share its misses: what was skipped may have been either. Of types
// that go by whose a process is, what was not seen of processes is missed, too.
func (e *Engine) MissesOf(t evidence.ProbeType) evidence.Loss {
	if !e.cfg.Kernel.Type(string(t)).CountsMisses {
		return evidence.Loss{Unknowable: true}
	}
	kind, ok := map[evidence.ProbeType]bpf.Kind{
		evidence.Uprobe: bpf.KindUprobe, evidence.Uretprobe: bpf.KindUprobe, evidence.USDT: bpf.KindUprobe,
		evidence.Kprobe: bpf.KindKprobe, evidence.Kretprobe: bpf.KindKprobe,
		evidence.Tracepoint: bpf.KindTracepoint, evidence.RawTracepoint: bpf.KindRawTracepoint,
		evidence.Fentry: bpf.KindFunction, evidence.Fexit: bpf.KindFunction,
	}[t]
	n, err := e.obj.Misses(kind)
	if !ok || err != nil {
		return evidence.Loss{Unknowable: true}
	}
	if kind == bpf.KindKprobe {
		n += e.kprobesMissed()
	}
	if kind != bpf.KindUprobe {
		processes, err := e.lineageMisses()
		sets, setErr := e.obj.SetMisses(string(t))
		if err != nil || setErr != nil {
			return evidence.Loss{Unknowable: true}
		}
		n += processes + sets
	}
	return evidence.Loss{N: n}
}

// kprobesMissed is how often kprobes themselves were skipped, before any
// program: because they hit within another one, or too many calls had not
// returned yet.
func (e *Engine) kprobesMissed() uint64 {
	e.mu.Lock()
	hooks, n := slices.Collect(maps.Values(e.hooks)), e.missed
	e.mu.Unlock()
	for _, s := range hooks {
		s.mu.Lock()
		n += s.missed + s.skipped()
		s.mu.Unlock()
	}
	return n
}

// skipped is how often the kernel says it did not come to the links' programs.
// With mu held.
func (s *sharedHook) skipped() (n uint64) {
	if s.typ != evidence.Kprobe && s.typ != evidence.Kretprobe {
		return 0
	}
	for _, l := range s.links {
		n += missedBy(l)
	}
	return n
}

func missedBy(l link.Link) uint64 {
	info, err := l.Info()
	if err != nil || info.PerfEvent() == nil || info.PerfEvent().Kprobe() == nil {
		return 0
	}
	return info.PerfEvent().Kprobe().Missed
}
