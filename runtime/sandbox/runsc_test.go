package sandbox

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"probity/tests/need"
)

// A container of gVisor itself, created and not started, as it waits at the
// barrier. The file is also given the shape of a released one, which Bazel
// links without its modules, under a name that says nothing.
func TestRunsc(t *testing.T) {
	runsc := need.Runsc(t)
	need.Command(t, "busybox")
	t.Run("module", func(t *testing.T) {
		f := ofRunsc(t, runsc)
		if v := f.Judge(); v.Kind != GVisor || v.UnlessNative || f.Program.Module != gvisorModule || !strings.Contains(v.Why, "gvisor.dev/gvisor/runsc") {
			t.Errorf("%+v: %+v", f, v)
		}
	})
	t.Run("no modules", func(t *testing.T) {
		b, err := os.ReadFile(runsc)
		if err != nil {
			t.Fatal(err)
		}
		f := ofRunsc(t, file(t, "app", bazel(t, b)))
		if v := f.Judge(); v.Kind != GVisor || f.Program.Module != "" || !f.Program.Sentry {
			t.Errorf("%+v: %+v", f, v)
		}
	})
}

// ofRunsc creates a container and looks at its first process.
func ofRunsc(t *testing.T, runsc string) Facts {
	t.Helper()
	dir := t.TempDir()
	busybox, err := os.ReadFile(need.Command(t, "busybox")[0])
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.2",
		"process":    map[string]any{"user": map[string]int{"uid": 0, "gid": 0}, "args": []string{"/bin/busybox", "true"}, "cwd": "/"},
		"root":       map[string]any{"path": "rootfs", "readonly": true},
		"linux":      map[string]any{"namespaces": []map[string]string{{"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.MkdirAll(dir+"/rootfs/bin", 0o755),
		os.WriteFile(dir+"/rootfs/bin/busybox", busybox, 0o755),
		os.WriteFile(dir+"/config.json", config, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	id := "probity-" + filepath.Base(filepath.Dir(dir))
	do := func(args ...string) {
		t.Helper()
		// Into a file: the sandbox keeps what it is given, and a pipe would not end.
		out, err := os.Create(dir + "/out")
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		cmd := exec.Command(runsc, append([]string{"--root=" + dir + "/state", "--ignore-cgroups", "--network=none", "--platform=ptrace"}, args...)...)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Run(); err != nil {
			said, _ := os.ReadFile(out.Name())
			t.Fatalf("runsc %s: %v: %s", args[0], err, said)
		}
	}
	t.Cleanup(func() {
		do("delete", "--force", id)
		// A namespace without a network, for all sandboxes of this root.
		_ = unix.Unmount(dir+"/state/null-netns", unix.MNT_DETACH)
	})
	do("create", "--bundle="+dir, "--pid-file="+dir+"/pid", id)
	text, err := os.ReadFile(dir + "/pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		t.Fatal(err)
	}
	f, err := Look(pid)
	if err != nil {
		t.Error(err)
	}
	return f
}
