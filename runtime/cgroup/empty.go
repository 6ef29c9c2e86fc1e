package cgroup

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel tells a waiter of every change of cgroup.events, but at most every
// 10 ms per cgroup: it puts a change off, and drops what it has put off when
// the cgroup is removed meanwhile (kernel/cgroup/cgroup.c, cgroup_file_notify
// and cgroup_rm_file; seen with cgroups that lived for less than 10 ms). What
// can be dropped comes at most 10 ms after a notice, or after the beginning of
// the wait, and the removal at most 10 ms later: so settle after each of them
// the waiter looks once unasked. The backstop is for kernels that we have not
// read.
const (
	settle   = 25 * time.Millisecond
	backstop = 5 * time.Second
)

// Populated reports whether any process lives in the cgroup or below it. A
// cgroup that is gone has none.
func (fs *FS) Populated(path string) (bool, error) { return fs.PopulatedID(path, 0) }

// PopulatedID is Populated for the cgroup with this id: another one at the same
// path, of a container started again, counts as gone. Id 0 is any.
func (fs *FS) PopulatedID(path string, id uint64) (bool, error) {
	f, err := fs.events(path, id)
	if errors.Is(err, ErrGone) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	return populated(f, path)
}

// WaitEmpty returns nil once no process lives in the cgroup or below it, or it
// is gone, and ctx's error if that comes first. It holds one descriptor, which
// the Go runtime polls: it occupies no thread.
func (fs *FS) WaitEmpty(ctx context.Context, path string) error { return fs.WaitEmptyID(ctx, path, 0) }

// WaitEmptyID is WaitEmpty for the cgroup with this id; see [FS.PopulatedID].
func (fs *FS) WaitEmptyID(ctx context.Context, path string, id uint64) error {
	f, err := fs.events(path, id)
	if errors.Is(err, ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch cgroup %s: %w", path, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	unasked := settle
	for {
		if err := f.SetReadDeadline(time.Now().Add(unasked)); err != nil {
			return fmt.Errorf("watch cgroup %s: %w", path, err)
		}
		// After the deadline is set: a cancellation either is seen here or sets
		// its own deadline after ours.
		if err := ctx.Err(); err != nil {
			return err
		}
		looks := 0
		alive, lookErr := true, error(nil)
		err := conn.Read(func(uintptr) bool {
			looks++
			alive, lookErr = populated(f, path)
			// A second look means that the kernel called; false waits for that.
			return !alive || lookErr != nil || looks > 1
		})
		switch {
		case lookErr != nil:
			return lookErr
		case !alive:
			return nil
		case err == nil:
			unasked = settle
		case errors.Is(err, os.ErrDeadlineExceeded):
			unasked = cmp.Or(fs.backstop, backstop)
		default:
			return fmt.Errorf("watch cgroup %s: %w", path, err)
		}
	}
}

// events opens cgroup.events of the cgroup with the id, for the poller.
func (fs *FS) events(path string, id uint64) (*os.File, error) {
	if path == "/" {
		return nil, errors.New("watch cgroup /: the root cgroup has no cgroup.events")
	}
	dir, err := fs.openID(path, id)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, err := openat2(dir, "cgroup.events", unix.O_RDONLY|unix.O_NONBLOCK)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("cgroup %s: %w", path, ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("open cgroup.events of %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), strings.TrimSuffix(fs.Root, "/")+path+"/cgroup.events"), nil
}

// openID opens the directory of the cgroup with the id. Where this process sees only a
// part of the hierarchy, as in a cgroup namespace of its own, a path that another one
// saw may lead nowhere, or elsewhere, and the cgroup be there all the same: the kernel
// is asked by its id then, before it is called gone.
func (fs *FS) openID(path string, id uint64) (int, error) {
	dir, err := fs.open(path, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil && id != 0 {
		var now uint64
		if now, err = inode(dir, path); err == nil && now != id {
			err = fmt.Errorf("cgroup %s: %w: it is %d now, not %d", path, ErrGone, now, id)
		}
		if err != nil {
			unix.Close(dir)
		}
	}
	if id == 0 || !errors.Is(err, ErrGone) {
		return dir, err
	}
	if root, rerr := fs.ID("/"); rerr == nil && root == RootID {
		return -1, err
	}
	return fs.openHandle(path, id)
}

// openHandle opens the directory of a cgroup by its id alone, wherever it is. It needs
// CAP_DAC_READ_SEARCH (open_by_handle_at(2)).
func (fs *FS) openHandle(path string, id uint64) (int, error) {
	root, err := unix.Open(fs.Root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the cgroup mount %s: %w", fs.Root, err)
	}
	defer unix.Close(root)
	const kernfs = 0xfe // FILEID_KERNFS, linux/exportfs.h
	handle := unix.NewFileHandle(kernfs, binary.NativeEndian.AppendUint64(nil, id))
	dir, err := unix.OpenByHandleAt(root, handle, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
	switch {
	case errors.Is(err, unix.ESTALE):
		return -1, fmt.Errorf("cgroup %s: %w: there is none with id %d", path, ErrGone, id)
	case err != nil:
		return -1, fmt.Errorf("cgroup %s is not seen from here, and could not be asked for by its id %d: %w", path, id, err)
	}
	return dir, nil
}

// populated reads the file from its beginning. It uses pread through the raw
// descriptor, because the caller may hold the file's read lock.
func populated(f *os.File, path string) (bool, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return false, fmt.Errorf("read cgroup.events of %s: %w", path, err)
	}
	var buf [256]byte // two short lines today
	var n int
	var rerr error
	err = conn.Control(func(fd uintptr) {
		for {
			n, rerr = syscall.Pread(int(fd), buf[:], 0)
			if rerr != syscall.EINTR {
				return
			}
		}
	})
	switch {
	case errors.Is(rerr, syscall.ENODEV): // removed while we hold it open
		return false, nil
	case err == nil:
		err = rerr
	}
	if err == nil && n == len(buf) {
		err = fmt.Errorf("longer than %d bytes", len(buf)-1)
	}
	if err != nil {
		return false, fmt.Errorf("read cgroup.events of %s: %w", path, err)
	}
	alive, err := parseEvents(buf[:n])
	if err != nil {
		return false, fmt.Errorf("cgroup %s: %w", path, err)
	}
	return alive, nil
}
