package handoff

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Listener is a unix listener that owns its path: no other Listener of the
// machine has it, and Close removes it.
type Listener struct {
	*net.UnixListener
	path string
	lock *os.File
	keep bool // Close leaves the path

	once sync.Once
	err  error
}

// ErrInUse says that another agent listens on the path.
var ErrInUse = errors.New("another agent has it")

// Listen listens on path, which is replaced if an agent that was killed left
// it behind. System calls, in this order: the lock PATH.lock is taken, so that
// a stale socket and a live one can be told apart; the socket is bound to
// PATH.new and gets its mode; it is renamed to path. So path is never absent
// while it is being replaced, never has another mode, and is listened on
// whenever it is there. Whatever is not a socket is left alone and an error.
//
// The directory must exist and belong to the agent. A zero mode is 0600.
func Listen(path string, mode os.FileMode) (_ *Listener, err error) {
	if mode == 0 {
		mode = 0o600
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("listen on %s: %w", path, err)
		}
	}()
	lock, err := lockFor(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	temp := path + ".new"
	for _, p := range []string{path, temp} {
		if err := socketOrAbsent(p); err != nil {
			return nil, err
		}
	}
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the name it knows is not the one it has
	if err := os.Chmod(temp, mode); err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(temp))
	}
	if err := os.Rename(temp, path); err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(temp))
	}
	return &Listener{UnixListener: l, path: path, lock: lock}, nil
}

// lockFor takes the lock of a path.
func lockFor(path string) (*os.File, error) {
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// Descriptors are those of the listener, and of what there is at its path, for somebody
// to hold while no process listens: see [Inherit]. They are the caller's to close. From
// then on Close leaves the path.
//
// They are no files: to take one's descriptor would have the listener block, also the
// one that serves (os.File.Fd), and then nothing ends its Accept.
func (l *Listener) Descriptors() (fds []int, err error) {
	at, err := unix.Open(l.path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", l.path, err)
	}
	own := -1
	raw, err := l.UnixListener.SyscallConn()
	if err == nil {
		var dupErr error
		err = raw.Control(func(fd uintptr) { own, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3) })
		err = errors.Join(err, dupErr)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("duplicate the listener on %s: %w", l.path, err), unix.Close(at))
	}
	l.keep = true
	return []int{own, at}, nil
}

// Inherit goes on with a listener of which somebody has held the Descriptors, in any order:
// who has connected meanwhile is served. It is an error if that is not what path leads
// to any more. The files are taken over, also with an error.
func Inherit(files []*os.File, path string) (_ *Listener, err error) {
	defer func() {
		for _, f := range files {
			f.Close()
		}
		if err != nil {
			err = fmt.Errorf("listen on %s, which was held: %w", path, err)
		}
	}()
	var socket, at *os.File
	for _, f := range files {
		if is, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && is == 1 {
			socket = f
		} else {
			at = f
		}
	}
	if socket == nil || at == nil || len(files) != 2 {
		return nil, errors.New("want a socket that is listened on, and what is at its path")
	}
	lock, err := lockFor(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	var was, is unix.Stat_t
	if err := errors.Join(unix.Fstat(int(at.Fd()), &was), unix.Lstat(path, &is)); err != nil {
		return nil, err
	}
	if was.Dev != is.Dev || was.Ino != is.Ino || is.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, errors.New("something else is there now")
	}
	l, err := net.FileListener(socket)
	if err != nil {
		return nil, err
	}
	ul, ok := l.(*net.UnixListener)
	if !ok || ul.Addr().String() != path+".new" { // as Listen bound it
		return nil, errors.Join(fmt.Errorf("it is a listener on %.200q", l.Addr()), l.Close())
	}
	ul.SetUnlinkOnClose(false)
	return &Listener{UnixListener: ul, path: path, lock: lock, keep: true}, nil
}

func socketOrAbsent(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is not a socket (%s)", path, st.Mode())
	}
	return nil
}

// Close stops listening and removes the path, unless somebody holds the Descriptors. The lock file stays: removing it
// would let two agents hold locks on two files of one name.
func (l *Listener) Close() error {
	l.once.Do(func() {
		var removed error
		if !l.keep {
			removed = os.Remove(l.path)
		}
		l.err = errors.Join(removed, l.UnixListener.Close(), l.lock.Close())
	})
	return l.err
}
