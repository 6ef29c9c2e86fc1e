package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/runtime/handoff"
	"probity/runtime/handoff/wire"
	"probity/runtime/nri"
)

// closedOn is a policy that requires the function of the box's program.
func closedOn(symbol, requires string) string {
	return "name: strict\nfailPolicy: closed\nprobes:\n  - id: f\n    type: uprobe\n    file: /bin/target\n    symbols: [" + symbol + "]\n    requires: " + requires + "\n" +
		"  - id: exec\n    type: tracepoint\n    event: sched:sched_process_exec\n"
}

// coverage stops the agent and returns the last coverage line of a container.
func (n *node) coverage(id string) (last *evidence.Coverage) {
	n.t.Helper()
	n.stop()
	files, err := filepath.Glob(n.cfg.Spool + "/ready/*/*.ndjson")
	must(n.t, err)
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(n.t, err)
		for line := range strings.Lines(string(b)) {
			if l, err := evidence.Decode(strings.TrimSuffix(line, "\n")); err == nil {
				if c, ok := l.(*evidence.Coverage); ok && c.ContainerID == id {
					last = c
				}
			}
		}
	}
	if last == nil {
		n.t.Fatalf("container %s has no coverage line", id)
	}
	return last
}

// enforced is what the line says of it: "", "yes" or "no".
func enforced(c *evidence.Coverage) string {
	switch {
	case c.FailPolicyEnforced == nil:
		return ""
	case *c.FailPolicyEnforced:
		return "yes"
	}
	return "no"
}

// What a start is told, and what is signed of it. (The names are those of directories
// that an overlay is mounted from, and have no comma then.)
func TestRequired(t *testing.T) {
	hook := func(n *node, c container.Notice) string { return n.notify(context.Background(), c, yes) }
	noTime := func(n *node, c container.Notice) string {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		return n.notify(ctx, c, yes)
	}
	for _, test := range []struct {
		name     string
		policy   string
		start    func(*node, container.Notice) string
		refused  string // what it is told, "" that it may start
		enforced string
		signed   string // refused of the coverage line; "same" as it was told
		gap      evidence.GapReason
	}{
		{"armed", closedOn("hello", "armed"), hook, "", "yes", "same", ""},
		{"armed, as is required of what is there", closedOn("hello", "armedIfPresent"), hook, "", "yes", "same", ""},
		{"nothing to arm", closedOn("absent", "armed"), hook, "probe f is not armed: symbolNotFound", "yes", "same", ""},
		{"nothing to arm, and nothing to miss", closedOn("absent", "armedIfPresent"), hook, "", "yes", "same", ""},
		{"nothing to arm, which is not required", closedOn("absent", "nothing"), hook, "", "yes", "same", ""},
		{"one of two", closedOn("hello, absent", "armed"), hook, "probe f is not armed: symbolNotFound", "yes", "same", ""},
		{"no policy requires anything", wanted, hook, "", "", "", ""},
		{"open, and no time", wanted, noTime, "", "", "", evidence.GapLateAttach},
		{"no time", closedOn("hello", "armed"), noTime, notInTime, "yes", "same", ""},
		{"late before the notice", closedOn("hello", "armed"), func(n *node, c container.Notice) string {
			told := n.late(c, true)
			if told != notInTime+", and policy strict may require probes of it" {
				n.t.Errorf("told %q", told)
			}
			return n.notify(context.Background(), c, nil)
		}, notInTime, "yes", "same", ""},
		{"nobody heard it", closedOn("absent", "armed"), func(n *node, c container.Notice) string {
			told := n.notify(context.Background(), c, yes)
			n.late(c, false)
			return told
		}, "probe f is not armed: symbolNotFound", "no", "same", ""},
		{"nobody heard it, before it was armed", closedOn("hello", "armed"), func(n *node, c container.Notice) string {
			n.late(c, false)
			return n.notify(context.Background(), c, nil)
		}, "", "no", "", evidence.GapLateAttach},
		{"the hook has gone", closedOn("hello", "armed"), func(n *node, c container.Notice) string {
			return n.notify(context.Background(), c, func() bool { return false })
		}, "", "no", "", evidence.GapLateAttach},
		{"CRI-O does not do what a plugin says", closedOn("absent", "armed"), func(n *node, c container.Notice) string {
			c.Source, c.Identity.Runtime = "nri:/test", container.CRIO
			return n.notify(context.Background(), c, nil)
		}, "", "no", "", ""},
		{"CRI-O does what its hook says", closedOn("absent", "armed"), func(n *node, c container.Notice) string {
			c.Identity.Runtime = container.CRIO
			return n.notify(context.Background(), c, nil)
		}, "probe f is not armed: symbolNotFound", "yes", "same", ""},
		{"told of a second time", closedOn("absent", "armed"), func(n *node, c container.Notice) string {
			n.notify(context.Background(), c, yes)
			return n.notify(context.Background(), c, yes)
		}, "probe f is not armed: symbolNotFound", "yes", "same", ""},
	} {
		t.Run(strings.ReplaceAll(test.name, ",", ""), func(t *testing.T) {
			n := newNodeWith(t, Config{}, test.policy)
			b := newBox(t, 1)
			if got := test.start(n, b.notice("c1")); got != test.refused {
				t.Errorf("told %q, want %q", got, test.refused)
			}
			if l := n.onlyRun(); test.refused == "" {
				<-l.armed
				b.run()
			}
			b.end()
			must(t, n.waitIdle(context.Background()))
			_, gaps := n.lines("c1")
			if test.gap == "" && len(gaps) > 0 || test.gap != "" && (len(gaps) != 1 || gaps[0].Reason != test.gap) {
				t.Errorf("gaps %+v", gaps)
			}
			c := n.coverage("c1")
			if test.signed == "same" {
				test.signed = test.refused
			}
			if enforced(c) != test.enforced || c.Refused != test.signed || !c.Final {
				t.Errorf("enforced %q, refused %q, final %v; want %q, %q", enforced(c), c.Refused, c.Final, test.enforced, test.signed)
			}
		})
	}
}

