package symbol

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"probity/tests/need"
)

// disassembly is what a disassembler says of a file: for the address of each
// instruction its text.
func disassembly(t testing.TB, path string) map[uint64]string {
	t.Helper()
	cmd := exec.Command(need.Command(t, "objdump")[0], "-d", "--no-show-raw-insn", "-z", path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	list := map[uint64]string{}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		head, text, ok := bytes.Cut(lines.Bytes(), []byte(":\t"))
		if !ok {
			continue
		}
		if addr, err := strconv.ParseUint(string(bytes.TrimSpace(head)), 16, 64); err == nil {
			list[addr] = string(text)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return list
}

func isReturn(text string) bool {
	f := strings.Fields(text)
	for len(f) > 1 && slices.Contains([]string{"rep", "repz", "bnd", "data16"}, f[0]) {
		f = f[1:]
	}
	return len(f) > 0 && slices.Contains([]string{"ret", "retq", "retaa", "retab"}, f[0])
}

// parse makes a parser of a file of this host, as Read has it when it begins
// to look at code.
func parse(t testing.TB, path string) *parser {
	t.Helper()
	fd, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	info, err := fd.Stat()
	if err != nil {
		t.Fatal(err)
	}
	p, err := open(fd, info.Size(), Limits{}, anything)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// functions are those of a file that have a size, by address; the standard
// library reads them.
func functions(t testing.TB, path string) map[uint64]elf.Symbol {
	ef := oracle(t, path)
	list, _ := ef.Symbols()
	more, _ := ef.DynamicSymbols()
	out := map[uint64]elf.Symbol{}
	for _, s := range append(list, more...) {
		if elf.ST_TYPE(s.Info) != elf.STT_FUNC || s.Section == elf.SHN_UNDEF || s.Size == 0 {
			continue
		}
		if old, ok := out[s.Value]; !ok || s.Size > old.Size {
			out[s.Value] = s
		}
	}
	return out
}

// The walk agrees with a disassembler on each instruction and each return of
// the C library, and of Go programs for both machines.
func TestWalkAgainstDisassembler(t *testing.T) {
	for name, c := range map[string]struct {
		path  string
		lines func(testing.TB, string) map[uint64]string
	}{
		"libc":     {need.CLibrary(t), disassembly},
		"go":       {goProgram(t, nil), disassembly},
		"go arm64": {goProgram(t, []string{"GOARCH=arm64", "CGO_ENABLED=0"}), goDisassembly},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := c.lines(t, c.path)
			p := parse(t, c.path)
			p.goCode = name != "libc"
			all, exact, bad := 0, 0, 0
			for addr, s := range functions(t, c.path) {
				off, ok := p.executable(addr)
				if !ok {
					continue
				}
				all++
				b, why, err := p.walk(Range{off, off + s.Size})
				if err != nil {
					t.Fatal(err)
				}
				if b == nil {
					t.Logf("%s: %s", s.Name, why)
					continue
				}
				exact++
				var want []uint64
				for at := range s.Size {
					line, ok := text[addr+at]
					if ok != b.boundary(addr+at) {
						bad++
						t.Errorf("%s: an instruction at %#x: %v, %q", s.Name, addr+at, b.boundary(addr+at), line)
					}
					if ok && isReturn(line) {
						want = append(want, off+at)
					}
				}
				if !slices.Equal(b.rets, want) {
					bad++
					t.Errorf("%s: returns %#x, want %#x", s.Name, b.rets, want)
				}
				if bad > 20 {
					t.Fatal("and so on")
				}
			}
			t.Logf("%d functions, %d walked from end to end (%.2f %%)", all, exact, 100*float64(exact)/float64(all))
			if all < 1000 || exact*1000 < all*999 {
				t.Errorf("%d of %d functions", exact, all)
			}
		})
	}
}

// goDisassembly is the same, by Go's own disassembler, which knows all of Go's
// machines.
func goDisassembly(t testing.TB, path string) map[uint64]string {
	list := map[uint64]string{}
	for line := range strings.Lines(string(command(t, "", nil, "go", "tool", "objdump", path))) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[1], "0x") {
			continue
		}
		if addr, err := strconv.ParseUint(f[1][2:], 16, 64); err == nil {
			list[addr] = strings.ToLower(strings.Join(f[3:], " "))
		}
	}
	return list
}

