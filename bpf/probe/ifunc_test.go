package probe

import (
	"debug/elf"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/bpf/symbol"
	"probity/evidence"
	"probity/tests/need"
)

const copyProgram = `#include <stdlib.h>
#include <string.h>
static void *(*volatile copy)(void *, const void *, size_t) = memcpy;
static void *(*volatile set)(void *, int, size_t) = memset;
static size_t (*volatile length)(const char *) = strlen;
static char *(*volatile find)(const char *, int) = strchr;
int main(int argc, char **argv) {
	static char a[512], b[512];
	volatile size_t size = argv[1][0] == '0' ? 0 : 300, sum = 0;
	for (int i = atoi(argv[1]); i > 0; i--) {
		set(a, 'x', size);
		copy(b, a, size);
		sum += length(b) + (size_t)find(b, 'y');
	}
	return sum == 1;
}
`

// What the C library's IFUNCs choose from is armed, all of it, and a call is
// counted whatever this machine's processor made them choose: in the library
// and in a static program, which has them in IRELATIVE relocations. What chooses
// runs as well, once, and is not counted. The kernel probes no instruction of
// AVX, with which some of the choices begin: those say so.
func TestIFUNCsOfGlibc(t *testing.T) {
	libc := need.GNUCLibrary(t)
	calls := []string{"memcpy", "memset", "strlen", "strchr"}
	atLeast := map[string]int{"memcpy": 3, "memset": 3, "strlen": 3, "strchr": 3}
	if runtime.GOARCH == "arm64" {
		atLeast["strlen"], atLeast["strchr"] = 2, 1 // and that one is no IFUNC
	}
	for _, c := range []struct {
		build string
		args  []string
		file  string
	}{
		{"dynamic", nil, libc},
		{"static", []string{"-static"}, "/bin/copies"},
		{"static-pie", []string{"-static-pie"}, "/bin/copies"},
	} {
		t.Run(c.build, func(t *testing.T) {
			lower := newLower(t)
			compiled(t, lower, "copies", copyProgram, append([]string{"gcc", "-O1"}, c.args...)...)
			if c.args == nil { // with the host's loader and library in the image
				f, err := elf.Open(filepath.Join(lower, "bin/copies"))
				must(t, err)
				loader, err := io.ReadAll(f.Section(".interp").Open())
				must(t, errors.Join(err, f.Close()))
				for _, path := range []string{strings.TrimSuffix(string(loader), "\x00"), libc} {
					b, err := os.ReadFile(path)
					must(t, err)
					must(t, os.MkdirAll(filepath.Dir(filepath.Join(lower, path)), 0o755))
					must(t, os.WriteFile(filepath.Join(lower, path), b, 0o755))
				}
			}
			b := newBox(t, lower)
			e := newEngine(t, bpf.Options{}, Config{})
			plan := MakePlan([]policy.Probe{{ID: "p", Type: policy.Uprobe, File: c.file, Symbols: calls}}, merged(t, rootfs(b), &Inspector{}), Host())
			// The library's resolvers load and call: there may be other choices. So do
			// all of them on arm64.
			open := c.args == nil || runtime.GOARCH == "arm64"
			if s := plan.Searches[0]; open == s.Complete || !s.Complete && !strings.Contains(s.Why, "resolver") {
				t.Errorf("%+v", s)
			}
			h, err := e.Arm(t.Context(), b.target(), plan)
			must(t, err)
			defer h.Close()
			refused := map[string]int{}
			run := func(n string) map[string]uint64 {
				cmd, entered := b.command("/bin/copies", nil, n)
				defer entered.Close()
				cmd.Path, cmd.Dir, cmd.SysProcAttr.Chroot = "/bin/copies", "/", b.merged
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				out := map[string]uint64{}
				for _, s := range h.Sites {
					if !s.Armed {
						refused[s.Wanted]++
						if s.Reason != evidence.UnprobeableInstruction {
							t.Errorf("%s %s: %s %s", s.Wanted, s.Symbol, s.Reason, s.Detail)
						}
						continue
					}
					n, err := h.Counter(s)
					must(t, err)
					out[s.Wanted] += n.Count
				}
				return out
			}
			sites := map[string]int{}
			for _, s := range h.Sites {
				sites[s.Wanted]++
				// memcpy@GLIBC_2.2.5 is an ordinary function.
				if old := s.Symbol == "memcpy" && s.Kind == symbol.KindFunc; !old && atLeast[s.Wanted] > 1 && (s.Implements != s.Wanted || s.Kind != symbol.KindIFunc) {
					t.Errorf("%s by %s: implements %q, %s", s.Symbol, s.Wanted, s.Implements, s.Kind)
				}
			}
			none := run("0")
			some := run("50")
			for _, name := range calls {
				t.Logf("%s: %d sites, %d times one was refused, %d hits, then %d", name, sites[name], refused[name], none[name], some[name])
				// The start of each program calls them too, and as often.
				got := some[name] - 2*none[name]
				if sites[name] < atLeast[name] || got != 50 && (got != 0 || refused[name] == 0) || refused[name] > 0 && (name == "memcpy" || name == "strlen") {
					t.Errorf("%s: %d sites, %d hits without a call of the program, %d with 50 more", name, sites[name], none[name], some[name])
				}
			}
		})
	}
}
