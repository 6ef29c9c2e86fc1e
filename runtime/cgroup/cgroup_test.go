package cgroup

import (
	"context"
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

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"probity/tests/need"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFindAndSelf(t *testing.T) {
	fs, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	path, id, err := fs.OfPid(os.Getpid())
	if !errors.Is(err, ErrShared) {
		t.Fatalf("our own cgroup is %q %d, %v; want ErrShared", path, id, err)
	}
	if fs.Mode != V1 && (path == "" || id == 0) {
		t.Errorf("shared, but path %q and id %d are missing", path, id)
	}
	if _, _, err := fs.OfPid(0); err == nil {
		t.Error("pid 0 has a cgroup")
	}
	if _, _, err := fs.OfPid(1<<22 - 1); fs.Mode != V1 && !errors.Is(err, ErrGone) {
		t.Errorf("a pid that does not exist: %v", err)
	}
}

func TestFindWithoutCgroup2(t *testing.T) {
	fs, err := find(t.TempDir())
	if err != nil || fs.Mode != V1 || fs.Root != "" {
		t.Fatalf("got %+v, %v; want mode v1", fs, err)
	}
	if _, _, err := fs.OfPid(os.Getpid()); !errors.Is(err, ErrShared) {
		t.Errorf("on v1: %v; want ErrShared", err)
	}
	if _, err := fs.Populated("/a"); err == nil {
		t.Error("on v1 a cgroup2 path can be looked at")
	}
	if _, err := find("/does/not/exist"); err == nil {
		t.Error("no mount is no error")
	}
}

// A container's cgroup by what its runtime called it, wherever its init is by now.
func TestNamed(t *testing.T) {
	need.Root(t)
	mount := need.Cgroup2(t)
	fs, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	top := "/probity-named-" + filepath.Base(t.TempDir())
	for _, d := range []string{top, top + "/box", top + "/box/init"} {
		if err := os.Mkdir(mount+d, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(mount + d) })
	}
	dir, err := os.Open(mount + top + "/box/init")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command("cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	pid := cmd.Process.Pid
	for name, want := range map[string]string{"box": top + "/box", "init": top + "/box/init", top[1:]: top, "bo": "", "": "", "/box": "", "..": ""} {
		if got, err := fs.Named(pid, name); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", name, got, err, want)
		}
	}
	want, err := fs.ID(top + "/box")
	if err != nil {
		t.Fatal(err)
	}
	if path, id, err := fs.OfPidIn(pid, top+"/box"); path != top+"/box" || id != want || err != nil {
		t.Errorf("%q, %d, %v", path, id, err)
	}
	own, _, err := fs.OfPid(pid)
	if path, _, err2 := fs.OfPidIn(pid, ""); path != own || err != nil || err2 != nil {
		t.Errorf("its own: %q, %v, %v", path, err, err2)
	}
	for _, in := range []string{"/", top + "/bo", top + "/box/init/further", top + "/./box", "box"} {
		if path, id, err := fs.OfPidIn(pid, in); err == nil || id != 0 {
			t.Errorf("in %q: %q, %d", in, path, id)
		}
	}
}

func TestLevel(t *testing.T) {
	for path, want := range map[string]int{"/": 0, "/a": 1, "/a/b": 2, "/a/b.slice/c:d": 3} {
		if got := new(FS).Level(path); got != want {
			t.Errorf("Level(%q) = %d, want %d", path, got, want)
		}
	}
}

func TestPathsStayBelow(t *testing.T) {
	fs := &FS{Mode: V2, Root: t.TempDir()}
	if err := os.Symlink("/", fs.Root+"/link"); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"", "a", "/../etc", "/a/../b", "/a//b", "/./a", "/a\nb", "/" + strings.Repeat("x/", 4096)} {
		if _, err := fs.ID(p); err == nil || errors.Is(err, ErrGone) {
			t.Errorf("ID(%.20q): %v; want a refusal", p, err)
		}
	}
	if _, err := fs.ID("/link/etc"); err == nil || errors.Is(err, ErrGone) {
		t.Errorf("a symlink was followed: %v", err)
	}
	if _, err := fs.ID("/none"); !errors.Is(err, ErrGone) {
		t.Errorf("missing: %v", err)
	}
}

