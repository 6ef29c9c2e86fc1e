package fdstore_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"probity/agent/fdstore"
	"probity/bpf"
)

// heard is one message at the service manager's end.
type heard struct {
	text string
	fds  []int
}

// manager is the other end of a notification socket.
func manager(t *testing.T) (*net.UnixConn, *bytes.Buffer, *fdstore.Store) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	log := &bytes.Buffer{}
	return conn, log, fdstore.FromEnv(slog.New(slog.NewTextHandler(log, nil)))
}

func hear(t *testing.T, conn *net.UnixConn) heard {
	t.Helper()
	b, oob := make([]byte, 4096), make([]byte, 4096)
	n, m, _, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		t.Fatal(err)
	}
	h := heard{text: string(b[:n])}
	messages, err := unix.ParseSocketControlMessage(oob[:m])
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			t.Fatal(err)
		}
		h.fds = append(h.fds, fds...)
	}
	return h
}

func (h heard) close() {
	for _, fd := range h.fds {
		_ = unix.Close(fd)
	}
}

// What is kept arrives in order, as copies: the caller may close his own at once. To let
// go returns when the other end has answered the barrier.
func TestKeepAndLetGo(t *testing.T) {
	conn, log, s := manager(t)
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("kept"); err != nil {
		t.Fatal(err)
	}
	s.Keep(bpf.Descriptors{Name: "one", FDs: []int{int(f.Fd()), int(f.Fd())}})
	f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	got := hear(t, conn)
	defer got.close()
	if got.text != "FDSTORE=1\nFDNAME=one\nFDPOLL=0" || len(got.fds) != 2 {
		t.Fatalf("%+v", got)
	}
	b := make([]byte, 8)
	if n, err := unix.Pread(got.fds[1], b, 0); err != nil || string(b[:n]) != "kept" {
		t.Errorf("%q, %v", b[:n], err)
	}
	done := make(chan bool)
	go func() { s.Unkeep("one"); close(done) }()
	if got := hear(t, conn); got.text != "FDSTOREREMOVE=1\nFDNAME=one" || len(got.fds) != 0 {
		t.Errorf("%+v", got)
	}
	barrier := hear(t, conn)
	if barrier.text != "BARRIER=1" || len(barrier.fds) != 1 {
		t.Fatalf("%+v", barrier)
	}
	select {
	case <-done:
		t.Error("it did not wait for the answer")
	default:
	}
	barrier.close()
	<-done
	cancel()
	if err := <-ran; err != nil || log.Len() > 0 {
		t.Errorf("%v\n%s", err, log)
	}
}

// What cannot be sent is said, and keeps nobody waiting for ever.
func TestNotTold(t *testing.T) {
	conn, log, s := manager(t)
	for name, n := range map[string]int{"none": 0, "many": 254, "a:b": 1, "a\nb": 1, strings.Repeat("x", 256): 1} {
		log.Reset()
		s.Keep(bpf.Descriptors{Name: name, FDs: make([]int, n)})
		if !strings.Contains(log.String(), "not kept") {
			t.Errorf("%.10q with %d descriptors was taken", name, n)
		}
	}
	log.Reset()
	s.Keep(bpf.Descriptors{Name: "closed", FDs: []int{1 << 20}})
	if !strings.Contains(log.String(), "not kept") {
		t.Error("a descriptor that is not there was taken")
	}
	conn.Close()
	log.Reset()
	s.Unkeep("nobody")
	if !strings.Contains(log.String(), "was not told") {
		t.Errorf("nobody was there: %s", log)
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if fdstore.FromEnv(nil) != nil {
		t.Error("a store without a service manager")
	}
}
