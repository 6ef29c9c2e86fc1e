package probe

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/kernel"
	"probity/bpf/policy"
	"probity/evidence"
	"probity/runtime/cgroup"
	"probity/runtime/image"
	"probity/tests/leak"
	"probity/tests/need"
)

func TestMain(m *testing.M) { leak.Main(tidy{m}) }

// tidy are the tests, and then nothing of what they compiled.
type tidy struct{ *testing.M }

func (t tidy) Run() int {
	defer func() {
		for _, dir := range leftBehind.dirs {
			os.RemoveAll(dir)
		}
	}()
	return t.M.Run()
}

var leftBehind struct {
	mu   sync.Mutex
	dirs []string
}

// target is the compiled testdata/target.c, built once.
var target = sync.OnceValues(func() (string, error) { return compile("target") })

// compile compiles a program of testdata into a directory that outlives the test.
func compile(name string, flags ...string) (string, error) {
	dir, err := os.MkdirTemp("", "probity-target")
	if err != nil {
		return "", err
	}
	leftBehind.mu.Lock()
	leftBehind.dirs = append(leftBehind.dirs, dir)
	leftBehind.mu.Unlock()
	out := filepath.Join(dir, name)
	b, err := exec.Command("gcc", append([]string{"-O2", "-fno-omit-frame-pointer", "-static", "-o", out, "testdata/" + name + ".c"}, flags...)...).CombinedOutput()
	if err != nil {
		return "", errors.New(string(b))
	}
	return out, nil
}

// box is a stand-in for one container: an overlay mount over a lower
// directory, and a cgroup. What runs in it is a real process.
type box struct {
	t      testing.TB
	lower  string
	upper  string
	work   string
	merged string
	cgroup string // directory
	id     uint64
	level  int
}

func newLower(t testing.TB) string {
	t.Helper()
	need.Root(t)
	need.Command(t, "gcc")
	bin, err := target()
	if err != nil {
		t.Fatal(err)
	}
	lower := filepath.Join(t.TempDir(), "lower")
	must(t, os.MkdirAll(filepath.Join(lower, "bin"), 0o755))
	data, err := os.ReadFile(bin)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(lower, "bin/target"), data, 0o755))
	return lower
}

func newBox(t testing.TB, lower string) *box {
	t.Helper()
	return newBoxIn(t, lower, need.Cgroup2(t), 1)
}

// newBoxIn is newBox with the cgroup that its own is made in, and its depth.
func newBoxIn(t testing.TB, lower, parent string, level int) *box {
	t.Helper()
	dir := t.TempDir()
	b := &box{t: t, lower: lower, upper: dir + "/upper", work: dir + "/work", merged: dir + "/merged"}
	for _, d := range []string{b.upper, b.work, b.merged} {
		must(t, os.Mkdir(d, 0o755))
	}
	b.mount()
	t.Cleanup(func() { _ = unix.Unmount(b.merged, 0) })
	b.cgroup = filepath.Join(parent, "probity-test-"+filepath.Base(filepath.Dir(dir))+"-"+filepath.Base(dir))
	must(t, os.Mkdir(b.cgroup, 0o755))
	t.Cleanup(func() { must(t, os.Remove(b.cgroup)) })
	var st unix.Stat_t
	must(t, unix.Stat(b.cgroup, &st))
	b.id, b.level = st.Ino, level
	return b
}

func (b *box) mount() {
	b.t.Helper()
	must(b.t, unix.Mount("overlay", b.merged, "overlay", 0, "lowerdir="+b.lower+",upperdir="+b.upper+",workdir="+b.work))
}

// run runs the target inside the box, from its first instruction on.
func (b *box) run(env []string, args ...string) {
	b.t.Helper()
	b.runAt("bin/target", env, args...)
}

func (b *box) runAt(path string, env []string, args ...string) {
	b.t.Helper()
	cmd, entered := b.command(path, env, args...)
	defer entered.Close()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("run %s %v: %v\n%s", path, args, err, out)
	}
}

