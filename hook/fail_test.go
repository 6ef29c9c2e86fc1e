package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"probity/runtime/handoff"
	"probity/runtime/handoff/wire"
	"probity/tests/need"
)

// publicDir is a directory that every user may enter.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hook")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func file(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// stale is a socket on which nobody listens any more.
func stale(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	return path
}

// listenEnv makes the test binary somebody who listens on a path, says so, and
// answers every hook with the verdict in verdictEnv.
const (
	listenEnv  = "PROBITY_TEST_HOOK_LISTEN"
	verdictEnv = "PROBITY_TEST_HOOK_VERDICT"
)

func listenFor(path string) {
	l, err := net.Listen("unix", path)
	if err == nil {
		err = os.Chmod(path, 0o666)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			os.Exit(1)
		}
		answering(os.Getenv(verdictEnv)[0]-'0', "impostor")(c)
		c.Close()
	}
}

// impostor is another user who listens on the path of the agent's socket.
func impostor(t *testing.T, verdict byte) string {
	t.Helper()
	dir := publicDir(t)
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile("/proc/self/exe") // another user may not enter where it lies
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(file(t, dir+"/self", string(self), 0o755))
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), listenEnv+"="+dir+"/s", fmt.Sprintf("%s=%d", verdictEnv, verdict))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "listening\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return dir + "/s"
}

// Each way in which there is no answer of an agent ends as the policy says, soon,
// and with a poststop never.
func TestUnanswered(t *testing.T) {
	need.Root(t)
	dir := publicDir(t)
	closed, open := file(t, dir+"/closed", "closed\n", 0o644), file(t, dir+"/open", "open\n", 0o644)
	hold := make(chan struct{})
	silent := listen(t, func(net.Conn) { <-hold })
	t.Cleanup(func() { close(hold) })
	endless, write, err := os.Pipe() // nobody ends it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { write.Close(); endless.Close() })
	for _, test := range []struct {
		name   string
		stdin  func() io.Reader
		socket string
		stderr string // "" is silence under the open policy
	}{
		{"no agent", nil, dir + "/none", ""},
		{"no directory", nil, dir + "/none/none", ""},
		{"a stale socket", nil, stale(t), ""},
		{"the agent closes at once", nil, listen(t, func(net.Conn) {}), "not an answer"},
		{"garbage", nil, listen(t, func(c net.Conn) { c.Write([]byte("HTTP/1.1 400 Bad Request\r\n")) }), "not an answer"},
		{"half an answer", nil, listen(t, func(c net.Conn) {
			io.ReadFull(c, make([]byte, wire.HeaderBytes+2))
			c.Write([]byte{wire.Refuse, 0})
		}), "not an answer"},
		{"the agent is slow", nil, silent, "deadline passed"},
		{"a byte now and then", nil, listen(t, func(c net.Conn) {
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			for b := []byte{wire.Proceed, 4, 0}; ; b = []byte("x") {
				if _, err := c.Write(b); err != nil {
					return
				}
				<-tick.C
			}
		}), "deadline passed"},
		{"stdin has no end", func() io.Reader { return endless }, silent, "deadline passed"},
		{"stdin is a directory", func() io.Reader {
			d, err := os.Open("/")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { d.Close() })
			return d
		}, silent, "is a directory"},
		{"another user listens, and lets it go on", nil, impostor(t, wire.Proceed), "neither root nor this user"},
		{"another user listens, and refuses", nil, impostor(t, wire.Refuse), "neither root nor this user"},
		{"no socket", nil, "", "name too long"},
	} {
		for policy, path := range map[string]string{"closed": closed, "open": open, "no file": dir + "/no file"} {
			for _, stage := range []string{"createRuntime", "poststop"} {
				t.Run(test.name+", "+policy+", "+stage, func(t *testing.T) {
					t.Parallel()
					stdin := io.Reader(strings.NewReader("{}"))
					if test.stdin != nil {
						stdin = test.stdin()
					}
					r := hook(t, stdin, stage, "--socket", test.socket, "--fail-policy", path)
					code, stderr := 0, test.stderr
					if policy == "closed" && stage == "createRuntime" {
						code, stderr = 1, "refused: no agent answered, and "+path+" says closed"
						if !strings.Contains(r.stderr, test.stderr) {
							t.Errorf("%q, want %q", r.stderr, test.stderr)
						}
					}
					if stage == "poststop" && strings.HasPrefix(test.name, "another user") {
						stderr = test.stderr
					}
					if r.code != code || stderr == "" && r.stderr != "" || !strings.Contains(r.stderr, stderr) {
						t.Errorf("%+v, want %d and %q", r, code, stderr)
					}
					// The bound is the hook's own; the machine may be busy.
					if r.took > lifetime+30*time.Second {
						t.Errorf("took %v", r.took)
					}
				})
			}
		}
	}
}

