package symbol

import (
	"bytes"
	"debug/elf"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// What Go's linker writes for the runtime and no strip removes
// (runtime/symtab.go, cmd/link/internal/ld/pcln.go). Read here are the formats
// of Go 1.18 to 1.19 and of Go 1.20 and later, of 64-bit programs.
const (
	goTableSection = ".gopclntab"
	goMagic118     = 0xfffffff0
	goMagic120     = 0xfffffff1

	maxGoName = 4 << 10
	// moduledata's fields, as words from its start: of the slices only the
	// pointer counts, the text's start, and the base of what functions
	// refer to in read-only data.
	moduleText    = 22
	moduleFunc118 = 38
	moduleFunc120 = 40
	moduleWords   = 41
)

// goTable is the table of a program's functions. All numbers are checked as
// they are used.
type goTable struct {
	*pages
	addr    uint64 // of the table
	old     bool   // Go 1.18, 1.19
	quantum uint64 // of code, in bytes

	count uint64 // of functions
	text  uint64 // the address that functions are relative to
	data  *pages // what functions refer to in read-only data, from its base to its segment's end; nil if that is not known

	names, pcs, funcs extent // within the table
}

// goFunc is one function of the table.
type goFunc struct {
	off, size uint64 // in the file; padding counts
	addr      uint64
	name      uint32 // offset of its name
	inline    uint32 // offset of the table that says what is inlined at an instruction; 0 if there is none
	tree      uint32 // offset of what that table counts, in the read-only data; noTree if there is none
}

const noTree = 1<<32 - 1

// goFunctions finds the table; nil if the program has none, or none of a
// known format.
func (p *parser) goFunctions() (*goTable, error) {
	if p.goTableRead {
		return p.goTab, nil
	}
	p.goTableRead = true
	if !p.is64() {
		return nil, nil
	}
	for i := range p.sections {
		s := &p.sections[i]
		if s.typ == elf.SHT_NULL || s.typ == elf.SHT_NOBITS || !p.hasName(s, goTableSection) && !p.hasName(s, ".data.rel.ro"+goTableSection) {
			continue
		}
		t, err := p.goTableAt(s.off)
		if err != nil || t != nil {
			p.goTab = t
			return t, err
		}
	}
	if !p.goCode {
		return nil, nil
	}
	budget := uint64(maxDataScan)
	for _, s := range p.loads {
		if s.exec || s.filesz > budget {
			continue
		}
		budget -= s.filesz
		t, err := p.searchGoTable(extent{s.off, s.filesz})
		if err != nil || t != nil {
			p.goTab = t
			return t, err
		}
	}
	return nil, nil
}

// searchGoTable looks for what begins like a table and is one.
func (p *parser) searchGoTable(in extent) (*goTable, error) {
	const align, head = 8, 8 // the linker aligns the table to 32
	var found []uint64
	at := in.off
	err := p.src.stream(in.off, in.size, align, func(b []byte) error {
		for i := 0; i+head <= len(b); i += align {
			if m := le.Uint32(b[i:]); (m == goMagic118 || m == goMagic120) && le.Uint16(b[i+4:]) == 0 && b[i+7] == 8 && len(found) < 64 {
				found = append(found, at+uint64(i))
			}
		}
		at += uint64(len(b))
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, off := range found {
		if t, err := p.goTableAt(off); err != nil || t != nil {
			return t, err
		}
	}
	return nil, nil
}

// goTableAt reads the table that begins at a file offset; nil if it is none.
func (p *parser) goTableAt(off uint64) (*goTable, error) {
	i := slices.IndexFunc(p.loads, func(s segment) bool { return off >= s.off && off-s.off < s.filesz })
	if i < 0 {
		return nil, nil
	}
	s := p.loads[i]
	t := &goTable{pages: &pages{src: &p.src, in: extent{off, s.off + s.filesz - off}}, addr: off - s.off + s.vaddr}
	h, err := t.bytes(0, 72)
	if err != nil || len(h) < 72 {
		return nil, err
	}
	magic := le.Uint32(h)
	if magic != goMagic118 && magic != goMagic120 || h[4] != 0 || h[5] != 0 || h[7] != 8 || h[6] != 1 && h[6] != 4 {
		return nil, nil
	}
	t.old, t.quantum, t.count = magic == goMagic118, uint64(h[6]), le.Uint64(h[8:])
	names, units, files, pcs, funcs := le.Uint64(h[32:]), le.Uint64(h[40:]), le.Uint64(h[48:]), le.Uint64(h[56:]), le.Uint64(h[64:])
	if !(72 <= names && names <= units && units <= files && files <= pcs && pcs <= funcs && funcs < t.in.size) {
		return nil, nil
	}
	if t.count == 0 || t.count > (t.in.size-funcs)/8 {
		return nil, nil
	}
	if t.count > uint64(p.lim.Symbols) {
		return nil, fmt.Errorf("%s: %d functions, %d are taken: %w", goTableSection, t.count, p.lim.Symbols, ErrTooLarge)
	}
	if units-names > uint64(p.lim.StringBytes) {
		return nil, fmt.Errorf("%s: %d bytes of names, %d are taken: %w", goTableSection, units-names, p.lim.StringBytes, ErrTooLarge)
	}
	t.names, t.pcs, t.funcs = extent{names, units - names}, extent{pcs, funcs - pcs}, extent{funcs, t.in.size - funcs}
	ok, err := p.goModule(t)
	if !ok || err != nil {
		return nil, err
	}
	return t, nil
}

// goModule finds the runtime's moduledata, the first field of which points to
// the table, and takes from it what the table does not say.
func (p *parser) goModule(t *goTable) (bool, error) {
	var at []uint64 // addresses
	budget := uint64(maxDataScan)
	for _, s := range p.loads {
		if s.exec || s.filesz > budget {
			continue
		}
		budget -= s.filesz
		addr := s.vaddr
		err := p.src.stream(s.off, s.filesz, 8, func(b []byte) error {
			for i := 0; i+8 <= len(b); i += 8 {
				if le.Uint64(b[i:]) == t.addr && len(at) < 64 {
					at = append(at, addr+uint64(i))
				}
			}
			addr += uint64(len(b))
			return nil
		})
		if err != nil {
			return false, err
		}
	}
	err := p.src.stream(p.rela.off, p.rela.size, 24, func(b []byte) error {
		for ; len(b) > 0; b = b[24:] {
			if le.Uint64(b[16:]) == t.addr && len(at) < 128 {
				at = append(at, le.Uint64(b))
			}
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	for _, addr := range at {
		if ok, err := p.goModuleAt(t, addr); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

func (p *parser) goModuleAt(t *goTable, addr uint64) (bool, error) {
	where, err := p.translate(addr, moduleWords*8)
	if err != nil {
		return false, nil
	}
	var raw [moduleWords * 8]byte
	if err := p.src.read(raw[:], where.off); err != nil {
		return false, err
	}
	var w [moduleWords]uint64
	for i := range w {
		w[i] = le.Uint64(raw[8*i:])
	}
	if w[0] != t.addr || w[1] == 0 {
		if err := p.relocate(addr, w[:]); err != nil {
			return false, err
		}
	}
	// The table itself, and its parts, in their order.
	if w[0] != t.addr || w[1] != t.addr+t.names.off || w[13] != t.addr+t.funcs.off {
		return false, nil
	}
	if t.text = w[moduleText]; t.text == 0 || t.text > w[moduleText+1] {
		return false, nil
	}
	base := w[moduleFunc120]
	if t.old {
		base = w[moduleFunc118]
	}
	if s, ok := p.load(base); ok {
		t.data = &pages{src: &p.src, in: extent{base - s.vaddr + s.off, s.filesz - (base - s.vaddr)}}
	}
	return true, nil
}

// function reads the i-th function, by address.
func (t *goTable) function(p *parser, i uint64) (f goFunc, err error) {
	b, err := t.exactly(t.funcs.off+8*i, 12) // its own entry, and where the next one begins
	if err != nil {
		return f, err
	}
	start, at, end := le.Uint32(b), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
	if end < start {
		return f, fmt.Errorf("function %d ends before it begins: %w", i, ErrMalformed)
	}
	f.addr, f.size = t.text+uint64(start), uint64(end-start)
	var ok bool
	if f.off, ok = p.executable(f.addr); !ok {
		return f, fmt.Errorf("function %d at %#x is not in text: %w", i, f.addr, ErrMalformed)
	}
	head := 44 // of runtime._func, up to its arrays
	if t.old {
		head = 40
	}
	if b, err = t.exactly(t.funcs.off+at, head); err != nil {
		return f, err
	}
	if le.Uint32(b) != start {
		return f, fmt.Errorf("function %d is at %#x and at %#x: %w", i, le.Uint32(b), start, ErrMalformed)
	}
	f.name, f.tree = le.Uint32(b[4:]), noTree
	tables, datas := uint64(le.Uint32(b[28:])), uint64(b[head-1])
	const inlineTable, inlineTree = 2, 3 // PCDATA_InlTreeIndex, FUNCDATA_InlTree
	if tables > 64 {
		return f, fmt.Errorf("function %d has %d tables: %w", i, tables, ErrMalformed)
	}
	arrays := t.funcs.off + at + uint64(head)
	if tables > inlineTable {
		if b, err = t.exactly(arrays+4*inlineTable, 4); err != nil {
			return f, err
		}
		f.inline = le.Uint32(b)
	}
	if datas > inlineTree {
		if b, err = t.exactly(arrays+4*(tables+inlineTree), 4); err != nil {
			return f, err
		}
		f.tree = le.Uint32(b)
	}
	return f, nil
}

// nameAt reads a name. It is not printable if somebody wants it so.
func (t *goTable) nameAt(off uint32) (string, error) {
	if uint64(off) >= t.names.size {
		return "", fmt.Errorf("a name at %d of %d bytes: %w", off, t.names.size, ErrMalformed)
	}
	b, err := t.bytes(t.names.off+uint64(off), int(min(maxGoName, t.names.size-uint64(off))))
	if err != nil {
		return "", err
	}
	name, _, ok := bytes.Cut(b, []byte{0})
	if !ok {
		return "", fmt.Errorf("the name at %d does not end within %d bytes: %w", off, len(b), ErrMalformed)
	}
	return string(name), nil
}

// eachName calls fn with each name of the table and its offset.
func (t *goTable) eachName(fn func(name []byte, off uint32)) error {
	var long []byte
	at := uint64(0)
	return t.src.stream(t.in.off+t.names.off, t.names.size, 1, func(b []byte) error {
		for len(b) > 0 {
			name, rest, whole := bytes.Cut(b, []byte{0})
			used := len(b) - len(rest)
			switch {
			case len(long)+len(name) > maxGoName:
				return fmt.Errorf("a name of more than %d bytes: %w", maxGoName, ErrTooLarge)
			case !whole:
				long = append(long, name...)
			case len(long) > 0:
				long = append(long, name...)
				fn(long, uint32(at+uint64(used)-1-uint64(len(long))))
				long = long[:0]
			case len(name) > 0:
				fn(name, uint32(at))
			}
			at += uint64(used)
			b = rest
		}
		return nil
	})
}

// find returns the function that a file offset lies in.
func (t *goTable) find(p *parser, off uint64) (f goFunc, ok bool, err error) {
	addr, inText := p.textAddress(Range{off, off + 1})
	if !inText || addr < t.text {
		return f, false, nil
	}
	lo, hi := uint64(0), t.count
	for lo < hi { // the first one that begins behind it
		mid := (lo + hi) / 2
		b, err := t.exactly(t.funcs.off+8*mid, 4)
		if err != nil {
			return f, false, err
		}
		if uint64(le.Uint32(b)) > addr-t.text {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	if lo == 0 {
		return f, false, nil
	}
	f, err = t.function(p, lo-1)
	return f, err == nil && off-f.off < f.size, err
}

// locateGo completes what locate found by what Go's table says.
func (p *parser) locateGo(offs []uint64, out map[uint64]function) error {
	if len(out) == len(offs) {
		return nil
	}
	t, err := p.goFunctions()
	if t == nil || err != nil {
		return err
	}
	for _, off := range offs {
		if _, ok := out[off]; ok {
			continue
		}
		f, ok, err := t.find(p, off)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		name, err := t.nameAt(f.name)
		if err != nil {
			return err
		}
		if printable(name) {
			out[off] = function{name: name, start: f.off, size: f.size}
		}
	}
	return nil
}

// steps calls fn with the ranges of a function, as offsets from its start, and
// the value that one of its tables has there. It counts what it does against
// the budget of the file.
func (t *goTable) steps(p *parser, f goFunc, table uint32, fn func(from, to uint64, value int32)) error {
	at, pc, value := t.pcs.off+uint64(table), uint64(0), int32(-1)
	for first := true; pc < f.size; first = false {
		if at >= t.pcs.off+t.pcs.size {
			return fmt.Errorf("a table of values that does not end: %w", ErrMalformed)
		}
		b, err := t.bytes(at, 10)
		if err != nil {
			return err
		}
		delta, n := varint(b)
		if n == 0 {
			return fmt.Errorf("a table of values that does not end: %w", ErrMalformed)
		}
		if delta == 0 && !first {
			return nil
		}
		value += int32(delta>>1) ^ -int32(delta&1)
		far, m := varint(b[n:])
		if m == 0 {
			return fmt.Errorf("a table of values that does not end: %w", ErrMalformed)
		}
		to := min(pc+uint64(far)*t.quantum, f.size)
		fn(pc, to, value)
		pc, at = to, at+uint64(n+m)
		if !p.spend(1) {
			return fmt.Errorf("more than %d steps: %w", p.lim.Code, ErrTooLarge)
		}
	}
	return nil
}

// varint reads an unsigned number of 32 bits (encoding/binary has those of 64).
func varint(b []byte) (v uint32, n int) {
	for shift := 0; n < len(b) && shift < 35; shift += 7 {
		c := b[n]
		n++
		v |= uint32(c&0x7f) << shift
		if c < 0x80 {
			return v, n
		}
	}
	return 0, 0
}

func printable(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
