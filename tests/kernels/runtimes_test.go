package kernels

import (
	"encoding/json"
	"flag"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"probity/tests/kernels/guest"
	"probity/tests/need"
	"probity/tests/runtimes"
)

var writeRuntimes = flag.Bool("write-runtimes", false, "put the results of TestRuntimes into docs/runtimes.json")

// inDebian is what the runtimes of the machine are called in docs/runtimes.json, after
// their names.
const inDebian = ", Debian 13"

// shortly are the tests of tests/runtimes that are run unless -whole says that there is
// time for all scenarios, which take a quarter of an hour.
var shortly = []string{"TestSpine", "TestAdoptedAfterAKill", "TestPinnedOverAKill", "TestAgentKilled"}

// TestRuntimes runs the scenarios of tests/runtimes with the runtimes of another release,
// in a machine with systemd and the unified hierarchy: containerd 1.7, and podman 5 with
// crun, which refuses hosts in the hybrid mode. With
// -whole each goes as docs/runtimes.json says.
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
	tests, whole := strings.Join(shortly, "|"), *wholeFlag || *writeRuntimes
	if whole {
		tests = "TestScenarios"
	}
	step := guest.Step{
		Name: "runtimes", Dir: "/probity/tests/runtimes",
		Args:  []string{"/bin/sh", "-c", set + ` && exec ./runtimes.test -test.v -test.timeout=40m -test.run "^($0)\$" -report`, tests},
		Env:   []string{"PROBITY_PEERS=/peers", "PROBITY_PROGRAMS=/probity/bin", "PROBITY_LOW_RUNTIME=crun", need.Require + "=root,bpf,cgroup2,podman,runc,containerd,command"},
		Limit: 2400,
	}
	boot := bootOrFail(t, m, dir, guest.Job{Cgroups: guest.V2, Systemd: true, Steps: []guest.Step{step}}, load)
	s, _ := boot.Step(step.Name)
	t.Log(strings.Join(s.Output, "\n\t"))
	if !s.Ended || s.Exit != 0 {
		t.Fatalf("ended %v, exit code %d", s.Ended, s.Exit)
	}
	for name := range strings.SplitSeq(tests, "|") {
		if !slices.ContainsFunc(s.Output, func(text string) bool { return strings.HasPrefix(text, "--- PASS: "+name+" ") }) {
			t.Errorf("%s was not run", name)
		}
	}
	if !whole {
		return
	}
	matrix, err := runtimes.ReadMatrix(runtimesJSON)
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, text := range s.Output {
		line, ok := strings.CutPrefix(text, runtimes.ReportMark)
		if !ok {
			continue
		}
		var r runtimes.MatrixRuntime
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		if r.NotRun != "" {
			continue
		}
		ran++
		r.Name += inDebian
		r.Commit = commit(t)
		if was := matrix.Put(r, len(matrix.Runtimes)); !*writeRuntimes && !slices.Equal(was.Rows, r.Rows) {
			t.Errorf("docs/runtimes.json says of %s\n%+v\nit went\n%+v", r.Name, was.Rows, r.Rows)
		}
	}
	if ran < 4 {
		t.Errorf("%d runtimes were run", ran)
	}
	if *writeRuntimes {
		if err := matrix.Write(runtimesJSON); err != nil {
			t.Fatal(err)
		}
	}
}

const runtimesJSON = "../../docs/runtimes.json"
