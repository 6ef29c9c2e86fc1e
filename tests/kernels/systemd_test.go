package kernels

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"probity/tests/kernels/guest"
	"probity/tests/need"
)

// TestSystemd runs the RPM's scriptlets in a machine whose first process is systemd, and
// has tests/systemd run there.
//
// It takes minutes, so it is for those who boot all kernels. It goes on beside the other
// machines: each is emulated by one thread.
func TestSystemd(t *testing.T) {
	need.SystemdBoot(t, *bootFlag == "all")
	t.Parallel()
	packaged{userland: "containers", pkg: "./tests/systemd", test: "TestMachine"}.run(t)
}

// TestRootless has a user's own podman run containers there, where that user's manager
// has a cgroup delegated to it.
func TestRootless(t *testing.T) {
	need.SystemdBoot(t, *bootFlag == "all")
	t.Parallel()
	packaged{userland: "rootless", pkg: "./tests/systemd", test: "TestUsers"}.run(t)
}

// TestDoctor has probity doctor look at such a machine with containerd 1.7 and podman 5.
func TestDoctor(t *testing.T) {
	need.SystemdBoot(t, *bootFlag == "all")
	t.Parallel()
	packaged{userland: "runtimes", pkg: "./tests/doctor", test: "TestDoctor", first: "mkdir -p /var/lib /var/tmp"}.run(t)
}

// packaged is a test that runs in a machine with systemd, where the RPM's files, its
// scriptlets and a program for containers are below /package.
type packaged struct {
	userland  string
	pkg, test string
	first     string // a command before it, or ""
}

func (p packaged) run(t *testing.T) {
	t.Helper()
	need.Command(t, "gcc", "rpmbuild", "rpm", "rpm2cpio", "cpio")
	m := machineWith(t, defaultMachine, p.userland)
	dir := need.Kernel(t, m.QEMU(), m.Name)
	work := t.TempDir()
	first, test := filepath.Join(work, "init"), filepath.Join(work, "test")
	for _, args := range [][]string{
		{"build", "-trimpath", "-o", first, "./tests/kernels/init"},
		{"test", "-c", "-ldflags=-s -w", "-o", test, p.pkg},
	} {
		if err := goRun(m.Arch, args...); err != nil {
			t.Fatal(err)
		}
	}
	target := filepath.Join(work, "target")
	if out, err := exec.Command("gcc", "-O1", "-static", "-o", target, "testdata/crun/target.c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	root, scripts := unpackRPM(t, work)
	step := guest.Step{
		Name: p.test, Dir: "/", Args: []string{"/bin/sh", "-c", cmp.Or(p.first, "true") + ` && exec /package/test -test.v -test.timeout=24m -test.run "^$0\$"`, p.test},
		Env: []string{need.SystemdMachine + "=/package", need.Require + "=systemd"}, Limit: 1450,
	}
	boot := bootOrFail(t, m, dir, guest.Job{Cgroups: guest.V2, Systemd: true, Steps: []guest.Step{step}}, Load{
		"/init":            first,
		"/package/test":    test,
		"/package/target":  target,
		"/package/root":    root,
		"/package/scripts": scripts,
	})
	s, _ := boot.Step(step.Name)
	t.Log(strings.Join(s.Output, "\n\t"))
	if !s.Ended || s.Exit != 0 || !slices.ContainsFunc(s.Output, func(text string) bool { return strings.HasPrefix(text, "--- PASS: "+p.test+" ") }) {
		t.Errorf("ended %v, exit code %d", s.Ended, s.Exit)
	}
}

// unpackRPM builds the RPM and returns a directory with what is in it, and one with
// its scriptlets.
func unpackRPM(t *testing.T, work string) (root, scripts string) {
	t.Helper()
	out, err := exec.Command("../../scripts/rpm.sh", filepath.Join(work, "rpm")).Output()
	if err != nil {
		t.Fatalf("rpm.sh: %v", err)
	}
	rpm := strings.TrimSpace(string(out))
	root, scripts = filepath.Join(work, "root"), filepath.Join(work, "scripts")
	if err := os.Mkdir(scripts, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, tag := range map[string]string{"post": "POSTIN", "preun": "PREUN", "postun": "POSTUN"} {
		text, err := exec.Command("rpm", "-qp", "--qf", "%{"+tag+"}", rpm).Output()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(scripts, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tool(t, "/bin/sh", "-c", `mkdir "$1" && cd "$1" && rpm2cpio "$2" | cpio --quiet --extract --make-directories`, "unpack", root, rpm)
	return root, scripts
}
