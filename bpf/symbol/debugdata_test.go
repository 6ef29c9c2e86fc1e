package symbol

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"probity/tests/need"
)

// miniDebug makes what find-debuginfo.sh of Fedora leaves of a program: no
// .symtab, and a .gnu_debugdata with those functions that .dynsym has not, but
// for weak ones and IFUNCs. It returns their names, too.
func miniDebug(t testing.TB, path string) (out string, names []string) {
	t.Helper()
	need.Command(t, "nm", "objcopy", "strip", "xz")
	dir := t.TempDir()
	mini, keep := filepath.Join(dir, "mini"), filepath.Join(dir, "keep")
	out = filepath.Join(dir, "out")
	dynamic := map[string]bool{}
	for line := range strings.Lines(string(command(t, dir, nil, "nm", "-D", path, "--format=posix", "--defined-only"))) {
		dynamic[strings.Fields(line)[0]] = true
	}
	for line := range strings.Lines(string(command(t, dir, nil, "nm", path, "--format=posix", "--defined-only"))) {
		if f := strings.Fields(line); len(f) > 1 && strings.ContainsAny(f[1], "TtD") && !dynamic[f[0]] {
			names = append(names, f[0])
		}
	}
	if err := os.WriteFile(keep, []byte(strings.Join(names, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, dir, nil, "objcopy", "--only-keep-debug", path, mini)
	command(t, dir, nil, "objcopy", "-S", "--remove-section=.gdb_index", "--remove-section=.comment", "--keep-symbols="+keep, mini)
	command(t, dir, nil, "xz", mini)
	command(t, dir, nil, "strip", "-s", "-o", out, path)
	command(t, dir, nil, "objcopy", "--add-section=.gnu_debugdata="+mini+".xz", out)
	return out, names
}

func TestDebugdata(t *testing.T) {
	for _, path := range []string{greetLibrary(t), gxx(t, "shapes.cc"), gcc(t, "-static", "main.c"), gcc(t, "-no-pie", "main.c")} {
		whole := ask(t, path, Query{Globs: []string{"*"}})
		out, names := miniDebug(t, path)
		got := map[uint64]Symbol{}
		for _, s := range ask(t, out, Query{Globs: []string{"*"}}) {
			got[s.Offset] = s
		}
		sources := map[string]int{}
		for _, s := range whole {
			g, ok := got[s.Offset]
			if !ok && !slices.Contains(names, s.Name) {
				continue
			}
			if g.Name != s.Name && !slices.Contains(s.Alias, g.Name) && s.Implements == "" && g.Implements == "" {
				t.Errorf("%s: %+v is %+v", path, s, g)
			}
			sources[g.Source]++
		}
		if sources[SourceDebugdata] == 0 || sources[SourceSymtab] != 0 {
			t.Errorf("%s: sources %v", path, sources)
		}
	}
	// By name, raw and demangled.
	out, _ := miniDebug(t, gxx(t, "shapes.cc"))
	syms := ask(t, out, Query{Names: []string{"geo::(anonymous namespace)::hidden", "toplevel", "c_linkage", "main"}})
	for _, s := range syms {
		if s.Source != SourceDebugdata || s.Size == 0 {
			t.Errorf("%+v", s)
		}
	}
	if len(syms) != 4 {
		t.Errorf("%+v", syms)
	}
}

// xzOf packs by the real xz.
func xzOf(t testing.TB, b []byte, args ...string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, ".", nil, "xz", append(args, path)...)
	out, err := os.ReadFile(path + ".xz")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func unpack(b []byte, limit uint64) ([]byte, error) {
	p := &parser{src: source{r: bytes.NewReader(b), size: uint64(len(b))}}
	return p.unxz(extent{0, uint64(len(b))}, limit)
}

func TestUnxz(t *testing.T) {
	text := bytes.Repeat([]byte("some text that packs well, "), 40_000)
	for _, args := range [][]string{nil, {"-0"}, {"-9e"}, {"--check=none"}, {"--check=crc32"}, {"--check=crc64"}, {"--check=sha256"}, {"--block-size=65536"}, {"-T2", "--block-size=300000"}, {"--lzma2=dict=1536MiB"}} {
		packed := xzOf(t, text, args...)
		if out, err := unpack(packed, 2<<20); err != nil || !bytes.Equal(out, text) {
			t.Errorf("%q: %d bytes, %v", args, len(out), err)
		}
		if out, err := unpack(packed, uint64(len(text))); err != nil || !bytes.Equal(out, text) {
			t.Errorf("%q, just large enough: %d bytes, %v", args, len(out), err)
		}
		if _, err := unpack(packed, uint64(len(text)-1)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%q, too small a limit: %v", args, err)
		}
		if out, err := unpack(append(bytes.Clone(packed), 0, 0, 0, 0), 2<<20); err != nil || !bytes.Equal(out, text) {
			t.Errorf("%q, with padding: %v", args, err)
		}
		if _, err := unpack(append(bytes.Clone(packed), packed...), 2<<20); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q, twice: %v", args, err)
		}
		for n := 0; n < len(packed); n += 1 + n/10 { // cut at many places
			if _, err := unpack(packed[:n], 2<<20); !errors.Is(err, ErrMalformed) {
				t.Errorf("%q, %d of %d bytes: %v", args, n, len(packed), err)
			}
		}
	}
	// A change of any byte of the data or of its checksum shows.
	packed := xzOf(t, []byte("some text"))
	for i := range packed[:36] {
		b := bytes.Clone(packed)
		b[i] ^= 0x10
		if out, err := unpack(b, 1<<20); !errors.Is(err, ErrMalformed) {
			t.Errorf("byte %d: %q, %v", i, out, err)
		}
	}
	for _, args := range [][]string{{"--x86", "--lzma2"}, {"--delta", "--lzma2"}} {
		if _, err := unpack(xzOf(t, text, args...), 2<<20); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v", args, err)
		}
	}
	if out, err := unpack(xzOf(t, nil), 1<<20); err != nil || len(out) != 0 {
		t.Errorf("nothing: %q, %v", out, err)
	}
}

