package image

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Where a match lies, as evidence spells it.
const (
	FromLayer = "imageLayer"
	FromUpper = "upper"
)

// The kinds of match.
const (
	Regular = "regular"
	Special = "special" // FIFO, socket, device: it is there, but it is no program
)

// Match is a file of a container that a pattern matched.
type Match struct {
	Path   string // in the container, without symlinks
	Layer  Layer  // that holds it; of an upper match, Dir is the upper directory
	Rel    string // below Layer.Dir
	Kind   string // Regular or Special
	Origin string // FromLayer or FromUpper
	Size   int64  // bytes, of a regular file, as of the search

	known  bool     // Layer.Dir was found to be local
	mapped *os.File // of a mapped file, which has no Layer
}

// Writable reports whether somebody may write the file while it is armed: the container,
// or the user whose runtime has made its layer.
func (m Match) Writable() bool { return m.Origin != FromLayer || m.Layer.Owner != 0 }

// Open opens the file through its layer's own directory, which no mount of the
// container pins. The lookup stays below that directory, on its mount and off
// symlinks; nothing but a regular file is opened at all, so that a FIFO or a
// device in an image is never touched. A mapped file is opened again. The error wraps [ErrNotRegular] or
// [ErrRemote] where that is why.
func (m Match) Open() (*os.File, error) {
	if m.mapped != nil {
		return m.reopen()
	}
	dir, err := m.Layer.open(m.known)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", m.Path, err)
	}
	defer unix.Close(dir)
	f, _, err := openRegular(dir, m.Layer, m.Rel)
	return f, err
}

func procFd(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// openPath opens rel by path only: no driver and no peer of a FIFO notices.
func openPath(dir int, rel string) (int, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := openat2(dir, rel, unix.O_PATH|unix.O_NOFOLLOW,
		unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS|unix.RESOLVE_NO_XDEV)
	if err != nil {
		return -1, st, err
	}
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

// metadataOnly reports whether a file has been copied up without its data
// (overlayfs's metacopy), and whether the data is under another name.
func metadataOnly(fd int, userxattr bool) (yes, redirected bool) {
	ns := "trusted.overlay."
	if userxattr {
		ns = "user.overlay."
	}
	if _, err := unix.Getxattr(procFd(fd), ns+"metacopy", nil); err != nil {
		return false, false
	}
	_, err := unix.Getxattr(procFd(fd), ns+"redirect", nil)
	return true, err == nil
}
