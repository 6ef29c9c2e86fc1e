package symbol

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"debug/gosym"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"probity/tests/need"
)

// withTable is a file without section headers: code from offset 0x1000 on,
// and behind it read-only data that holds a table.
func withTable(text, size uint64, tab []byte) []byte {
	head := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(hostMachine()), Version: 1, Entry: text, Phoff: 64,
		Ehsize: 64, Phentsize: 56, Phnum: 2,
	}
	copy(head.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	size = (size + 0xfff) &^ 0xfff
	at, addr := 0x1000+size, text+size
	var b bytes.Buffer
	for _, v := range []any{
		head,
		elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Off: 0x1000, Vaddr: text, Filesz: size, Memsz: size},
		elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R), Off: at, Vaddr: addr, Filesz: uint64(len(tab) + 64), Memsz: uint64(len(tab) + 64)},
	} {
		if err := binaryWrite(&b, v); err != nil {
			panic(err)
		}
	}
	file := make([]byte, at+64+uint64(len(tab)))
	copy(file, b.Bytes())
	copy(file[at+64:], tab) // not at the segment's beginning
	return file
}

// goFuncs are functions, as a table has them.
type goFuncs struct {
	names []string
	pcs   []uint64 // one more: the end
}

// encode writes a table in the format of a Go version, as far as it names
// functions.
func (g goFuncs) encode(magic uint32, ptr int, text uint64) []byte {
	b := []byte{0, 0, 0, 0, 0, 0, 1, byte(ptr)}
	le.PutUint32(b, magic)
	put := func(size int, v uint64) {
		b = le.AppendUint64(b, v)
		b = b[:len(b)-8+size]
	}
	set := func(at, size int, v uint64) {
		var w [8]byte
		le.PutUint64(w[:], v)
		copy(b[at:], w[:size])
	}
	n, word := len(g.names), ptr
	put(ptr, uint64(n))
	nameAt, funcs := make([]int, n), 0
	names := func(from int) {
		for i, s := range g.names {
			nameAt[i] = len(b) - from
			b = append(append(b, s...), 0)
		}
		for len(b)%8 != 0 {
			b = append(b, 0)
		}
	}
	offsets := 0 // of the head's
	if magic != pclntab12 {
		put(ptr, 1) // files
		if magic != pclntab116 {
			put(ptr, text)
			word = 4
		} else {
			text = 0
		}
		offsets = len(b)
		b = append(b, make([]byte, 5*ptr)...)
		set(offsets, ptr, uint64(len(b)))
		from := len(b)
		names(from)
		for i := 1; i < 5; i++ { // what names no functions is empty
			set(offsets+i*ptr, ptr, uint64(len(b)))
		}
		funcs = len(b)
	} else {
		text = 0
	}
	tab := len(b)
	b = append(b, make([]byte, (2*n+1)*word)...)
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	if magic == pclntab12 {
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // its files
		names(0)
	}
	for i := range n {
		set(tab+2*i*word, word, g.pcs[i]-text)
		set(tab+(2*i+1)*word, word, uint64(len(b)-funcs))
		at := len(b)
		b = append(b, make([]byte, word+44)...)
		set(at, word, g.pcs[i]-text)
		set(at+word, 4, uint64(nameAt[i]))
		for len(b)%8 != 0 {
			b = append(b, 0)
		}
	}
	set(tab+2*n*word, word, g.pcs[n]-text)
	return b
}

