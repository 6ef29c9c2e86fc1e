package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"
)

// The bytes of the format, for another implementation.
func TestVectors(t *testing.T) {
	if got, want := AppendHeader(nil, CreateRuntime, 0x010203), []byte("PRB1c\x00\x01\x02\x03"); !bytes.Equal(got, want) {
		t.Errorf("request %q, want %q", got, want)
	}
	if got, want := AppendAnswer(nil, Refuse, "no"), []byte("\x01\x00\x02no"); !bytes.Equal(got, want) {
		t.Errorf("answer %q, want %q", got, want)
	}
}

func TestAnswerIsCutAtACharacter(t *testing.T) {
	for _, m := range []string{strings.Repeat("a", MaxMessage+5), strings.Repeat("ü", MaxMessage), "x" + strings.Repeat("€", MaxMessage)} {
		b := AppendAnswer(nil, Proceed, m)[AnswerBytes:]
		if len(b) > MaxMessage || len(b) < MaxMessage-4 || !utf8.Valid(b) {
			t.Errorf("%d bytes, valid: %v", len(b), utf8.Valid(b))
		}
	}
}

// agent is a listener whose peers are given to f, one at a time.
func agent(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f(c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return path
}

func request(c net.Conn, n int) []byte {
	b := make([]byte, HeaderBytes+n)
	io.ReadFull(c, b)
	return b
}

func TestAsk(t *testing.T) {
	for _, test := range []struct {
		name  string
		agent func(net.Conn)
		want  Answer
		err   error
	}{
		{"proceed", func(c net.Conn) { request(c, 2); c.Write(AppendAnswer(nil, Proceed, "")) }, Answer{}, nil},
		{"refuse", func(c net.Conn) { request(c, 2); c.Write(AppendAnswer(nil, Refuse, "no")) }, Answer{Verdict: Refuse, Message: "no"}, nil},
		{"a byte at a time", func(c net.Conn) {
			request(c, 2)
			for _, b := range AppendAnswer(nil, Refuse, "no") {
				c.Write([]byte{b})
			}
		}, Answer{Verdict: Refuse, Message: "no"}, nil},
		{"hangs up at once", func(net.Conn) {}, Answer{}, ErrProtocol},
		{"hangs up before the answer", func(c net.Conn) { request(c, 2) }, Answer{}, ErrProtocol},
		{"hangs up in the answer", func(c net.Conn) { request(c, 2); c.Write([]byte{1, 0, 9, 'n'}) }, Answer{}, ErrProtocol},
		{"another verdict", func(c net.Conn) { request(c, 2); c.Write([]byte{2, 0, 0}) }, Answer{}, ErrProtocol},
		{"message too long", func(c net.Conn) { request(c, 2); c.Write([]byte{1, 0xff, 0xff}) }, Answer{}, ErrProtocol},
		{"message is not UTF-8", func(c net.Conn) { request(c, 2); c.Write([]byte{1, 0, 1, 0xff}) }, Answer{}, ErrProtocol},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, err := Ask(Question{Path: agent(t, test.agent), Stage: CreateRuntime, State: []byte("{}"), Connect: time.Second, Answer: 10 * time.Second})
			if !errors.Is(err, test.err) {
				t.Errorf("error %v, want %v", err, test.err)
			}
			if err == nil {
				test.want.Uid = uint32(os.Getuid())
			}
			if a != test.want {
				t.Errorf("answer %+v, want %+v", a, test.want)
			}
		})
	}
}

func TestAskAbsent(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "none"), filepath.Join(dir, "none", "s"), filepath.Join(file, "s"), stale, file} {
		if _, err := Ask(Question{Path: path, Stage: CreateRuntime, Connect: time.Second, Answer: time.Second}); !errors.Is(err, ErrAbsent) {
			t.Errorf("%s: %v, want %v", path, err, ErrAbsent)
		}
	}
	for _, path := range []string{"", strings.Repeat("x", 108)} {
		if _, err := Ask(Question{Path: path}); !errors.Is(err, syscall.ENAMETOOLONG) {
			t.Errorf("%q: %v", path, err)
		}
	}
}

// Every way an agent can be slow ends at the deadline: not accepting while the
// backlog is full, not reading a long state, not answering, answering too
// slowly.
func TestAskDeadlines(t *testing.T) {
	t.Run("backlog full", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer syscall.Close(fd)
		if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0)); err != nil {
			t.Fatal(err)
		}
		first, err := net.Dial("unix", path) // a backlog of 0 holds one
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		late(t, Question{Path: path, Stage: CreateRuntime, Connect: 50 * time.Millisecond, Answer: time.Hour})
	})
	stop := make(chan struct{})
	silent := agent(t, func(net.Conn) { <-stop })
	t.Cleanup(func() { close(stop) })
	t.Run("not reading", func(t *testing.T) {
		late(t, Question{Path: silent, Stage: CreateRuntime, State: make([]byte, MaxBody), Connect: time.Hour, Answer: 50 * time.Millisecond})
	})
	t.Run("not answering", func(t *testing.T) {
		late(t, Question{Path: silent, Stage: CreateRuntime, State: []byte("{}"), Connect: time.Hour, Answer: 50 * time.Millisecond})
	})
	t.Run("answering too slowly", func(t *testing.T) {
		slow := agent(t, func(c net.Conn) {
			request(c, 2)
			c.Write([]byte{0, 3})
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for range tick.C {
				if _, err := c.Write([]byte{'x'}); err != nil {
					return
				}
			}
		})
		late(t, Question{Path: slow, Stage: CreateRuntime, State: []byte("{}"), Connect: time.Hour, Answer: 100 * time.Millisecond})
	})
}

// Whoever gets to run only when its time is over tells the agent all the same: it
// listens, and would know nothing of the container otherwise.
func TestAskTooLate(t *testing.T) {
	heard := make(chan []byte, 1)
	path := agent(t, func(c net.Conn) { heard <- request(c, 2) })
	if _, err := Ask(Question{Path: path, Stage: CreateRuntime, State: []byte("{}"), Connect: -time.Hour, Answer: -time.Hour}); err == nil {
		t.Error("an answer that nobody gave")
	}
	select {
	case b := <-heard:
		if !strings.HasSuffix(string(b), "{}") {
			t.Errorf("heard %q", b)
		}
	case <-time.After(time.Minute):
		t.Error("the agent heard nothing")
	}
}

func late(t *testing.T, q Question) {
	t.Helper()
	start := time.Now()
	if _, err := Ask(q); !errors.Is(err, ErrTimeout) {
		t.Errorf("error %v, want %v", err, ErrTimeout)
	}
	if d := time.Since(start); d > time.Minute {
		t.Errorf("took %v", d)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte{0, 0, 0})
	f.Add([]byte{1, 0, 2})
	f.Add([]byte{1, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) != AnswerBytes {
			return
		}
		v, n, err := parseAnswer([AnswerBytes]byte(in))
		if err == nil && (v > Refuse || n > MaxMessage) {
			t.Fatalf("%x: verdict %d, %d bytes", in, v, n)
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add(AppendHeader(nil, CreateRuntime, 7))
	f.Add(AppendHeader(nil, Poststop, TooLong))
	f.Add([]byte("PRB1x\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) != HeaderBytes {
			return
		}
		s, n, err := ParseHeader([HeaderBytes]byte(in))
		if err == nil && !bytes.Equal(AppendHeader(nil, s, n), in) {
			t.Fatalf("%x reads as %v, %d", in, s, n)
		}
	})
}
