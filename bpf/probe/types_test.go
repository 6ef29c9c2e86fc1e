package probe

import (
	"debug/elf"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/evidence"
	"probity/tests/need"
)

// kernelPlan is the plan for probes on the kernel.
func kernelPlan(probes ...policy.Probe) Plan { return MakePlan(probes, nil, Host()) }

func (b *box) armPlan(e *Engine, p Plan) *Handle {
	b.t.Helper()
	h, err := e.Arm(b.t.Context(), b.target(), p)
	must(b.t, err)
	b.t.Cleanup(func() { must(b.t, h.Close()) })
	return h
}

// TestEveryProbeType arms each type on something real, causes it a number of
// times, and reads that number.
func TestEveryProbeType(t *testing.T) {
	const n = 7
	getppid := Host().syscallPrefix + "getppid"
	function := func(typ string) policy.Probe {
		return policy.Probe{ID: "p", Type: typ, Functions: []string{getppid}}
	}
	call := func(typ string) policy.Probe {
		return policy.Probe{ID: "p", Type: typ, Syscalls: []string{"getppid"}}
	}
	event := func(typ, name string) policy.Probe { return policy.Probe{ID: "p", Type: typ, Event: name} }
	for _, c := range []struct {
		name  string
		probe policy.Probe
		arg   string // of the target, given n times
		// types are what may be attached, best first. Where none of them is
		// offered the site is kernelUnsupported.
		types []evidence.ProbeType
	}{
		{"uprobe", symbols("hello"), "hello", []evidence.ProbeType{evidence.Uprobe}},
		{"uretprobe", policy.Probe{ID: "p", Type: "uretprobe", File: "/bin/target", Symbols: []string{"hello"}}, "hello", []evidence.ProbeType{evidence.Uretprobe}},
		{"kprobe", function("kprobe"), "getppid", []evidence.ProbeType{evidence.Kprobe, evidence.Fentry}},
		{"kretprobe", function("kretprobe"), "getppid", []evidence.ProbeType{evidence.Kretprobe, evidence.Fexit}},
		{"fentry", function("fentry"), "getppid", []evidence.ProbeType{evidence.Fentry, evidence.Kprobe}},
		{"fexit", function("fexit"), "getppid", []evidence.ProbeType{evidence.Fexit, evidence.Kretprobe}},
		{"kprobe on a system call", call("kprobe"), "getppid", []evidence.ProbeType{evidence.Kprobe, evidence.Fentry, evidence.Tracepoint, evidence.RawTracepoint}},
		{"kretprobe on a system call", call("kretprobe"), "getppid", []evidence.ProbeType{evidence.Kretprobe, evidence.Fexit, evidence.Tracepoint, evidence.RawTracepoint}},
		{"tracepoint", event("tracepoint", "task:task_rename"), "rename", []evidence.ProbeType{evidence.Tracepoint, evidence.RawTracepoint}},
		{"tracepoint of a system call", event("tracepoint", "syscalls:sys_enter_getppid"), "getppid", []evidence.ProbeType{evidence.Tracepoint, evidence.RawTracepoint}},
		{"rawTracepoint", event("rawTracepoint", "task_rename"), "rename", []evidence.ProbeType{evidence.RawTracepoint}},
	} {
		for rung, o := range rungs {
			if rung == "single" && c.probe.File == "" {
				continue // it differs for files only
			}
			t.Run(c.name+"/"+rung, func(t *testing.T) {
				lower := newLower(t)
				caller, other := newBox(t, lower), newBox(t, lower)
				e := newEngine(t, o, Config{})
				h, h2 := caller.arm(e, c.probe), other.arm(e, c.probe)
				s := h.Sites[0]
				// The best that bpf/kernel found this kernel to offer, by
				// attaching it elsewhere, must be what is used here.
				best := slices.IndexFunc(c.types, func(p evidence.ProbeType) bool { return e.cfg.Kernel.Type(string(p)).Supported })
				if best < 0 {
					if s.Armed || s.Reason != evidence.KernelUnsupported || s.Detail == "" {
						t.Errorf("nothing is offered: %+v", s)
					}
					return
				}
				if wanted := string(c.types[best]); s.Requested == c.types[best] && s.Type != s.Requested && strings.HasSuffix(s.Detail, wanted+" "+getppid+" not supported") {
					need.Feature(t, "trampoline_without_arguments", errors.New(s.Detail)) // another function is attached to by the conformance run
				}
				if !s.Armed || s.Type != c.types[best] {
					t.Fatalf("armed %v as %q, %s is offered: %s %s", s.Armed, s.Type, c.types[best], s.Reason, s.Detail)
				}
				if (s.Type != s.Requested) != (s.Detail != "") {
					t.Errorf("asked for %s, got %s, explained by %q", s.Requested, s.Type, s.Detail)
				}
				if st := e.Stats(); st.Files+st.Hooks != 1 {
					t.Errorf("%+v for one place and probe", st)
				}
				caller.run(nil, slices.Repeat([]string{c.arg}, n)...)
				other.run(nil)
				for h, want := range map[*Handle]uint64{h: n, h2: 0} {
					if got, err := h.Counter(s); err != nil || got.Count != want {
						t.Errorf("counted %d, %v; want %d", got.Count, err, want)
					}
					if tr := h.Check(); len(tr) != 0 {
						t.Errorf("troubles %v", tr)
					}
				}
			})
		}
	}
}

