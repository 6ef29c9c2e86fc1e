package handoff

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"probity/runtime/handoff/wire"
	"probity/tests/need"
)

// askEnv makes the test binary a peer: it asks once and prints what it got.
const askEnv = "PROBITY_TEST_HANDOFF_ASK"

func TestMain(m *testing.M) {
	if path := os.Getenv(askEnv); path != "" {
		a, err := wire.Ask(wire.Question{Path: path, Stage: wire.CreateRuntime, State: []byte("{}"), Connect: within, Answer: within})
		json.NewEncoder(os.Stdout).Encode(map[string]any{
			"verdict": a.Verdict, "message": a.Message,
			"absent": errors.Is(err, wire.ErrAbsent), "protocol": errors.Is(err, wire.ErrProtocol), "timeout": errors.Is(err, wire.ErrTimeout),
		})
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

const within = 3 * time.Minute // a deadline that is only met when something is broken

// serve runs a server of its own and returns the path of its socket.
func serve(t *testing.T, mode os.FileMode, cfg Config) string {
	t.Helper()
	dir := publicDir(t)
	l, err := Listen(filepath.Join(dir, "hook.sock"), mode)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- New(l, cfg).Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(within):
			t.Error("Run does not return")
		}
		if _, err := os.Lstat(l.path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left behind: %v", err)
		}
	})
	return l.path
}

// publicDir is a directory that other users can enter.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "handoff")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func ask(path string, state []byte, answer time.Duration) (wire.Answer, error) {
	return wire.Ask(wire.Question{Path: path, Stage: wire.CreateRuntime, State: state, Connect: within, Answer: answer})
}

func receiveOne[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(within):
		t.Fatal("nothing came")
	}
	return v
}

func TestRoundTrip(t *testing.T) {
	need.Root(t)
	for _, size := range []int{1, 4096, 300 << 10, wire.MaxBody} {
		body := bytes.Repeat([]byte("s"), size)
		got := make(chan Request, 1)
		alive := make(chan bool, 1)
		path := serve(t, 0, Config{Transfer: within, Deadline: within, Handle: func(_ context.Context, r Request) Answer {
			alive <- r.Peer.Alive()
			got <- r
			return Answer{Message: "seen"}
		}})
		a, err := ask(path, body, within)
		if err != nil || a.Verdict != wire.Proceed || a.Message != "seen" {
			t.Fatalf("%d bytes: answer %+v, %v", size, a, err)
		}
		r := receiveOne(t, got)
		if r.Stage != wire.CreateRuntime || !bytes.Equal(r.Body, body) || r.Peer.Pid != os.Getpid() || r.Peer.Uid != 0 {
			t.Errorf("%d bytes: request: stage %v, %d bytes, peer %+v", size, r.Stage, len(r.Body), r.Peer)
		}
		if !receiveOne(t, alive) {
			t.Errorf("%d bytes: the peer was not alive while it waited", size)
		}
	}
}

func TestRefuse(t *testing.T) {
	need.Root(t)
	path := serve(t, 0, Config{Handle: func(context.Context, Request) Answer {
		return Answer{Refuse: true, Message: "policy p is closed" + strings.Repeat("ü", wire.MaxMessage)}
	}})
	a, err := ask(path, []byte("{}"), within)
	if err != nil || a.Verdict != wire.Refuse || !strings.HasPrefix(a.Message, "policy p is closed") {
		t.Fatalf("answer %.40q %v, %v", a.Message, a.Verdict, err)
	}
}

