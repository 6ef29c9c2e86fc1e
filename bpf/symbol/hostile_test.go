package symbol

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// layout is a small ELF file: one executable segment of a page from offset
// 0x1000 at address 0x401000, a symbol table, and what belongs to it.
type layout struct {
	symbols []elf.Sym64
	strings string
}

func tiny() layout {
	return layout{
		symbols: []elf.Sym64{{}, {Name: 1, Info: elf.ST_INFO(elf.STB_GLOBAL, elf.STT_FUNC), Shndx: 1, Value: 0x401010, Size: 4}},
		strings: "\x00wanted\x00",
	}
}

// Where bytes puts things.
const (
	tinyText    = 0x1000
	tinySymtab  = 0x2000
	tinyPhdr    = 64
	tinyEnd     = 0x1000
	tinyAddress = 0x401000
)

func (l layout) bytes() []byte {
	var b bytes.Buffer
	put := func(at int, vs ...any) {
		b.Write(make([]byte, at-b.Len()))
		for _, v := range vs {
			if s, ok := v.(string); ok {
				b.WriteString(s)
				continue
			}
			if err := binaryWrite(&b, v); err != nil {
				panic(err)
			}
		}
	}
	names := "\x00.text\x00.symtab\x00.strtab\x00.shstrtab\x00"
	strtab := tinySymtab + 24*len(l.symbols)
	shstrtab := strtab + len(l.strings)
	shoff := shstrtab + len(names)
	head := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(hostMachine()), Version: 1, Entry: tinyAddress, Phoff: tinyPhdr, Shoff: uint64(shoff),
		Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64, Shnum: 5, Shstrndx: 4,
	}
	copy(head.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	put(0, head, elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Off: tinyText, Vaddr: tinyAddress, Filesz: 0x1000, Memsz: 0x1000, Align: 0x1000})
	put(tinySymtab)
	for _, s := range l.symbols {
		put(b.Len(), s)
	}
	put(strtab, l.strings, names,
		elf.Section64{},
		elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_ALLOC | elf.SHF_EXECINSTR), Addr: tinyAddress, Off: tinyText, Size: 0x1000},
		elf.Section64{Name: 7, Type: uint32(elf.SHT_SYMTAB), Off: tinySymtab, Size: uint64(24 * len(l.symbols)), Link: 3, Entsize: 24},
		elf.Section64{Name: 15, Type: uint32(elf.SHT_STRTAB), Off: uint64(strtab), Size: uint64(len(l.strings))},
		elf.Section64{Name: 23, Type: uint32(elf.SHT_STRTAB), Off: uint64(shstrtab), Size: uint64(len(names))},
	)
	return b.Bytes()
}

func TestTiny(t *testing.T) {
	f, syms, err := readBytes(tiny().bytes(), "wanted", "anted")
	if err != nil {
		t.Fatal(err)
	}
	if s := syms["wanted"]; len(syms) != 1 || len(s) != 1 || s[0].Offset != tinyText+0x10 || s[0].Size != 4 || s[0].Kind != KindFunc {
		t.Errorf("symbols %+v", syms)
	}
	if !f.HasEntry || f.Entry != tinyText || !f.ExecutableOffset(tinyText+0xfff) || f.ExecutableOffset(tinyText+0x1000) || f.ExecutableOffset(tinyText-1) {
		t.Errorf("file %+v", f)
	}
}

