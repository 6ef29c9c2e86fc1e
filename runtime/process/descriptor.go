package process

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLink is longer than any link of /proc: the kernel writes it into one page.
const maxLink = 4096

// Descriptors returns what the process has open, as /proc/PID/fd shows it:
// "/dev/null", "socket:[4711]", "anon_inode:kvm-vm". Nothing is opened. It is
// [ErrTooMany] past most, with those that were read.
func (p *Process) Descriptors(most int) ([]string, error) {
	dir, err := p.open("fd")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	numbers, err := dir.Readdirnames(most + 1)
	if len(numbers) == 0 && err != nil {
		if alive := p.Alive(); alive != nil {
			return nil, alive
		}
		return nil, nil // it has closed all of them
	}
	var out []string
	for i, n := range numbers {
		if i == most {
			return out, fmt.Errorf("descriptors of process %d: more than %d: %w", p.Pid, most, ErrTooMany)
		}
		if name, err := readlinkat(int(dir.Fd()), n); err == nil { // else closed meanwhile
			out = append(out, name)
		}
	}
	return out, nil
}

// Exe returns what the process's program is called, in its own mount
// namespace, and whether that name is gone. A memfd is "/memfd:NAME", deleted.
func (p *Process) Exe() (path string, deleted bool, err error) {
	link, err := readlinkat(int(p.dir.Fd()), "exe")
	if err != nil {
		return "", false, fmt.Errorf("program of process %d: %w", p.Pid, gone(err))
	}
	path, deleted = strings.CutSuffix(link, " (deleted)")
	return path, deleted, nil
}

// OpenExe opens the process's program, whatever it is called. On a file system
// that does not answer this blocks for ever: who calls it has looked where the
// file is.
func (p *Process) OpenExe() (*os.File, error) { return p.open("exe") }

// PathExe opens it by path only, for which no file system is asked.
func (p *Process) PathExe() (*os.File, error) {
	fd, err := unix.Openat(int(p.dir.Fd()), "exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the program of process %d: %w", p.Pid, gone(err))
	}
	return os.NewFile(uintptr(fd), "exe"), nil
}

func readlinkat(dir int, name string) (string, error) {
	b := make([]byte, maxLink)
	n, err := unix.Readlinkat(dir, name, b)
	if err != nil {
		return "", os.NewSyscallError("readlink "+strconv.Quote(name), err)
	}
	return string(b[:n]), nil
}
