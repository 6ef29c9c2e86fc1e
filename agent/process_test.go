package agent

import (
	"os"
	"os/exec"
	"testing"
)

// A zombie has no root, no memory and no mounts, as one that is about to be one: what
// cannot be read of it says nothing about the container's files.
func TestExiting(t *testing.T) {
	cmd := exec.Command("sh", "-c", "read x")
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	pid := cmd.Process.Pid
	if exiting(pid) || exiting(os.Getpid()) {
		t.Error("who lives is exiting")
	}
	held := holdPid(pid)
	if held == nil {
		t.Fatal("not held")
	}
	defer held.Close()
	must(t, in.Close())
	must(t, waitPid(t.Context(), held)) // and nobody has reaped it
	if !exiting(pid) {
		t.Error("a zombie is not exiting")
	}
	_ = cmd.Wait()
	if !exiting(pid) {
		t.Error("who is gone is not exiting")
	}
}
