package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"probity/tests/need"
)

// room is a cgroup in which a container is armed.
type room struct {
	dir   string
	id    uint64
	level uint32
}

func newRoom(t testing.TB, obj *Objects, parent string) room {
	t.Helper()
	// A name of its own: other checkouts of this may be under test.
	dir, err := os.MkdirTemp(parent, "probity-lineage-")
	must(t, err)
	r := room{dir: dir, level: 1}
	if strings.Contains(parent, "probity-lineage") {
		r.level = 2
	}
	t.Cleanup(func() { must(t, os.Remove(r.dir)) })
	var st unix.Stat_t
	must(t, unix.Stat(r.dir, &st))
	r.id = st.Ino
	if obj != nil {
		must(t, obj.PutRun(r.id, 0))
	}
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shell is a process that was put into a cgroup and then called execve there.
type shell struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (r room) shell(t testing.TB) *shell {
	t.Helper()
	fd, err := os.Open(r.dir)
	must(t, err)
	defer fd.Close()
	s := &shell{cmd: exec.Command("sh")}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())}
	s.cmd.Stderr = os.Stderr
	s.in, err = s.cmd.StdinPipe()
	must(t, err)
	out, err := s.cmd.StdoutPipe()
	must(t, err)
	s.out = bufio.NewReader(out)
	must(t, s.cmd.Start())
	t.Cleanup(s.end)
	return s
}

// do has the shell run a line, and returns what that printed once it is over.
func (s *shell) do(t testing.TB, line string) string {
	t.Helper()
	_, err := fmt.Fprintf(s.in, "%s; echo done\n", line)
	must(t, err)
	var text strings.Builder
	for {
		l, err := s.out.ReadString('\n')
		must(t, err)
		if l == "done\n" {
			return text.String()
		}
		text.WriteString(l)
	}
}

func (s *shell) end() {
	s.in.Close()
	_ = s.cmd.Wait()
}

func (o *Objects) process(tgid int) (p probesProcess, ok bool) {
	return p, o.coll.Maps[probesMapProcesses].Lookup(uint32(tgid), &p) == nil
}

func (o *Objects) processes(t *testing.T) map[uint32]probesProcess {
	t.Helper()
	all := map[uint32]probesProcess{}
	var k uint32
	var p probesProcess
	it := o.coll.Maps[probesMapProcesses].Iterate()
	for it.Next(&k, &p) {
		all[k] = p
	}
	must(t, it.Err())
	return all
}

// next reads events until one is of the kind.
func next(t *testing.T, r *ringbuf.Reader, kind EventKind) Event {
	t.Helper()
	r.SetDeadline(time.Now().Add(3 * time.Minute))
	for {
		rec, err := r.Read()
		must(t, err)
		e, err := Decode(rec.RawSample)
		must(t, err)
		if e.Kind == kind {
			return e
		}
	}
}

