package kernel

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// rung is one way to attach a probe of some type.
type rung struct {
	mechanism Mechanism
	cookie    bool
	attach    func(trial uint32) (io.Closer, error)
}

// trial is a probe type that is being tried: its ladder, what was taken, and
// what must make its program run.
type trial struct {
	name  string
	rungs []rung
	fires func(*trials) error // nil where a run of the subject does it

	taken  int // index of the rung, or -1
	errs   []error
	closer io.Closer
}

// climb tries the rungs, best first, and stops at the first that holds.
func (t *trial) climb(number uint32) {
	t.taken = -1
	for i, r := range t.rungs {
		c, err := r.attach(number)
		if err == nil {
			t.taken, t.closer = i, c
			return
		}
		t.errs = append(t.errs, err)
	}
}

// worse says why the rungs above the one that was taken did not hold.
func (t *trial) worse() string {
	var why, names []string
	for i, err := range t.errs {
		r := t.rungs[i]
		if t.taken >= 0 && r.mechanism == t.rungs[t.taken].mechanism {
			continue // the same way without a cookie: Cookie says why
		}
		if name := r.mechanism.title(); !slices.Contains(names, name) {
			names = append(names, name)
		}
		if i+1 < len(t.errs) && text(t.errs[i+1]) == text(err) {
			continue // for the same reason as the next
		}
		why = append(why, strings.Join(names, ", ")+": "+text(err))
		names = nil
	}
	return strings.Join(why, "; ")
}

// text is an error in few words, with the name of its errno, which is what one
// looks for in mailing lists.
func text(err error) string {
	out := err.Error()
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		name := unix.ErrnoName(errno)
		if errno == 524 {
			name = "ENOTSUPP" // the kernel's own, which it should not let out
		}
		if name != "" && !strings.Contains(out, name) {
			out += " (" + name + ")"
		}
	}
	return out
}

// cause is the error at the bottom, where the kernel's word is. What a library
// says on the way up tells of its own names, which differ from call to call.
func cause(err error) error {
	for {
		if path, ok := err.(*fs.PathError); ok {
			return path
		}
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// trials are the trials of one look.
type trials struct {
	tally   *tally
	subject *subject
	all     []*trial
}

// hookFunction is a kernel function that nobody calls but who asks for a test
// run of a network program: as harmless a target as there is, in every kernel
// with eBPF and networking, and we can make it run.
const hookFunction = "bpf_prog_test_run_skb"

// hookEvent is a tracepoint that the subject's own start makes fire.
const hookGroup, hookEvent = "sched", "sched_process_exec"

func closers(l link.Link, prog *ebpf.Program) io.Closer {
	return closeBoth{l, prog}
}

type closeBoth struct{ a, b io.Closer }

func (c closeBoth) Close() error { return errors.Join(c.a.Close(), c.b.Close()) }

// attaching loads the trial's program and attaches it.
func (ts *trials) attaching(spec ebpf.ProgramSpec, target string, cookie, stack bool, attach func(*ebpf.Program) (link.Link, error)) func(uint32) (io.Closer, error) {
	return func(number uint32) (io.Closer, error) {
		prog, err := ts.tally.load(spec, number, cookie, stack)
		if err != nil {
			return nil, err
		}
		l, err := attach(prog)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("attach to %s: %w", target, cause(err)), prog.Close())
		}
		return closers(l, prog), nil
	}
}

// cookieOf is what a program that is attached with a cookie must see.
const cookieOf = 0x70726f62

// user makes the ladder of a probe on the subject.
func (ts *trials) user(name string, offset uint64, ret bool, semaphore uint64) *trial {
	multi := ebpf.ProgramSpec{Type: ebpf.Kprobe, AttachType: ebpf.AttachTraceUprobeMulti}
	single := ebpf.ProgramSpec{Type: ebpf.Kprobe}
	open := func(attach func(*link.Executable) (link.Link, error)) (link.Link, error) {
		ex, err := link.OpenExecutable(ts.subject.path)
		if err != nil {
			return nil, err
		}
		return attach(ex)
	}
	perf := func(cookie uint64) func(*ebpf.Program) (link.Link, error) {
		return func(p *ebpf.Program) (link.Link, error) {
			return open(func(ex *link.Executable) (link.Link, error) {
				o := &link.UprobeOptions{Address: offset, RefCtrOffset: semaphore, Cookie: cookie}
				if ret {
					return ex.Uretprobe("", p, o)
				}
				return ex.Uprobe("", p, o)
			})
		}
	}
	perfLink, perfEvent := perfMechanisms("uprobe")
	stack := name == "uprobe"
	return &trial{name: name, rungs: []rung{
		{UprobeMulti, true, ts.attaching(multi, "a program of our own", true, stack, func(p *ebpf.Program) (link.Link, error) {
			return open(func(ex *link.Executable) (link.Link, error) {
				o := &link.UprobeMultiOptions{Addresses: []uint64{offset}, Cookies: []uint64{cookieOf}}
				if semaphore != 0 {
					o.RefCtrOffsets = []uint64{semaphore}
				}
				if ret {
					return ex.UretprobeMulti(nil, p, o)
				}
				return ex.UprobeMulti(nil, p, o)
			})
		})},
		{perfLink, true, ts.attaching(single, "a program of our own", true, stack, perf(cookieOf))},
		{perfEvent, false, ts.attaching(single, "a program of our own", false, stack, perf(0))},
	}}
}