// A peer that is not root: a real process of another user, that the socket's
// mode lets in.
func TestPeerNotRoot(t *testing.T) {
	need.Root(t)
	for _, test := range []struct {
		name string
		mode os.FileMode
		want string // of the peer
	}{
		{"connects", 0o666, "protocol"}, // hung up on
		{"kept out by the mode", 0o600, "absent"},
	} {
		t.Run(test.name, func(t *testing.T) {
			rejected := make(chan error, 1)
			path := serve(t, test.mode, Config{
				Handle:   func(context.Context, Request) Answer { t.Error("handled"); return Answer{Refuse: true} },
				Rejected: func(p Peer, err error) Answer { rejected <- err; return Answer{Refuse: true} },
			})
			got := askAs(t, 65534, filepath.Dir(path), path)
			if got[test.want] != true || got["verdict"] != float64(wire.Proceed) {
				t.Errorf("the peer got %v, want %s", got, test.want)
			}
			if test.mode == 0o666 {
				if err := receiveOne(t, rejected); !errors.Is(err, ErrNotRoot) {
					t.Errorf("rejected with %v", err)
				}
			}
		})
	}
}

// askAs runs a copy of this test binary as another user.
func askAs(t *testing.T, uid uint32, dir, path string) map[string]any {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	peer := filepath.Join(dir, "peer")
	if err := os.WriteFile(peer, b, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(peer)
	cmd.Dir = "/"
	cmd.Env = []string{askEnv + "=" + path}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	return got
}

func TestRejected(t *testing.T) {
	need.Root(t)
	for _, test := range []struct {
		name   string
		send   []byte
		want   error
		answer bool
	}{
		{"empty state", wire.AppendHeader(nil, wire.CreateRuntime, 0), ErrEmpty, true},
		{"too long", wire.AppendHeader(nil, wire.CreateRuntime, wire.TooLong), ErrTooLong, true},
		{"longer than can be said", wire.AppendHeader(nil, wire.CreateRuntime, 1<<31-1), wire.ErrProtocol, false},
		{"unknown stage", wire.AppendHeader(nil, 'x', 2), wire.ErrProtocol, false},
		{"another protocol", []byte("GET / HTTP/1.1\r\n"), wire.ErrProtocol, false},
		{"stops in the header", []byte("PRB"), os.ErrDeadlineExceeded, true},
		{"stops in the body", append(wire.AppendHeader(nil, wire.Poststop, 10), "12345"...), os.ErrDeadlineExceeded, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			rejected := make(chan error, 1)
			path := serve(t, 0, Config{
				Handle: func(context.Context, Request) Answer { t.Error("handled"); return Answer{} },
				Rejected: func(_ Peer, err error) Answer {
					rejected <- err
					return Answer{Refuse: true, Message: "closed"}
				},
				Transfer: 50 * time.Millisecond,
			})
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(within))
			if _, err := conn.Write(test.send); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(conn)
			// Unread bytes make the kernel reset instead of closing.
			if err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Fatal(err)
			}
			if want := wire.AppendAnswer(nil, wire.Refuse, "closed"); test.answer != bytes.Equal(got, want) {
				t.Errorf("answered %x", got)
			}
			if err := receiveOne(t, rejected); !errors.Is(err, test.want) {
				t.Errorf("rejected with %v, want %v", err, test.want)
			}
		})
	}
}

func TestAnswerPastDeadline(t *testing.T) {
	need.Root(t)
	release, finished := make(chan struct{}), make(chan struct{})
	late := make(chan Request, 1)
	path := serve(t, 0, Config{
		Deadline: 30 * time.Millisecond,
		Handle: func(ctx context.Context, _ Request) Answer {
			defer close(finished)
			<-release
			if ctx.Err() != nil {
				t.Error("what came late was cancelled")
			}
			return Answer{}
		},
		Late: func(r Request, waits bool) Answer {
			if !waits {
				t.Error("it waits for the answer")
			}
			late <- r
			return Answer{Refuse: true, Message: "too late"}
		},
	})
	a, err := ask(path, []byte("{}"), within)
	if err != nil || a.Verdict != wire.Refuse || a.Message != "too late" {
		t.Errorf("answer %+v, %v", a, err)
	}
	if len(late) == 0 {
		t.Error("answered before Late was told")
	}
	if r := receiveOne(t, late); string(r.Body) != "{}" || r.Peer.Pid != os.Getpid() {
		t.Errorf("late %+v", r)
	}
	close(release)
	receiveOne(t, finished)
}

