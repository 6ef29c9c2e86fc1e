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
	shared map[string]*ebpf.Program // by name: one for all sites; owned by the collection
	copies map[*Program]bool        // one each per site
	missed uint64                   // by copies that are closed
}

// Program is a program for one link to one site.
type Program struct {
	*ebpf.Program
	// Cookie: the link is to carry the site's number as its attach cookie.
	Cookie bool

	of *Objects // nil if the program is shared
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
		p.of.progs.missed += st.RecursionMisses
	}
	return p.Program.Close()
}

// UprobeSingle returns a program for a perf link to a place in a file.
func (o *Objects) UprobeSingle(site uint32) (*Program, error) {
	return o.perf(probesProgUprobeSingle, site)
}

// Kprobe returns a program for a perf link to a kernel function's entry or
// return.
func (o *Objects) Kprobe(site uint32) (*Program, error) { return o.perf(probesProgKernelProbe, site) }

// Tracepoint returns a program for a perf link to a tracepoint.
func (o *Objects) Tracepoint(site uint32) (*Program, error) {
	return o.perf(probesProgKernelTracepoint, site)
}

// RawTracepoint returns a program for a raw tracepoint.
func (o *Objects) RawTracepoint(site uint32) (*Program, error) {
	return o.copy(probesProgKernelRawTracepoint, site, nil)
}

// Syscall returns a program for the raw tracepoint sys_enter, or sys_exit,
// that looks at one system call of the kernel's own machine. It needs the
// kernel's BTF.
func (o *Objects) Syscall(exit bool, number uint64, site uint32) (*Program, error) {
	name := probesProgSyscallEnterRaw
	if exit {
		name = probesProgSyscallExitRaw
	}
	return o.copy(name, site, func(s *ebpf.CollectionSpec) error { return s.Variables[probesVarFixedSyscall].Set(number) })
}

// Function returns a program for the entry, or the return, of a kernel
// function (fentry, fexit). It needs the kernel's BTF.
func (o *Objects) Function(exit bool, function string, site uint32) (*Program, error) {
	name := probesProgFunctionEntry
	if exit {
		name = probesProgFunctionReturn
	}
	return o.copy(name, site, func(s *ebpf.CollectionSpec) error {
		s.Programs[name].AttachTo = function
		return nil
	})
}

// perf returns the program that takes its site from the attach cookie, or a
// copy where there are none.
func (o *Objects) perf(name string, site uint32) (*Program, error) {
	if !o.cookies {
		return o.copy(name, site, nil)
	}
	o.progs.mu.Lock()
	defer o.progs.mu.Unlock()
	if p := o.progs.shared[name]; p != nil {
		return &Program{Program: p, Cookie: true}, nil
	}
	p, err := o.sites.load(name, nil)
	if err != nil {
		return nil, err
	}
	o.progs.shared[name] = p
	return &Program{Program: p, Cookie: true}, nil
}

// copy loads a copy that knows its site.
func (o *Objects) copy(name string, site uint32, adjust func(*ebpf.CollectionSpec) error) (*Program, error) {
	p, err := o.sites.load(name, func(s *ebpf.CollectionSpec) error {
		if err := s.Variables[probesVarFixedSite].Set(site); err != nil || adjust == nil {
			return err
		}
		return adjust(s)
	})
	if err != nil {
		return nil, err
	}
	c := &Program{Program: p, of: o}
	o.progs.mu.Lock()
	defer o.progs.mu.Unlock()
	if o.progs.copies == nil {
		o.progs.copies = map[*Program]bool{}
	}
	o.progs.copies[c] = true
	return c, nil
}

// Misses is how often the kernel says it skipped one of the programs since
// Load. Whether it counts every miss depends on the kernel: see bpf/kernel.
func (o *Objects) Misses() (uint64, error) {
	o.progs.mu.Lock()
	defer o.progs.mu.Unlock()
	n := o.progs.missed
	var errs []error
	add := func(p *ebpf.Program) {
		st, err := p.Stats()
		if err != nil {
			errs = append(errs, fmt.Errorf("read program statistics: %w", err))
			return
		}
		n += st.RecursionMisses
	}
	for _, p := range o.progs.shared {
		add(p)
	}
	for p := range o.progs.copies {
		add(p.Program)
	}
	of, err := o.sets.misses()
	return n + of, errors.Join(append(errs, err)...)
}
