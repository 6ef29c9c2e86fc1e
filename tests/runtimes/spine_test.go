package runtimes

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"probity/evidence"
	"probity/tests/ociarchive"
)

// Two containers of one image of which one calls the function, and one that no
// policy selects: the whole way, from the runtime to the verified evidence.
func TestSpine(t *testing.T) {
	underEach(t, AgentOptions{Policies: []string{targetPolicy}}, func(t *testing.T, d driver, a *Agent) {
		digest := targetImage(t, d)
		// Not the same bytes: two names of one image are one image to a runtime.
		other, _ := BuildImage(t, d.scratch(), "localhost/other:latest", []string{"/bin/target"},
			HostFile(t, d.scratch().Path("target"), "/bin/target"), ociarchive.File{Path: "/other"})
		d.load(t, other)

		caller := d.start(t, targetName, "caller", "hello", "hello", "goodbye", "locked")
		idle := d.start(t, targetName, "idle")
		unselected := d.start(t, "localhost/other:latest", "unselected", "hello")
		for _, c := range []ran{caller, idle, unselected} {
			if code := c.wait(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
		}
		e := settled(t, a)

		hello := want(t, e, caller.id(), "fn", "hello", evidence.Hit, "", 2)
		if hello.Process == nil || hello.Process.Comm != "target" || hello.Process.Path != "/bin/target" || !hello.Complete || !hello.Final {
			t.Errorf("the hit: %+v, process %+v", hello, hello.Process)
		}
		if hello.ImageDigest != digest || hello.Runtime != d.runtime() || hello.ProbeType != evidence.Uprobe {
			t.Errorf("image %s (want %s), runtime %s, type %s", hello.ImageDigest, digest, hello.Runtime, hello.ProbeType)
		}
		if hello.FileDigest == "" || hello.Origin != "imageLayer" || hello.LayerDiffID == "" {
			t.Errorf("file %q, origin %q, layer %q", hello.FileDigest, hello.Origin, hello.LayerDiffID)
		}
		want(t, e, caller.id(), "fn", "goodbye", evidence.Hit, "", 1)
		want(t, e, caller.id(), "fn", "never", evidence.ArmedNoHit, "", 0)
		for _, id := range []string{caller.id(), idle.id()} {
			want(t, e, id, "fn", "locked", evidence.NotArmed, evidence.UnprobeableInstruction, 0)
			want(t, e, id, "fn", "absent", evidence.NotArmed, evidence.SymbolNotFound, 0)
			want(t, e, id, "nofile", "", evidence.NotArmed, evidence.FileNotFound, 0)
			want(t, e, id, "exec", "", evidence.Hit, "", 1)
			// The very first instruction of a static program.
			want(t, e, id, "entry", "", evidence.Hit, "", 1)
		}
		for _, s := range []string{"hello", "goodbye", "never"} {
			o := want(t, e, idle.id(), "fn", s, evidence.ArmedNoHit, "", 0)
			if !o.Complete || !o.Final || len(o.Gaps) != 0 {
				t.Errorf("%s: %+v", s, o)
			}
		}
		cover := e.Cover(caller.id())
		if !cover.Final || cover.Ended.IsZero() || cover.FirstExec.IsZero() || cover.ContainerName != "caller" || cover.CgroupID == 0 || cover.Image != targetName {
			t.Errorf("coverage %+v", cover)
		}
		if cover.From.Std().After(cover.FirstExec.Std()) {
			t.Errorf("armed at %v, after the first exec at %v", cover.From, cover.FirstExec)
		}
		if d.runtime() == "containerd" {
			if p := cover.Pod; p == nil || p.Name != "caller-pod" || p.Namespace != "default" || p.UID == "" {
				t.Errorf("pod %+v", p)
			}
		}
		if e.Mentions(unselected.id()) {
			t.Error("a container that no policy selects is in the evidence")
		}
		exported(t, a, "function_call")
	})
}

// A dynamic program: its first instruction is the loader's, and the functions
// of a shared library are seen in the process that loads it.
func TestDynamic(t *testing.T) {
	loader := interpreter(t)
	policy := `
name: demo
select:
  images: ["localhost/probity-demo*"]
probes:
  - id: loader
    type: uprobe
    file: ` + loader + `
    offsets: [entry]
  - id: library
    type: uprobe
    file: /usr/lib/**/libgreet.so*
    symbols: [greet_hello, greet_goodbye]
`
	underEach(t, AgentOptions{Policies: []string{policy}}, func(t *testing.T, d driver, a *Agent) {
		archive := d.scratch().Path("image.tar")
		DemoImage(t, d.scratch(), filepath.Join(repository(t), "tests/demo/image"), archive)
		d.load(t, archive)
		c := d.start(t, DemoImageName, "caller", "call")
		c.wait(t)
		e := settled(t, a)
		want(t, e, c.id(), "loader", "", evidence.Hit, "", 1)
		o := e.Latest(c.id(), "library", "greet_hello")
		if o == nil || o.State != evidence.Hit || o.Copies != 1 {
			t.Errorf("the library's function: %+v", o)
		}
	})
}

// interpreter is the loader that this machine's programs name.
func interpreter(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("ldd", "/bin/sh").Output()
	if err != nil {
		t.Fatal(err)
	}
	for f := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(f, "/") && strings.Contains(f, "ld-linux") {
			return f
		}
	}
	t.Fatalf("no loader in %s", out)
	return ""
}

