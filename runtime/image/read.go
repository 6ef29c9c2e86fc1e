package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// stamp changes when a file is replaced or written.
type stamp struct {
	ino   uint64
	size  int64
	mtime unix.Timespec
}

// readBelow reads a file of a storage directory: regular, no longer than limit,
// and owned by root or by us, since what it says will be signed. with is called
// before reading; if it returns false, nothing is read.
func readBelow(dirs *localDirs, root, rel string, limit int64, with func(stamp) bool) ([]byte, error) {
	dir, err := dirs.open(root)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	name := root + "/" + rel
	// Podman mounts its own store onto itself: no RESOLVE_NO_XDEV here.
	fd, err := openat2(dir, rel, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, beneath&^unix.RESOLVE_NO_XDEV)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("read %s: %w", name, ErrNotRegular)
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return nil, fmt.Errorf("read %s: it belongs to uid %d, who could write anything into it", name, st.Uid)
	case st.Size > limit:
		return nil, fmt.Errorf("read %s: %d bytes, at most %d are read", name, st.Size, limit)
	case with != nil && !with(stamp{st.Ino, st.Size, st.Mtim}):
		return nil, nil
	}
	b := make([]byte, 0, st.Size+1)
	for {
		n, err := f.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if errors.Is(err, io.EOF) {
			return b, nil
		}
		if err != nil {
			return nil, err
		}
		if int64(len(b)) > limit {
			return nil, fmt.Errorf("read %s: it grew past %d bytes", name, limit)
		}
		if len(b) == cap(b) {
			b = slices.Grow(b, 4096)
		}
	}
}
