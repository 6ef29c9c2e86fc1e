package reaper

import (
	"bufio"
	"os/exec"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReap(t *testing.T) {
	if err := Become(); err != nil {
		t.Fatal(err)
	}
	// The shell ends at once; what it started in the background is ours then.
	cmd := exec.Command("sh", "-c", "sleep 1000 & echo $!; sleep 1000 & echo $!")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	for lines := bufio.NewScanner(out); len(pids) < 2 && lines.Scan(); {
		pid, err := strconv.Atoi(lines.Text())
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	// One may not have become sleep yet: the names are not compared.
	if killed := Reap(); len(killed) != 2 {
		t.Errorf("killed %q", killed)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, 0); err != unix.ESRCH {
			t.Errorf("process %d is still there: %v", pid, err)
		}
	}
	if again := Reap(); len(again) != 0 {
		t.Errorf("the second time it killed %q", again)
	}
}
