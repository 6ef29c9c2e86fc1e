package agent

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"probity/bpf"
	"probity/evidence"
	"probity/evidence/spool"
	"probity/runtime/container"
	"probity/runtime/image"
	"probity/runtime/oci"
	"probity/tests/need"
)

// existing is the notice of a box that a source finds running.
func (b *box) existing(id string) container.Notice {
	n := b.notice(id)
	n.Kind, n.Source, n.CgroupName = container.Existing, "nri:test", filepath.Base(b.cgroup)
	return n
}

// gapsOf stops the agent and returns all gaps of a scope.
func (n *node) gapsOf(scope string) (gaps []*evidence.Gap) {
	n.t.Helper()
	n.stop()
	files, err := filepath.Glob(n.cfg.Spool + "/ready/*/*.ndjson")
	must(n.t, err)
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(n.t, err)
		for line := range strings.Lines(string(b)) {
			if l, err := evidence.Decode(strings.TrimSuffix(line, "\n")); err == nil {
				if g, ok := l.(*evidence.Gap); ok && g.Scope == scope {
					gaps = append(gaps, g)
				}
			}
		}
	}
	return gaps
}

// waitAdopted returns when nothing waits to be adopted.
func (n *node) waitAdopted() error {
	for {
		n.mu.Lock()
		busy, changed := n.busy, n.changed
		n.mu.Unlock()
		if busy == 0 {
			return nil
		}
		<-changed
	}
}

// A container that runs already is armed as it is: what it does from then on is
// seen, by its first process and by others that it has, and nothing is armedNoHit.
// Who tells of it again changes nothing.
func TestAdopt(t *testing.T) {
	n := newNode(t, bpf.Options{})
	b := newBox(t, 1, "hello")
	n.notify(context.Background(), b.existing("c1"), nil)
	n.notify(context.Background(), b.existing("c1"), nil)
	must(t, n.waitAdopted())
	n.notify(context.Background(), b.notice("c1"), yes) // a hook of the same run
	n.notify(context.Background(), b.existing("c1"), nil)
	if l := n.runs(); len(l) != 1 || !l[0].isArmed() {
		t.Fatalf("%d runs", len(l))
	}
	b.run()
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, gaps := n.lines("c1")
	hello, never := obs["hello"], obs["never"]
	if hello.State != evidence.Hit || *hello.Count != 1 || hello.Complete || !hello.Final {
		t.Errorf("hello: %+v", hello)
	}
	if never.State != evidence.Partial || !never.Final {
		t.Errorf("never: %+v", never)
	}
	if len(gaps) != 1 || gaps[0].Reason != evidence.GapAdopted || gaps[0].Scope != evidence.ScopeRun || gaps[0].To.IsZero() {
		t.Fatalf("gaps %+v", gaps)
	}
	// From its start, to the tick, which was before anybody told of it.
	if !gaps[0].From.Std().Before(gaps[0].To.Std()) || gaps[0].From != never.From {
		t.Errorf("gap %+v, window from %v", gaps[0], never.From)
	}
}

// What a source claims of a container that runs is put to /proc: it is signed that
// it is not adopted, and nothing is armed.
func TestAdoptOnlyTheTruth(t *testing.T) {
	n := newNode(t, bpf.Options{})
	b := newBox(t, 1)
	ended := newBox(t, 1)
	gone := ended.existing("ended")
	ended.end()
	elsewhere := b.existing("elsewhere")
	elsewhere.CgroupName = "another"
	host := b.existing("host")
	host.Pid, host.CgroupName = 1, ""
	nobody := b.existing("nobody")
	nobody.Pid = 0
	start, err := oci.StartTicks(b.cmd.Process.Pid)
	must(t, err)
	// What its source saw when it looked, and is another's by now.
	moved := b.existing("moved")
	moved.CgroupName = ""
	moved.Identity.CgroupPath, moved.Identity.CgroupID, err = n.cgroups.OfPid(newBox(t, 1).cmd.Process.Pid)
	must(t, err)
	replaced := b.existing("replaced")
	replaced.CgroupName = ""
	replaced.Identity.CgroupPath, replaced.Identity.CgroupID, err = n.cgroups.OfPid(b.cmd.Process.Pid)
	must(t, err)
	replaced.Identity.CgroupID++
	reused := b.existing("reused")
	reused.Identity.InitStart = start - 1
	since := b.existing("since")
	since.CgroupName, since.At = "", int64(start-1)*ticks
	claims := []container.Notice{gone, elsewhere, host, nobody, moved, replaced, reused, since}
	for _, x := range claims {
		n.notify(context.Background(), x, nil)
	}
	must(t, n.waitAdopted())
	for _, l := range n.runs() {
		t.Errorf("%s is armed", l.container)
	}
	missed := map[string]bool{}
	for _, g := range n.gapsOf(evidence.ScopeSource) {
		for _, x := range claims {
			if id := x.Identity.ID; g.Reason == evidence.GapRuntimeDisconnected && g.Source == "nri:test" && strings.Contains(g.Detail, "container "+id+",") {
				missed[id] = true
			}
		}
	}
	if len(missed) != len(claims) {
		t.Errorf("signed: %v", missed)
	}
}