// Each way to a place, whether or not a better one is there.
func TestEachWay(t *testing.T) {
	k := hostKernel(Host())
	for name, w := range map[string]way{
		"tracepoint":      k.tracepoint("syscalls", "sys_enter_getppid"),
		"raw tracepoint":  k.rawSyscall("getppid", false),
		"tracepoint exit": k.tracepoint("syscalls", "sys_exit_getppid"),
		"raw exit":        k.rawSyscall("getppid", true),
	} {
		t.Run(name, func(t *testing.T) {
			need.Tracefs(t)
			b := newBox(t, newLower(t))
			e := newEngine(t, bpf.Options{}, Config{})
			h := b.armPlan(e, Plan{})
			l, p, err := w.attach(e.obj, bpf.At{Site: 77})
			must(t, err)
			defer p.Close()
			defer l.Close()
			must(t, e.obj.PutSlots(b.id, []bpf.Slot{{Site: 77}}))
			b.run(nil, "getppid", "getppid", "rename")
			c, err := h.Counter(Site{ID: 77})
			must(t, err)
			if c.Count != 2 {
				t.Errorf("counted %d, want 2", c.Count)
			}
			must(t, e.obj.DeleteSlots(b.id, []uint32{77}))
		})
	}
}

// Before its first execve a process in the cgroup is the runtime's: os/exec's
// child duplicates its descriptors there, and the program never does.
func TestRuntimeIsNotCounted(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.armPlan(e, kernelPlan(policy.Probe{ID: "p", Type: "kprobe", Syscalls: []string{"dup3", "getppid"}}))
	b.run(nil, "getppid")
	for i, want := range []uint64{0, 1} {
		if c, err := h.Counter(h.Sites[i]); err != nil || c.Count != want {
			t.Errorf("%s: counted %d, %v; want %d (%+v)", h.Sites[i].Function, c.Count, err, want, h.Sites[i])
		}
	}
}

// What the kernel does not have says so, for each way to ask.
func TestNoSuchPlace(t *testing.T) {
	need.Tracefs(t)
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	function := []string{"no_such_function_here"}
	h := b.armPlan(e, kernelPlan(
		policy.Probe{ID: "a", Type: "tracepoint", Event: "sched:no_such_event"},
		policy.Probe{ID: "b", Type: "rawTracepoint", Event: "no_such_event"},
		policy.Probe{ID: "c", Type: "tracepoint", Event: "syscalls:sys_enter_nothing"},
		policy.Probe{ID: "d", Type: "kprobe", Functions: function},
		policy.Probe{ID: "e", Type: "fexit", Functions: function},
		policy.Probe{ID: "f", Type: "kprobe", Syscalls: []string{"nothing"}},
	))
	for _, s := range h.Sites {
		if s.Armed || s.Reason != evidence.SymbolNotFound {
			t.Errorf("%s: %+v", s.Probe.ID, s)
		}
	}
}

