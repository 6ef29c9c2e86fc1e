package runtimes

import (
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// fdStore holds descriptors for the next agent, as systemd does with
// FileDescriptorStoreMax=. The real one is in tests/systemd.
type fdStore struct {
	mu   sync.Mutex
	held []heldFD
}

type heldFD struct {
	name string
	file *os.File
}

// take carries out one message of the notification socket.
func (s *fdStore) take(text string, oob []byte) {
	var files []*os.File
	messages, _ := syscall.ParseSocketControlMessage(oob)
	for _, m := range messages {
		fds, _ := syscall.ParseUnixRights(&m)
		for _, fd := range fds {
			syscall.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "kept"))
		}
	}
	lines := strings.Split(text, "\n")
	name := ""
	for _, l := range lines {
		if n, ok := strings.CutPrefix(l, "FDNAME="); ok {
			name = n
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case slices.Contains(lines, "FDSTORE=1") && slices.Contains(lines, "FDPOLL=0") && name != "":
		for _, f := range files {
			s.held = append(s.held, heldFD{name, f})
		}
		return
	case slices.Contains(lines, "FDSTOREREMOVE=1"):
		s.held = slices.DeleteFunc(s.held, func(h heldFD) bool {
			if h.name == name {
				h.file.Close()
			}
			return h.name == name
		})
	}
	for _, f := range files { // of a barrier, which this is the answer to
		f.Close()
	}
}

// give has the next process begin with what is held.
func (s *fdStore) give(cmd *exec.Cmd) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, h := range s.held {
		names = append(names, h.name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, h.file)
	}
	if len(names) == 0 {
		return
	}
	cmd.Env = append(cmd.Env, "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	// Its own number is only known to itself.
	cmd.Args = append([]string{"/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
}

// put holds a file with a text under a name.
func (s *fdStore) put(t T, name, text string) {
	t.Helper()
	f, err := os.CreateTemp("", "kept")
	if err == nil {
		_, err = f.WriteString(text)
	}
	if err == nil {
		err = os.Remove(f.Name())
	}
	if err != nil {
		t.Fatalf("%v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = append(s.held, heldFD{name, f})
}

// names lists what is held.
func (s *fdStore) names() (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.held {
		out = append(out, h.name)
	}
	slices.Sort(out)
	return out
}

// drop closes all that is held, as a stop of the service does.
func (s *fdStore) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.held {
		h.file.Close()
	}
	s.held = nil
}

// readNotice reads one message of a notification socket.
func readNotice(conn *net.UnixConn, store *fdStore) (string, error) {
	text, oob := make([]byte, 4096), make([]byte, syscall.CmsgSpace(4*253))
	n, m, _, _, err := conn.ReadMsgUnix(text, oob)
	if err != nil {
		return "", err
	}
	if store != nil {
		store.take(string(text[:n]), oob[:m])
		return string(text[:n]), nil
	}
	(&fdStore{}).discard(oob[:m])
	return string(text[:n]), nil
}

func (s *fdStore) discard(oob []byte) { s.take("", oob) }