// Each way that this kernel has to see births and ends of processes.
func TestLineage(t *testing.T) {
	need.Command(t, "sh")
	for _, way := range []string{"as attached", "by records"} {
		t.Run(way, func(t *testing.T) {
			obj := load(t, Options{})
			need.Tracefs(t)
			r := newRoom(t, obj, need.Cgroup2(t))
			must(t, obj.SetLevels(1<<r.level))
			l := &Lineage{}
			if way == "by records" {
				must(t, l.either(obj.lineage.tracepoint(lineageProgExecTracepoint, "sched_process_exec", "")))
				must(t, l.either(obj.lineage.tracepoint(lineageProgForkTracepoint, "sched_process_fork", "child_pid")))
				must(t, l.either(obj.lineage.tracepoint(lineageProgFreeTracepoint, "sched_process_free", "pid")))
			} else {
				l = obj.AttachLineage()
				must(t, errors.Join(l.ExecErr, l.ProcessErr, l.MoveErr))
			}
			defer l.Close()
			events, err := obj.Reader()
			must(t, err)
			defer events.Close()

			init := r.shell(t)
			init.do(t, "true")
			if p, ok := obj.process(init.cmd.Process.Pid); !ok || p.Cgroup != r.id || Session(p.Session) != SessionInit || p.Level != r.level {
				t.Errorf("the first process: %+v, %v", p, ok)
			}
			if e := next(t, events, EventExec); e.Session != SessionInit || e.Cgroup != r.id {
				t.Errorf("its execve: %+v", e)
			}
			// The child is born, and lives, while the shell waits for its line.
			init.do(t, "sh -c 'echo $$; exec sleep 100' & read -r x </dev/null; cat /proc/$!/comm >/dev/null")
			if e := next(t, events, EventExec); e.Session != SessionInit {
				t.Errorf("a child's execve: %+v", e)
			}
			session := r.shell(t)
			session.do(t, "true")
			if p, ok := obj.process(session.cmd.Process.Pid); !ok || Session(p.Session) != SessionExec {
				t.Errorf("the exec session: %+v, %v", p, ok)
			}
			if n := len(obj.processes(t)); n < 3 {
				t.Errorf("%d processes, want the two shells and a child", n)
			}
			run, err := obj.Run(r.id)
			must(t, err)
			if run.Left != 0 || run.Untracked != 0 {
				t.Errorf("nobody has left: %+v", run)
			}
			init.do(t, "kill $!; wait 2>/dev/null")
			init.end()
			session.end()
			// A task is freed after a grace period.
			until(t, func() bool { return len(obj.processes(t)) == 0 })
		})
	}
}

// Who is the container's first process is what its runtime says, and not who calls
// execve first: a runtime that has let it go on does not wait for that.
func TestSessionBeforeInit(t *testing.T) {
	need.Command(t, "sh")
	need.Tracefs(t)
	obj := load(t, Options{})
	r := newRoom(t, nil, need.Cgroup2(t))
	must(t, obj.SetLevels(1<<r.level))
	l := obj.AttachLineage()
	defer l.Close()
	must(t, errors.Join(l.ExecErr, l.ProcessErr, l.MoveErr))
	init := r.shell(t)
	init.do(t, "true") // what it executed before counts nowhere
	must(t, obj.PutRun(r.id, init.cmd.Process.Pid))
	session := r.shell(t)
	session.do(t, "true")
	init.do(t, "exec sh -c 'echo done; exec sh' #")
	later := r.shell(t)
	later.do(t, "true")
	for who, want := range map[*shell]Session{init: SessionInit, session: SessionExec, later: SessionExec} {
		if p, ok := obj.process(who.cmd.Process.Pid); !ok || Session(p.Session) != want {
			t.Errorf("process %d: %+v, %v, want session %d", who.cmd.Process.Pid, p, ok, want)
		}
	}
}

func until(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(3 * time.Minute); !ok(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("it did not come")
		}
	}
}

// A process that is moved out of the subtree is lost; one that is moved about
// within it is not, and one that is moved in the hierarchies of cgroup v1
// neither.
func TestMoves(t *testing.T) {
	need.Command(t, "sh")
	obj := load(t, Options{})
	root := need.Cgroup2(t)
	r := newRoom(t, obj, root)
	below := newRoom(t, nil, r.dir)
	must(t, obj.SetLevels(1<<r.level))
	l := obj.AttachLineage()
	defer l.Close()
	must(t, l.MoveErr)
	events, err := obj.Reader()
	must(t, err)
	defer events.Close()

	s := r.shell(t)
	s.do(t, "true")
	pid := s.cmd.Process.Pid
	move := func(dir string) {
		t.Helper()
		must(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(fmt.Sprint(pid)), 0))
	}
	left := func() uint64 {
		t.Helper()
		run, err := obj.Run(r.id)
		must(t, err)
		return run.Left
	}
	move(below.dir)
	s.do(t, "(true); /bin/true")
	move(r.dir)
	if v1, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs"); len(v1) > 0 {
		move(filepath.Dir(v1[0])) // the root of some hierarchy of v1, where it is already
	}
	if n := left(); n != 0 {
		t.Fatalf("%d have left, none should", n)
	}
	move(root)
	if n := left(); n != 1 {
		t.Fatalf("%d have left, want 1", n)
	}
	if e := next(t, events, EventLost); e.Cgroup != r.id || e.Pid != pid || e.Ns == 0 {
		t.Errorf("event %+v", e)
	}
	if _, ok := obj.process(pid); ok {
		t.Error("it is still one of the container's processes")
	}
	s.end()
	// A child that is born into another cgroup by clone3 never migrates.
	s = r.shell(t)
	s.do(t, "true")
	bear(t, s, root)
	if n := left(); n != 2 {
		t.Errorf("%d have left, want 2: one was born outside", n)
	}
}

