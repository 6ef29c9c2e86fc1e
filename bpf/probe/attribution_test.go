package probe

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"probity/bpf"
)

// A container's cgroups are all its own: a thousand below its own, each with a
// process that is alive and hits, as deep as they go.
func TestThousandCgroups(t *testing.T) {
	b := newWays(t)
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, symbols("leaf"))
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
	if got := counts(t, h)["leaf"]; got != 1000 {
		t.Errorf("counted %d", got)
	}
	if tr := h.Check(); len(tr) != 0 {
		t.Errorf("%+v", tr)
	}
}