// checkTable compares what is found in a table with what the standard
// library's reader finds.
func checkTable(t *testing.T, what string, tab []byte, text uint64) {
	t.Helper()
	table, err := gosym.NewTable(nil, gosym.NewLineTable(tab, text))
	if err != nil {
		t.Fatalf("%s: oracle: %v", what, err)
	}
	want := map[string]uint64{}
	end := text
	for _, f := range table.Funcs {
		want[f.Name] = f.Entry - text + 0x1000
		end = max(end, f.End)
	}
	if len(want) < 10 {
		t.Fatalf("%s: oracle found %d functions", what, len(want))
	}
	file := withTable(text, end-text, tab)
	for _, q := range []Query{{Globs: []string{"*"}}, {Names: slices.Collect(maps.Keys(want))}} {
		syms, err := askBytes(file, q, Limits{})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		got := map[string]uint64{}
		for _, s := range syms {
			got[s.Name] = s.Offset
			if s.Source != SourcePclntab || s.Size == 0 || s.Kind != KindFunc {
				t.Errorf("%s: %+v", what, s)
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: %d functions, want %d", what, len(got), len(want))
		}
	}
}

func someFuncs(text uint64) goFuncs {
	g := goFuncs{pcs: []uint64{text}}
	for i := range 100 {
		g.names = append(g.names, fmt.Sprintf("example.com/pkg%d.(*Type[...]).Method%d", i%7, i))
		g.pcs = append(g.pcs, g.pcs[i]+uint64(16*(i%5+1)))
	}
	return g
}

// Every format, in both widths.
func TestPclntabFormats(t *testing.T) {
	const text = 0x401000
	for _, magic := range []uint32{pclntab12, pclntab116, pclntab118, pclntab120} {
		for _, ptr := range []int{4, 8} {
			checkTable(t, fmt.Sprintf("%#x, %d bytes", magic, ptr), someFuncs(text).encode(magic, ptr, text), text)
		}
	}
}

// A table that Go 1.15 wrote, which comes with the toolchain.
func TestPclntab115(t *testing.T) {
	path := filepath.Join(strings.TrimSpace(string(command(t, ".", nil, "go", "env", "GOROOT"))), "src/debug/gosym/testdata/pcln115.gz")
	f, err := os.Open(path)
	need.File(t, "of the Go toolchain's tests", err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	tab, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	checkTable(t, "1.15", tab, 0x1001000)
}

// Programs of this toolchain, stripped: what the linker's symbol table says of
// the same program must be found without it.
func TestStrippedGo(t *testing.T) {
	for name, c := range map[string]struct {
		args, env []string
		hide      bool // the section headers
	}{
		"static":               {},
		"pie":                  {args: []string{"-buildmode=pie"}},
		"external pie":         {args: []string{"-buildmode=pie", "-ldflags=-linkmode=external"}, env: []string{"CGO_ENABLED=1"}},
		"no section headers":   {hide: true},
		"pie, no headers":      {args: []string{"-buildmode=pie"}, hide: true},
		"external, no headers": {args: []string{"-ldflags=-linkmode=external"}, env: []string{"CGO_ENABLED=1"}, hide: true},
		"386":                  {env: []string{"GOARCH=386", "CGO_ENABLED=0"}},
	} {
		t.Run(name, func(t *testing.T) {
			if slices.Contains(c.env, "CGO_ENABLED=1") {
				need.Command(t, "gcc")
			}
			if name == "386" {
				need.Machine(t, "amd64") // others do not run it
			}
			path := goProgram(t, c.env, c.args...)
			whole := ask(t, path, Query{Globs: []string{"*"}})
			stripped := path + ".stripped"
			command(t, ".", nil, "strip", "-s", "-o", stripped, path)
			b, err := os.ReadFile(stripped)
			if err != nil {
				t.Fatal(err)
			}
			if c.hide {
				clear(b[0x28:0x30])
				clear(b[0x3c:0x40])
			}
			f, syms, err := Read(bytes.NewReader(b), int64(len(b)), Query{Names: []string{"main.main"}, Globs: []string{"*"}}, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if !f.Go || !f.Stripped || f.GoVersion != runtime.Version() {
				t.Errorf("%+v", f)
			}
			got := map[uint64]Symbol{}
			for _, s := range syms {
				got[s.Offset] = s
			}
			if syms[0].Name != "main.main" || syms[0].Source != SourcePclntab {
				t.Errorf("first: %+v", syms[0])
			}
			count := 0
			for _, s := range whole {
				// What the linker makes has no entry; what C brings has none.
				if !strings.HasPrefix(s.Name, "main.") && !strings.HasPrefix(s.Name, "runtime.") && !strings.HasPrefix(s.Name, "fmt.") ||
					s.Name == "runtime.text" || s.Name == "runtime.etext" || s.Name == "runtime.textsection" {
					continue
				}
				g, ok := got[s.Offset]
				if base := strings.TrimSuffix(strings.TrimSuffix(s.Name, ".abi0"), "·f"); !ok || g.Name != base && !slices.Contains(s.Alias, g.Name) && g.Source == SourcePclntab {
					t.Errorf("%+v is %+v", s, g)
					continue
				}
				count++
			}
			if count < 500 {
				t.Errorf("%d functions compared", count)
			}
		})
	}
}

// With its symbol table, a Go program's functions are each one symbol, with
// the linker's name for it.
func TestGoBothTables(t *testing.T) {
	path := goProgram(t, nil)
	for _, s := range ask(t, path, Query{Names: []string{"main.main", "runtime.memequal", "fmt.Fprintf"}}) {
		if s.Source != SourceSymtab || s.Kind != KindFunc || len(s.Alias) != 0 {
			t.Errorf("%+v", s)
		}
	}
}

// Broken tables: an error, or no functions.
func TestBrokenPclntab(t *testing.T) {
	const text = 0x401000
	g := someFuncs(text)
	good := g.encode(pclntab120, 8, text)
	u64 := func(at int, v uint64) func([]byte) { return func(b []byte) { le.PutUint64(b[at:], v) } }
	functab := int(le.Uint64(good[64:]))
	for _, c := range []struct {
		name string
		do   func([]byte)
		want error // nil: as if there were no table
	}{
		{"magic", func(b []byte) { b[0] = 0 }, nil},
		{"pointer size", func(b []byte) { b[7] = 3 }, nil},
		{"no functions", u64(8, 0), nil},
		{"2^60 functions", u64(8, 1<<60), nil},
		{"names behind the end", u64(40, 1<<40), nil},
		{"names that end before they begin", u64(40, 8), nil},
		{"functions behind the end", u64(64, 1<<40), nil},
		{"text nowhere", u64(24, 1<<40), nil},
		{"first function behind the end", func(b []byte) { le.PutUint32(b[functab+4:], 1<<30) }, nil},
		{"later function behind the end", func(b []byte) { le.PutUint32(b[functab+8*50+4:], 1<<30) }, ErrMalformed},
		{"not ascending", func(b []byte) { le.PutUint32(b[functab+8*50:], 0) }, ErrMalformed},
		{"name outside", func(b []byte) {
			at := functab + int(le.Uint32(b[functab+8*50+4:]))
			le.PutUint32(b[at+4:], 1<<30)
		}, ErrMalformed},
		{"last name does not end", func(b []byte) {
			end := int(le.Uint64(b[40:]))
			for i := end - 1; b[i] == 0; i-- {
				b[i] = 'x'
			}
		}, ErrMalformed},
	} {
		b := bytes.Clone(good)
		c.do(b)
		syms, err := askBytes(withTable(text, 0x4000, b), Query{Globs: []string{"*"}}, Limits{})
		if !errors.Is(err, c.want) || len(syms) != 0 {
			t.Errorf("%s: %d symbols, %v, want %v", c.name, len(syms), err, c.want)
		}
	}
	file := withTable(text, 0x4000, good)
	for lim, want := range map[Limits]error{{Symbols: 100}: nil, {Symbols: 99}: ErrTooLarge, {StringBytes: 100}: ErrTooLarge, {Matches: 99}: ErrTooLarge} {
		if _, err := askBytes(file, Query{Globs: []string{"*"}}, lim); !errors.Is(err, want) {
			t.Errorf("%+v: %v", lim, err)
		}
	}
}

// FuzzPclntab: whatever the table, functions in text with names of the table,
// or an error that wraps a sentinel.
func FuzzPclntab(f *testing.F) {
	const text = 0x401000
	g := someFuncs(text)
	g.names, g.pcs = g.names[:10], g.pcs[:11]
	for _, magic := range []uint32{pclntab12, pclntab116, pclntab118, pclntab120} {
		f.Add(g.encode(magic, 8, text))
		f.Add(g.encode(magic, 4, text))
	}
	f.Fuzz(func(t *testing.T, tab []byte) {
		syms, err := askBytes(withTable(text, 0x1000, tab), Query{Globs: []string{"*"}}, Limits{Symbols: 1000})
		if err != nil && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrTruncated) {
			t.Fatalf("error without a sentinel: %v", err)
		}
		for _, s := range syms {
			if s.Offset < 0x1000 || s.Offset >= 0x2000 {
				t.Errorf("%+v", s)
			}
		}
	})
}

func TestGoVersion(t *testing.T) {
	text := "\xff Go buildinf:\x08\x02" + strings.Repeat("\x00", 16) + "\x08go1.21.3\x00"
	for _, c := range []struct{ name, info, want string }{
		{"inline", text, "go1.21.3"},
		{"cut off", text[:34], ""},
		{"too long", strings.Replace(text, "\x08go", "\xff\x7fgo", 1), ""},
		{"not printable", strings.Replace(text, "go1.", "go\x1b.", 1), ""},
		{"pointer nowhere", strings.Replace(text, "\x08\x02", "\x08\x00", 1), ""},
		{"short", text[:20], ""},
	} {
		b := append(tiny().bytes(), c.info...)
		p := &parser{src: source{r: bytes.NewReader(b), size: uint64(len(b))}, class: elf.ELFCLASS64}
		if v, err := p.goVersion(&extent{uint64(len(b) - len(c.info)), uint64(len(c.info))}); err != nil || v != c.want {
			t.Errorf("%s: %q, %v", c.name, v, err)
		}
	}
	// As Go wrote it until 1.17: a pointer to a string.
	b := tiny().bytes()
	info := "\xff Go buildinf:\x08\x00"
	copy(b[tinyText+0x100:], info)
	le.PutUint64(b[tinyText+0x110:], tinyAddress+0x200)
	le.PutUint64(b[tinyText+0x200:], tinyAddress+0x300)
	le.PutUint64(b[tinyText+0x208:], 7)
	copy(b[tinyText+0x300:], "go1.17.5")
	p := &parser{src: source{r: bytes.NewReader(b), size: uint64(len(b))}, class: elf.ELFCLASS64, loads: []segment{{vaddr: tinyAddress, memsz: 0x1000, off: tinyText, filesz: 0x1000}}}
	if v, err := p.goVersion(&extent{tinyText + 0x100, 0x100}); err != nil || v != "go1.17." {
		t.Errorf("pointer: %q, %v", v, err)
	}
}
