package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/evidence"
	"probity/evidence/sign"
	"probity/evidence/verify"
	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/runtime/lifecycle"
	"probity/tests/leak"
	"probity/tests/need"
	"probity/tests/schemas"
)

func TestMain(m *testing.M) { leak.Main(shown{m}) }

// shown are the tests, and then what they have shown.
type shown struct{ *testing.M }

func (s shown) Run() int { return schemas.Done("agent", true, s.M.Run()) }

const wanted = `name: test
probes:
  - id: hello
    type: uprobe
    file: /bin/target
    symbols: [hello]
  - id: never
    type: uprobe
    file: /bin/target
    symbols: [never]
  - id: exec
    type: tracepoint
    event: sched:sched_process_exec
`

// failsafe ends a test that waits for what does not come. Nothing may depend on its
// length.
const failsafe = 3 * time.Minute

// node is an agent that runs, without a runtime: the test is the source.
type node struct {
	*Agent
	t    testing.TB
	stop func() // waits until Run has returned
}

func newNode(t *testing.T, opts bpf.Options) *node {
	t.Helper()
	return newNodeWith(t, Config{BPF: opts}, wanted)
}

func newNodeWith(t testing.TB, cfg Config, policies string) *node {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/policies.d", 0o755))
	must(t, os.WriteFile(dir+"/policies.d/test.yaml", []byte(policies), 0o600))
	return newNodeIn(t, dir, cfg)
}

// newNodeIn is newNodeWith, in a directory that an earlier one may have left.
func newNodeIn(t testing.TB, dir string, cfg Config) *node {
	t.Helper()
	need.BPF(t)
	ready := make(chan struct{})
	cfg.Node, cfg.State, cfg.Policies, cfg.HookSocket, cfg.AdminSocket = "test", dir+"/state", dir+"/policies.d", dir+"/hook.sock", dir+"/admin.sock"
	if cfg.RuntimeStates == nil {
		cfg.RuntimeStates = []string{"none"}
	}
	cfg.NRISockets, cfg.ContainerdAddress, cfg.PodmanRoot, cfg.Version = []string{"none"}, dir+"/no.sock", dir+"/no", "test"
	cfg.Ready = func() { close(ready) }
	a, err := New(cfg)
	must(t, err)
	if cfg.Barrier == 0 {
		a.cfg.Barrier = failsafe // no runtime cuts it off here, however slow the machine is
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	<-ready
	stop := sync.OnceFunc(func() {
		cancel()
		must(t, <-done)
	})
	t.Cleanup(stop)
	return &node{a, t, stop}
}

// lines stops the agent, wants its spool to be sound, and returns the last
// observation of each probe of a container, and all gaps.
func (n *node) lines(id string) (map[string]*evidence.Observation, []*evidence.Gap) {
	n.t.Helper()
	all, gaps := n.allLines(id)
	obs := map[string]*evidence.Observation{}
	for _, o := range all {
		obs[o.ProbeID] = o
	}
	return obs, gaps
}

// wantNotArmed wants that the last lines of the container's three probes are that
// they were not armed, for this reason, and returns them.
func (n *node) wantNotArmed(id string, reason evidence.NotArmedReason) map[string]*evidence.Observation {
	n.t.Helper()
	obs, _ := n.lines(id)
	if len(obs) != 3 {
		n.t.Fatalf("%d probes", len(obs))
	}
	for id, o := range obs {
		if o.State != evidence.NotArmed || o.Reason != reason || !o.Final {
			n.t.Errorf("%s: %+v", id, o)
		}
	}
	return obs
}

// allLines is lines with every observation.
func (n *node) allLines(id string) (obs []*evidence.Observation, gaps []*evidence.Gap) {
	n.t.Helper()
	n.stop()
	key, err := os.ReadFile(filepath.Join(n.cfg.State, "node.pub"))
	must(n.t, err)
	pub, err := sign.LoadPublic(key)
	must(n.t, err)
	report, err := verify.Path(context.Background(), []string{n.cfg.Spool}, pub, verify.Options{})
	must(n.t, err)
	for _, f := range report.Findings {
		n.t.Error(f)
	}
	schemas.Spool(n.t, n.cfg.Spool)
	files, err := filepath.Glob(n.cfg.Spool + "/ready/*/*.ndjson")
	must(n.t, err)
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(n.t, err)
		lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
		for _, line := range lines[1 : len(lines)-1] {
			l, err := evidence.Decode(string(line))
			must(n.t, err)
			switch l := l.(type) {
			case *evidence.Observation:
				if l.ContainerID == id {
					obs = append(obs, l)
				}
			case *evidence.Gap:
				if l.ContainerID == id && l.Scope != evidence.ScopeNode { // but that the agent stopped
					gaps = append(gaps, l)
				}
			}
		}
	}
	return obs, gaps
}

