package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/bmatcuk/doublestar/v4"
	"golang.org/x/sys/unix"
)

// Origins of files that no layer holds.
const (
	FromVolume = "volume"
	FromTmpfs  = "tmpfs"
	FromMemfd  = "memfd"
)

// Mapped is a file that a process of a container runs and that lies neither in
// the image nor in the writable layer: on a volume, on a tmpfs, or in a memfd. It is held open, because there may be no name for it; who made it
// closes it.
type Mapped struct {
	Match
	file *os.File
}

// OpenMapped opens the file behind link, the process's own link to what it has
// mapped (/proc/PID/map_files/..., which needs CAP_SYS_ADMIN), path being what
// it is called there and dev its device, both as /proc/PID/maps shows them.
//
// It is [ErrRemote] where opening the file could block for ever, and
// [ErrInRoot] where the file is part of the container's root, which is better
// reached through its layers: a root that is held by a mapped file cannot be
// unmounted.
func OpenMapped(pid int, link, path string, dev uint64) (*Mapped, error) {
	origin, err := originOf(pid, dev)
	if err != nil {
		return nil, fmt.Errorf("open %s of process %d: %w", path, pid, err)
	}
	return openLink(pid, link, path, origin)
}

// HoldMapped is [OpenMapped] for a file that is open already, by path only or
// not; that one stays its owner's.
func HoldMapped(pid int, f *os.File, path string, dev uint64) (*Mapped, error) {
	origin, err := originOf(pid, dev)
	if err != nil {
		return nil, fmt.Errorf("open %s of process %d: %w", path, pid, err)
	}
	return again(f, path, origin)
}

// ReadMapped opens what [OpenMapped] does for reading, also where it is part of
// the container's root: for who closes it at once.
func ReadMapped(pid int, link, path string, dev uint64) (*os.File, error) {
	origin, err := originOf(pid, dev)
	if err != nil && !errors.Is(err, ErrInRoot) {
		return nil, fmt.Errorf("open %s of process %d: %w", path, pid, err)
	}
	m, err := openLink(pid, link, path, origin)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	return m.reopen()
}

func openLink(pid int, link, path, origin string) (*Mapped, error) {
	// By path only at first: no driver and no peer of a FIFO notices.
	fd, err := unix.Open(link, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s of process %d: %w", path, pid, err)
	}
	return newMapped(fd, path, origin)
}

