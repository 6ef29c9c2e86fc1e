package kernels

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"probity/tests/kernels/guest"
	"probity/tests/need"
)

// TestRootless has a user's own podman run containers in a machine with systemd, where
// that user's manager has a cgroup delegated to it (TestUsers of tests/systemd).
//
// It takes minutes, so it is for those who boot all kernels. It goes on beside the others:
// each machine is emulated by one thread.
func TestRootless(t *testing.T) {
	need.SystemdBoot(t, *bootFlag == "all")
	t.Parallel()
	need.Command(t, "gcc", "rpmbuild", "rpm", "rpm2cpio", "cpio")
	m := machineWith(t, defaultMachine, "rootless")
	dir := need.Kernel(t, m.QEMU(), m.Name)
	work := t.TempDir()
	first, test, target := filepath.Join(work, "init"), filepath.Join(work, "systemd.test"), filepath.Join(work, "target")
	for _, args := range [][]string{
		{"build", "-trimpath", "-o", first, "./tests/kernels/init"},
		{"test", "-c", "-ldflags=-s -w", "-o", test, "./tests/systemd"},
	} {
		if err := goRun(m.Arch, args...); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("gcc", "-O1", "-static", "-o", target, "testdata/crun/target.c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	root, scripts := unpackRPM(t, work)
	step := guest.Step{
		Name: "rootless", Dir: "/", Args: []string{"/systemd.test", "-test.v", "-test.timeout=24m", "-test.run", "^TestUsers$"},
		Env: []string{need.SystemdMachine + "=/package", need.Require + "=systemd"}, Limit: 1450,
	}
	boot := bootOrFail(t, m, dir, guest.Job{Cgroups: guest.V2, Systemd: true, Steps: []guest.Step{step}}, Load{
		"/init": first, "/systemd.test": test, "/package/target": target, "/package/root": root, "/package/scripts": scripts,
	})
	s, _ := boot.Step(step.Name)
	t.Log(strings.Join(s.Output, "\n\t"))
	if !s.Ended || s.Exit != 0 || !slices.ContainsFunc(s.Output, func(text string) bool { return strings.HasPrefix(text, "--- PASS: TestUsers ") }) {
		t.Errorf("ended %v, exit code %d", s.Ended, s.Exit)
	}
}