// A run that shares its cgroup is what it is for who sees it start.
func TestAdoptSharedCgroup(t *testing.T) {
	n := newNode(t, bpf.Options{})
	b := newBox(t, 0)
	x := b.existing("c1")
	x.CgroupName = ""
	n.notify(context.Background(), x, nil)
	must(t, n.waitAdopted())
	b.end()
	must(t, n.waitIdle(context.Background()))
	n.wantNotArmed("c1", evidence.SharedCgroup)
}

// Adoptions give way to starts, however many wait, and not for ever.
func TestAdoptionGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Agent{held: 1, changed: make(chan struct{})}
		began := time.Now()
		go func() {
			time.Sleep(mostGivenWay / 4)
			a.begin()
			a.mu.Lock()
			a.held--
			a.mu.Unlock()
			a.end()
		}()
		a.giveWay(t.Context(), mostGivenWay)
		if took := time.Since(began); took != mostGivenWay/4 {
			t.Errorf("gave way for %v", took)
		}
		a.held = 1
		began = time.Now()
		a.giveWay(t.Context(), mostGivenWay)
		if took := time.Since(began); took != mostGivenWay {
			t.Errorf("gave way for %v, to a start that is held for ever", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		a.giveWay(ctx, mostGivenWay)
		a.held = 0
		began = time.Now()
		a.giveWay(t.Context(), mostGivenWay)
		if time.Since(began) != 0 {
			t.Error("gave way to nobody")
		}
	})
}

// A container that starts while a thousand are to be adopted is armed before them.
func TestStartBesideAdoptions(t *testing.T) {
	n := newNode(t, bpf.Options{})
	x, b := newBox(t, 1), newBox(t, 1, "hello")
	for range maxAdopting {
		n.notify(context.Background(), x.existing("one"), nil)
	}
	n.notify(context.Background(), b.notice("c1"), yes)
	if len(n.adopt) == 0 {
		t.Error("all adoptions were over before the start: this test shows nothing")
	}
	b.run()
	b.end()
	x.end()
	must(t, n.waitIdle(context.Background()))
	obs, gaps := n.lines("c1")
	if o := obs["hello"]; o.State != evidence.Hit || !o.Complete || len(gaps) != 0 {
		t.Errorf("%+v, gaps %+v", o, gaps)
	}
}

// A store that never answers costs the others little, and it is signed that its
// container was not adopted.
func TestAdoptionThatDoesNotComeBack(t *testing.T) {
	n := newNode(t, bpf.Options{})
	store := t.TempDir() // what is mounted in it is podman's affair
	must(t, os.Mkdir(store+"/overlay-containers", 0o755))
	need.DeadFUSE(t, store+"/overlay-containers")
	n.finder = image.New(image.Config{ContainerdAddress: store + "/no.sock", PodmanRoot: store})
	hung, other := newBox(t, 1), newBox(t, 1)
	x := hung.existing("hung")
	x.Identity.Runtime = container.Podman
	n.notify(context.Background(), x, nil)
	n.notify(context.Background(), other.existing("other"), nil)
	until(t, func() bool {
		l := n.runs()
		return len(l) == 1 && l[0].container == "other" && l[0].isArmed()
	})
	gaps := n.gapsOf(evidence.ScopeSource)
	if len(gaps) != 1 || gaps[0].Source != x.Source || !strings.Contains(gaps[0].Detail, "container hung, which ran already, was not adopted") {
		t.Errorf("signed: %+v", gaps)
	}
}