// target is the compiled testdata/target.c, built once.
var target = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "probity-target")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if b, err := exec.Command("gcc", "-O2", "-static", "-o", dir+"/target", "testdata/target.c").CombinedOutput(); err != nil {
		return nil, errors.New(string(b))
	}
	return os.ReadFile(dir + "/target")
})

// box stands in for a container: a real process, rooted in an overlay, in a
// cgroup and a mount namespace of its own. It waits before it does anything.
type box struct {
	t      testing.TB
	dir    string
	cgroup string
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	end    func()
}

// newBox starts a box in the cgroup that is depth levels deep, or the agent's own at 0.
func newBox(t *testing.T, depth int, args ...string) *box {
	t.Helper()
	need.Root(t)
	need.Command(t, "gcc")
	bin, err := target()
	must(t, err)
	return newBoxOf(t, map[string][]byte{"bin/target": bin}, depth, args...)
}

// newBoxOf starts one with these files, of which it runs bin/target.
func newBoxOf(t testing.TB, files map[string][]byte, depth int, args ...string) *box {
	t.Helper()
	return newBoxWith(t, files, func(string) {}, depth, args...)
}

// newBoxWith is newBoxOf, with what is done to the box, by its directory, before
// its process begins.
func newBoxWith(t testing.TB, files map[string][]byte, prepare func(dir string), depth int, args ...string) *box {
	t.Helper()
	var err error
	b := &box{t: t, dir: t.TempDir()}
	for _, d := range []string{"lower/bin", "lower/tmp", "upper", "work", "merged"} {
		must(t, os.MkdirAll(filepath.Join(b.dir, d), 0o755))
	}
	for name, content := range files {
		must(t, os.WriteFile(filepath.Join(b.dir, "lower", name), content, 0o755))
	}
	must(t, unix.Mount("overlay", b.dir+"/merged", "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", b.dir)))
	t.Cleanup(func() { must(t, unix.Unmount(b.dir+"/merged", unix.MNT_DETACH)) })
	prepare(b.dir)
	b.cmd = exec.Command("/bin/target", args...)
	b.cmd.Dir = "/"
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: b.dir + "/merged", Unshareflags: syscall.CLONE_NEWNS}
	if depth > 0 {
		b.cgroup = need.Cgroup2(t)
		for i := range depth {
			b.cgroup = filepath.Join(b.cgroup, fmt.Sprintf("probity-%d-%d", os.Getpid(), i))
			if i == 0 {
				b.cgroup += filepath.Base(filepath.Dir(b.dir)) + filepath.Base(b.dir)
			}
			must(t, os.Mkdir(b.cgroup, 0o755))
			dir := b.cgroup
			t.Cleanup(func() { must(t, os.Remove(dir)) })
		}
		cg, err := os.Open(b.cgroup)
		must(t, err)
		defer cg.Close()
		b.cmd.SysProcAttr.UseCgroupFD, b.cmd.SysProcAttr.CgroupFD = true, int(cg.Fd())
	}
	b.in, err = b.cmd.StdinPipe()
	must(t, err)
	out, err := b.cmd.StdoutPipe()
	must(t, err)
	b.out = bufio.NewReader(out)
	must(t, b.cmd.Start())
	b.end = sync.OnceFunc(func() {
		b.in.Close()
		_ = b.cmd.Wait() // its exit code is of no interest
	})
	t.Cleanup(b.end)
	return b
}

// run lets it go.
func (b *box) run() {
	b.t.Helper()
	_, err := b.in.Write([]byte("."))
	must(b.t, err)
}

func (b *box) notice(id string) container.Notice {
	return container.Notice{
		Source: "hook", Kind: container.Starting, Pid: b.cmd.Process.Pid, At: cgroup.BootTime(),
		Identity: container.Identity{Runtime: container.Runc, ID: id},
	}
}

func yes() bool { return true }

func TestArmedUntilTheEnd(t *testing.T) {
	n := newNode(t, bpf.Options{})
	b := newBox(t, 1, "hello")
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, gaps := n.lines("c1")
	if len(gaps) != 0 {
		t.Errorf("gaps: %+v", gaps[0])
	}
	if o := obs["hello"]; o.State != evidence.Hit || *o.Count != 1 || !o.Complete || !o.Final {
		t.Errorf("hello: %+v", o)
	}
	if o := obs["never"]; o.State != evidence.ArmedNoHit || !o.Final {
		t.Errorf("never: %+v", o)
	}
}

