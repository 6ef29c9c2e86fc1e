package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Bounds of one look at the processes of a subtree, which a container that may
// make cgroups of its own has the choosing of.
const (
	maxProcs   = 1 << 16
	maxCgroups = 1 << 12
	maxDepth   = 32 // each level is an open directory
)

// Procs returns the ids of the processes in the cgroup and below it, in no
// order. whole is false if there were more than are looked at. A cgroup that is
// gone has none. Id as in [FS.PopulatedID].
func (fs *FS) Procs(path string, id uint64) (pids []int, whole bool, err error) {
	fd, err := fs.open(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, ErrGone) {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, err
	}
	top := os.NewFile(uintptr(fd), path)
	if ino, err := inode(fd, path); err != nil || id != 0 && ino != id {
		top.Close()
		return nil, true, err
	}
	w := &procWalk{cgroups: maxCgroups}
	err = w.walk(top, 0)
	return w.pids, err == nil && !w.cut, err
}

type procWalk struct {
	pids    []int
	cgroups int  // that may still be looked at
	cut     bool // whether a bound was reached
}

// walk takes the processes of one cgroup and of those below it. It closes dir.
func (w *procWalk) walk(dir *os.File, depth int) error {
	defer dir.Close()
	if w.cgroups--; w.cgroups < 0 || depth > maxDepth {
		w.cut = true
		return nil
	}
	if err := w.take(dir); err != nil {
		return err
	}
	for {
		entries, err := dir.ReadDir(256)
		for _, e := range entries {
			if !e.IsDir() || w.cut {
				continue
			}
			fd, err := openat2(int(dir.Fd()), e.Name(), unix.O_RDONLY|unix.O_DIRECTORY)
			if errors.Is(err, unix.ENOENT) {
				continue // removed meanwhile
			}
			if err != nil {
				return fmt.Errorf("open cgroup %s: %w", e.Name(), err)
			}
			if err := w.walk(os.NewFile(uintptr(fd), e.Name()), depth+1); err != nil {
				return err
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) {
				return nil
			}
			return fmt.Errorf("list cgroup: %w", err)
		}
	}
}

func (w *procWalk) take(dir *os.File) error {
	fd, err := openat2(int(dir.Fd()), "cgroup.procs", unix.O_RDONLY)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open cgroup.procs: %w", err)
	}
	f := os.NewFile(uintptr(fd), "cgroup.procs")
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxProcs*8))
	switch {
	case errors.Is(err, unix.ENODEV):
		return nil // removed meanwhile
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil // a threaded cgroup: its processes are those of the one above it
	case err != nil:
		return fmt.Errorf("read cgroup.procs: %w", err)
	}
	for line := range bytes.Lines(b) {
		number, ended := bytes.CutSuffix(line, []byte("\n"))
		pid, err := strconv.Atoi(string(number))
		if err != nil || pid <= 0 || !ended { // 0: outside this pid namespace
			w.cut = true
			continue
		}
		if len(w.pids) == maxProcs {
			w.cut = true
			return nil
		}
		w.pids = append(w.pids, pid)
	}
	return nil
}
