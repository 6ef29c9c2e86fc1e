package probe

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"probity/evidence"
	"probity/runtime/process"
)

// Looked is what one process of a container executes of its files.
type Looked struct {
	// Troubles are files of the plan that the process may execute without
	// being seen, at most one for each.
	Troubles []Trouble
	// Other are mappings of files in which nothing is armed.
	Other []process.Mapping
}

// Look proves for one process what the canary proves for the file: that it
// would be seen executing an armed site now. A file that is mapped shared or
// writable has no breakpoints in that mapping, and a process can take them out
// of a private one: by /proc/PID/mem, by ptrace, or by dropping the page
// (MADV_DONTNEED). What it did and undid between two looks is not seen.
//
// The process must be one of the container's. Look may be called at any time
// until Close, beside Check; it needs CAP_SYS_PTRACE.
func (h *Handle) Look(p *process.Process) (Looked, error) {
	var before []process.Mapping
	for tries, same := 1, 0; ; tries++ {
		maps, err := p.Executable()
		if err != nil {
			return Looked{}, err
		}
		out, doubt, err := h.look(p, maps)
		if slices.Equal(maps, before) {
			same++
		}
		if err != nil || !doubt || same == lookSame || tries == lookMost {
			return out, err
		}
		before = maps
	}
}

// What is found amiss is found lookSame more times at the same mappings, before
// it is believed: the process may call execve between two of them, to run the same
// program. One that does nothing but call execve is looked at lookMost times.
const (
	lookSame = 2
	lookMost = 16
)

// look compares what a process has at its mappings with what is armed there. With
// doubt it found something amiss that would be so, too, if the process had called
// execve since they were read: at their addresses is another program then.
func (h *Handle) look(p *process.Process, maps []process.Mapping) (out Looked, doubt bool, _ error) {
	told := map[string]bool{}
	tell := func(path, format string, args ...any) {
		if !told[path] {
			told[path] = true
			out.Troubles = append(out.Troubles, Trouble{Path: path, Reason: evidence.GapUnarmedMapping, Detail: fmt.Sprintf(format, args...)})
		}
	}
	for _, m := range maps {
		mine := false
		for i := range h.held {
			held := &h.held[i]
			if !held.is(m) && !held.shows(p, m) {
				continue
			}
			mine = true
			path := held.match.Path
			if m.Shared || m.Writable {
				tell(path, "process %d has mapped the file %s: no probe can fire there", p.Pid, kindOf(m))
				continue
			}
			lost, of, err := held.lost(h.engine.machine, p, m)
			if alive := p.Alive(); alive != nil {
				return Looked{}, false, alive // the number may have been another's
			}
			doubt = doubt || err != nil || lost > 0
			switch {
			case err != nil:
				tell(path, "the mapping of process %d could not be read: %v", p.Pid, err)
			case lost > 0:
				tell(path, "process %d runs the file with %d of %d sites taken out of its own memory", p.Pid, lost, of)
			}
		}
		if !mine {
			out.Other = append(out.Other, m)
		}
	}
	return out, doubt, nil
}

func kindOf(m process.Mapping) string {
	switch {
	case m.Shared && m.Writable:
		return "shared, writable and executable"
	case m.Shared:
		return "shared and executable"
	}
	return "writable and executable"
}

// is reports whether a mapping is of the held file, by the identity that /proc
// shows on most kernels and file systems.
func (h *held) is(m process.Mapping) bool {
	return h.identity(m.File)
}

func (h *held) identity(f process.File) bool {
	return f == h.merged || f == process.File{Dev: h.stamp.dev, Ino: h.stamp.ino}
}

// named reports whether a mapping has the name of the held file. In a mount
// namespace of its own, a process may have another file under it.
func (h *held) named(m process.Mapping) bool { return m.Path == h.match.Path && !m.Deleted }

// shows reports whether a mapping of that name is of the held file where
// /proc/PID/maps has another identity for it than stat(2): btrfs has devices of
// its own for its subvolumes, and overlayfs over several file systems one for
// each. It asks for what the kernel knows, and no file system's server.
func (h *held) shows(p *process.Process, m process.Mapping) bool {
	if !h.named(m) {
		return false
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, p.Link(m), unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_INO, &st); err != nil {
		return false
	}
	return h.identity(process.File{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino})
}

// lost says how many of the file's attached sites do not read as a breakpoint
// in a mapping of a process, of how many that it covers.
func (h *held) lost(machine Machine, p *process.Process, m process.Mapping) (lost, of int, err error) {
	var at, without []uintptr
	for _, o := range h.file.armedOffsets() {
		if o >= m.Offset && o-m.Offset < m.End-m.Start {
			at = append(at, uintptr(m.Start+o-m.Offset))
		}
	}
	ok, err := patched(p.Thread, at, machine.breakpoint)
	if errors.Is(err, unix.ESRCH) {
		err = process.ErrGone
	}
	for i, yes := range ok {
		if !yes {
			without = append(without, at[i])
		}
	}
	calls, otherErr := optimised(machine, p, without)
	return len(without) - calls, len(at), cmp.Or(err, otherErr)
}
