package kernels

import (
	"path/filepath"
	"strings"
	"testing"

	"probity/tests/kernels/guest"
	"probity/tests/need"
)

// scenarios are those of tests/runtimes that are run in the machine: the whole way of
// the data, the runtime's and the agent's ends, and one that is adopted.
var scenarios = []string{"TestSpine", "TestAdoptedAfterAKill", "TestKeptOverAKill", "TestRuntimeRestart"}

// TestRuntimes runs scenarios of tests/runtimes with the runtimes of another release, in
// a machine with systemd and the unified hierarchy: containerd 1.7, and podman 5 with
// crun, which refuses hosts in the hybrid mode.
//
// It takes minutes, so it is for those who boot all kernels. It goes on beside TestSystemd:
// each machine is emulated by one thread.
func TestRuntimes(t *testing.T) {
	need.SystemdBoot(t, *bootFlag == "all")
	t.Parallel()
	m := machineWith(t, defaultMachine, "runtimes")
	dir := need.Kernel(t, m.QEMU(), m.Name)
	work := t.TempDir()
	load := Load{
		"/probity/go.mod": "../../go.mod", "/probity/packaging": "../../packaging", "/probity/evidence/schema": "../../evidence/schema",
		"/probity/tests/demo": "../demo", "/probity/tests/runtimes/testdata": "../runtimes/testdata",
	}
	for _, b := range []struct {
		path, pkg string
		args      []string
	}{
		{"/init", "./tests/kernels/init", []string{"build", "-trimpath"}},
		{"/probity/bin/probity", "./plugin", []string{"build", "-trimpath", "-ldflags=-s -w"}},
		{"/probity/bin/probity-hook", "./hook", []string{"build", "-trimpath", "-ldflags=-s -w"}},
		{"/probity/tests/runtimes/runtimes.test", "./tests/runtimes", []string{"test", "-c", "-ldflags=-s -w"}},
	} {
		load[b.path] = filepath.Join(work, filepath.Base(b.path))
		if err := goRun(m.Arch, append(b.args, "-o", load[b.path], b.pkg)...); err != nil {
			t.Fatal(err)
		}
	}
	set := "mkdir -p /peers /var/lib /var/tmp && touch /etc/hosts /etc/resolv.conf && for p in containerd containerd-shim-runc-v2 ctr; do ln -s /usr/bin/$p /peers/$p; done"
	step := guest.Step{
		Name: "runtimes", Dir: "/probity/tests/runtimes",
		Args:  []string{"/bin/sh", "-c", set + ` && exec ./runtimes.test -test.v -test.timeout=25m -test.run "^($0)\$"`, strings.Join(scenarios, "|")},
		Env:   []string{"PROBITY_PEERS=/peers", "PROBITY_PROGRAMS=/probity/bin", "PROBITY_LOW_RUNTIME=crun", need.Require + "=root,bpf,cgroup2,podman,runc,containerd,command"},
		Limit: 1500,
	}
	boot := bootOrFail(t, m, dir, guest.Job{Cgroups: guest.V2, Systemd: true, Steps: []guest.Step{step}}, load)
	s, _ := boot.Step(step.Name)
	t.Log(strings.Join(s.Output, "\n\t"))
	if !s.Ended || s.Exit != 0 {
		t.Errorf("ended %v, exit code %d", s.Ended, s.Exit)
	}
}
