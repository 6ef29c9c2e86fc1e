package wire

import (
	"errors"
	"syscall"
)

// DefaultFailPolicy is where an operator says what becomes of containers that no
// agent can be asked about.
const DefaultFailPolicy = "/etc/probity/fail-policy"

// Closed reports whether the file says "closed": one word, and perhaps a newline. It
// counts only if it is a regular file, no symlink, that belongs to root and that
// nobody else may write. Anything else leaves the policy open, and is an error,
// unless there is no file.
func Closed(path string) (bool, error) {
	fd, err := open(path, syscall.O_NOFOLLOW)
	if err == syscall.ENOENT {
		return false, nil
	}
	if err != nil {
		return false, &Error{"open " + path, err}
	}
	defer syscall.Close(fd)
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return false, &Error{"look at " + path, err}
	}
	switch {
	case st.Mode&syscall.S_IFMT != syscall.S_IFREG:
		return false, &Error{path, errors.New("counts for nothing: it is not a regular file")}
	case st.Uid != 0:
		return false, &Error{path, errors.New("counts for nothing: it is not root's")}
	case st.Mode&0o022 != 0:
		return false, &Error{path, errors.New("counts for nothing: others than root may write it")}
	}
	b, err := start(fd, 16)
	if err != nil {
		return false, &Error{"read " + path, err}
	}
	switch string(b) {
	case "closed", "closed\n":
		return true, nil
	case "open", "open\n":
		return false, nil
	}
	return false, &Error{path, errors.New("counts for nothing: it says neither open nor closed")}
}

// open does not wait for who may write to a FIFO.
func open(path string, flags int) (fd int, err error) {
	for {
		fd, err = syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NONBLOCK|syscall.O_NOCTTY|flags, 0)
		if err != syscall.EINTR {
			return fd, err
		}
	}
}

// ReadStart returns the first bytes of a file, at most so many, or none.
func ReadStart(path string, most int) []byte {
	fd, err := open(path, 0)
	if err != nil {
		return nil
	}
	defer syscall.Close(fd)
	b, err := start(fd, most)
	if err != nil {
		return nil
	}
	return b
}

// start reads until the end, but not past so many bytes.
func start(fd, most int) ([]byte, error) {
	b, n := make([]byte, most), 0
	for n < most {
		m, err := syscall.Read(fd, b[n:])
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return nil, err
		case m == 0:
			return b[:n], nil
		default:
			n += m
		}
	}
	return b, nil
}