// A hook that gives up waiting lets its container go: that is said when it
// happens, not at the deadline, and whatever Handle makes of it.
func TestPeerHangsUp(t *testing.T) {
	need.Root(t)
	release, handling, finished := make(chan struct{}), make(chan struct{}), make(chan struct{})
	late := make(chan Request, 1)
	path := serve(t, 0, Config{
		Deadline: time.Hour,
		Handle: func(context.Context, Request) Answer {
			defer close(finished)
			close(handling)
			<-release
			return Answer{}
		},
		Late: func(r Request, waits bool) Answer {
			if waits {
				t.Error("it does not wait")
			}
			late <- r
			panic("broken")
		},
	})
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(append(wire.AppendHeader(nil, wire.CreateRuntime, 2), "{}"...)); err != nil {
		t.Fatal(err)
	}
	receiveOne(t, handling)
	conn.Close()
	if r := receiveOne(t, late); string(r.Body) != "{}" || r.Peer.Pid != os.Getpid() {
		t.Errorf("late %+v", r)
	}
	close(release)
	receiveOne(t, finished)
}

// A peer that shuts its sending half down has not hung up.
func TestPeerSentAll(t *testing.T) {
	need.Root(t)
	release, handling := make(chan struct{}), make(chan struct{})
	path := serve(t, 0, Config{
		Deadline: time.Hour,
		Handle: func(context.Context, Request) Answer {
			close(handling)
			<-release
			return Answer{Message: "seen"}
		},
		Late: func(Request, bool) Answer { t.Error("late"); return Answer{} },
	})
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(within))
	if _, err := conn.Write(append(wire.AppendHeader(nil, wire.CreateRuntime, 2), "{}"...)); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	receiveOne(t, handling)
	close(release)
	if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, wire.AppendAnswer(nil, wire.Proceed, "seen")) {
		t.Errorf("answered %x, %v", got, err)
	}
}

// Who cannot be told that it is refused may go on.
func TestRefusalNotTold(t *testing.T) {
	need.Root(t)
	release, handling := make(chan struct{}), make(chan struct{})
	late := make(chan bool, 2)
	path := serve(t, 0, Config{
		Deadline: time.Hour,
		Handle: func(context.Context, Request) Answer {
			close(handling)
			<-release
			return Answer{Refuse: true}
		},
		Late: func(_ Request, waits bool) Answer { late <- waits; return Answer{} },
	})
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	// Something more than the request: the server does not find out by reading
	// that the peer hangs up.
	if _, err := conn.Write(append(wire.AppendHeader(nil, wire.CreateRuntime, 2), "{}x"...)); err != nil {
		t.Fatal(err)
	}
	receiveOne(t, handling)
	conn.Close()
	close(release)
	if receiveOne(t, late) {
		t.Error("it does not wait")
	}
}

// A panic is answered as a deadline is.
func TestHandlePanics(t *testing.T) {
	need.Root(t)
	path := serve(t, 0, Config{
		Handle: func(context.Context, Request) Answer { panic("broken") },
		Late:   func(_ Request, waits bool) Answer { return Answer{Refuse: waits, Message: "closed"} },
	})
	if a, err := ask(path, []byte("{}"), within); err != nil || a.Verdict != wire.Refuse || a.Message != "closed" {
		t.Errorf("answer %+v, %v", a, err)
	}
	path = serve(t, 0, Config{Handle: func(context.Context, Request) Answer { panic("broken") }})
	if a, err := ask(path, []byte("{}"), within); err != nil || a.Verdict != wire.Proceed {
		t.Errorf("answer %+v, %v", a, err)
	}
}

