package bench

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/kernel"
	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/runtime/cgroup"
	"probity/runtime/image"
	"probity/tests/need"
)

// one is a file tree with one file.
type one struct {
	dir string
	*probe.Inspector
}

func (o one) Glob(string) ([]image.Match, bool, string) {
	return []image.Match{{Path: "/loop", Layer: image.Layer{Dir: o.dir}, Rel: "loop", Kind: "regular", Origin: "imageLayer"}}, true, ""
}

// BenchmarkHit compares one hit of an armed container with the same trap and an
// empty program, with a neighbour's hit, and with no probe at all.
func BenchmarkHit(b *testing.B) {
	need.Root(b)
	need.BPF(b)
	bpftrace := need.Command(b, "bpftrace", "gcc")[0]
	const calls, rounds = 200000, 7

	dirs := map[string]string{}
	for _, n := range []string{"plain", "empty", "ours", "bpftrace"} {
		dirs[n] = b.TempDir()
		compile(b, "loop.c", filepath.Join(dirs[n], "loop"))
	}
	mkcg := func(name string) (*os.File, uint64) {
		dir := filepath.Join(need.Cgroup2(b), fmt.Sprintf("probity-bench-%s-%d", name, os.Getpid()))
		must(b, os.Mkdir(dir, 0o755))
		b.Cleanup(func() { must(b, os.Remove(dir)) })
		f, err := os.Open(dir)
		must(b, err)
		b.Cleanup(func() { f.Close() })
		var st unix.Stat_t
		must(b, unix.Fstat(int(f.Fd()), &st))
		return f, st.Ino
	}
	armed, id := mkcg("armed")
	neighbour, _ := mkcg("neighbour")

	facts, err := kernel.Look()
	must(b, err)
	obj, err := bpf.Load(bpf.Options{})
	must(b, err)
	b.Cleanup(func() { obj.Close() })
	e := probe.NewEngine(obj, probe.Config{Kernel: facts, BootTime: cgroup.BootTime, MaxRate: math.MaxUint32})
	b.Cleanup(func() { must(b, e.Close()) })
	plan := probe.MakePlan([]policy.Probe{{ID: "p", Type: "uprobe", File: "/loop", Symbols: []string{"hit"}}}, one{dirs["ours"], &probe.Inspector{}}, probe.Host())
	h, err := e.Arm(b.Context(), probe.Target{Cgroup: id, Level: 1, Root: opened(b, dirs["ours"])}, plan)
	must(b, err)
	if !h.Sites[0].Armed {
		b.Fatalf("not armed: %+v", h.Sites[0])
	}

	spec := &ebpf.ProgramSpec{Type: ebpf.Kprobe, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}}
	if _, err := obj.UprobeMulti(false); err == nil {
		spec.AttachType = ebpf.AttachTraceUprobeMulti
	}
	empty, err := ebpf.NewProgram(spec)
	must(b, err)
	b.Cleanup(func() { empty.Close() })
	ex, err := link.OpenExecutable(filepath.Join(dirs["empty"], "loop"))
	must(b, err)
	var l link.Link
	if spec.AttachType == ebpf.AttachTraceUprobeMulti {
		l, err = ex.UprobeMulti(nil, empty, &link.UprobeMultiOptions{Addresses: []uint64{h.Sites[0].Offset}})
	} else {
		l, err = ex.Uprobe("", empty, &link.UprobeOptions{Address: h.Sites[0].Offset})
	}
	must(b, err)
	b.Cleanup(func() { l.Close() })

	var plain, trap, ours, tax, ratio, extra, theirs []float64
	n := fmt.Sprint(calls)
	for range rounds {
		plain = append(plain, number(b, armed, filepath.Join(dirs["plain"], "loop"), n))
		trap = append(trap, number(b, armed, filepath.Join(dirs["empty"], "loop"), n))
		ours = append(ours, number(b, armed, filepath.Join(dirs["ours"], "loop"), n))
		tax = append(tax, number(b, neighbour, filepath.Join(dirs["ours"], "loop"), n))
		ratio = append(ratio, ours[len(ours)-1]/trap[len(trap)-1])
		extra = append(extra, ours[len(ours)-1]-trap[len(trap)-1])
		loop := filepath.Join(dirs["bpftrace"], "loop")
		theirs = append(theirs, traced(b, bpftrace, "uprobe:"+loop+":hit { @ = count(); }", loop+" "+n))
	}
	c, err := h.Counter(h.Sites[0])
	must(b, err)
	if c.Count != calls*rounds {
		b.Fatalf("counted %d of %d hits", c.Count, calls*rounds)
	}
	must(b, h.Close())
	must(b, e.Close())
	after := number(b, armed, filepath.Join(dirs["ours"], "loop"), n)

	judged(b, median(ratio) <= 1.05 || median(extra) <= 60, "hit, against an empty program on the same probe", "<= 1.05x, or <= 60 ns", "%.3fx, %+.0f ns (of %.0f ns)", median(ratio), median(extra), median(trap))
	row(b, "  bpftrace counting the same function", "for comparison", "%.0f ns, %.3fx", median(theirs), median(theirs)/median(trap))
	row(b, "the same function in a neighbour, against no probe", "measured and documented", "%.0f ns against %.1f ns", median(tax), median(plain))
	judged(b, unprobed(after, median(plain)), "after detaching, against no probe", "speed of the unprobed program", "%.1f ns against %.1f ns", after, median(plain))
	b.ReportMetric(median(ratio), "x-empty")
}