func TestBoot(t *testing.T) {
	if _, err := BootID(); err != nil {
		t.Error(err)
	}
	a := BootTime()
	if b := BootTime(); a <= 0 || b < a {
		t.Errorf("boot time went from %d to %d", a, b)
	}
}

// live is one process in a cgroup of its own.
type live struct {
	fs   *FS
	path string
	cmd  *exec.Cmd
	in   io.Closer
}

func inCgroup(t *testing.T, fs *FS, path string) *live {
	t.Helper()
	dir, err := os.Open(fs.Root + path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command("/bin/cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l := &live{fs, path, cmd, in}
	t.Cleanup(func() { l.end() })
	return l
}

func (l *live) end() {
	_ = l.in.Close()
	_ = l.cmd.Wait()
}

func mkCgroup(t *testing.T, fs *FS, path string) {
	t.Helper()
	if err := os.Mkdir(fs.Root+path, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Rmdir(fs.Root + path) })
}

func realFS(t *testing.T) (*FS, string) {
	need.Root(t)
	need.Cgroup2(t)
	fs, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	if fs.Mode == V1 {
		t.Fatal("need.Cgroup2 found a mount that Find did not")
	}
	fs.backstop = time.Hour
	base := "/probity-test-" + strings.ToLower(filepath.Base(t.TempDir())) + "-" + strings.ReplaceAll(strings.ToLower(t.Name()), "/", "-")
	mkCgroup(t, fs, base)
	return fs, base
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestRealProcess(t *testing.T) {
	fs, base := realFS(t)
	sub := base + "/a (deleted)" // the suffix that the kernel gives to a removed cgroup
	mkCgroup(t, fs, sub)
	l := inCgroup(t, fs, sub)

	path, id, err := fs.OfPid(l.cmd.Process.Pid)
	if err != nil || path != sub {
		t.Fatalf("OfPid = %q, %d, %v; want %q", path, id, err, sub)
	}
	st, err := os.Stat(fs.Root + sub)
	if err != nil {
		t.Fatal(err)
	}
	if ino := st.Sys().(*syscall.Stat_t).Ino; ino != id {
		t.Errorf("id %d, inode %d", id, ino)
	}
	if got := fs.Level(path); got != 2 {
		t.Errorf("level %d", got)
	}
	for _, p := range []string{base, sub} { // the parent counts what lives below it
		if on, err := fs.Populated(p); err != nil || !on {
			t.Errorf("Populated(%s) = %v, %v with a process in it", p, on, err)
		}
	}
	if on, err := fs.PopulatedID(sub, id+1); err != nil || on {
		t.Errorf("another id at that path: %v, %v; want gone", on, err)
	}

	// Nobody is told too early: the wait ends with its context.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := fs.WaitEmpty(ctx, base); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait on a populated cgroup: %v", err)
	}

	done := make(chan error, 2)
	go func() { done <- fs.WaitEmpty(deadline(t), base) }()
	go func() { done <- fs.WaitEmptyID(deadline(t), sub, id) }()
	l.end()
	at := time.Now()
	for range 2 {
		if err := <-done; err != nil { // by the kernel's notice: the backstop is too late
			t.Error(err)
		}
	}
	t.Logf("told %s after the exit was reaped", time.Since(at))
	if _, _, err := fs.OfPid(l.cmd.Process.Pid); !errors.Is(err, ErrGone) {
		t.Errorf("after the exit: %v", err)
	}
}

func TestRemovedCgroupIsEmpty(t *testing.T) {
	fs, base := realFS(t)
	if err := syscall.Rmdir(fs.Root + base); err != nil {
		t.Fatal(err)
	}
	if on, err := fs.Populated(base); err != nil || on {
		t.Errorf("Populated = %v, %v", on, err)
	}
	if err := fs.WaitEmpty(deadline(t), base); err != nil {
		t.Error(err)
	}
}

// A container that ends and is removed at once: the kernel may drop its notice.
func TestShortLife(t *testing.T) {
	fs, base := realFS(t)
	for range 20 {
		sub := base + "/x"
		if err := os.Mkdir(fs.Root+sub, 0o755); err != nil {
			t.Fatal(err)
		}
		l := inCgroup(t, fs, sub)
		_, id, err := fs.OfPid(l.cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- fs.WaitEmptyID(deadline(t), sub, id) }()
		l.end()
		if err := syscall.Rmdir(fs.Root + sub); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil { // the backstop is too late
			t.Fatal(err)
		}
	}
}

// A thousand waits must not cost a thousand threads. What is asked for is the
// state of each wait, not the number of threads: on a starved machine Go starts
// threads for calls that only wait for a processor, and keeps them.
func TestWaitsHoldNoThreads(t *testing.T) {
	fs, base := realFS(t)
	l := inCgroup(t, fs, base)
	ctx, cancel := context.WithCancel(t.Context())
	const n = 200
	done := make(chan error, n)
	for range n {
		go func() { done <- fs.WaitEmpty(ctx, base) }()
	}
	polled := 0
	for until := time.Now().Add(30 * time.Second); polled < n && time.Now().Before(until); runtime.Gosched() {
		polled = polledWaits()
	}
	if polled != n {
		t.Fatalf("of %d waits the poller holds %d", n, polled)
	}
	cancel()
	for range n {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatalf("a cancelled wait: %v", err)
		}
	}
	l.end()
}

