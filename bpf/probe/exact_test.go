package probe

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/evidence"
	"probity/tests/need"
)

// Nobody reads the ring, and more sites are hit for the first time than it
// holds: counts are exact, and what it had no room for is counted.
func TestCountsWithoutReader(t *testing.T) {
	const functions = 250 // a container may have 256 sites before Linux 6.6
	lower := newLower(t)
	var src, calls strings.Builder
	p := policy.Probe{ID: "p", Type: "uprobe", File: "/bin/many"}
	for i := range functions {
		name := fmt.Sprint("f", i)
		fmt.Fprintf(&src, "__attribute__((noinline)) void %s(void) { __asm__ volatile(\"nop\"); }\n", name)
		fmt.Fprintf(&calls, "for (int i = 0; i < %d; i++) %s();\n", i%7+1, name)
		p.Symbols = append(p.Symbols, name)
	}
	fmt.Fprintf(&src, "int main(void) { %s return 0; }\n", calls.String())
	c := filepath.Join(t.TempDir(), "many.c")
	must(t, os.WriteFile(c, []byte(src.String()), 0o644))
	if out, err := exec.Command("gcc", "-O1", "-static", "-o", filepath.Join(lower, "bin/many"), c).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b := newBox(t, lower)
	e := newEngine(t, bpf.Options{RingBytes: uint32(os.Getpagesize())}, Config{})
	h := b.armPlan(e, MakePlan([]policy.Probe{p}, libs{lower, &Inspector{}}, Host()))
	b.start("bin/many")()
	for i, s := range h.Sites {
		if c, err := h.Counter(s); err != nil || c.Count != uint64(i%7+1) || c.FirstNs == 0 {
			t.Errorf("%s: %+v, %v; want %d", s.Symbol, c, err, i%7+1)
		}
	}
	run, err := h.Run()
	must(t, err)
	r, err := e.obj.Reader()
	must(t, err)
	defer r.Close()
	r.SetDeadline(time.Unix(1, 0))
	told := uint64(0)
	for {
		rec, err := r.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		must(t, err)
		if ev, err := bpf.Decode(rec.RawSample); err != nil || ev.Cgroup != b.id {
			t.Errorf("%+v, %v", ev, err)
		}
		told++
	}
	if run.RingFull == 0 || told == 0 || told+run.RingFull != functions+run.Execs {
		t.Errorf("%d events came and %d were dropped, of %d first hits and %d execs", told, run.RingFull, functions, run.Execs)
	}
	if all, err := e.obj.RingFull(); err != nil || all != run.RingFull {
		t.Errorf("dropped of all containers: %d, %v", all, err)
	}
}

// A program that would run within itself is skipped by the kernel, which counts
// it: unwinding a user stack takes a lock that has a tracepoint.
func TestKernelMissed(t *testing.T) {
	const event = "mmap_lock_acquire_returned"
	_, err := os.Stat(filepath.Join(need.Tracefs(t), "events/mmap_lock", event, "id"))
	need.Feature(t, "mmap_lock", err) // a tracepoint within what our programs call
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	before := e.MissesOf(evidence.RawTracepoint)
	h := b.armPlan(e, kernelPlan(policy.Probe{ID: "lock", Type: "rawTracepoint", Event: event, Stack: true}))
	if s := h.Sites[0]; !s.Armed {
		t.Fatalf("%+v", s)
	}
	b.run(nil, "getppid")
	if c, err := h.Counter(h.Sites[0]); err != nil || c.Count == 0 {
		t.Fatalf("%+v, %v", c, err)
	}
	after := h.MissesOf(evidence.RawTracepoint)
	if !e.cfg.Kernel.Type("rawTracepoint").CountsMisses {
		if !after.Unknowable {
			t.Errorf("a kernel that does not count misses: %+v", after)
		}
		return
	}
	if after.Unknowable || after.N <= before.N {
		t.Errorf("missed %+v, before %+v", after, before)
	}
	if all := h.Misses(); all.Unknowable == e.cfg.Kernel.CountsMisses.Yes || !all.Unknowable && all.N < after.N {
		t.Errorf("of all types: %+v", all)
	}
}

// What the kernel skipped of the programs that follow processes may hide a
// process from every probe on the kernel and every set, and from no other.
func TestProcessesMissed(t *testing.T) {
	e := newEngine(t, bpf.Options{}, Config{})
	e.lineageMisses = func() (uint64, error) { return 3, nil }
	for typ, want := range map[evidence.ProbeType]uint64{
		evidence.Uprobe: 0, evidence.USDT: 0, evidence.Kprobe: 3, evidence.Tracepoint: 3, evidence.RawTracepoint: 3, evidence.Fentry: 3,
	} {
		if got := e.MissesOf(typ); !got.Unknowable && got.N != want || got.Unknowable == e.cfg.Kernel.Type(string(typ)).CountsMisses {
			t.Errorf("%s: %+v, want %d", typ, got, want)
		}
	}
	if got := e.Misses(); !got.Unknowable && got.N != 3 || got.Unknowable == e.cfg.Kernel.CountsMisses.Yes {
		t.Errorf("of all types: %+v", got)
	}
}
