package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"probity/runtime/handoff/wire"
	"probity/tests/need"
)

// The directories are those that a real podman says it reads, whatever its
// configuration files say.
func TestPodmanHooks(t *testing.T) {
	podman := need.Podman(t)
	need.Command(t, "unshare", "mount")
	for name, files := range map[string]map[string]string{
		"default":               {"containers.conf": ""},
		"of another thing":      {"containers.conf": "[containers]\npids_limit = 100\n[engine]\nevents_logger = \"none\"\n"},
		"replaced":              {"containers.conf": "[engine]\nhooks_dir = [\"DIR/a\"]\n"},
		"two":                   {"containers.conf": "[engine]\nhooks_dir = [\n  \"DIR/a\", # ours\n  \"DIR/b\",\n]\n"},
		"none":                  {"containers.conf": "[engine]\nhooks_dir = []\n"},
		"a drop-in replaces it": {"containers.conf": "[engine]\nhooks_dir = [\"DIR/a\"]\n", "containers.conf.d/x.conf": "[engine]\nhooks_dir = [\"DIR/b\"]\n"},
		"the last drop-in wins": {"containers.conf.d/x.conf": "[engine]\nhooks_dir = [\"DIR/a\"]\n", "containers.conf.d/y.conf": "[engine]\nhooks_dir = [\"DIR/b\"]\n"},
		"not of this name":      {"containers.conf.d/x.toml": "[engine]\nhooks_dir = [\"DIR/a\"]\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etc := t.TempDir()
			dir, err := os.MkdirTemp("", "hooks") // podman takes no longer names than 50 characters
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := os.RemoveAll(dir); err != nil {
					t.Error(err)
				}
			})
			for _, d := range []string{"a", "b", "rootfs"} {
				if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for name, text := range files {
				path := filepath.Join(etc, name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			configs := slices.Clone(podmanConfigs)
			for i := range configs {
				configs[i] = strings.Replace(configs[i], "/etc/containers", etc, 1)
			}
			got, from, err := podmanHooks(configs)
			if err != nil {
				t.Fatal(err)
			}
			if changed := !slices.Equal(got, []string{defaultHooks}); changed != strings.HasPrefix(from, etc) {
				t.Errorf("said by %q", from)
			}
			// It reads them before it starts the runtime, which here is none.
			cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "sh", "-ec", `mount --bind "$1" /etc/containers; shift; exec "$@"`, "sh", etc,
				podman, "--log-level", "debug", "--root", dir+"/root", "--runroot", dir+"/run", "--tmpdir", dir+"/tmp", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs",
				"--events-backend", "none", "--runtime", "/bin/false", "run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--rootfs", dir+"/rootfs", "/x")
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "after creation failed") {
				t.Fatalf("podman: %v: %s", err, out)
			}
			var read []string
			for _, m := range regexp.MustCompile(`reading hooks from ([^"\s]+)`).FindAllStringSubmatch(string(out), -1) {
				read = append(read, m[1])
			}
			if !slices.Equal(read, got) {
				t.Errorf("podman reads %q, doctor says %q", read, got)
			}
		})
	}
}

// podman 5 can append to what was said before.
func TestPodmanHooksAppended(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "c.conf")
	if err := os.WriteFile(file, []byte("[engine]\nhooks_dir = [\"/x\", {append=true}]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, _, err := podmanHooks([]string{file, dir + "/absent"}); err != nil || !slices.Equal(got, []string{defaultHooks, "/x"}) {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.WriteFile(file, []byte("hooks_dir = ["), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := podmanHooks([]string{file}); err == nil {
		t.Error("what cannot be read is no error")
	}
}

// A hook that is where podman does not look is told from one that is not there, and
// the advice puts it there.
func TestDoctorHooksElsewhere(t *testing.T) {
	need.Root(t)
	base := t.TempDir()
	effective, other := filepath.Join(base, "effective"), filepath.Join(base, "other dir")
	h := hooks{dirs: []string{effective}, from: "/etc/containers/containers.conf", others: []string{other}, podman: true, socket: wire.DefaultPath}
	if got := h.check(); got[0].Status != checkFail || !strings.Contains(got[0].What, "no "+createHook) {
		t.Errorf("%+v", got)
	}
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{createHook, poststopHook} {
		if err := os.WriteFile(filepath.Join(other, name), []byte(`{"hook":{"path":"/bin/true","args":["probity-hook","x"]}}`), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got := h.check()
	if len(got) != 1 || got[0].Status != checkFail || !strings.Contains(got[0].What, "present, but not effective: podman reads "+effective+" as /etc/containers/containers.conf says") {
		t.Fatalf("%+v", got)
	}
	if out, err := exec.Command("/bin/sh", "-ec", got[0].Advice).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", got[0].Advice, err, out)
	}
	if got := h.check(); got[0].Status != checkOK || got[0].Where != filepath.Join(effective, createHook) {
		t.Errorf("after the advice: %+v", got)
	}
	h.socket = "none"
	if got := h.check(); got[0].Status != checkWarn || strings.Contains(got[0].Advice, "install") {
		t.Errorf("%+v", got)
	}
}

// The advice to install is a command that works where the source is.
func TestDoctorInstallsHooks(t *testing.T) {
	need.Root(t)
	dir := filepath.Join(t.TempDir(), "oci dir/hooks.d")
	h := hooks{dirs: []string{dir}, podman: true, socket: wire.DefaultPath}
	cmd := exec.Command("/bin/sh", "-ec", h.check()[0].Advice)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got := h.check()
	if len(got) != 3 || got[0].Status != checkOK || got[1].Status != checkOK {
		t.Errorf("%+v", got)
	}
}