// A run that is taken up again and again has the gaps of each time at all its sites, and
// the spool is asked for what single sites have of their own only.
func TestTakenUpAgain(t *testing.T) {
	b := newBox(t, 1, "hello")
	n := newNode(t, bpf.Options{})
	n.notify(context.Background(), b.notice("c1"), yes)
	for range 3 {
		for _, l := range n.runs() {
			<-l.armed
		}
		must(t, n.waitAdopted())
		n.stop()
		found, err := spool.Recover(t.Context(), n.cfg.Spool, n.key(), nil)
		must(t, err)
		if len(found.Runs) != 1 {
			t.Fatalf("left: %+v", found.Runs)
		}
		for _, x := range found.Runs[0].Sites { // who was stopped before it had looked at all leaves unarmedMapping
			if slices.ContainsFunc(x.Line.Gaps, func(g evidence.SiteGap) bool { return g.Reason == evidence.GapAgentDown }) {
				t.Errorf("each site has the gaps of the run: %+v", x.Line)
			}
		}
		n = newNodeIn(t, filepath.Dir(n.cfg.State), Config{})
		n.notify(context.Background(), b.existing("c1"), nil)
		must(t, n.waitAdopted())
	}
	b.run()
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, gaps := n.lines("c1")
	length := time.Duration(0)
	closed := map[string]bool{}
	for _, g := range gaps {
		if g.Reason == evidence.GapAgentDown && !g.To.IsZero() && !closed[g.GapID] {
			closed[g.GapID] = true
			length += g.To.Std().Sub(g.From.Std())
		}
	}
	if len(closed) != 3 {
		t.Errorf("gaps: %+v", gaps)
	}
	for id, want := range map[string]evidence.State{"hello": evidence.Hit, "never": evidence.Partial} {
		o := obs[id]
		i := slices.IndexFunc(o.Gaps, func(g evidence.SiteGap) bool { return g.Reason == evidence.GapAgentDown })
		if o.State != want || i < 0 || o.Gaps[i].Count.N != 3 {
			t.Errorf("%s: %+v", id, o)
		} else if off := time.Duration(o.Gaps[i].DurationNs) - length; off.Abs() > time.Second { // the clock is set meanwhile
			t.Errorf("%s: %v together, its gaps %v", id, time.Duration(o.Gaps[i].DurationNs), length)
		}
	}
}

// A run whose earlier lines could not all be kept is not taken up, whatever the source
// calls its runtime: a later line would take back what they say.
func TestCutIsNotTakenUp(t *testing.T) {
	n := newNode(t, bpf.Options{})
	b := newBox(t, 1)
	x := b.existing("c1")
	path, cgroup, err := n.cgroups.OfPid(b.cmd.Process.Pid)
	must(t, err)
	id := x.Identity
	id.BootID, id.CgroupID, id.CgroupPath = n.bootID, cgroup, path
	n.leave(spool.OpenRun{Cut: true, GapID: "0123456789abcdef", Coverage: evidence.Coverage{
		RunID: id.RunID(), ContainerID: id.ID, Runtime: string(id.Runtime), BootID: id.BootID, CgroupID: evidence.Uint64(cgroup), CgroupPath: path, Source: "hook",
	}})
	for _, runtime := range []container.Runtime{container.Runc, container.Docker} {
		x.Identity.Runtime = runtime
		n.notify(context.Background(), x, nil)
		must(t, n.waitAdopted())
		if l := n.runs(); len(l) != 0 {
			t.Errorf("as %s: taken up", runtime)
		}
	}
}

// More than can wait are signed.
func TestTooManyToAdopt(t *testing.T) {
	n := newNode(t, bpf.Options{})
	n.mu.Lock()
	n.held++ // somebody starts all the time
	n.mu.Unlock()
	b := newBox(t, 1)
	for range maxAdopting + 2 { // one of which is being looked at
		n.notify(context.Background(), b.existing("one"), nil)
	}
	n.mu.Lock()
	n.held--
	n.mu.Unlock()
	b.end()
	must(t, n.waitIdle(context.Background()))
	if !slices.ContainsFunc(n.gapsOf(evidence.ScopeSource), func(g *evidence.Gap) bool { return strings.Contains(g.Detail, "more containers ran already") }) {
		t.Error("it is not signed")
	}
}
