package runtimes

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"probity/tests/need"
)

// Podman is the installed podman with storage, state and configuration of its
// own; the system's containers and hook directories are not seen.
type Podman struct {
	Scratch  *Scratch
	Root     string // graph root
	RunRoot  string
	HooksDir string // without a hook until InstallHook
	States   string // where its runc keeps the states of containers

	path string
	runc string // with that directory
}

// NewPodman returns one for a test, which needs root, podman and runc.
func NewPodman(t testing.TB) *Podman {
	t.Helper()
	path := need.Podman(t)
	return OpenPodman(t, NewScratch(t), path)
}

// OpenPodman returns one in s.
func OpenPodman(t T, s *Scratch, path string) *Podman {
	t.Helper()
	p := &Podman{
		Scratch:  s,
		Root:     s.mkdir(t, "podman", "root"),
		RunRoot:  s.mkdir(t, "podman", "run"),
		HooksDir: s.mkdir(t, "podman", "hooks.d"),
		States:   s.mkdir(t, "podman", "runc"),
		path:     path,
	}
	// Not an option of podman's: what it starts to clean up would not have it.
	s.mkdir(t, "podman", "bin")
	p.runc = s.write(t, "podman/bin/runc", fmt.Sprintf("#!/bin/sh\nexec %s --root %s \"$@\"\n", runc(), p.States))
	if err := os.Chmod(p.runc, 0o755); err != nil {
		t.Fatalf("podman: %v", err)
	}
	s.write(t, "podman/storage.conf", fmt.Sprintf("[storage]\ndriver = \"overlay\"\ngraphroot = %q\nrunroot = %q\n", p.Root, p.RunRoot))
	s.write(t, "podman/containers.conf", fmt.Sprintf("[engine]\nevents_logger = \"none\"\ncgroup_manager = \"cgroupfs\"\n[network]\nnetwork_config_dir = %q\n", s.mkdir(t, "podman", "networks")))
	t.Cleanup(func() {
		ctx, cancel := within(nil, Patience)
		defer cancel()
		if _, err := output(p.command(ctx, "rm", "--all", "--force", "--time", "0")); err != nil {
			t.Errorf("podman: %v", err)
		}
	})
	return p
}

// command is podman with our directories. crun refuses to run in hybrid cgroup
// mode, hence runc; cgroupfs, hence no systemd is needed.
func (p *Podman) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.path, append([]string{
		"--root", p.Root, "--runroot", p.RunRoot, "--tmpdir", p.Scratch.Path("podman", "tmp"), "--hooks-dir", p.HooksDir,
		"--storage-driver", "overlay", "--runtime", p.runc, "--cgroup-manager", "cgroupfs", "--events-backend", "none",
	}, args...)...)
	cmd.Dir = p.Scratch.Dir // conmon writes there that a container was out of memory
	cmd.Env = append(os.Environ(),
		"CONTAINERS_STORAGE_CONF="+p.Scratch.Path("podman", "storage.conf"),
		"CONTAINERS_CONF="+p.Scratch.Path("podman", "containers.conf"),
		"PATH="+os.Getenv("PATH")+":"+filepath.Dir(runc()),
	)
	return cmd
}

// Try runs podman with args and returns its stdout.
func (p *Podman) Try(t T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	return output(p.command(ctx, args...))
}

// Podman runs podman with args, which must succeed, and returns its stdout.
func (p *Podman) Podman(t T, args ...string) string {
	t.Helper()
	out, err := p.Try(t, args...)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return out
}

// Load loads an OCI archive.
func (p *Podman) Load(t T, archive string) {
	t.Helper()
	p.Podman(t, "load", "--quiet", "--input", archive)
}

// Digest returns the manifest digest that podman has for an image's name.
func (p *Podman) Digest(t T, name string) string {
	t.Helper()
	return strings.TrimSpace(p.Podman(t, "image", "inspect", "--format", "{{.Digest}}", name))
}

// limits are the options of every container: the ulimits are for hosts
// without CAP_SYS_RESOURCE, where podman's own defaults cannot be set.
func (p *Podman) limits(verb string, options []string) []string {
	return append([]string{
		verb, "--pull", "never", "--network", "none", "--cgroup-parent", p.Scratch.Cgroup,
		"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096",
	}, options...)
}

// Run runs a container to its end and returns its full id and its output. args
// are podman's options, the image and the container's arguments. A non-zero
// exit code ends the test.
func (p *Podman) Run(t T, args ...string) (id, stdout string) {
	t.Helper()
	id, stdout, err := p.TryRun(t, args...)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return id, stdout
}

// TryRun is Run for containers that may fail. The id is empty if podman did
// not get as far as to create one.
func (p *Podman) TryRun(t T, args ...string) (id, stdout string, err error) {
	t.Helper()
	dir, err := os.MkdirTemp(p.Scratch.Dir, "run")
	if err != nil {
		t.Fatalf("podman: %v", err)
	}
	file := filepath.Join(dir, "id")
	stdout, err = p.Try(t, p.limits("run", append([]string{"--cidfile", file}, args...))...)
	b, _ := os.ReadFile(file)
	return strings.TrimSpace(string(b)), stdout, err
}

// Detach runs a container in the background and returns its full id.
func (p *Podman) Detach(t T, args ...string) string {
	t.Helper()
	return strings.TrimSpace(p.Podman(t, p.limits("run", append([]string{"--detach"}, args...))...))
}

// Create makes a container and returns its full id.
func (p *Podman) Create(t T, args ...string) string {
	t.Helper()
	return strings.TrimSpace(p.Podman(t, p.limits("create", args)...))
}

// Start starts a container that was created or has ended.
func (p *Podman) Start(t T, id string) { t.Helper(); p.Podman(t, "start", id) }

// Stop stops a container at once.
func (p *Podman) Stop(t T, id string) { t.Helper(); p.Podman(t, "stop", "--time", "0", id) }

// Rm removes a container and its storage.
func (p *Podman) Rm(t T, id string) { t.Helper(); p.Podman(t, "rm", "--force", "--time", "0", id) }

// Exec runs a program in a container and returns its stdout.
func (p *Podman) Exec(t T, id string, args ...string) string {
	t.Helper()
	return p.Podman(t, append([]string{"exec", id}, args...)...)
}

// Wait waits for a container's end and returns its exit code.
func (p *Podman) Wait(t T, id string) int {
	t.Helper()
	return p.number(t, "wait", id)
}

// Pid returns the pid of a container's init on the host.
func (p *Podman) Pid(t T, id string) int {
	t.Helper()
	return p.number(t, "inspect", "--format", "{{.State.Pid}}", id)
}

func (p *Podman) number(t T, args ...string) int {
	t.Helper()
	out := strings.TrimSpace(p.Podman(t, args...))
	n, err := strconv.Atoi(out)
	if err != nil {
		t.Fatalf("podman %s: %q is not a number", strings.Join(args, " "), out)
	}
	return n
}

// InstallHook writes the packaged hook files (packaging/hooks in repository)
// into podman's own hook directory, for another program and socket.
func (p *Podman) InstallHook(t T, repository, program, socket string) {
	t.Helper()
	for _, name := range []string{"probity-create.json", "probity-poststop.json"} {
		text, err := hookFile(filepath.Join(repository, "packaging", "hooks", name), program, socket)
		if err != nil {
			t.Fatalf("hook: %v", err)
		}
		s := p.Scratch
		s.write(t, "podman/hooks.d/"+name, text)
	}
}
