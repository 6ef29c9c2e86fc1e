package probe

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/evidence"
)

// What can be wrong with a way to a place in the kernel.
var (
	errNoPlace     = errors.New("the kernel has no such place")
	errRefused     = errors.New("the kernel refuses a probe there")
	errUnsupported = errors.New("the kernel does not offer such probes")
)

// way is one way to a place in the kernel.
type way struct {
	typ    evidence.ProbeType
	attach attachHook
	exit   attachHook // to where what is entered there returns, if that can be seen
}

type attachHook func(obj *bpf.Objects, at bpf.At) (link.Link, *bpf.Program, error)

// kernelSide knows where the kernel says what of it can be probed.
type kernelSide struct {
	machine  Machine
	kallsyms string   // path
	pmu      string   // directory of event sources
	tracefs  []string // where it may be mounted
	debugfs  string
}

func hostKernel(m Machine) kernelSide {
	return kernelSide{
		machine: m, kallsyms: "/proc/kallsyms", pmu: "/sys/bus/event_source/devices",
		tracefs: []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"}, debugfs: "/sys/kernel/debug",
	}
}

// ways lists the ways to a place, best first: what was asked for, then what
// sees the same moment by other means. What is attached is what is said.
func (k kernelSide) ways(at hookKey) []way {
	entry := at.requested == evidence.Kprobe || at.requested == evidence.Fentry
	switch at.requested {
	case evidence.RawTracepoint:
		return []way{k.rawTracepoint(at.name)}
	case evidence.Tracepoint:
		group, name, _ := strings.Cut(at.name, ":")
		out := []way{k.tracepoint(group, name)}
		if call, ok := strings.CutPrefix(name, "sys_enter_"); ok && group == "syscalls" {
			return append(out, k.rawSyscall(call, false))
		} else if call, ok := strings.CutPrefix(name, "sys_exit_"); ok && group == "syscalls" {
			return append(out, k.rawSyscall(call, true))
		}
		return append(out, k.rawTracepoint(name))
	case evidence.Kprobe, evidence.Kretprobe, evidence.Fentry, evidence.Fexit:
		function := at.name
		if at.syscall {
			function = k.machine.syscallPrefix + k.machine.entryName(at.name)
		}
		probe, trampoline := k.kprobe(function, !entry), k.fentry(function, !entry)
		if entry {
			probe.exit, trampoline.exit = k.kprobe(function, true).attach, k.fentry(function, true).attach
		}
		out := []way{probe, trampoline}
		if at.requested == evidence.Fentry || at.requested == evidence.Fexit {
			out = []way{trampoline, probe}
		}
		if at.syscall {
			name := k.machine.entryName(at.name)
			event, raw := k.tracepoint("syscalls", "sys_enter_"+name), k.rawSyscall(at.name, false)
			returns, rawReturns := k.tracepoint("syscalls", "sys_exit_"+name), k.rawSyscall(at.name, true)
			if entry {
				event.exit, raw.exit = returns.attach, rawReturns.attach
			} else {
				event, raw = returns, rawReturns
			}
			out = append(out, event, raw)
		}
		return out
	}
	return nil
}

func (k kernelSide) kprobe(function string, ret bool) way {
	w := way{typ: evidence.Kprobe}
	attach := link.Kprobe
	if ret {
		w.typ, attach = evidence.Kretprobe, link.Kretprobe
	}
	w.attach = func(obj *bpf.Objects, at bpf.At) (link.Link, *bpf.Program, error) {
		if err := k.haveKprobes(); err != nil {
			return nil, nil, err
		}
		if err := k.haveFunction(function); err != nil {
			return nil, nil, err
		}
		p, err := obj.Kprobe(at)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", errUnsupported, err)
		}
		opts := &link.KprobeOptions{}
		if p.Cookie {
			opts.Cookie = at.Cookie()
		}
		l, err := attach(function, p.Program, opts)
		return linked(l, p, err)
	}
	return w
}

func (k kernelSide) fentry(function string, ret bool) way {
	w := way{typ: evidence.Fentry}
	kind := ebpf.AttachTraceFEntry
	if ret {
		w.typ, kind = evidence.Fexit, ebpf.AttachTraceFExit
	}
	w.attach = func(obj *bpf.Objects, at bpf.At) (link.Link, *bpf.Program, error) {
		if err := k.haveFunction(function); err != nil {
			return nil, nil, err
		}
		p, err := obj.Function(ret, function, at)
		switch {
		case errors.Is(err, btf.ErrNotFound) && k.kernelBTF() == nil:
			return nil, nil, fmt.Errorf("%w: it has no type information of the function: %w", errRefused, err)
		case err != nil:
			return nil, nil, fmt.Errorf("%w: %w", errUnsupported, err)
		}
		l, err := link.AttachTracing(link.TracingOptions{Program: p.Program, AttachType: kind})
		return linked(l, p, err)
	}
	return w
}