// command is a process that starts inside the box. The caller closes entered
// once it has started.
func (b *box) command(path string, env []string, args ...string) (cmd *exec.Cmd, entered *os.File) {
	b.t.Helper()
	cg, err := os.Open(b.cgroup)
	must(b.t, err)
	cmd = exec.Command(filepath.Join(b.merged, path), args...)
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd())}
	return cmd, cg
}

func (b *box) target() Target {
	return Target{Cgroup: b.id, Level: b.level, Root: b.root(), Upper: b.upper}
}

// root is for who closes it.
func (b *box) root() *os.File {
	b.t.Helper()
	f, err := os.OpenFile(b.merged, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(b.t, err)
	return f
}

// tree is the file tree of a box whose layers are known without looking.
type tree struct {
	lower string
	*Inspector
}

func (f tree) Glob(string) ([]image.Match, bool, string) {
	return []image.Match{{Path: "/bin/target", Layer: image.Layer{Dir: f.lower}, Rel: "bin/target", Kind: "regular", Origin: "imageLayer"}}, true, ""
}

func (b *box) plan(probes ...policy.Probe) Plan {
	return MakePlan(probes, tree{b.lower, &Inspector{}}, Host())
}

func symbols(names ...string) policy.Probe {
	return policy.Probe{ID: "p", Type: "uprobe", File: "/bin/target", Symbols: names}
}

// look is done once: the kernel stays the same.
var look = sync.OnceValues(kernel.Look)

func newEngine(t testing.TB, o bpf.Options, c Config) *Engine {
	t.Helper()
	need.BPF(t)
	obj, err := bpf.Load(o)
	must(t, err)
	c.BootTime = cgroup.BootTime
	c.Kernel, err = look()
	must(t, err)
	e := NewEngine(obj, c)
	t.Cleanup(func() {
		held := objects(t)
		must(t, e.Close())
		must(t, obj.Close())
		nothingLeft(t, held)
	})
	return e
}

func (b *box) arm(e *Engine, probes ...policy.Probe) *Handle {
	b.t.Helper()
	h, err := e.Arm(context.Background(), b.target(), b.plan(probes...))
	must(b.t, err)
	b.t.Cleanup(func() { must(b.t, h.Close()) })
	return h
}

func counts(t *testing.T, h *Handle) map[string]uint64 {
	t.Helper()
	out := map[string]uint64{}
	for _, s := range h.Sites {
		if !s.Armed {
			continue
		}
		c, err := h.Counter(s)
		must(t, err)
		if c.Count > 0 && (c.FirstNs < h.ArmedAt-int64(time.Second) || c.FirstNs > c.LastNs) {
			t.Errorf("%s: first %d, last %d, armed at %d", s.Symbol, c.FirstNs, c.LastNs, h.ArmedAt)
		}
		out[s.Symbol] = c.Count
	}
	return out
}

// rungs are the ways to attach, each tested on any kernel that has the best.
var rungs = map[string]bpf.Options{
	"multi":  {},
	"single": {ForceSingle: true},
	"fixed":  {ForceSingle: true, ForceFixedSite: true},
}

// Two containers of one image, of which one calls the function; an
// unprobeable neighbour in the same file; a process that nobody selected.
func TestTwoContainersOneImage(t *testing.T) {
	for name, o := range rungs {
		t.Run(name, func(t *testing.T) {
			lower := newLower(t)
			caller, idle, neighbour := newBox(t, lower), newBox(t, lower), newBox(t, lower)
			e := newEngine(t, o, Config{})
			wanted := symbols("hello", "locked", "goodbye", "never", "absent")
			h1, h2 := caller.arm(e, wanted), idle.arm(e, wanted)
			if st := e.Stats(); st.Files != 1 {
				t.Errorf("%d attachments for one inode and probe, want 1", st.Files)
			}
			for _, h := range []*Handle{h1, h2} {
				for _, s := range h.Sites {
					switch s.Symbol {
					case "locked":
						if s.Armed || s.Reason != evidence.UnprobeableInstruction {
							t.Errorf("locked: %+v", s)
						}
					case "absent":
						if s.Reason != evidence.SymbolNotFound {
							t.Errorf("absent: %+v", s)
						}
					default:
						if !s.Armed || s.Type != evidence.Uprobe {
							t.Errorf("%s: armed %v, type %s, %s %s", s.Symbol, s.Armed, s.Type, s.Reason, s.Detail)
						}
					}
				}
			}
			caller.run(nil, "hello", "hello", "hello", "goodbye", "locked")
			neighbour.run(nil, "hello")
			idle.run(nil)
			if c := counts(t, h1); c["hello"] != 3 || c["goodbye"] != 1 || c["never"] != 0 {
				t.Errorf("the caller: %v", c)
			}
			if c := counts(t, h2); c["hello"]+c["goodbye"]+c["never"] != 0 {
				t.Errorf("the idle one: %v", c)
			}
			for _, h := range []*Handle{h1, h2} {
				if tr := h.Check(); len(tr) != 0 {
					t.Errorf("troubles %v", tr)
				}
			}
		})
	}
}

// The very first instruction of a static program is e_entry.
func TestFirstInstruction(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, policy.Probe{ID: "p", Type: "uprobe", File: "/bin/target", Offsets: []policy.Offset{{Entry: true}}})
	b.run(nil)
	if c := counts(t, h); c[""] != 1 {
		t.Errorf("e_entry: %v, sites %+v", c, h.Sites)
	}
}

