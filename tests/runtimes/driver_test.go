package runtimes

import (
	"os"
	"strings"
	"testing"

	"probity/evidence"
	"probity/tests/schemas"
)

// driver runs the scenarios' containers under one runtime.
type driver interface {
	// agent says how to start an agent that hears of this runtime's containers.
	agent(AgentOptions) AgentOptions
	// attach makes the runtime's containers known to a, which has been started.
	attach(t *testing.T, a *Agent)
	scratch() *Scratch
	load(t *testing.T, archive string)
	// start starts a container of the image in the background.
	start(t T, image, name string, args ...string) ran
	runtime() string
}

// ran is one container.
type ran interface {
	id() string
	wait(t T) int
	stop(t T)
	remove(t T)
	exec(t T, args ...string)
	// goOn runs the target with orders of which the last lets init, which waits,
	// go on. Init's end may kill it before it has ended itself.
	goOn(t T, orders ...string)
}

type podmanDriver struct{ *Podman }

func (d podmanDriver) agent(o AgentOptions) AgentOptions {
	o.PodmanRoot, o.States = d.Root, []string{d.States}
	return o
}

func (d podmanDriver) attach(t *testing.T, a *Agent) {
	d.InstallHook(t, repository(t), a.Binaries.Hook, a.HookSocket)
}
func (d podmanDriver) scratch() *Scratch                 { return d.Scratch }
func (d podmanDriver) load(t *testing.T, archive string) { d.Load(t, archive) }
func (d podmanDriver) runtime() string                   { return "podman" }

func (d podmanDriver) start(t T, image, name string, args ...string) ran {
	return podmanRan{d.Podman, d.Detach(t, append([]string{"--name", name, image}, args...)...)}
}

type podmanRan struct {
	p *Podman
	c string
}

func (r podmanRan) id() string               { return r.c }
func (r podmanRan) wait(t T) int             { return r.p.Wait(t, r.c) }
func (r podmanRan) stop(t T)                 { r.p.Stop(t, r.c) }
func (r podmanRan) remove(t T)               { r.p.Rm(t, r.c) }
func (r podmanRan) exec(t T, args ...string) { r.p.Exec(t, r.c, args...) }
func (r podmanRan) goOn(t T, orders ...string) {
	if _, err := r.p.Try(t, append([]string{"exec", r.c, "/bin/target"}, append(orders, "go")...)...); err != nil {
		t.Logf("let it go on: %v", err) // if it does not, waiting for it fails
	}
}

type containerdDriver struct{ *Containerd }

func (d containerdDriver) agent(o AgentOptions) AgentOptions { return o.For(d.Containerd) }
func (d containerdDriver) attach(t *testing.T, a *Agent)     { a.WaitSources(t) }
func (d containerdDriver) scratch() *Scratch                 { return d.Scratch }
func (d containerdDriver) load(t *testing.T, archive string) { d.Load(t, archive) }
func (d containerdDriver) runtime() string                   { return "containerd" }

func (d containerdDriver) start(t T, image, name string, args ...string) ran {
	return startCRI(t, &d.criServer, image, name, args)
}

func startCRI(t T, c *criServer, image, name string, args []string) ran {
	t.Helper()
	return criRan{c.Run(t, Spec{Image: image, Name: name, Args: args, PodLabels: map[string]string{"app": "probity-test"}})}
}

type criRan struct{ c *Container }

func (r criRan) id() string               { return r.c.ID }
func (r criRan) wait(t T) int             { return r.c.Wait(t) }
func (r criRan) stop(t T)                 { r.c.Stop(t) }
func (r criRan) remove(t T)               { r.c.Remove(t) }
func (r criRan) exec(t T, args ...string) { r.c.Exec(t, args...) }
func (r criRan) goOn(t T, orders ...string) {
	if _, err := r.c.TryExec(t, append([]string{"/bin/target"}, append(orders, "go")...)...); err != nil {
		t.Logf("let it go on: %v", err) // if it does not, waiting for it fails
	}
}

type crioDriver struct{ *CRIO }

func (d crioDriver) agent(o AgentOptions) AgentOptions {
	o.NRISockets, o.PodmanRoot, o.States = []string{d.NRISocket}, d.Root, []string{d.States}
	if b, err := built(); err == nil { // else the agent is not started
		o.Config += "hookProgram: " + b.Hook + "\n"
	}
	return o
}
func (d crioDriver) attach(t *testing.T, a *Agent)     { a.WaitSources(t) }
func (d crioDriver) scratch() *Scratch                 { return d.Scratch }
func (d crioDriver) load(t *testing.T, archive string) { d.Load(t, archive) }
func (d crioDriver) runtime() string                   { return "cri-o" }

