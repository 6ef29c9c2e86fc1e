package runtimes

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"probity/evidence"
	"probity/tests/need"
)

// armedAgain waits until the agent has armed a container that ran already.
func armedAgain(t *testing.T, a *Agent, c ran, reason evidence.GapReason) {
	t.Helper()
	a.WaitLine(t, func(e Evidence) bool {
		return slices.ContainsFunc(e.GapsOf(c.id(), reason), func(g *evidence.Gap) bool { return g.RunID != "" && !g.To.IsZero() })
	})
}

// A container that runs when the agent comes for the first time: it is identified
// and armed as any other, what it does from then on is seen, also from an exec
// session, and what it did before is a gap.
func TestAdopted(t *testing.T) {
	for name, open := range drivers {
		t.Run(name, func(t *testing.T) {
			d := open(t)
			digest := targetImage(t, d)
			c := d.start(t, targetName, "early", "hello", "wait", "goodbye")
			a := StartAgent(t, d.agent(AgentOptions{Policies: []string{targetPolicy}}))
			d.attach(t, a)
			armedAgain(t, a, c, evidence.GapAdopted)
			c.exec(t, "/bin/target", "hello")
			c.goOn(t, "hello")
			if code := c.wait(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
			e := settled(t, a)
			hello := want(t, e, c.id(), "fn", "hello", evidence.Hit, "", 2)
			if hello.Complete || !hello.Final || hello.ImageDigest != digest || hello.Runtime != d.runtime() || hello.Origin != "imageLayer" || hello.LayerDiffID == "" || hello.FileDigest == "" {
				t.Errorf("%+v", hello)
			}
			if p := hello.Process; p == nil || p.Session != evidence.SessionExec { // no container's own, though nobody called execve before it
				t.Errorf("who called it first: %+v", p)
			}
			want(t, e, c.id(), "fn", "goodbye", evidence.Hit, "", 1)
			never := want(t, e, c.id(), "fn", "never", evidence.Partial, "", 0)
			if len(never.Gaps) != 1 || never.Gaps[0].Reason != evidence.GapAdopted || never.Gaps[0].DurationNs == 0 {
				t.Errorf("%+v", never)
			}
			want(t, e, c.id(), "fn", "locked", evidence.NotArmed, evidence.UnprobeableInstruction, 0)
			for _, o := range e.Observations {
				if o.ContainerID == c.id() && o.State == evidence.ArmedNoHit {
					t.Errorf("armedNoHit of an adopted container: %+v", o)
				}
			}
			cover := e.Cover(c.id())
			if !cover.Final || cover.ContainerName != "early" || cover.Image != targetName || cover.CgroupID == 0 || cover.Started != cover.From || !cover.FirstExec.IsZero() {
				t.Errorf("coverage %+v", cover)
			}
			if d.runtime() == "containerd" {
				if p := cover.Pod; p == nil || p.Name != "early-pod" {
					t.Errorf("pod %+v", p)
				}
				if !strings.HasPrefix(cover.Source, "nri:") {
					t.Errorf("source %s", cover.Source)
				}
			}
			g := runGaps(e.GapsOf(c.id(), evidence.GapAdopted))
			if len(g) != 1 || g[0].From.Std().Sub(cover.From.Std()).Abs() > time.Second { // each chunk has a clock of its own
				t.Errorf("gaps %+v, coverage from %v", g, cover.From)
			}
		})
	}
}

// The agent is killed in the middle of a container's life, and another one takes the
// run up: it is one run, what the first one counted stays, what was done while there
// was none is not counted, and that is signed.
func TestAdoptedAfterAKill(t *testing.T) {
	underEach(t, AgentOptions{Policies: []string{targetPolicy}}, func(t *testing.T, d driver, a *Agent) {
		targetImage(t, d)
		// The first start of an image may be too late in an emulated machine.
		d.start(t, targetName, "first").wait(t)
		// One call: of a second one that comes too late for the line there is no other
		// line, since the state is the same.
		c := d.start(t, targetName, "survivor", "hello", "wait", "goodbye")
		a.WaitLine(t, func(e Evidence) bool {
			o := e.Latest(c.id(), "fn", "hello")
			return o != nil && o.State == evidence.Hit && *o.Count == 1
		})
		a.Kill(t)
		c.exec(t, "/bin/target", "hello", "never") // nobody sees it
		a.Start(t)
		d.attach(t, a)
		armedAgain(t, a, c, evidence.GapAgentDown)
		// And once more, after a stop in order.
		c.exec(t, "/bin/target", "hello")
		a.Stop(t)
		a.Start(t)
		d.attach(t, a)
		a.WaitLine(t, func(e Evidence) bool {
			open := map[string]bool{}
			for _, g := range runGaps(e.GapsOf(c.id(), evidence.GapAgentDown)) {
				open[g.GapID] = g.To.IsZero()
			}
			n := 0
			for _, is := range open {
				if !is {
					n++
				}
			}
			return n == 2
		})
		c.goOn(t, "hello", "hello")
		if code := c.wait(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
		e := settled(t, a)
		hello := want(t, e, c.id(), "fn", "hello", evidence.Hit, "", 4) // of five
		if hello.Complete || !hello.Final || len(hello.Gaps) != 1 || hello.Gaps[0].Reason != evidence.GapAgentDown || hello.Gaps[0].Count.N != 2 {
			t.Errorf("%+v", hello)
		}
		want(t, e, c.id(), "fn", "goodbye", evidence.Hit, "", 1)
		want(t, e, c.id(), "fn", "never", evidence.Partial, "", 0)
		runs := map[string]bool{}
		var first *evidence.Coverage
		finals := 0
		for _, l := range e.Coverage {
			if l.ContainerID != c.id() {
				continue
			}
			if runs[l.RunID] = true; first == nil {
				first = l
			}
			if l.Final {
				finals++
			}
		}
		cover := e.Cover(c.id())
		if len(runs) != 1 || finals != 1 || !cover.Final {
			t.Errorf("runs %v, sealed %d times", runs, finals)
		}
		if d := cover.From.Std().Sub(first.From.Std()); d.Abs() > time.Second {
			t.Errorf("the window moved by %v", d)
		}
		if out := a.Verify(t); !strings.Contains(out, "of 2 runs,") {
			t.Errorf("verify says\n%s", out)
		}
	})
}

// A bundle that runc runs without any engine, and without our hook: its state below
// the runtime's root is all that tells of it.
func TestAdoptedPlainRunc(t *testing.T) {
	runc := need.Runc(t)
	need.Root(t)
	s := NewScratch(t)
	states, bundle := s.mkdir(t, "runc"), s.mkdir(t, "bundle")
	s.mkdir(t, "bundle/rootfs/bin")
	Compile(t, s.Path("bundle/rootfs/bin/target"), "-static", "-O2", "testdata/target.c")
	s.write(t, "bundle/config.json", fmt.Sprintf(`{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0},"args":["target","hello","wait","hello","goodbye"],"env":["PATH=/sbin","PATH=/bin"],"cwd":"/"},
"root":{"path":"rootfs"},"annotations":{"bundle":"/of/an/annotation"},"mounts":[{"destination":"/proc","type":"proc","source":"proc"}],
"linux":{"cgroupsPath":%q,"namespaces":[{"type":"mount"},{"type":"pid"},{"type":"ipc"}]}}`, s.Cgroup+"/plain"))
	try := func(args ...string) error {
		cmd := exec.Command(runc, append([]string{"--root", states}, args...)...)
		_, err := output(cmd)
		return err
	}
	// Its files, and not a pipe that it would keep open.
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	start := func(t *testing.T) {
		t.Helper()
		run := exec.Command(runc, "--root", states, "--log", s.Path("runc.log"), "run", "--detach", "--bundle", bundle, "plain")
		run.Stdin, run.Stdout, run.Stderr = null, null, null
		if err := run.Run(); err != nil {
			said, _ := os.ReadFile(s.Path("runc.log"))
			t.Fatalf("runc run: %v\n%s", err, said)
		}
	}
	start(t)
	t.Cleanup(func() { _ = try("delete", "--force", "plain") })
	a := StartAgent(t, AgentOptions{Policies: []string{strings.Replace(targetPolicy, `select:
  images: ["localhost/target*"]
`, "", 1) + "  - {id: named, type: uprobe, program: target, symbols: [hello]}\n"}, States: []string{states}})
	a.WaitLine(t, func(e Evidence) bool {
		return slices.ContainsFunc(e.GapsOf("plain", evidence.GapAdopted), func(g *evidence.Gap) bool { return !g.To.IsZero() })
	})
	// Not by an exec session: runc itself takes the annotation for the bundle then.
	s.write(t, "bundle/rootfs/go", "")
	e := settled(t, a)
	want(t, e, "plain", "fn", "hello", evidence.Hit, "", 1)
	want(t, e, "plain", "fn", "goodbye", evidence.Hit, "", 1)
	want(t, e, "plain", "fn", "never", evidence.Partial, "", 0)
	// Of two $PATHs, as CRI-O gives each container, the last: so did runc find it.
	want(t, e, "plain", "named", "hello", evidence.Hit, "", 1)
	for _, p := range e.Cover("plain").Probes {
		if p.ProbeID == "named" && !p.SearchComplete {
			t.Errorf("%+v", p)
		}
	}
	if c := e.Cover("plain"); !c.Final || c.Runtime != "runc" || c.ContainerName != "plain" || c.Source != "state:"+states || c.CgroupPath != s.Cgroup+"/plain" {
		t.Errorf("coverage %+v", c)
	}

	// The same id again and again, while the agent runs: nobody tells of it, as when a
	// hook gave up before it was heard.
	known := []string{e.Cover("plain").RunID}
	for range 2 {
		if err := errors.Join(try("delete", "plain"), os.Remove(s.Path("bundle/rootfs/go"))); err != nil {
			t.Fatal(err)
		}
		start(t)
		a.WaitLine(t, func(e Evidence) bool {
			return slices.ContainsFunc(e.GapsOf("plain", evidence.GapAdopted), func(g *evidence.Gap) bool {
				return !g.To.IsZero() && !slices.Contains(known, g.RunID)
			})
		})
		s.write(t, "bundle/rootfs/go", "")
		e := settled(t, a)
		want(t, e, "plain", "fn", "hello", evidence.Hit, "", 1)
		want(t, e, "plain", "fn", "goodbye", evidence.Hit, "", 1)
		known = append(known, e.Cover("plain").RunID)
	}
}
