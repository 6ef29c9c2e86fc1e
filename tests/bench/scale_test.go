package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/kernel"
	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/evidence/redact"
	"probity/evidence/witness"
	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/runtime/image"
	"probity/tests/need"
	"probity/tests/plot"
	"probity/tests/runtimes"
)

// Plots is the variable with the directory into which curves are written. Without it they
// are only printed.
const Plots = "PROBITY_PLOTS"

// layer is a file tree of one directory, in which a glob is a path.
type layer struct {
	dir string
	*probe.Inspector
}

func (l layer) Glob(path string) ([]image.Match, bool, string) {
	return []image.Match{{Path: path, Layer: image.Layer{Dir: l.dir}, Rel: path[1:], Kind: "regular", Origin: "imageLayer"}}, true, ""
}

// engine is an engine of this process.
type engine struct {
	*probe.Engine
	obj     *bpf.Objects
	machine probe.Machine
}

func newEngine(b *testing.B) *engine {
	b.Helper()
	need.BPF(b)
	facts, err := kernel.Look()
	must(b, err)
	obj, err := bpf.Load(bpf.Options{})
	must(b, err)
	e := probe.NewEngine(obj, probe.Config{Kernel: facts, BootTime: cgroup.BootTime, Linger: time.Nanosecond})
	return &engine{Engine: e, obj: obj, machine: probe.On(facts)}
}

// close takes everything out of the kernel.
func (e *engine) close(b *testing.B) {
	b.Helper()
	must(b, e.Close())
	must(b, e.obj.Close())
}

// room makes a cgroup.
func room(b *testing.B, name string) (dir *os.File, id uint64) {
	b.Helper()
	path := filepath.Join(need.Cgroup2(b), fmt.Sprintf("probity-bench-%s-%d", name, os.Getpid()))
	must(b, os.Mkdir(path, 0o755))
	b.Cleanup(func() { must(b, os.Remove(path)) })
	f, err := os.Open(path)
	must(b, err)
	b.Cleanup(func() { f.Close() })
	var st unix.Stat_t
	must(b, unix.Fstat(int(f.Fd()), &st))
	return f, st.Ino
}

// resident is this process's resident memory and that of its BPF maps, in MiB.
func resident(b *testing.B) (rss, maps float64) {
	b.Helper()
	runtime.GC()
	debug.FreeOSMemory()
	return residentOf(b, os.Getpid())
}

