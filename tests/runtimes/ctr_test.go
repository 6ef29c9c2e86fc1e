package runtimes

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"

	"probity/evidence"
	"probity/runtime/containerd"
)

// ctrs are containers of a containerd that are not CRI's, in a namespace of their own.
type ctrs struct {
	c         *Containerd
	namespace string
}

func (x ctrs) try(t T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	return output(exec.CommandContext(ctx, x.c.tools.Ctr, append([]string{"--address", x.c.Address, "--namespace", x.namespace}, args...)...))
}

func (x ctrs) ctr(t T, args ...string) string {
	t.Helper()
	out, err := x.try(t, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, x.c.server.tail())
	}
	return out
}

// with are the options of every container: its runtime's state is ours, as its cgroup
// is, which is NAMESPACE/ID.
func (x ctrs) with(id string) []string {
	return []string{
		"--label", "who=" + id, "--runc-binary", runc(), "--runc-root", filepath.Join(x.c.Scratch.Dir, "containerd", "runc"),
	}
}

// run starts a container with ctr run.
func (x ctrs) run(t T, id string, args ...string) ctrRan {
	t.Helper()
	x.ctr(t, slices.Concat([]string{"run", "--detach", "--null-io"}, x.with(id), []string{targetName, id, "/bin/target"}, args)...)
	return x.ran(t, id)
}

func (x ctrs) ran(t T, id string) ctrRan {
	t.Cleanup(func() {
		ctx, cancel := within(nil, Patience)
		defer cancel()
		for _, args := range [][]string{{"tasks", "delete", "--force", id}, {"containers", "delete", id}} {
			// Most tests have removed it.
			_ = exec.CommandContext(ctx, x.c.tools.Ctr, append([]string{"--address", x.c.Address, "--namespace", x.namespace}, args...)...).Run()
		}
	})
	return ctrRan{x, id}
}

// create makes a container and its task, which start starts: ctr does both at once.
func (x ctrs) create(t T, id string, args ...string) (c ctrRan, start func()) {
	t.Helper()
	x.ctr(t, slices.Concat([]string{"containers", "create", "--snapshotter", "overlayfs"}, x.with(id), []string{targetName, id, "/bin/target"}, args)...)
	c = x.ran(t, id)
	return c, x.task(t, id)
}

// task makes the task of a container, and returns what starts it.
func (x ctrs) task(t T, id string) (start func()) {
	t.Helper()
	ctx, cancel := within(t, Patience)
	t.Cleanup(cancel)
	ctx = containerd.In(ctx, x.namespace)
	m, err := snapshots.NewSnapshotsClient(x.c.conn).Mounts(ctx, &snapshots.MountsRequest{Snapshotter: "overlayfs", Key: id})
	if err != nil {
		t.Fatalf("%v", err)
	}
	client := tasks.NewTasksClient(x.c.conn)
	if _, err := client.Create(ctx, &tasks.CreateTaskRequest{ContainerID: id, Rootfs: m.GetMounts()}); err != nil {
		t.Fatalf("create task %s: %v\n%s", id, err, x.c.server.tail())
	}
	return func() {
		t.Helper()
		if _, err := client.Start(ctx, &tasks.StartRequest{ContainerID: id}); err != nil {
			t.Fatalf("start task %s: %v\n%s", id, err, x.c.server.tail())
		}
	}
}

type ctrRan struct {
	x ctrs
	c string
}

func (r ctrRan) id() string { return r.c }

// wait waits for the end and takes the task away, whose exit code is ctr's then.
func (r ctrRan) wait(t T) int {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	w, err := tasks.NewTasksClient(r.x.c.conn).Wait(containerd.In(ctx, r.x.namespace), &tasks.WaitRequest{ContainerID: r.c})
	if err != nil {
		t.Fatalf("wait for %s: %v", r.c, err)
	}
	return int(w.GetExitStatus())
}

func (r ctrRan) pid(t T) int {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	g, err := tasks.NewTasksClient(r.x.c.conn).Get(containerd.In(ctx, r.x.namespace), &tasks.GetRequest{ContainerID: r.c})
	if err != nil {
		t.Fatalf("task %s: %v", r.c, err)
	}
	return int(g.GetProcess().GetPid())
}

