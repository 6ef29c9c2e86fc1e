package handoff

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Peer is the kernel's word for the process at the other end, as of its
// connect (SO_PEERCRED).
type Peer struct {
	Pid int
	Uid uint32
	Gid uint32
	fd  *os.File // pidfd of the process that connected

	done func() // of Config.Admit, or nil
}

// ErrPeerGone says that the process that connected has ended, or could not be
// pinned: its pid may name somebody else by now.
var ErrPeerGone = errors.New("the peer is gone")

// Alive reports whether the process that connected still lives. While it does,
// its pid names nobody else: what was read under /proc/PID before Alive said
// true was the peer's.
func (p Peer) Alive() bool {
	if p.fd == nil {
		return false
	}
	ready, err := pollOne(p.fd, unix.POLLIN)
	return err == nil && ready == 0
}

func (p Peer) close() {
	if p.fd != nil {
		p.fd.Close()
	}
	if p.done != nil {
		p.done()
	}
}

// peerOf asks the kernel who is at the other end of conn. The returned peer
// was alive after its pidfd was open, so the pidfd is the peer's and not that
// of a process that got its pid later.
func peerOf(conn *net.UnixConn) (p Peer, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return p, fmt.Errorf("look at the peer: %w", err)
	}
	var sockErr error
	err = raw.Control(func(fd uintptr) { p, sockErr = peerOfSocket(int(fd)) })
	if err = errors.Join(err, sockErr); err != nil {
		return p, fmt.Errorf("look at the peer: %w", err)
	}
	if !p.Alive() {
		p.close()
		p.fd = nil
		return p, fmt.Errorf("look at the peer: pid %d: %w", p.Pid, ErrPeerGone)
	}
	return p, nil
}

// PeerUID is the kernel's word for the user at the other end of conn, who was
// still there.
func PeerUID(conn *net.UnixConn) (uint32, error) {
	p, err := peerOf(conn)
	p.close()
	return p.Uid, err
}

// Neighbour returns an error unless the process at the other end of conn is in the
// same pid and user namespace as this one: a container that was given the socket's
// directory is root, too, and is not. One that shares the host's pid namespace is.
func Neighbour(conn *net.UnixConn) error {
	p, err := peerOf(conn)
	defer p.close()
	if err != nil {
		return err
	}
	for _, kind := range []string{"pid", "user"} {
		own, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			return fmt.Errorf("look at the peer: %w", err)
		}
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.Pid, kind))
		if err != nil {
			return fmt.Errorf("look at the peer: %w", err)
		}
		if own != theirs {
			return fmt.Errorf("the peer (pid %d) is in another %s namespace, as a container is", p.Pid, kind)
		}
	}
	if !p.Alive() {
		return ErrPeerGone
	}
	return nil
}

func peerOfSocket(fd int) (Peer, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Peer{}, err
	}
	p := Peer{Pid: int(cred.Pid), Uid: cred.Uid, Gid: cred.Gid}
	if p.Pid <= 0 { // in a pid namespace that is not below ours
		return p, ErrPeerGone
	}
	// Since Linux 6.5 the socket itself holds on to the peer.
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err == nil {
		unix.CloseOnExec(pidfd) // the kernel sets it too
		p.fd = os.NewFile(uintptr(pidfd), "pidfd")
		return p, nil
	}
	if !errors.Is(err, unix.ENOPROTOOPT) {
		return p, fmt.Errorf("%w: %w", ErrPeerGone, err)
	}
	pidfd, err = unix.PidfdOpen(p.Pid, 0)
	if err != nil {
		return p, fmt.Errorf("%w: %w", ErrPeerGone, err)
	}
	p.fd = os.NewFile(uintptr(pidfd), "pidfd")
	// The pid may have been given away between connect and here. It was not
	// if the other end is still open now: the hook holds it until it ends.
	ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}, 0)
	if err != nil || ready != 0 {
		p.close()
		p.fd = nil
		return p, ErrPeerGone
	}
	return p, nil
}

// watch returns a channel that is closed when the peer closes its end. One that
// only says that it has nothing more to send still waits. stop ends the watching
// and must be called before conn is closed.
func watch(conn *net.UnixConn) (gone <-chan struct{}, stop func()) {
	left, done := make(chan struct{}), make(chan struct{})
	_ = conn.SetReadDeadline(time.Time{}) // a connection that is closed is found out by Read
	go func() {
		defer close(done)
		var b [1]byte
		if n, err := conn.Read(b[:]); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			return // stopped; or it says more than it should, and is still there
		}
		if up, err := connected(conn); err == nil && up {
			return
		}
		close(left)
	}()
	return left, func() {
		_ = conn.SetReadDeadline(time.Unix(1, 0))
		<-done
	}
}

// connected reports whether the other end of conn is open in one direction at
// least (unix(7) sockets have POLLHUP when both are shut).
func connected(conn *net.UnixConn) (up bool, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false, err
	}
	fds := []unix.PollFd{{}}
	var pollErr error
	err = raw.Control(func(fd uintptr) {
		fds[0].Fd = int32(fd)
		for {
			if _, pollErr = unix.Poll(fds, 0); pollErr != unix.EINTR {
				return
			}
		}
	})
	return fds[0].Revents&unix.POLLHUP == 0, errors.Join(err, pollErr)
}

func pollOne(f *os.File, events int16) (n int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var pollErr error
	err = raw.Control(func(fd uintptr) {
		for {
			n, pollErr = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, 0)
			if pollErr != unix.EINTR {
				return
			}
		}
	})
	return n, errors.Join(err, pollErr)
}