// A kernel that refuses the programs arms nothing, and so does what requires them.
func TestRequiredOfTheKernel(t *testing.T) {
	n := newNodeWith(t, Config{BPF: bpf.Options{RingBytes: 1}}, closedOn("hello", "armedIfPresent"))
	b := newBox(t, 1)
	if got := n.notify(context.Background(), b.notice("c1"), yes); got != "probe f is not armed: kernelUnsupported" {
		t.Errorf("told %q", got)
	}
	b.end()
	must(t, n.waitIdle(context.Background()))
	if c := n.coverage("c1"); enforced(c) != "yes" || c.Refused == "" {
		t.Errorf("%+v", c)
	}
}

// What runs already is never refused, and it is signed that it may have started
// without. But one that was only thought to run, and waits, is.
func TestRequiredOfWhatRuns(t *testing.T) {
	n := newNodeWith(t, Config{}, closedOn("absent", "armed"))
	b := newBox(t, 1)
	if got := n.notify(context.Background(), b.existing("c1"), nil); got != "" {
		t.Errorf("told %q", got)
	}
	must(t, n.waitAdopted())
	<-n.onlyRun().armed
	if got := n.notify(context.Background(), b.notice("c1"), yes); got != "probe f is not armed: symbolNotFound" {
		t.Errorf("told %q", got)
	}
	b.end()
	must(t, n.waitIdle(context.Background()))
	if c := n.coverage("c1"); enforced(c) != "no" || c.Refused != "probe f is not armed: symbolNotFound" {
		t.Errorf("enforced %q, refused %q", enforced(c), c.Refused)
	}
}

