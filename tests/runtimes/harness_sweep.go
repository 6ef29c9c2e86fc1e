package runtimes

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sweep ends and removes what is left of the scratch: first the processes that
// name its directory on their command line (daemons, shims, conmon) and those in
// its cgroup (containers), then mounts, cgroups and files. After an orderly end
// only files are left; it is for the others.
func (s *Scratch) sweep() error {
	deadline := time.Now().Add(Patience)
	for {
		pids := s.processes()
		if len(pids) == 0 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v do not end", pids)
		}
		waitGone(pids)
	}
	return errors.Join(s.unmount(), s.removeCgroups(), os.RemoveAll(s.Dir))
}

// waitGone kills pids and waits for each through its pidfd.
func waitGone(pids []int) {
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended
		}
		if unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil {
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
			// A child of ours that nobody waits for would stay a zombie.
			unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED|unix.WNOHANG, nil)
		}
		unix.Close(fd)
	}
}

func (s *Scratch) processes() []int {
	var pids []int
	dirs, _ := os.ReadDir("/proc")
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", d.Name(), "cmdline"))
		if err != nil || len(cmdline) == 0 { // gone, a zombie or a kernel thread
			continue
		}
		groups, _ := os.ReadFile(filepath.Join("/proc", d.Name(), "cgroup"))
		if s.named(cmdline) || bytes.Contains(groups, []byte(":"+s.Cgroup+"/")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// named reports whether a command line names the scratch directory, and not
// another one whose name begins as this one's does.
func (s *Scratch) named(cmdline []byte) bool {
	for _, after := range bytes.Split(cmdline, []byte(s.Dir))[1:] {
		if len(after) == 0 || after[0] < '0' || after[0] > '9' {
			return true
		}
	}
	return false
}

// unmount undoes every mount below the scratch directory, last first.
func (s *Scratch) unmount() error {
	points, err := mountsBelow(s.Dir)
	if err != nil {
		return err
	}
	slices.Reverse(points)
	var errs []error
	for _, point := range points {
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// mountsBelow lists the mount points at or below dir, in mount order.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var points []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // overlay options are long
	for lines.Scan() {
		field := strings.Fields(lines.Text())
		if len(field) > 4 && (field[4] == dir || strings.HasPrefix(field[4], dir+"/")) {
			points = append(points, field[4])
		}
	}
	return points, lines.Err()
}

// removeCgroups removes the scratch's cgroup from every hierarchy.
func (s *Scratch) removeCgroups() error {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*" + s.Cgroup)
	var errs []error
	for _, root := range append(roots, "/sys/fs/cgroup"+s.Cgroup) {
		var dirs []string
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		slices.Reverse(dirs) // children first
		for _, dir := range dirs {
			if err := removeCgroup(dir); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// removeCgroup removes one cgroup. The kernel answers EBUSY for a moment after
// its last process has been reaped.
func removeCgroup(dir string) error {
	for deadline := time.Now().Add(Patience); ; {
		err := syscall.Rmdir(dir)
		if err == nil || errors.Is(err, syscall.ENOENT) {
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
		unix.Poll(nil, 5)
	}
}