// A command line that is wrong is a failure like others once it is clear that a
// container waits.
func TestUsage(t *testing.T) {
	need.Root(t)
	closed := file(t, publicDir(t)+"/closed", "closed", 0o644)
	for _, test := range []struct {
		args []string
		code int
	}{
		{nil, 0},
		{[]string{"poststart", "--fail-policy", closed}, 0},
		{[]string{"createruntime", "--fail-policy", closed}, 0},
		{[]string{"createRuntime", "--fail-policy", closed, "--sock", "x"}, 1},
		{[]string{"createRuntime", "--fail-policy", closed, "--socket"}, 1},
		{[]string{"createRuntime", "--fail-policy", closed + ".none", "x"}, 0},
		{[]string{"poststop", "--fail-policy", closed, "x"}, 0},
	} {
		if r := hook(t, strings.NewReader("{}"), test.args...); r.code != test.code || !strings.Contains(r.stderr, "usage: ") {
			t.Errorf("%v: %+v, want %d", test.args, r, test.code)
		}
	}
}

// Only a file that root alone can have written closes the policy.
func TestFailPolicyFile(t *testing.T) {
	need.Root(t)
	dir := publicDir(t)
	owned := func(path string, uid int) string {
		if err := os.Chown(path, uid, uid); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file(t, dir+"/good", "closed\n", 0o644)
	link, fifo := dir+"/link", dir+"/fifo"
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, path string
		code       int
		stderr     string
	}{
		{"closed", good, 1, "says closed"},
		{"closed, without a newline", file(t, dir+"/a", "closed", 0o400), 1, "says closed"},
		{"nobody may read it but root", file(t, dir+"/0", "closed", 0), 1, "says closed"},
		{"open", file(t, dir+"/b", "open", 0o644), 0, ""},
		{"no file", dir + "/none", 0, ""},
		{"no directory", good + "/none", 0, "open " + good + "/none: not a directory"},
		{"empty", file(t, dir+"/c", "", 0o644), 0, "it says neither open nor closed"},
		{"in capitals", file(t, dir+"/d", "CLOSED\n", 0o644), 0, "it says neither"},
		{"with a comment", file(t, dir+"/e", "closed # for now\n", 0o644), 0, "it says neither"},
		{"two lines", file(t, dir+"/f", "closed\n\n", 0o644), 0, "it says neither"},
		{"large", file(t, dir+"/g", strings.Repeat("closed\n", 1<<20), 0o644), 0, "it says neither"},
		{"its group may write it", file(t, dir+"/h", "closed", 0o664), 0, "others than root may write it"},
		{"everybody may write it", file(t, dir+"/i", "closed", 0o646), 0, "others than root may write it"},
		{"another's", owned(file(t, dir+"/j", "closed", 0o644), 65534), 0, "it is not root's"},
		{"a directory", dir, 0, "it is not a regular file"},
		{"a FIFO", fifo, 0, "it is not a regular file"},
		{"a symlink", link, 0, "too many levels of symbolic links"},
	} {
		r := hook(t, strings.NewReader("{}"), "createRuntime", "--socket", dir+"/none", "--fail-policy", test.path)
		if r.code != test.code || test.stderr == "" && r.stderr != "" || !strings.Contains(r.stderr, test.stderr) {
			t.Errorf("%s: %+v, want %d and %q", test.name, r, test.code, test.stderr)
		}
	}
}

// stopped reports whether every thread of the process is.
func stopped(t *testing.T, pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(threads) == 0 {
		t.Error("the hook has ended")
		return true
	}
	for _, path := range threads {
		b, err := os.ReadFile(path)
		if _, rest, ok := strings.Cut(string(b), ") "); err != nil || !ok || rest[0] != 'T' {
			return false
		}
	}
	return true
}