func TestExec(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, policy.Probe{ID: "exec", Type: "tracepoint", Event: policy.ProcessExec})
	how, err := e.ExecMechanism()
	must(t, err)
	if s := h.Sites[0]; !s.Armed || string(s.Type) != string(how) {
		t.Errorf("site %+v, mechanism %s", s, how)
	}
	b.run(nil)
	b.run(nil)
	r, err := h.Run()
	must(t, err)
	if r.Execs != 2 || r.FirstExecNs == 0 || r.LastExecNs <= r.FirstExecNs {
		t.Errorf("%+v", r)
	}
}

// Each way to copy a file up disarms silently; each is found.
func TestCopyUp(t *testing.T) {
	for name, do := range map[string]func(string) error{
		"touch": func(p string) error { return os.Chtimes(p, time.Now(), time.Now()) },
		"chmod": func(p string) error { return os.Chmod(p, 0o700) },
		"chown": func(p string) error { return os.Chown(p, 1, 1) },
		"write": func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
			if err == nil {
				err = f.Close()
			}
			return err
		},
		"remove":             os.Remove,
		"replace the parent": func(p string) error { return os.Rename(p, p+".old") },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, newLower(t))
			e := newEngine(t, bpf.Options{}, Config{})
			h := b.arm(e, symbols("hello"))
			if tr := h.Check(); len(tr) != 0 {
				t.Fatalf("before: %v", tr)
			}
			must(t, do(filepath.Join(b.merged, "bin/target")))
			tr := h.Check()
			if len(tr) != 1 || tr[0].Reason != evidence.GapFileChanged || tr[0].Path != "/bin/target" {
				t.Fatalf("after: %v", tr)
			}
		})
	}
}

// A link pins the mount it was resolved through: ours is the lower layer's, so
// the container can be unmounted, mounted again and its storage removed while
// another one of the image runs.
func TestUnmountWhileArmed(t *testing.T) {
	lower := newLower(t)
	one, other := newBox(t, lower), newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{})
	h := one.arm(e, symbols("hello"))
	other.arm(e, symbols("hello"))
	must(t, unix.Unmount(one.merged, 0))
	must(t, h.Close())
	one.mount()
	h = one.arm(e, symbols("hello"))
	one.run(nil, "hello")
	if c := counts(t, h); c["hello"] != 1 {
		t.Errorf("after remount: %v", c)
	}
	must(t, unix.Unmount(one.merged, 0))
	must(t, os.RemoveAll(one.upper))
	if tr := h.Check(); len(tr) != 1 || tr[0].Reason != evidence.GapFileChanged || !strings.Contains(tr[0].Detail, "gone") {
		t.Errorf("with the upper directory gone: %v", tr)
	}
}