// A gigabyte of zeros in 150 KB: refused at the bound, and within the time.
func TestDebugdataBomb(t *testing.T) {
	path := filepath.Join(t.TempDir(), "zeros")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 256<<20); err != nil {
		t.Fatal(err)
	}
	command(t, ".", nil, "xz", "-0", path)
	file := gcc(t, "main.c")
	command(t, ".", nil, "objcopy", "--add-section=.gnu_debugdata="+path+".xz", file)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := askBytes(b, Query{Names: []string{"main"}}, Limits{Time: 50 * time.Millisecond}); !errors.Is(err, ErrTime) || time.Since(began) > 10*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	f, syms, err := Read(bytes.NewReader(b), int64(len(b)), Query{Names: []string{"main"}}, Limits{Debugdata: 16 << 20, Time: time.Minute})
	if err != nil || len(syms) != 1 || !strings.Contains(f.Unjudged.Debugdata, ErrTooLarge.Error()) {
		t.Errorf("%+v, %v, %v", f, syms, err)
	}
}

// A .gnu_debugdata that can't be read takes nothing from what else the file
// has, and is told of.
func TestDebugdataBroken(t *testing.T) {
	dir := t.TempDir()
	mini := filepath.Join(dir, "mini")
	for what, packed := range map[string][]byte{
		"no xz":            []byte("text"),
		"half of it":       xzOf(t, bytes.Repeat([]byte("text"), 1000))[:60],
		"no ELF":           xzOf(t, []byte("text")),
		"foreign":          xzOf(t, append([]byte("\x7fELF\x01"), make([]byte, 200)...)),
		"names do not end": xzOf(t, func() []byte { l := named("hidden"); l.strings = l.strings[:len(l.strings)-1] + "x"; return l.bytes() }()),
	} {
		if err := os.WriteFile(mini, packed, 0o600); err != nil {
			t.Fatal(err)
		}
		file := gcc(t, "main.c")
		command(t, ".", nil, "objcopy", "--add-section=.gnu_debugdata="+mini, file)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		f, syms, err := Read(bytes.NewReader(b), int64(len(b)), Query{Names: []string{"main"}}, Limits{})
		if err != nil || len(syms) != 1 || !strings.HasPrefix(f.Unjudged.String(), ".gnu_debugdata: ") {
			t.Errorf("%s: %v, %v", what, syms, err)
		}
	}
}

// What goes wrong when it is read is no fault of the file.
func TestDebugdataReadError(t *testing.T) {
	packed := xzOf(t, bytes.Repeat([]byte("text"), 100_000), "-0")
	mine := errors.New("mine")
	p := &parser{src: source{r: unreadable{bytes.NewReader(packed), mine}, size: uint64(len(packed))}}
	if _, err := p.unxz(extent{0, uint64(len(packed))}, 1<<20); !errors.Is(err, mine) || errors.Is(err, ErrMalformed) {
		t.Errorf("%v", err)
	}
}

type unreadable struct {
	io.ReaderAt
	err error
}

func (f unreadable) ReadAt(b []byte, off int64) (int, error) { return 0, f.err }

// FuzzUnxz: whatever the bytes, no more than the limit, or an error that wraps
// a sentinel.
func FuzzUnxz(f *testing.F) {
	if _, ok := need.Look("xz"); ok {
		for _, args := range [][]string{{"-0"}, {"--check=sha256"}, {"--block-size=16"}} {
			f.Add(xzOf(f, []byte("some text, some text, and some more"), args...))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		out, err := unpack(b, 1<<16)
		if len(out) > 1<<16 {
			t.Fatalf("%d bytes", len(out))
		}
		if err != nil && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) {
			t.Fatalf("error without a sentinel: %v", err)
		}
	})
}