// A hook that was not let run for longer than it has does what it was told, if it was
// told something. The time itself is what this is about.
func TestStalled(t *testing.T) {
	need.Root(t)
	dir := publicDir(t)
	closed := file(t, dir+"/closed", "closed", 0o644)
	stall := func(verdict byte) func(net.Conn) {
		return func(c net.Conn) {
			raw, err := c.(*net.UnixConn).SyscallConn()
			if err != nil {
				t.Error(err)
			}
			raw.Control(func(fd uintptr) {
				peer, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
				if err == nil {
					err = syscall.Kill(int(peer.Pid), syscall.SIGSTOP)
				}
				if err != nil {
					t.Error(err)
					return
				}
				for !stopped(t, int(peer.Pid)) {
					time.Sleep(time.Millisecond)
				}
				c.Write(wire.AppendAnswer(nil, verdict, "so"))
				<-time.After(lifetime + 500*time.Millisecond)
				if err := syscall.Kill(int(peer.Pid), syscall.SIGCONT); err != nil {
					t.Error(err)
				}
			})
			io.Copy(io.Discard, c) // it reads first, and then hangs up
		}
	}
	for _, test := range []struct {
		name    string
		verdict byte
		policy  string
		code    int
	}{
		{"refused, open", wire.Refuse, dir + "/none", 1},
		{"refused, closed", wire.Refuse, closed, 1},
		{"let go, open", wire.Proceed, dir + "/none", 0},
		{"let go, closed", wire.Proceed, closed, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := hook(t, strings.NewReader("{}"), "createRuntime", "--socket", listen(t, stall(test.verdict)), "--fail-policy", test.policy)
			if r.code != test.code {
				t.Errorf("%+v, want %d", r, test.code)
			}
		})
	}
}

// Who reads stderr, or does not, or cannot any more, changes nothing.
func TestStderr(t *testing.T) {
	need.Root(t)
	dir := publicDir(t)
	closed := file(t, dir+"/closed", "closed", 0o644)
	full := func() (r, w *os.File) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		fd := int(w.Fd()) // once: it makes the pipe block
		if err := syscall.SetNonblock(fd, true); err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{4096, 1} {
			for err = nil; err == nil; {
				_, err = syscall.Write(fd, make([]byte, size))
			}
		}
		if err := syscall.SetNonblock(fd, false); err != nil {
			t.Fatal(err)
		}
		return r, w
	}
	for _, test := range []struct {
		name   string
		socket string
		policy string
		code   int
	}{
		{"refused", listen(t, answering(wire.Refuse, "no")), "none", 1},
		{"a word of the agent", listen(t, answering(wire.Proceed, "yes")), "none", 0},
		{"not answered, open", listen(t, func(net.Conn) {}), "none", 0},
		{"not answered, closed", dir + "/none", closed, 1},
	} {
		for _, pipe := range []string{"full", "closed"} {
			t.Run(test.name+", "+pipe, func(t *testing.T) {
				t.Parallel()
				r, w := full()
				defer w.Close()
				if pipe == "closed" {
					r.Close()
				} else {
					defer r.Close()
				}
				cmd := exec.Command(program(t), "createRuntime", "--socket", test.socket, "--fail-policy", test.policy)
				cmd.Stdin, cmd.Stderr = strings.NewReader("{}"), w
				cmd.Run()
				if got := cmd.ProcessState; got.ExitCode() != test.code {
					t.Errorf("%v, want %d", got, test.code)
				}
			})
		}
	}
}

// A user's own podman runs the hook too: as the user, or as root of the user's own
// user namespace. It never fails, whatever there is.
func TestRootless(t *testing.T) {
	need.Root(t)
	dir := publicDir(t)
	closed := file(t, dir+"/closed", "closed", 0o644)
	his := file(t, dir+"/his", "closed", 0o644)
	if err := os.Chown(his, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	real := agent(t, handoff.Config{Handle: func(context.Context, handoff.Request) handoff.Answer {
		t.Error("handled")
		return handoff.Answer{Refuse: true}
	}})
	refusing := listen(t, answering(wire.Refuse, "no"))
	reachable(t, refusing)
	for _, who := range []struct {
		name string
		attr syscall.SysProcAttr
	}{
		{"a user", syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}},
		{"root of his namespace", syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 65534, Size: 1}}, GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 65534, Size: 1}},
			Credential: &syscall.Credential{NoSetGroups: true},
		}},
	} {
		for _, test := range []struct{ name, socket, policy, stderr string }{
			{"no agent", dir + "/none", closed, ""},
			{"an agent that he may not ask", real, closed, ""},
			{"an agent that he may not ask, and a file of his", real, his, ""},
			{"an agent that refuses", refusing, closed, "probity-hook: no\n"},
		} {
			cmd := exec.Command(program(t), "createRuntime", "--socket", test.socket, "--fail-policy", test.policy)
			cmd.Dir, cmd.SysProcAttr = "/", &who.attr
			if r := runHook(t, cmd, strings.NewReader("{}")); r.code != 0 || r.stderr != test.stderr {
				t.Errorf("%s, %s: %+v, want %q", who.name, test.name, r, test.stderr)
			}
		}
	}
}

// reachable lets every user connect to a socket.
func reachable(t *testing.T, path string) {
	t.Helper()
	for dir, mode := path, os.FileMode(0o666); dir != os.TempDir() && dir != "/"; dir, mode = filepath.Dir(dir), 0o755 {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
	}
}
