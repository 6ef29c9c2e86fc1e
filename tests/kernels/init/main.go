// Command init is the first process of a virtual machine that tests/kernels
// boots: it mounts what a machine has mounted, runs the steps of its job, says
// on the console how each went, and powers off. Where the job wants it, systemd
// becomes the first process in its place, and the steps are a service of it.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"probity/tests/kernels/guest"
)

func main() {
	t := teller{w: os.Stdout}
	switch {
	case os.Getpid() == 1:
		first(&t)
	case len(os.Args) > 1 && os.Args[1] == asService:
		if err := steps(&t); err != nil {
			t.fail(err)
		} else {
			t.tell(guest.Line{Kind: guest.Down})
		}
		off()
	default:
		if err := steps(&t); err != nil {
			t.fail(err)
			os.Exit(1)
		}
	}
}

// teller writes whole lines, from whatever goroutine.
type teller struct {
	mu sync.Mutex
	w  io.Writer
}

func (t *teller) tell(l guest.Line) {
	b, err := json.Marshal(l)
	if err != nil {
		panic(err) // it is strings and numbers
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	// A kernel message may have left the console in the middle of a line.
	fmt.Fprintf(t.w, "\n%s%s\n", guest.Mark, b)
}

func (t *teller) fail(err error) { t.tell(guest.Line{Kind: guest.Fail, Text: err.Error()}) }

// first is process 1: it sets the machine up, lets a child run the steps, takes
// in whoever has lost its parent, and powers off. It never returns: the kernel
// would panic.
func first(t *teller) {
	defer off()
	j, err := job()
	if err != nil {
		t.fail(fmt.Errorf("read the job: %w", err))
		return
	}
	if err := setUp(t, j); err != nil {
		t.fail(err)
		return
	}
	if j.Systemd {
		t.fail(becomeSystemd()) // if it returns
		return
	}
	child, err := os.StartProcess("/init", []string{"/init"}, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Env:   []string{"PATH=" + path, "HOME=/tmp"},
	})
	if err != nil {
		t.fail(fmt.Errorf("start the steps: %w", err))
		return
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			t.fail(fmt.Errorf("wait: %w", err))
			return
		case pid == child.Pid && status.ExitStatus() != 0:
			t.fail(fmt.Errorf("the steps ended with %v", status))
			return
		case pid == child.Pid:
			t.tell(guest.Line{Kind: guest.Down})
			return
		}
	}
}

// off is the end of the machine.
func off() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // a machine without a power switch; QEMU has -no-reboot
	select {}
}

// asService is this program as a service of systemd.
const asService = "service"

// becomeSystemd makes systemd the first process. The userland is packages that were
// unpacked and not configured: what their scripts would have made is made here. On
// the way to the steps are the journal and what every machine sets up at its boot.
func becomeSystemd() error {
	for name, text := range map[string]string{
		"/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
		"/etc/passwd":     "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"/etc/group":      "root:x:0:\nnogroup:x:65534:\n",
		"/etc/systemd/system/steps.service": "[Unit]\nAfter=basic.target\nRequires=basic.target\nAllowIsolate=yes\n" +
			"[Service]\nType=exec\nExecStart=/init " + asService + "\nStandardOutput=file:/dev/console\nStandardError=file:/dev/console\n" +
			"Environment=PATH=" + path + " HOME=/root\nTimeoutStopSec=5\n",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/var/log/journal", "/root", "/home", "/srv"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	const systemd = "/lib/systemd/systemd"
	err := unix.Exec(systemd, []string{systemd, "--unit=steps.service", "--show-status=no"}, []string{"PATH=" + path})
	return fmt.Errorf("become systemd: %w", err)
}

func job() (j guest.Job, err error) {
	b, err := os.ReadFile(guest.JobPath)
	if err == nil {
		err = json.Unmarshal(b, &j)
	}
	return j, err
}

const path = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func setUp(t *teller, j guest.Job) error {
	if err := os.Setenv("PATH", path); err != nil {
		return err
	}
	// runc's pivot_root refuses to leave the kernel's very first mount, so the
	// root becomes a mount of its own above it.
	if err := errors.Join(os.MkdirAll("/root.d", 0o755), unix.Mount("/", "/root.d", "", unix.MS_BIND, ""), unix.Chdir("/root.d")); err != nil {
		return fmt.Errorf("bind the root: %w", err)
	}
	if err := errors.Join(unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/")); err != nil {
		return fmt.Errorf("change to the root: %w", err)
	}
	for _, m := range []struct{ kind, dir, options string }{
		{"devtmpfs", "/dev", ""},
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"tmpfs", "/tmp", "mode=1777"},
		{"tmpfs", "/run", "mode=755"},
		{"tmpfs", "/dev/shm", "mode=1777"},
		{"devpts", "/dev/pts", ""},
		{"tracefs", "/sys/kernel/tracing", ""},
		{"bpf", "/sys/fs/bpf", ""},
	} {
		if err := mount(m.kind, m.dir, m.options); err != nil {
			return err
		}
	}
	// Links that programs expect and devtmpfs does not make.
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(to, "/dev/"+name); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if err := applets(); err != nil {
		return err
	}
	if err := modules(); err != nil {
		return err
	}
	if err := cgroups(j.Cgroups); err != nil {
		return err
	}
	if err := loopback(); err != nil {
		return err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	t.tell(guest.Line{Kind: guest.Up, Release: unix.ByteSliceToString(u.Release[:])})
	return nil
}

func mount(kind, dir, options string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(kind, dir, kind, 0, options); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount %s (%s) on %s: %w", kind, options, dir, err)
	}
	return nil
}

