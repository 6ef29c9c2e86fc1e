package agent

import (
	"context"
	"os"
	"os/exec"
	"testing"

	"probity/bpf"
	"probity/evidence"
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

// A start may be looked at when its process has ended, and another one has its number:
// what that one's cgroup counts is not the container's.
func TestNumberOfAnother(t *testing.T) {
	n := newNode(t, bpf.Options{})
	gone := newBox(t, 1, "serve")
	init := holdPid(gone.cmd.Process.Pid)
	if !unreaped(init) {
		t.Fatal("who lives is reaped")
	}
	gone.end()
	other := newBox(t, 1, "serve")
	n.starting(context.Background(), other.notice("c1"), yes, init)
	other.run()
	other.exec("/bin/target", "hello")
	other.end()
	must(t, n.waitIdle(context.Background()))
	n.wantNotArmed("c1", evidence.EndedBeforeArmed)
}