// Resolve opens by path only what a container has at an absolute path: root is
// its root directory, as that of process pid. Where a mount of the container may
// hang, symlinks are not followed, since nobody knows beforehand where they lead,
// and a path below such a mount is [ErrRemote].
func Resolve(pid int, root *os.File, path string) (*os.File, error) {
	resolve := uint64(unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS)
	var at *mount
	err := eachMount("/proc/"+strconv.Itoa(pid)+"/mountinfo", func(m *mount) bool {
		if !localType(m.fstype) && !pseudoTypes[m.fstype] || m.fstype == "autofs" {
			resolve |= unix.RESOLVE_NO_SYMLINKS
		}
		// A later line at the same point is mounted over the earlier one.
		if within(filepath.Clean(path), m.point) && (at == nil || len(m.point) >= len(at.point)) {
			found := *m
			at = &found
		}
		return true
	})
	if err == nil && resolve&unix.RESOLVE_NO_SYMLINKS != 0 {
		// "x/.." leads elsewhere than it looks if x is a mount.
		if filepath.Clean(path) != path {
			err = fmt.Errorf("%w: some mount may hang, and the path is not clean", ErrRemote)
		} else if _, err = originAt(at, "its path"); errors.Is(err, ErrInRoot) {
			err = nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open %s in the container's root: %w", path, err)
	}
	fd, err := openat2(int(root.Fd()), path, unix.O_PATH, resolve)
	if err != nil {
		return nil, fmt.Errorf("open %s in the container's root: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Peek is a file of the container's root, opened by path only, to be read: what
// is armed of it must be reached through its layer.
func Peek(f *os.File, path string) (*Mapped, error) { return again(f, path, FromUpper) }

func again(f *os.File, path, origin string) (*Mapped, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return newMapped(fd, path, origin)
}

// DeviceOf is the device of the mount through which process pid has a file open:
// what stat(2) shows of a file of an overlay may be another one.
func DeviceOf(pid int, f *os.File) (dev uint64, err error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil {
		return 0, fmt.Errorf("look at %s: %w", f.Name(), err)
	}
	err = fmt.Errorf("look at %s: its mount is not process %d's", f.Name(), pid)
	if rerr := eachMount("/proc/"+strconv.Itoa(pid)+"/mountinfo", func(m *mount) bool {
		var major, minor uint32
		if uint64(m.id) != st.Mnt_id {
			return true
		}
		if _, err = fmt.Sscanf(m.dev, "%d:%d", &major, &minor); err == nil {
			dev = unix.Mkdev(major, minor)
		}
		return false
	}); rerr != nil {
		return 0, rerr
	}
	return dev, err
}

// newMapped takes over fd, which was opened by path only.
func newMapped(fd int, path, origin string) (*Mapped, error) {
	f := os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || kindOfStat(&st) != regular {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", path, ErrNotRegular)
	}
	return &Mapped{Match{Path: path, Kind: Regular, Origin: origin, Size: st.Size, mapped: f}, f}, nil
}

// Inode is the file's number. No file system asks its server for that.
func (m *Mapped) Inode() (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(m.file.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st); err != nil {
		return 0, fmt.Errorf("look at %s: %w", m.Path, err)
	}
	return st.Ino, nil
}

// Close lets go of the file. It is idempotent.
func (m *Mapped) Close() error {
	if err := m.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Mapped reports whether the match is of a file that was opened by OpenMapped:
// it has no place in a layer.
func (m Match) Mapped() bool { return m.mapped != nil }

// reopen opens a mapped file for reading. Its number names another file once it
// is closed, so it is kept from being closed meanwhile; of one that was closed it
// is [os.ErrClosed].
func (m Match) reopen() (f *os.File, err error) {
	conn, err := m.mapped.SyscallConn()
	if err == nil {
		closed := conn.Control(func(fd uintptr) {
			f, err = os.OpenFile(procFd(int(fd)), os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		})
		if closed != nil {
			err = os.ErrClosed
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open %s for reading: %w", m.Path, err)
	}
	return f, nil
}

// originOf says where a process's file on a device lies. It looks at mount
// tables only: even a stat could hang.
func originOf(pid int, dev uint64) (string, error) {
	want := strconv.Itoa(int(unix.Major(dev))) + ":" + strconv.Itoa(int(unix.Minor(dev)))
	var at *mount
	for _, table := range []string{"/proc/" + strconv.Itoa(pid) + "/mountinfo", "/proc/self/mountinfo"} {
		err := eachMount(table, func(m *mount) bool {
			// A device that is mounted at the root as well is the root's.
			if m.dev == want && (at == nil || m.point == "/") {
				found := *m
				at = &found
			}
			return at == nil || at.point != "/"
		})
		if err != nil {
			return "", err
		}
		if at != nil {
			break
		}
		if memfds, err := memfdDevice(); err == nil && dev == memfds {
			return FromMemfd, nil
		}
	}
	return originAt(at, "its device "+want)
}

// originAt says what a file on a mount is; what names how the mount was found.
func originAt(at *mount, what string) (string, error) {
	switch {
	case at == nil:
		return "", fmt.Errorf("%w: no mount has %s", ErrRemote, what)
	case !localType(at.fstype):
		return "", fmt.Errorf("%w: it is on %s", ErrRemote, at.fstype)
	case at.fstype == "overlay" && !ours(at.dev):
		// Who has a user namespace can stack one on a FUSE file system.
		return "", fmt.Errorf("%w: it is on an overlay of which nobody knows what it is made of", ErrRemote)
	case at.point == "/":
		return "", ErrInRoot
	case at.fstype == "tmpfs" || at.fstype == "ramfs":
		return FromTmpfs, nil
	}
	return FromVolume, nil
}

// LocalDevice returns nil if files of process pid that lie on that device, as
// /proc/PID/maps shows it, can be read without the risk to wait for ever, else
// an error that wraps [ErrRemote].
func LocalDevice(pid int, dev uint64) error {
	if _, err := originOf(pid, dev); err != nil && !errors.Is(err, ErrInRoot) {
		return err
	}
	return nil
}

// memfdDevice is the device of the file system that all memfds are on.
func memfdDevice() (uint64, error) {
	fd, err := unix.MemfdCreate("probity", unix.MFD_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("make a memfd: %w", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("stat a memfd: %w", err)
	}
	return st.Dev, nil
}

// Glob is [View.Glob] for this file alone.
func (m *Mapped) Glob(pattern string) (matches []Match, complete bool, why string) {
	ok, err := doublestar.Match(pattern, m.Path)
	switch {
	case err != nil:
		return nil, false, err.Error()
	case ok:
		matches = []Match{m.Match}
	}
	return matches, true, ""
}
