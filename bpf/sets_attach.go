package bpf

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
)

// setForm is one way to see a set: all of its hooks, or it is not that way.
type setForm struct {
	rung  string // "fentry", "kprobe", "rawTracepoint", "tracepoint": see Options.ForceSet
	typ   string // the probe type that the evidence says
	hooks []setHook
}

type setHook struct {
	prog   string
	kind   hookKind
	target string
	fresh  bool   // only for processes that have just become the container's
	or     string // a program for the same place, where the kernel refuses this one
	orAt   string // another name of the target, in newer kernels
	// without says what is not seen where the kernel refuses this hook; then the
	// others do. A way without this word needs all of its hooks.
	without string
}

type hookKind int

const (
	atFunction hookKind = iota // fentry or fexit, as the program says
	atKprobe
	atKretprobe
	atRawTracepoint
	atTracepoint // GROUP/NAME, by a program that needs no kernel types
)

// What a container's first program opens and maps in its execve, for the ways
// that would have seen it earlier, when it was not the container's yet.
var (
	firstMappings = setHook{prog: setsProgSetLibrariesExec, kind: atRawTracepoint, target: "sched_process_exec", fresh: true, or: setsProgSetLibrariesList}
	firstFile     = setHook{prog: setsProgSetFilesExec, kind: atRawTracepoint, target: "sched_process_exec", fresh: true}
)

const noHandles = "files opened by a handle are not seen"