// A container of which it cannot be found out whether a policy is for it.
func TestStranger(t *testing.T) {
	of := func(selector string) string {
		return strings.Replace(closedOn("hello", "armed"), "failPolicy", "select: "+selector+"\nfailPolicy", 1)
	}
	for _, test := range []struct {
		name, selector string
		change         func(*container.Notice)
		refused        bool
	}{
		{"podman, image not found", "{images: [shop/*]}", func(n *container.Notice) { n.Identity.Runtime, n.Identity.Name = container.Podman, "web" }, true},
		{"podman, image not found, and another name", "{images: [shop/*], containers: [db]}", func(n *container.Notice) { n.Identity.Runtime, n.Identity.Name = container.Podman, "web" }, false},
		{"podman, no name found", "{containers: [db]}", func(n *container.Notice) { n.Identity.Runtime = container.Podman }, true},
		{"podman, of another runtime's policy", "{images: [shop/*], runtimes: [containerd]}", func(n *container.Notice) { n.Identity.Runtime = container.Podman }, false},
		{"containerd, another namespace", "{images: [shop/*], namespaces: [pay]}", func(n *container.Notice) { n.Source, n.Identity.Runtime = "nri:/test", container.Containerd }, false},
		{"runc has no images", "{images: [shop/*]}", func(*container.Notice) {}, false},
		{"CRI-O would not do it", "{images: [shop/*]}", func(n *container.Notice) { n.Source, n.Identity.Runtime = "nri:/test", container.CRIO }, false},
		{"a hook of CRI-O that nobody announced", "{images: [shop/*]}", func(n *container.Notice) { n.Identity.Runtime = container.CRIO }, true},
		{"that it ended", "{images: [shop/*]}", func(n *container.Notice) { n.Kind, n.Identity.Runtime = container.Stopped, container.Podman }, false},
	} {
		t.Run(strings.ReplaceAll(test.name, ",", ""), func(t *testing.T) {
			n := newNodeWith(t, Config{}, of(test.selector))
			b := newBox(t, 1)
			notice := b.notice("c1")
			test.change(&notice)
			told := n.notify(context.Background(), notice, yes)
			if (told != "") != test.refused || test.refused && !strings.Contains(told, "policy strict may require probes") {
				t.Errorf("told %q", told)
			}
			var signed bool
			for _, g := range n.gapsOf(evidence.ScopeSource) {
				signed = signed || g.Detail == "container c1 was refused: "+told
			}
			if signed != test.refused {
				t.Errorf("signed: %v", signed)
			}
		})
	}
}

// A container of CRI-O is who CRI-O said, not what its hook can tell: it is refused by the
// policies that are for it, and by no others.
func TestHookedByCRIO(t *testing.T) {
	closed := strings.Replace(closedOn("absent", "armed"), "failPolicy", "select: {images: [shop/*], namespaces: [pay]}\nfailPolicy", 1)
	n := newNodeWith(t, Config{HookProgram: "/bin/true"}, closed)
	if n.cannotHook() != "" {
		t.Fatal("no hook is added")
	}
	made := func(id, image, namespace string) container.Notice {
		return container.Notice{Source: "nri:/test", Kind: container.Created, At: cgroup.BootTime(), Identity: container.Identity{
			Runtime: container.CRIO, ID: id, Name: "web", Image: container.Image{Name: image, DigestReason: "x"}, Pod: &container.Pod{ID: "p", Name: "web-0", Namespace: namespace},
		}}
	}
	if h := n.hookFor(made("other", "shop/web", "test")); h != nil {
		t.Errorf("a container that no closed policy selects is given a hook: %+v", h)
	}
	h := n.hookFor(made("c1", "shop/web", "pay"))
	if h == nil || h.Path != "/bin/true" || !slices.Equal(h.Args, []string{"probity-hook", "createRuntime", "--socket", n.cfg.HookSocket}) {
		t.Fatalf("its hook: %+v", h)
	}
	b := newBox(t, 1)
	told := b.notice("c1")
	told.Identity = container.Identity{Runtime: container.CRIO, ID: "c1", Image: container.Image{DigestReason: "x"}}
	n.who(&told.Identity)
	if got := n.notify(context.Background(), told, yes); got != "probe f is not armed: symbolNotFound" {
		t.Errorf("told %q", got)
	}
	b.end()
	must(t, n.waitIdle(context.Background()))
	if c := n.coverage("c1"); enforced(c) != "yes" || c.Refused == "" || c.Pod == nil || c.Pod.Namespace != "pay" || c.Image != "shop/web" {
		t.Errorf("%+v", c)
	}
	gone := made("c1", "shop/web", "pay")
	gone.Kind = container.Removed
	n.notify(context.Background(), gone, nil)
	if len(n.hooked) > 0 {
		t.Errorf("%v are remembered", n.hooked)
	}
}

// Without a program there is no hook, and the operator is told.
func TestNoHookForCRIO(t *testing.T) {
	n := newNodeWith(t, Config{HookProgram: "/does/not/exist"}, closedOn("absent", "armed"))
	for _, p := range n.Status().Problems {
		if strings.Contains(p, "/does/not/exist") {
			t.Errorf("without an NRI socket: %s", p)
		}
	}
	n.cfg.NRISockets = []string{"/run/nri.sock"}
	n.checkHook(n.inForce().Set)
	if n.cannotHook() == "" || !slices.ContainsFunc(n.Status().Problems, func(p string) bool { return strings.Contains(p, "/does/not/exist") }) {
		t.Errorf("problems: %q", n.Status().Problems)
	}
}

