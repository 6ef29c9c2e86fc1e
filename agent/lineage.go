package agent

import (
	"fmt"
	"os"
	"path"
	"strings"

	"probity/bpf/probe"
	"probity/runtime/container"
	"probity/runtime/process"
)

// maxPasses bounds how often a container's processes are listed until no new
// one is found: one that was born meanwhile is known by its parent.
const maxPasses = 16

// already tells the kernel of the processes that the container had before it
// was armed: whoever is in its cgroup by then and is not its runtime. It returns
// how many cannot be told from the runtime's, or not be followed; of what those
// do, probes that count for the container's own processes see nothing.
func (a *Agent) already(h *probe.Handle, n container.Notice) (unknown int) {
	seen := map[int]bool{}
	for range maxPasses {
		pids, whole, err := a.cgroups.Procs(n.Identity.CgroupPath, n.Identity.CgroupID)
		if err != nil || !whole {
			unknown++
		}
		fresh := false
		for _, pid := range pids {
			if seen[pid] {
				continue
			}
			seen[pid], fresh = true, true
			switch who, err := whose(pid); {
			case err != nil || who == runtimes && pid == n.Pid:
			case who == containers:
				if err := h.AddProcess(pid); err != nil {
					a.log.Debug("follow a process", "container", n.Identity.ID, "pid", pid, "err", err)
					unknown++
				}
			case pid != n.Pid: // which will call execve, if it is the runtime's
				unknown++
			}
		}
		if !fresh {
			return unknown
		}
	}
	return unknown + 1 // they are born faster than they are listed
}

// around lists the ids of the cgroups around one, innermost first, as far as the
// agent sees them: it is armed in none that it is in itself.
func (a *Agent) around(of string) (ids []uint64) {
	for of = path.Dir(of); of != "/" && of != "."; of = path.Dir(of) {
		id, err := a.cgroups.ID(of)
		if err != nil {
			return ids // it has gone, and with it what was to be armed
		}
		ids = append(ids, id)
	}
	return ids
}

// Whose process one in a container's cgroup is.
type whoever int

const (
	nobodys    whoever = iota // it cannot be told
	runtimes                  // it has not become the container yet
	containers                // it runs a program of the container's root
)

// whose tells a container's process from its runtime's by where its program
// is: on a mount of the container, or elsewhere. runc calls itself runc:[...]
// while it works in the cgroup, but anybody may: a container's program is its
// own whatever it is called, and a name excuses only the first process.
func whose(pid int) (whoever, error) {
	p, err := process.Open(pid)
	if err != nil {
		return nobodys, err
	}
	defer p.Close()
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return nobodys, err
	}
	own, err := p.OwnProgram()
	switch {
	case err != nil:
		return nobodys, err // it has ended, or is a zombie, which does nothing any more
	case own:
		return containers, p.Alive()
	case strings.HasPrefix(string(comm), "runc:["):
		return runtimes, p.Alive()
	}
	return nobodys, p.Alive()
}