// A touch copies the file up: what the container runs from then on is not what
// was armed, with the same digest.
func TestTouch(t *testing.T) {
	// No check in between arms the copy: what ran before one is what is shown here.
	underEach(t, AgentOptions{Policies: []string{targetPolicy}, Config: "health: 1h\n"}, func(t *testing.T, d driver, a *Agent) {
		targetImage(t, d)
		c := d.start(t, targetName, "toucher", "wait")
		c.exec(t, "/bin/target", "touch")
		c.exec(t, "/bin/target", "hello") // it runs the copy
		c.goOn(t)
		c.wait(t)
		e := settled(t, a)
		o := e.Latest(c.id(), "fn", "hello")
		if o == nil || o.State != evidence.Partial && o.State != evidence.Hit { // it may have been armed in time
			t.Fatalf("%+v", o)
		}
		changed := false
		for _, g := range o.Gaps {
			switch g.Reason {
			case evidence.GapFileChanged:
				changed = g.DurationNs > 0
			case evidence.GapUnarmedMapping: // who executed the copy may have ended before it was looked at
			default:
				t.Errorf("gap %+v", g)
			}
		}
		if !changed || o.Complete {
			t.Errorf("gaps %+v", o.Gaps)
		}
		g := e.GapsOf(c.id(), evidence.GapFileChanged)
		if len(g) == 0 || g[0].Scope != evidence.ScopeFile || g[0].Path != "/bin/target" || g[0].RunID == "" {
			t.Errorf("gap lines %+v", g)
		}
	})
}

// A Go program in FIPS mode verifies its own text when it starts: a breakpoint
// there would kill it.
func TestFIPS(t *testing.T) {
	policy := `
name: fips
select:
  images: ["localhost/fips*"]
probes:
  - id: fips
    type: uprobe
    file: /app
    symbols: ["crypto/internal/fips140/sha256.(*Digest).Write", "main.work"]
`
	underEach(t, AgentOptions{Policies: []string{policy}}, func(t *testing.T, d driver, a *Agent) {
		app := d.scratch().Path("app")
		build := exec.Command("go", "build", "-o", app, "./testdata/fips")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		archive, _ := WriteImage(t, d.scratch(), "fips.tar", ociarchive.Image{
			Name: "localhost/fips:latest", Layers: [][]ociarchive.File{{HostFile(t, app, "/app")}},
			Entrypoint: []string{"/app"}, Env: []string{"GODEBUG=fips140=on"},
		})
		d.load(t, archive)
		c := d.start(t, "localhost/fips:latest", "fips")
		if code := c.wait(t); code != 0 {
			t.Errorf("the program did not survive: exit code %d", code)
		}
		e := settled(t, a)
		want(t, e, c.id(), "fips", "crypto/internal/fips140/sha256.(*Digest).Write", evidence.NotArmed, evidence.WouldBreakTarget, 0)
		want(t, e, c.id(), "fips", "main.work", evidence.Hit, "", 1)
	})
}