// bear has a process in the shell's place bear a child into the cgroup dir:
// this test's own binary, started by the shell, which calls clone3.
func bear(t *testing.T, s *shell, dir string) {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	out := s.do(t, "PROBITY_BEAR="+dir+" "+self+" -test.run '^TestBear$' -test.v 2>&1")
	if !strings.Contains(out, "PASS: TestBear") {
		t.Fatalf("bear a child: %s", out)
	}
}

// TestBear is the other half of TestMoves.
func TestBear(t *testing.T) {
	dir := os.Getenv("PROBITY_BEAR")
	if dir == "" {
		return
	}
	room{dir: dir}.shell(t).do(t, "true")
}

// In a threaded subtree a thread may be in another cgroup than its process. One
// that is moved out is lost, its process and the other threads are not.
func TestThreadMoves(t *testing.T) {
	need.Command(t, "sh")
	obj := load(t, Options{})
	domain := newRoom(t, nil, need.Cgroup2(t))
	in, out := newRoom(t, obj, domain.dir), newRoom(t, nil, domain.dir)
	for _, r := range []room{in, out} {
		must(t, os.WriteFile(filepath.Join(r.dir, "cgroup.type"), []byte("threaded"), 0))
	}
	must(t, obj.SetLevels(1<<in.level))
	l := obj.AttachLineage()
	defer l.Close()
	must(t, errors.Join(l.ProcessErr, l.MoveErr))
	s := domain.shell(t)
	s.do(t, "true")
	pid := s.cmd.Process.Pid
	must(t, os.WriteFile(filepath.Join(in.dir, "cgroup.procs"), []byte(fmt.Sprint(pid)), 0))
	self, err := os.Executable()
	must(t, err)
	s.do(t, "PROBITY_STAND=1 exec "+self+" -test.run '^TestStand$' #")
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	must(t, err)
	if len(threads) < 2 {
		t.Fatalf("%d threads", len(threads))
	}
	before, _ := obj.process(pid)
	must(t, os.WriteFile(filepath.Join(out.dir, "cgroup.threads"), []byte(threads[1].Name()), 0))
	if p, ok := obj.process(pid); !ok || p != before || p.Cgroup != in.id {
		t.Errorf("the process: %+v, %v; it was %+v", p, ok, before)
	}
	if run, err := obj.Run(in.id); err != nil || run.Left != 1 {
		t.Errorf("%+v, %v", run, err)
	}
	must(t, os.WriteFile(filepath.Join(domain.dir, "cgroup.procs"), []byte(fmt.Sprint(pid)), 0))
	if _, ok := obj.process(pid); ok {
		t.Error("all of it has left, and it is still known")
	}
}

// TestStand is the other half of TestThreadMoves: a process with threads.
func TestStand(t *testing.T) {
	if os.Getenv("PROBITY_STAND") == "" {
		return
	}
	fmt.Println("done")
	_, err := io.Copy(io.Discard, os.Stdin)
	must(t, err)
}

