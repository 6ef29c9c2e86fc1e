package bpf

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
)

// programs are those of sites, loaded when they are first asked for.
type programs struct {
	mu     sync.Mutex
	shared map[sharedKey]*ebpf.Program // one for all sites
	copies map[*Program]bool           // one each per site
	// stubbed are the arrays through which stubs call a shared program.
	stubbed map[sharedKey]*ebpf.Map
	missed  map[Kind]uint64 // by copies that are closed
	pairs   error           // why there can be no pairs
	opened  bool            // whether that was found out
}

type sharedKey struct {
	pair bool
	name string
}

// At is what a program has to know of the place that it is attached to.
type At struct {
	Site uint32
	// Pair: the times between the site's entry and its return are measured, for
	// containers that have a duration (see PutDurations).
	Pair   bool
	Return bool // this place is where it returns
	// Of places in files: the stack pointer tells calls apart. Popped: the
	// return address is off the stack when the program runs. Go: a call is a
	// goroutine's, which may be moved to another thread.
	Stacked, Popped, Go bool
}

// Cookie is what the link to the place carries.
func (a At) Cookie() uint64 {
	c := uint64(a.Site)
	for bit, is := range map[probesCookieBits]bool{
		probesCookieBitsCOOKIE_RETURN: a.Return, probesCookieBitsCOOKIE_STACKED: a.Stacked,
		probesCookieBitsCOOKIE_POPPED: a.Popped, probesCookieBitsCOOKIE_GO: a.Go,
	} {
		if is {
			c |= uint64(bit) << 32
		}
	}
	return c
}

// Program is a program for one link to one site.
type Program struct {
	*ebpf.Program
	// Cookie: the link is to carry At.Cookie as its attach cookie.
	Cookie bool

	of   *Objects // nil if the program is shared
	kind Kind
}

// Kind tells programs apart by what runs them.
type Kind string

// The kinds of programs of sites.
const (
	KindUprobe        Kind = "uprobe" // uretprobes and markers too
	KindKprobe        Kind = "kprobe" // kretprobes too
	KindTracepoint    Kind = "tracepoint"
	KindRawTracepoint Kind = "rawTracepoint"
	KindFunction      Kind = "function" // fentry and fexit
)

// Kinds lists them all.
var Kinds = []Kind{KindUprobe, KindKprobe, KindTracepoint, KindRawTracepoint, KindFunction}

func kindOf(program string) Kind {
	switch program {
	case probesProgKernelProbe:
		return KindKprobe
	case probesProgKernelTracepoint:
		return KindTracepoint
	case probesProgKernelRawTracepoint, probesProgSyscallEnterRaw, probesProgSyscallExitRaw:
		return KindRawTracepoint
	case probesProgFunctionEntry, probesProgFunctionReturn:
		return KindFunction
	}
	return KindUprobe
}

// Close gives the program back, after its link was closed. It is idempotent.
func (p *Program) Close() error {
	if p.of == nil {
		return nil
	}
	p.of.progs.mu.Lock()
	defer p.of.progs.mu.Unlock()
	if !p.of.progs.copies[p] {
		return nil
	}
	delete(p.of.progs.copies, p)
	if st, err := p.Stats(); err == nil {
		if p.of.progs.missed == nil {
			p.of.progs.missed = map[Kind]uint64{}
		}
		p.of.progs.missed[p.kind] += st.RecursionMisses
	}
	return p.Program.Close()
}

// UprobeSingle returns a program for a perf link to a place in a file.
func (o *Objects) UprobeSingle(at At) (*Program, error) {
	return o.perf(probesProgUprobeSingle, at)
}

// Kprobe returns a program for a perf link to a kernel function's entry or
// return.
func (o *Objects) Kprobe(at At) (*Program, error) { return o.perf(probesProgKernelProbe, at) }

// Tracepoint returns a program for a perf link to a tracepoint.
func (o *Objects) Tracepoint(at At) (*Program, error) {
	return o.perf(probesProgKernelTracepoint, at)
}

// RawTracepoint returns a program for a raw tracepoint.
func (o *Objects) RawTracepoint(at At) (*Program, error) {
	return o.copy(probesProgKernelRawTracepoint, at, nil)
}

// Syscall returns a program for the raw tracepoint sys_enter, or sys_exit,
// that looks at one system call of the kernel's own machine. It needs the
// kernel's BTF.
func (o *Objects) Syscall(exit bool, number uint64, at At) (*Program, error) {
	name := probesProgSyscallEnterRaw
	if exit {
		name = probesProgSyscallExitRaw
	}
	return o.copy(name, at, func(s *ebpf.CollectionSpec) error { return s.Variables[probesVarFixedSyscall].Set(number) })
}