// setForms are the ways to see each set, best first. docs/sets.md says what
// each of them sees and what it does not.
var setForms = [numSets][]setForm{
	SetExec: {
		{"rawTracepoint", "rawTracepoint", []setHook{{prog: setsProgSetExecRaw, kind: atRawTracepoint, target: "sched_process_exec"}}},
		{"tracepoint", "tracepoint", []setHook{{prog: bareProgBareExec, kind: atTracepoint, target: "sched/sched_process_exec"}}},
	},
	SetLibraries: {
		{"fentry", "fentry", []setHook{{prog: setsProgSetLibrariesFentry, kind: atFunction, target: "perf_event_mmap"}, firstMappings}},
		{"fentry", "fentry", []setHook{
			{prog: setsProgSetLibrariesFentry, kind: atFunction, target: "uprobe_mmap"},
			{prog: setsProgSetMprotectFentry, kind: atFunction, target: "security_file_mprotect"},
			firstMappings,
		}},
		{"kprobe", "kprobe", []setHook{{prog: setsProgSetLibrariesKprobe, kind: atKprobe, target: "perf_event_mmap"}, firstMappings}},
		{"kprobe", "kprobe", []setHook{
			{prog: setsProgSetLibrariesKprobe, kind: atKprobe, target: "uprobe_mmap"},
			{prog: setsProgSetMprotectKprobe, kind: atKprobe, target: "security_file_mprotect"},
			firstMappings,
		}},
		{"rawTracepoint", "rawTracepoint", []setHook{
			{prog: setsProgSetLibrariesCall, kind: atRawTracepoint, target: "sys_exit"},
			{prog: setsProgSetLibrariesExec, kind: atRawTracepoint, target: "sched_process_exec"},
		}},
	},
	SetSyscalls: {
		{"rawTracepoint", "rawTracepoint", []setHook{{prog: setsProgSetSyscallsRaw, kind: atRawTracepoint, target: "sys_enter"}}},
		{"tracepoint", "tracepoint", []setHook{{prog: bareProgBareSyscalls, kind: atTracepoint, target: "raw_syscalls/sys_enter"}}},
	},
	SetNetwork: {
		{"fentry", "fentry", []setHook{
			{prog: setsProgSetConnectFentry, kind: atFunction, target: "security_socket_connect"},
			{prog: setsProgSetBindFentry, kind: atFunction, target: "security_socket_bind"},
			{prog: setsProgSetSendFentry, kind: atFunction, target: "security_socket_sendmsg"},
			{prog: setsProgSetAcceptFentry, kind: atFunction, target: "security_sock_graft"},
		}},
		{"kprobe", "kprobe", []setHook{
			{prog: setsProgSetConnectKprobe, kind: atKprobe, target: "security_socket_connect"},
			{prog: setsProgSetBindKprobe, kind: atKprobe, target: "security_socket_bind"},
			{prog: setsProgSetSendKprobe, kind: atKprobe, target: "security_socket_sendmsg"},
			{prog: setsProgSetAcceptKprobe, kind: atKprobe, target: "security_sock_graft"},
		}},
		{"rawTracepoint", "rawTracepoint", []setHook{
			{prog: setsProgSetConnectRaw, kind: atRawTracepoint, target: "inet_sock_set_state"},
			{prog: setsProgSetNetworkEnter, kind: atRawTracepoint, target: "sys_enter"},
			{prog: setsProgSetNetworkCall, kind: atRawTracepoint, target: "sys_exit"},
		}},
		{"tracepoint", "tracepoint", []setHook{
			{prog: bareProgBareConnect, kind: atTracepoint, target: "sock/inet_sock_set_state"},
			{prog: bareProgBareNetworkEnter, kind: atTracepoint, target: "raw_syscalls/sys_enter"},
			{prog: bareProgBareNetworkExit, kind: atTracepoint, target: "raw_syscalls/sys_exit"},
		}},
	},
	SetFiles: {
		{"fentry", "fexit", []setHook{{prog: setsProgSetFilesFexit, kind: atFunction, target: "do_filp_open", orAt: "do_file_open"}, {prog: setsProgSetRootFexit, kind: atFunction, target: "do_file_open_root", without: noHandles}, firstFile}},
		{"kprobe", "kretprobe", []setHook{{prog: setsProgSetFilesKretprobe, kind: atKretprobe, target: "do_filp_open", orAt: "do_file_open"}, {prog: setsProgSetRootKretprobe, kind: atKretprobe, target: "do_file_open_root", without: noHandles}, firstFile}},
		{"rawTracepoint", "rawTracepoint", []setHook{
			{prog: setsProgSetFilesEnter, kind: atRawTracepoint, target: "sys_enter"},
			{prog: setsProgSetFilesCall, kind: atRawTracepoint, target: "sys_exit"},
			{prog: setsProgSetFilesExec, kind: atRawTracepoint, target: "sched_process_exec"},
		}},
		{"tracepoint", "tracepoint", []setHook{
			{prog: bareProgBareFilesEnter, kind: atTracepoint, target: "raw_syscalls/sys_enter"},
			{prog: bareProgBareFilesExit, kind: atTracepoint, target: "raw_syscalls/sys_exit"},
			{prog: bareProgBareFilesExec, kind: atTracepoint, target: "sched/sched_process_exec"},
		}},
	},
}

// setLinks is one set as this kernel shows it, for all containers. Its programs
// stay loaded: the verifier takes longer over them than attaching takes.
type setLinks struct {
	typ   string
	note  string // why it is not a better way
	refs  int    // containers
	idle  time.Time
	hooks []setHook // as this kernel takes them
	progs []*ebpf.Program
	links []link.Link // empty: not attached
}

// SetWay says how a set is seen.
type SetWay struct {
	Type string // probe type: fentry, fexit, kprobe, kretprobe, rawTracepoint or tracepoint
	Note string // why it is not by a better way; empty if it is the best
}

// ArmSet attaches what sees the set, unless it is attached, and says how it is
// seen. What this kernel does not offer is an error that says why for each way.
func (o *Objects) ArmSet(s Set) (SetWay, error) {
	h := &o.sets
	h.mu.Lock()
	defer h.mu.Unlock()
	l, err := h.arm(s)
	if err != nil {
		return SetWay{}, err
	}
	return SetWay{l.typ, l.note}, nil
}

