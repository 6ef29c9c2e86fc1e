package sandbox

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"probity/runtime/process"
	"probity/tests/need"
)

// imitations builds the programs of testdata: they have the names of gVisor's
// packages, and nothing else of it.
var imitations = sync.OnceValues(func() (map[string][]byte, error) {
	dir, err := os.MkdirTemp("", "probity-sandbox")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := map[string][]byte{}
	for _, c := range [][2]string{{"gvisor", "runsc"}, {"program", "network"}, {"program", "embedder"}} {
		cmd := exec.Command("go", "build", "-C", "testdata/"+c[0], "-ldflags=-s -w", "-o", dir+"/", "./"+c[1])
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GOWORK=off")
		if b, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w: %s", c[1], err, b)
		}
		if out[c[1]], err = os.ReadFile(filepath.Join(dir, c[1])); err != nil {
			return nil, err
		}
	}
	return out, nil
})

func imitation(t testing.TB, name string) []byte {
	t.Helper()
	need.Command(t, "go")
	all, err := imitations()
	if err != nil {
		t.Fatal(err)
	}
	return all[name]
}

// bazel returns a Go program as rules_go links it: its build information has no
// modules.
func bazel(t testing.TB, program []byte) []byte {
	t.Helper()
	all, err := sections(bytes.NewReader(program), int64(len(program)))
	if err != nil {
		t.Fatal(err)
	}
	out := bytes.Clone(program)
	for _, s := range all {
		if s.name == ".go.buildinfo" {
			version := int(out[s.off+32])
			out[s.off+32+1+uint64(version)] = 0 // the length of what follows
			return out
		}
	}
	t.Fatal("no .go.buildinfo")
	return nil
}

// run starts a program that says "up" when it runs and ends with its input.
func run(t testing.TB, cmd *exec.Cmd) (pid int) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "up\n" {
		t.Fatalf("%s says %q: %v", cmd.Path, line, err)
	}
	return cmd.Process.Pid
}

func file(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func judge(t testing.TB, pid int) (Facts, Verdict) {
	t.Helper()
	f, err := Look(pid)
	if err != nil {
		t.Errorf("look: %v", err)
	}
	return f, f.Judge()
}

// Programs that are recognised by what they were built from, whatever they are
// called and wherever they lie.
func TestImitations(t *testing.T) {
	for _, c := range []struct {
		name, program string
		change        func(testing.TB, []byte) []byte
		want          Kind
	}{
		{name: "module", program: "runsc", want: GVisor},
		{name: "no modules", program: "runsc", change: bazel, want: GVisor},
		{name: "dependency", program: "embedder", want: GVisor},
		{name: "only its network", program: "network"},
		{name: "only its network, no modules", program: "network", change: bazel},
	} {
		t.Run(c.name, func(t *testing.T) {
			program := imitation(t, c.program)
			if c.change != nil {
				program = c.change(t, program)
			}
			path := file(t, "app", program)
			t.Run("file", func(t *testing.T) {
				pid := run(t, exec.Command(path))
				if f, v := judge(t, pid); v.Kind != c.want || f.Exe != path {
					t.Errorf("%+v: %+v", f, v)
				}
			})
			t.Run("deleted", func(t *testing.T) {
				gone := file(t, "gone (deleted)", program)
				pid := run(t, exec.Command(gone))
				if err := os.Remove(gone); err != nil {
					t.Fatal(err)
				}
				if f, v := judge(t, pid); v.Kind != c.want {
					t.Errorf("%+v: %+v", f, v)
				}
			})
			t.Run("memfd", func(t *testing.T) {
				fd, err := unix.MemfdCreate("runsc", unix.MFD_CLOEXEC)
				if err != nil {
					t.Fatal(err)
				}
				m := os.NewFile(uintptr(fd), "memfd")
				defer m.Close()
				if _, err := m.Write(program); err != nil {
					t.Fatal(err)
				}
				pid := run(t, exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)))
				if f, v := judge(t, pid); v.Kind != c.want || f.Exe != "/memfd:runsc" {
					t.Errorf("%+v: %+v", f, v)
				}
			})
		})
	}
}

// A process that has a virtual machine open: a real one, with no processor.
func TestMachine(t *testing.T) {
	kvm := need.KVM(t)
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, kvm.Fd(), 0xAE01 /* KVM_CREATE_VM */, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	machine := os.NewFile(fd, "machine")
	defer machine.Close()
	path := file(t, "app", imitation(t, "network"))
	cmd := exec.Command(path)
	cmd.ExtraFiles = []*os.File{machine}
	if f, v := judge(t, run(t, cmd)); v.Kind != VirtualMachine || v.UnlessNative {
		t.Errorf("%+v: %+v", f, v)
	}
	cmd = exec.Command(path)
	cmd.ExtraFiles = []*os.File{kvm} // the device alone is no machine
	if f, v := judge(t, run(t, cmd)); v.Kind != "" {
		t.Errorf("%+v: %+v", f, v)
	}
}