// A thread that is not the first one calls execve: it takes over the process's
// number, and the others end. Once it is killed nothing of it stays known.
func TestExecOfAThread(t *testing.T) {
	need.Command(t, "sh")
	obj := load(t, Options{})
	r := newRoom(t, obj, need.Cgroup2(t))
	must(t, obj.SetLevels(1<<r.level))
	l := obj.AttachLineage()
	defer l.Close()
	must(t, errors.Join(l.ExecErr, l.ProcessErr))
	self, err := os.Executable()
	must(t, err)
	s := r.shell(t)
	s.do(t, "PROBITY_EXEC=1 exec "+self+" -test.run '^TestExecFromThread$' #")
	s.do(t, "true")
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", s.cmd.Process.Pid)); err != nil || string(comm) != "sh\n" {
		t.Fatalf("%q, %v: the thread did not become the process", comm, err)
	}
	if p, ok := obj.process(s.cmd.Process.Pid); !ok || p.Cgroup != r.id || p.Ending != 0 || Session(p.Session) != SessionInit {
		t.Errorf("%+v, %v", p, ok)
	}
	run, err := obj.Run(r.id)
	must(t, err)
	if run.Execs != 4 || run.Left != 0 || run.Untracked != 0 || run.Processes != 1 {
		t.Errorf("%+v; want four execs of one process", run)
	}
	must(t, s.cmd.Process.Kill()) // the first process: all others ended with the exec
	s.end()
	until(t, func() bool { return len(obj.processes(t)) == 0 })
	if run, err := obj.Run(r.id); err != nil || run.Processes != 0 {
		t.Errorf("%+v, %v", run, err)
	}
}

// TestExecFromThread is the other half of TestExecOfAThread.
func TestExecFromThread(t *testing.T) {
	if os.Getenv("PROBITY_EXEC") == "" {
		return
	}
	failed := make(chan error)
	for range 8 { // at most one of them is on the first thread
		go func() {
			runtime.LockOSThread()
			if unix.Gettid() == os.Getpid() {
				select {}
			}
			sh, err := exec.LookPath("sh")
			if err == nil {
				err = syscall.Exec(sh, []string{"sh", "-c", "echo done; exec sh"}, os.Environ())
			}
			failed <- err
		}()
	}
	must(t, <-failed)
}

// A cgroup that is more levels below the container's than are looked at: it may
// be anybody's, and the process is said to be lost.
func TestDeepBelow(t *testing.T) {
	need.Command(t, "sh")
	obj := load(t, Options{})
	r := newRoom(t, obj, need.Cgroup2(t))
	must(t, obj.SetLevels(1<<r.level))
	l := obj.AttachLineage()
	defer l.Close()
	must(t, errors.Join(l.ProcessErr, l.MoveErr))
	s := r.shell(t)
	s.do(t, "true")
	dir := r.dir
	for depth := 1; depth <= MaxLevel+1; depth++ {
		dir = filepath.Join(dir, "deeper")
		must(t, os.Mkdir(dir, 0o755))
		defer os.Remove(dir)
	}
	defer s.end()
	for _, c := range []struct {
		to   string
		left uint64
	}{{filepath.Dir(dir), 0}, {dir, 1}} {
		must(t, os.WriteFile(filepath.Join(c.to, "cgroup.procs"), []byte(fmt.Sprint(s.cmd.Process.Pid)), 0))
		if run, err := obj.Run(r.id); err != nil || run.Left != c.left {
			t.Errorf("%d levels below: %+v, %v; want %d to have left", strings.Count(c.to, "deeper"), run, err, c.left)
		}
	}
}

// What a container's processes and those of one nested in it are.
func TestNestedLineage(t *testing.T) {
	need.Command(t, "sh")
	obj := load(t, Options{})
	outer := newRoom(t, obj, need.Cgroup2(t))
	inner := newRoom(t, obj, outer.dir)
	must(t, obj.SetLevels(1<<outer.level|1<<inner.level))
	l := obj.AttachLineage()
	defer l.Close()
	must(t, l.ProcessErr)
	a, b := outer.shell(t), inner.shell(t)
	a.do(t, "true")
	b.do(t, "true")
	if p, _ := obj.process(a.cmd.Process.Pid); p.Cgroup != outer.id || Session(p.Session) != SessionInit {
		t.Errorf("the outer one's: %+v", p)
	}
	if p, _ := obj.process(b.cmd.Process.Pid); p.Cgroup != inner.id || p.Level != inner.level || Session(p.Session) != SessionInit {
		t.Errorf("the inner one's: %+v", p)
	}
}

