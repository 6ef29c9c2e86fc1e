package kernels

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"probity/tests/kernels/guest"
	"probity/tests/need"
)

// TestCrun runs containers by crun, which refuses hosts in the hybrid cgroup
// mode: one in a sub-cgroup that crun made, and one whose first process is
// systemd, with a service in a slice of its own. In each, what an exec session
// does counts too. All of it is in the container's subtree: the counts are exact
// and nothing is lost.
func TestCrun(t *testing.T) {
	need.Command(t, "gcc")
	// One kernel will do, whichever others are booted: it is about runtimes. The
	// system call that the target makes is x86-64's.
	m := machineWith(t, "6.12", "containers")
	dir := need.Kernel(t, m.QEMU(), m.Name)
	programs := programs(t, m.Arch)
	for name, pkg := range map[string]string{"probity": "./plugin", "probity-hook": "./hook"} {
		if err := goRun(m.Arch, "build", "-trimpath", "-o", filepath.Join(programs, name), pkg); err != nil {
			t.Fatal(err)
		}
	}
	target := filepath.Join(t.TempDir(), "target")
	if out, err := exec.Command("gcc", "-O1", "-static", "-o", target, "testdata/crun/target.c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	step := guest.Step{Name: "crun", Dir: "/tmp", Args: []string{"/bin/sh", "/crun/run.sh"}, Limit: 400}
	boot := bootOrFail(t, m, dir, guest.Job{Cgroups: guest.V2, Steps: []guest.Step{step}}, Load{
		"/init":             filepath.Join(programs, "init"),
		"/bin/probity":      filepath.Join(programs, "probity"),
		"/bin/probity-hook": filepath.Join(programs, "probity-hook"),
		"/crun":             "testdata/crun",
		"/crun/target":      target,
	})
	s, _ := boot.Step(step.Name)
	if !s.Ended || s.Exit != 0 {
		t.Fatalf("ended %v, exit code %d\n\t%s", s.Ended, s.Exit, strings.Join(s.Output, "\n\t"))
	}
	said := ""
	for _, text := range s.Output {
		if !strings.HasPrefix(text, "file ") {
			said += text + "\n"
		}
	}
	t.Log(said)
	for _, want := range []string{
		"service: 0::/deep.slice/deep-deeper.slice/probed.service\n",
		"session: 0::/", // where crun puts it depends on its version: in the container's subtree
	} {
		if !strings.Contains(said, want) {
			t.Errorf("the guest does not say %q", want)
		}
	}

	type line struct {
		Kind, ProbeID, State, Count, Reason string
		ContainerID                         string
		Final, Complete                     bool
		Confidence                          struct{ Inputs map[string]any }
	}
	last, late := map[string]line{}, map[string]bool{} // by container and probe; by container
	for _, chunk := range unpack(t, s.Output, t.TempDir()) {
		for text := range bytes.Lines(chunk) {
			var l line
			if err := json.Unmarshal(text, &l); err != nil {
				t.Fatal(err)
			}
			switch {
			case l.Kind == "observation":
				last[l.ContainerID+" "+l.ProbeID] = l
			case l.Kind == "gap" && l.Reason == "lateAttach":
				late[l.ContainerID] = true // an emulated machine may be too slow for the hook's deadline
			case l.Kind == "gap" && !strings.HasPrefix(l.ContainerID, "cold-") && l.ContainerID != "":
				t.Errorf("a gap of %s: %s", l.ContainerID, text)
			}
		}
	}
	for _, container := range []string{"sub", "systemd"} {
		for probe, count := range map[string]string{"function": "10", "call": "7"} {
			l := last[container+" "+probe]
			if l.State != "hit" || l.Count != count || !l.Final || !l.Complete && !late[container] || l.Confidence.Inputs["attribution"] != "cgroup" {
				t.Errorf("%s, %s: %+v; want %s hits by cgroup", container, probe, l, count)
			}
		}
	}
}