func (r ctrRan) stop(t T) {
	t.Helper()
	r.x.ctr(t, "tasks", "kill", "--signal", "SIGKILL", r.c)
	r.wait(t)
}

func (r ctrRan) remove(t T) {
	t.Helper()
	_, _ = r.x.try(t, "tasks", "delete", r.c) // exits as the task did
	r.x.ctr(t, "containers", "delete", r.c)
}

func (r ctrRan) exec(t T, args ...string) {
	t.Helper()
	r.x.ctr(t, append([]string{"tasks", "exec", "--exec-id", "x-" + strings.Join(args[1:], "-"), r.c}, args...)...)
}

func (r ctrRan) goOn(t T, orders ...string) {
	t.Helper()
	if _, err := r.x.try(t, append([]string{"tasks", "exec", "--exec-id", "go", r.c, "/bin/target"}, append(orders, "go")...)...); err != nil {
		t.Logf("let it go on: %v", err) // if it does not, waiting for it fails
	}
}

// waitEvents waits until the agent hears of c's tasks, too.
func waitEvents(t *testing.T, a *Agent, c *Containerd, want func(state string) bool) {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	var status agentStatus
	for ctx.Err() == nil {
		var err error
		if status, err = a.status(t); err != nil {
			t.Fatal(err)
		}
		if want(status.Sources["events:"+c.Address]) {
			return
		}
		pause(ctx)
	}
	t.Fatalf("sources: %v\n%s", status.Sources, a.server.tail())
}

func isConnected(state string) bool { return state == "connected" }

// armed waits for the first lines of a container's run.
func (r ctrRan) armed(t *testing.T, a *Agent) {
	t.Helper()
	a.WaitLine(t, func(e Evidence) bool { return e.Latest(r.c, "fn", "hello") != nil })
}

// Containers that are not CRI's are told of by containerd's events: one that ran before
// the agent is adopted, one that is armed while its task is only created is proven, one
// that does not wait for that has a gap if it was not in time. CRI's beside them stays
// NRI's. While containerd is away, and when it is back, nothing is lost.
func TestCtr(t *testing.T) {
	c := StartContainerd(t)
	d := containerdDriver{c}
	digest := targetImage(t, d)
	x := ctrs{c, filepath.Base(c.Scratch.Cgroup)}
	x.ctr(t, "images", "import", "--platform", "linux", c.Scratch.Path("target.tar"))

	early := x.run(t, "early", "hello", "wait", "goodbye")
	a := StartAgent(t, d.agent(AgentOptions{Policies: []string{targetPolicy}}))
	d.attach(t, a)
	waitEvents(t, a, c, isConnected)
	armedAgain(t, a, early, evidence.GapAdopted)

	proven, start := x.create(t, "proven", "hello", "wait", "goodbye")
	proven.armed(t, a)
	start()
	cri := d.start(t, targetName, "cri", "hello")
	at := x.run(t, "at-once", "hello", "wait")
	at.armed(t, a)
	proven.exec(t, "/bin/target", "hello") // whose end is not the container's
	proven.goOn(t)
	for _, r := range []ran{proven, cri} {
		if code := r.wait(t); code != 0 {
			t.Errorf("%s: exit code %d", r.id(), code)
		}
	}

	// containerd is away: at-once ends then, and early goes on.
	pid := at.pid(t)
	c.Stop(t)
	waitEvents(t, a, c, func(state string) bool { return strings.HasPrefix(state, "disconnected") })
	waitGone([]int{pid})
	a.WaitLine(t, func(e Evidence) bool { c := e.Cover("at-once"); return c != nil && c.Final })
	c.Start(t)
	d.attach(t, a)
	waitEvents(t, a, c, isConnected)
	early.exec(t, "/bin/target", "hello")
	early.goOn(t)
	early.wait(t)
	early.remove(t)
	unseen(t, x, a)
	e := settled(t, a)

	hello := want(t, e, proven.id(), "fn", "hello", evidence.Hit, "", 2)
	if !hello.Complete || !hello.Final || len(hello.Gaps) != 0 || hello.ImageDigest != digest || hello.Runtime != "containerd" || hello.LayerDiffID == "" {
		t.Errorf("%+v", hello)
	}
	want(t, e, proven.id(), "fn", "never", evidence.ArmedNoHit, "", 0)
	if v := e.Cover(proven.id()); !v.Final || v.ContainerName != "proven" || v.Image != targetName || v.Source != "events:"+c.Address || v.Pod != nil || v.FirstExec.IsZero() || len(v.GapReasons) != 0 {
		t.Errorf("coverage %+v", v)
	}

	want(t, e, early.id(), "fn", "hello", evidence.Hit, "", 1)
	want(t, e, early.id(), "fn", "goodbye", evidence.Hit, "", 1)
	if never := want(t, e, early.id(), "fn", "never", evidence.Partial, "", 0); len(never.Gaps) != 1 || never.Gaps[0].Reason != evidence.GapAdopted {
		t.Errorf("%+v", never)
	}

	want(t, e, cri.id(), "fn", "hello", evidence.Hit, "", 1)
	want(t, e, cri.id(), "fn", "never", evidence.ArmedNoHit, "", 0)
	if v := e.Cover(cri.id()); !strings.HasPrefix(v.Source, "nri:") || v.Pod == nil || len(v.GapReasons) != 0 {
		t.Errorf("coverage of CRI's container %+v", v)
	}

	rightAbout(t, e, at.id())
	away := slices.DeleteFunc(e.GapsOf("", evidence.GapRuntimeDisconnected), func(g *evidence.Gap) bool {
		return g.Source != "events:"+c.Address || g.To.IsZero() || !strings.Contains(g.Detail, "connection")
	})
	if len(away) != 2 { // until the agent was connected, and while containerd was away
		for _, g := range away {
			t.Errorf("a window in which events were not heard: %+v", *g)
		}
	}
}

