package runtimes

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"probity/evidence"
	"probity/tests/need"
)

// The agent is killed, no service manager holds anything, and the kernel does: what the
// program does before, while there is no agent, and after, is all counted, and there is no
// gap. (Where a service manager does: TestScenarios.) The end is told apart: after SIGUSR2
// another agent goes on, after SIGTERM nothing is left.
func TestPinnedOverAKill(t *testing.T) {
	d := drivers["podman"](t)
	fs := d.scratch().mkdir(t, "bpf")
	if err := syscall.Mount("bpf", fs, "bpf", 0, "mode=0700"); err != nil {
		t.Fatalf("mount a BPF file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(fs, 0); err != nil {
			t.Errorf("unmount %s: %v", fs, err)
		}
	})
	pins := filepath.Join(fs, "probity")
	a := StartAgent(t, d.agent(AgentOptions{Policies: []string{targetPolicy}, Args: []string{"--keep-in", pins}}))
	d.attach(t, a)
	keptOverAKill(t, d, a)
	var names []string
	for _, entry := range entries(t, pins) {
		if entry.Name() == "hook" {
			t.Error("a socket is pinned")
		}
		names = append(names, entry.Name())
	}
	if all := strings.Join(names, " "); !strings.Contains(all, "about") || !strings.Contains(all, "map-slots") || !strings.Contains(all, "file-") {
		t.Errorf("pinned: %s", all)
	}
	a.Stop(t)
	if left := entries(t, pins); len(left) != 0 {
		t.Errorf("after the stop there is %v", left)
	}
	a.Start(t)
}

