package symbol

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"probity/tests/need"
)

func greetLibrary(t testing.TB, args ...string) string {
	return gcc(t, append([]string{"-shared", "-fPIC", "-Wl,-O2", "-Wl,--version-script=greet.map", "-Wl,--build-id=0x0123456789abcdef", "greet.c", "greet2.c"}, args...)...)
}

func TestLibrary(t *testing.T) {
	path := greetLibrary(t)
	want := []string{"greet_hello", "prefix_greet_tail", "greet_tail", "greet_strong", "greet_weak", "greet_chosen", "greet_versioned",
		"greet_untyped", "helper", "greet_data", "greet_missing", "greet_nowhere", "greet", "tail", ""}
	f, syms := readFile(t, path, want...)
	if f.BuildID != "0123456789abcdef" || f.Type != elf.ET_DYN || f.Go || f.Stripped || f.HasEntry || len(f.SelfHashed) != 0 {
		t.Errorf("file: %+v", f)
	}
	kinds := map[string]string{}
	for name, list := range syms {
		for _, s := range list {
			if s.Name != name && s.Implements != name || !f.ExecutableOffset(s.Offset) || s.Source != SourceSymtab || s.Inline.State == "" {
				t.Errorf("%s: %+v", name, s)
			}
			kinds[name] += s.Kind + " "
		}
	}
	for name, kind := range map[string]string{
		"greet_hello": "func ", "prefix_greet_tail": "func ", "greet_tail": "func ", "greet_strong": "alias ", "greet_weak": "alias ",
		"greet_chosen": "ifunc ", "greet_untyped": "func ", "helper": "func func ",
		"greet_data": "", "greet_missing": "", "greet_nowhere": "", "greet": "", "tail": "", "": "",
	} {
		if kinds[name] != kind {
			t.Errorf("%q: kinds %q, want %q (%+v)", name, kinds[name], kind, syms[name])
		}
	}
	// greet_old and greet_new, each under that and its versioned name.
	if v := syms["greet_versioned"]; len(v) != 2 || v[0].Offset == v[1].Offset {
		t.Errorf("greet_versioned: %+v", v)
	}
	if s := syms["greet_weak"][0]; s.Offset != syms["greet_strong"][0].Offset || !slices.Equal(s.Alias, []string{"greet_strong"}) {
		t.Errorf("greet_weak: %+v", s)
	}
	// A name that nobody asked for is an alias all the same.
	if _, syms := readFile(t, path, "greet_weak"); syms["greet_weak"][0].Kind != KindAlias || !slices.Equal(syms["greet_weak"][0].Alias, []string{"greet_strong"}) {
		t.Errorf("greet_weak alone: %+v", syms)
	}
}

