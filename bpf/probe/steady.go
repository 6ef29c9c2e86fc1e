package probe

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"probity/runtime/image"
)

// A change time tells the bytes of a file only while nobody writes through a
// shared mapping: of all stores into a page, the first alone changes it. Who had
// a file mapped before it was read could change it back afterwards. So what a
// container may write is read with a read lease held (fcntl(2)), which the kernel
// gives only while nobody has the file open for writing, or mapped so. Whoever
// does so later begins with a store that changes the time.

// steady is a file that nobody can write, or a file of a layer, which no
// container can. It is read as the file.
type steady struct {
	f    *os.File
	own  bool  // it is a container's own
	left int64 // bytes until it is looked whether somebody wants to write it

	stop, stopped chan struct{} // of giveWay
}

// steadyPart is how much is read of a file while somebody may wait to write it.
const steadyPart = 4 << 20

// errUnsteady reports that a file could be written while it was read.
var errUnsteady = errors.New("its bytes are not proven")

// steadyFor is how long somebody may wait to write a file that is read. To make out
// what is in one may take seconds, and on a volume another container may wait.
const steadyFor = 10 * time.Millisecond

// hold makes a file that was opened for reading steady until free, which comes
// before it is closed, or until somebody wants to write it. It is errUnsteady where
// that is not possible.
func hold(m image.Match, f *os.File) (*steady, error) {
	s := &steady{f: f, own: m.Writable()}
	if !s.own {
		return s, nil
	}
	// Nobody need be told at once that somebody waits: it is asked. Of the
	// signals that do nothing unasked, SIGURG is one that Go takes for its own.
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETSIG, int(unix.SIGURG))
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	}
	if errors.Is(err, unix.EAGAIN) {
		err = errWritten
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", m.Path, errUnsteady, err)
	}
	s.stop, s.stopped = make(chan struct{}), make(chan struct{})
	go s.giveWay()
	return s, nil
}

// giveWay lets whoever wants to write the file do so: what is read from then on is
// no fact of it.
func (s *steady) giveWay() {
	defer close(s.stopped)
	look := time.NewTicker(steadyFor)
	defer look.Stop()
	for s.still() == nil {
		select {
		case <-s.stop:
			return
		case <-look.C:
		}
	}
	s.unlock()
}

// still returns nil if nobody can have written it since it was held.
func (s *steady) still() error {
	if !s.own {
		return nil
	}
	if kind, err := unix.FcntlInt(s.f.Fd(), unix.F_GETLEASE, 0); err != nil || kind != unix.F_RDLCK {
		return fmt.Errorf("read %s: %w: %w", s.f.Name(), errUnsteady, errWritten)
	}
	return nil
}

// free lets whoever wants to write it do so.
func (s *steady) free() {
	if s.own {
		close(s.stop)
		<-s.stopped
		s.unlock()
	}
}

func (s *steady) unlock() { _, _ = unix.FcntlInt(s.f.Fd(), unix.F_SETLEASE, unix.F_UNLCK) }

// Read reads on, and no further once somebody waits to write it.
func (s *steady) Read(b []byte) (int, error) {
	if s.left <= 0 {
		s.left = steadyPart
		if err := s.still(); err != nil {
			return 0, err
		}
	}
	n, err := s.f.Read(b)
	s.left -= int64(n)
	return n, err
}