func TestBroken(t *testing.T) {
	u16 := func(at int, v uint16) func([]byte) { return func(b []byte) { le.PutUint16(b[at:], v) } }
	u64 := func(at int, v uint64) func([]byte) { return func(b []byte) { le.PutUint64(b[at:], v) } }
	section := func(i, at int, v uint64) func([]byte) {
		return func(b []byte) {
			if s := sectionHeaders(b)[i][at:]; at == 40 || at == 4 {
				le.PutUint32(s, uint32(v))
			} else {
				le.PutUint64(s, v)
			}
		}
	}
	// A second program header, behind the first.
	second := func(p elf.Prog64) func([]byte) {
		return func(b []byte) {
			var w bytes.Buffer
			_ = binaryWrite(&w, p) // a fixed-size value into memory
			copy(b[tinyPhdr+56:], w.Bytes())
			le.PutUint16(b[56:], 2)
		}
	}
	load := uint32(elf.PT_LOAD)
	for _, c := range []struct {
		name string
		do   func([]byte)
		want error
	}{
		{"magic", func(b []byte) { b[0] = 'x' }, ErrNotELF},
		{"class", func(b []byte) { b[elf.EI_CLASS] = 3 }, ErrMalformed},
		{"byte order", func(b []byte) { b[elf.EI_DATA] = 0 }, ErrMalformed},
		{"version", func(b []byte) { b[elf.EI_VERSION] = 2 }, ErrMalformed},
		{"object file", u16(16, uint16(elf.ET_REL)), ErrNotELF},
		{"core file", u16(16, uint16(elf.ET_CORE)), ErrNotELF},
		{"e_phentsize 0", u16(54, 0), ErrMalformed},
		{"e_phentsize 65535", u16(54, 65535), ErrMalformed},
		{"e_shentsize 0", u16(58, 0), ErrMalformed},
		{"no program headers", u16(56, 0), ErrMalformed},
		{"65535 program headers", u16(56, 65535), ErrTooLarge},
		{"e_phoff behind the end", u64(32, 1<<40), ErrTruncated},
		{"e_phoff wraps", u64(32, math.MaxUint64-8), ErrTruncated},
		{"e_shoff behind the end", u64(40, 1<<40), ErrTruncated},
		{"e_shoff wraps", u64(40, math.MaxUint64-8), ErrTruncated},
		{"65535 sections", u16(60, 65535), ErrTooLarge},
		{"4096 sections", u16(60, 4096), ErrTruncated},
		{"2^64-1 sections", func(b []byte) { u16(60, 0)(b); le.PutUint64(b[le.Uint64(b[40:])+32:], math.MaxUint64) }, ErrTooLarge},
		{"names in no section", u16(62, 77), ErrMalformed},
		{"names in the symbols", u16(62, 2), ErrMalformed},
		{"names index outside e_shstrndx", func(b []byte) { u16(62, 0xffff)(b); le.PutUint32(b[le.Uint64(b[40:])+40:], 1<<31) }, ErrMalformed},
		{"section behind the end", section(1, 32, 1<<50), ErrTruncated},
		{"section wraps", section(1, 24, math.MaxUint64), ErrTruncated},
		{"segment behind the end", u64(tinyPhdr+8, 1<<40), ErrTruncated},
		{"segment longer than the file", func(b []byte) { u64(tinyPhdr+32, 1<<40)(b); u64(tinyPhdr+40, 1<<40)(b) }, ErrTruncated},
		{"more in the file than in memory", u64(tinyPhdr+40, 1), ErrMalformed},
		{"segment wraps in memory", u64(tinyPhdr+40, math.MaxUint64), ErrMalformed},
		{"segment not where its page is", u64(tinyPhdr+16, 0x401001), ErrMalformed},
		{"segments overlap", second(elf.Prog64{Type: load, Off: 0, Vaddr: tinyAddress + 0x800, Memsz: 1}), ErrMalformed},
		{"same segment twice", second(elf.Prog64{Type: load, Flags: 5, Off: tinyText, Vaddr: tinyAddress, Filesz: 0x1000, Memsz: 0x1000}), ErrMalformed},
		{"note behind the end", second(elf.Prog64{Type: uint32(elf.PT_NOTE), Off: 1 << 40, Filesz: 4}), ErrTruncated},
		{"dynamic section nowhere", second(elf.Prog64{Type: uint32(elf.PT_DYNAMIC), Vaddr: 1 << 40, Filesz: 32}), ErrMalformed},
		{"huge dynamic section", second(elf.Prog64{Type: uint32(elf.PT_DYNAMIC), Vaddr: tinyAddress, Filesz: 1 << 40}), ErrTooLarge},
		{"symbols of 0 bytes", section(2, 56, 0), ErrMalformed},
		{"symbols of 2^63 bytes", section(2, 56, 1<<63), ErrMalformed},
		{"symbols of 16 bytes", section(2, 56, 16), ErrMalformed},
		{"half a symbol", section(2, 32, 36), ErrMalformed},
		{"2^32 symbols", section(2, 32, 24<<32), ErrTruncated},
		{"symbols behind the end", section(2, 24, 1<<40), ErrTruncated},
		{"symbol names nowhere", section(2, 40, 0), ErrMalformed},
		{"symbol names in no section", section(2, 40, math.MaxUint32), ErrMalformed},
		{"symbol names in themselves", section(2, 40, 2), ErrMalformed},
		{"symbol names in the text", section(2, 40, 1), ErrMalformed},
		{"symbols overlap their names", section(3, 24, tinySymtab+8), ErrMalformed},
		{"names do not end", func(b []byte) { section(3, 32, 7)(b) }, ErrMalformed},
		{"no names", section(3, 32, 0), ErrMalformed},
		{"name outside", func(b []byte) { le.PutUint32(b[tinySymtab+24:], 1<<20) }, ErrMalformed},
		{"two symbol tables", section(3, 4, uint64(elf.SHT_SYMTAB)), ErrMalformed},
		{"compressed symbols", section(2, 8, uint64(elf.SHF_COMPRESSED)), ErrMalformed},
	} {
		b := tiny().bytes()
		c.do(b)
		if f, syms, err := readBytes(b, "wanted"); !errors.Is(err, c.want) || f != nil || syms != nil {
			t.Errorf("%s: error %v, want %v", c.name, err, c.want)
		} else if !strings.Contains(err.Error(), ": ") {
			t.Errorf("%s: error without facts: %v", c.name, err)
		}
	}
}

