package image

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds on a mount table. A mount namespace holds 100,000 mounts by default
// (sysctl fs.mount-max); a line is long where an overlay has many layers.
const (
	maxMountTable = 64 << 20
	maxMountLine  = 1 << 20
	maxMounts     = 1 << 17
)

// mount is one line of /proc/PID/mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	id, parent  int
	dev         string // "major:minor" of the superblock
	root, point string // decoded
	fstype      string
	super       string // options of the superblock, as they stand
}

// eachMount calls f for every line until f returns false. The value is valid
// only during the call.
func eachMount(path string, f func(*mount) bool) error {
	// Not os.Open, which has the poller watch the table for changes.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	if err := readMounts(file, f); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

func readMounts(r io.Reader, f func(*mount) bool) error {
	limited := &io.LimitedReader{R: r, N: maxMountTable}
	lines := bufio.NewScanner(limited)
	lines.Buffer(make([]byte, 0, 16<<10), maxMountLine)
	lines.Split(wholeLines)
	var m mount
	for n := 0; lines.Scan(); n++ {
		if n == maxMounts {
			return fmt.Errorf("more than %d mounts", maxMounts)
		}
		if err := m.parse(lines.Text()); err != nil {
			return fmt.Errorf("line %d: %w", n+1, err)
		}
		if !f(&m) {
			return nil
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	if limited.N == 0 {
		return fmt.Errorf("more than %d bytes", maxMountTable)
	}
	return nil
}

// wholeLines is bufio.ScanLines that refuses a last line without an end: it
// may have been cut short.
func wholeLines(data []byte, atEOF bool) (int, []byte, error) {
	adv, tok, err := bufio.ScanLines(data, false)
	if err == nil && tok == nil && atEOF && len(data) > 0 {
		err = errors.New("the last line has no end")
	}
	return adv, tok, err
}

func (m *mount) parse(line string) error {
	head, tail, ok := strings.Cut(line, " - ")
	if !ok {
		return errors.New("no separator")
	}
	h, t := strings.SplitN(head, " ", 7), strings.Split(tail, " ")
	if len(h) < 6 || len(t) != 3 {
		return fmt.Errorf("%d fields before and %d after the separator", len(h), len(t))
	}
	var err error
	if m.id, err = strconv.Atoi(h[0]); err != nil {
		return fmt.Errorf("mount id: %w", err)
	}
	if m.parent, err = strconv.Atoi(h[1]); err != nil {
		return fmt.Errorf("parent id: %w", err)
	}
	m.dev, m.fstype, m.super = h[2], t[0], t[2]
	if m.root, err = octal(h[3]); err != nil {
		return err
	}
	if m.point, err = octal(h[4]); err != nil {
		return err
	}
	if !strings.HasPrefix(m.point, "/") {
		return fmt.Errorf("mount point %.64q is not absolute", m.point)
	}
	return nil
}

// octal decodes the kernel's "\ooo" (fs/seq_file.c, mangle_path and
// string_escape_mem).
func octal(s string) (string, error) {
	if strings.IndexByte(s, '\\') < 0 {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b = append(b, s[i])
			continue
		}
		if i+3 >= len(s) {
			return "", fmt.Errorf("escape in %.64q is cut short", s)
		}
		v, err := strconv.ParseUint(s[i+1:i+4], 8, 8)
		if err != nil || v == 0 {
			return "", fmt.Errorf("escape in %.64q is not three octal digits of a byte", s)
		}
		b = append(b, byte(v))
		i += 3
	}
	return string(b), nil
}

// top returns the mount that is visible at point: the one that no other is
// stacked on.
func top(ms []mount, point string) *mount {
	var at []*mount
	for i := range ms {
		if ms[i].point == point {
			at = append(at, &ms[i])
		}
	}
next:
	for _, m := range at {
		for _, over := range at {
			if over != m && over.parent == m.id {
				continue next
			}
		}
		return m
	}
	return nil
}
