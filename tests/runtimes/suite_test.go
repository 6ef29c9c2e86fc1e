package runtimes

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"probity/tests/need"
)

// suite is a runtime under which every scenario is run: a driver and what the scenarios
// need besides.
type suite interface {
	agent(AgentOptions) AgentOptions
	attach(t *testing.T, a *Agent)
	// image makes the image of testdata/target.c, which all containers are of.
	image(t *testing.T)
	// try starts a container of that image, or returns the runtime's refusal.
	try(t T, name string, o manner, orders ...string) (life, error)
	// restart ends the runtime, calls meanwhile, and starts it again.
	restart(t *testing.T, meanwhile func())
	// cannot says why a scenario is not for this runtime; "" if it is.
	cannot(scenario string) string
	// versions says what it is, by the names of the programs.
	versions(t *testing.T) map[string]string
}

// manner is how a container is to run.
type manner struct {
	memory   int64 // bytes that it may have; 0 is no limit
	sharePID bool  // in a pid namespace that others are in
}

// life is a container of the suite.
type life interface {
	ran
	pid(t T) int
	// again starts the container again, when it has ended, as the runtime restarts
	// one. Where no container starts twice that is another one, in the same pod.
	again(t T) life
}

const noDaemon = "it has no daemon that could restart"

type podmanSuite struct{ podmanDriver }

func (s podmanSuite) image(t *testing.T)             { targetImage(t, s) }
func (s podmanSuite) restart(t *testing.T, _ func()) { t.Fatal(noDaemon) }
func (s podmanSuite) cannot(scenario string) string  { return withoutDaemon(scenario) }
func withoutDaemon(scenario string) string {
	if scenario == runtimeRestart {
		return noDaemon
	}
	return ""
}

func (s podmanSuite) try(t T, name string, o manner, orders ...string) (life, error) {
	options := []string{"--detach", "--name", name}
	if o.memory > 0 {
		options = append(options, "--memory", strconv.FormatInt(o.memory, 10))
	}
	if o.sharePID {
		options = append(options, "--pid", "host")
	}
	id, err := s.Try(t, s.limits("run", append(append(options, targetName), orders...))...)
	return podmanRan{s.Podman, strings.TrimSpace(id)}, err
}

func (s podmanSuite) versions(t *testing.T) map[string]string {
	return map[string]string{"podman": refusingPodman{s.podmanDriver}.version(t), filepath.Base(runc()): runcVersion(t, runc())}
}

func (r podmanRan) pid(t T) int    { return r.p.Pid(t, r.c) }
func (r podmanRan) again(t T) life { r.p.Start(t, r.c); return r }

// criSuite is containerd or CRI-O by its CRI socket.
type criSuite struct {
	driver
	server  *criServer
	program string
	says    func(t *testing.T) string // its version
	no      map[string]string         // what it cannot
}

func containerdSuite(t *testing.T) suite {
	d := containerdDriver{StartContainerd(t)}
	return criSuite{d, &d.criServer, "containerd", refusingContainerd{d}.version, map[string]string{sameID: startsOnce}}
}

func crioSuite(t *testing.T) suite {
	d := crioDriver{StartCRIO(t)}
	return criSuite{d, &d.criServer, "cri-o", refusingCRIO{d}.version, map[string]string{sameID: startsOnce}}
}

const startsOnce = "CRI starts no container twice: a restart is another container in the same pod, as under " + crashLoop

func (s criSuite) image(t *testing.T)            { targetImage(t, s.driver) }
func (s criSuite) cannot(scenario string) string { return s.no[scenario] }

func (s criSuite) restart(t *testing.T, meanwhile func()) {
	s.server.Stop(t)
	meanwhile()
	s.server.Start(t)
}

func (s criSuite) try(t T, name string, o manner, orders ...string) (life, error) {
	x, err := s.server.TryCreate(t, Spec{Image: targetName, Name: name, Args: orders, SharePID: o.sharePID, Memory: o.memory})
	if err != nil {
		return nil, err
	}
	return criRan{x}, x.TryStart(t)
}

func (s criSuite) versions(t *testing.T) map[string]string {
	return map[string]string{s.program: s.says(t), filepath.Base(runc()): runcVersion(t, runc())}
}

func (r criRan) pid(t T) int { return r.c.Pid(t) }

func (r criRan) again(t T) life {
	x, err := r.c.TryAgain(t)
	if err == nil {
		err = x.TryStart(t)
	}
	if err != nil {
		t.Fatalf("%v", err)
	}
	return criRan{x}
}

// ociSuite is runc or crun without an engine.
type ociSuite struct {
	*OCI
	path string
}

func runcSuite(t *testing.T) suite { return newOCISuite(t, "runc", need.Runc(t)) }
func crunSuite(t *testing.T) suite {
	need.Root(t)
	return newOCISuite(t, "crun", need.Command(t, "crun")[0])
}

func newOCISuite(t *testing.T, name, path string) suite {
	return ociSuite{OpenOCI(t, NewScratch(t), name, path), path}
}

func (s ociSuite) agent(o AgentOptions) AgentOptions { o.States = []string{s.States}; return o }
func (s ociSuite) attach(_ *testing.T, a *Agent)     { s.InstallHook(a.Binaries.Hook, a.HookSocket) }
func (s ociSuite) restart(t *testing.T, _ func())    { t.Fatal(noDaemon) }

func (s ociSuite) cannot(scenario string) string {
	if scenario == oom && s.Name == "crun" && hybrid() {
		return "it refuses the hybrid cgroup mode of this machine; shown the unified hierarchy alone it runs, and there is no memory controller there"
	}
	return withoutDaemon(scenario)
}

func (s ociSuite) image(t *testing.T) {
	for _, dir := range []string{"bin", "dev", "proc"} {
		s.Scratch.mkdir(t, s.Name, "image", dir)
	}
	Compile(t, s.Image+"/bin/target", "-static", "-O2", "testdata/target.c")
}

func (s ociSuite) try(t T, name string, o manner, orders ...string) (life, error) {
	c := s.Make(t, name, Bundle{Args: append([]string{"/bin/target"}, orders...), Memory: o.memory, SharePID: o.sharePID})
	return ociRan{c}, c.TryStart(t)
}

func (s ociSuite) versions(t *testing.T) map[string]string {
	return map[string]string{s.Name: s.Version(t)}
}

type ociRan struct{ c *OCIContainer }

func (r ociRan) id() string   { return r.c.ID }
func (r ociRan) wait(t T) int { return r.c.Wait(t) }
func (r ociRan) stop(t T)     { r.c.Stop(t) }
func (r ociRan) remove(t T)   { r.c.Remove(t) }
func (r ociRan) pid(t T) int  { return r.c.Pid(t) }

func (r ociRan) again(t T) life {
	r.c.Wait(t)
	if err := r.c.TryStart(t); err != nil {
		t.Fatalf("%v", err)
	}
	return r
}

func (r ociRan) exec(t T, args ...string) {
	if err := r.c.TryExec(t.Context(), args...); err != nil {
		t.Fatalf("%v", err)
	}
}

func (r ociRan) goOn(t T, orders ...string) {
	if err := r.c.TryExec(t.Context(), append([]string{"/bin/target"}, append(orders, "go")...)...); err != nil {
		t.Logf("let it go on: %v", err) // if it does not, waiting for it fails
	}
}