// polledWaits counts the calls of WaitEmpty that Go's poller holds now, so
// that they occupy no thread. The header of a goroutine says so, and whether
// it keeps a thread nevertheless.
func polledWaits() int {
	buf := make([]byte, 4<<20)
	waits := 0
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		head, stack, _ := strings.Cut(g, "\n")
		if strings.Contains(head, "[IO wait") && !strings.Contains(head, "locked to thread") && strings.Contains(stack, ".WaitEmpty(") {
			waits++
		}
	}
	return waits
}

// An agent in a cgroup namespace of its own does not take what it cannot see for ended.
func TestOutsideTheView(t *testing.T) {
	fs, base := realFS(t)
	mkCgroup(t, fs, base+"/container")
	mkCgroup(t, fs, base+"/agent")
	l := inCgroup(t, fs, base+"/container")
	id, err := fs.ID(base + "/container")
	if err != nil {
		t.Fatal(err)
	}
	agents, err := os.Open(fs.Root + base + "/agent")
	if err != nil {
		t.Fatal(err)
	}
	defer agents.Close()
	agent := exec.Command("/bin/cat")
	agent.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(agents.Fd()), Unshareflags: syscall.CLONE_NEWCGROUP}
	in, err := agent.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close(); _ = agent.Wait() }()

	part := &FS{Mode: fs.Mode, Root: t.TempDir()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with this function
		if err := enter(agent.Process.Pid, part.Root); err != nil {
			t.Error(err)
			return
		}
		if root, err := part.ID("/"); err != nil || root == RootID {
			t.Errorf("the view's root is %d, %v: not a part", root, err)
		}
		if on, err := part.PopulatedID(base+"/container", id); err != nil || !on {
			t.Errorf("a cgroup that lives outside the view: populated %v, %v", on, err)
		}
		if on, err := part.PopulatedID(base+"/container", id+1e6); err != nil || on {
			t.Errorf("one that is nowhere: populated %v, %v", on, err)
		}
		l.end()
		if err := part.WaitEmptyID(deadline(t), base+"/container", id); err != nil {
			t.Errorf("its end: %v", err)
		}
		_ = syscall.Rmdir(fs.Root + base + "/container")
		if on, err := part.PopulatedID(base+"/container", id); err != nil || on {
			t.Errorf("removed: populated %v, %v", on, err)
		}
	}()
	<-done
}

// enter gives this thread the cgroup namespace of a process, and its view at root.
func enter(pid int, root string) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/cgroup", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	return errors.Join(
		unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Setns(int(ns.Fd()), unix.CLONE_NEWCGROUP),
		unix.Mount("cgroup2", root, "cgroup2", 0, ""),
	)
}