// A source has seen others in the container's cgroup, as a hook sees itself there: what they
// do would be the container's.
func TestSharedWithItsHook(t *testing.T) {
	n := newNode(t, bpf.Options{})
	b := newBox(t, 1, "hello")
	x := b.notice("c1")
	x.Shared = "the hook is in it too"
	n.notify(context.Background(), x, yes)
	b.run()
	b.end()
	must(t, n.waitIdle(context.Background()))
	for _, o := range n.wantNotArmed("c1", evidence.SharedCgroup) {
		if !strings.Contains(o.Detail, x.Shared) {
			t.Errorf("%s: %s", o.ProbeID, o.Detail)
		}
	}
}

// The notice comes when the container has ended already.
func TestEndedBeforeArmed(t *testing.T) {
	n := newNode(t, bpf.Options{})
	b := newBox(t, 1)
	b.end()
	n.notify(context.Background(), b.notice("c1"), yes)
	must(t, n.waitIdle(context.Background()))
	n.wantNotArmed("c1", evidence.EndedBeforeArmed)
}

// It ends while it is being armed: what is found by its pid after that may be
// of another process.
func TestEndedWhileArmed(t *testing.T) {
	n := newNode(t, bpf.Options{})
	b := newBox(t, 1)
	notice := b.notice("c1")
	must(t, n.complete(&notice))
	l := &live{init: holdPid(notice.Pid), ctx: context.Background(), under: n.inForce()}
	defer l.init.Close()
	b.end()
	notice.Identity.BootID = n.bootID
	for _, s := range n.armNow(l, lifecycle.Run{ID: notice.Identity.RunID(), Notice: notice}, n.inForce().Select(notice.Identity), nil).Sites {
		if s.Armed || s.Reason != evidence.EndedBeforeArmed {
			t.Errorf("%s: armed %v, %s %s", s.Probe.ID, s.Armed, s.Reason, s.Detail)
		}
	}
}

// A kernel that refuses the programs: here really, because of a ring buffer of
// one byte.
func TestKernelUnsupported(t *testing.T) {
	n := newNode(t, bpf.Options{RingBytes: 1})
	if p := n.Status().Problems; len(p) == 0 || !strings.Contains(p[0], "nothing can be armed") {
		t.Errorf("problems: %q", p)
	}
	b := newBox(t, 1, "hello")
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	b.end()
	must(t, n.waitIdle(context.Background()))
	for id, o := range n.wantNotArmed("c1", evidence.KernelUnsupported) {
		if o.Detail == "" {
			t.Errorf("%s: %+v", id, o)
		}
	}
}

// Deeper than the kernel side looks: nothing of it can be armed.
func TestAttachFailed(t *testing.T) {
	n := newNode(t, bpf.Options{})
	b := newBox(t, bpf.MaxLevel)
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, _ := n.lines("c1")
	if o := obs["hello"]; o == nil || o.State != evidence.NotArmed || o.Reason != evidence.AttachFailed || !strings.Contains(o.Detail, "levels deep") {
		t.Errorf("%+v", o)
	}
}

func TestSharedCgroup(t *testing.T) {
	t.Run("with the agent", func(t *testing.T) {
		n := newNode(t, bpf.Options{})
		b := newBox(t, 0)
		n.notify(context.Background(), b.notice("c1"), yes)
		b.run()
		b.end()
		must(t, n.waitIdle(context.Background()))
		obs, _ := n.lines("c1")
		if o := obs["hello"]; o == nil || o.Reason != evidence.SharedCgroup || !o.Final {
			t.Errorf("%+v", o)
		}
	})
	t.Run("with another container", func(t *testing.T) {
		n := newNode(t, bpf.Options{})
		b := newBox(t, 1, "hello")
		n.notify(context.Background(), b.notice("c1"), yes)
		n.notify(context.Background(), b.notice("c2"), yes)
		b.run()
		b.end()
		must(t, n.waitIdle(context.Background()))
		obs, _ := n.lines("c2")
		if o := obs["hello"]; o == nil || o.Reason != evidence.SharedCgroup {
			t.Errorf("the second: %+v", o)
		}
		if obs, _ = n.lines("c1"); obs["hello"].State != evidence.Hit {
			t.Errorf("the first: %+v", obs["hello"])
		}
	})
}

