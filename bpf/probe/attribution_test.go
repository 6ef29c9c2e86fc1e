package probe

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/evidence"
)

// A container's cgroups are all its own: a thousand below its own, each with a
// process that is alive and hits, as deep as they go: a function, a system call,
// an event, and the sets.
func TestThousandCgroups(t *testing.T) {
	b := newWays(t)
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, symbols("leaf"),
		policy.Probe{ID: "call", Type: "kprobe", Syscalls: []string{"exit_group"}},
		policy.Probe{ID: "event", Type: "rawTracepoint", Event: "sched_process_exit"},
		policy.Probe{ID: "execs", Set: "exec"}, policy.Probe{ID: "calls", Set: "syscalls"})
	var dirs []string
	make1 := func(dir string) {
		t.Helper()
		must(t, os.Mkdir(dir, 0o755))
		dirs = append(dirs, dir)
	}
	t.Cleanup(func() {
		for i := len(dirs) - 1; i >= 0; i-- {
			must(t, os.Remove(dirs[i]))
		}
	})
	at := b.cgroup
	for i := range 1000 {
		if i%100 < 20 { // ten of the branches are twenty deep
			if i%100 == 0 {
				at = b.cgroup
			}
			at = filepath.Join(at, fmt.Sprint(i))
			make1(at)
			continue
		}
		make1(filepath.Join(b.cgroup, fmt.Sprint(i)))
	}
	gate, open, err := os.Pipe()
	must(t, err)
	defer gate.Close()
	var procs []*exec.Cmd
	for _, dir := range dirs {
		cg, err := os.Open(dir)
		must(t, err)
		cmd := exec.Command(filepath.Join(b.merged, "bin/target"), "call")
		cmd.Env = []string{"HOLD=1"}
		cmd.Stdin = gate
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd())}
		must(t, cmd.Start())
		must(t, cg.Close())
		procs = append(procs, cmd)
	}
	must(t, open.Close()) // all of them end now
	for _, p := range procs {
		must(t, p.Wait())
	}
	// What is preempted in a program keeps the kernel from running it for others
	// on that processor, which it counts (7.x).
	skipped := func(typ evidence.ProbeType) uint64 {
		t.Helper()
		l := e.MissesOf(typ)
		if l.Unknowable {
			return 0 // no such kernel is preempted there
		}
		return l.N
	}
	types := map[string]evidence.ProbeType{}
	for _, s := range h.Sites {
		types[s.Probe.ID] = s.Type
	}
	for id, got := range byProbe(t, h) {
		if got > 1000 || got+skipped(types[id]) < 1000 {
			t.Errorf("%s by %s: counted %d, %d skipped", id, types[id], got, skipped(types[id]))
		}
	}
	execs := uint64(0)
	must(t, h.Entries(func(e *bpf.SetEntry) bool {
		execs += e.Count
		return true
	}))
	if n := skipped(types["execs"]); execs > 1000 || execs+n < 1000 {
		t.Errorf("the set of execs: counted %d, %d skipped", execs, n)
	}
	calls, err := h.SystemCalls()
	must(t, err)
	if len(calls) != 1 || !slices.Contains(calls[0].Numbers, unix.SYS_EXIT_GROUP) {
		t.Errorf("the set of system calls: %+v", calls)
	}
	if run, err := h.Run(); err != nil || run.Untracked != 0 || run.Left != 0 {
		t.Errorf("%+v, %v", run, err)
	}
	if tr := h.Check(); len(tr) != 0 {
		t.Errorf("%+v", tr)
	}
}
