package oci

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const maxLinks = 40 // as the kernel has it (path_resolution(7))

// openTrusted opens a directory that nobody but root, or this process's own
// user, could have put there: every directory on the way is theirs and is
// writable by nobody else (or sticky, like /tmp), and so is every symlink. No
// directory is entered before it was looked at. The file's name is the path
// without symlinks; it has been opened with O_PATH.
func openTrusted(path string) (*os.File, error) {
	if !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("%q is not absolute", path)
	}
	dir, err := openDir(unix.AT_FDCWD, "/")
	if err != nil {
		return nil, err
	}
	rest := split(path)
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			unix.Close(dir)
			return nil, fmt.Errorf("open %s, at %q: %w", path, name, err)
		}
		target, err := trusted(fd)
		switch {
		case err != nil:
			err = fmt.Errorf("open %s, at %q: %w", path, name, err)
		case target == "":
			unix.Close(dir)
			dir = fd
			continue
		case links >= maxLinks:
			err = fmt.Errorf("open %s: %w", path, unix.ELOOP)
		}
		unix.Close(fd)
		if err != nil {
			unix.Close(dir)
			return nil, err
		}
		links++
		rest = append(split(target), rest...)
		if strings.HasPrefix(target, "/") {
			unix.Close(dir)
			if dir, err = openDir(unix.AT_FDCWD, "/"); err != nil {
				return nil, err
			}
		}
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir))
	if err != nil {
		unix.Close(dir)
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(dir), name), nil
}

func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// openDir opens a directory with O_PATH and looks at it.
func openDir(at int, name string) (int, error) {
	fd, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", name, err)
	}
	if _, err := trusted(fd); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("open %s: %w", name, err)
	}
	return fd, nil
}

// trusted looks at a directory or a symlink, and returns the symlink's target.
func trusted(fd int) (target string, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	if err := ownedByRoot(&st); err != nil {
		return "", err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0 {
			return "", fmt.Errorf("others than root may write to it (mode %#o)", st.Mode&0o7777)
		}
		return "", nil
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", buf)
		if err != nil {
			return "", err
		}
		if n == 0 || n == len(buf) {
			return "", errors.New("a symlink that is empty or too long")
		}
		return string(buf[:n]), nil
	}
	return "", errors.New("neither a directory nor a symlink")
}

func ownedByRoot(st *unix.Stat_t) error {
	if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to uid %d", st.Uid)
	}
	return nil
}

// openFile opens a regular file of a trusted directory for reading, if it is
// trusted itself, and does not wait for a FIFO's writer to find out.
func openFile(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s/%s: %w", dir.Name(), name, err)
	}
	f := os.NewFile(uintptr(fd), dir.Name()+"/"+name)
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = errors.New("not a regular file")
	case st.Mode&0o022 != 0:
		err = fmt.Errorf("others than root may write to it (mode %#o)", st.Mode&0o7777)
	default:
		err = ownedByRoot(&st)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", f.Name(), err)
	}
	return f, nil
}

// isDir reports whether path leads to the directory that f holds.
func isDir(path string, f *os.File) bool {
	a, err := os.Stat(path)
	if err != nil {
		return false
	}
	b, err := f.Stat()
	return err == nil && os.SameFile(a, b)
}