// rightAbout checks what is said of a container that did not wait: whoever was first, the
// evidence is right about it.
func rightAbout(t *testing.T, e Evidence, id string) {
	t.Helper()
	never, hits := e.Latest(id, "fn", "never"), e.Latest(id, "fn", "hello")
	gap := runGaps(e.GapsOf(id, evidence.GapLateAttach))
	gap = append(gap, runGaps(e.GapsOf(id, evidence.GapAdopted))...)
	switch {
	case len(gap) == 0 && (hits.State != evidence.Hit || *hits.Count != 1 || never.State != evidence.ArmedNoHit):
		t.Errorf("no gap, and %+v, %+v", hits, never)
	case len(gap) != 0 && (never.State != evidence.Partial || gap[0].To.IsZero()):
		t.Errorf("gaps %+v, and %+v, %+v", gap, hits, never)
	}
	t.Logf("a container that ctr run starts: %s", hits.State)
	for _, g := range gap {
		t.Logf("%s %v", g.Reason, g.To.Std().Sub(g.From.Std()))
	}
}

// everybody is a policy for every container, of which it requires what the target lacks.
const everybody = `
name: everybody
failPolicy: closed
probes:
  - {id: fn, type: uprobe, file: /bin/target, symbols: [hello, goodbye, never, absent]}
`