func (k kernelSide) tracepoint(group, name string) way {
	return way{typ: evidence.Tracepoint, attach: func(obj *bpf.Objects, at bpf.At) (link.Link, *bpf.Program, error) {
		if err := k.haveEvent(group, name); err != nil {
			return nil, nil, err
		}
		p, err := obj.Tracepoint(at)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", errUnsupported, err)
		}
		opts := &link.TracepointOptions{}
		if p.Cookie {
			opts.Cookie = at.Cookie()
		}
		l, err := link.Tracepoint(group, name, p.Program, opts)
		return linked(l, p, err)
	}}
}

func (k kernelSide) rawTracepoint(name string) way {
	return way{typ: evidence.RawTracepoint, attach: func(obj *bpf.Objects, at bpf.At) (link.Link, *bpf.Program, error) {
		p, err := obj.RawTracepoint(at)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", errUnsupported, err)
		}
		l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: name, Program: p.Program})
		return linked(l, p, err)
	}}
}

// rawSyscall sees one system call at the raw tracepoint of them all.
func (k kernelSide) rawSyscall(call string, exit bool) way {
	return way{typ: evidence.RawTracepoint, attach: func(obj *bpf.Objects, at bpf.At) (link.Link, *bpf.Program, error) {
		number, ok := bpf.SyscallNumber(call)
		if !ok {
			return nil, nil, fmt.Errorf("%w: no system call %s is known for this machine", errNoPlace, call)
		}
		p, err := obj.Syscall(exit, number, at)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", errUnsupported, err)
		}
		name := "sys_enter"
		if exit {
			name = "sys_exit"
		}
		l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: name, Program: p.Program})
		return linked(l, p, err)
	}}
}

// linked is the end of each way: the error by what the caller decides by.
func linked(l link.Link, p *bpf.Program, err error) (link.Link, *bpf.Program, error) {
	if err == nil {
		return l, p, nil
	}
	_ = p.Close() // it was attached to nothing
	var errno unix.Errno
	switch {
	case errors.Is(err, link.ErrNotSupported):
		err = fmt.Errorf("%w: %w", errUnsupported, err)
	case errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("%w: %w", errNoPlace, err)
	case !errors.As(err, &errno):
	case errno == unix.EPERM || errno == unix.EACCES || errno == unix.ENOSYS:
		err = fmt.Errorf("%w: %w", errUnsupported, err)
	case refusesInstruction(err) || errno == unix.EADDRNOTAVAIL || errno == unix.EILSEQ || errno == unix.EBUSY || errno == unix.ERANGE:
		err = fmt.Errorf("%w: %w", errRefused, err)
	}
	return nil, nil, err
}

func (k kernelSide) haveKprobes() error {
	_, err := os.Stat(filepath.Join(k.pmu, "kprobe/type"))
	if err == nil {
		return nil
	}
	for _, dir := range k.tracefs {
		if _, err := os.Stat(filepath.Join(dir, "kprobe_events")); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%w: neither perf nor tracefs has kprobes: %w", errUnsupported, err)
}

func (k kernelSide) kernelBTF() error {
	_, err := os.Stat("/sys/kernel/btf/vmlinux")
	return err
}

func (k kernelSide) haveEvent(group, name string) error {
	found := false
	for _, dir := range k.tracefs {
		events, err := os.Stat(filepath.Join(dir, "events"))
		if err != nil || !events.IsDir() {
			continue
		}
		found = true
		if _, err := os.Stat(filepath.Join(dir, "events", group, name, "id")); err == nil {
			return nil
		}
	}
	if !found {
		return fmt.Errorf("%w: tracefs is not mounted", errUnsupported)
	}
	return fmt.Errorf("%w: tracefs has no event %s:%s", errNoPlace, group, name)
}

// kprobesOff says whether somebody switched all kprobes off, if it can be seen.
func (k kernelSide) kprobesOff() bool {
	b, err := os.ReadFile(filepath.Join(k.debugfs, "kprobes/enabled"))
	return err == nil && strings.TrimSpace(string(b)) == "0"
}

// haveFunction looks the function up in the kernel's own table. A name that
// several functions bear cannot be armed: the kernel would take one of them, or
// refuse. Where the table cannot be read, attaching will tell.
func (k kernelSide) haveFunction(name string) error {
	f, err := os.Open(k.kallsyms)
	if err != nil {
		return nil
	}
	defer f.Close()
	n, total := 0, 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		total++
		// address, kind, name, and the module in brackets
		rest := lines.Bytes()
		if at := bytes.IndexByte(rest, ' '); at >= 0 && len(rest) > at+3 && bytes.IndexByte([]byte("tTwW"), rest[at+1]) >= 0 {
			word, _, _ := bytes.Cut(rest[at+3:], []byte("\t"))
			if string(word) == name {
				n++
			}
		}
	}
	switch {
	case total == 0 || n == 1:
		return nil
	case n == 0:
		return fmt.Errorf("%w: it has no function %s", errNoPlace, name)
	}
	return fmt.Errorf("%w: %d functions of it are named %s", errRefused, n, name)
}