// What no container uses is detached after a while, and not before.
func TestReap(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, symbols("hello"))
	e.reap(cgroup.BootTime())
	if e.Stats().Files != 1 {
		t.Fatal("reaped in use")
	}
	must(t, h.Close())
	e.reap(cgroup.BootTime() - int64(time.Minute))
	if e.Stats().Files != 1 {
		t.Fatal("reaped before its time")
	}
	e.reap(cgroup.BootTime())
	if e.Stats().Files != 0 {
		t.Fatal("not reaped")
	}
}

// A link that somebody else closes shows in the canary, and is made again; each
// container that it served is told, once.
func TestLinkLost(t *testing.T) {
	for rung, o := range rungs {
		t.Run(rung, func(t *testing.T) {
			lower := newLower(t)
			b, other := newBox(t, lower), newBox(t, lower)
			e := newEngine(t, o, Config{})
			h, h2 := b.arm(e, symbols("hello")), other.arm(e, symbols("hello"))
			for _, l := range h.held[0].file.att.links {
				must(t, l.Close())
			}
			b.run(nil, "hello") // nobody sees it
			unseen := cgroup.BootTime()
			for _, h := range []*Handle{h, h2} {
				tr := h.Check()
				if len(tr) != 1 || tr[0].Reason != evidence.GapLinkLost || tr[0].Path != "/bin/target" || strings.Contains(tr[0].Detail, "could not") {
					t.Fatalf("troubles %+v", tr)
				}
				overSince(t, tr[0], h.held[0].file, unseen)
				if tr := h.Check(); len(tr) != 0 {
					t.Errorf("armed again, and in trouble: %+v", tr)
				}
			}
			b.run(nil, "hello")
			if c := counts(t, h); c["hello"] != 1 {
				t.Errorf("%v", c)
			}
		})
	}
}

// overSince wants a trouble to be over by now, and not before what it is about was
// attached again, after the boot time unseen.
func overSince(t *testing.T, tr Trouble, s shared, unseen int64) {
	t.Helper()
	at, now := s.use().attachedAt.Load(), cgroup.BootTime()
	if tr.Since == 0 && tr.Probe == "" || tr.Since >= unseen || tr.Until < at || tr.Until <= unseen || tr.Until > now {
		t.Errorf("lost before %d, attached again at %d, now it is %d: %+v", unseen, at, now, tr)
	}
}

