// Package gvisor makes containers of gVisor for tests.
//
// In: gVisor's runsc (need.Runsc) and busybox. Out: a container that is created
// and not started, as it waits at the barrier. Everything of it is in the
// test's own directory and is gone when the test is over.
package gvisor

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"probity/tests/need"
)

// Container is one of gVisor's.
type Container struct {
	ID  string
	Pid int // of the sandbox, as runsc says

	t     testing.TB
	runsc string
	dir   string
}

// Create makes one with these OCI hooks, which runs busybox uname when it is
// started.
func Create(t testing.TB, runsc string, hooks map[string][]any) *Container {
	t.Helper()
	need.Root(t)
	busybox := need.Command(t, "busybox")[0]
	dir := t.TempDir()
	c := &Container{ID: "gvisor-" + filepath.Base(filepath.Dir(dir)), t: t, runsc: runsc, dir: dir}
	program, err := os.ReadFile(busybox)
	c.must(err)
	config, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.2",
		"process":    map[string]any{"user": map[string]int{"uid": 0, "gid": 0}, "args": []string{"/bin/busybox", "uname"}, "cwd": "/"},
		"root":       map[string]any{"path": "rootfs", "readonly": true},
		"linux":      map[string]any{"namespaces": []map[string]string{{"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}}},
		"hooks":      hooks,
	})
	c.must(err)
	c.must(os.MkdirAll(dir+"/rootfs/bin", 0o755))
	c.must(os.WriteFile(dir+"/rootfs/bin/busybox", program, 0o755))
	c.must(os.WriteFile(dir+"/config.json", config, 0o600))
	t.Cleanup(func() {
		c.Delete()
		// A namespace without a network, for all sandboxes of this root.
		_ = unix.Unmount(dir+"/state/null-netns", unix.MNT_DETACH)
	})
	c.do("create", "--bundle="+dir, "--pid-file="+dir+"/pid", c.ID)
	text, err := os.ReadFile(dir + "/pid")
	c.must(err)
	c.Pid, err = strconv.Atoi(string(text))
	c.must(err)
	return c
}

// Delete ends it. It is idempotent.
func (c *Container) Delete() {
	c.t.Helper()
	c.do("delete", "--force", c.ID)
}

func (c *Container) do(args ...string) {
	c.t.Helper()
	// Into a file: the sandbox keeps what it is given, and a pipe would not end.
	out, err := os.Create(c.dir + "/out")
	c.must(err)
	defer out.Close()
	// The test may share its cgroup, and not every machine lets a process trap
	// its system calls otherwise.
	cmd := exec.Command(c.runsc, append([]string{"--root=" + c.dir + "/state", "--ignore-cgroups", "--network=none", "--platform=ptrace"}, args...)...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(out.Name())
		c.t.Fatalf("runsc %s: %v: %s", args[0], err, said)
	}
}

func (c *Container) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}
