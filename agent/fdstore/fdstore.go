// Package fdstore has the service manager hold descriptors for the next process of
// this service (systemd's file descriptor store, FileDescriptorStoreMax=).
//
// In: descriptors under a name. Out: messages on $NOTIFY_SOCKET, as sd_notify(3) has
// them. What is held outlives this process, also one that is killed; the service
// manager closes it when the service is stopped, and hands it to the next process in
// $LISTEN_FDS when it is started again. It never says whether it took something: past
// FileDescriptorStoreMax= it closes what it is sent.
//
// It trusts the service manager. It is not a control: what comes back is what somebody
// put there who could send as this service.
package fdstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf"
)

// Bounds of one message: the service manager takes no more (SCM_MAX_FD), and no longer
// name.
const (
	maxFDs  = 253
	maxName = 255
)

// patience is how long a message may wait for the service manager.
const patience = 2 * time.Second

// Store sends to the service manager.
type Store struct {
	socket string
	log    *slog.Logger

	sending sync.Mutex // held while messages are sent, in their order

	mu    sync.Mutex
	queue []message
	told  chan struct{}
}

// message is one that waits: descriptors to keep; without any, a name to let go of;
// without a name, a barrier.
type message struct {
	name string
	fds  []int // copies, ours to close
}

// FromEnv returns a store where this process has a service manager that it may tell,
// and nil else.
func FromEnv(log *slog.Logger) *Store {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	return &Store{socket: socket, log: log, told: make(chan struct{}, 1)}
}

// Keep has copies of the descriptors held, under their name. It returns at once: Run,
// or the next Unkeep, sends them.
func (s *Store) Keep(d bpf.Descriptors) {
	if len(d.FDs) == 0 || len(d.FDs) > maxFDs || len(d.Name) > maxName || strings.ContainsAny(d.Name, ":\n") {
		s.log.Warn("not kept for the next agent", "name", d.Name, "descriptors", len(d.FDs))
		return
	}
	m := message{name: d.Name}
	for _, fd := range d.FDs {
		c, err := bpf.Dup(fd)
		if err != nil {
			m.close()
			s.log.Warn("not kept for the next agent", "name", d.Name, "err", err)
			return
		}
		m.fds = append(m.fds, c)
	}
	s.put(m)
	select {
	case s.told <- struct{}{}:
	default:
	}
}

// Unkeep returns when nothing is held under the names any more, or the service manager
// does not say so within 2 s.
func (s *Store) Unkeep(names ...string) {
	for _, name := range names {
		s.put(message{name: name})
	}
	s.put(message{})
	s.send()
}

// Sync returns when all that waits was sent: the service manager has it then, whatever
// becomes of this process.
func (s *Store) Sync() { s.send() }

func (s *Store) put(m message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = append(s.queue, m)
}

func (s *Store) next() (message, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return message{}, false
	}
	m := s.queue[0]
	s.queue = s.queue[1:]
	return m, true
}

// Run sends what waits until ctx ends, and all that waits then.
func (s *Store) Run(ctx context.Context) error {
	for {
		s.send()
		select {
		case <-s.told:
		case <-ctx.Done():
			s.send()
			return nil
		}
	}
}

// send sends what waits.
func (s *Store) send() {
	s.sending.Lock()
	defer s.sending.Unlock()
	for m, ok := s.next(); ok; m, ok = s.next() {
		if err := s.sendOne(m); err != nil {
			s.log.Warn("the service manager was not told what to keep", "name", m.name, "err", err)
		}
		m.close()
	}
}

func (m message) close() {
	for _, fd := range m.fds {
		_ = unix.Close(fd)
	}
}

// sendOne sends a message, and at a barrier waits until all before were carried out.
//
// FDPOLL=0: the service manager would else poll what it holds, and drop a map at once,
// which answers EPOLLERR. BARRIER=1 goes alone (sd_notify(3)).
func (s *Store) sendOne(m message) error {
	switch {
	case len(m.fds) > 0:
		return s.write("FDSTORE=1\nFDNAME="+m.name+"\nFDPOLL=0", m.fds...)
	case m.name != "":
		return s.write("FDSTOREREMOVE=1\nFDNAME=" + m.name)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = s.write("BARRIER=1", int(w.Fd()))
	w.Close()
	if err != nil {
		return err
	}
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait for it to let go: %w", err)
	}
	return nil
}

// write sends one datagram. A socket that is connected would have to be connected again
// when the service manager was executed anew.
func (s *Store) write(text string, fds ...int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return fmt.Errorf("limit the wait for %s: %w", s.socket, err)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(fd, []byte(text), rights, &unix.SockaddrUnix{Name: s.socket}, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("send to %s: %w", s.socket, err)
	}
	return nil
}
