// Package cgroup relates a process to its cgroup2 directory, that directory to
// the kernel's cgroup id, and says when nothing lives below it any more.
//
// In: pids and cgroup paths that a runtime claimed, and what the kernel says in
// /proc and in the cgroup2 mount. Out: a path as /proc/PID/cgroup has it, and
// the id by which BPF programs know the same cgroup. It trusts the kernel and
// the mount at the two places where systemd and the runtimes put it; a path is
// resolved below that mount, without symlinks and without leaving it.
//
// What is true on return of [FS.OfPid]: at one moment during the call the
// process was in the cgroup that had this id. It is not a control: a process
// with the right to write cgroup.procs can leave its cgroup afterwards, and a
// pid can be reused; whoever holds a pid across time must hold a pidfd too.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Mode says how this host arranges its cgroups.
type Mode string

// The three arrangements (systemd's names: unified, hybrid, legacy).
const (
	V2     Mode = "v2"     // cgroup2 at /sys/fs/cgroup
	Hybrid Mode = "hybrid" // v1 controllers, and cgroup2 at /sys/fs/cgroup/unified
	V1     Mode = "v1"     // no cgroup2 mount: every task has the root's id
)

var (
	// ErrShared: the process is in the root cgroup, in the agent's own, or
	// there is no cgroup2 hierarchy, so its cgroup id does not name it alone.
	ErrShared = errors.New("cgroup is shared")
	// ErrGone: the process or the cgroup is not there (any more).
	ErrGone = errors.New("cgroup is gone")
)

// RootID is the id of the root of the whole hierarchy (fs/kernfs/dir.c gives ids from 1
// on). Where the mount's root has another, as in a cgroup namespace, this process sees
// a part of it.
const RootID = 1

// FS is the cgroup2 mount of this host. Its methods are safe for concurrent
// use; it holds no descriptors.
type FS struct {
	Mode Mode
	Root string // mount point, "" in mode V1

	backstop time.Duration // of a test that must not be helped by it
}

// Find looks where the cgroup2 hierarchy is mounted.
func Find() (*FS, error) { return find("/sys/fs/cgroup") }

func find(base string) (*FS, error) {
	is2 := func(dir string) (bool, error) {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return false, err
		}
		return int64(st.Type) == unix.CGROUP2_SUPER_MAGIC, nil
	}
	unified, err := is2(base)
	if err != nil {
		return nil, fmt.Errorf("find the cgroup mount: statfs %s: %w", base, err)
	}
	if unified {
		return &FS{Mode: V2, Root: base}, nil
	}
	if hybrid, err := is2(base + "/unified"); err == nil && hybrid {
		return &FS{Mode: Hybrid, Root: base + "/unified"}, nil
	}
	return &FS{Mode: V1}, nil
}

// PathOf returns the cgroup2 path of a process alone, whosever else's it is: for who
// compares it with another.
func (fs *FS) PathOf(pid int) (string, error) {
	if fs.Mode == V1 {
		return "", fmt.Errorf("cgroup of pid %d: %w: no cgroup2 hierarchy is mounted", pid, ErrShared)
	}
	return ofProc(pid)
}

// OfPid returns the cgroup2 path of a process, as /proc/PID/cgroup has it, and
// the id of that cgroup, which is the inode number of its directory. With
// [ErrShared] path and id are still returned where there are any.
func (fs *FS) OfPid(pid int) (path string, id uint64, err error) {
	if pid <= 0 {
		return "", 0, fmt.Errorf("cgroup of pid %d: not a pid", pid)
	}
	if fs.Mode == V1 {
		return "", 0, fmt.Errorf("cgroup of pid %d: %w: no cgroup2 hierarchy is mounted", pid, ErrShared)
	}
	settled := false
	for range 4 {
		if path, err = ofProc(pid); err != nil {
			return "", 0, err
		}
		id, err = fs.ID(path)
		if err != nil && !errors.Is(err, ErrGone) {
			return "", 0, err
		}
		// The id belongs to the path only if the process did not move between.
		again, perr := ofProc(pid)
		if perr != nil {
			return "", 0, perr
		}
		if settled = again == path; settled {
			break
		}
	}
	switch {
	case !settled:
		return "", 0, fmt.Errorf("cgroup of pid %d: it moved 4 times while being read", pid)
	case err != nil:
		return "", 0, err
	}
	if path == "/" {
		return path, id, fmt.Errorf("cgroup of pid %d: %w: it is in the root cgroup", pid, ErrShared)
	}
	own, err := ofProc(os.Getpid())
	if err != nil {
		return "", 0, err
	}
	if own == path || strings.HasPrefix(own, path+"/") {
		return path, id, fmt.Errorf("cgroup of pid %d: %w: the agent itself is in %s", pid, ErrShared, own)
	}
	return path, id, nil
}

