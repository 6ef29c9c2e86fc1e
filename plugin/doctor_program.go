package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// systemDirs is where programs are looked for. PATH is not asked: it is the
// caller's, and doctor runs what it finds as root.
var systemDirs = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// errOthers: somebody other than root could exchange what is at a path.
var errOthers = errors.New("others than root may change it")

// trusted follows path link by link and returns where it ends, if nobody but root
// can change what is there, nor any directory on the way. In a sticky directory
// (/tmp) nobody can replace what root owns.
func trusted(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%s: not absolute", path)
	}
	rest, at := strings.Split(path, "/"), "/"
	for links := 0; ; {
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			return "", fmt.Errorf("%s: %w", at, err)
		}
		kind := st.Mode & unix.S_IFMT
		sticky := kind == unix.S_IFDIR && st.Mode&unix.S_ISVTX != 0
		switch {
		case st.Uid != 0 || kind != unix.S_IFLNK && st.Mode&0o022 != 0 && !sticky:
			return "", fmt.Errorf("%s: %w", at, errOthers)
		case kind == unix.S_IFLNK:
			to, err := os.Readlink(at)
			if links++; err != nil || links > 40 {
				return "", fmt.Errorf("%s: %w", at, errors.Join(unix.ELOOP, err))
			}
			if at = filepath.Dir(at); filepath.IsAbs(to) {
				at = "/"
			}
			rest = append(strings.Split(to, "/"), rest...)
		}
		if len(rest) == 0 {
			return at, nil
		}
		at, rest = filepath.Join(at, rest[0]), rest[1:]
	}
}

// findProgram returns where the first program of this name in dirs is, or "" where
// there is none. One that is not to be run comes with an error.
func findProgram(name string, dirs []string) (string, error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			_, err := trusted(path)
			return path, err
		}
	}
	return "", nil
}

// maxAnswer bounds what a program may print.
const maxAnswer = 4 << 20

// tell runs a program that nobody but root can change, and returns what it prints.
// An error ends with the last line of what it says itself.
func tell(ctx context.Context, program string, args ...string) (string, error) {
	if _, err := trusted(program); err != nil {
		return "", fmt.Errorf("not run: %w", err)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=" + strings.Join(systemDirs, ":"), "LC_ALL=C", "HOME=/"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // it is killed with its children
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	// From its end on, too: on a busy machine what it has printed may take a second to be read.
	cmd.WaitDelay = defaultPatience
	var out, said upTo
	out.left, said.left = maxAnswer, maxAnswer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("%s %s: no answer within the time: %w", program, strings.Join(args, " "), ctx.Err())
	case out.over:
		return "", fmt.Errorf("%s %s: it prints more than %d bytes", program, strings.Join(args, " "), maxAnswer)
	case err != nil:
		if last := lastLine(said.buf.String()); last != "" {
			err = errors.New(last)
		}
		return "", fmt.Errorf("%s %s: %w", program, strings.Join(args, " "), err)
	}
	return out.buf.String(), nil
}

// upTo keeps the first bytes that are written to it and takes the rest.
type upTo struct {
	buf  bytes.Buffer
	left int
	over bool
}

func (u *upTo) Write(p []byte) (int, error) {
	keep := p[:min(len(p), u.left)]
	u.left -= len(keep)
	u.over = u.over || len(keep) < len(p)
	u.buf.Write(keep)
	return len(p), nil
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	last := strings.TrimSpace(lines[len(lines)-1])
	return last[:min(len(last), 400)]
}

// maxFile bounds a configuration file of somebody else.
const maxFile = 1 << 20

func readFile(name string) ([]byte, error) {
	// A FIFO in its place is not waited for.
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(errors.New("not a regular file"), err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("longer than %d bytes", maxFile)
	}
	return b, err
}

var plain = regexp.MustCompile(`^[A-Za-z0-9_./:@%+=,-]+$`)

// quote is a word for a shell.
func quote(s string) string {
	if plain.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
