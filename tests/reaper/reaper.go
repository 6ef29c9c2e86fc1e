// Package reaper ends what a program's children leave behind. podman and
// containerd start their helpers (conmon, shims) so that they are nobody's
// child and become init's; a program that has called [Become] gets them
// instead, and the containers below them, and [Reap] ends them all.
//
// It knows a process only by descent, so it ends nothing that it was not the
// cause of. Reap collects every child's status: call it when nobody else waits
// for one.
package reaper

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Become makes this process the one that orphans among its descendants are
// given to.
func Become() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper of orphans: %w", err)
	}
	return nil
}

// Reap collects every child that has ended, kills those that have not, goes on
// until there is none, and returns the command lines of those that it killed.
func Reap() []string {
	var killed []string
	for pids := children(); len(pids) > 0; pids = children() { // a child's end brings us its children
		for _, pid := range pids {
			if p, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); p != 0 || err != nil {
				continue
			}
			killed = append(killed, commandLine(pid))
			_ = unix.Kill(pid, unix.SIGKILL)
			_, _ = unix.Wait4(pid, nil, 0, nil)
		}
	}
	return killed
}

func commandLine(pid int) string {
	b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	return strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
}

// children lists the children of all our threads.
func children() []int {
	var pids []int
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			continue // that thread has ended
		}
		for f := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
