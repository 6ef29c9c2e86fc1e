package oci

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const maxLinks = 40 // as the kernel has it (path_resolution(7))

// owner is whose files are believed besides those of root and of this process's own
// user: 0 is nobody's, else a user's who speaks of his own.
//
// A user is believed nothing that he could not reach himself: a directory that is not
// his is passed only if everybody may pass it, no symlink but root's is followed, and
// a file is read only if it is his.
type owner uint32

// openTrusted opens a directory that nobody but root, or this process's own
// user, could have put there.
func openTrusted(path string) (*os.File, error) { return owner(0).open(path) }

// open opens a directory that nobody but those who are believed could have put there:
// every directory on the way is theirs and is
// writable by nobody else (or sticky, like /tmp), and so is every symlink. No
// directory is entered before it was looked at. The file's name is the path
// without symlinks; it has been opened with O_PATH.
func (o owner) open(path string) (*os.File, error) {
	if !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("%q is not absolute", path)
	}
	dir, err := o.openDir(unix.AT_FDCWD, "/")
	if err != nil {
		return nil, err
	}
	served, err := o.served()
	if err != nil {
		unix.Close(dir)
		return nil, fmt.Errorf("open %s: %w", path, err)
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
		target := ""
		if err = served.holds(fd); err == nil {
			target, err = o.trusts(fd)
		}
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
			if dir, err = o.openDir(unix.AT_FDCWD, "/"); err != nil {
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
func (o owner) openDir(at int, name string) (int, error) {
	fd, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", name, err)
	}
	if _, err := o.trusts(fd); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("open %s: %w", name, err)
	}
	return fd, nil
}

// trusts looks at a directory or a symlink, and returns the symlink's target.
func (o owner) trusts(fd int) (target string, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	if err := o.owns(&st); err != nil {
		return "", err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if o != 0 && owner(st.Uid) != o && st.Mode&0o001 == 0 {
			return "", fmt.Errorf("uid %d may not pass it (mode %#o)", o, st.Mode&0o7777)
		}
		if st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0 {
			return "", fmt.Errorf("others than root may write to it (mode %#o)", st.Mode&0o7777)
		}
		return "", nil
	case unix.S_IFLNK:
		if o != 0 && st.Uid != 0 {
			return "", errors.New("a symlink that is not root's")
		}
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

// owns returns an error if a file belongs to somebody who is not believed.
func (o owner) owns(st *unix.Stat_t) error {
	if st.Uid != 0 && int(st.Uid) != os.Geteuid() && owner(st.Uid) != o {
		return fmt.Errorf("it belongs to uid %d", st.Uid)
	}
	return nil
}

// openFile opens a regular file of a trusted directory for reading, if it is
// trusted itself. Whatever else is there is not opened.
func (o owner) openFile(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s/%s: %w", dir.Name(), name, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = errors.New("not a regular file")
	case st.Mode&0o022 != 0:
		err = fmt.Errorf("others than root may write to it (mode %#o)", st.Mode&0o7777)
	case o != 0 && owner(st.Uid) != o:
		err = fmt.Errorf("it belongs to uid %d, not %d", st.Uid, o)
	default:
		err = o.owns(&st)
	}
	if err == nil { // nothing else is opened for reading
		fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s/%s: %w", dir.Name(), name, err)
	}
	return os.NewFile(uintptr(fd), dir.Name()+"/"+name), nil
}

// isDir reports whether path leads to the directory that f holds.
func isDir(path string, f *os.File) bool {
	a, err := look(path)
	if err != nil {
		return false
	}
	b, err := look(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	return err == nil && a == b
}

// file is which file something is.
type file struct {
	major, minor uint32
	ino          uint64
}

// look returns which file a path leads to. No file system asks its server for that, as
// FUSE does when it is asked for more: whose process it is may serve that himself.
func look(path string) (file, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st); err != nil {
		return file{}, fmt.Errorf("look at %s: %w", path, err)
	}
	return file{st.Dev_major, st.Dev_minor, st.Ino}, nil
}
