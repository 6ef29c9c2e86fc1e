package agent

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/evidence"
	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/tests/gvisor"
	"probity/tests/need"
)

// buildFrom builds a program of runtime/sandbox's imitations.
func buildFrom(t *testing.T, module, name string) []byte {
	t.Helper()
	need.Root(t)
	need.Command(t, "go")
	out := t.TempDir() + "/program"
	cmd := exec.Command("go", "build", "-C", "../runtime/sandbox/testdata/"+module, "-o", out, "./"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GOWORK=off")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", name, err, b)
	}
	b, err := os.ReadFile(out)
	must(t, err)
	return b
}

// startBox starts a box whose program says "up" when it runs.
func startBox(t *testing.T, files map[string][]byte, args ...string) *box {
	t.Helper()
	b := newBoxOf(t, files, 1, args...)
	if line, err := b.out.ReadString('\n'); err != nil || line != "up\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return b
}

// Nothing is armed in a container that this kernel does not run, and the
// evidence says why.
func TestSandboxedRuntime(t *testing.T) {
	module := "\x00asm\x01\x00\x00\x00"
	network := buildFrom(t, "program", "network")
	for _, c := range []struct {
		name   string
		files  map[string][]byte
		args   []string
		starts string // what the container starts
		detail string // "" is armed
	}{
		{name: "gVisor", files: map[string][]byte{"bin/target": buildFrom(t, "gvisor", "runsc")}, starts: "/bin/target", detail: "gvisor.dev/gvisor/runsc"},
		{name: "ordinary", starts: "/bin/target"},
		{name: "WebAssembly", args: []string{"/bin/libwasmedge.so.0"}, starts: "/bin/app.wasm", detail: `"/bin/app.wasm", which is neither an ELF file nor a script`},
		{name: "native by a shim that also runs WebAssembly", args: []string{"/bin/libwasmedge.so.0"}, starts: "/bin/target"},
		{name: "WebAssembly in no layer", args: []string{"/bin/libwasmedge.so.0"}, starts: "/bin/nothing", detail: "/bin/nothing"},
		{name: "WebAssembly or not", args: []string{"/bin/libwasmedge.so.0"}, detail: "not known what the container starts"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t, bpf.Options{})
			files := map[string][]byte{"bin/target": network, "bin/libwasmedge.so.0": make([]byte, 4096), "bin/app.wasm": []byte(module)}
			for name, content := range c.files {
				files[name] = content
			}
			b := startBox(t, files, c.args...)
			notice := b.notice("c1")
			notice.Command = container.Command{Arg0: c.starts}
			n.notify(context.Background(), notice, yes)
			b.end()
			must(t, n.waitIdle(context.Background()))
			if p := n.Status().Problems; len(p) > 0 {
				t.Errorf("problems: %q", p)
			}
			obs, gaps := n.lines("c1")
			if len(obs) != 3 || len(gaps) != 0 {
				t.Errorf("%d probes, gaps %+v", len(obs), gaps)
			}
			for id, o := range obs {
				if sandboxed := o.State == evidence.NotArmed && o.Reason == evidence.SandboxedRuntime; sandboxed != (c.detail != "") || !strings.Contains(o.Detail, c.detail) || !o.Final {
					t.Errorf("%s: %+v", id, o)
				}
			}
		})
	}
}

// gVisor itself, created and not started. It has no cgroup of its own here, as
// several containers of one sandbox have none.
func TestSandboxedByGVisor(t *testing.T) {
	n := newNode(t, bpf.Options{})
	c := gvisor.Create(t, need.Runsc(t), nil)
	n.notify(context.Background(), container.Notice{
		Source: "nri:/test", Kind: container.Starting, Pid: c.Pid, At: cgroup.BootTime(),
		Identity: container.Identity{Runtime: container.Containerd, ID: "c1"},
	}, yes)
	c.Delete()
	must(t, n.waitIdle(context.Background()))
	obs, _ := n.lines("c1")
	for id, o := range obs {
		if o.State != evidence.NotArmed || o.Reason != evidence.SandboxedRuntime || !strings.Contains(o.Detail, "gvisor.dev/gvisor/runsc") || !o.Final {
			t.Errorf("%s: %+v", id, o)
		}
	}
	if len(obs) != 3 {
		t.Errorf("%d probes", len(obs))
	}
}

// A virtual machine, of the same program that is ordinary without one.
func TestSandboxedByMachine(t *testing.T) {
	kvm := need.KVM(t)
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, kvm.Fd(), 0xAE01 /* KVM_CREATE_VM */, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	defer unix.Close(int(fd))
	_, err := unix.FcntlInt(fd, unix.F_SETFD, 0) // what this test starts from here on has it too
	must(t, err)
	n := newNode(t, bpf.Options{})
	b := startBox(t, map[string][]byte{"bin/target": buildFrom(t, "program", "network")})
	n.notify(context.Background(), b.notice("c1"), yes)
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, _ := n.lines("c1")
	for id, o := range obs {
		if o.Reason != evidence.SandboxedRuntime || !strings.Contains(o.Detail, "kvm-vm") {
			t.Errorf("%s: %+v", id, o)
		}
	}
	if len(obs) != 3 {
		t.Errorf("%d probes", len(obs))
	}
}
