package image

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"probity/tests/need"
)

// A mount at a file, or above it, covers it for who is in that namespace; one
// beside it or below does not.
func TestCovered(t *testing.T) {
	need.Root(t)
	need.Command(t, "gcc")
	dir := t.TempDir()
	source := filepath.Join(dir, "wait.c")
	if err := os.WriteFile(source, []byte("#include <stdio.h>\nint main(void) { puts(\"here\"); fflush(stdout); getchar(); }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "root")
	for _, d := range []string{"bin", "opt/app", "opt/other", "optional"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("gcc", "-static", "-o", filepath.Join(root, "wait"), source).CombinedOutput(); err != nil {
		t.Fatal(string(out))
	}
	for _, f := range []string{"bin/tool", "bin/toolbox"} {
		if err := os.WriteFile(filepath.Join(root, f), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount(root, root, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	cmd := exec.Command("/wait")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Unshareflags: syscall.CLONE_NEWNS}
	in, out := pipes(t, cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}

	paths := []string{"/bin/tool", "/bin/toolbox", "/opt/app/run", "/optional/run", "/wait"}
	covered := func() string {
		t.Helper()
		got, err := Covered(cmd.Process.Pid, paths)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, p := range paths {
			if got[p] != "" {
				all = append(all, p)
			}
		}
		return strings.Join(all, " ")
	}
	if got := covered(); got != "" {
		t.Errorf("before any mount: %s", got)
	}
	mount := func(args ...string) {
		t.Helper()
		enter := append([]string{"-m", "-t", strconv.Itoa(cmd.Process.Pid), "mount"}, args...)
		if out, err := exec.Command("nsenter", enter...).CombinedOutput(); err != nil {
			t.Fatal(string(out))
		}
	}
	mount("-t", "tmpfs", "tmpfs", root+"/opt/other")
	if got := covered(); got != "" {
		t.Errorf("beside them: %s", got)
	}
	mount("--bind", root+"/bin/toolbox", root+"/bin/tool")
	mount("-t", "tmpfs", "tmpfs", root+"/opt")
	if got, want := covered(), "/bin/tool /opt/app/run"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, err := Covered(os.Getpid(), []string{"/proc/version"}); err != nil || len(got) != 0 {
		t.Errorf("in the host's root: %v, %v", got, err)
	}
	in.Close()
	_ = cmd.Wait()
	if got, err := Covered(cmd.Process.Pid, paths); err == nil {
		t.Errorf("of a process that has ended: %v", got)
	}
}

func pipes(t *testing.T, cmd *exec.Cmd) (io.WriteCloser, io.ReadCloser) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	return in, out
}
