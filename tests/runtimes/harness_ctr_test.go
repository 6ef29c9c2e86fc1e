package runtimes

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"probity/runtime/cgroup"
)

// ctrSuite is containerd by its own interface, as ctr has it, beside CRI. Nobody waits
// for the agent, and so the suite does: it starts a task when the agent has armed it.
type ctrSuite struct {
	containerdDriver
	t *testing.T // of all scenarios: their containers outlive the phases
	x ctrs
	a *Agent // that is to arm; it may not run
}

func newCtrSuite(t *testing.T) suite {
	d := containerdDriver{StartContainerd(t)}
	return &ctrSuite{containerdDriver: d, t: t, x: ctrs{d.Containerd, filepath.Base(d.Scratch.Cgroup)}}
}

func (s *ctrSuite) attach(t *testing.T, a *Agent) {
	s.a = a
	s.containerdDriver.attach(t, a)
	waitEvents(t, a, s.Containerd, isConnected)
}

func (s *ctrSuite) image(t *testing.T) {
	targetImage(t, s.containerdDriver)
	s.x.ctr(t, "images", "import", "--platform", "linux", s.Scratch.Path("target.tar"))
}

func (s *ctrSuite) cannot(scenario string) string {
	if scenario == failClosed {
		return "nobody is asked before a container starts"
	}
	return ""
}

func (s *ctrSuite) restart(t *testing.T, meanwhile func()) {
	s.Stop(t)
	meanwhile()
	s.Start(t)
	if s.agentRuns() {
		waitEvents(t, s.a, s.Containerd, isConnected)
	}
}

func (s *ctrSuite) versions(t *testing.T) map[string]string {
	return criSuite{driver: s.containerdDriver, program: "containerd", says: refusingContainerd{s.containerdDriver}.version}.versions(t)
}

func (s *ctrSuite) try(t T, name string, o manner, orders ...string) (life, error) {
	args := []string{"containers", "create", "--snapshotter", "overlayfs"}
	if help, err := s.x.try(t, "containers", "create", "--help"); err != nil {
		t.Fatalf("%v", err)
	} else if strings.Contains(help, "--runc-root") { // ctr 1.7 has these with run only: the shim's own are taken
		args = append(args, s.x.with(name)...)
	}
	if o.memory > 0 {
		args = append(args, "--memory-limit", strconv.FormatInt(o.memory, 10))
	}
	if o.sharePID {
		args = append(args, "--with-ns", fmt.Sprintf("pid:/proc/%d/ns/pid", s.holder(t).pid(t)))
	}
	s.x.ctr(t, append(args, append([]string{targetName, name, "/bin/target"}, orders...)...)...)
	c := ctrLife{s.x.ran(s.t, name), s, new(atomic.Int32)}
	return c, c.start(t)
}

// holder is a container that holds a pid namespace, as a pod's pause process does.
func (s *ctrSuite) holder(t T) ctrRan {
	t.Helper()
	r := ctrRan{s.x, "holder"}
	if _, err := s.x.try(t, "containers", "info", r.c); err != nil {
		s.x.run(s.t, r.c, "wait")
	}
	return r
}

// agentRuns reports whether there is an agent.
func (s *ctrSuite) agentRuns() bool {
	select {
	case <-s.a.Done():
		return false
	default:
		return true
	}
}

// ctrLife is a container of the suite.
type ctrLife struct {
	ctrRan
	s        *ctrSuite
	sessions *atomic.Int32
}

// start makes a task and starts it when it is armed.
func (r ctrLife) start(t T) error {
	t.Helper()
	start := r.x.task(t, r.c)
	pid := r.pid(t)
	ctx, cancel := within(t, Patience)
	defer cancel()
	for r.s.agentRuns() && !r.s.armed(t, r.c, pid) {
		if ctx.Err() != nil {
			t.Fatalf("task %s is not armed\n%s", r.c, r.s.a.server.tail())
		}
		pause(ctx)
	}
	start()
	return nil
}

// armed reports whether the agent has a run of the container that is in the cgroup of
// the process: an earlier life was in another.
func (s *ctrSuite) armed(t T, id string, pid int) bool {
	t.Helper()
	live, err := s.a.live(t)
	if err != nil { // it may have ended
		t.Logf("%v", err)
		return false
	}
	fs, err := cgroup.Find()
	if err != nil {
		t.Fatalf("%v", err)
	}
	_, own, err := fs.OfPid(pid)
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, l := range live {
		if l.Identity.ID == id && l.Identity.CgroupID == strconv.FormatUint(own, 10) {
			return true
		}
	}
	return false
}

func (r ctrLife) again(t T) life {
	r.wait(t)
	_, _ = r.x.try(t, "tasks", "delete", r.c) // exits as the task did
	if err := r.start(t); err != nil {
		t.Fatalf("%v", err)
	}
	return r
}

func (r ctrLife) session(args []string) []string {
	return slices.Concat([]string{"tasks", "exec", "--exec-id", fmt.Sprintf("x%d", r.sessions.Add(1)), r.c}, args)
}

func (r ctrLife) exec(t T, args ...string) {
	t.Helper()
	r.x.ctr(t, r.session(args)...)
}

func (r ctrLife) goOn(t T, orders ...string) {
	t.Helper()
	if _, err := r.x.try(t, r.session(slices.Concat([]string{"/bin/target"}, orders, []string{"go"}))...); err != nil {
		t.Logf("let it go on: %v", err) // if it does not, waiting for it fails
	}
}
