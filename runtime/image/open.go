package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotRegular: what is there is not a regular file (any more).
	ErrNotRegular = errors.New("not a regular file")
	// ErrRemote: the file system may block for ever, or is not known not to.
	ErrRemote = errors.New("not on a local file system")
	// ErrInRoot: the file is part of the container's root file system.
	ErrInRoot = errors.New("in the container's root file system")
)

// localTypes are the file systems that answer from this machine. FUSE and
// network file systems can leave a reader hanging for ever.
var localTypes = []string{
	"bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "iso9660", "jfs", "nilfs2", "overlay", "ramfs",
	"rootfs", "squashfs", "tmpfs", "xfs", "zfs",
}

func localType(fstype string) bool { return slices.Contains(localTypes, fstype) }

// localPath says whether a clean absolute path lies on a local file system. It
// reads only the mount table: even a stat could hang.
func localPath(path string) error {
	best, fstype := -1, ""
	err := eachMount("/proc/self/mountinfo", func(m *mount) bool {
		// A later line at the same point is mounted over the earlier one.
		if len(m.point) >= best && within(path, m.point) {
			best, fstype = len(m.point), m.fstype
		}
		return true
	})
	switch {
	case err != nil:
		return err
	case best < 0:
		return fmt.Errorf("%w: no mount holds %s", ErrRemote, path)
	case !localType(fstype):
		return fmt.Errorf("%w: %s is on %s", ErrRemote, path, fstype)
	}
	return nil
}

// within reports whether path is dir or lies below it; both are clean.
func within(path, dir string) bool {
	return dir == "/" || path == dir || strings.HasPrefix(path, dir) && path[len(dir)] == '/'
}

// beneath keeps a lookup inside the directory that it starts from, on the same
// mount, and off symlinks.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

func openat2(dir int, rel string, flags, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve}
	for tries := 0; ; tries++ {
		fd, err := unix.Openat2(dir, rel, &how)
		// EAGAIN: a rename somewhere raced with the lookup (openat2(2)).
		if err == unix.EINTR || err == unix.EAGAIN && tries < 64 {
			continue
		}
		return fd, err
	}
}

// openDir opens a directory of the host for lookups below it. Unless known, it
// is first made sure that opening cannot hang.
func openDir(dir string, known bool) (int, error) {
	if !known {
		var err error
		if dir, err = canonical(dir); err != nil {
			return -1, err
		}
	}
	fd, err := openat2(unix.AT_FDCWD, dir, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS)
	if err == unix.ELOOP && known { // an administrator linked the store elsewhere
		return openDir(dir, false)
	}
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return fd, nil
}

// canonical returns dir without symlinks, if it lies on a local file system.
func canonical(dir string) (string, error) {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir {
		return "", fmt.Errorf("open %q: not a clean absolute path", dir)
	}
	if err := localPath(dir); err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil || real == dir {
		return real, err
	}
	return real, localPath(real)
}

// localDirs opens directories of stores. The mount table of a busy host is
// long, so it is read once for the directory that holds all layers of a store:
// a lookup from there that enters no other mount stays on its file system. The
// zero value is ready to use.
type localDirs struct {
	mu    sync.Mutex
	known map[string]string // canonical path, by path
}

// maxLocal bounds what is remembered.
const maxLocal = 1 << 14

func (l *localDirs) open(dir string) (int, error) {
	if base := twoUp(dir); base != "" && base != "/" {
		if real, err := l.local(base); err == nil {
			from, err := openDir(real, true)
			if err != nil {
				return -1, err
			}
			fd, err := openat2(from, dir[len(base)+1:], unix.O_PATH|unix.O_DIRECTORY, beneath)
			unix.Close(from)
			if err == nil {
				return fd, nil
			}
			if err != unix.EXDEV && err != unix.ELOOP {
				return -1, &os.PathError{Op: "open", Path: dir, Err: err}
			}
		}
	}
	real, err := l.local(dir)
	if err != nil {
		return -1, err
	}
	return openDir(real, true)
}

func (l *localDirs) local(dir string) (string, error) {
	l.mu.Lock()
	real, ok := l.known[dir]
	l.mu.Unlock()
	if ok {
		return real, nil
	}
	real, err := canonical(dir)
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known == nil || len(l.known) >= maxLocal {
		l.known = map[string]string{}
	}
	l.known[dir] = real
	return real, nil
}

// twoUp returns the directory that holds the layers of a store, from one of
// them: .../overlay/ID/diff, .../snapshots/ID/fs.
func twoUp(dir string) string {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir {
		return ""
	}
	return filepath.Dir(filepath.Dir(dir))
}