// clang is any version of it.
func clang(t testing.TB, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	command(t, "testdata", nil, clangName(t), append([]string{"-o", out}, args...)...)
	return out
}

func clangName(t testing.TB) string {
	for _, name := range []string{"clang", "clang-14"} {
		if _, err := exec.LookPath(name); err == nil {
			return name
		}
	}
	need.Command(t, "clang")
	return ""
}

func TestReturns(t *testing.T) {
	for _, build := range []string{"gcc -O0", "gcc -O2", "gcc -Os", "clang -O0", "clang -O2", "gcc -O2 -fcf-protection", "gcc -O3 -no-pie"} {
		t.Run(build, func(t *testing.T) {
			args := append(strings.Fields(build)[1:], "returns.c", "-shared", "-fPIC")
			if slices.Contains(args, "-no-pie") {
				args = append(strings.Fields(build)[1:], "returns.c", "-nostdlib", "-Wl,-e,returns_once", "-Wl,--unresolved-symbols=ignore-all")
			}
			var path string
			if strings.HasPrefix(build, "gcc") {
				path = gcc(t, args...)
			} else {
				path = clang(t, args...)
			}
			text := disassembly(t, path)
			ef := oracle(t, path)
			list, err := ef.Symbols()
			if err != nil {
				t.Fatal(err)
			}
			optimized := !strings.Contains(build, "O0")
			leaves := map[string]bool{"returns_tail": optimized, "returns_through_table": optimized, "returns_virtual": optimized}
			q := Query{Returns: true}
			want := map[string][]uint64{}
			for _, s := range list {
				name, isCold := strings.CutSuffix(s.Name, ".cold")
				if !strings.HasPrefix(name, "returns_") {
					continue
				}
				if !isCold {
					q.Names = append(q.Names, name)
				}
				for at := range s.Size {
					if isReturn(text[s.Value+at]) {
						off, _ := fileOffset(ef, s.Value+at)
						want[name] = append(want[name], off)
					}
				}
			}
			if len(q.Names) != 9 && len(q.Names) != 10 {
				t.Fatalf("functions %q", q.Names)
			}
			_, syms := query(t, path, q)
			for _, s := range syms {
				slices.Sort(s.Returns)
				slices.Sort(want[s.Name])
				if !slices.Equal(s.Returns, want[s.Name]) {
					t.Errorf("%s: returns %#x, want %#x (%v)", s.Name, s.Returns, want[s.Name], s.ReturnsErr)
				}
				if (s.ReturnsErr != nil) != leaves[s.Name] || s.ReturnsErr != nil && !errors.Is(s.ReturnsErr, ErrReturns) {
					t.Errorf("%s: %v, incomplete should be %v", s.Name, s.ReturnsErr, leaves[s.Name])
				}
				if s.Name == "returns_tail" && optimized && !strings.Contains(fmt.Sprint(s.ReturnsErr), "jumps ") {
					t.Errorf("%s: %v", s.Name, s.ReturnsErr)
				}
			}
			if len(syms) != len(q.Names) {
				t.Errorf("%d of %d functions", len(syms), len(q.Names))
			}
		})
	}
}

// query reads a file of this host that is expected to be fine.
func query(t testing.TB, path string, q Query) (*File, []Symbol) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, syms, err := read(bytes.NewReader(b), int64(len(b)), q, Limits{}, anything)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return f, syms
}

func readQuery(b []byte, q Query) (*File, []Symbol, error) {
	return read(bytes.NewReader(b), int64(len(b)), q, Limits{}, anything)
}
