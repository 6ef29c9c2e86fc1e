package probe

import (
	"bufio"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/evidence"
	"probity/runtime/cgroup"
)

// mapsMany maps a file so often, readable only: the kernel puts probes there as
// well, since it may become executable.
const mapsMany = `
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
int main(int argc, char **argv)
{
	int fd = open(argv[1], O_RDONLY);
	for (int i = atoi(argv[2]); i > 0; i--)
		if (mmap(0, 65536, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED)
			return 1;
	puts("mapped");
	fflush(stdout);
	getchar();
}
`

// crowd is a process of the box that has mapped a file of it many times, until
// it is let go.
func (b *box) crowd(path string, times int) (pids func() ([]int, bool, error), end func()) {
	b.t.Helper()
	cmd, entered := b.command("bin/many", nil, filepath.Join(b.merged, path), strconv.Itoa(times))
	defer entered.Close()
	in, err := cmd.StdinPipe()
	must(b.t, err)
	out, err := cmd.StdoutPipe()
	must(b.t, err)
	must(b.t, cmd.Start())
	over := false
	end = func() {
		if !over {
			over = true
			in.Close()
			_ = cmd.Wait()
		}
	}
	b.t.Cleanup(end)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "mapped\n" {
		b.t.Fatalf("%q, %v", line, err)
	}
	return func() ([]int, bool, error) {
		text, err := os.ReadFile(b.cgroup + "/cgroup.procs")
		var out []int
		for _, f := range strings.Fields(string(text)) {
			pid, _ := strconv.Atoi(f)
			out = append(out, pid)
		}
		return out, true, err
	}, end
}

func (b *box) armCounted(e *Engine, pids func() ([]int, bool, error), p Plan) *Handle {
	b.t.Helper()
	at := b.target()
	at.Processes = pids
	h, err := e.Arm(b.t.Context(), at, p)
	must(b.t, err)
	b.t.Cleanup(func() { must(b.t, h.Close()) })
	return h
}

// A file that appears in a container is not attached to if the container has it
// mapped so often that every fork of the machine would wait for that.
func TestForksDoNotWait(t *testing.T) {
	for _, c := range []struct {
		name  string
		times int
		armed bool
	}{{"few", 1000, true}, {"many", maxMappings + 1, false}} {
		t.Run(c.name, func(t *testing.T) {
			lower := newLower(t)
			compiled(t, lower, "many", mapsMany, "gcc", "-O2", "-static")
			b := newBox(t, lower)
			e := newEngine(t, bpf.Options{}, Config{})
			pids, _ := b.crowd("bin/target", 0)
			h := b.armCounted(e, pids, b.plan(symbols("hello")))
			must(t, os.Chtimes(filepath.Join(b.merged, "bin/target"), time.Now(), time.Now()))
			b.crowd("bin/target", c.times) // of the copy
			more := e.Add(context.Background(), h, b.root(), MakePlan([]policy.Probe{symbols("hello")}, b.copied(), Host()))
			if len(more) != 1 || more[0].Armed != c.armed || !c.armed && (more[0].Reason != evidence.OverBudget || !strings.Contains(more[0].Detail, errCrowded.Error())) {
				t.Errorf("%+v", more)
			}
		})
	}
}

// What is attached again, or taken away, is counted, too; and it is not counted
// at every turn.
func TestCrowdedFileStaysAsItIs(t *testing.T) {
	lower := newLower(t)
	compiled(t, lower, "many", mapsMany, "gcc", "-O2", "-static")
	b := newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{})
	pids, end := b.crowd("bin/target", maxMappings+1)
	asked := 0
	h := b.armCounted(e, func() ([]int, bool, error) { asked++; return nil, true, nil }, b.plan(stopping(symbols("hello"), 1)))
	h.target.Processes = func() ([]int, bool, error) { asked++; return pids() }
	file := h.held[0].file
	b.run(nil, "hello")
	file.leaveUntil.Store(0) // a starved machine may have taken it for slow
	asked = 0
	for range 5 {
		e.keep(cgroup.BootTime())
	}
	if !b.patchedNow(h.Sites[0]) || asked != 1 {
		t.Errorf("nobody awaits an answer: attached %v, asked %d times", b.patchedNow(h.Sites[0]), asked)
	}

	// And if its links are lost.
	file.leaveUntil.Store(0)
	must(t, file.att.close())
	for range 3 {
		if tr := h.Check(); len(tr) != 1 || tr[0].Reason != evidence.GapLinkLost || !strings.Contains(tr[0].Detail, errCrowded.Error()) {
			t.Fatalf("%+v", tr)
		}
	}
	end()
	file.leaveUntil.Store(0)
	if tr := h.Check(); len(tr) != 1 || strings.Contains(tr[0].Detail, errCrowded.Error()) {
		t.Errorf("%+v", tr)
	}
	if tr := h.Check(); len(tr) != 0 {
		t.Errorf("armed again, and in trouble: %+v", tr)
	}
}

// A container whose own files have held up the machine has no more of them armed,
// and a file that did so is left alone for a while.
func TestSlowFiles(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, symbols("hello"))
	file := h.held[0].file
	if e.slowed(file, slowSite-1) || file.leaveUntil.Load() != 0 {
		t.Error("what is as fast as waiting for a grace period is taken for slow")
	}
	if !e.slowed(file, slowSite) || file.leaveUntil.Load() < cgroup.BootTime()+int64(slowSite*slowShare/2) {
		t.Error("it is not left alone")
	}
	if err := e.crowded(file, nil, nil); !errors.Is(err, errCrowded) {
		t.Error(err)
	}
	h.blame(maxSlow + 1)
	must(t, os.Chtimes(filepath.Join(b.merged, "bin/target"), time.Now(), time.Now()))
	more := e.Add(context.Background(), h, b.root(), MakePlan([]policy.Probe{symbols("hello")}, b.copied(), Host()))
	if len(more) != 1 || more[0].Reason != evidence.OverBudget {
		t.Errorf("%+v", more)
	}
}