// Where NRI is off, CRI's containers are taken from the events as well: with their pods,
// and without the pause processes. Nobody is refused, and the evidence says so. One id in
// two namespaces is two containers.
func TestCtrWithoutNRI(t *testing.T) {
	c := StartContainerd(t)
	d := containerdDriver{c}
	digest := targetImage(t, d)
	before := d.start(t, targetName, "before", "hello", "wait", "hello")
	o := AgentOptions{Policies: []string{everybody}, Containerd: c.Address, NRISockets: []string{c.Scratch.Path("absent.sock")}}
	a := StartAgent(t, o)
	waitEvents(t, a, c, isConnected)
	after := d.start(t, targetName, "after", "wait", "hello")
	armedAgain(t, a, before, evidence.GapAdopted)
	armedAgain(t, a, after, evidence.GapAdopted)

	twins := []ctrs{{c, filepath.Base(c.Scratch.Cgroup)}, {c, "another"}}
	var both []ctrRan
	for i, x := range twins {
		x.ctr(t, "images", "import", "--platform", "linux", c.Scratch.Path("target.tar"))
		x.ctr(t, append([]string{"run", "--detach", "--null-io", "--cgroup", fmt.Sprintf("%s/twin%d", c.Scratch.Cgroup, i)},
			slices.Concat(x.with("twin"), []string{targetName, "twin", "/bin/target", "wait", "hello"})...)...)
		both = append(both, x.ran(t, "twin"))
	}
	runsOf := func(e Evidence) map[string]*evidence.Coverage {
		runs := map[string]*evidence.Coverage{}
		for _, v := range e.Coverage {
			if v.ContainerID == "twin" {
				runs[v.CgroupPath] = v
			}
		}
		return runs
	}
	a.WaitLine(t, func(e Evidence) bool { return len(runsOf(e)) == 2 })
	both[0].goOn(t)
	both[0].wait(t)
	both[0].remove(t)
	a.WaitLine(t, func(e Evidence) bool { return runsOf(e)[c.Scratch.Cgroup+"/twin0"].Final })
	if runsOf(a.Evidence(t))[c.Scratch.Cgroup+"/twin1"].Final {
		t.Error("the end of one ended the other")
	}
	both[1].goOn(t)
	for _, r := range []ran{before, after} {
		r.goOn(t)
	}
	for _, r := range []ran{before, after, both[1]} {
		if code := r.wait(t); code != 0 {
			t.Errorf("%s: exit code %d", r.id(), code)
		}
	}
	e := settled(t, a)
	for _, r := range []ran{before, after, both[1]} {
		o := want(t, e, r.id(), "fn", "hello", evidence.Hit, "", 1)
		if o.ImageDigest != digest {
			t.Errorf("%+v", o)
		}
		if v := e.Cover(r.id()); v.FailPolicyEnforced == nil || *v.FailPolicyEnforced || v.Refused != "" || v.Source != "events:"+c.Address {
			t.Errorf("coverage %+v", v)
		}
	}
	for name, r := range map[string]ran{"before": before, "after": after} {
		want(t, e, r.id(), "fn", "never", evidence.Partial, "", 0)
		if v := e.Cover(r.id()); v.ContainerName != name || v.Image != targetName || v.Pod == nil || v.Pod.Name != name+"-pod" || v.Pod.Namespace != "default" || v.Pod.UID == "" {
			t.Errorf("coverage %+v", v)
		}
	}
	if runs := runsOf(e); len(runs) != 2 || runs[c.Scratch.Cgroup+"/twin0"].RunID == runs[c.Scratch.Cgroup+"/twin1"].RunID {
		t.Errorf("runs of the twins: %+v", runs)
	}
	for _, v := range e.Coverage {
		if !slices.Contains([]string{before.id(), after.id(), "twin"}, v.ContainerID) {
			t.Errorf("a container that is none: %+v", v)
		}
	}
}

// unseen has containers come and go while the agent stands still. One that has ended
// before the agent could look at it is a gap from before its first instruction on, also
// if nobody can say any more what it was.
func unseen(t *testing.T, x ctrs, a *Agent) {
	t.Helper()
	signal := func(s syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(a.Pid(), s); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGSTOP)
	t.Cleanup(func() { _ = syscall.Kill(a.Pid(), syscall.SIGCONT) }) // else it does not end
	before := time.Now()
	x.ctr(t, slices.Concat([]string{"run", "--rm", "--null-io"}, x.with("gone"), []string{targetName, "gone", "/bin/target", "hello"})...)
	ended := x.run(t, "ended", "hello")
	ended.wait(t)
	after := time.Now()
	signal(syscall.SIGCONT)
	of := func(e Evidence, id string) []*evidence.Gap {
		return slices.DeleteFunc(e.GapsOf("", evidence.GapRuntimeDisconnected), func(g *evidence.Gap) bool {
			return g.Source != "events:"+x.c.Address || !strings.Contains(g.Detail, "container "+id)
		})
	}
	e := a.WaitLine(t, func(e Evidence) bool { return len(of(e, "gone")) > 0 && len(of(e, "ended")) > 0 })
	for _, id := range []string{"gone", "ended"} {
		// They began after the first moment, and ended before the last.
		g := of(e, id)
		if len(g) != 1 || g[0].From.Std().After(after) || g[0].From.Std().Before(before) || !g[0].To.Std().After(after) {
			t.Errorf("%s: gaps %+v, want one from between %v and %v", id, g, before, after)
		}
	}
}
