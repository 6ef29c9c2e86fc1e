package probe

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/evidence"
	"probity/tests/need"
)

const muslProgram = `#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#ifndef STATIC
#include <dlfcn.h>
int greet_hello(int);
#else
#define greet_hello(n) (n)
#endif
__attribute__((noinline)) int work(int n) { __asm__ volatile(""); return n + 1; }
int main(int argc, char **argv) {
	int n = atoi(argv[1]), sum = 0;
	for (int i = 0; i < n; i++)
		sum += work(i) + greet_hello(i) + getppid();
#ifndef STATIC
	void *h = dlopen("plug.so", RTLD_NOW);
	int (*plugged)(int) = h ? (int (*)(int))dlsym(h, "plugged") : 0;
	if (!plugged) {
		puts(dlerror());
		return 3;
	}
	for (int i = 0; i < 2 * n; i++)
		sum += plugged(i);
#endif
	return sum == 0;
}
`

// Programs and libraries of musl, as Debian's musl-gcc makes them, run with
// their root in the image: the loader, which is the C library itself, what it
// loads at the start and what the program loads later; static programs, of fixed
// and of any address.
func TestMusl(t *testing.T) {
	gcc := need.Command(t, "musl-gcc")[0]
	loaders, _ := filepath.Glob("/lib/ld-musl-*.so.1")
	if len(loaders) != 1 {
		t.Fatalf("loaders of musl: %q", loaders)
	}
	lower := newLower(t)
	src := t.TempDir()
	build := func(out, source string, args ...string) {
		t.Helper()
		file := filepath.Join(src, strings.ReplaceAll(out, "/", "_")+".c")
		must(t, os.WriteFile(file, []byte(source), 0o600))
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(lower, out)), 0o755))
		args = append([]string{"-O2", "-o", filepath.Join(lower, out), file}, args...)
		if b, err := exec.Command(gcc, args...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, b)
		}
	}
	build("usr/lib/libgreet.so.1", "int greet_hello(int n) { return n; }\nint greet_never(int n) { return n; }\n", "-shared", "-fPIC", "-Wl,-soname,libgreet.so.1")
	build("usr/lib/plug.so", "int plugged(int n) { return n; }\n", "-shared", "-fPIC", "-Wl,-soname,plug.so")
	build("bin/pie", muslProgram, "-fPIE", "-pie", filepath.Join(lower, "usr/lib/libgreet.so.1"))
	build("bin/no-pie", muslProgram, "-fno-pie", "-no-pie", filepath.Join(lower, "usr/lib/libgreet.so.1"))
	build("bin/static", muslProgram, "-DSTATIC", "-static")
	start, _ := filepath.Glob("/usr/lib/*-linux-musl/rcrt1.o") // musl-gcc knows no -static-pie
	if len(start) != 1 {
		t.Fatalf("musl's start of programs that move themselves: %q", start)
	}
	build("bin/static-pie", muslProgram, "-DSTATIC", "-fPIE", "-static", "-nostartfiles", "-Wl,-pie,--no-dynamic-linker", start[0])
	libc, err := os.ReadFile(loaders[0])
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(lower, "lib/x86"), 0o755))
	must(t, os.WriteFile(filepath.Join(lower, "lib/x86/libc.so"), libc, 0o755))
	must(t, os.Symlink("x86/libc.so", filepath.Join(lower, loaders[0]))) // as Debian has it
	for _, c := range []struct {
		program string
		kind    elf.Type
		dynamic bool
	}{{"pie", elf.ET_DYN, true}, {"no-pie", elf.ET_EXEC, true}, {"static", elf.ET_EXEC, false}, {"static-pie", elf.ET_DYN, false}} {
		t.Run(c.program, func(t *testing.T) {
			f, err := elf.Open(filepath.Join(lower, "bin", c.program))
			must(t, err)
			if interpreted := slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }); f.Type != c.kind || interpreted != c.dynamic {
				t.Fatalf("%v, interpreter %v", f.Type, interpreted)
			}
			must(t, f.Close())
			b := newBox(t, lower)
			e := newEngine(t, bpf.Options{}, Config{})
			program := "/bin/" + c.program
			h, err := e.Arm(t.Context(), b.target(), MakePlan([]policy.Probe{
				{ID: "program", Type: policy.Uprobe, File: program, Symbols: []string{"work", "getppid"}},
				{ID: "returns", Type: policy.Uretprobe, File: program, Symbols: []string{"work"}},
				{ID: "start", Type: policy.Uprobe, File: program, Offsets: []policy.Offset{{Entry: true}}},
				{ID: "library", Type: policy.Uprobe, Library: "libgreet.so.*", Symbols: []string{"greet_hello", "greet_never"}},
				{ID: "libc", Type: policy.Uprobe, File: loaders[0], Symbols: []string{"getppid", "dlopen", "_dlstart"}},
				{ID: "plug", Type: policy.Uprobe, Library: "plug.so", Symbols: []string{"plugged"}},
			}, merged(t, rootfs(b), &Inspector{}), Host()))
			must(t, err)
			defer h.Close()
			cmd, entered := b.command(program, nil, "5")
			defer entered.Close()
			cmd.Path, cmd.Dir, cmd.SysProcAttr.Chroot = program, "/", b.merged
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			got := map[string]uint64{}
			for _, s := range h.Sites {
				name := fmt.Sprint(s.Probe.ID, " ", s.Symbol)
				if s.Reason != "" {
					if c.dynamic != (name == "program getppid") || s.Reason != evidence.SymbolNotFound {
						t.Errorf("%s: %s %s", name, s.Reason, s.Detail)
					}
					continue
				}
				n, err := h.Counter(s)
				must(t, err)
				got[name] += n.Count
				if s.Probe.ID == "libc" && s.File.Match.Path != "/lib/x86/libc.so" {
					t.Errorf("libc is %s", s.File.Match.Path)
				}
			}
			want := map[string]uint64{
				"program work": 5, "returns work": 5, "start ": 1, "library greet_hello": 0, "library greet_never": 0,
				"libc getppid": 0, "libc dlopen": 0, "libc _dlstart": 0, "plug plugged": 0,
			}
			if c.dynamic {
				want["library greet_hello"], want["libc getppid"], want["libc dlopen"], want["libc _dlstart"], want["plug plugged"] = 5, 5, 1, 1, 10
			} else {
				want["program getppid"] = 5
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("got %v\nwant %v", got, want)
			}
		})
	}
}