// Whoever held the container has gone, or said so before its notice was even
// looked at: it may have run all the time.
func TestLetGo(t *testing.T) {
	for name, start := range map[string]func(*node, container.Notice){
		"the hook has gone": func(n *node, c container.Notice) {
			n.notify(context.Background(), c, func() bool { return false })
		},
		"late before the notice": func(n *node, c container.Notice) {
			n.late(c, true)
			n.notify(context.Background(), c, nil)
		},
		"no time": func(n *node, c container.Notice) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			n.notify(ctx, c, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, bpf.Options{})
			b := newBox(t, 1)
			start(n, b.notice("c1"))
			<-n.onlyRun().armed
			b.run()
			b.end()
			must(t, n.waitIdle(context.Background()))
			obs, gaps := n.lines("c1")
			if o := obs["hello"]; o.State != evidence.Partial || o.Complete {
				t.Errorf("%+v", o)
			}
			if len(gaps) != 1 || gaps[0].Reason != evidence.GapLateAttach || !gaps[0].From.Std().Before(gaps[0].To.Std()) {
				t.Errorf("gaps: %+v", gaps)
			}
		})
	}
	// What one source's container was told is not taken for another's of the same id, and
	// that one does not take it away.
	t.Run("another container has the id", func(t *testing.T) {
		n := newNode(t, bpf.Options{})
		b, other := newBox(t, 1), newBox(t, 1)
		c, x := b.notice("c1"), other.notice("c1")
		x.Source = "nri:test"
		n.late(c, true)
		n.notify(context.Background(), x, yes)
		n.notify(context.Background(), c, nil)
		for _, l := range n.runs() {
			<-l.armed
			n.mu.Lock()
			if letGo := l.released != 0; letGo != (l.notice.Source == c.Source) {
				t.Errorf("of %s: let go %v", l.notice.Source, letGo)
			}
			n.mu.Unlock()
		}
	})
	// An earlier life that was let go says nothing about this one.
	t.Run("an earlier life", func(t *testing.T) {
		n := newNode(t, bpf.Options{})
		b := newBox(t, 1)
		old := b.notice("c1")
		n.late(old, true)
		n.notify(context.Background(), b.notice("c1"), yes)
		b.run()
		b.end()
		must(t, n.waitIdle(context.Background()))
		if obs, _ := n.lines("c1"); obs["hello"].State != evidence.ArmedNoHit {
			t.Errorf("%+v", obs["hello"])
		}
	})
}

func (n *node) onlyRun() *live {
	n.t.Helper()
	runs := n.runs()
	if len(runs) != 1 {
		n.t.Fatalf("%d live runs", len(runs))
	}
	return runs[0]
}

// The container ends at the moment at which the agent stops: its counters must
// still be there when its last lines are written.
func TestEndsAsTheAgentStops(t *testing.T) {
	n := newNode(t, bpf.Options{})
	b := newBox(t, 1, "hello")
	n.notify(context.Background(), b.notice("c1"), yes)
	l := n.onlyRun()
	until(t, func() bool { // published
		n.mu.Lock()
		defer n.mu.Unlock()
		r, ok := n.table.Run(l.id)
		return ok && r.OK
	})
	n.ring.reader.Close() // no event tells of the hit: only the counter does
	n.mu.Lock()
	n.table.Stopping(cgroup.BootTime())
	n.mu.Unlock()
	b.run()
	b.end()
	n.work.Wait() // the run's own goroutine has seen the end
	obs, _ := n.lines("c1")
	if o := obs["hello"]; o.State != evidence.Hit || *o.Count != 1 {
		t.Errorf("%+v", o)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A runtime that stays connected and tells more than can be queued is a gap of
// its source; the end of a disconnection is not a second one.
func TestDeafSource(t *testing.T) {
	n := newNode(t, bpf.Options{})
	const name = "nri:/test"
	n.sourceLost(name, 10, "not connected yet")
	n.deaf(name, 10, 20) // its end, which comes before sourceBack
	n.sourceBack(name, 20)
	n.deaf(name, 30, 40) // the queue was full
	n.deaf(name, 50, 0)  // gone
	_, gaps := n.lines("")
	var ids []string
	for _, g := range gaps {
		if g.Source != name || g.Reason != evidence.GapRuntimeDisconnected {
			t.Errorf("%+v", g)
		}
		if !slices.Contains(ids, g.GapID) {
			ids = append(ids, g.GapID)
		}
	}
	if len(ids) != 3 || len(gaps) != 5 {
		t.Errorf("%d gaps in %d lines, want 3 in 5: opened and closed, at once, opened and closed by the stop", len(ids), len(gaps))
	}
}
