package symbol

import (
	"bytes"
	"compress/zlib"
	"debug/elf"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// compile runs a compiler over files of testdata; the first word of build is
// which one.
func compile(t testing.TB, build string, files ...string) string {
	t.Helper()
	args := strings.Fields(build)
	if args[0] == "clang" {
		return clang(t, append(args[1:], files...)...)
	}
	return gcc(t, append(args[1:], files...)...)
}

// Where functions were inlined, by gcc and clang, in each version of DWARF and
// each way to keep it: each function that holds an instance has sites, and a
// breakpoint at them is met exactly by those runs that execute it.
func TestInline(t *testing.T) {
	for _, build := range []string{
		"gcc -O2 -g", "gcc -O2 -gdwarf-2", "gcc -O2 -gdwarf-4", "gcc -O3 -g -no-pie", "gcc -O1 -g -gz", "gcc -O2 -g -gz=zlib-gnu", "gcc -O2 -g1",
		"gcc -O2 -g -gdwarf64", "gcc -O2 -g -flto", "gcc -O2 -g -ffunction-sections -Wl,--gc-sections", "gcc -O2 -g3",
		"clang -O2 -g", "clang -O2 -gdwarf-4", "clang -O3 -g -gz", "clang -O2 -g -fdebug-types-section",
	} {
		t.Run(build, func(t *testing.T) {
			path := compile(t, build, "inline.c", "inline2.c")
			_, syms := query(t, path, Query{Names: []string{"leaf", "nested", "exported", "never", "header", "plain", "absent"}, Inlined: true})
			at := map[string]map[string][]uint64{}
			bodies := map[string]InlineKnown{}
			for _, s := range syms {
				if s.Kind != KindInlined {
					bodies[s.Name] = s.Inline
					continue
				}
				if at[s.Name] == nil {
					at[s.Name] = map[string][]uint64{}
				}
				at[s.Name][s.InlinedIn] = append(at[s.Name][s.InlinedIn], s.Offset)
				if s.Wanted != s.Name || s.Source != SourceDWARF {
					t.Errorf("%+v", s)
				}
			}
			for fn, want := range map[string][]string{
				"leaf": {"via_leaf", "via_loop", "via_nested"}, "nested": {"via_nested"}, "exported": {"via_exported"}, "never": {"via_never"},
				"header": {"via_header", "via_header2"}, "plain": nil, "absent": nil,
			} {
				if got := slices.Sorted(maps.Keys(at[fn])); !slices.Equal(got, want) {
					t.Errorf("%s is inlined in %q, want %q", fn, got, want)
				}
			}
			for fn, want := range map[string]string{"leaf": InlineAt, "exported": InlineAt, "plain": InlineNone} {
				if got := bodies[fn]; got.State != want && !(fn == "exported" && got.State == "") { // which LTO may drop
					t.Errorf("%s: %+v, want %s", fn, got, want)
				}
			}
			all := func(fn string) []uint64 { return slices.Concat(slices.Collect(maps.Values(at[fn]))...) }
			for run, meets := range map[string]map[string]bool{
				"leaf": {"leaf": true}, "loop": {"leaf": true}, "nested": {"leaf": true, "nested": true}, "exported": {"exported": true},
				"never": {"never": true}, "header": {"header": true}, "header2": {"header": true}, "variable": {}, "nothing": {}, "plain": {},
			} {
				for fn := range at {
					if got := trapped(t, path, all(fn), run); got != meets[fn] {
						t.Errorf("run %s, breakpoints at %s %#x: met %v, want %v", run, fn, at[fn], got, meets[fn])
					}
				}
			}
		})
	}
}

// Where it can't be known, it is unknown, and never none.
func TestInlineUnknown(t *testing.T) {
	for _, c := range []struct {
		build string
		edit  func(t *testing.T, path string)
	}{
		{"gcc -O2", nil},
		{"gcc -O2 -g -s", nil},
		{"gcc -O2 -g -gsplit-dwarf", nil},
		{"clang -O2 -g -gsplit-dwarf", nil},
		{"clang -O2", nil},
		{"gcc -O2 -g -static", nil}, // the C library has none
		{"gcc -O2 -g", func(t *testing.T, path string) {
			command(t, "", nil, "objcopy", "--remove-section=.debug_abbrev", path)
		}},
		{"gcc -O2 -g", func(t *testing.T, path string) { command(t, "", nil, "objcopy", "--remove-section=.debug_str", path) }},
		{"gcc -O2 -g", func(t *testing.T, path string) { command(t, "", nil, "objcopy", "--only-keep-debug", path) }},
	} {
		name := c.build
		if c.edit != nil {
			name += ", changed"
		}
		t.Run(name, func(t *testing.T) {
			path := compile(t, c.build, "inline.c", "inline2.c")
			if c.edit != nil {
				c.edit(t, path)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			_, syms, err := readQuery(b, Query{Names: []string{"leaf", "plain", "exported", "main"}, Inlined: true})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range syms {
				if s.Inline.State != InlineUnknown {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}

// C++ names its functions in declarations that the code refers to, and has one
// entry for all symbols of a constructor.
func TestInlineCxx(t *testing.T) {
	for _, build := range []string{"g++ -O2 -g", "g++ -O2 -gdwarf-3", "clang++ -O2 -g"} {
		t.Run(build, func(t *testing.T) {
			f := strings.Fields(build)
			if f[0] == "clang++" && clangName(t) == "clang-14" {
				f[0] = "clang++-14"
			}
			path := filepath.Join(t.TempDir(), "out")
			command(t, "testdata", nil, f[0], append(f[1:], "-o", path, "inline.cc")...)
			want := map[string]string{
				"_ZN4shop4ItemC1Ei": "via_constructor", "_ZNK4shop4Item3taxEv": "via_method", "_ZNK4shop4Item2asIlEET_v": "via_template",
			}
			_, syms := query(t, path, Query{Names: slices.Collect(maps.Keys(want)), Inlined: true})
			for name, holder := range want {
				if !slices.ContainsFunc(syms, func(s Symbol) bool { return s.Kind == KindInlined && s.Wanted == name && s.InlinedIn == holder }) {
					t.Errorf("%s in %s: not among %+v", name, holder, syms)
				}
			}
			for _, s := range syms {
				if s.Kind != KindInlined && s.Inline.State != InlineAt {
					t.Errorf("%+v", s)
				}
			}
			// As a person writes them.
			for _, q := range []Query{{Names: []string{"shop::Item::tax() const"}}, {Globs: []string{"shop::Item::t*"}}, {Regexps: []string{"::tax\\("}}} {
				q.Inlined = true
				_, syms := query(t, path, q)
				if len(syms) == 0 || !slices.ContainsFunc(syms, func(s Symbol) bool {
					return s.Kind == KindInlined && s.InlinedIn == "via_method" && s.Demangled == "shop::Item::tax() const"
				}) {
					t.Errorf("%+v: %+v", q, syms)
				}
			}
		})
	}
}

// debugFile makes a file that has these sections of debugging information, and
// one function of 4 bytes, "wanted".
func debugFile(sections map[string][]byte) []byte {
	b := tiny().bytes()
	old := sectionHeaders(b)
	headers := slices.Concat(old...)
	var names []byte
	add := func(content []byte, typ elf.SectionType, name string) {
		h := make([]byte, 64)
		le.PutUint32(h, uint32(len(names)))
		le.PutUint32(h[4:], uint32(typ))
		le.PutUint64(h[24:], uint64(len(b)))
		le.PutUint64(h[32:], uint64(len(content)))
		names = append(append(names, name...), 0)
		b = append(b, content...)
		headers = append(headers, h...)
	}
	for _, name := range slices.Sorted(maps.Keys(sections)) {
		add(sections[name], elf.SHT_PROGBITS, name)
	}
	for i := range 5 {
		le.PutUint32(headers[64*i:], 1<<20)
	}
	add(append(slices.Clone(names), ".shstrtab\x00"...), elf.SHT_STRTAB, ".shstrtab")
	le.PutUint16(b[60:], uint16(len(headers)/64))
	le.PutUint16(b[62:], uint16(len(headers)/64-1))
	le.PutUint64(b[40:], uint64(len(b)))
	return append(b, headers...)
}

// small is debugging information that says that "wanted" was inlined at two
// bytes of itself.
func smallDebug() map[string][]byte {
	abbrev := []byte{
		1, 0x11, 1, 0x11, 0x01, 0x12, 0x06, 0, 0, // compile unit: low, high
		2, 0x2e, 1, 0x03, 0x08, 0x11, 0x01, 0x12, 0x06, 0, 0, // subprogram: name, low, high
		3, 0x1d, 0, 0x31, 0x13, 0x11, 0x01, 0x12, 0x06, 0, 0, // inlined: origin, low, high
		0,
	}
	die := []byte{1}
	die = le.AppendUint32(le.AppendUint64(die, tinyAddress), 0x1000)
	sub := 11 + len(die)
	die = append(append(die, 2), "wanted\x00"...)
	die = le.AppendUint32(le.AppendUint64(die, tinyAddress+0x10), 4)
	die = append(die, 3)
	die = le.AppendUint32(die, uint32(sub))
	die = le.AppendUint32(le.AppendUint64(die, tinyAddress+0x12), 2)
	die = append(die, 0, 0)
	info := le.AppendUint32(nil, uint32(7+len(die)))
	info = append(info, 4, 0, 0, 0, 0, 0, 8)
	return map[string][]byte{".debug_abbrev": abbrev, ".debug_info": append(info, die...)}
}

func TestDebugHostile(t *testing.T) {
	zeroes := func(n int) []byte {
		var w bytes.Buffer
		w.WriteString("ZLIB")
		w.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
		z := zlib.NewWriter(&w)
		_, _ = z.Write(make([]byte, n)) // into memory
		_ = z.Close()
		return w.Bytes()
	}
	for _, c := range []struct {
		name string
		edit func(map[string][]byte)
		lim  Limits
		want string
	}{
		{"as it is", func(m map[string][]byte) {}, Limits{}, InlineAt},
		{"unit behind the end", func(m map[string][]byte) { m[".debug_info"][3] = 1 }, Limits{}, InlineUnknown},
		{"unit past the bound", func(m map[string][]byte) {
			b := make([]byte, maxUnit+64)
			le.PutUint32(b, maxUnit+1)
			m[".debug_info"] = b
		}, Limits{}, InlineUnknown},
		{"more than is read", func(m map[string][]byte) {}, Limits{Debug: 40}, InlineUnknown},
		{"version 6", func(m map[string][]byte) { m[".debug_info"][4] = 6 }, Limits{}, InlineUnknown},
		{"addresses of 3 bytes", func(m map[string][]byte) { m[".debug_info"][10] = 3 }, Limits{}, InlineUnknown},
		{"no abbreviation", func(m map[string][]byte) { m[".debug_info"][24] = 9 }, Limits{}, InlineUnknown},
		{"abbreviations do not end", func(m map[string][]byte) { m[".debug_abbrev"] = m[".debug_abbrev"][:20] }, Limits{}, InlineUnknown},
		{"abbreviations past the bound", func(m map[string][]byte) {
			var b []byte
			for i := range maxAbbrevs + 2 {
				b = append(binary.AppendUvarint(b, uint64(i+1)), 0x11, 0, 0, 0)
			}
			m[".debug_abbrev"] = b
		}, Limits{}, InlineUnknown},
		{"attributes past the bound", func(m map[string][]byte) {
			m[".debug_abbrev"] = slices.Concat([]byte{1, 0x11, 0}, bytes.Repeat([]byte{3, 0x19}, maxAttributes+2), []byte{0, 0, 0})
		}, Limits{}, InlineUnknown},
		{"a form that there is not", func(m map[string][]byte) { m[".debug_abbrev"][4] = 0x70 }, Limits{}, InlineUnknown},
		{"depth past the bound", func(m map[string][]byte) {
			m[".debug_abbrev"] = []byte{1, 0x11, 1, 0, 0, 0}
			m[".debug_info"] = slices.Concat([]byte{0, 8, 0, 0, 4, 0, 0, 0, 0, 0, 8}, bytes.Repeat([]byte{1}, 2048-7))
		}, Limits{}, InlineUnknown},
		{"unpacks to more than is held", func(m map[string][]byte) {
			m[".zdebug_abbrev"] = zeroes(maxHeld + 1)
			delete(m, ".debug_abbrev")
		}, Limits{}, InlineUnknown},
		{"unpacks to less than it says", func(m map[string][]byte) {
			m[".zdebug_info"] = slices.Concat([]byte("ZLIB\x00\x00\x00\x00\x00\x00\x01\x00"), zeroes(16)[12:])
			delete(m, ".debug_info")
		}, Limits{}, InlineUnknown},
		{"is not what it says", func(m map[string][]byte) {
			m[".zdebug_info"] = []byte("ZLIB\x00\x00\x00\x00\x00\x00\x01\x00no such thing")
			delete(m, ".debug_info")
		}, Limits{}, InlineUnknown},
		{"reference outside", func(m map[string][]byte) { b := m[".debug_info"]; le.PutUint32(b[len(b)-18:], 1<<30) }, Limits{}, InlineUnknown},
		{"instance outside of its function", func(m map[string][]byte) { b := m[".debug_info"]; le.PutUint64(b[len(b)-14:], tinyAddress+0x100) }, Limits{}, InlineUnknown},
		{"instance outside of the file", func(m map[string][]byte) { b := m[".debug_info"]; le.PutUint64(b[len(b)-14:], 1) }, Limits{}, InlineNone},
		{"instance between instructions", func(m map[string][]byte) { b := m[".debug_info"]; le.PutUint64(b[len(b)-14:], tinyAddress+0x11) }, Limits{}, InlineUnknown},
		{"code without", func(m map[string][]byte) { le.PutUint32(m[".debug_info"][20:], 8) }, Limits{}, InlineUnknown},
	} {
		m := smallDebug()
		c.edit(m)
		b := debugFile(m)
		copy(b[tinyText+0x10:], "\x00\x00\x90\xc3") // add, nop, ret
		p := func() (*File, []Symbol, error) {
			return read(bytes.NewReader(b), int64(len(b)), Query{Names: []string{"wanted"}, Inlined: true}, c.lim, anything)
		}
		_, syms, err := p()
		if err != nil || len(syms) == 0 || syms[0].Inline.State != c.want {
			t.Errorf("%s: %+v, %v; want %s", c.name, syms, err, c.want)
			continue
		}
		if c.want == InlineAt && (len(syms) != 2 || syms[1].Offset != tinyText+0x12 || syms[1].InlinedIn != "wanted") {
			t.Errorf("%s: %+v", c.name, syms)
		}
	}
}

// FuzzDebug: whatever debugging information says, an answer or unknown.
func FuzzDebug(f *testing.F) {
	m := smallDebug()
	f.Add(m[".debug_info"], m[".debug_abbrev"], []byte("wanted\x00"), []byte{7, 0, 0}, false)
	if path, err := exec.LookPath("gcc"); err == nil && path != "" {
		for _, v := range []string{"-gdwarf-4", "-gdwarf-5"} {
			ef := oracle(f, gcc(f, "-O2", v, "inline.c", "inline2.c"))
			get := func(name string) []byte {
				if s := ef.Section(name); s != nil {
					b, _ := s.Data()
					return b
				}
				return nil
			}
			f.Add(get(".debug_info"), get(".debug_abbrev"), get(".debug_str"), slices.Concat(get(".debug_rnglists"), get(".debug_ranges")), true)
		}
	}
	f.Fuzz(func(t *testing.T, info, abbrev, str, ranges []byte, z bool) {
		m := map[string][]byte{".debug_info": info, ".debug_abbrev": abbrev, ".debug_str": str, ".debug_rnglists": ranges, ".debug_ranges": ranges, ".debug_str_offsets": ranges, ".debug_addr": ranges}
		if z {
			m[".zdebug_line_str"] = str
		}
		b := debugFile(m)
		file, syms, err := read(bytes.NewReader(b), int64(len(b)), Query{Names: []string{"wanted", "leaf", "f"}, Inlined: true}, Limits{Debug: 1 << 20, Code: 1 << 20}, anything)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrTruncated) {
				t.Fatal(err)
			}
			return
		}
		for _, s := range syms {
			if !file.ExecutableOffset(s.Offset) {
				t.Errorf("%+v", s)
			}
		}
	})
}