func entries(t *testing.T, dir string) []os.DirEntry {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// waitHellos waits for a line with so many calls of the target's function.
func waitHellos(t *testing.T, a *Agent, c ran, n uint64) {
	t.Helper()
	a.WaitLine(t, func(e Evidence) bool {
		o := e.Latest(c.id(), "fn", "hello")
		return o != nil && o.State == evidence.Hit && uint64(*o.Count) == n
	})
}

// keptOverAKill has one container outlive two agents: one is killed, and one is ended.
func keptOverAKill(t *testing.T, d driver, a *Agent) {
	const k = 40
	orders := slices.Repeat([]string{"hello"}, k)
	targetImage(t, d)
	c := d.start(t, targetName, "kept", slices.Concat(orders, []string{"wait", "goodbye"})...)
	counted := func(n uint64) { t.Helper(); waitHellos(t, a, c, n) }
	counted(k)
	a.Kill(t)
	c.exec(t, append([]string{"/bin/target"}, orders...)...)
	a.Start(t)
	d.attach(t, a)
	counted(2 * k)
	// And once more, after an end in order, as of a restart.
	a.End(t, syscall.SIGUSR2)
	c.exec(t, append([]string{"/bin/target"}, orders...)...)
	a.Start(t)
	d.attach(t, a)
	counted(3 * k)
	c.goOn(t, orders...)
	if code := c.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	e := settled(t, a)
	hello := want(t, e, c.id(), "fn", "hello", evidence.Hit, "", 4*k)
	if !hello.Complete || !hello.Final || len(hello.Gaps) != 0 {
		t.Errorf("%+v", hello)
	}
	want(t, e, c.id(), "fn", "goodbye", evidence.Hit, "", 1)
	if never := want(t, e, c.id(), "fn", "never", evidence.ArmedNoHit, "", 0); !never.Complete || len(never.Gaps) != 0 {
		t.Errorf("%+v", never)
	}
	if g := runGaps(e.GapsOf(c.id(), evidence.GapAgentDown)); len(g) != 0 {
		t.Errorf("gaps of the run: %+v", g)
	}
	if cover := e.Cover(c.id()); !cover.Final || len(cover.GapReasons) != 0 {
		t.Errorf("%+v", cover)
	}
	a.Verify(t)
}

// What was kept is let go of where it is not what the next agent would make, or nobody
// tells of its container: each with its gap.
func TestNotKept(t *testing.T) {
	d := drivers["podman"](t)
	a := StartAgent(t, d.agent(AgentOptions{Policies: []string{targetPolicy}, Store: true}))
	d.attach(t, a)
	targetImage(t, d)
	lives, ends := d.start(t, targetName, "lives", "hello", "wait", "goodbye"), d.start(t, targetName, "ends", "hello", "wait")
	waitHellos(t, a, lives, 1)
	waitHellos(t, a, ends, 1)
	a.Kill(t)
	// It ends while there is no agent: what its lines do not have is said.
	ends.goOn(t, "hello", "hello")
	ends.wait(t)
	// Of the other one the agent had not signed yet since when all its counters count.
	mark := fmt.Sprint("unsigned-", a.Evidence(t).Cover(lives.id()).CgroupID)
	a.store.put(t, mark, "")
	a.Start(t)
	d.attach(t, a)
	a.WaitLine(t, func(e Evidence) bool {
		return slices.ContainsFunc(runGaps(e.GapsOf(ends.id(), evidence.GapAgentDown)), func(g *evidence.Gap) bool {
			return !g.To.IsZero() && strings.Contains(g.Detail, "it ended before an agent took it up") && !strings.Contains(g.Detail, "no line")
		})
	})
	sealed := a.Evidence(t)
	for id, n := range map[string]int{"fn": 3, "entry": 2} { // one and two; and init's, and that of who let it go on
		symbol := map[string]string{"fn": "hello"}[id]
		o := sealed.Latest(ends.id(), id, symbol)
		if o == nil || o.State != evidence.Hit || int(*o.Count) != n || o.Complete || !o.Final || len(o.Gaps) != 1 || o.Gaps[0].Reason != evidence.GapAgentDown || !o.LastAt.Std().After(o.FirstAt.Std()) {
			t.Errorf("%s: %+v", id, o)
		}
	}
	if execs := sealed.Latest(ends.id(), "exec", ""); execs == nil || *execs.Count != 2 {
		t.Errorf("execs: %+v", execs)
	}
	if cover := sealed.Cover(ends.id()); !cover.Final || slices.ContainsFunc(cover.Probes, func(p evidence.ProbeFold) bool { return p.ProbeID == "fn" && p.State != evidence.Hit }) {
		t.Errorf("%+v", cover)
	}
	armedAgain(t, a, lives, evidence.GapAgentDown)
	if slices.Contains(a.store.names(), mark) {
		t.Error("the gap is signed, and the mark is there")
	}
	// Other policies: what is kept was made for those before, is read, and let go of.
	a.Kill(t)
	a.Scratch.write(t, "policies.d/00.yaml", strings.Replace(targetPolicy, "goodbye", "goodbye, main", 1))
	lives.exec(t, "/bin/target", "hello")
	a.Start(t)
	d.attach(t, a)
	others := func(e Evidence) (ended []*evidence.Gap) {
		for _, g := range runGaps(e.GapsOf(lives.id(), evidence.GapAgentDown)) {
			if strings.Contains(g.Detail, "the policies are others now") && !g.To.IsZero() {
				ended = append(ended, g)
			}
		}
		return ended
	}
	a.WaitLine(t, func(e Evidence) bool { return len(others(e)) > 0 })
	lives.goOn(t, "hello")
	lives.wait(t)
	e := settled(t, a)
	if hello := want(t, e, lives.id(), "fn", "hello", evidence.Hit, "", 3); hello.Complete {
		t.Errorf("%+v", hello)
	}
	want(t, e, lives.id(), "fn", "main", evidence.Hit, "", 1) // which only those after want: of goOn's program
	a.Verify(t)
}

// A container that was kept is gone on with under the policies that it was armed under,
// also if others are reloaded before a source tells of it.
func TestReloadedBeforeItIsTakenUp(t *testing.T) {
	d := containerdDriver{StartContainerd(t)}
	a := StartAgent(t, d.agent(AgentOptions{Policies: []string{targetPolicy}, Store: true}))
	d.attach(t, a)
	targetImage(t, d)
	c := d.start(t, targetName, "kept", "hello", "wait").(criRan)
	waitHellos(t, a, c, 1)
	pid, cover := c.pid(t), a.Evidence(t).Cover(c.id())
	a.Kill(t)
	d.Stop(t) // so that nobody tells of it
	inside := exec.Command("/bin/target", "hello", "hello", "hello")
	group, err := os.Open(filepath.Join(need.Cgroup2(t), cover.CgroupPath))
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	inside.Dir = "/"
	inside.SysProcAttr = &syscall.SysProcAttr{Chroot: fmt.Sprintf("/proc/%d/root", pid), UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := inside.Run(); err != nil {
		t.Fatal(err)
	}
	a.Start(t)
	a.Scratch.write(t, "policies.d/00.yaml", strings.Replace(targetPolicy, "[hello, goodbye", "[goodbye", 1))
	if code, _, errs := a.Probity(t, "reload", "--admin-socket", a.AdminSocket); code != 0 {
		t.Fatal(errs)
	}
	d.Start(t)
	d.attach(t, a)
	waitHellos(t, a, c, 4)
	if err := os.WriteFile(inRoot(pid, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c.wait(t)
	e := settled(t, a)
	if o := want(t, e, c.id(), "fn", "hello", evidence.Hit, "", 4); !o.Complete || len(o.Gaps) > 0 {
		t.Errorf("%+v", o)
	}
	if last := e.Cover(c.id()); last.Policies != cover.Policies || len(last.GapReasons) > 0 {
		t.Errorf("armed under %s: %+v", cover.Policies, last)
	}
}

// Who lets go of all that was kept lets go of what belongs to it, too; and what cannot be
// read is let go of in any case.
func TestNothingStays(t *testing.T) {
	a := StartAgent(t, AgentOptions{Store: true})
	for name, records := range map[string][2]string{
		"of other programs": {`{"layout":"other"}`, `{"1":{"Count":2,"FirstNs":3,"LastNs":4}}`},
		"not readable":      {"", "no JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			a.Kill(t)
			if records[0] != "" {
				a.store.put(t, "about", records[0]) // a second one
			}
			a.store.put(t, "before-7", records[1])
			a.Start(t)
			ctx, cancel := within(t, Patience)
			defer cancel()
			for !slices.Contains(a.store.names(), "about") && ctx.Err() == nil { // what is kept now comes after what goes
				pause(ctx)
			}
			if names := a.store.names(); slices.Contains(names, "before-7") || ctx.Err() != nil {
				t.Errorf("held: %v", names)
			}
		})
	}
}

// An agent that is to have no hook socket lets go of the one that was held: hooks would
// wait there for nobody.
func TestHookSocketIsLetGo(t *testing.T) {
	a := StartAgent(t, AgentOptions{Store: true})
	a.Stop(t)
	if !slices.Contains(a.store.names(), "hook") {
		t.Fatalf("held: %v", a.store.names())
	}
	a.options.Args = []string{"--hook-socket", "none"}
	a.Start(t)
	if slices.Contains(a.store.names(), "hook") {
		t.Error("the hook socket is held")
	}
	if c, err := net.Dial("unix", a.HookSocket); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("who asks there: %v", err)
		c.Close()
	}
}

// What was counted before a time without counters stays counted when those after it are
// kept: by an agent that takes them up, and by one that finds the container ended.
func TestKeptAfterAGap(t *testing.T) {
	d := drivers["podman"](t)
	a := StartAgent(t, d.agent(AgentOptions{Policies: []string{targetPolicy}, Store: true}))
	d.attach(t, a)
	targetImage(t, d)
	lives, ends := d.start(t, targetName, "lives", "hello", "hello", "wait"), d.start(t, targetName, "ends", "hello", "hello", "wait")
	waitHellos(t, a, lives, 2)
	waitHellos(t, a, ends, 2)
	a.Stop(t)
	a.store.drop()
	a.Start(t)
	d.attach(t, a)
	for _, c := range []ran{lives, ends} {
		armedAgain(t, a, c, evidence.GapAgentDown)
		c.exec(t, "/bin/target", "hello", "hello", "hello")
	}
	a.Kill(t)
	for _, c := range []ran{lives, ends} {
		c.exec(t, "/bin/target", "hello", "hello", "hello", "hello")
	}
	ends.goOn(t)
	ends.wait(t)
	a.Start(t)
	d.attach(t, a)
	waitHellos(t, a, lives, 9)
	waitHellos(t, a, ends, 9)
	a.Kill(t)
	lives.exec(t, "/bin/target", "hello")
	a.Start(t)
	d.attach(t, a)
	lives.goOn(t, "hello")
	lives.wait(t)
	e := settled(t, a)
	want(t, e, lives.id(), "fn", "hello", evidence.Hit, "", 11)
	want(t, e, ends.id(), "fn", "hello", evidence.Hit, "", 9)
	for _, c := range []ran{lives, ends} { // init's, those of sessions, and of who let it go on
		n := uint64(3)
		if c == lives {
			n = 5
		}
		if o := e.Latest(c.id(), "exec", ""); o == nil || uint64(*o.Count) < n {
			t.Errorf("execs: %+v", o)
		}
	}
}
