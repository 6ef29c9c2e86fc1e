package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxPath = 4 << 10  // the kernel builds these paths in a PATH_MAX buffer
	maxProc = 64 << 10 // of one /proc/PID/cgroup: a line for each v1 hierarchy
)

func ofProc(pid int) (string, error) {
	b, err := readBounded(fmt.Sprintf("/proc/%d/cgroup", pid), maxProc)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return "", fmt.Errorf("cgroup of pid %d: %w: no such process", pid, ErrGone)
	}
	if err != nil {
		return "", fmt.Errorf("cgroup of pid %d: %w", pid, err)
	}
	path, err := parseProc(b)
	if err != nil {
		return "", fmt.Errorf("cgroup of pid %d: %w", pid, err)
	}
	return path, nil
}

// parseProc returns the path of the one line "0::PATH" (cgroups(7)). The
// kernel refuses a cgroup whose name has a newline, so lines are lines.
func parseProc(b []byte) (string, error) {
	path, found := "", false
	for line := range bytes.Lines(b) {
		rest, ok := bytes.CutPrefix(line, []byte("0::"))
		if !ok {
			continue
		}
		rest, ended := bytes.CutSuffix(rest, []byte("\n"))
		if !ended || found {
			return "", errors.New("the line of the cgroup2 hierarchy is cut short, or there are two")
		}
		path, found = string(rest), true
	}
	if !found {
		return "", fmt.Errorf("%w: no cgroup2 hierarchy in /proc/PID/cgroup", ErrShared)
	}
	return path, checkPath(path)
}

// checkPath refuses what is not a path below the mount. "/.." is what the
// kernel prints for a cgroup outside the reader's cgroup namespace.
func checkPath(path string) error {
	switch {
	case !strings.HasPrefix(path, "/"), len(path) > maxPath, strings.ContainsAny(path, "\x00\n"):
		return fmt.Errorf("%.64q is not a cgroup path", path)
	case path == "/":
		return nil
	}
	for s := range strings.SplitSeq(path[1:], "/") {
		if s == "" || s == "." || s == ".." {
			return fmt.Errorf("cgroup path %.64q is not below this process's cgroup namespace root, or not clean", path)
		}
	}
	return nil
}

// parseEvents returns the value of "populated" in a cgroup.events file.
func parseEvents(b []byte) (populated bool, err error) {
	found := false
	for line := range bytes.Lines(b) {
		v, ok := bytes.CutPrefix(line, []byte("populated "))
		if !ok {
			continue
		}
		switch s := string(v); {
		case found:
			return false, errors.New("cgroup.events says \"populated\" twice")
		case s == "1\n":
			populated, found = true, true
		case s == "0\n":
			populated, found = false, true
		default:
			return false, fmt.Errorf("cgroup.events: populated is %.16q", s)
		}
	}
	if !found {
		return false, errors.New("cgroup.events does not say whether it is populated")
	}
	return populated, nil
}

// readBounded reads a file of the kernel's. Not by os.Open, which asks the poller
// whether it wants the file: that is more calls than reading it, and starts wait.
func readBounded(path string, limit int) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var b []byte
	for {
		b = slices.Grow(b, 4096)
		n, err := unix.Read(fd, b[len(b):cap(b)])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		case n == 0:
			return b, nil
		}
		if b = b[:len(b)+n]; len(b) > limit {
			return nil, fmt.Errorf("%s is longer than %d bytes", path, limit)
		}
	}
}