// The order of the answer is that of the question, then of the file.
func TestOrder(t *testing.T) {
	path := greetLibrary(t)
	fd, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	info, err := fd.Stat()
	if err != nil {
		t.Fatal(err)
	}
	_, syms, err := Read(fd, info.Size(), Query{Names: []string{"helper", "greet_hello", "nowhere", "helper", "greet_second"}}, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range syms {
		got = append(got, s.Wanted)
	}
	if !slices.Equal(got, []string{"helper", "helper", "greet_hello", "greet_second"}) || syms[0].Offset >= syms[1].Offset {
		t.Errorf("%+v", syms)
	}
}

func TestStrippedLibrary(t *testing.T) {
	f, syms := readFile(t, greetLibrary(t, "-s"), "greet_hello", "helper")
	if !f.Stripped || len(syms["greet_hello"]) != 1 || syms["greet_hello"][0].Source != SourceDynsym || len(syms["helper"]) != 0 {
		t.Errorf("stripped %v, symbols %+v", f.Stripped, syms)
	}
}

// Section headers are not needed to run: what the dynamic linker uses is found
// without them, with either hash table, and although they say otherwise.
func TestDynamicTable(t *testing.T) {
	for _, style := range []string{"gnu", "sysv", "both"} {
		for _, how := range []string{"no section headers", "lying section headers"} {
			t.Run(style+", "+how, func(t *testing.T) {
				path := greetLibrary(t, "-s", "-Wl,--hash-style="+style)
				_, before := readFile(t, path, "greet_hello", "greet_chosen", "greet_second")
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if how == "no section headers" {
					clear(b[40:48]) // e_shoff
				} else {
					for _, s := range sectionHeaders(b) { // empty them all
						if typ := le.Uint32(s[4:]); typ == uint32(elf.SHT_DYNSYM) || typ == uint32(elf.SHT_SYMTAB) {
							clear(s[32:40])
						}
					}
				}
				f, syms, err := readBytes(b, "greet_hello", "greet_chosen", "greet_second", "helper")
				if err != nil {
					t.Fatal(err)
				}
				if fmt.Sprint(syms) != fmt.Sprint(before) || f.BuildID != "0123456789abcdef" {
					t.Errorf("%+v, with the headers %+v", syms, before)
				}
			})
		}
	}
}

// sectionHeaders returns the section headers of a 64-bit file, to write to.
func sectionHeaders(b []byte) (list [][]byte) {
	off, n := le.Uint64(b[40:]), le.Uint16(b[60:])
	for i := range uint64(n) {
		list = append(list, b[off+i*64:][:64])
	}
	return list
}

// programHeaders is the same for program headers.
func programHeaders(b []byte) (list [][]byte) {
	off, n := le.Uint64(b[32:]), le.Uint16(b[56:])
	for i := range uint64(n) {
		list = append(list, b[off+i*56:][:56])
	}
	return list
}

// Every function that the standard library's reader finds in a real C library,
// and 10,000 names that are not there.
func TestLibcAgainstOracle(t *testing.T) {
	path := need.CLibrary(t)
	ef := oracle(t, path)
	dyn, err := ef.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	static, _ := ef.Symbols() // usually stripped
	expect := map[string]map[uint64]bool{}
	for _, s := range append(dyn, static...) {
		typ := elf.ST_TYPE(s.Info)
		off, ok := fileOffset(ef, s.Value)
		name, _, _ := strings.Cut(s.Name, "@")
		if !ok || s.Section == elf.SHN_UNDEF || s.Section == elf.SHN_ABS || typ != elf.STT_FUNC && typ != elf.STT_GNU_IFUNC {
			continue
		}
		if expect[name] == nil {
			expect[name] = map[uint64]bool{}
		}
		expect[name][off] = true
	}
	if len(expect) < 500 {
		t.Fatalf("oracle found %d functions", len(expect))
	}
	var want []string
	for name := range expect {
		want = append(want, name)
	}
	for i := range 10000 {
		want = append(want, fmt.Sprintf("no_such_function_%d", i))
	}
	f, got := readFile(t, path, want...)
	if len(got) != len(expect) {
		t.Errorf("%d names found, want %d", len(got), len(expect))
	}
	for name, offs := range expect {
		if slices.ContainsFunc(got[name], func(s Symbol) bool { return s.Implements == name }) {
			continue // see TestIFuncLibc
		}
		if len(got[name]) != len(offs) {
			t.Errorf("%s: %d symbols, want %d", name, len(got[name]), len(offs))
		}
		for _, s := range got[name] {
			if !offs[s.Offset] || !f.ExecutableOffset(s.Offset) {
				t.Errorf("%s: unexpected %+v", name, s)
			}
		}
	}
	if f.BuildID == "" || !f.HasEntry && strings.Contains(path, "libc.so.6") {
		t.Errorf("libc: build-id %q, entry %v", f.BuildID, f.HasEntry)
	}
}

func TestEntry(t *testing.T) {
	files := map[string]string{
		"static":     gcc(t, "-static", "main.c"),
		"static-pie": gcc(t, "-static-pie", "main.c"),
		"pie":        gcc(t, "-pie", "-fPIE", "main.c"),
		"no-pie":     gcc(t, "-no-pie", "main.c"),
	}
	for _, pattern := range []string{"/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"} {
		if path, err := filepath.EvalSymlinks(pattern); err == nil {
			files["ld.so"] = path
		}
	}
	for name, path := range files {
		t.Run(name, func(t *testing.T) {
			ef := oracle(t, path)
			want, ok := fileOffset(ef, ef.Entry)
			f, syms := readFile(t, path, "_start", "wanted", "main")
			if !ok || !f.HasEntry || f.Entry != want || f.Type != ef.Type {
				t.Errorf("entry %#x %v, want %#x %v", f.Entry, f.HasEntry, want, ok)
			}
			if name == "ld.so" {
				return
			}
			if len(syms["_start"]) != 1 || syms["_start"][0].Offset != f.Entry {
				t.Errorf("_start %+v, entry %#x", syms["_start"], f.Entry)
			}
			if len(syms["wanted"]) != 1 || len(syms["main"]) != 1 {
				t.Errorf("symbols %+v", syms)
			}
		})
	}
}
