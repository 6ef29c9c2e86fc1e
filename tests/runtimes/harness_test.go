package runtimes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The harness itself: a pod with the demo's image starts, runs, is seen, and
// leaves nothing.
func TestContainerd(t *testing.T) {
	c := StartContainerd(t)
	archive := c.Scratch.Path("image.tar")
	digest := DemoImage(t, c.Scratch, filepath.Join(repository(t), "tests/demo/image"), archive)
	c.Load(t, archive)
	if got := c.Digest(t, DemoImageName); got != digest {
		t.Errorf("containerd says the digest is %s, it is %s", got, digest)
	}
	if _, err := os.Stat(c.NRISocket); err != nil {
		t.Errorf("NRI: %v", err)
	}
	x := c.Run(t, Spec{Image: DemoImageName, Name: "caller", Args: []string{"call"}})
	if code := x.Wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if out := x.Output(t); !strings.Contains(out, "hello") {
		t.Errorf("output %q", out)
	}
	c.Restart(t)
	x.Remove(t)
}

// The same for podman; and both runtimes know the image by one digest, the
// archive's.
func TestPodman(t *testing.T) {
	p := NewPodman(t)
	archive := p.Scratch.Path("image.tar")
	digest := DemoImage(t, p.Scratch, filepath.Join(repository(t), "tests/demo/image"), archive)
	p.Load(t, archive)
	if got := p.Digest(t, DemoImageName); got != digest {
		t.Errorf("podman says the digest is %s, it is %s", got, digest)
	}
	id, out := p.Run(t, "--name", "caller", DemoImageName, "call")
	if len(id) != 64 || !strings.Contains(out, "hello") {
		t.Errorf("id %q, output %q", id, out)
	}
	p.Start(t, id)
	if code := p.Wait(t, id); code != 0 {
		t.Errorf("exit code %d", code)
	}
	p.Rm(t, id)
}

// Whatever a test leaves running is ended and removed.
func TestSweep(t *testing.T) {
	var left []*Scratch
	forever := func(t *testing.T, s *Scratch) string {
		archive, _ := BuildImage(t, s, "localhost/forever:latest", []string{"/forever"},
			HostFile(t, CompileC(t, s, "forever", "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n", "-static"), "/forever"))
		return archive
	}
	t.Run("podman", func(t *testing.T) {
		p := NewPodman(t)
		left = append(left, p.Scratch)
		p.Load(t, forever(t, p.Scratch))
		if id := p.Detach(t, "localhost/forever:latest"); p.Pid(t, id) == 0 {
			t.Error("no pid")
		}
	})
	t.Run("containerd killed", func(t *testing.T) {
		c := StartContainerd(t)
		left = append(left, c.Scratch)
		c.Load(t, forever(t, c.Scratch))
		if x := c.Run(t, Spec{Image: "localhost/forever:latest", Name: "forever"}); x.Pid(t) == 0 {
			t.Error("no pid")
		}
		c.Kill(t)
	})
	for _, s := range left {
		if pids := s.processes(); len(pids) > 0 {
			t.Errorf("processes %v are left", pids)
		}
		if mounts, err := mountsBelow(s.Dir); err != nil || len(mounts) > 0 {
			t.Errorf("mounts %q are left (%v)", mounts, err)
		}
		if groups, _ := filepath.Glob("/sys/fs/cgroup/*" + s.Cgroup); len(groups) > 0 {
			t.Errorf("cgroups %q are left", groups)
		}
		if _, err := os.Stat(s.Dir); !os.IsNotExist(err) {
			t.Errorf("%s is left", s.Dir)
		}
	}
}

// What is swept is not what another scratch directory's name begins with.
func TestNamed(t *testing.T) {
	s := &Scratch{Dir: "/tmp/probity-123"}
	for cmdline, want := range map[string]bool{
		"conmon\x00/tmp/probity-123/podman": true, "x\x00/tmp/probity-123": true, "--root=/tmp/probity-123\x00y": true,
		"/tmp/probity-1234/x\x00/tmp/probity-123/y": true, "/tmp/probity-1234/x": false, "/tmp/probity-12": false, "": false,
	} {
		if s.named([]byte(cmdline)) != want {
			t.Errorf("%q: %v", cmdline, !want)
		}
	}
}
