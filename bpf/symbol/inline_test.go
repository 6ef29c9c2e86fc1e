package symbol

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// trapped runs a program of which the bytes at offs are breakpoints, and says
// whether it met one.
func trapped(t *testing.T, path string, offs []uint64, args ...string) bool {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	brk := []byte{0xcc}
	if hostMachine().String() == "EM_AARCH64" {
		brk = []byte{0xa0, 0x00, 0x20, 0xd4}
	}
	for _, off := range offs {
		copy(b[off:], brk)
	}
	armed := filepath.Join(t.TempDir(), "armed")
	syscall.ForkLock.RLock() // who forks now would hold it open for writing, and nobody could run it
	err = os.WriteFile(armed, b, 0o755)
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(armed, args...).CombinedOutput()
	if err == nil {
		return false
	}
	if !bytes.Contains(out, []byte("SIGTRAP")) && !strings.Contains(err.Error(), "trap") {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return true
}

func goInlineProgram(t testing.TB, env []string, args ...string) string {
	return goSource(t, "inline.go.txt", env, args...)
}

// Each instance of an inlined function is found, with and without symbols and
// debugging information, and a breakpoint at its sites is met exactly by those
// runs that execute it.
func TestGoInline(t *testing.T) {
	for name, args := range map[string][]string{
		"plain":         nil,
		"stripped":      {"-ldflags=-s -w"},
		"pie":           {"-buildmode=pie"},
		"external pie":  {"-buildmode=pie", "-ldflags=-linkmode=external -s -w"},
		"not optimized": {"-gcflags=-l"},
	} {
		t.Run(name, func(t *testing.T) {
			var env []string
			if name == "external pie" {
				env = []string{"CGO_ENABLED=1"}
			}
			path := goInlineProgram(t, env, args...)
			_, syms := query(t, path, Query{Names: []string{"main.leaf", "main.nested", "main.never", "main.plain", "main.absent"}, Inlined: true})
			at := map[string]map[string][]uint64{}
			for _, s := range syms {
				if s.Kind != KindInlined {
					checkGoInline(t, name, s)
					continue
				}
				if at[s.Name] == nil {
					at[s.Name] = map[string][]uint64{}
				}
				at[s.Name][s.InlinedIn] = append(at[s.Name][s.InlinedIn], s.Offset)
				if s.Wanted != s.Name || s.Source != SourcePclntab {
					t.Errorf("%+v", s)
				}
			}
			if name == "not optimized" {
				if len(at) > 0 {
					t.Errorf("inlined although -l forbids it: %v", at)
				}
				return
			}
			for fn, want := range map[string][]string{
				"main.leaf": {"main.viaLeaf", "main.viaLoop", "main.viaNested"}, "main.nested": {"main.viaNested"}, "main.never": {"main.viaNever"},
				"main.plain": nil, "main.absent": nil,
			} {
				if got := slices.Sorted(maps.Keys(at[fn])); !slices.Equal(got, want) {
					t.Errorf("%s is inlined in %q, want %q", fn, got, want)
				}
			}
			all := func(fn string) []uint64 { return slices.Concat(slices.Collect(maps.Values(at[fn]))...) }
			for path2, meets := range map[string]map[string]bool{
				"leaf":     {"main.leaf": true},
				"loop":     {"main.leaf": true},
				"nested":   {"main.leaf": true, "main.nested": true},
				"variable": {}, "nothing": {}, "plain": {},
				"never": {"main.never": true},
			} {
				for fn := range at {
					if got := trapped(t, path, all(fn), path2); got != meets[fn] {
						t.Errorf("path %s, breakpoints at %s %#x: met %v, want %v", path2, fn, at[fn], got, meets[fn])
					}
				}
			}
		})
	}
}

// checkGoInline: what is said of the bodies.
func checkGoInline(t *testing.T, build string, s Symbol) {
	want := InlineNone
	if s.Name == "main.leaf" && build != "not optimized" {
		want = InlineAt
	}
	if s.Name != "main.leaf" && s.Name != "main.plain" && build != "not optimized" || s.Inline.State != want || (want == InlineAt) != (len(s.Inline.Instances) >= 3) {
		t.Errorf("%s: %+v, want %s", s.Name, s.Inline, want)
	}
}

// goSource builds a program of testdata.
func goSource(t testing.TB, name string, env []string, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	src, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"main.go": string(src), "go.mod": "module tested\ngo 1.24\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	command(t, dir, append(env, "GOFLAGS=", "GOWORK=off"), "go", append([]string{"build", "-o", "out"}, args...)...)
	return filepath.Join(dir, "out")
}

// FuzzGoTable changes a real program's tables here and there.
func FuzzGoTable(f *testing.F) {
	path := goInlineProgram(f, nil, "-ldflags=-s -w")
	original, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	p := parse(f, path)
	p.goCode = true
	table, err := p.goFunctions()
	if err != nil || table == nil || table.data == nil {
		f.Fatal(table, err)
	}
	f.Add(uint32(8), []byte{0xff, 0xff}, uint32(100), []byte{1})
	f.Add(uint32(table.funcs.off), []byte{0xff, 0xff, 0xff, 0xff}, uint32(table.pcs.off+30), []byte{0xff, 0xff, 0xff, 0xff, 0xff})
	f.Add(uint32(table.names.off+20), []byte("main.leaf\x00"), uint32(table.funcs.off+9000), []byte{1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, at1 uint32, b1 []byte, at2 uint32, b2 []byte) {
		b := bytes.Clone(original)
		area := b[table.in.off:][:table.funcs.off+table.funcs.size]
		tree := b[table.data.in.off:]
		for i, where := range [][]byte{area, tree, area, tree} {
			copy(where[[]uint32{at1, at1, at2, at2}[i]%uint32(len(where)):], [][]byte{b1, b1, b2, b2}[i])
		}
		file, syms, err := read(bytes.NewReader(b), int64(len(b)), Query{Names: []string{"main.leaf", "main.nested"}, Inlined: true, Returns: true}, Limits{Code: 8 << 20}, anything)
		if err != nil {
			return
		}
		for _, s := range syms {
			if !file.ExecutableOffset(s.Offset) || s.Wanted != s.Name || s.Kind == KindInlined && s.Inline.State != InlineUnknown {
				t.Errorf("%+v", s)
			}
		}
	})
}
