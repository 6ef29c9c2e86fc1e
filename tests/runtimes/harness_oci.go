package runtimes

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// OCI is a runtime without an engine, runc or crun: bundles of our own, with the hook
// in their configuration. Each container's root is an overlay over one image, which is
// a directory.
type OCI struct {
	Scratch *Scratch
	Name    string // of the runtime
	Image   string // what all containers begin with
	States  string // where the runtime keeps the states of containers

	program []string
	hook    string // the hook's program
	socket  string
}

// OpenOCI returns one in s for the program at path.
func OpenOCI(t T, s *Scratch, name, path string) *OCI {
	t.Helper()
	o := &OCI{Scratch: s, Name: name, Image: s.mkdir(t, name, "image"), States: s.mkdir(t, name, "states"), program: []string{path}}
	if name == "crun" && hybrid() {
		// It refuses hosts in the hybrid cgroup mode, so it is shown the unified
		// hierarchy and no other. Its containers are in the same cgroups.
		o.program = []string{"unshare", "--mount", "--propagation", "private", "--", "sh", "-c", `mount -t cgroup2 none /sys/fs/cgroup && exec "$0" "$@"`, path}
	}
	return o
}

// hybrid reports whether there are other cgroup hierarchies besides the unified one.
func hybrid() bool {
	var fs unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &fs) == nil && fs.Type != unix.CGROUP2_SUPER_MAGIC
}

// InstallHook has containers that are made from now on run the hook.
func (o *OCI) InstallHook(program, socket string) { o.hook, o.socket = program, socket }

// command is the runtime with our state directory.
func (o *OCI) command(args ...string) *exec.Cmd {
	args = append(append(o.program[:len(o.program):len(o.program)], "--root", o.States), args...)
	return exec.Command(args[0], args[1:]...)
}

// OCIContainer is one container, whose process the runtime waits for.
type OCIContainer struct {
	ID string

	o      *OCI
	bundle string
	run    *process
}

// Bundle says what is in a bundle's configuration.
type Bundle struct {
	Args     []string
	Memory   int64 // bytes; 0 is no limit
	SharePID bool  // no pid namespace of its own
}

// Make makes a container's bundle.
func (o *OCI) Make(t T, id string, b Bundle) *OCIContainer {
	t.Helper()
	c := &OCIContainer{ID: id, o: o, bundle: o.Scratch.mkdir(t, o.Name, "bundles", id)}
	for _, dir := range []string{"rootfs", "upper", "work"} {
		o.Scratch.mkdir(t, o.Name, "bundles", id, dir)
	}
	root := filepath.Join(c.bundle, "rootfs")
	if err := syscall.Mount("overlay", root, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", o.Image, c.bundle, c.bundle)); err != nil {
		t.Fatalf("mount %s: %v", root, err)
	}
	namespaces := []map[string]string{{"type": "mount"}, {"type": "ipc"}}
	if !b.SharePID {
		namespaces = append(namespaces, map[string]string{"type": "pid"})
	}
	linux := map[string]any{"cgroupsPath": o.Scratch.Cgroup + "/" + id, "namespaces": namespaces}
	if b.Memory > 0 {
		linux["resources"] = map[string]any{"memory": map[string]any{"limit": b.Memory}}
	}
	hooks := map[string]any{}
	if o.hook != "" {
		for _, stage := range []string{"createRuntime", "poststop"} {
			hooks[stage] = []any{map[string]any{"path": o.hook, "args": []string{"probity-hook", stage, "--socket", o.socket}, "timeout": 30}}
		}
	}
	config, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.2",
		"process":    map[string]any{"user": map[string]int{"uid": 0, "gid": 0}, "args": b.Args, "env": []string{"PATH=/bin"}, "cwd": "/"},
		"root":       map[string]string{"path": "rootfs"},
		"mounts":     []any{map[string]string{"destination": "/proc", "type": "proc", "source": "proc"}},
		"hooks":      hooks, "linux": linux,
	})
	if err == nil {
		err = os.WriteFile(filepath.Join(c.bundle, "config.json"), config, 0o644)
	}
	if err != nil {
		t.Fatalf("bundle %s: %v", id, err)
	}
	return c
}

// TryStart starts the container, again where it has ended, and returns the runtime's
// refusal.
func (c *OCIContainer) TryStart(t T) error {
	t.Helper()
	log, pid := filepath.Join(c.bundle, "log"), filepath.Join(c.bundle, "pid")
	if err := os.RemoveAll(pid); err != nil {
		t.Fatalf("%s: %v", c.ID, err)
	}
	run, err := start(c.o.Name, log, c.o.command("run", "--bundle", c.bundle, "--pid-file", pid, c.ID))
	if err != nil {
		t.Fatalf("%v", err)
	}
	c.run = run
	ctx, cancel := within(t, Patience)
	defer cancel()
	for ctx.Err() == nil {
		select {
		case <-run.done:
			if _, err := os.Stat(pid); err != nil { // it never ran
				return fmt.Errorf("%s run: %w\n%s", c.o.Name, run.err, run.tail())
			}
			return nil
		default:
		}
		if c.running() {
			return nil
		}
		pause(ctx)
	}
	return fmt.Errorf("container %s does not start\n%s", c.ID, run.tail())
}

// running asks the runtime.
func (c *OCIContainer) running() bool {
	if _, err := os.Stat(filepath.Join(c.bundle, "pid")); err != nil {
		return false
	}
	out, err := output(c.o.command("state", c.ID))
	var state struct{ Status string }
	return err == nil && json.Unmarshal([]byte(out), &state) == nil && state.Status == "running"
}

// Wait waits for the container's end and returns its exit code.
func (c *OCIContainer) Wait(t T) int {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	select {
	case <-c.run.done:
	case <-ctx.Done():
		t.Fatalf("container %s does not end", c.ID)
	}
	return c.run.cmd.ProcessState.ExitCode()
}

// Pid returns the pid of the container's init on the host.
func (c *OCIContainer) Pid(t T) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.bundle, "pid"))
	pid := 0
	if err == nil {
		_, err = fmt.Sscan(string(b), &pid)
	}
	if err != nil {
		t.Fatalf("%s: %v", c.ID, err)
	}
	return pid
}

// Stop stops the container at once.
func (c *OCIContainer) Stop(t T) {
	t.Helper()
	if _, err := output(c.o.command("kill", c.ID, "KILL")); err != nil {
		t.Fatalf("%v", err)
	}
	c.Wait(t)
}

// Remove removes what is left of the container.
func (c *OCIContainer) Remove(t T) {
	t.Helper()
	if err := syscall.Unmount(filepath.Join(c.bundle, "rootfs"), 0); err != nil {
		t.Fatalf("unmount the root of %s: %v", c.ID, err)
	}
	if err := os.RemoveAll(c.bundle); err != nil {
		t.Fatalf("%s: %v", c.ID, err)
	}
}

// TryExec runs a program in the container.
func (c *OCIContainer) TryExec(ctx context.Context, args ...string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := output(c.o.command(append([]string{"exec", c.ID}, args...)...))
	return err
}

// Version says which runtime it is.
func (o *OCI) Version(t T) string {
	t.Helper()
	out, err := output(exec.Command(o.program[len(o.program)-1], "--version"))
	if err != nil {
		t.Fatalf("%v", err)
	}
	return strings.Fields(out)[2]
}