func residentOf(b *testing.B, pid int) (rss, maps float64) {
	b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	must(b, err)
	pages, err := strconv.ParseFloat(strings.Fields(string(data))[1], 64)
	must(b, err)
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	must(b, err)
	seen := map[string]bool{}
	for _, name := range infos {
		info, err := os.ReadFile(name)
		if err != nil {
			continue // closed meanwhile
		}
		var lock, id string
		for lines := bufio.NewScanner(bytes.NewReader(info)); lines.Scan(); {
			if v, ok := strings.CutPrefix(lines.Text(), "memlock:"); ok {
				lock = strings.TrimSpace(v)
			}
			if v, ok := strings.CutPrefix(lines.Text(), "map_id:"); ok {
				id = v
			}
		}
		if id == "" || seen[id] {
			continue
		}
		seen[id] = true
		n, err := strconv.ParseFloat(lock, 64)
		must(b, err)
		maps += n
	}
	return pages * float64(os.Getpagesize()) / (1 << 20), maps / (1 << 20)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// nowhere takes lines and forgets them: what the spool holds is not what grows
// with containers.
type nowhere struct{ bytes int }

func (n *nowhere) Append(_ string, build func(evidence.Clock) []redact.Line) error {
	for _, l := range build(evidence.Clock{}) {
		line, err := evidence.Encode(l.Evidence())
		if err != nil {
			return err
		}
		n.bytes += len(line) + 1
	}
	return nil
}
func (*nowhere) Seal() {}

// spent is the processor time of this process.
func spent(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// checkEvery is how often the agent proves that what is armed still is (DESIGN.md,
// section 4).
const checkEvery = 5 * time.Second

// BenchmarkContainers arms more and more containers of one image, 100 sites in
// 5 files each.
func BenchmarkContainers(b *testing.B) {
	need.Root(b)
	need.Command(b, "gcc")
	dir := b.TempDir()
	compile(b, "loop.c", filepath.Join(dir, "loop"))
	probes := []policy.Probe{{ID: "hit", Type: policy.Uprobe, File: "/loop", Symbols: []string{"hit"}}}
	for i := range coldFiles {
		path, symbols := fileWithSymbols(b, dir, i)
		probes = append(probes, policy.Probe{ID: fmt.Sprint("lib", i), Type: policy.Uprobe, File: "/" + filepath.Base(path), Symbols: symbols})
	}
	agent := runtimes.StartAgent(b, runtimes.AgentOptions{})
	idleRSS, idleMaps := residentOf(b, agent.Pid())
	agent.Stop(b)
	var x, arm, armLast, rss, maps, hit, closing []float64
	var checks, alone, hourly time.Duration // of all containers, once
	upper := b.TempDir()
	var said int // bytes of an hour's lines
	for _, n := range []int{1, 10, 100, 300, 1000} {
		rss0, _ := resident(b)
		e := newEngine(b)
		sink := &nowhere{}
		w := witness.New(witness.Config{Sink: sink, BootTime: cgroup.BootTime})
		tree := layer{dir, &probe.Inspector{}}
		var handles []*probe.Handle
		var took []float64
		var first *os.File
		for i := range n {
			cg, id := room(b, fmt.Sprintf("%d-%d", n, i))
			if first == nil {
				first = cg
			}
			start := time.Now()
			h, err := e.Arm(context.Background(), probe.Target{Cgroup: id, Level: 1, Root: opened(b, dir), Upper: upper}, probe.MakePlan(probes, tree, e.machine))
			took = append(took, ms(time.Since(start)))
			must(b, err)
			identity := container.Identity{Runtime: container.Runc, ID: fmt.Sprintf("%064d", i), CgroupID: id, BootID: "bench"}
			w.Armed(witness.Start{Identity: identity, Source: "bench", Sites: h.Sites, Searches: h.Searches, Arm: h, Notified: h.ArmedAt, ArmedAt: h.ArmedAt})
			w.Publish(identity.RunID(), 0)
			handles = append(handles, h)
		}
		for _, s := range handles[n-1].Sites {
			if !s.Armed {
				b.Fatalf("not armed: %s %s", s.Reason, s.Detail)
			}
		}
		r, m := resident(b)
		// One round as the agent makes it, and one in which each container proves
		// what they share for itself.
		before, round := spent(b), cgroup.BootTime()
		for _, h := range handles {
			if t := h.CheckAsOf(round); len(t) > 0 {
				b.Fatalf("not well: %+v", t[0])
			}
		}
		checks = spent(b) - before
		before = spent(b)
		for _, h := range handles {
			if t := h.Check(); len(t) > 0 {
				b.Fatalf("not well: %+v", t[0])
			}
		}
		alone = spent(b) - before
		before, sink.bytes = spent(b), 0
		w.Hourly()
		hourly, said = spent(b)-before, sink.bytes
		ns := number(b, first, filepath.Join(dir, "loop"), "200000")
		start := time.Now()
		for _, h := range handles {
			must(b, h.Close())
		}
		e.close(b)
		x, arm, armLast = append(x, float64(n)), append(arm, median(took)), append(armLast, took[n-1])
		rss, maps = append(rss, max(0.1, r-rss0)), append(maps, m)
		hit, closing = append(hit, ns), append(closing, ms(time.Since(start)))
		fmt.Printf("%5d containers x 101 sites: arm p50 %.2f ms, the last %.2f ms; memory %.1f MiB + maps %.1f MiB; hit %.0f ns; all disarmed and detached %.0f ms\n",
			n, median(took), took[n-1], r-rss0, m, ns, closing[len(closing)-1])
		runtime.KeepAlive(w)
	}
	last := len(x) - 1
	// What an agent without containers has is counted too, some of it twice: the
	// engine's programs are loaded here as there.
	judged(b, idleRSS+rss[last]+maps[last] <= 96, "agent's memory, 1,000 containers x 101 sites: resident, maps", "<= 96 MiB", "%.1f + %.1f = %.1f MiB", idleRSS+rss[last], maps[last], idleRSS+rss[last]+maps[last])
	row(b, "  of which an agent without containers", "measured", "%.1f + %.1f MiB", idleRSS, idleMaps)
	core := 100 * (checks.Seconds()/checkEvery.Seconds() + hourly.Seconds()/3600)
	judged(b, core <= 1, "idle, 1,000 x 101: health checks and hourly lines", "<= 1 % of a core", "%.2f %% (%.0f ms each 5 s)", core, ms(checks))
	row(b, "  each container by itself, in the same run", "measured", "%.0f ms", ms(alone))
	day := 24 * float64(said) / (1 << 20)
	judged(b, day <= 50, "idle, 1,000 x 101: lines of a day", "<= 50 MB", "%.1f MiB", day)
	row(b, "hit with 1,000 containers armed, against 1", "measured", "%.0f ns against %.0f ns", hit[last], hit[0])
	if out := os.Getenv(Plots); out != "" {
		must(b, plot.Picture{Title: "Arming containers of one image, 101 sites each", X: "containers", Y: "milliseconds"}.Write(out, "containers-time", x, plot.Curve{Name: "arm one, p50", Y: arm}, plot.Curve{Name: "arm the last one", Y: armLast}, plot.Curve{Name: "disarm all, detach", Y: closing}))
		must(b, plot.Picture{Title: "Memory of the engine, 101 sites for each container", X: "containers", Y: "MiB"}.Write(out, "containers-memory", x, plot.Curve{Name: "resident, added", Y: rss}, plot.Curve{Name: "BPF maps", Y: maps}))
		must(b, plot.Picture{Title: "Cost of one hit", X: "containers", Y: "nanoseconds"}.Write(out, "containers-hit", x, plot.Curve{Name: "hit", Y: hit}))
	}
}

// BenchmarkSymbols arms more and more functions of one program, and has
// bpftrace do the same.
func BenchmarkSymbols(b *testing.B) {
	need.Root(b)
	tools := need.Command(b, "gcc", "bpftrace")
	const most = 10000
	dir := b.TempDir()
	var src strings.Builder
	for i := range most {
		fmt.Fprintf(&src, "__attribute__((noinline,noclone,used)) int %s_%d(int a) { return a * %d + 1; }\n", group(i), i, i+3)
	}
	src.WriteString("int main(void) { return 0; }\n")
	c, bin := filepath.Join(dir, "many.c"), filepath.Join(dir, "many")
	must(b, os.WriteFile(c, []byte(src.String()), 0o600))
	if out, err := exec.Command(tools[0], "-O1", "-o", bin, c).CombinedOutput(); err != nil {
		b.Fatalf("gcc: %v\n%s", err, out)
	}
	var x, plans, arms, closes []float64
	for _, g := range []struct {
		glob string
		n    int
	}{{"xxxxx*", 1}, {"xxxx*", 10}, {"xxx*", 100}, {"xx*", 1000}, {"x*", most}} {
		e := newEngine(b)
		_, id := room(b, fmt.Sprint("symbols", g.n))
		start := time.Now()
		plan := probe.MakePlan([]policy.Probe{{ID: "p", Type: policy.Uprobe, File: "/many", SymbolGlobs: []string{g.glob}}}, layer{dir, &probe.Inspector{}}, e.machine)
		planned := time.Now()
		h, err := e.Arm(context.Background(), probe.Target{Cgroup: id, Level: 1, Root: opened(b, dir)}, plan)
		armed := time.Now()
		must(b, err)
		n := 0
		for _, s := range h.Sites {
			if s.Armed {
				n++
			}
		}
		if n != g.n {
			b.Fatalf("%s: %d of %d sites armed: %+v", g.glob, n, g.n, h.Sites[0])
		}
		must(b, h.Close())
		closing := time.Now()
		e.close(b)
		done := time.Now()
		x = append(x, float64(n))
		plans, arms, closes = append(plans, ms(planned.Sub(start))), append(arms, ms(armed.Sub(planned))), append(closes, ms(done.Sub(closing)))
		theirs := "not asked: bpftrace attaches them one by one"
		if g.n <= 1000 {
			cmd := exec.Command(tools[1], "-e", "uprobe:"+bin+":"+g.glob+" { @ = count(); }", "-c", bin)
			cmd.Env = append(os.Environ(), "BPFTRACE_MAX_PROBES=20000")
			start := time.Now()
			if out, err := cmd.CombinedOutput(); err != nil {
				theirs = fmt.Sprintf("failed: %v: %.200s", err, out)
			} else {
				theirs = fmt.Sprintf("%.0f ms", ms(time.Since(start)))
			}
		}
		fmt.Printf("%5d symbols of one program: plan %.1f ms, attach and prove %.1f ms, detach %.1f ms, all %.1f ms; bpftrace's whole run of an empty program: %s\n",
			n, plans[len(plans)-1], arms[len(arms)-1], closes[len(closes)-1], ms(done.Sub(start)), theirs)
	}
	if out := os.Getenv(Plots); out != "" {
		must(b, plot.Picture{Title: "Functions of one program", X: "functions", Y: "milliseconds"}.Write(out, "symbols", x, plot.Curve{Name: "plan, cold", Y: plans}, plot.Curve{Name: "attach and prove", Y: arms}, plot.Curve{Name: "detach", Y: closes}))
	}
}

// group is the beginning of a function's name: the first one has five of the
// letter, those up to the tenth four, and so on.
func group(i int) string {
	n := 5
	for most := 1; most <= i; most *= 10 {
		n--
	}
	return strings.Repeat("x", n)
}

// BenchmarkColdAtOnce plans and arms 50 containers at once, each of an image
// that nobody has read.
func BenchmarkColdAtOnce(b *testing.B) {
	need.Root(b)
	need.Command(b, "gcc")
	const n = 50
	base := b.TempDir()
	var probes []policy.Probe
	var files []string
	for i := range coldFiles {
		path, symbols := fileWithSymbols(b, base, i)
		files = append(files, path)
		probes = append(probes, policy.Probe{ID: fmt.Sprint("lib", i), Type: policy.Uprobe, File: "/" + filepath.Base(path), Symbols: symbols})
	}
	e := newEngine(b)
	in := &probe.Inspector{}
	arm := func(k int) (took float64, h *probe.Handle) {
		dir := filepath.Join(base, fmt.Sprint("image", k))
		must(b, os.Mkdir(dir, 0o755))
		for _, f := range files {
			data, err := os.ReadFile(f)
			must(b, err)
			must(b, os.WriteFile(filepath.Join(dir, filepath.Base(f)), data, 0o755))
		}
		_, id := room(b, fmt.Sprint("cold", k))
		start := time.Now()
		h, err := e.Arm(context.Background(), probe.Target{Cgroup: id, Level: 1, Root: opened(b, dir)}, probe.MakePlan(probes, layer{dir, in}, e.machine))
		must(b, err)
		return ms(time.Since(start)), h
	}
	alone, h := arm(n)
	handles := []*probe.Handle{h}
	took := make([]float64, n)
	var mu sync.Mutex
	var all sync.WaitGroup
	begin := time.Now()
	for k := range n {
		all.Go(func() {
			t, h := arm(k)
			mu.Lock()
			defer mu.Unlock()
			took[k] = t
			handles = append(handles, h)
		})
	}
	all.Wait()
	whole := ms(time.Since(begin))
	for _, h := range handles {
		must(b, h.Close())
	}
	e.close(b)
	judged(b, slices.Max(took) <= 2000, "50 cold images planned and armed at once, the last one", "<= 2 s", "%.0f ms (all in %.0f ms; one alone %.0f ms)", slices.Max(took), whole, alone)
}
