package kernels

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"probity/tests/kernels/guest"
	"probity/tests/need"
)

// TestDoctor has tests/doctor run in a machine with systemd, containerd 1.7 and podman 5,
// where the RPM's files are installed.
//
// It takes minutes, so it is for those who boot all kernels.
func TestDoctor(t *testing.T) {
	need.SystemdBoot(t, *bootFlag == "all")
	t.Parallel()
	need.Command(t, "rpmbuild", "rpm", "rpm2cpio", "cpio")
	m := machineWith(t, defaultMachine, "runtimes")
	dir := need.Kernel(t, m.QEMU(), m.Name)
	work := t.TempDir()
	first, test := filepath.Join(work, "init"), filepath.Join(work, "doctor.test")
	for _, args := range [][]string{
		{"build", "-trimpath", "-o", first, "./tests/kernels/init"},
		{"test", "-c", "-ldflags=-s -w", "-o", test, "./tests/doctor"},
	} {
		if err := goRun(m.Arch, args...); err != nil {
			t.Fatal(err)
		}
	}
	root, scripts := unpackRPM(t, work)
	step := guest.Step{Name: "doctor", Dir: "/", Args: []string{"/bin/sh", "-c", "mkdir -p /var/lib /var/tmp && exec /doctor.test -test.v -test.timeout=24m"},
		Env: []string{need.SystemdMachine + "=/package", need.Require + "=systemd"}, Limit: 1450}
	boot := bootOrFail(t, m, dir, guest.Job{Cgroups: guest.V2, Systemd: true, Steps: []guest.Step{step}}, Load{
		"/init":            first,
		"/doctor.test":     test,
		"/package/root":    root,
		"/package/scripts": scripts,
	})
	s, _ := boot.Step(step.Name)
	t.Log(strings.Join(s.Output, "\n\t"))
	if !s.Ended || s.Exit != 0 || !slices.ContainsFunc(s.Output, func(text string) bool { return strings.HasPrefix(text, "--- PASS: TestDoctor ") }) {
		t.Errorf("ended %v, exit code %d", s.Ended, s.Exit)
	}
}
