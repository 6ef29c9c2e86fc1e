package sign

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// placeWhole gives the file its name when its content is durable: a crash before
// that leaves nothing of a private key behind, and one after it no second name.
func placeWhole(dir, name string, b []byte, mode os.FileMode) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	switch {
	// Kernels and file systems differ in how they say that they do not know it.
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EISDIR), errors.Is(err, unix.EINVAL):
		return errNoName
	case err != nil:
		return &os.PathError{Op: "create a file in", Path: dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), filepath.Join(dir, name))
	defer f.Close()
	_, err = f.Write(b)
	if err := errors.Join(err, f.Chmod(mode), f.Sync()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	// By way of /proc: by the descriptor alone it wants CAP_DAC_READ_SEARCH.
	from := fmt.Sprintf("/proc/self/fd/%d", fd)
	switch err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, f.Name(), unix.AT_SYMLINK_FOLLOW); {
	case errors.Is(err, unix.ENOENT): // no /proc, or dir is gone, which the other way says
		return errNoName
	case err != nil:
		return &os.LinkError{Op: "link", Old: from, New: f.Name(), Err: err}
	}
	return syncDir(dir)
}
