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

// OpenMounted opens what a container has at a path, below one of its mounts:
// root is its root directory, as that of process pid. The path must be free of
// symlinks, so that it leads through no other mount than the one that is found
// for it. Errors as of [OpenMapped].
func OpenMounted(pid int, root *os.File, path string) (*Mapped, error) {
	if filepath.Clean(path) != path || !filepath.IsAbs(path) {
		return nil, fmt.Errorf("open %q: not a clean absolute path", path)
	}
	var at *mount
	err := eachMount("/proc/"+strconv.Itoa(pid)+"/mountinfo", func(m *mount) bool {
		// A later line at the same point is mounted over the earlier one.
		if within(path, m.point) && (at == nil || len(m.point) >= len(at.point)) {
			found := *m
			at = &found
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("open %s in the container's root: %w", path, err)
	}
	origin, err := originAt(at, "its path")
	if err != nil {
		return nil, fmt.Errorf("open %s in the container's root: %w", path, err)
	}
	fd, err := openat2(int(root.Fd()), path, unix.O_PATH, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return nil, fmt.Errorf("open %s in the container's root: %w", path, err)
	}
	return newMapped(fd, path, origin)
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

// reopen opens a mapped file for reading.
func (m Match) reopen() (*os.File, error) {
	f, err := os.OpenFile(procFd(int(m.mapped.Fd())), os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
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