// A hook whose container cannot be made out is answered as the policies say, and it
// is signed.
func TestHookNotBelieved(t *testing.T) {
	for _, closed := range []bool{true, false} {
		text := wanted
		if closed {
			text = closedOn("hello", "armed")
		}
		n := newNodeWith(t, Config{}, text)
		for name, answer := range map[string]func() handoff.Answer{
			"not JSON": func() handoff.Answer {
				return n.hook(context.Background(), handoff.Request{Stage: wire.CreateRuntime, Body: []byte("container")})
			},
			"a pid that is not the container's": func() handoff.Answer {
				return n.hook(context.Background(), handoff.Request{Stage: wire.CreateRuntime, Body: []byte(`{"ociVersion":"1.0.2","id":"a","status":"creating","pid":1,"bundle":"/"}`)})
			},
			"too long": func() handoff.Answer { return n.hookRejected(handoff.Peer{}, handoff.ErrTooLong) },
			"empty":    func() handoff.Answer { return n.hookRejected(handoff.Peer{}, handoff.ErrEmpty) },
			"late, and not JSON": func() handoff.Answer {
				return n.hookLate(handoff.Request{Stage: wire.CreateRuntime, Body: []byte("{")}, true)
			},
			"late, and nobody yet": func() handoff.Answer {
				return n.hookLate(handoff.Request{Stage: wire.CreateRuntime, Body: []byte(`{"ociVersion":"1.0.2","id":"b","status":"creating","pid":1,"bundle":"/b"}`)}, true)
			},
		} {
			if a := answer(); a.Refuse != closed || closed && !strings.Contains(a.Message, "policy strict may require probes of it") {
				t.Errorf("%s, closed %v: %+v", name, closed, a)
			}
		}
		for name, answer := range map[string]func() handoff.Answer{
			"poststop": func() handoff.Answer {
				return n.hook(context.Background(), handoff.Request{Stage: wire.Poststop, Body: []byte("x")})
			},
			"a late poststop": func() handoff.Answer {
				return n.hookLate(handoff.Request{Stage: wire.Poststop, Body: []byte("x")}, true)
			},
			"a user": func() handoff.Answer { return n.hookRejected(handoff.Peer{Uid: 1000}, handoff.ErrNotRoot) },
			"who does not wait": func() handoff.Answer {
				return n.hookLate(handoff.Request{Stage: wire.CreateRuntime, Body: []byte(`{"ociVersion":"1.0.2","id":"b","status":"creating","pid":1,"bundle":"/b"}`)}, false)
			},
		} {
			if a := answer(); a.Refuse {
				t.Errorf("%s, closed %v: %+v", name, closed, a)
			}
		}
		refused := 0
		for _, g := range n.gapsOf(evidence.ScopeSource) {
			if strings.HasPrefix(g.Detail, "refused: ") {
				refused++
			}
		}
		if want := map[bool]int{true: 4}[closed]; refused != want {
			t.Errorf("closed %v: %d gaps of refused containers, want %d", closed, refused, want)
		}
	}
}

func TestRefusalOf(t *testing.T) {
	if err := refusalOf(""); err != nil {
		t.Error(err)
	}
	if err := refusalOf("why"); !errors.Is(err, nri.ErrRefused) || err.Error() != "probity: refused: why" {
		t.Error(err)
	}
}

