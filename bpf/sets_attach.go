package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// setForm is one way to see a set: all of its hooks, or it is not that way.
type setForm struct {
	rung  string // "fentry", "kprobe", "rawTracepoint": see Options.ForceSet
	typ   string // the probe type that the evidence says
	hooks []setHook
}

type setHook struct {
	prog   string
	kind   hookKind
	target string
}

type hookKind int

const (
	atFunction hookKind = iota // fentry or fexit, as the program says
	atKprobe
	atKretprobe
	atRawTracepoint
)

// setForms are the ways to see each set, best first. docs/sets.md says what
// each of them sees and what it does not.
var setForms = [numSets][]setForm{
	SetExec: {
		{"rawTracepoint", "rawTracepoint", []setHook{{setsProgSetExecRaw, atRawTracepoint, "sched_process_exec"}}},
	},
	SetLibraries: {
		{"fentry", "fentry", []setHook{{setsProgSetLibrariesFentry, atFunction, "perf_event_mmap"}}},
		{"kprobe", "kprobe", []setHook{{setsProgSetLibrariesKprobe, atKprobe, "perf_event_mmap"}}},
		{"rawTracepoint", "rawTracepoint", []setHook{
			{setsProgSetLibrariesCall, atRawTracepoint, "sys_exit"},
			{setsProgSetLibrariesExec, atRawTracepoint, "sched_process_exec"},
		}},
	},
	SetSyscalls: {
		{"rawTracepoint", "rawTracepoint", []setHook{{setsProgSetSyscallsRaw, atRawTracepoint, "sys_enter"}}},
	},
	SetNetwork: {
		{"fentry", "fentry", []setHook{
			{setsProgSetConnectFentry, atFunction, "security_socket_connect"},
			{setsProgSetBindFentry, atFunction, "security_socket_bind"},
			{setsProgSetSendFentry, atFunction, "security_socket_sendmsg"},
			{setsProgSetAcceptFentry, atFunction, "security_sock_graft"},
		}},
		{"kprobe", "kprobe", []setHook{
			{setsProgSetConnectKprobe, atKprobe, "security_socket_connect"},
			{setsProgSetBindKprobe, atKprobe, "security_socket_bind"},
			{setsProgSetSendKprobe, atKprobe, "security_socket_sendmsg"},
			{setsProgSetAcceptKprobe, atKprobe, "security_sock_graft"},
		}},
		{"rawTracepoint", "rawTracepoint", []setHook{
			{setsProgSetConnectRaw, atRawTracepoint, "inet_sock_set_state"},
			{setsProgSetNetworkCall, atRawTracepoint, "sys_exit"},
		}},
	},
	SetFiles: {
		{"fentry", "fexit", []setHook{{setsProgSetFilesFexit, atFunction, "do_filp_open"}}},
		{"kprobe", "kretprobe", []setHook{{setsProgSetFilesKretprobe, atKretprobe, "do_filp_open"}}},
		{"rawTracepoint", "rawTracepoint", []setHook{
			{setsProgSetFilesCall, atRawTracepoint, "sys_exit"},
			{setsProgSetFilesExec, atRawTracepoint, "sched_process_exec"},
		}},
	},
}

// setLinks is one set that is armed, for all containers.
type setLinks struct {
	typ   string
	refs  int // containers
	progs []*ebpf.Program
	links []link.Link
}

// ArmSet attaches what sees the set, unless it is attached, and says of which
// probe type that is: fentry, fexit, kprobe, kretprobe or rawTracepoint. What
// this kernel does not offer is an error that says why for each way.
func (o *Objects) ArmSet(s Set) (typ string, err error) {
	if int(s) >= numSets {
		return "", fmt.Errorf("arm: there is no %s", s)
	}
	h := &o.sets
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.prepare(); err != nil {
		return "", err
	}
	if l := h.attached[s]; l != nil {
		return l.typ, nil
	}
	var errs []error
	for _, f := range setForms[s] {
		if h.opts.ForceSet != "" && h.opts.ForceSet != f.rung {
			errs = append(errs, fmt.Errorf("%s: switched off by option", f.typ))
			continue
		}
		l, err := h.attach(f)
		if err == nil {
			h.attached[s] = l
			return l.typ, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", f.typ, err))
	}
	return "", fmt.Errorf("arm the set %s: %w", s, errors.Join(errs...))
}

func (h *setHooks) attach(f setForm) (_ *setLinks, err error) {
	l := &setLinks{typ: f.typ}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	for _, k := range f.hooks {
		p, err := h.obj.load(k.prog, func(s *ebpf.CollectionSpec) error {
			if k.kind == atFunction {
				s.Programs[k.prog].AttachTo = k.target
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		l.progs = append(l.progs, p)
		at, err := k.attach(p)
		if err != nil {
			return nil, fmt.Errorf("attach to %s: %w", k.target, err)
		}
		l.links = append(l.links, at)
	}
	return l, nil
}

func (k setHook) attach(p *ebpf.Program) (link.Link, error) {
	switch k.kind {
	case atFunction:
		return link.AttachTracing(link.TracingOptions{Program: p})
	case atKprobe:
		return link.Kprobe(k.target, p, nil)
	case atKretprobe:
		return link.Kretprobe(k.target, p, nil)
	default:
		return link.AttachRawTracepoint(link.RawTracepointOptions{Name: k.target, Program: p})
	}
}

func (l *setLinks) close() error {
	var errs []error
	for _, k := range l.links {
		errs = append(errs, k.Close())
	}
	for _, p := range l.progs {
		errs = append(errs, p.Close())
	}
	l.links, l.progs = nil, nil
	return errors.Join(errs...)
}

// misses is what the kernel says it skipped of the set's programs.
func (l *setLinks) misses() (n uint64, err error) {
	for _, p := range l.progs {
		st, err := p.Stats()
		if err != nil {
			return n, fmt.Errorf("read program statistics: %w", err)
		}
		n += st.RecursionMisses
	}
	return n, nil
}

// SetMisses is how often the kernel says it skipped a program of sets since
// Load. It does not count what a kretprobe misses for want of an instance.
func (o *Objects) SetMisses() (uint64, error) {
	h := &o.sets
	h.mu.Lock()
	defer h.mu.Unlock()
	total := h.missed
	for _, l := range h.attached {
		if l == nil {
			continue
		}
		n, err := l.misses()
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// TrimSets detaches what no container uses.
func (o *Objects) TrimSets() error {
	h := &o.sets
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for s, l := range h.attached {
		if l == nil || l.refs > 0 {
			continue
		}
		n, err := l.misses()
		h.missed += n
		errs = append(errs, err, l.close())
		h.attached[s] = nil
	}
	return errors.Join(errs...)
}

// close detaches everything and forgets every container.
func (h *setHooks) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for s, l := range h.attached {
		if l != nil {
			errs = append(errs, l.close())
			h.attached[s] = nil
		}
	}
	for id, room := range h.rooms {
		errs = append(errs, h.forget(id, room))
		delete(h.rooms, id)
	}
	if h.obj.spec != nil {
		for _, name := range []string{setsMapSetStates, setsMapSetEntries, setsMapDrafts} {
			errs = append(errs, h.obj.maps[name].Close())
		}
		h.obj.spec = nil
	}
	return errors.Join(errs...)
}