// A process that leaves an inner container for the cgroup of the outer one has
// left the inner one only: it is the outer one's, as it was before. That is so
// of three, whichever of them it goes back to, and of a child that is born
// there.
func TestNestedMoves(t *testing.T) {
	need.Command(t, "sh")
	for _, c := range []struct {
		name string
		to   int // which of the three it goes to
		left [3]uint64
	}{{"to the middle", 1, [3]uint64{0, 0, 1}}, {"to the outer", 0, [3]uint64{0, 1, 1}}, {"out of all", -1, [3]uint64{1, 1, 1}}} {
		for _, born := range []bool{false, true} {
			name := c.name
			if born {
				name += ", born"
			}
			t.Run(name, func(t *testing.T) {
				obj := load(t, Options{})
				root := need.Cgroup2(t)
				var rooms [3]room
				dir, mask := root, uint32(0)
				for i := range rooms {
					rooms[i] = newRoom(t, obj, dir)
					rooms[i].level = uint32(i + 1)
					mask |= 1 << (i + 1)
					if dir = rooms[i].dir; i > 0 {
						must(t, obj.SetOuter(rooms[i].id, rooms[i-1].id))
					}
				}
				must(t, obj.SetLevels(mask))
				l := obj.AttachLineage()
				defer l.Close()
				must(t, errors.Join(l.ProcessErr, l.MoveErr))
				to := root
				if c.to >= 0 {
					to = rooms[c.to].dir
				}
				events, err := obj.Reader()
				must(t, err)
				defer events.Close()
				s := rooms[2].shell(t)
				s.do(t, "true")
				if born {
					bear(t, s, to)
					// By its execve a lost child would be one of an exec session.
					for self, _ := os.Executable(); c.to >= 0 && next(t, events, EventExec).Path != self; {
					}
					for i := range c.to + 1 {
						for e := next(t, events, EventExec); ; e = next(t, events, EventExec) {
							if !strings.HasSuffix(e.Path, "/sh") {
								continue // of the child's parent, in the next container
							}
							if e.Cgroup != rooms[i].id || e.Session != SessionInit {
								t.Errorf("the child's execve: %+v", e)
							}
							break
						}
					}
				} else {
					pid := s.cmd.Process.Pid
					must(t, os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(fmt.Sprint(pid)), 0))
					p, ok := obj.process(pid)
					switch {
					case c.to < 0 && ok:
						t.Errorf("it is still known: %+v", p)
					case c.to >= 0 && (!ok || p.Cgroup != rooms[c.to].id || p.Level != rooms[c.to].level || Session(p.Session) != SessionInit):
						t.Errorf("%+v, %v; want it in %d", p, ok, rooms[c.to].id)
					}
				}
				for i, want := range c.left {
					run, err := obj.Run(rooms[i].id)
					must(t, err)
					if run.Left != want || run.Untracked != 0 {
						t.Errorf("container %d: %+v; want %d to have left", i, run, want)
					}
				}
				s.end()
				for _, r := range rooms { // who is forgotten is counted off after it
					until(t, func() bool {
						run, err := obj.Run(r.id)
						must(t, err)
						return len(obj.processes(t)) == 0 && run.Processes == 0
					})
				}
			})
		}
	}
}

// A process of the outer container that comes into the inner one is what the
// runtime in there is until its execve: the outer one's. Then it is the inner
// one's, and has left nobody.
func TestNestedEntry(t *testing.T) {
	need.Command(t, "sh")
	obj := load(t, Options{})
	outer := newRoom(t, obj, need.Cgroup2(t))
	inner := newRoom(t, obj, outer.dir)
	must(t, obj.SetOuter(inner.id, outer.id))
	must(t, obj.SetLevels(1<<outer.level|1<<inner.level))
	l := obj.AttachLineage()
	defer l.Close()
	must(t, errors.Join(l.ProcessErr, l.MoveErr))
	s := outer.shell(t)
	s.do(t, "true")
	pid := s.cmd.Process.Pid
	must(t, os.WriteFile(filepath.Join(inner.dir, "cgroup.procs"), []byte(fmt.Sprint(pid)), 0))
	if p, _ := obj.process(pid); p.Cgroup != outer.id {
		t.Errorf("before its execve: %+v", p)
	}
	s.do(t, "exec sh -c 'echo done; exec sh' #")
	if p, _ := obj.process(pid); p.Cgroup != inner.id || Session(p.Session) != SessionInit {
		t.Errorf("after its execve: %+v", p)
	}
	for _, r := range []room{outer, inner} {
		if run, err := obj.Run(r.id); err != nil || run.Left != 0 || run.Execs == 0 {
			t.Errorf("%+v, %v", run, err)
		}
	}
}