func (h *setHooks) arm(s Set) (*setLinks, error) {
	if int(s) >= numSets {
		return nil, fmt.Errorf("arm: there is no %s", s)
	}
	if err := h.prepare(); err != nil {
		return nil, err
	}
	if l := h.attached[s]; l != nil {
		if len(l.links) > 0 {
			return l, nil
		}
		l.idle = time.Now()
		return l, l.attach()
	}
	var errs []error
	for _, f := range setForms[s] {
		if h.opts.ForceSet != "" && h.opts.ForceSet != f.rung {
			errs = append(errs, fmt.Errorf("%s: switched off by option", f.typ))
			continue
		}
		if err := offers(f.rung); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.typ, err))
			continue
		}
		l, err := h.take(f)
		if err == nil {
			if l.note != "" {
				errs = append(errs, errors.New(l.note))
			}
			if err := errors.Join(errs...); err != nil {
				l.note = strings.ReplaceAll(err.Error(), "\n", "; ")
			}
			h.attached[s] = l
			return l, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", f.typ, err))
	}
	return nil, fmt.Errorf("arm the set %s: %w", s, errors.Join(errs...))
}

// offers says why the kernel has nothing of that kind at all, before a program is
// verified in vain.
func offers(rung string) error {
	switch rung {
	case "fentry":
		if err := features.HaveProgramType(ebpf.Tracing); err != nil {
			return fmt.Errorf("this kernel has no trampolines: %w", err)
		}
	case "kprobe":
		var err error
		for _, file := range []string{"/sys/kernel/tracing/kprobe_events", "/sys/kernel/debug/tracing/kprobe_events", "/sys/bus/event_source/devices/kprobe/type"} {
			if _, err = os.Stat(file); err == nil {
				return nil
			}
		}
		return fmt.Errorf("this kernel has no kprobes: %w", err)
	}
	return nil
}

// take loads and attaches all of a form.
func (h *setHooks) take(f setForm) (_ *setLinks, err error) {
	l := &setLinks{typ: f.typ, idle: time.Now()}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	for _, k := range f.hooks {
		p, at, err := h.first(&k)
		if err != nil && k.without != "" {
			l.note = fmt.Sprintf("%s: %s", k.without, strings.ReplaceAll(err.Error(), "\n", "; "))
			continue
		}
		if err != nil {
			return nil, err
		}
		l.hooks, l.progs, l.links = append(l.hooks, k), append(l.progs, p), append(l.links, at)
	}
	return l, nil
}

// first loads and attaches the first of a hook's programs and names that this
// kernel takes, and leaves in the hook which they are.
func (h *setHooks) first(k *setHook) (*ebpf.Program, link.Link, error) {
	var errs []error
	for _, c := range []struct{ prog, target string }{{k.prog, k.target}, {k.or, k.target}, {k.prog, k.orAt}} {
		if c.prog == "" || c.target == "" {
			continue
		}
		try := *k
		try.prog, try.target = c.prog, c.target
		p, err := h.load(try)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		at, err := try.attach(p)
		if err == nil {
			*k = try
			return p, at, nil
		}
		errs = append(errs, fmt.Errorf("attach to %s: %w", c.target, err), p.Close())
	}
	return nil, nil, errors.Join(errs...)
}

// attach attaches every hook, or none.
func (l *setLinks) attach() error {
	for i, k := range l.hooks {
		at, err := k.attach(l.progs[i])
		if err != nil {
			return errors.Join(fmt.Errorf("attach to %s: %w", k.target, err), l.detach())
		}
		l.links = append(l.links, at)
	}
	return nil
}

func (h *setHooks) load(k setHook) (*ebpf.Program, error) {
	if k.kind == atTracepoint {
		if err := checkRecord(k.target); err != nil {
			return nil, err
		}
		return h.bare.load(k.prog, nil)
	}
	if k.prog == setsProgSetRootFexit {
		four, err := h.takesFour(k.target)
		if err != nil {
			return nil, err
		}
		if four {
			k.prog = setsProgSetRoot4Fexit
		}
	}
	return h.obj.load(k.prog, func(s *ebpf.CollectionSpec) error {
		if k.kind == atFunction {
			s.Programs[k.prog].AttachTo = k.target
		}
		return s.Variables[setsVarFreshOnly].Set(k.fresh)
	})
}