// What several probes have in a file is well again when it is for all of them, and
// one that is not hides no other.
func TestTroublesOfOneFile(t *testing.T) {
	lost := func(since, until int64) Trouble {
		return Trouble{Path: "/lib", Reason: evidence.GapLinkLost, Since: since, Until: until}
	}
	written := Trouble{Path: "/lib", Reason: evidence.GapFileChanged}
	for name, c := range map[string]struct{ add, want troubles }{
		"both well again":       {troubles{lost(5, 20), lost(3, 10)}, troubles{lost(3, 20)}},
		"one still lost":        {troubles{lost(3, 20), lost(5, 0)}, troubles{lost(3, 0)}},
		"the other still lost":  {troubles{lost(5, 0), lost(3, 20)}, troubles{lost(3, 0)}},
		"well again, then old":  {troubles{lost(3, 20), written}, troubles{lost(3, 20), written}},
		"old, then well again":  {troubles{written, lost(3, 20)}, troubles{written, lost(3, 20)}},
		"detached, for it is":   {troubles{written, lost(3, 0)}, troubles{written}},
		"another file is lost":  {troubles{{Path: "/bin"}, lost(3, 0)}, troubles{{Path: "/bin"}, lost(3, 0)}},
		"of another well again": {troubles{{Path: "/bin", Until: 7}, lost(3, 9)}, troubles{{Path: "/bin", Until: 7}, lost(3, 9)}},
	} {
		var got troubles
		for _, x := range c.add {
			got.add(x)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestHookLost(t *testing.T) {
	lower := newLower(t)
	b, other := newBox(t, lower), newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{})
	plan := func() Plan {
		return kernelPlan(policy.Probe{ID: "calls", Type: "kprobe", Syscalls: []string{"getppid"}})
	}
	h, h2 := b.armPlan(e, plan()), other.armPlan(e, plan())
	for _, l := range h.hooks[0].links {
		if _, err := l.Info(); errors.Is(err, link.ErrNotSupported) {
			need.Feature(t, "perf_link", err) // a perf event: nobody but the agent has it
		}
		must(t, l.Close())
	}
	unseen := cgroup.BootTime()
	for _, h := range []*Handle{h, h2} {
		tr := h.Check()
		if len(tr) != 1 || tr[0].Reason != evidence.GapLinkLost || tr[0].Probe != "calls" || strings.Contains(tr[0].Detail, "could not") {
			t.Fatalf("troubles %+v", tr)
		}
		overSince(t, tr[0], h.hooks[0].sharedHook, unseen)
		if tr := h.Check(); len(tr) != 0 {
			t.Errorf("armed again, and in trouble: %+v", tr)
		}
	}
	b.run(nil, "getppid")
	if c, err := h.Counter(h.Sites[0]); err != nil || c.Count != 1 {
		t.Errorf("%+v, %v", c, err)
	}
}

// Links that were lost and cannot be made again stay a trouble of each container
// until they are, also when it is another's check or the engine that makes them.
func TestLinkStaysLost(t *testing.T) {
	lower := newLower(t)
	b, other := newBox(t, lower), newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{})
	h, h2 := b.arm(e, symbols("hello")), other.arm(e, symbols("hello"))
	bin := filepath.Join(lower, "bin/target")
	must(t, h.held[0].file.att.close())
	must(t, os.Rename(bin, bin+".away"))
	for range 3 {
		for _, h := range []*Handle{h, h2} {
			if tr := h.Check(); len(tr) != 1 || tr[0].Reason != evidence.GapLinkLost || !strings.Contains(tr[0].Detail, "could not be armed again") || tr[0].Until != 0 {
				t.Fatalf("troubles %+v", tr)
			}
		}
		e.keep(cgroup.BootTime())
	}
	must(t, os.Rename(bin+".away", bin))
	for i := range h.held { // its change time is another, its bytes are not
		f, err := os.Open(bin)
		must(t, err)
		at, err := stampOf(f)
		must(t, err)
		must(t, f.Close())
		h.held[i].stamp, h2.held[i].stamp = at, at
	}
	unseen := cgroup.BootTime()
	e.keep(cgroup.BootTime())
	for _, h := range []*Handle{h, h2} {
		tr := h.Check()
		if len(tr) != 1 || tr[0].Reason != evidence.GapLinkLost || !strings.Contains(tr[0].Detail, "made again") {
			t.Fatalf("troubles %+v", tr)
		}
		overSince(t, tr[0], h.held[0].file, unseen)
		if tr := h.Check(); len(tr) != 0 {
			t.Errorf("armed again, and in trouble: %+v", tr)
		}
	}
	b.run(nil, "hello")
	if c := counts(t, h); c["hello"] != 1 {
		t.Errorf("%v", c)
	}
}

// What the kernel does not take any more when links are made again is not armed,
// for who had it before; it is tried again.
func TestLeftOut(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, symbols("hello", "goodbye"))
	file := h.held[0].file
	at := place{offset: h.Sites[0].Offset}
	file.mu.Lock()
	must(t, file.att.close())
	rest := slices.DeleteFunc(slices.Clone(file.points), func(p point) bool { return p.place == at })
	file.att = attach(e.obj, openFile(t, h.Sites[0]), rest)
	file.att.refused[at] = refusal{evidence.AttachFailed, "no memory"}
	file.mu.Unlock()
	if tr := h.Check(); len(tr) != 1 || tr[0].Reason != evidence.GapLinkLost || !strings.Contains(tr[0].Detail, "no memory") {
		t.Errorf("troubles %+v", tr)
	}
	if tr := h.Check(); len(tr) != 0 {
		t.Errorf("armed again, and in trouble: %+v", tr)
	}
	b.run(nil, "hello", "goodbye")
	if c := counts(t, h); c["hello"] != 1 || c["goodbye"] != 1 {
		t.Errorf("%v", c)
	}
}