// Containers that ran before us are armed in any order. A process of the inner
// one is known as that, also if it was added for the outer one first.
func TestAddNestedProcess(t *testing.T) {
	obj := load(t, Options{})
	const pid, outer, inner = 1 << 22, 11, 12 // the greatest number that a process cannot have
	for _, add := range [][2]uint64{{outer, 1}, {inner, 2}, {outer, 1}} {
		must(t, obj.AddProcess(pid, add[0], int(add[1])))
	}
	if p, _ := obj.process(pid); p.Cgroup != inner || p.Level != 2 {
		t.Errorf("%+v", p)
	}
}

// With no room for a process, that is counted.
func TestUntracked(t *testing.T) {
	need.Command(t, "sh")
	obj := load(t, Options{Processes: 1})
	r := newRoom(t, obj, need.Cgroup2(t))
	must(t, obj.SetLevels(1<<r.level))
	l := obj.AttachLineage()
	defer l.Close()
	must(t, errors.Join(l.ExecErr, l.ProcessErr))
	s := r.shell(t)
	s.do(t, "(true)")
	run, err := obj.Run(r.id)
	must(t, err)
	if run.Untracked == 0 {
		t.Errorf("a fork past the bound is not counted: %+v", run)
	}
}

// One container may fill no more than its share of the map: what it has past that
// is counted as its own loss, and the others lose nothing.
func TestShareOfProcesses(t *testing.T) {
	need.Command(t, "sh")
	obj := load(t, Options{Processes: 16}) // of which four are a share
	root := need.Cgroup2(t)
	greedy, modest := newRoom(t, obj, root), newRoom(t, obj, root)
	must(t, obj.SetLevels(1<<greedy.level))
	l := obj.AttachLineage()
	defer l.Close()
	must(t, errors.Join(l.ExecErr, l.ProcessErr))
	s := greedy.shell(t)
	s.do(t, "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 1000 & p=\"$p $!\"; done")
	if run, err := obj.Run(greedy.id); err != nil || run.Processes != 4 || run.Untracked < 17 {
		t.Errorf("the greedy one: %+v, %v; want 4 processes and the others untracked", run, err)
	}
	o := modest.shell(t)
	o.do(t, "(true); (true)")
	if p, ok := obj.process(o.cmd.Process.Pid); !ok || p.Cgroup != modest.id {
		t.Errorf("the modest one's: %+v, %v", p, ok)
	}
	if run, err := obj.Run(modest.id); err != nil || run.Processes == 0 || run.Untracked != 0 {
		t.Errorf("the modest one: %+v, %v", run, err)
	}
	s.do(t, "kill $p; wait 2>/dev/null")
	s.end()
	o.end()
	until(t, func() bool { return len(obj.processes(t)) == 0 })
	for _, r := range []room{greedy, modest} {
		if run, err := obj.Run(r.id); err != nil || run.Processes != 0 {
			t.Errorf("after the end: %+v, %v", run, err)
		}
	}
}

