package kernels

import (
	"path/filepath"
	"strings"
	"testing"

	"probity/tests/kernels/guest"
	"probity/tests/need"
)

// TestCgroupModes: where cgroup2 is mounted beside v1, the engine counts as it
// does on v2. Without it every task has the root's id, containers cannot be
// told apart, and that is said: nothing is armed for a container, with the
// reason sharedCgroup.
func TestCgroupModes(t *testing.T) {
	m := one(t)
	dir := need.Kernel(t, m.QEMU(), m.Name)
	programs := programs(t, m.Arch)
	for name, pkg := range map[string]string{"probity": "./plugin", "probity-hook": "./hook"} {
		if err := goRun(m.Arch, "build", "-trimpath", "-o", filepath.Join(programs, name), pkg); err != nil {
			t.Fatal(err)
		}
	}
	load := Load{
		"/init":             filepath.Join(programs, "init"),
		"/bin/conformance":  filepath.Join(programs, "conformance"),
		"/bin/probity":      filepath.Join(programs, "probity"),
		"/bin/probity-hook": filepath.Join(programs, "probity-hook"),
		"/chain":            "testdata/chain",
		"/chain/target.c":   "conformance/testdata/target.c",
	}
	says := guest.Step{Name: "kernel", Dir: "/tmp", Args: []string{"/bin/probity", "kernel"}, Limit: 120}
	chain := guest.Step{Name: "chain", Dir: "/tmp", Args: []string{"/bin/sh", "/chain/run.sh"}, Limit: 180}
	t.Run("hybrid", func(t *testing.T) {
		t.Parallel() // a machine has one thread of the host
		boot := bootOrFail(t, m, dir, guest.Job{Cgroups: guest.Hybrid, Steps: []guest.Step{says, chain}}, load)
		saysMode(t, boot, "hybrid")
		s, _ := boot.Step("chain")
		out := strings.Join(s.Output, "\n\t")
		if !s.Ended || s.Exit != 0 || !strings.Contains(out, "hit") || strings.Contains(out, "sharedCgroup") {
			t.Errorf("ended %v, exit code %d\n\t%s", s.Ended, s.Exit, out)
		}
	})
	t.Run("v1", func(t *testing.T) {
		t.Parallel()
		boot := bootOrFail(t, m, dir, guest.Job{Cgroups: guest.V1, Steps: []guest.Step{says, chain}}, load)
		saysMode(t, boot, "v1")
		s, _ := boot.Step("chain")
		out := strings.Join(s.Output, "\n\t")
		if !s.Ended || s.Exit != 0 || !strings.Contains(out, "notArmed: sharedCgroup") || strings.Contains(out, " hit ") {
			t.Errorf("ended %v, exit code %d\n\t%s", s.Ended, s.Exit, out)
		}
	})
}

// saysMode wants that `probity kernel` names the mode.
func saysMode(t *testing.T, boot *Boot, mode string) {
	t.Helper()
	s, _ := boot.Step("kernel")
	for _, text := range s.Output {
		if f := strings.Fields(text); len(f) == 2 && f[0] == "cgroups" && f[1] == mode {
			return
		}
	}
	t.Errorf("`probity kernel` does not say that cgroups are %s:\n\t%s", mode, strings.Join(s.Output, "\n\t"))
}