// What was armed meets a requirement, or does not.
func TestUnmet(t *testing.T) {
	site := func(id string, reason evidence.NotArmedReason) probe.Site {
		return probe.Site{Planned: &probe.Planned{Probe: &policy.Probe{ID: id}}, Armed: reason == "", Reason: reason}
	}
	whole, part := []probe.Search{{ProbeID: "a", Complete: true}}, []probe.Search{{ProbeID: "a", Why: "/srv/secret"}}
	for _, c := range []struct {
		requires string
		sites    []probe.Site
		searches []probe.Search
		want     string
	}{
		{policy.RequireArmed, []probe.Site{site("a", "")}, whole, ""},
		{policy.RequireArmed, []probe.Site{site("a", ""), site("a", evidence.UnprobeableInstruction)}, whole, "probe a is not armed: unprobeableInstruction"},
		{policy.RequireArmed, []probe.Site{site("a", "")}, part, "probe a: the search for what it is about was not complete"},
		{policy.RequireArmed, []probe.Site{site("a", "")}, nil, "probe a: the search for what it is about was not complete"},
		{policy.RequireArmed, []probe.Site{site("b", "")}, whole, "probe a has nothing to arm"},
		{policy.RequireArmed, []probe.Site{site("a", evidence.FileNotFound)}, whole, "probe a is not armed: fileNotFound"},
		{policy.RequireArmedIfPresent, []probe.Site{site("a", evidence.FileNotFound)}, whole, ""},
		{policy.RequireArmedIfPresent, []probe.Site{site("a", evidence.FileNotFound)}, part, "probe a: the search for what it is about was not complete"},
		{policy.RequireArmedIfPresent, []probe.Site{site("a", ""), site("a", evidence.SymbolNotFound)}, whole, ""},
		{policy.RequireArmedIfPresent, []probe.Site{site("a", evidence.NotArmedReason("budget"))}, whole, "probe a is not armed: budget"},
		{policy.RequireArmedIfPresent, nil, whole, ""},
		{policy.RequireNothing, []probe.Site{site("a", evidence.NotArmedReason("budget"))}, part, ""},
		{"", nil, nil, ""},
	} {
		if got := unmet([]policy.Probe{{ID: "a", Requires: c.requires}}, c.sites, c.searches); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// Another container that has the id, of a runtime with another state directory, does not
// start because the first is armed, nor is that one told that it was let go.
func TestLateOfAnother(t *testing.T) {
	n := newNodeWith(t, Config{}, closedOn("hello", "armed"))
	b, other := newBox(t, 1), newBox(t, 1)
	if got := n.notify(context.Background(), b.notice("c1"), yes); got != "" {
		t.Errorf("told %q", got)
	}
	if got := n.late(other.notice("c1"), true); got == "" {
		t.Error("another of that id is armed, and this one may start")
	}
	n.late(other.notice("c1"), false)
	b.run()
	b.end()
	must(t, n.waitIdle(context.Background()))
	if c := n.coverage("c1"); enforced(c) != "yes" || c.Refused != "" {
		t.Errorf("enforced %q, refused %q", enforced(c), c.Refused)
	}
}

// Other lives of a container are not this one.
func TestLateOfAnotherLife(t *testing.T) {
	n := newNodeWith(t, Config{}, closedOn("hello", "armed"))
	b := newBox(t, 1)
	if got := n.notify(context.Background(), b.notice("c1"), yes); got != "" {
		t.Errorf("told %q", got)
	}
	l := n.onlyRun()
	l.since = l.since.Add(-2 * recentStart)
	next := b.notice("c1")
	next.At = cgroup.BootTime()
	if got := n.late(next, true); got == "" {
		t.Error("the life before was armed, and this one may start")
	}
	b.run()
	b.end()
	must(t, n.waitIdle(context.Background()))
	if c := n.coverage("c1"); enforced(c) != "yes" || c.Refused != "" {
		t.Errorf("enforced %q, refused %q", enforced(c), c.Refused)
	}
}

// What an earlier agent signed of a start is true of the run for good.
func TestRequiredBefore(t *testing.T) {
	n := newNodeWith(t, Config{}, closedOn("hello", "armed"))
	b := newBox(t, 1)
	if got := n.notify(context.Background(), b.notice("c1"), yes); got != "" {
		t.Fatalf("told %q", got)
	}
	n.stop()
	cfg := n.cfg
	cfg.Barrier = 0
	// Its policy requires what this container does not have.
	must(t, os.WriteFile(cfg.Policies+"/test.yaml", []byte(closedOn("absent", "armed")), 0o600))
	ready := make(chan struct{})
	cfg.Ready = func() { close(ready) }
	a, err := New(cfg)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	<-ready
	next := &node{a, t, sync.OnceFunc(func() { cancel(); must(t, <-done) })}
	t.Cleanup(next.stop)
	if got := next.notify(context.Background(), b.existing("c1"), nil); got != "" {
		t.Errorf("told %q", got)
	}
	must(t, next.waitAdopted())
	b.run()
	b.end()
	must(t, next.waitIdle(context.Background()))
	if c := next.coverage("c1"); enforced(c) != "yes" || c.Refused != "" || !c.Final {
		t.Errorf("enforced %q, refused %q, final %v", enforced(c), c.Refused, c.Final)
	}
}