// kernelProbe makes the ladder of a kprobe or kretprobe.
func (ts *trials) kernelProbe(name string, ret bool) *trial {
	attach := func(cookie uint64) func(*ebpf.Program) (link.Link, error) {
		return func(p *ebpf.Program) (link.Link, error) {
			o := &link.KprobeOptions{Cookie: cookie}
			if ret {
				return link.Kretprobe(hookFunction, p, o)
			}
			return link.Kprobe(hookFunction, p, o)
		}
	}
	spec := ebpf.ProgramSpec{Type: ebpf.Kprobe}
	perfLink, perfEvent := perfMechanisms("kprobe")
	return &trial{name: name, fires: (*trials).callHook, rungs: []rung{
		{perfLink, true, ts.attaching(spec, hookFunction, true, false, attach(cookieOf))},
		{perfEvent, false, ts.attaching(spec, hookFunction, false, false, attach(0))},
	}}
}

// trampoline makes the ladder of fentry and fexit.
func (ts *trials) trampoline(name string, at ebpf.AttachType) *trial {
	spec := ebpf.ProgramSpec{Type: ebpf.Tracing, AttachType: at, AttachTo: hookFunction}
	attach := func(cookie uint64) func(*ebpf.Program) (link.Link, error) {
		return func(p *ebpf.Program) (link.Link, error) {
			return link.AttachTracing(link.TracingOptions{Program: p, AttachType: at, Cookie: cookie})
		}
	}
	return &trial{name: name, fires: (*trials).callHook, rungs: []rung{
		{Trampoline, true, ts.attaching(spec, hookFunction, true, false, attach(cookieOf))},
		{Trampoline, false, ts.attaching(spec, hookFunction, false, false, attach(0))},
	}}
}

func (ts *trials) tracepoint() *trial {
	attach := func(cookie uint64) func(*ebpf.Program) (link.Link, error) {
		return func(p *ebpf.Program) (link.Link, error) {
			return link.Tracepoint(hookGroup, hookEvent, p, &link.TracepointOptions{Cookie: cookie})
		}
	}
	spec := ebpf.ProgramSpec{Type: ebpf.TracePoint}
	return &trial{name: "tracepoint", rungs: []rung{
		{PerfLink, true, ts.attaching(spec, hookGroup+":"+hookEvent, true, false, attach(cookieOf))},
		{PerfEvent, false, ts.attaching(spec, hookGroup+":"+hookEvent, false, false, attach(0))},
	}}
}

func (ts *trials) raw(name, event string) *trial {
	return &trial{name: name, rungs: []rung{
		{RawTracepoint, false, ts.attaching(ebpf.ProgramSpec{Type: ebpf.RawTracepoint}, event, false, false, func(p *ebpf.Program) (link.Link, error) {
			return link.AttachRawTracepoint(link.RawTracepointOptions{Name: event, Program: p})
		})},
	}}
}

// callHook makes the kernel call hookFunction.
func (ts *trials) callHook() error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "probity_call", Type: ebpf.SocketFilter, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return fmt.Errorf("load a program to test: %w", err)
	}
	defer prog.Close()
	if _, err := prog.Run(&ebpf.RunOptions{Data: make([]byte, 64), Repeat: 1}); err != nil {
		return fmt.Errorf("run %s: %w", hookFunction, err)
	}
	return nil
}

// climb attaches all, side by side: most of the time goes into waiting for the
// kernel's grace periods.
func (ts *trials) climb() {
	var wg sync.WaitGroup
	for i, t := range ts.all {
		wg.Go(func() { t.climb(uint32(i)) })
	}
	wg.Wait()
}

// close detaches all.
func (ts *trials) close() error {
	errs := make([]error, len(ts.all))
	var wg sync.WaitGroup
	for i, t := range ts.all {
		if t.closer != nil {
			wg.Go(func() { errs[i] = t.closer.Close() })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}
