package process

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"probity/tests/need"
)

func TestOwnProgram(t *testing.T) {
	need.Root(t)
	need.Command(t, "sleep", "unshare")
	for name, c := range map[string]struct {
		args  []string
		flags uintptr
		want  bool
	}{
		"as a container, which called execve in its namespace":      {[]string{"sleep", "1000"}, syscall.CLONE_NEWNS, true},
		"as a runtime, which was started before it got a namespace": {[]string{"unshare", "--mount", "--fork", "sleep", "1000"}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(c.args[0], c.args[1:]...)
			cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: c.flags, Setpgid: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); _ = cmd.Wait() })
			namespaced(t, cmd.Process.Pid)
			p, err := Open(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			if own, err := p.OwnProgram(); err != nil || own != c.want {
				t.Errorf("%v, %v", own, err)
			}
		})
	}
}

// namespaced waits until a process has a mount namespace of its own.
func namespaced(t *testing.T, pid int) {
	t.Helper()
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.After(3 * time.Minute); ; {
		if theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid)); err == nil && theirs != ours {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("it got no namespace")
		}
	}
}

func TestListed(t *testing.T) {
	const table = "22 1 0:20 / /sys rw - sysfs sysfs rw\n221 1 0:21 / /proc rw - proc proc rw\n"
	for id, want := range map[uint64]bool{22: true, 221: true, 2: false, 1: false} {
		if got, err := listed(strings.NewReader(table), id); err != nil || got != want {
			t.Errorf("%d: %v, %v", id, got, err)
		}
	}
}

// FuzzListed: an id is listed if and only if a line, however it ends, begins with it.
func FuzzListed(f *testing.F) {
	f.Add("22 1 0:20 / /sys rw - sysfs sysfs rw\n221 1 0:21 / /proc rw\n", uint64(22))
	f.Add("\r\n7 \n", uint64(7))
	f.Fuzz(func(t *testing.T, table string, id uint64) {
		got, err := listed(strings.NewReader(table), id)
		if err != nil { // a line that is too long
			return
		}
		if want := strings.Contains("\n"+table, fmt.Sprintf("\n%d ", id)); got != want {
			t.Fatalf("%q, %d: %v, want %v", table, id, got, want)
		}
	})
}