// One peer more than are served at once waits for its turn.
func TestBoundedPeers(t *testing.T) {
	need.Root(t)
	release, handling := make(chan struct{}), make(chan struct{}, 2)
	path := serve(t, 0, Config{Peers: 1, Deadline: within, Handle: func(context.Context, Request) Answer {
		handling <- struct{}{}
		<-release
		return Answer{}
	}})
	answers := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := ask(path, []byte("{}"), within)
			answers <- err
		}()
	}
	receiveOne(t, handling)
	select {
	case <-handling:
		t.Error("two at once")
	default:
	}
	close(release)
	for range 2 {
		if err := receiveOne(t, answers); err != nil {
			t.Error(err)
		}
	}
}

// The process that connected has ended and left its end of the connection to a
// child: its pid may be anybody's.
func TestPeerGone(t *testing.T) {
	need.Root(t)
	need.Command(t, "python3")
	const program = `
import os, socket, struct, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
if os.fork(): os._exit(0)
sys.stdin.read(1)          # the parent has been waited for
s.sendall(b"PRB1c" + struct.pack(">I", 2) + b"{}")
`
	// The listener alone first: the parent must be gone before it is accepted.
	l, err := Listen(filepath.Join(publicDir(t), "hook.sock"), 0)
	if err != nil {
		t.Fatal(err)
	}
	in, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("python3", "-c", program, l.path)
	cmd.Stdin = in
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	in.Close()

	rejected := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := New(l, Config{
		Handle:   func(context.Context, Request) Answer { t.Error("handled"); return Answer{} },
		Rejected: func(_ Peer, err error) Answer { rejected <- err; return Answer{} },
	})
	go func() { done <- s.Run(ctx) }()
	write.Write([]byte("x"))
	write.Close()
	if err := receiveOne(t, rejected); !errors.Is(err, ErrPeerGone) {
		t.Errorf("rejected with %v", err)
	}
	cancel()
	if err := receiveOne(t, done); err != nil {
		t.Error(err)
	}
}

// Who is admitted is up to the server's owner, and done is told once for each, when
// nothing of it runs any more: also if Handle runs on after the peer was answered.
func TestAdmit(t *testing.T) {
	need.Root(t)
	admitted, done, goOn := make(chan uint32, 4), make(chan bool, 4), make(chan bool)
	rejected := make(chan error, 4)
	cfg := Config{
		Deadline: 10 * time.Millisecond, Transfer: within,
		Admit: func(p Peer) (func(), error) {
			if p.Uid == 0 {
				return nil, errors.New("not you")
			}
			admitted <- p.Uid
			return func() { done <- true }, nil
		},
		Handle:   func(context.Context, Request) Answer { <-goOn; return Answer{} },
		Rejected: func(_ Peer, err error) Answer { rejected <- err; return Answer{} },
	}
	path := serve(t, 0o666, cfg)
	if _, err := ask(path, []byte("{}"), within); err == nil {
		t.Error("root was served")
	}
	if err := receiveOne(t, rejected); err.Error() != "not you" {
		t.Error(err)
	}
	askAs(t, 65534, filepath.Dir(path), path) // answered at the deadline
	if uid := receiveOne(t, admitted); uid != 65534 {
		t.Errorf("uid %d", uid)
	}
	select {
	case <-done:
		t.Error("done while Handle runs")
	default:
	}
	close(goOn)
	receiveOne(t, done)
}

// More peers than may be accepted in a row wait until it is their time.
func TestEvery(t *testing.T) {
	need.Root(t)
	path := serve(t, 0, Config{Every: time.Hour, Peers: 2, Handle: func(context.Context, Request) Answer { return Answer{} }})
	for range 2 {
		if _, err := ask(path, []byte("{}"), within); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ask(path, []byte("{}"), 100*time.Millisecond); !errors.Is(err, wire.ErrTimeout) {
		t.Errorf("a third one is answered: %v", err)
	}
}
