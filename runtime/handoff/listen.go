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
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, err
	}
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

// Close stops listening and removes the path. The lock file stays: removing it
// would let two agents hold locks on two files of one name.
func (l *Listener) Close() error {
	l.once.Do(func() {
		l.err = errors.Join(os.Remove(l.path), l.UnixListener.Close(), l.lock.Close())
	})
	return l.err
}
