package main

import (
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/runtime/container"
	"probity/runtime/handoff"
	"probity/runtime/handoff/wire"
	"probity/runtime/oci"
	"probity/tests/need"
)

// podman is a podman with a store of its own.
type podman struct {
	t    *testing.T
	args []string
}

const image = "localhost/hook-test:1"

func newPodman(t *testing.T, socket string) *podman {
	t.Helper()
	path := need.Podman(t)
	runc := need.Runc(t)
	busybox := need.Command(t, "busybox")[0]
	f, err := elf.Open(busybox)
	if err != nil {
		t.Fatal(err)
	}
	libs, err := f.ImportedLibraries()
	f.Close()
	if err != nil || len(libs) > 0 {
		t.Fatalf("%s is not static, it needs %v: install busybox-static", busybox, libs)
	}
	dir, err := os.MkdirTemp("", "hook-podman") // conmon's socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	p := &podman{t: t, args: []string{path,
		"--root", dir + "/root", "--runroot", dir + "/run", "--tmpdir", dir + "/tmp",
		"--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime", runc, "--hooks-dir", dir + "/hooks"}}
	t.Cleanup(func() {
		p.run("rm", "--all", "--force", "--time=0")
		// The store's driver mounts its own directory privately, and a monitor's
		// podman that is still cleaning up does so again.
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for deadline := time.Now().Add(3 * time.Minute); ; <-tick.C {
			if err := unix.Unmount(dir+"/root/overlay", unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
				t.Errorf("unmount the store: %v", err)
			}
			err := os.RemoveAll(dir)
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Error(err)
				return
			}
		}
	})
	hookFiles(t, dir+"/hooks", socket)

	root := dir + "/image"
	if err := os.MkdirAll(root+"/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(root+"/bin/busybox", b, 0o755), os.Symlink("busybox", root+"/bin/sh")); err != nil {
		t.Fatal(err)
	}
	tar := dir + "/image.tar"
	if out, err := exec.Command("tar", "-C", root, "-cf", tar, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %s, %v", out, err)
	}
	if out, err := p.run("import", tar, image); err != nil {
		t.Fatalf("podman import: %s, %v", out, err)
	}
	return p
}

