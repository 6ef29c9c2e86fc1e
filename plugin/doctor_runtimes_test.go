package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"probity/tests/need"
)

// Only a process of root's outside any container is a daemon of the host: whoever can
// start a program of that name could have doctor run what he likes.
func TestDaemons(t *testing.T) {
	need.Root(t)
	need.Command(t, "unshare")
	dir, err := os.MkdirTemp("", "doctor")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cat, err := filepath.EvalSymlinks(need.Command(t, "cat")[0])
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(cat)
	program := filepath.Join(dir, "containerd")
	if err := errors.Join(err, os.WriteFile(program, b, 0o755), os.Chmod(dir, 0o755), os.Chmod(program, 0o755)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		user uint32
		want bool
	}{
		"root's":                        {[]string{program, "-u", "-"}, 0, true},
		"a user's":                      {[]string{program, "-u", "-"}, 65534, false},
		"in a tree of processes":        {[]string{"unshare", "--pid", "--fork", "--kill-child", program, "-u", "-"}, 0, false},
		"root of a user's own":          {[]string{"unshare", "--user", "--map-root-user", program, "-u", "-"}, 65534, false},
		"in a namespace of users":       {[]string{"unshare", "--user", "--map-root-user", program, "-u", "-"}, 0, false},
		"with mounts of its own, alone": {[]string{"unshare", "--mount", program, "-u", "-"}, 0, true}, // PrivateMounts= of a unit
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(c.args[0], c.args[1:]...)
			cmd.Dir = dir
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.user, Gid: c.user}}
			in, inErr := cmd.StdinPipe()
			out, outErr := cmd.StdoutPipe()
			if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
				t.Fatal(err)
			}
			defer func() { in.Close(); cmd.Wait() }()
			// It answers once it is what it is to be.
			if _, err := io.WriteString(in, "x"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			found := slices.DeleteFunc(findHost().daemons["containerd"], func(d service) bool { return d.program != program })
			if (len(found) > 0) != c.want {
				t.Fatalf("%+v, want %v", found, c.want)
			}
			if c.want && (strings.Join(found[0].args, " ") != "-u -" || found[0].dir != dir) {
				t.Errorf("%+v", found[0])
			}
			if c.want && name == "root's" {
				if err := os.Remove(program); err != nil { // as an upgrade does
					t.Fatal(err)
				}
				defer os.WriteFile(program, b, 0o755)
				if d, ok := daemonOf("/proc/"+strconv.Itoa(cmd.Process.Pid), "containerd"); !ok || d.program != program {
					t.Errorf("after an upgrade: %+v, %v", d, ok)
				}
			}
		})
	}
}
