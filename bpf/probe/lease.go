package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"

	"probity/runtime/image"
)

// leases guards files that their container may write.
//
// The kernel reads a probed instruction once, and has every later process run
// what it read then: a file that is written in place while it is probed runs
// the old instruction amid new ones (seen: a segmentation fault). So the agent
// takes a read lease (fcntl(2)): who opens the file for writing, or truncates
// it, waits until the agent has detached and given the lease back, some tens of
// milliseconds, and no longer than /proc/sys/fs/lease-break-time if the agent
// is stuck; the kernel gives it back when the agent dies. An open with
// O_NONBLOCK fails with EWOULDBLOCK meanwhile.
type leases struct {
	mu   sync.Mutex
	held map[*os.File]lease
}

// lease is of a file, for a container.
type lease struct {
	file *sharedFile
	by   *Handle
}

// Bounds on the files of their own that containers have armed. Each is held open
// twice, mapped by the agent, and has links of its own; how many there are is the
// containers' choice, who may execute as many copies as they like.
const (
	maxOwn    = 512
	maxOwnAll = 8192 // of all containers together
)

// errOwn reports that there are too many of them.
var errOwn = errors.New("too many files that containers may write are armed")

// room returns nil if one more file of its own may be armed for a container
// that has so many. With mu held.
func (l *leases) room(has int) error {
	switch all := len(l.held); {
	case has >= maxOwn:
		return fmt.Errorf("%w: %d of this container", errOwn, has)
	case all >= maxOwnAll:
		return fmt.Errorf("%w: %d of all containers", errOwn, all)
	}
	return nil
}

// own counts the leases that a container has.
func (h *Handle) own() (n int) {
	for i := range h.held {
		if h.held[i].lease != nil {
			n++
		}
	}
	return n
}

// errWritten reports that a file is open for writing, or that it was about to
// be.
var errWritten = errors.New("it is open for writing")

// take guards the file of a match for as long as it is attached, for a container.
// It is errWritten if somebody may write it now, and an error if it is not as it was
// when it was read.
func (l *leases) take(m image.Match, s *sharedFile, by *Handle) (*os.File, error) {
	f, err := m.Open()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		l.held = map[*os.File]lease{}
	}
	if err := l.room(by.own()); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		f.Close()
		if errors.Is(err, unix.EAGAIN) {
			err = errWritten
		}
		return nil, fmt.Errorf("guard %s against being written: %w", m.Path, err)
	}
	if err := unchanged(f, s.stamp); err != nil { // until now it could be written, or replaced
		f.Close()
		return nil, err
	}
	l.held[f] = lease{s, by}
	return f, nil
}

// drop gives a lease back. It is idempotent, and takes nil.
func (l *leases) drop(f *os.File) error {
	if f == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.held[f]; !ok {
		return nil
	}
	delete(l.held, f)
	return f.Close()
}

// broken lists what somebody waits for, by container.
func (l *leases) broken() map[*Handle]map[*os.File]*sharedFile {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[*Handle]map[*os.File]*sharedFile{}
	for f, s := range l.held {
		if kind, err := unix.FcntlInt(f.Fd(), unix.F_GETLEASE, 0); err != nil || kind != unix.F_RDLCK {
			if out[s.by] == nil {
				out[s.by] = map[*os.File]*sharedFile{}
			}
			out[s.by][f] = s.file
		}
	}
	return out
}

// Guard detaches from files that somebody is about to write, before they do.
// It returns when ctx ends. Without it their writers wait for as long as the
// kernel lets them.
//
// Containers do not wait for each other: one may have hundreds of files of its own
// written at once, each of which takes tens of milliseconds to detach from.
func (e *Engine) Guard(ctx context.Context) error {
	told := make(chan os.Signal, 1) // one that waits stands for all
	signal.Notify(told, unix.SIGIO)
	defer signal.Stop(told)
	done, under := make(chan *Handle), map[*Handle]bool{}
	defer func() {
		for range under {
			<-done
		}
	}()
	for {
		for h, files := range e.leases.broken() {
			if !under[h] {
				under[h] = true
				go func() { e.giveBack(files); done <- h }()
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-told:
		case h := <-done: // more of its files may be waited for by now
			delete(under, h)
		}
	}
}

// giveBack detaches from the files of one container and gives their leases back.
func (e *Engine) giveBack(files map[*os.File]*sharedFile) {
	free := make(chan struct{}, closers)
	var work sync.WaitGroup
	for f, s := range files {
		free <- struct{}{}
		work.Go(func() {
			defer func() { <-free }()
			e.forget(s, errWritten)
			if err := e.leases.drop(f); err != nil {
				e.cfg.Log.Warn("give back a lease", "file", s.path, "err", err)
			}
		})
	}
	work.Wait()
}
