package oci

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"probity/runtime/container"
)

// process is a process that is held: while alive says true, its pid is its own.
type process struct {
	pid int
	fd  *os.File
}

// hold takes a pidfd of the process. Threads that are not a group's leader
// cannot be held, which is right: the kernel refuses them.
func hold(pid int) (*process, error) {
	if pid <= 0 || pid > maxPid {
		return nil, fmt.Errorf("pid %d: out of range", pid)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("pid %d: %w", pid, err)
	}
	p := &process{pid: pid, fd: os.NewFile(uintptr(fd), "pidfd")}
	if !p.alive() {
		p.release()
		return nil, fmt.Errorf("pid %d: %w", pid, ErrEnded)
	}
	return p, nil
}

func (p *process) release() { p.fd.Close() }

// alive reports whether the process has not ended; a zombie has.
func (p *process) alive() bool {
	fds := []unix.PollFd{{Fd: int32(p.fd.Fd()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err == unix.EINTR {
			continue
		}
		return err == nil && n == 0
	}
}

func procPath(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}

// parentOf returns the parent's pid, from /proc/PID/stat.
func parentOf(pid int) (int, error) {
	b, err := readBounded(procPath(pid, "stat"), 4<<10)
	if err != nil {
		return 0, err
	}
	return parseParent(b)
}

// statFields returns the fields of /proc/PID/stat (proc_pid_stat(5)) from the
// third on, of which there must be so many. The second one, comm, is whatever the
// process likes, parentheses included, but not longer than 64 bytes and the last to
// have any.
func statFields(b []byte, least int) ([][]byte, error) {
	i := bytes.LastIndexByte(b, ')')
	fields := bytes.Fields(b[i+1:])
	if i < 0 || len(fields) < least {
		return nil, errors.New("/proc/PID/stat: too few fields")
	}
	return fields, nil
}

// StartTicks is when a process started, in clock ticks since boot: with its pid that
// tells it from another one.
func StartTicks(pid int) (uint64, error) {
	b, err := readBounded(procPath(pid, "stat"), 4<<10)
	if err != nil {
		return 0, err
	}
	return parseStart(b)
}

// parseStart returns the 22nd field: when the process started, in ticks since boot.
func parseStart(b []byte) (uint64, error) {
	fields, err := statFields(b, 20)
	if err != nil {
		return 0, err
	}
	start, err := strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("/proc/PID/stat: start %.32q", fields[19])
	}
	return start, nil
}

// Flags are the kernel's flags of a process (PF_*, linux/sched.h), the ninth field of
// /proc/PID/stat.
func Flags(pid int) (uint64, error) {
	b, err := readBounded(procPath(pid, "stat"), 4<<10)
	if err != nil {
		return 0, err
	}
	fields, err := statFields(b, 7)
	if err != nil {
		return 0, err
	}
	flags, err := strconv.ParseUint(string(fields[6]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("/proc/PID/stat: flags %.32q", fields[6])
	}
	return flags, nil
}

// parseParent returns the fourth field.
func parseParent(b []byte) (int, error) {
	fields, err := statFields(b, 2)
	if err != nil {
		return 0, err
	}
	ppid, err := strconv.Atoi(string(fields[1]))
	if err != nil || ppid < 0 || ppid > maxPid {
		return 0, fmt.Errorf("/proc/PID/stat: parent %.16q", fields[1])
	}
	return ppid, nil
}

// onHost returns an error if a process is in a container: in another user or pid
// namespace than this process, or with another root directory than this process
// or pid 1. A runtime's hooks run where the runtime runs (runtime-spec,
// "createRuntime Hooks"). Root in a container that was given the socket is not
// root here, and could arrange children and directories of its own so that they
// look like a container with any id.
//
// A user's own runtime has a user namespace of his, in which he is root.
func onHost(p *process, o owner) error {
	namespaces := []string{"ns/pid", "ns/user"}
	if o != 0 {
		if _, err := o.namespaces(p.pid); err != nil {
			return err
		}
		namespaces = namespaces[:1]
	}
	for _, ns := range namespaces {
		if same, err := sameFile(procPath(os.Getpid(), ns), procPath(p.pid, ns)); err != nil || !same {
			return errors.Join(fmt.Errorf("pid %d is in another namespace (%s)", p.pid, ns), err)
		}
	}
	for _, host := range []int{os.Getpid(), 1} {
		if same, err := sameFile(procPath(host, "root"), procPath(p.pid, "root")); err == nil && same {
			return nil
		}
	}
	return fmt.Errorf("pid %d has another root directory", p.pid)
}

func sameFile(a, b string) (bool, error) {
	x, err := look(a)
	if err != nil {
		return false, err
	}
	y, err := look(b)
	if err != nil {
		return false, err
	}
	return x == y, nil
}

// maxLine bounds how far up the runtime is looked for: hook, wrappers,
// runtime, monitor.
const maxLine = 8

// ancestry returns the hook, its parent, and so on, up to the runtime that is the
// parent of init. That is neither pid 1 nor this very process.
func ancestry(hook, init *process) ([]int, error) {
	runtime, err := parentOf(init.pid)
	if err != nil {
		return nil, fmt.Errorf("%w: pid %d: %w", ErrPid, init.pid, err)
	}
	foreign := fmt.Errorf("%w: pid %d is a child of %d, which did not start the hook", ErrPid, init.pid, runtime)
	if runtime <= 1 || runtime == os.Getpid() {
		return nil, foreign
	}
	line := []int{hook.pid}
	for len(line) == 1 || line[len(line)-1] != runtime {
		if len(line) == maxLine {
			return nil, foreign
		}
		parent, err := parentOf(line[len(line)-1])
		if err != nil {
			return nil, fmt.Errorf("look at the hook: %w", err)
		}
		if parent <= 1 || parent == os.Getpid() {
			return nil, foreign
		}
		line = append(line, parent)
	}
	// Every parent waits for its child while the hook waits for us. Had one
	// ended, its children would have a new parent by now.
	for i, pid := range line[:len(line)-1] {
		if parent, err := parentOf(pid); err != nil || parent != line[i+1] {
			return nil, errors.New("look at the hook: its ancestors change")
		}
	}
	return line, nil
}

// checkInit checks that init can be the init of the container that the runtime
// above the hook is creating, and returns the line from the hook up to that
// runtime.
func checkInit(hook, init *process) ([]int, error) {
	if init.pid == os.Getpid() {
		return nil, fmt.Errorf("%w: pid %d is the agent's own", ErrPid, init.pid)
	}
	line, err := ancestry(hook, init)
	if err != nil {
		return nil, err
	}
	if slices.Contains(line, init.pid) { // all that can be both are below its parent
		return nil, fmt.Errorf("%w: pid %d is the hook's or an ancestor's of it", ErrPid, init.pid)
	}
	// Monitors, shims and shells have further children. Init is told from
	// those of the host by its mount namespace, which it has by this stage,
	// and from those that are containers already by its root, which it has
	// not left yet (runtime-spec, "createRuntime Hooks").
	if same, err := sameFile(procPath(line[0], "ns/mnt"), procPath(init.pid, "ns/mnt")); err != nil || same {
		return nil, errors.Join(fmt.Errorf("%w: pid %d is in the hook's mount namespace", ErrPid, init.pid), err)
	}
	if same, err := sameFile(procPath(line[0], "root"), procPath(init.pid, "root")); err != nil || !same {
		return nil, errors.Join(fmt.Errorf("%w: pid %d has entered a container already", ErrPid, init.pid), err)
	}
	return line, nil
}

// runtimeOf names the runtime: the engine whose store the bundle is in, else
// what the hook was started by.
func runtimeOf(id, bundle string, annotations map[string]string, line []int) (container.Runtime, error) {
	if r := storageRuntime(id, bundle, annotations); r != "" {
		return r, nil
	}
	for _, pid := range line[1:] {
		exe, err := os.Readlink(procPath(pid, "exe"))
		if err != nil {
			continue
		}
		comm, err := os.ReadFile(procPath(pid, "comm"))
		if err != nil {
			continue
		}
		if r := runtimeAt(exe, strings.TrimSuffix(string(comm), "\n")); r != "" {
			return r, nil
		}
	}
	return "", errors.New("started by a runtime that is not known")
}

// runtimeAt names the runtime whose program /proc/PID/exe says it is. crun runs
// from a copy of itself, so that no container can write to it: from a mount of
// its own that is in no directory, whose path is "/", or from memory (libcrun's
// cloned_binary.c). Then its name is what it calls itself: who starts the host's
// hooks as root may call itself anything.
func runtimeAt(exe, comm string) container.Runtime {
	switch exe = strings.TrimSuffix(exe, " (deleted)"); {
	case exe == "/" && comm == "crun", exe == "/memfd:crun_cloned:/proc/self/exe", filepath.Base(exe) == "crun":
		return container.Crun
	case filepath.Base(exe) == "runc":
		return container.Runc
	}
	return ""
}

// readBounded reads a file of the kernel's. Not by os.Open, which asks the poller
// whether it wants the file: that is more calls than reading it, and the hook waits.
func readBounded(path string, limit int64) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	return readAllBounded(f, limit)
}

func readAllBounded(f *os.File, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("read %s: longer than %d bytes", f.Name(), limit)
	}
	return b, nil
}