func TestSymbolsThatAreNot(t *testing.T) {
	fn := elf.ST_INFO(elf.STB_GLOBAL, elf.STT_FUNC)
	for name, s := range map[string]elf.Sym64{
		"undefined":         {Name: 1, Info: fn, Shndx: 0, Value: 0x401010},
		"absolute":          {Name: 1, Info: fn, Shndx: uint16(elf.SHN_ABS), Value: 0x401010},
		"data":              {Name: 1, Info: elf.ST_INFO(elf.STB_GLOBAL, elf.STT_OBJECT), Shndx: 1, Value: 0x401010},
		"before the text":   {Name: 1, Info: fn, Shndx: 1, Value: 0x400fff},
		"behind the text":   {Name: 1, Info: fn, Shndx: 1, Value: 0x402000},
		"far away":          {Name: 1, Info: fn, Shndx: 1, Value: math.MaxUint64},
		"untyped, not text": {Name: 1, Info: elf.ST_INFO(elf.STB_GLOBAL, elf.STT_NOTYPE), Shndx: 2, Value: 0x401010},
		"untyped, nowhere":  {Name: 1, Info: elf.ST_INFO(elf.STB_GLOBAL, elf.STT_NOTYPE), Shndx: 4000, Value: 0x401010},
	} {
		l := tiny()
		l.symbols[1] = s
		if _, syms, err := readBytes(l.bytes(), "wanted"); err != nil || len(syms) != 0 {
			t.Errorf("%s: %+v, %v", name, syms, err)
		}
	}
}

func TestAliasBounds(t *testing.T) {
	l := tiny()
	add := func(name string) {
		s := l.symbols[1]
		s.Name = uint32(len(l.strings))
		l.strings += name + "\x00"
		l.symbols = append(l.symbols, s)
	}
	add("\x1b[31mred")
	add("not\xffutf8")
	add(strings.Repeat("long", 200))
	_, syms, err := readBytes(l.bytes(), "wanted")
	if err != nil {
		t.Fatal(err)
	}
	if s := syms["wanted"][0]; s.Kind != KindAlias || len(s.Alias) != 0 {
		t.Errorf("unprintable aliases: %+v", s)
	}
	for i := range 100 {
		add(fmt.Sprintf("alias%03d", i))
	}
	add("name@@VERSION_1")
	if _, syms, err = readBytes(l.bytes(), "wanted"); err != nil {
		t.Fatal(err)
	}
	if s := syms["wanted"][0]; s.Kind != KindFolded || len(s.Alias) != maxAliases || s.Alias[0] != "alias000" {
		t.Errorf("many aliases: %+v", s)
	}
}

func TestLimits(t *testing.T) {
	l := tiny()
	for range 9 {
		s := l.symbols[1]
		s.Value += uint64(16 * len(l.symbols))
		l.symbols = append(l.symbols, s)
	}
	b := l.bytes()
	for _, c := range []struct {
		name string
		lim  Limits
		fine bool
	}{
		{"fits", Limits{FileSize: int64(len(b)), ProgramHeaders: 1, Sections: 5, Symbols: 11, StringBytes: 8, Matches: 10}, true},
		{"file", Limits{FileSize: int64(len(b)) - 1}, false},
		{"sections", Limits{Sections: 4}, false},
		{"symbols", Limits{Symbols: 10}, false},
		{"strings", Limits{StringBytes: 7}, false},
		{"matches", Limits{Matches: 9}, false},
	} {
		_, syms, err := Read(bytes.NewReader(b), int64(len(b)), Query{Names: []string{"wanted"}}, c.lim)
		if c.fine && (err != nil || len(syms) != 10) || !c.fine && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %d symbols, %v", c.name, len(syms), err)
		}
	}
}

