package main

import (
	"os"
	"syscall"

	"probity/runtime/handoff/wire"
)

// verdict is what came of asking. The zero value is no answer.
type verdict struct {
	answered bool // by the agent
	refuse   bool
	message  string
}

// settle returns the exit status, and what there is to say about it.
func (o options) settle(v verdict) (code int, message string) {
	message = v.message
	if o.stage == wire.CreateRuntime && machineRoot() {
		switch closed, why := false, ""; {
		case v.refuse:
			code, message = 1, "refused: "+v.message
		case !v.answered:
			if closed, why = shut(o.failPolicy); closed {
				code, why = 1, "refused: no agent answered, and "+o.failPolicy+" says closed"
			}
			message = join(why, message)
		}
	}
	return code, message
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + ": " + b
}

// say writes to stderr without package os, which ends the program by SIGPIPE when
// nobody can read it any more, and a hook that ends by a signal has failed.
func say(s string) {
	b := []byte("probity-hook: " + s + "\n")
	for len(b) > 0 {
		n, err := syscall.Write(2, b)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		b = b[n:]
	}
}

// machineRoot reports whether this is the machine's root. Root of a user namespace,
// as a user's own podman has one, is not: no container of his is ever refused.
func machineRoot() bool {
	if os.Geteuid() != 0 {
		return false
	}
	var b [64]byte
	n := read("/proc/self/uid_map", b[:])
	return string(b[:max(n, 0)]) == "         0          0 4294967295\n"
}

// defaultFailPolicy is where an operator says what becomes of containers that no
// agent can be asked about.
const defaultFailPolicy = "/etc/probity/fail-policy"

// shut reports whether the file says "closed": one word, and perhaps a newline. It
// counts only if it is a regular file, no symlink, that belongs to root and that
// nobody else may write; anything else leaves the policy open, and why says what is
// wrong, unless there is no file.
func shut(path string) (closed bool, why string) {
	fd, err := open(path, syscall.O_NOFOLLOW)
	if err == syscall.ENOENT {
		return false, ""
	}
	if err != nil {
		return false, "open " + path + ": " + err.Error()
	}
	defer syscall.Close(fd)
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return false, "look at " + path + ": " + err.Error()
	}
	switch {
	case st.Mode&syscall.S_IFMT != syscall.S_IFREG:
		return false, path + " counts for nothing: it is not a regular file"
	case st.Uid != 0:
		return false, path + " counts for nothing: it is not root's"
	case st.Mode&0o022 != 0:
		return false, path + " counts for nothing: others than root may write it"
	}
	var b [16]byte
	n, err := readAll(fd, b[:])
	if err != nil {
		return false, "read " + path + ": " + err.Error()
	}
	switch string(b[:n]) {
	case "closed", "closed\n":
		return true, ""
	case "open", "open\n":
		return false, ""
	}
	return false, path + " counts for nothing: it says neither open nor closed"
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

// read fills b from a file and returns how much there was, or -1.
func read(path string, b []byte) int {
	fd, err := open(path, 0)
	if err != nil {
		return -1
	}
	defer syscall.Close(fd)
	n, err := readAll(fd, b)
	if err != nil {
		return -1
	}
	return n
}

// readAll reads until the end, or until b is full.
func readAll(fd int, b []byte) (n int, err error) {
	for n < len(b) {
		m, err := syscall.Read(fd, b[n:])
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return n, err
		case m == 0:
			return n, nil
		default:
			n += m
		}
	}
	return n, nil
}