// Init's end is not the container's: with a shared pid namespace a child lives on.
func TestChildOutlivesInit(t *testing.T) {
	p := NewPodman(t)
	d := podmanDriver{p}
	a := StartAgent(t, d.agent(AgentOptions{Policies: []string{targetPolicy}}))
	d.attach(t, a)
	targetImage(t, d)
	id := p.Detach(t, "--pid", "host", targetName, "orphan")
	p.Wait(t, id)
	e := settled(t, a)
	want(t, e, id, "fn", "hello", evidence.Hit, "", 3)
}

// Files that a hostile image may hold where a policy looks.
func TestHostileFiles(t *testing.T) {
	policy := `
name: hostile
select:
  images: ["localhost/hostile*"]
probes:
  - id: odd
    type: uprobe
    file: /odd/*
    symbols: [hello]
  - id: fine
    type: uprobe
    file: /bin/target
    symbols: [hello]
`
	underEach(t, AgentOptions{Policies: []string{policy}}, func(t *testing.T, d driver, a *Agent) {
		bin := d.scratch().Path("target")
		Compile(t, bin, "-static", "-O2", "testdata/target.c")
		good := HostFile(t, bin, "/bin/target")
		archive, _ := WriteImage(t, d.scratch(), "hostile.tar", ociarchive.Image{
			Name: "localhost/hostile:latest", Entrypoint: []string{"/bin/target"},
			Layers: [][]ociarchive.File{{
				good,
				{Path: "/odd/fifo", Fifo: true},
				{Path: "/odd/out", Link: "../../../../../../../../../../" + strings.TrimPrefix(bin, "/")},
				{Path: "/odd/truncated", Mode: 0o755, Data: good.Data[:len(good.Data)/2]},
			}},
		})
		d.load(t, archive)
		c := d.start(t, "localhost/hostile:latest", "hostile", "hello", "sparse")
		if code := c.wait(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
		odd := []string{"/odd/fifo", "/odd/truncated"}
		if p, ok := d.(podmanDriver); ok {
			// Started again, it has a file of an apparent gigabyte, of its own making.
			p.Start(t, c.id())
			c.wait(t)
			odd = append(odd, "/odd/sparse")
		}
		e := settled(t, a)
		want(t, e, c.id(), "fine", "hello", evidence.Hit, "", 1)
		reasons := map[string]evidence.NotArmedReason{}
		for _, o := range e.Observations {
			if o.ContainerID == c.id() && o.ProbeID == "odd" && o.Final {
				reasons[o.Path] = o.Reason
			}
		}
		for _, p := range odd {
			if reasons[p] != evidence.FileUnreadable {
				t.Errorf("%s: %q", p, reasons[p])
			}
		}
		for p, r := range reasons {
			if r == "" {
				t.Errorf("%s was armed", p)
			}
		}
		for _, pr := range e.Cover(c.id()).Probes {
			if pr.ProbeID == "odd" && (pr.SearchComplete || pr.State != evidence.NotArmed) {
				t.Errorf("the probe's fold: %+v", pr)
			}
		}
	})
}

// With a barrier of a microsecond the agent is always late: the container
// starts all the same, and the time until it was armed is signed.
func TestLateAttach(t *testing.T) {
	underEach(t, AgentOptions{Policies: []string{targetPolicy}, Args: []string{"--barrier", "1us"}}, func(t *testing.T, d driver, a *Agent) {
		targetImage(t, d)
		c := d.start(t, targetName, "late", "wait", "hello")
		a.WaitLine(t, func(e Evidence) bool { return e.Cover(c.id()) != nil })
		c.goOn(t)
		if code := c.wait(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
		e := settled(t, a)
		o := want(t, e, c.id(), "fn", "never", evidence.Partial, "", 0)
		if len(o.Gaps) != 1 || o.Gaps[0].Reason != evidence.GapLateAttach || o.Gaps[0].DurationNs == 0 {
			t.Errorf("gaps %+v", o.Gaps)
		}
		if h := want(t, e, c.id(), "fn", "hello", evidence.Hit, "", 1); h.Complete {
			t.Error("a hit after a gap is a lower bound")
		}
	})
}

// An agent without its runtime: the source is named, and the gap is signed.
func TestRuntimeAbsent(t *testing.T) {
	s := NewScratch(t)
	socket := s.Path("absent.sock")
	a := StartAgent(t, AgentOptions{Policies: []string{targetPolicy}, NRISockets: []string{socket}})
	code, out, _ := a.Probity(t, "status", "--admin-socket", a.AdminSocket)
	if code != 0 || !strings.Contains(out, "nri:"+socket+": disconnected") {
		t.Errorf("status exits %d and says\n%s", code, out)
	}
	a.Stop(t)
	if g := a.Evidence(t).GapsOf("", evidence.GapRuntimeDisconnected); len(g) < 2 || g[0].GapID != g[1].GapID {
		t.Errorf("gaps %+v", g)
	}
}

// Of an agent that is killed, and of which nobody holds anything: what a run did since
// its last line is a signed gap. The run ended meanwhile: the next agent seals it.
func TestAgentKilled(t *testing.T) {
	underEach(t, AgentOptions{Policies: []string{targetPolicy}}, func(t *testing.T, d driver, a *Agent) {
		targetImage(t, d)
		c := d.start(t, targetName, "survivor", "hello", "wait", "goodbye")
		a.WaitLine(t, func(e Evidence) bool {
			o := e.Latest(c.id(), "fn", "hello")
			return o != nil && o.State == evidence.Hit
		})
		a.Kill(t)
		c.goOn(t)
		if code := c.wait(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
		a.Start(t)
		e := settled(t, a)
		want(t, e, c.id(), "fn", "hello", evidence.Hit, "", 1)
		cover := e.Cover(c.id())
		g := runGaps(e.GapsOf(c.id(), evidence.GapAgentDown))
		if !cover.Final || cover.Ended.IsZero() || len(g) != 2 || g[0].GapID != g[1].GapID || !g[0].To.IsZero() || g[1].To != cover.To {
			t.Errorf("coverage %+v, gaps %+v", cover, g)
		}
		for _, p := range cover.Probes {
			if p.State == evidence.ArmedNoHit {
				t.Errorf("probe %s is %s over a gap", p.ProbeID, p.State)
			}
		}
		// Once is enough: the next start does not sign it again.
		a.Stop(t)
		a.Start(t)
		if g := runGaps(settled(t, a).GapsOf(c.id(), evidence.GapAgentDown)); len(g) != 2 {
			t.Errorf("%d agentDown lines after another restart", len(g))
		}
	})
}

// runGaps leaves out the node's.
func runGaps(gaps []*evidence.Gap) []*evidence.Gap {
	return slices.DeleteFunc(gaps, func(g *evidence.Gap) bool { return g.RunID == "" })
}

func ofScope(scope string, gaps []*evidence.Gap) []*evidence.Gap {
	return slices.DeleteFunc(slices.Clone(gaps), func(g *evidence.Gap) bool { return g.Scope != scope })
}

// A stop is said: every live run ends with final: false, and nothing of ours
// stays in the kernel.
func TestAgentStopped(t *testing.T) {
	p := NewPodman(t)
	d := podmanDriver{p}
	a := StartAgent(t, d.agent(AgentOptions{Policies: []string{targetPolicy}}))
	d.attach(t, a)
	targetImage(t, d)
	c := d.start(t, targetName, "live", "wait")
	a.Stop(t)
	a.Verify(t)
	e := a.Evidence(t)
	if cover := e.Cover(c.id()); cover.Final || !cover.Ended.IsZero() {
		t.Errorf("coverage %+v", cover)
	}
	want(t, e, c.id(), "fn", "hello", evidence.ArmedNoHit, "", 0)
	if err := syscall.Kill(p.Pid(t, c.id()), 0); err != nil {
		t.Errorf("the container is gone with the agent: %v", err)
	}
}

// A glob that reaches below a volume: what lies there is not searched when the
// container starts, and the verifier says so where it says armedNoHit. The
// volume's program may be gone before it was looked at, or not: what is said
// of it is never the whole.
func TestVolumeIsNotSearched(t *testing.T) {
	p := NewPodman(t)
	d := podmanDriver{p}
	a := StartAgent(t, d.agent(AgentOptions{Policies: []string{strings.Replace(targetPolicy, "file: /bin/target", `file: "/**/target"`, 1)}}))
	d.attach(t, a)
	targetImage(t, d)
	volume := d.scratch().Path("volume")
	if err := os.MkdirAll(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	Compile(t, filepath.Join(volume, "target"), "-static", "-O2", "testdata/target.c")
	id, _ := p.Run(t, "--volume", volume+":/mnt", "--entrypoint", "/mnt/target", targetName, "hello")
	e := settled(t, a)
	images := 0
	for _, o := range e.Observations {
		if o.ContainerID != id || o.ProbeID != "fn" || o.Symbol != "hello" {
			continue
		}
		if o.Path == "/bin/target" { // the image's file: true, and not the whole truth
			images++
			// Unless the volume's ended before it could be looked at.
			unseen := o.State == evidence.Partial && len(o.Gaps) == 1 && o.Gaps[0].Reason == evidence.GapUnarmedMapping
			if o.State != evidence.ArmedNoHit && !unseen {
				t.Errorf("the image's file: %+v", o)
			}
		} else if o.State == evidence.ArmedNoHit || o.Complete || o.Origin != "volume" {
			t.Errorf("the volume's file: %+v", o)
		}
	}
	if images == 0 {
		t.Error("nothing is said of the image's file")
	}
	for _, f := range e.Cover(id).Probes {
		if f.ProbeID == "fn" && (f.SearchComplete || f.State == evidence.ArmedNoHit) {
			t.Errorf("the probe's fold: %+v", f)
		}
	}
	if out := a.Verify(t); !strings.Contains(out, "armedNoHit (search incomplete)") && !strings.Contains(out, "is partial: the pattern may match below") || !strings.Contains(out, "below the mount at /mnt") {
		t.Errorf("verify does not say so:\n%s", out)
	}
}

// The time without an agent is the node's gap, whether it stopped in order or
// was killed: what lived wholly in it is not known.
func TestNodeWithoutAgent(t *testing.T) {
	a := StartAgent(t, AgentOptions{Policies: []string{targetPolicy}})
	a.Stop(t)
	a.Start(t)
	a.WaitLine(t, func(e Evidence) bool {
		all := e.GapsOf("", evidence.GapAgentDown)
		g := ofScope(evidence.ScopeNode, all)
		return len(g) == 2 && !g[1].To.IsZero() && len(ofScope(evidence.ScopeSource, all)) == 1
	})
	a.Kill(t)
	a.Start(t)
	a.Stop(t)
	a.Verify(t)
	var ids []string
	open := map[string]bool{}
	e := a.Evidence(t)
	all := e.GapsOf("", evidence.GapAgentDown)
	// The hook tells of what starts, so of what lived wholly in that time nobody does.
	if g := ofScope(evidence.ScopeSource, all); len(g) != 2 || g[0].Source != "hook" || g[0].To.IsZero() {
		t.Errorf("gaps of sources: %+v", g)
	} else {
		_, ended := e.Boot(g[0])
		if began, _ := e.Boot(g[1]); began < ended {
			t.Errorf("the second gap of the hook begins %v before the first ends: %+v, %+v", time.Duration(ended-began), g[0], g[1])
		}
	}
	for _, g := range ofScope(evidence.ScopeNode, all) {
		if _, seen := open[g.GapID]; !seen {
			ids = append(ids, g.GapID)
		}
		open[g.GapID] = g.To.IsZero()
	}
	if len(ids) != 3 || open[ids[0]] || open[ids[1]] || !open[ids[2]] {
		t.Errorf("gaps %v, open: %v; want two closed and the last open", ids, open)
	}
}