func (d crioDriver) start(t T, image, name string, args ...string) ran {
	return startCRI(t, &d.criServer, image, name, args)
}

// drivers are the runtimes that every scenario runs under.
var drivers = map[string]func(*testing.T) driver{
	"podman":     func(t *testing.T) driver { return podmanDriver{NewPodman(t)} },
	"containerd": func(t *testing.T) driver { return containerdDriver{StartContainerd(t)} },
}

func init() {
	if hasCRIO() {
		drivers["cri-o"] = func(t *testing.T) driver { return crioDriver{StartCRIO(t)} }
	}
}

// underEach runs a scenario under each runtime, with an agent and its policy.
func underEach(t *testing.T, o AgentOptions, scenario func(t *testing.T, d driver, a *Agent)) {
	for name, open := range drivers {
		t.Run(name, func(t *testing.T) {
			d := open(t)
			a := StartAgent(t, d.agent(o))
			d.attach(t, a)
			scenario(t, d, a)
		})
	}
}

// targetImage builds the image of testdata/target.c and loads it.
func targetImage(t *testing.T, d driver) (digest string) {
	t.Helper()
	bin := d.scratch().Path("target")
	Compile(t, bin, "-static", "-O2", "testdata/target.c")
	archive, digest := BuildImage(t, d.scratch(), targetName, []string{"/bin/target"}, HostFile(t, bin, "/bin/target"))
	d.load(t, archive)
	return digest
}

const targetName = "localhost/target:latest"

// targetPolicy probes the target's functions in every image of its name.
const targetPolicy = `
name: target
select:
  images: ["localhost/target*"]
probes:
  - id: fn
    type: uprobe
    file: /bin/target
    symbols: [hello, goodbye, never, locked, absent]
  - id: entry
    type: uprobe
    file: /bin/*
    offsets: [entry]
  - id: nofile
    type: uprobe
    file: /usr/lib/**/libabsent.so*
    symbols: [f]
  - id: exec
    type: tracepoint
    event: sched:sched_process_exec
`

func TestMain(m *testing.M) { os.Exit(schemas.Done("tests/runtimes", true, m.Run())) }

// settled waits until every container is sealed, verifies the spool, holds its lines
// to the schemas, sees that each run was sealed exactly once, and returns what it says.
func settled(t *testing.T, a *Agent) Evidence {
	t.Helper()
	a.WaitIdle(t)
	a.Verify(t)
	schemas.Spool(t, a.Spool)
	e := a.Evidence(t)
	sealedOnce(t, e)
	return e
}

// sealedOnce checks that each run has one last coverage line, and no site two last ones.
func sealedOnce(t *testing.T, e Evidence) {
	t.Helper()
	runs := map[string]int{}
	for _, c := range e.Coverage {
		n := runs[c.RunID]
		if c.Final {
			n++
		}
		runs[c.RunID] = n
	}
	for run, n := range runs {
		if n != 1 {
			t.Errorf("run %s has %d last coverage lines", run, n)
		}
	}
	type site struct {
		run string
		id  evidence.SiteID
	}
	sites := map[site]bool{}
	for _, o := range e.Observations {
		if !o.Final || o.Set != "" { // a set has a line for each entry
			continue
		}
		of := site{o.RunID, evidence.SiteOf(o)}
		if sites[of] {
			t.Errorf("two last lines of one site, the second is %+v", o)
		}
		sites[of] = true
	}
}

// want compares one site's latest observation.
func want(t *testing.T, e Evidence, container, probe, symbol string, state evidence.State, reason evidence.NotArmedReason, count uint64) *evidence.Observation {
	t.Helper()
	o := e.Latest(container, probe, symbol)
	if o == nil {
		t.Fatalf("no observation of %s %s in %s", probe, symbol, container)
	}
	got := uint64(0)
	if o.Count != nil {
		got = uint64(*o.Count)
	}
	if o.State != state || o.Reason != reason || got != count {
		b, _ := evidence.Encode(o)
		t.Errorf("%s %s: %s %s, count %d; want %s %s, count %d\n%s", probe, symbol, o.State, o.Reason, got, state, reason, count, strings.TrimSpace(string(b)))
	}
	return o
}