// Function returns a program for the entry, or the return, of a kernel
// function (fentry, fexit). It needs the kernel's BTF.
func (o *Objects) Function(exit bool, function string, at At) (*Program, error) {
	name := probesProgFunctionEntry
	if exit {
		name = probesProgFunctionReturn
	}
	return o.copy(name, at, func(s *ebpf.CollectionSpec) error {
		s.Programs[name].AttachTo = function
		return nil
	})
}

// UprobeMulti returns the program for uprobe_multi links, whose cookies are
// At.Cookie, or why the kernel has none.
func (o *Objects) UprobeMulti(pair bool) (*ebpf.Program, error) {
	if o.missing != nil {
		return nil, o.missing
	}
	return o.common(pair, probesProgUprobeMulti, nil)
}

// perf returns the program that takes its place from the attach cookie, or a
// stub where there are none.
func (o *Objects) perf(name string, at At) (*Program, error) {
	if !o.cookies {
		return o.stub(name, at)
	}
	p, err := o.common(at.Pair, name, nil)
	if err != nil {
		return nil, err
	}
	return &Program{Program: p, Cookie: true}, nil
}

// common returns the one program for all sites, loaded when first asked for.
func (o *Objects) common(pair bool, name string, adjust func(*ebpf.CollectionSpec) error) (*ebpf.Program, error) {
	o.progs.mu.Lock()
	defer o.progs.mu.Unlock()
	return o.commonLocked(pair, name, adjust)
}

// commonLocked is common with progs.mu held.
func (o *Objects) commonLocked(pair bool, name string, adjust func(*ebpf.CollectionSpec) error) (*ebpf.Program, error) {
	k := sharedKey{pair, name}
	if p := o.progs.shared[k]; p != nil {
		return p, nil
	}
	obj, err := o.object(pair)
	if err != nil {
		return nil, err
	}
	p, err := obj.load(name, adjust)
	if err != nil {
		return nil, err
	}
	o.progs.shared[k] = p
	return p, nil
}

// object returns the compiled programs. With progs.mu held.
func (o *Objects) object(pair bool) (object, error) {
	if !pair {
		return o.sites, nil
	}
	if !o.progs.opened {
		o.progs.opened = true
		for _, name := range []string{pairsMapDurations, pairsMapCalls} {
			m, err := ebpf.NewMap(o.pairs.spec.Maps[name])
			if err != nil {
				o.progs.pairs = fmt.Errorf("make the maps for durations: %w", err)
				break
			}
			o.pairs.maps[name] = m
		}
	}
	return o.pairs, o.progs.pairs
}

// copy loads a copy that knows its place.
func (o *Objects) copy(name string, at At, adjust func(*ebpf.CollectionSpec) error) (*Program, error) {
	o.progs.mu.Lock()
	defer o.progs.mu.Unlock()
	obj, err := o.object(at.Pair)
	if err != nil {
		return nil, err
	}
	p, err := obj.load(name, func(s *ebpf.CollectionSpec) error {
		if err := s.Variables[probesVarFixedSite].Set(at.Cookie()); err != nil || adjust == nil {
			return err
		}
		return adjust(s)
	})
	if err != nil {
		return nil, err
	}
	return o.own(p, name), nil
}

// own makes p a program that belongs to one site. With progs.mu held.
func (o *Objects) own(p *ebpf.Program, name string) *Program {
	c := &Program{Program: p, of: o, kind: kindOf(name)}
	if o.progs.copies == nil {
		o.progs.copies = map[*Program]bool{}
	}
	o.progs.copies[c] = true
	return c
}

// Misses is how often the kernel says it skipped a program of the kind since
// Load. Whether it counts every miss depends on the kernel: see bpf/kernel.
func (o *Objects) Misses(kind Kind) (uint64, error) {
	o.progs.mu.Lock()
	defer o.progs.mu.Unlock()
	n := o.progs.missed[kind]
	var errs []error
	add := func(p *ebpf.Program) {
		st, err := p.Stats()
		if err != nil {
			errs = append(errs, fmt.Errorf("read program statistics: %w", err))
			return
		}
		n += st.RecursionMisses
	}
	for k, p := range o.progs.shared {
		if kindOf(k.name) == kind {
			add(p)
		}
	}
	for p := range o.progs.copies {
		if p.kind == kind {
			add(p.Program)
		}
	}
	return n, errors.Join(errs...)
}