// A marker that its program only passes while somebody listens.
func TestSemaphore(t *testing.T) {
	for rung, o := range rungs {
		t.Run(rung, func(t *testing.T) {
			lower := newLower(t)
			b := newBox(t, lower)
			e := newEngine(t, o, Config{})
			path := filepath.Join(lower, "bin/target")
			marker, semaphore := fileOffset(t, path, "marker"), fileOffset(t, path, "semaphore")
			plan := b.plan(policy.Probe{ID: "p", Type: "usdt", File: "/bin/target", Symbols: []string{"hello"}})
			s := &plan.Sites[0]
			s.Offset, s.Semaphore = marker, semaphore
			b.run(nil, "marked") // nobody listens
			h := b.armPlan(e, plan)
			b.run(nil, "marked", "marked")
			if s := h.Sites[0]; !s.Armed || s.Type != evidence.USDT {
				t.Fatalf("%+v", s)
			}
			if c, err := h.Counter(h.Sites[0]); err != nil || c.Count != 2 {
				t.Errorf("counted %d, %v", c.Count, err)
			}
		})
	}
}

// The kernel gives one place one semaphore, or none. A second probe that has
// another is refused as long as the first is there, and not for good.
func TestOnePlaceTwoSemaphores(t *testing.T) {
	need.Machine(t, "amd64")
	lower := newLower(t)
	one, other := newBox(t, lower), newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{})
	path := filepath.Join(lower, "bin/target")
	marker, semaphore := fileOffset(t, path, "marker"), fileOffset(t, path, "semaphore")
	plan := func(b *box, id string, semaphore uint64) Plan {
		p := b.plan(policy.Probe{ID: id, Type: "usdt", File: "/bin/target", Symbols: []string{"hello"}})
		p.Sites[0].Offset, p.Sites[0].Semaphore = marker, semaphore
		return p
	}
	h1 := one.armPlan(e, plan(one, "with", semaphore))
	h2 := other.armPlan(e, plan(other, "without", 0))
	if s := h2.Sites[0]; s.Armed || s.Reason != evidence.AttachFailed || !strings.Contains(s.Detail, "semaphore") {
		t.Errorf("the second: %+v", s)
	}
	must(t, h1.Close())
	for k, s := range e.files {
		if k.probe == "with" {
			delete(e.files, k)
			must(t, s.close())
		}
	}
	third := newBox(t, lower)
	if s := third.armPlan(e, plan(third, "without", 0)).Sites[0]; !s.Armed {
		t.Errorf("after the first has gone: %+v", s)
	}
}

// fileOffset returns the offset in the file at which a symbol's bytes are.
func fileOffset(t *testing.T, path, name string) uint64 {
	t.Helper()
	f, err := elf.Open(path)
	must(t, err)
	defer f.Close()
	all, err := f.Symbols()
	must(t, err)
	for _, s := range all {
		if s.Name != name {
			continue
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_LOAD && p.Vaddr <= s.Value && s.Value < p.Vaddr+p.Filesz {
				return s.Value - p.Vaddr + p.Off
			}
		}
	}
	t.Fatalf("%s is not in %s", name, path)
	return 0
}

// An interrupt comes while a container's task is current, and its work is none
// of the container's. The kernel does not say so to a program everywhere, so it
// is counted; the attribution that is signed of such events says that it may
// have been.
func TestInterruptsAreCounted(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.armPlan(e, kernelPlan(policy.Probe{ID: "p", Type: "rawTracepoint", Event: "softirq_entry"}))
	for range 20 { // a tenth of a second each, at least
		b.run(nil, "hello*50000000")
		if c, err := h.Counter(h.Sites[0]); err != nil || !h.Sites[0].Armed {
			t.Fatalf("%v, %+v", err, h.Sites[0])
		} else if c.Count > 0 {
			return
		}
	}
	t.Error("no interrupt was counted: then it can be told, and the attribution need not say so")
}
