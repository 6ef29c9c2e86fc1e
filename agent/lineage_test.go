package agent

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/evidence"
)

// A container that ran before it was armed has processes whose execve nobody
// saw. What they do is the container's all the same.
func TestProcessesThatWereThereBefore(t *testing.T) {
	n := newNodeWith(t, Config{BPF: bpf.Options{}}, `name: forks
probes:
  - id: forks
    type: rawTracepoint
    event: sched_process_fork
`)
	b := newBox(t, 1, "serve")
	b.run()
	b.exec("/bin/target", "hello")
	n.notify(context.Background(), b.notice("c1"), yes)
	for range 3 {
		b.exec("/bin/target", "hello")
	}
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, _ := n.lines("c1")
	if o := obs["forks"]; o.State != evidence.Hit || *o.Count != 3 {
		t.Errorf("%+v", o)
	}
}

// A container chooses what its processes are called.
func TestCalledAsTheRuntime(t *testing.T) {
	data, err := target()
	must(t, err)
	name := filepath.Join(t.TempDir(), "runc:[2:INIT]")
	must(t, os.WriteFile(name, data, 0o755))
	cmd := exec.Command(name)
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() {
		in.Close()
		_ = cmd.Wait()
	}()
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
	must(t, err)
	if who, err := whose(cmd.Process.Pid); err != nil || who != containers {
		t.Errorf("%q: %d, %v", comm, who, err)
	}
}

// What a process does on its way out is the container's: it closes its files and
// connections there.
func TestOnTheWayOut(t *testing.T) {
	n := newNodeWith(t, Config{}, `name: ends
probes:
  - id: ends
    type: rawTracepoint
    event: sched_process_exit
`)
	b := newBox(t, 1, "serve")
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	b.exec("/bin/target", "hello") // that it serves at all
	for range 3 {
		b.exec("/bin/target", "hello")
	}
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, _ := n.lines("c1")
	// Four children. The first process did not call execve after it was armed.
	if o := obs["ends"]; o.State != evidence.Hit || *o.Count < 4 {
		t.Errorf("%+v", o)
	}
}

// Where it cannot be seen that a process leaves the container, nothing is sworn
// to have not been executed.
func TestMovesAreNotSeen(t *testing.T) {
	n := newNode(t, bpf.Options{ForceNoMoves: true})
	b := newBox(t, 1, "hello")
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, gaps := n.lines("c1")
	if o := obs["never"]; o.State != evidence.Partial || o.Complete || len(o.Gaps) != 1 || o.Gaps[0].Reason != evidence.GapAttributionLost {
		t.Errorf("never: %+v", o)
	}
	if o := obs["hello"]; o.State != evidence.Hit || o.Complete {
		t.Errorf("hello: %+v", o)
	}
	if len(gaps) == 0 || gaps[0].Reason != evidence.GapAttributionLost {
		t.Errorf("gaps: %+v", gaps)
	}
}

// The cgroups around a container are known by their ids, innermost first.
func TestAround(t *testing.T) {
	n := newNode(t, bpf.Options{})
	b := newBox(t, 3)
	path, id, err := n.cgroups.OfPid(b.cmd.Process.Pid)
	must(t, err)
	var want []uint64
	for dir := filepath.Dir(b.cgroup); len(want) < 2; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		must(t, unix.Stat(dir, &st))
		want = append(want, st.Ino)
	}
	if got := n.around(path); !slices.Equal(got[:2], want) || slices.Contains(got, id) || len(got) != n.cgroups.Level(path)-1 {
		t.Errorf("around %s: %v, want %v and no more", path, got, want)
	}
	if got := n.around("/"); got != nil {
		t.Errorf("around the root: %v", got)
	}
}