// Cut at every length: an error that says so, and never a shorter answer.
func TestTruncated(t *testing.T) {
	whole := tiny().bytes()
	for n := range len(whole) {
		_, _, err := readBytes(whole[:n], "wanted")
		if want := ErrTruncated; n < 4 && !errors.Is(err, ErrNotELF) || n >= 4 && !errors.Is(err, want) {
			t.Fatalf("%d of %d bytes: %v", n, len(whole), err)
		}
	}
}

func TestTruncatedLibrary(t *testing.T) {
	whole, err := os.ReadFile(greetLibrary(t))
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) {
		if _, _, err := readBytes(whole[:n], "greet_hello"); !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrNotELF) {
			t.Fatalf("%d of %d bytes: %v", n, len(whole), err)
		}
	}
}

// A file that becomes shorter while it is read.
func TestShrinks(t *testing.T) {
	b := tiny().bytes()
	if _, _, err := Read(bytes.NewReader(b[:len(b)-64]), int64(len(b)), Query{}, Limits{}); !errors.Is(err, ErrTruncated) {
		t.Errorf("%v", err)
	}
}

// sparse is a file of zeros with pieces in it; it counts what is read of it.
type sparse struct {
	pieces map[int64][]byte
	read   int64
}

func (s *sparse) ReadAt(b []byte, off int64) (int, error) {
	s.read += int64(len(b))
	clear(b)
	for at, piece := range s.pieces {
		if at < off+int64(len(b)) && off < at+int64(len(piece)) {
			copy(b[max(0, at-off):], piece[max(0, off-at):])
		}
	}
	return len(b), nil
}

// The most that a hostile file can cost: time and memory are bounded, and what
// does not fit is refused before it is read.
func TestGigabyte(t *testing.T) {
	const size = 1 << 30
	l := tiny()
	with := func(symbols, strs uint64) *sparse {
		b := l.bytes()
		h := sectionHeaders(b)
		le.PutUint64(h[2][24:], 1<<20)
		le.PutUint64(h[2][32:], symbols*24)
		le.PutUint64(h[3][24:], 512<<20)
		le.PutUint64(h[3][32:], strs)
		return &sparse{pieces: map[int64][]byte{0: b}}
	}
	for _, c := range []struct {
		name string
		s    *sparse
		want error
		most int64
	}{
		{"zeros", &sparse{}, ErrNotELF, 64},
		{"too many symbols", with(4<<20+1, 1<<20), ErrTooLarge, 64 << 10},
		{"too many names", with(1, 128<<20+1), ErrTooLarge, 64 << 10},
		{"as many as fit", with(4<<20, 128<<20), nil, 600 << 20},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		began := time.Now()
		_, _, err := Read(c.s, size, Query{Names: []string{"wanted"}}, Limits{})
		took := time.Since(began)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, c.want) || c.s.read > c.most || took > 30*time.Second || after.TotalAlloc-before.TotalAlloc > 20<<20 {
			t.Errorf("%s: %v; %d bytes read in %v, %d bytes allocated", c.name, err, c.s.read, took, after.TotalAlloc-before.TotalAlloc)
		}
	}
	if _, _, err := Read(&sparse{}, size+1, Query{}, Limits{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("larger file: %v", err)
	}
	if _, _, err := Read(&sparse{}, -1, Query{}, Limits{}); !errors.Is(err, ErrTruncated) {
		t.Errorf("negative size: %v", err)
	}
}

func TestSparseFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sparse")
	if err := os.WriteFile(path, tiny().bytes()[:64], 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<30); err != nil {
		t.Fatal(err)
	}
	fd, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if _, _, err := Read(fd, 1<<30, Query{Names: []string{"x"}}, Limits{}); err == nil {
		t.Error("no error")
	}
}

// Many symbols at one wanted place, all with other names: the worst case for
// aliases.
func TestAliasFlood(t *testing.T) {
	l := tiny()
	fn, names := l.symbols[1], strings.Builder{}
	names.WriteString(l.strings)
	for i := range 200_000 {
		fn.Name = uint32(names.Len())
		fmt.Fprintf(&names, "\x01%d\x00", i) // none can be listed
		l.symbols = append(l.symbols, fn)
	}
	l.strings = names.String()
	b := l.bytes()
	_, syms, err := readBytes(b, "wanted")
	if err != nil || syms["wanted"][0].Kind != KindAlias {
		t.Errorf("%+v, %v", syms, err)
	}
}