// OfPidIn is OfPid for who knows what the container's cgroup is: it returns path
// and id of the cgroup at within, if the process is in it or below it, and not the
// one further down that it may have made for itself. Within "" is the process's
// own. Where the process is elsewhere the error is neither of this package's.
func (fs *FS) OfPidIn(pid int, within string) (path string, id uint64, err error) {
	path, id, err = fs.OfPid(pid)
	if within == "" || within == path || path == "" || err != nil && !errors.Is(err, ErrShared) {
		return path, id, err
	}
	if cerr := checkPath(within); cerr != nil {
		return "", 0, fmt.Errorf("cgroup of pid %d: %w", pid, cerr)
	}
	if within == "/" || !strings.HasPrefix(path, within+"/") {
		return "", 0, fmt.Errorf("cgroup of pid %d: it is in %q, not in %s", pid, path, within)
	}
	if err != nil { // so is the one above
		return within, 0, err
	}
	own, err := ofProc(os.Getpid())
	if err != nil {
		return "", 0, err
	}
	if own == within || strings.HasPrefix(own, within+"/") {
		return within, 0, fmt.Errorf("cgroup of pid %d: %w: the agent itself is in %s", pid, ErrShared, own)
	}
	if id, err = fs.ID(within); err != nil {
		return "", 0, err
	}
	// It is the one above the process only if that is still there.
	if again, err := ofProc(pid); err != nil || again != path && !strings.HasPrefix(again, within+"/") && again != within {
		return "", 0, errors.Join(fmt.Errorf("cgroup of pid %d: it moved while being read", pid), err)
	}
	return within, id, nil
}

// Named returns the path of the cgroup with this name among those that the process
// is in, outermost first: a runtime that says what it called a container's cgroup
// does not always say where it is.
func (fs *FS) Named(pid int, name string) (string, error) {
	path, err := fs.PathOf(pid)
	if err != nil {
		return "", err
	}
	at := 0
	for s := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		at += 1 + len(s)
		if s == name && name != "" {
			return path[:at], nil
		}
	}
	return "", fmt.Errorf("cgroup of pid %d: it is in %s, and in none called %.256q", pid, path, name)
}

// ID returns the id of the cgroup at path.
func (fs *FS) ID(path string) (uint64, error) {
	fd, err := fs.open(path, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return inode(fd, path)
}

// Level returns the depth of a path below the root: 0 for "/", 1 for "/a".
func (fs *FS) Level(path string) int {
	n := 0
	for s := range strings.SplitSeq(path, "/") {
		if s != "" {
			n++
		}
	}
	return n
}

// open opens a file of the hierarchy: below the mount, never through a symlink
// or another mount.
func (fs *FS) open(path string, flags uint64) (int, error) {
	if fs.Root == "" {
		return -1, fmt.Errorf("open cgroup %s: no cgroup2 hierarchy is mounted", path)
	}
	if err := checkPath(path); err != nil {
		return -1, err
	}
	root, err := unix.Open(fs.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the cgroup mount %s: %w", fs.Root, err)
	}
	defer unix.Close(root)
	rel := strings.TrimPrefix(path, "/")
	if rel == "" {
		rel = "."
	}
	fd, err := openat2(root, rel, flags)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return -1, fmt.Errorf("open cgroup %s: %w", path, ErrGone)
	}
	return -1, fmt.Errorf("open cgroup %s: %w", path, err)
}

func openat2(dir int, rel string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for tries := 0; ; tries++ {
		fd, err := unix.Openat2(dir, rel, &how)
		// EAGAIN: a rename somewhere raced with the lookup (openat2(2)).
		if err == unix.EINTR || err == unix.EAGAIN && tries < 16 {
			continue
		}
		return fd, err
	}
}

func inode(fd int, path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("stat cgroup %s: %w", path, err)
	}
	return st.Ino, nil
}