func openFile(t *testing.T, s Site) *os.File {
	t.Helper()
	f, err := s.File.Match.Open()
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestOverBudget(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{MaxSites: 1})
	h := b.arm(e, symbols("hello", "goodbye"))
	if !h.Sites[0].Armed || h.Sites[1].Armed || h.Sites[1].Reason != evidence.OverBudget {
		t.Errorf("%+v", h.Sites)
	}
}

// How many sites a container may have is a fact of the kernel, unless its way
// of many at once was switched off.
func TestSitesByFacts(t *testing.T) {
	t.Run("many in one link", func(t *testing.T) {
		e := newEngine(t, bpf.Options{}, Config{})
		if want := e.cfg.Kernel.MaxSites; e.cfg.MaxSites != want || want < kernel.SitesSingle {
			t.Errorf("%d sites, the kernel allows %d", e.cfg.MaxSites, want)
		}
	})
	t.Run("a link each", func(t *testing.T) {
		if e := newEngine(t, bpf.Options{ForceSingle: true}, Config{}); e.cfg.MaxSites != kernel.SitesSingle {
			t.Errorf("%d sites with a link each, want %d", e.cfg.MaxSites, kernel.SitesSingle)
		}
	})
}

func TestMapFull(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{Slots: 1}, Config{})
	h := b.arm(e, symbols("hello", "goodbye"))
	if h.Sites[0].Reason != evidence.OverBudget {
		t.Errorf("%+v", h.Sites)
	}
}

func TestTooDeep(t *testing.T) {
	e := newEngine(t, bpf.Options{}, Config{})
	if _, err := e.Arm(context.Background(), Target{Cgroup: 1, Level: bpf.MaxLevel}, Plan{}); err == nil {
		t.Error("a cgroup below every depth that the kernel looks at was armed")
	}
}

// nothingLeft wants that none of the kernel objects that this process held is
// there any more. Detaching is deferred in places, so it looks until they are
// gone or a deadline is.
func nothingLeft(t testing.TB, held []object) {
	t.Helper()
	if len(held) < 5 {
		t.Errorf("only %d kernel objects were held: this check sees nothing", len(held))
	}
	var left []object
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); {
		// cilium/ebpf maps .rodata and .bss into memory and leaves it to the
		// collector to unmap them; until then they hold their map.
		runtime.GC()
		left = left[:0]
		for _, o := range held {
			if o.exists() {
				left = append(left, o)
			}
		}
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("left in the kernel: %v", left)
}

// object is a program, map or link of the kernel, by its id.
type object struct {
	kind string // as in /proc/PID/fdinfo
	id   int
}

// exists asks for the next id after the one before it, and opens the thing only
// where there is no other way: an array of programs that was opened is emptied
// when it is closed, which takes a moment and holds it meanwhile, so that asking
// again and again would keep it.
func (o object) exists() bool {
	switch o.kind {
	case "prog_id":
		id, err := ebpf.ProgramGetNextID(ebpf.ProgramID(o.id - 1))
		return err == nil && int(id) == o.id
	case "map_id":
		id, err := ebpf.MapGetNextID(ebpf.MapID(o.id - 1))
		return err == nil && int(id) == o.id
	}
	l, err := link.NewFromID(link.ID(o.id))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// objects lists what this process holds, by its descriptors.
func objects(t testing.TB) (out []object) {
	t.Helper()
	files, err := filepath.Glob("/proc/self/fdinfo/*")
	must(t, err)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // the descriptor of the listing itself
		}
		for line := range strings.Lines(string(b)) {
			k, v, _ := strings.Cut(line, ":")
			if id, err := strconv.Atoi(strings.TrimSpace(v)); err == nil && (k == "prog_id" || k == "map_id" || k == "link_id") {
				// A map's or link's fdinfo may name a program too: it is held as well.
				out = append(out, object{k, id})
			}
		}
	}
	return out
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
