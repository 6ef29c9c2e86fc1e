package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"probity/runtime/container"
	"probity/runtime/oci"
)

// holdPid takes a pidfd, or nil if there is no such process (any more).
func holdPid(pid int) *os.File {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), "pidfd")
}

// unreaped reports whether a held process still has its number: it lives, or nobody has
// taken its exit code yet.
func unreaped(p *os.File) bool {
	return p != nil && unix.PidfdSendSignal(int(p.Fd()), 0, nil, 0) != unix.ESRCH
}

// alive reports whether a held process has not ended; a zombie has.
func alive(p *os.File) bool {
	if p == nil {
		return false
	}
	for {
		fd := int32(p.Fd())
		if fd < 0 {
			return false // closed: its run is over
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: fd, Events: unix.POLLIN}}, 0)
		if err == unix.EINTR {
			continue
		}
		return err == nil && n == 0
	}
}

// waitPid waits for a held process to end. nil has ended.
func waitPid(ctx context.Context, p *os.File) error {
	if p == nil {
		return nil
	}
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.Fd()), Events: unix.POLLIN}}, 200)
		if n > 0 {
			return nil
		}
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for a container's first process: %w", err)
		}
	}
	return ctx.Err()
}

// pfExiting is PF_EXITING of the kernel's linux/sched.h, as /proc/PID/stat shows it.
const pfExiting = 0x4

// exiting reports whether a process has ended or begun to: then it executes nothing any
// more, and its memory, files, root and namespaces are being taken from it.
func exiting(pid int) bool {
	flags, err := oci.Flags(pid)
	if err != nil {
		return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH)
	}
	return flags&pfExiting != 0
}

// ended reports whether nothing of a container executes any more.
func (a *Agent) ended(id container.Identity) bool {
	if populated, err := a.cgroups.Populated(id.CgroupPath); err == nil && !populated {
		return true
	}
	pids, whole, err := a.cgroups.Procs(id.CgroupPath, id.CgroupID)
	return err == nil && whole && !slices.ContainsFunc(pids, func(pid int) bool { return !exiting(pid) })
}