// hookFiles makes the hooks' configurations from those that are shipped: only
// the program, the socket and further arguments differ.
func hookFiles(t *testing.T, dir, socket string, args ...any) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	shipped, err := filepath.Glob("../packaging/hooks/*.json")
	if err != nil || len(shipped) != 2 {
		t.Fatalf("%v, %v", shipped, err)
	}
	for _, path := range shipped {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var config map[string]any
		if err := json.Unmarshal(b, &config); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		hook := config["hook"].(map[string]any)
		hook["path"] = program(t)
		hook["args"] = append(append(hook["args"].([]any), "--socket", socket), args...)
		if b, err = json.Marshal(config); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func (p *podman) run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.args[0], append(p.args[1:len(p.args):len(p.args)], args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// container runs a shell command in a container, with a directory at /out. The
// limits and the network are what a restricted host permits.
func (p *podman) container(name, out, script string) (string, error) {
	return p.run("run", "--rm", "--name", name, "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--network=none",
		"--volume", out+":/out", image, "/bin/sh", "-c", script)
}

// The whole way: podman, runc, the hook, the socket, the cross-checks.
func TestPodman(t *testing.T) {
	need.Podman(t)
	type seen struct {
		n   container.Notice
		err error
	}
	out := t.TempDir()
	ran := filepath.Join(out, "ran")
	finished := make(chan struct{}) // podman run has returned
	notices := make(chan seen, 8)
	socket := agent(t, handoff.Config{Handle: func(_ context.Context, r handoff.Request) handoff.Answer {
		n, err := oci.Notice(r.Stage.String(), r.Body, r.Peer.Pid)
		if r.Stage == wire.CreateRuntime && err == nil {
			err = atTheBarrier(n, ran, finished)
			if !r.Peer.Alive() {
				err = errors.Join(err, errors.New("the hook does not wait"))
			}
		}
		notices <- seen{n, err}
		return handoff.Answer{}
	}})
	p := newPodman(t, socket)
	text, err := p.container("web-1", out, "echo yes > /out/ran")
	close(finished)
	if err != nil {
		t.Fatalf("%s, %v", text, err)
	}
	if _, err := os.Stat(ran); err != nil {
		t.Errorf("the container has not run: %v", err)
	}
	var id string
	for _, want := range []container.Kind{container.Starting, container.Stopped} {
		select {
		case s := <-notices:
			if s.err != nil {
				t.Fatal(s.err)
			}
			n := s.n
			if n.Kind != want || n.Identity.Runtime != container.Podman || n.Source != oci.Source || len(n.Identity.ID) != 64 || id != "" && n.Identity.ID != id {
				t.Errorf("%v: %+v", want, n)
			}
			id = n.Identity.ID
			if want != container.Starting {
				continue
			}
			if n.Identity.Name != "web-1" || n.Identity.Annotations["io.container.manager"] != "libpod" {
				t.Errorf("identity %+v", n.Identity)
			}
			if !strings.HasSuffix(n.Bundle, "-containers/"+id+"/userdata") || n.Identity.CgroupID == 0 || !strings.Contains(n.Identity.CgroupPath, id) {
				t.Errorf("bundle %s, cgroup %s %d", n.Bundle, n.Identity.CgroupPath, n.Identity.CgroupID)
			}
			if !hasMount(n.Mounts, container.Mount{Destination: "/out", Type: "bind", Source: out}) || !hasMount(n.Mounts, container.Mount{Destination: "/proc", Type: "proc", Source: "proc"}) {
				t.Errorf("mounts %+v", n.Mounts)
			}
		case <-time.After(within):
			t.Fatalf("no notice of %v", want)
		}
	}
}

func hasMount(ms []container.Mount, want container.Mount) bool {
	for _, m := range ms {
		if m == want {
			return true
		}
	}
	return false
}

// atTheBarrier looks at a container that waits for the hook: its process
// lives, its root file system is there, and it goes nowhere.
func atTheBarrier(n container.Notice, ran string, finished <-chan struct{}) error {
	if _, err := os.Lstat(filepath.Join(n.Rootfs, "bin", "busybox")); err != nil {
		return fmt.Errorf("the root file system is not mounted: %w", err)
	}
	held := time.NewTimer(200 * time.Millisecond)
	defer held.Stop()
	select {
	case <-finished:
		return errors.New("podman did not wait for the answer")
	case <-held.C:
	}
	if err := unix.Kill(n.Pid, 0); err != nil {
		return fmt.Errorf("pid %d: %w", n.Pid, err)
	}
	if _, err := os.Stat(ran); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the container ran before the answer: %v", err)
	}
	return nil
}

func TestPodmanRefused(t *testing.T) {
	need.Podman(t)
	out := t.TempDir()
	p := newPodman(t, agent(t, handoff.Config{Handle: func(context.Context, handoff.Request) handoff.Answer {
		return handoff.Answer{Refuse: true, Message: "policy p is closed"}
	}}))
	text, err := p.container("web-2", out, "echo yes > /out/ran")
	if err == nil || !strings.Contains(text, "refused: policy p is closed") {
		t.Errorf("%s, %v", text, err)
	}
	if _, err := os.Stat(out + "/ran"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it ran: %v", err)
	}
}

func TestPodmanWithoutAgent(t *testing.T) {
	need.Podman(t)
	out := t.TempDir()
	p := newPodman(t, out+"/none.sock")
	if text, err := p.container("web-3", out, "echo yes > /out/ran"); err != nil || text != "" {
		t.Errorf("%s, %v", text, err)
	}
	if _, err := os.Stat(out + "/ran"); err != nil {
		t.Error(err)
	}
}
