package bench

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

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
	need.Command(b, "gcc")
	const calls, rounds = 200000, 7

	dirs := map[string]string{}
	for _, n := range []string{"plain", "empty", "ours"} {
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
	h, err := e.Arm(b.Context(), probe.Target{Cgroup: id, Level: 1, Root: dirs["ours"]}, plan)
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

	var plain, trap, ours, tax, ratio, extra []float64
	n := fmt.Sprint(calls)
	for range rounds {
		plain = append(plain, number(b, armed, filepath.Join(dirs["plain"], "loop"), n))
		trap = append(trap, number(b, armed, filepath.Join(dirs["empty"], "loop"), n))
		ours = append(ours, number(b, armed, filepath.Join(dirs["ours"], "loop"), n))
		tax = append(tax, number(b, neighbour, filepath.Join(dirs["ours"], "loop"), n))
		ratio = append(ratio, ours[len(ours)-1]/trap[len(trap)-1])
		extra = append(extra, ours[len(ours)-1]-trap[len(trap)-1])
	}
	c, err := h.Counter(h.Sites[0])
	must(b, err)
	if c.Count != calls*rounds {
		b.Fatalf("counted %d of %d hits", c.Count, calls*rounds)
	}
	must(b, h.Close())
	must(b, e.Close())
	after := number(b, armed, filepath.Join(dirs["ours"], "loop"), n)

	row(b, "hit, against an empty program on the same probe", "<= 1.05x, or <= 60 ns", "%.3fx, %+.0f ns (of %.0f ns)", median(ratio), median(extra), median(trap))
	row(b, "the same function in a neighbour, against no probe", "measured and documented", "%.0f ns against %.1f ns", median(tax), median(plain))
	row(b, "after detaching, against no probe", "speed of the unprobed program", "%.1f ns against %.1f ns", after, median(plain))
	b.ReportMetric(median(ratio), "x-empty")
}
