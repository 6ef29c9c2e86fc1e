// Package process looks at a live process from outside: which files it has
// mapped to be executed, and how; what it has open; which program it runs.
//
// In: a process id. Out: plain values, as /proc shows them at that moment. The
// kernel is trusted, the process is not: it chooses how many mappings and
// descriptors it has and what their files are called, so all are bounded, and
// its names are text to be quoted. A [Process] is bound to one process: once that has ended, every
// method says so, and never answers for another one with the same number.
//
// What this is not: a mapping that comes and goes between two looks is not
// seen.
package process

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// ErrGone reports that the process has ended.
var ErrGone = errors.New("the process has ended")

// ErrTooMany reports that a process has more mappings than are looked at.
var ErrTooMany = errors.New("more mappings than are looked at")

// maxMaps bounds what is read of one /proc/PID/maps, in bytes. A process has
// 65,530 mappings at most by default (vm.max_map_count), each a line of about
// a hundred bytes.
const maxMaps = 16 << 20

// Process is one process, held by its directory in /proc.
type Process struct {
	Pid    int
	Thread int // one that has its memory
	dir    *os.File
}

// Open holds on to a process.
func Open(pid int) (*Process, error) {
	name := "/proc/" + strconv.Itoa(pid)
	// Not os.OpenFile, which asks the poller whether it wants the directory.
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("look at process %d: %w", pid, gone(&os.PathError{Op: "open", Path: name, Err: err}))
	}
	return &Process{Pid: pid, Thread: pid, dir: os.NewFile(uintptr(fd), name)}, nil
}

// Close lets go of it. It is idempotent.
func (p *Process) Close() error {
	if err := p.dir.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Alive returns nil if the process has not ended: until now its number was its
// own.
func (p *Process) Alive() error {
	f, err := p.open("stat")
	if err != nil {
		return err
	}
	return f.Close()
}

// Executable returns the mappings of files that the process may execute, in
// the order of their addresses. It is [ErrTooMany] past the bound.
//
// A process whose first thread has ended runs on in the others, and its own
// directory shows no memory any more: then one of theirs does, which is in
// Thread from then on.
func (p *Process) Executable() ([]Mapping, error) { return p.wanted(executable) }

// Private returns the private mappings of files, in the order of their
// addresses, whether the process may execute them now or not: a probe is put
// into all of them, since they may become executable. Bounded and found as
// those of Executable.
func (p *Process) Private() ([]Mapping, error) { return p.wanted(private) }

// Named returns the mappings of that name which are of no file: "[vdso]".
func (p *Process) Named(name string) ([]Mapping, error) {
	out, err := p.wanted(func(perms, path []byte) bool { return string(path) == name })
	return slices.DeleteFunc(out, func(m Mapping) bool { return m.File.Ino != 0 }), err
}

func (p *Process) wanted(is selector) ([]Mapping, error) {
	out, empty, err := p.maps("maps", is)
	if err == nil && !empty || err != nil && !errors.Is(err, ErrGone) {
		return out, err
	}
	for range 3 { // threads come and go
		tasks, err := p.tasks()
		if err != nil {
			return nil, err
		}
		for _, t := range tasks {
			out, empty, err := p.maps("task/"+t+"/maps", is)
			if errors.Is(err, ErrGone) || err == nil && empty {
				continue
			}
			if err == nil {
				p.Thread, err = strconv.Atoi(t)
			}
			return out, err
		}
		if len(tasks) <= 1 { // a zombie, which executes nothing
			return nil, fmt.Errorf("mappings of process %d: %w", p.Pid, ErrGone)
		}
	}
	return nil, fmt.Errorf("mappings of process %d: none of its threads has any for long enough", p.Pid)
}

func (p *Process) maps(name string, is selector) (out []Mapping, empty bool, err error) {
	f, err := p.open(name)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	text := &counter{r: io.LimitReader(f, maxMaps+1)}
	if out, err = parse(text, maxMaps, is); err != nil {
		return nil, false, fmt.Errorf("mappings of process %d: %w", p.Pid, gone(err))
	}
	return out, text.n == 0, nil
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n int
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += n
	return n, err
}

// tasks lists the process's threads, as many as are looked at for one with
// memory: all those that are left have the same.
func (p *Process) tasks() ([]string, error) {
	dir, err := p.open("task")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(64)
	if err != nil && len(names) == 0 {
		return nil, fmt.Errorf("threads of process %d: %w", p.Pid, cmp.Or(p.Alive(), err))
	}
	return names, nil
}

// Link is the process's own link to what it has mapped there.
func (p *Process) Link(m Mapping) string {
	return fmt.Sprintf("/proc/%d/map_files/%x-%x", p.Thread, m.Start, m.End)
}

// open opens a file of the process. The directory is the process's for as long
// as it lives, and of nobody afterwards.
func (p *Process) open(name string) (*os.File, error) {
	fd, err := unix.Openat(int(p.dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s of process %d: %w", name, p.Pid, gone(err))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// gone recognises what /proc says of a process that has ended.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return ErrGone
	}
	return err
}