// takesFour reports whether a function of the kernel has four arguments, by the
// kernel's types: a program that takes one for the other reads nonsense.
func (h *setHooks) takesFour(function string) (bool, error) {
	types := h.opts.KernelTypes
	if types == nil {
		var err error
		if types, err = btf.LoadKernelSpec(); err != nil {
			return false, fmt.Errorf("how many arguments %s has: %w", function, err)
		}
	}
	var f *btf.Func
	if err := types.TypeByName(function, &f); err != nil {
		return false, fmt.Errorf("how many arguments %s has: %w", function, err)
	}
	proto, ok := f.Type.(*btf.FuncProto)
	if !ok || len(proto.Params) < 3 || len(proto.Params) > 4 {
		return false, fmt.Errorf("%s has neither three nor four arguments", function)
	}
	return len(proto.Params) == 4, nil
}

func (k setHook) attach(p *ebpf.Program) (link.Link, error) {
	switch k.kind {
	case atFunction:
		return link.AttachTracing(link.TracingOptions{Program: p})
	case atKprobe:
		return link.Kprobe(k.target, p, nil)
	case atKretprobe:
		return link.Kretprobe(k.target, p, nil)
	case atTracepoint:
		group, event, _ := strings.Cut(k.target, "/")
		return link.Tracepoint(group, event, p, nil)
	default:
		return link.AttachRawTracepoint(link.RawTracepointOptions{Name: k.target, Program: p})
	}
}

// records are where the records of tracepoints have what bare.bpf.c reads there.
var records = map[string]map[string]uint32{
	"sched/sched_process_exec": {"filename": 8},
	"raw_syscalls/sys_enter":   {"id": 8, "args": 16},
	"raw_syscalls/sys_exit":    {"id": 8, "ret": 16},
	"sock/inet_sock_set_state": {"newstate": 20, "dport": 26, "family": 28, "protocol": 30, "daddr": 36, "daddr_v6": 56},
}

// checkRecord refuses a tracepoint whose record is another than bare.bpf.c
// knows.
func checkRecord(target string) error {
	group, event, _ := strings.Cut(target, "/")
	for field, want := range records[target] {
		got, err := recordOffset(group, event, field)
		if err != nil {
			return fmt.Errorf("tracepoint %s: %w", target, err)
		}
		if got != want {
			return fmt.Errorf("tracepoint %s has %s at %d, and not at %d", target, field, got, want)
		}
	}
	return nil
}

func (l *setLinks) detach() error {
	var errs []error
	for _, k := range l.links {
		errs = append(errs, k.Close())
	}
	l.links = nil
	return errors.Join(errs...)
}

func (l *setLinks) close() error {
	errs := []error{l.detach()}
	for _, p := range l.progs {
		errs = append(errs, p.Close())
	}
	l.progs = nil
	return errors.Join(errs...)
}

// misses is what the kernel says it skipped of the set's programs.
func (l *setLinks) misses() (n uint64, err error) { return missesOf(l.progs) }

// SetMisses is how often the kernel says it skipped a program of the sets that
// are seen by this probe type, since Load. It does not have what a kretprobe
// misses for want of an instance.
func (o *Objects) SetMisses(typ string) (total uint64, err error) {
	h := &o.sets
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.attached {
		if l == nil || l.typ != typ {
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

// TrimSets detaches what no container has used for so long.
func (o *Objects) TrimSets(idle time.Duration) error {
	h := &o.sets
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, l := range h.attached {
		if l != nil && l.refs == 0 && time.Since(l.idle) >= idle {
			errs = append(errs, l.detach())
		}
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
		for _, name := range setMaps {
			errs = append(errs, h.obj.maps[name].Close())
		}
		h.obj.spec = nil
	}
	return errors.Join(errs...)
}
