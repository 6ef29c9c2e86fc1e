package runtimes

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"probity/evidence"
	"probity/tests/need"
)

// Somebody else takes the agent's links away: the agent notices, arms again, and
// signs from when to when nothing was seen. Root can do that to any process with
// ptrace(2); the kernel itself detaches neither uprobes nor perf events.
func TestLinksKilledFromOutside(t *testing.T) {
	d := podmanDriver{NewPodman(t)}
	a := StartAgent(t, d.agent(AgentOptions{Policies: []string{targetPolicy}}))
	d.attach(t, a)
	targetImage(t, d)
	c := d.start(t, targetName, "links", "wait")
	c.exec(t, "/bin/target", "hello")
	a.WaitLine(t, func(e Evidence) bool {
		o := e.Latest(c.id(), "fn", "hello")
		return o != nil && o.State == evidence.Hit
	})
	links := uprobeLinks(t, a.Pid())
	if len(links) == 0 {
		need.Feature(t, "uprobe_multi", errors.New("the agent has no such link"))
	}
	before := time.Now()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The agent's parent, which waits for its end, would not be told of its stops.
	tracer := exec.CommandContext(t.Context(), self, "-test.run=^TestReplaceLinks$")
	tracer.Env = append(os.Environ(), replaceLinks+"="+strconv.Itoa(a.Pid()))
	if out, err := tracer.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, fd := range links {
		if isUprobeLink(a.Pid(), fd) {
			t.Fatalf("descriptor %d is still a link", fd)
		}
	}
	c.exec(t, "/bin/target", "hello", "hello") // unseen, or the gap is over already
	isOver := func(e Evidence) bool {
		gaps := e.GapsOf(c.id(), evidence.GapLinkLost)
		return len(gaps) > 0 && !gaps[len(gaps)-1].To.IsZero()
	}
	over := a.WaitLine(t, isOver).GapsOf(c.id(), evidence.GapLinkLost)
	gap := over[len(over)-1]
	// Whoever armed it again proved it at once: its only line has its end.
	if len(over) != 1 {
		t.Errorf("the gap ends with a later proof than that of arming again: %+v", over)
	}
	if gap.From.Std().After(before) || gap.To.Std().Before(before) || gap.Path != "/bin/target" {
		t.Errorf("killed at %v, and the gap is %+v", before, gap)
	}
	// The round comes every five seconds; the rest is for a machine that is busy.
	took := gap.To.Std().Sub(before)
	if took > 8*time.Second {
		t.Errorf("armed again %v after the kill", took)
	}
	t.Logf("the gap is %v long, and ends %v after the kill", gap.To.Std().Sub(gap.From.Std()), took)
	c.exec(t, "/bin/target", "goodbye") // armed again
	c.goOn(t)
	c.wait(t)
	e := settled(t, a)
	want(t, e, c.id(), "fn", "goodbye", evidence.Hit, "", 1)
	o := e.Latest(c.id(), "fn", "hello")
	if o == nil || o.State != evidence.Hit || o.Complete || *o.Count < 1 || *o.Count > 3 {
		t.Errorf("%+v", o)
	}
	if n := e.Latest(c.id(), "fn", "never"); n == nil || n.State != evidence.Partial {
		t.Errorf("what was not hit, and was not watched all the time, is %+v", n)
	}
}

const replaceLinks = "PROBITY_REPLACE_LINKS"

// TestReplaceLinks is the other process of TestLinksKilledFromOutside.
func TestReplaceLinks(t *testing.T) {
	pid, err := strconv.Atoi(os.Getenv(replaceLinks))
	if err != nil {
		return
	}
	replace(t, pid, uprobeLinks(t, pid))
}

// uprobeLinks lists the descriptors of a process that are links of uprobes.
func uprobeLinks(t *testing.T, pid int) (fds []int) {
	t.Helper()
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if fd, err := strconv.Atoi(n.Name()); err == nil && isUprobeLink(pid, fd) {
			fds = append(fds, fd)
		}
	}
	return fds
}

func isUprobeLink(pid, fd int) bool {
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
	return err == nil && bytes.Contains(info, []byte("link_type:\tuprobe_multi"))
}

// replace has a process put another open file, its standard input, into the place
// of each of these descriptors. They are not closed, so that no file which the
// process opens meanwhile gets their numbers.
func replace(t *testing.T, pid int, fds []int) {
	t.Helper()
	runtime.LockOSThread() // the tracer is a thread
	defer runtime.UnlockOSThread()
	at := systemCall(t, pid)
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	check("attach", syscall.PtraceAttach(pid))
	defer func() { check("detach", syscall.PtraceDetach(pid)) }()
	wait := func() {
		t.Helper()
		var status syscall.WaitStatus
		_, err := syscall.Wait4(pid, &status, syscall.WALL, nil)
		check("wait", err)
		if !status.Stopped() {
			t.Fatalf("it is not stopped: %#x", status)
		}
	}
	wait()
	var saved syscall.PtraceRegs
	check("registers", syscall.PtraceGetRegs(pid, &saved))
	defer func() { check("give the registers back", syscall.PtraceSetRegs(pid, &saved)) }()
	for _, fd := range fds {
		regs := saved
		regs.Rip, regs.Orig_rax = at, ^uint64(0) // nothing to restart
		regs.Rax, regs.Rdi, regs.Rsi = syscall.SYS_DUP2, 0, uint64(fd)
		check("set registers", syscall.PtraceSetRegs(pid, &regs))
		check("step", syscall.PtraceSingleStep(pid))
		wait()
		check("registers", syscall.PtraceGetRegs(pid, &regs))
		if regs.Rax != uint64(fd) {
			t.Fatalf("dup2(0, %d) is %d", fd, int64(regs.Rax))
		}
	}
}

// systemCall is the address of a system call instruction in a process.
func systemCall(t *testing.T, pid int) uint64 {
	t.Helper()
	f, err := elf.Open(filepath.Join("/proc", strconv.Itoa(pid), "exe"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Type != elf.ET_EXEC {
		t.Fatalf("the agent is %v: its addresses are not those of its file", f.Type)
	}
	text := f.Section(".text")
	code, err := text.Data()
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(code, []byte{0x0f, 0x05})
	if i < 0 {
		t.Fatal("no system call")
	}
	return text.Addr + uint64(i)
}