// applets makes busybox the shell and whatever else no package brought.
func applets() error {
	out, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return fmt.Errorf("ask busybox what it can be: %w", err)
	}
	for name := range strings.FieldsSeq(string(out)) {
		if _, err := exec.LookPath(name); err == nil {
			continue
		}
		if err := os.Symlink("busybox", "/bin/"+name); err != nil {
			return err
		}
	}
	return nil
}

func modules() error {
	files, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil {
			return fmt.Errorf("load %s: %w", file, err)
		}
	}
	return nil
}

func cgroups(how guest.Cgroups) error {
	const dir = "/sys/fs/cgroup"
	if how == guest.V2 {
		return mount("cgroup2", dir, "")
	}
	if how != guest.V1 && how != guest.Hybrid {
		return fmt.Errorf("no such way to mount cgroups: %q", how)
	}
	if err := mount("tmpfs", dir, "mode=755"); err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/cgroups")
	if err != nil {
		return err
	}
	mounted := 0
	for line := range strings.Lines(string(b)) {
		name, _, _ := strings.Cut(line, "\t")
		if strings.HasPrefix(name, "#") {
			continue
		}
		// A controller that the kernel has for v2 only is EINVAL or ENOENT here.
		if mount("cgroup", filepath.Join(dir, name), name) == nil {
			mounted++
		} else if err := os.Remove(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if mounted == 0 {
		return errors.New("no cgroup v1 controller could be mounted")
	}
	if how == guest.Hybrid {
		return mount("cgroup2", dir+"/unified", "")
	}
	return nil
}

// loopback gives the machine its own address.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// steps runs the job.
func steps(t *teller) error {
	j, err := job()
	if err != nil {
		return fmt.Errorf("read the job: %w", err)
	}
	for _, s := range j.Steps {
		began := time.Now()
		exit, err := step(t, s)
		if err != nil {
			t.tell(guest.Line{Kind: guest.Out, Step: s.Name, Text: "init: " + err.Error()})
		}
		t.tell(guest.Line{Kind: guest.End, Step: s.Name, Exit: exit, Ms: time.Since(began).Milliseconds()})
	}
	return nil
}

func step(t *teller, s guest.Step) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(s.Limit)*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Args[0], s.Args[1:]...)
	cmd.Dir = s.Dir
	cmd.Env = append(os.Environ(), s.Env...)
	// A test that hangs says where, before it is killed.
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGQUIT) }
	cmd.WaitDelay = 5 * time.Second
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	told := make(chan struct{})
	go func() {
		defer close(told)
		lines := bufio.NewReader(r)
		for {
			text, err := lines.ReadString('\n')
			if text != "" {
				t.tell(guest.Line{Kind: guest.Out, Step: s.Name, Text: strings.TrimRight(text, "\n")})
			}
			if err != nil {
				return
			}
		}
	}()
	err := cmd.Run()
	w.Close()
	<-told
	exit := -1
	if cmd.ProcessState != nil {
		exit = cmd.ProcessState.ExitCode()
	}
	var ended *exec.ExitError
	if ctx.Err() != nil {
		return -1, fmt.Errorf("killed after %d seconds", s.Limit)
	}
	if err != nil && !errors.As(err, &ended) {
		return exit, err
	}
	return exit, nil
}
