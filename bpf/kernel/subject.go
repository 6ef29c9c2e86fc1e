package kernel

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The subject is a program of 600 bytes that does nothing but call three
// functions: probes are tried on it and not on ourselves, because a uretprobe
// breaks a Go program and the test of seccomp kills whom it finds. It lives in
// a memfd: no file is left anywhere, and no path can be swapped.
//
// These are file offsets, the .org lines of asm/subject_*.S.
const (
	offFunction  = 0x140
	offReturning = 0x150
	offMarker    = 0x160
	offSemaphore = 0x170
)

type subject struct {
	file *os.File // open for reading: a file open for writing cannot be executed
	path string   // names the descriptor, for this process
}

func newSubject() (_ *subject, err error) {
	// Who forks while the file is open for writing holds it so until its exec,
	// and nobody can execute it: nobody forks meanwhile.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	// MFD_EXEC came with 6.3, and a kernel set to vm.memfd_noexec=1 wants it.
	fd, err := unix.MemfdCreate("probity-subject", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("probity-subject", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	w := os.NewFile(uintptr(fd), "probity-subject")
	defer w.Close()
	if _, err := w.Write(subjectELF); err != nil {
		return nil, fmt.Errorf("write a file in memory: %w", err)
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", w.Fd()))
	if err != nil {
		return nil, fmt.Errorf("open a file in memory: %w", err)
	}
	return &subject{f, fmt.Sprintf("/proc/self/fd/%d", f.Fd())}, nil
}

// outcome is how a run of the subject ended.
type outcome struct {
	exit   int // -1 if by a signal
	signal unix.Signal
}

func (o outcome) String() string {
	if o.exit < 0 {
		return "it was killed by " + unix.SignalName(o.signal)
	}
	return fmt.Sprintf("it exited with %d", o.exit)
}

// run runs the subject with so many extra arguments.
func (s *subject) run(extra int) (outcome, error) {
	cmd := &exec.Cmd{
		// Handed over, and not by s.path: what Go moves about between fork and
		// exec can take the place of a descriptor that it does not know of.
		Path: "/proc/self/fd/3", ExtraFiles: []*os.File{s.file},
		Args: append([]string{"probity-subject"}, make([]string, extra)...), Env: []string{}, WaitDelay: time.Second,
	}
	if err := cmd.Start(); err != nil {
		return outcome{}, fmt.Errorf("run a program from memory: %w", err)
	}
	// The subject cannot loop; a kernel that never lets it go is stopped here,
	// and not waited for.
	timer := time.AfterFunc(2*time.Second, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	timer.Stop()
	st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return outcome{}, fmt.Errorf("run a program from memory: %w", err)
	case st.Exited():
		return outcome{exit: st.ExitStatus()}, nil
	}
	return outcome{exit: -1, signal: st.Signal()}, nil
}

func (s *subject) close() error { return s.file.Close() }