// What the kernel skips of the programs that follow processes, and of those of
// sets, is read: here of one that calls what it is attached to.
func TestSkippedPrograms(t *testing.T) {
	obj := load(t, Options{})
	need.Tracefs(t)
	var u unix.Utsname
	must(t, unix.Uname(&u))
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	if major*100+minor < 513 {
		// There bpf_trace_printk calls the tracepoint with its lock held: the machine
		// would hang. None of our programs prints.
		need.Feature(t, "printk_recursion", fmt.Errorf("a kernel of %d.%d hangs", major, minor))
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.RawTracepoint, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R1, 'x'), asm.StoreMem(asm.RFP, -8, asm.R1, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.RFP), asm.Add.Imm(asm.R1, -8), asm.Mov.Imm(asm.R2, 2),
		asm.FnTracePrintk.Call(), asm.Mov.Imm(asm.R0, 0), asm.Return(),
	}})
	must(t, err)
	k, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "bpf_trace_printk", Program: p})
	must(t, err)
	l := &Lineage{links: []link.Link{k}, progs: []*ebpf.Program{p}}
	defer l.Close()
	obj.sets.attached[0] = &setLinks{typ: "rawTracepoint", progs: []*ebpf.Program{p}}
	defer func() { obj.sets.attached[0] = nil }()
	if _, err := p.Run(&ebpf.RunOptions{}); err != nil {
		t.Fatal(err)
	}
	n, err := l.Misses()
	must(t, err)
	if n == 0 && major*100+minor >= 607 { // older ones do not count all that they skip
		t.Error("nothing was skipped, or that is not read")
	}
	sets, err := obj.SetMisses("rawTracepoint")
	must(t, err)
	if other, err := obj.SetMisses("fentry"); err != nil || other != 0 || sets != n {
		t.Errorf("of sets %d and %d, %v; want %d and none", sets, other, err, n)
	}
}

func TestMemberOffset(t *testing.T) {
	for _, c := range []struct {
		line, name string
		want       uint32
		ok         bool
	}{
		{"\tfield:pid_t child_pid;\toffset:20;\tsize:4;\tsigned:1;", "child_pid", 20, true},
		{"\tfield:char comm[16];\toffset:8;\tsize:16;\tsigned:0;", "comm", 8, true},
		{"\tfield:__data_loc char[] comm;\toffset:8;\tsize:4;\tsigned:0;", "comm", 8, true},
		{"\tfield:pid_t parent_pid;\toffset:12;\tsize:4;\tsigned:1;", "child_pid", 0, false},
		{"\tfield:pid_t pid;\toffset:99999999;", "pid", 0, false},
		{"\tfield:;", "", 0, false},
		{"print fmt: \"pid=%d\", REC->pid", "pid", 0, false},
	} {
		if got, ok := memberOffset(c.line, c.name); got != c.want && c.ok || ok != c.ok {
			t.Errorf("%q: %d, %v", c.line, got, ok)
		}
	}
}

// An execve says which file the process runs from then on, whatever path led
// there: a script's is its interpreter.
func TestExecutedFile(t *testing.T) {
	need.KernelBTF(t)
	obj := load(t, Options{})
	r := newRoom(t, obj, need.Cgroup2(t))
	must(t, obj.SetLevels(1<<r.level))
	l := obj.AttachLineage()
	must(t, l.ExecErr)
	defer l.Close()
	events, err := obj.Reader()
	must(t, err)
	defer events.Close()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	sleep, err := exec.LookPath("sleep")
	must(t, err)
	data, err := os.ReadFile(sleep)
	must(t, err)
	tool, script, link, twice := dir+"/tool", dir+"/script", dir+"/link", dir+"/twice"
	long := dir + "/" + strings.Repeat("n", 100)
	for _, f := range []string{tool, twice, long} {
		must(t, os.WriteFile(f, data, 0o755))
	}
	must(t, os.WriteFile(script, []byte("#!"+tool+"\n"), 0o755))
	must(t, os.Symlink(tool, link))
	must(t, os.Link(twice, dir+"/second"))
	cg, err := os.Open(r.dir)
	must(t, err)
	defer cg.Close()
	for _, c := range []struct{ path, file, interp, name string }{
		{tool, tool, "", "tool"}, {link, tool, "", "tool"}, {script, tool, tool, "tool"}, {twice, twice, "", ""}, {long, long, "", ""},
	} {
		cmd := exec.Command(c.path, "0")
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd())}
		_ = cmd.Run() // a script gives sleep an operand that it does not take
		var st unix.Stat_t
		must(t, unix.Stat(c.file, &st))
		e := next(t, events, EventExec)
		if want := (File{uint64(st.Dev), st.Ino, st.Ctim.Nano(), st.Size}); e.File != want || e.Path != c.path || e.Interp != c.interp || e.Name != c.name {
			t.Errorf("%+v, want %+v, %+v", e, c, want)
		}
	}
}