// A process that has loaded a library of that name; the file is an imitation.
func TestLibraries(t *testing.T) {
	path := file(t, "crun", imitation(t, "network"))
	for name, want := range map[string]Kind{"libwasmedge.so.0": WebAssembly, "libkrun.so.1": VirtualMachine, "libc.so.6": ""} {
		lib := file(t, name, make([]byte, 4096))
		if f, v := judge(t, run(t, exec.Command(path, lib))); v.Kind != want || v.UnlessNative != (want == WebAssembly) {
			t.Errorf("%s: %+v: %+v", name, f, v)
		}
	}
}

// A shim with runwasi in it: an imitation, of another program's file. The crate
// alone or the name alone is not enough.
func TestShim(t *testing.T) {
	const source = `#include <stdio.h>
#include <unistd.h>
const char where[] = "panicked at crates/" CRATE "/src/sandbox/shim.rs";
int main(void) { char c; puts("up"); fflush(stdout); return read(0, &c, 1) + where[0] < 0; }
`
	gcc := need.Command(t, "gcc")[0]
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/shim.c", []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, crate string
		want        Kind
	}{
		{"containerd-shim-wasmtime-v1", "containerd-shim-wasm", WebAssembly},
		{"containerd-shim-runc-v2", "something-else", ""},
		{"app", "containerd-shim-wasm", ""},
	} {
		if b, err := exec.Command(gcc, `-DCRATE="`+c.crate+`"`, "-o", dir+"/"+c.name, dir+"/shim.c").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, b)
		}
		if f, v := judge(t, run(t, exec.Command(dir+"/"+c.name))); v.Kind != c.want || v.UnlessNative != (c.want != "") {
			t.Errorf("%s: %+v: %+v", c.name, f, v)
		}
	}
}

// Ordinary programs are not recognised.
func TestOrdinary(t *testing.T) {
	t.Run("this test", func(t *testing.T) {
		if f, v := judge(t, os.Getpid()); v.Kind != "" || f.Exe == "" {
			t.Errorf("%+v: %+v", f, v)
		}
	})
	machine := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	for _, args := range [][]string{
		{"busybox", "cat"},
		{"cat"},
		{"bash", "-c", "read line; echo $line; read line"},
		{"qemu-" + machine + "-static", "/bin/busybox", "cat"},
		{"qemu-system-" + machine, "-machine", "none", "-accel", "tcg", "-display", "none", "-nodefaults", "-monitor", "stdio"},
	} {
		t.Run(args[0], func(t *testing.T) {
			path := ""
			if strings.HasPrefix(args[0], "qemu") {
				need.Command(t, "busybox")
				path = need.QEMU(t, args[0])
			} else {
				path = need.Command(t, args[0])[0]
			}
			cmd := exec.Command(path, args[1:]...)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}()
			// Its answer shows that it runs, and no longer is this test's copy.
			if _, err := io.WriteString(in, "up\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := out.Read(make([]byte, 64)); err != nil {
				t.Fatal(err)
			}
			if f, v := judge(t, cmd.Process.Pid); v.Kind != "" || f.Exe == "" {
				t.Errorf("%+v: %+v", f, v)
			}
		})
	}
}

func TestGone(t *testing.T) {
	need.Command(t, "cat")
	cmd := exec.Command("cat")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if f, err := Look(cmd.Process.Pid); !errors.Is(err, process.ErrGone) || f.Judge().Kind != "" {
		t.Errorf("%+v, %v", f, err)
	}
}

// A program on a file system that answers nobody is not opened.
func TestDead(t *testing.T) {
	dir := t.TempDir()
	need.DeadFUSE(t, dir)
	f := Facts{}
	p, err := process.Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	exe, _, err := p.Exe()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.program(p, []process.Mapping{{Path: exe, File: process.File{Dev: deviceOf(t, dir)}}}); err == nil || f.Program != (Program{}) {
		t.Errorf("%+v, %v", f, err)
	}
}

// deviceOf reads from the mount table which device is mounted at dir.
func deviceOf(t *testing.T, dir string) uint64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		var major, minor uint32
		var id, parent int
		var root, point string
		if n, _ := fmt.Sscanf(string(line), "%d %d %d:%d %s %s", &id, &parent, &major, &minor, &root, &point); n == 6 && point == dir {
			return unix.Mkdev(major, minor)
		}
	}
	t.Fatalf("%s is not mounted", dir)
	return 0
}

// What a start pays for an ordinary container. The budget of the barrier leaves
// a millisecond.
func BenchmarkLook(b *testing.B) {
	for name, pid := range map[string]int{"this test": os.Getpid(), "program": run(b, exec.Command(file(b, "app", imitation(b, "network"))))} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := Look(pid); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