// unprobed reports whether a call is as fast as without a probe: a trap takes
// hundreds of times longer.
func unprobed(ns, plain float64) bool { return ns <= 2*plain }

// traced has bpftrace run a program that prints a number, and returns it.
func traced(b *testing.B, bpftrace, script, command string) float64 {
	b.Helper()
	out, err := exec.Command(bpftrace, "-e", script, "-c", command).CombinedOutput()
	if err != nil {
		b.Fatalf("bpftrace: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if v, err := strconv.ParseFloat(strings.TrimSpace(line), 64); err == nil {
			return v
		}
	}
	b.Fatalf("bpftrace: no number in %s", out)
	return 0
}

// BenchmarkStanding measures what a probe costs that has its answer: while
// another container on the inode awaits one, and when none does.
func BenchmarkStanding(b *testing.B) {
	need.Root(b)
	bpftrace := need.Command(b, "bpftrace", "gcc")[0]
	const rounds = 5
	calls := "200000"
	dirs := map[string]string{}
	for _, n := range []string{"plain", "answered", "bpftrace"} {
		dirs[n] = b.TempDir()
		compile(b, "loop.c", filepath.Join(dirs[n], "loop"))
	}
	one, oneID := room(b, "one")
	other, otherID := room(b, "other")
	e := newEngine(b)
	ctx, stop := context.WithCancel(b.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = e.Run(ctx) }) // it ends with ctx, and says no more
	var handles []*probe.Handle
	arm := func(dir string, id uint64, stopAfter uint64) {
		p := []policy.Probe{{ID: "p" + dir, Type: policy.Uprobe, File: "/loop", Symbols: []string{"hit"}, StopAfter: stopAfter, MaxRate: math.MaxUint32}}
		h, err := e.Arm(b.Context(), probe.Target{Cgroup: id, Level: 1, Root: opened(b, dirs[dir])}, probe.MakePlan(p, layer{dirs[dir], &probe.Inspector{}}, e.machine))
		must(b, err)
		if !h.Sites[0].Armed {
			b.Fatalf("not armed: %+v", h.Sites[0])
		}
		handles = append(handles, h)
	}
	arm("answered", oneID, 1)
	arm("answered", otherID, 1)
	loop := func(cg *os.File, dir, n string) float64 { return number(b, cg, filepath.Join(dirs[dir], "loop"), n) }
	loop(one, "answered", "1")
	var plain, standing, theirs []float64
	for range rounds {
		plain = append(plain, loop(one, "plain", calls))
		standing = append(standing, loop(one, "answered", calls))
		l := filepath.Join(dirs["bpftrace"], "loop")
		theirs = append(theirs, traced(b, bpftrace, "uprobe:"+l+":hit /!@/ { @ = 1; }", l+" "+calls))
	}
	loop(other, "answered", "1")
	began := time.Now()
	for e.Stats().Resting == 0 {
		if time.Since(began) > 10*time.Second {
			b.Fatal("the links are still there, and nobody awaits an answer")
		}
		runtime.Gosched()
	}
	gone := time.Since(began)
	var after []float64
	for range rounds {
		after = append(after, loop(one, "answered", calls))
	}
	stop()
	running.Wait()
	for _, h := range handles {
		must(b, h.Close())
	}
	e.close(b)
	judged(b, unprobed(median(after), median(plain)), "none left waiting for an answer, against no probe", "speed of the unprobed program", "%.1f ns against %.1f ns, %.0f ms later", median(after), median(plain), ms(gone))
	row(b, "one of two has answered: its hit", "measured: the trap stays", "%.0f ns", median(standing))
	row(b, "  bpftrace after its first hit, of the same function", "for comparison", "%.0f ns", median(theirs))
}
