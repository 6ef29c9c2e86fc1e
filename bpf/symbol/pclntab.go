package symbol

import (
	"debug/elf"
	"errors"
	"fmt"
	"slices"
)

// The magic numbers of Go's table of functions, by the first version that
// writes it so (cmd/link/internal/ld/pcln.go, debug/gosym/pclntab.go). A
// format without these is of an even older Go, or was changed on purpose.
const (
	pclntab12  = 0xfffffffb
	pclntab116 = 0xfffffffa
	pclntab118 = goMagic118
	pclntab120 = goMagic120
)

// pclntab is such a table, of any version, as far as it names functions. See
// goTable for what else is in those of today.
type pclntab struct {
	magic uint32
	ptr   uint64 // bytes of a pointer
	in    extent // from its beginning to where it can end at most
	count uint64 // of functions
	text  uint64 // from 1.18 on: the address that functions are relative to

	functab uint64 // offsets within the table
	funcs   uint64 // that functions are relative to
	names   extent // offsets within the file
}

// addPclntab adds Go's table of functions to the tables of a stripped file. The
// linker writes it for the runtime, so that stripping can't remove it. Where
// there is a .symtab that has all of its functions too, and reading both takes
// three times as long.
func (p *parser) addPclntab() error {
	if !p.stripped {
		return nil
	}
	var found []extent
	for i := range p.sections {
		s := &p.sections[i]
		if s.typ != elf.SHT_NULL && s.typ != elf.SHT_NOBITS && (p.hasName(s, goTableSection) || p.hasName(s, ".data.rel.ro"+goTableSection)) {
			found = append(found, extent{s.off, s.size})
		}
	}
	if len(found) == 0 && (p.goCode || len(p.sections) == 0) {
		var err error
		if found, err = p.searchPclntab(); err != nil {
			return err
		}
	}
	for _, in := range found {
		t, err := p.pclntabAt(in)
		if err != nil {
			return err
		}
		if t == nil {
			continue
		}
		pg := &pages{src: &p.src, in: t.in}
		p.tables = append(p.tables, table{
			what: goTableSection, source: SourcePclntab, src: &p.src, count: t.count, str: t.names, mixed: true,
			each: func(fn func(entry) error) error { return p.eachGo(t, pg, t.count, fn) },
		})
		return nil
	}
	return nil
}

// searchPclntab looks in all that is loaded for what begins like a table. The
// linker puts it into read-only data, which is with the code in one segment if
// another linker makes it so, and is writable until it was relocated.
func (p *parser) searchPclntab() (found []extent, err error) {
	const align, most = 8, 64 // the linker aligns it to 32
	for _, s := range p.loads {
		at := s.off
		err := p.src.stream(s.off, s.filesz, align, func(b []byte) error {
			for i := 0; i+align <= len(b); i += align {
				if m := le.Uint32(b[i:]); m >= pclntab118 && pclntabHead(b[i:]) && len(found) < most {
					found = append(found, extent{at + uint64(i), s.off + s.filesz - at - uint64(i)})
				}
			}
			at += uint64(len(b))
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// pclntabHead reports whether 8 bytes are the beginning of a table.
func pclntabHead(b []byte) bool {
	return slices.Contains([]uint32{pclntab12, pclntab116, pclntab118, pclntab120}, le.Uint32(b)) && b[4] == 0 && b[5] == 0 &&
		(b[6] == 1 || b[6] == 2 || b[6] == 4) && (b[7] == 4 || b[7] == 8)
}

// pclntabAt reads the head of a table; nil if there is none.
func (p *parser) pclntabAt(in extent) (*pclntab, error) {
	b := make([]byte, min(8+8*8, in.size))
	if err := p.src.read(b, in.off); err != nil {
		return nil, err
	}
	if len(b) < cap(b) || len(b) < 8+2*8 || !pclntabHead(b) {
		return nil, nil
	}
	t := &pclntab{magic: le.Uint32(b), ptr: uint64(b[7]), in: in}
	var w []uint64
	for b = b[8:]; uint64(len(b)) >= t.ptr; b = b[t.ptr:] {
		if t.ptr == 8 {
			w = append(w, le.Uint64(b))
		} else {
			w = append(w, uint64(le.Uint32(b)))
		}
	}
	t.count = w[0]
	var nameAt, nameEnd uint64
	switch {
	case t.magic == pclntab12:
		t.functab, t.funcs = 8+t.ptr, 0
		nameAt, nameEnd = 0, in.size
	case t.magic == pclntab116 && len(w) >= 7:
		nameAt, nameEnd, t.functab = w[2], w[3], w[6]
		t.funcs = t.functab
	case t.magic != pclntab116 && len(w) >= 8:
		t.text, nameAt, nameEnd, t.functab = w[2], w[3], w[4], w[7]
		t.funcs = t.functab
	default:
		return nil, nil
	}
	if t.count == 0 || t.functab >= in.size || t.count >= (in.size-t.functab)/t.entrySize() || nameAt > nameEnd || nameEnd > in.size {
		return nil, nil
	}
	t.names = extent{in.off + nameAt, nameEnd - nameAt}
	if t.magic == pclntab118 || t.magic == pclntab120 {
		// Left to relocations, or from Go 1.26 on not written at all.
		if _, ok := p.executable(t.text); t.text == 0 || !ok {
			ok, err := p.pclntabText(t)
			if !ok || err != nil {
				return nil, err
			}
		}
	}
	// The first functions tell whether it is a table at all: that they are not
	// in text is no mistake of a table, but of who took this for one.
	first := 0
	err := p.eachGo(t, &pages{src: &p.src, in: t.in}, min(t.count, 8), func(e entry) error {
		if uint64(e.name) < t.names.size {
			first++
		}
		return nil
	})
	if errors.Is(err, ErrMalformed) || err == nil && first == 0 {
		return nil, nil
	}
	return t, err
}

// pclntabText finds what functions are relative to if the table does not say it:
// the runtime has it in its moduledata, or else it is where .text begins if
// the program's first instruction is a function of the table then.
func (p *parser) pclntabText(t *pclntab) (bool, error) {
	g, err := p.goTableAt(t.in.off)
	if err != nil {
		return false, err
	}
	if g != nil {
		t.text = g.text
		return true, nil
	}
	text, ok := p.named(".text")
	first, starts := p.executable(p.entry)
	if !ok || !starts {
		return false, nil
	}
	t.text, ok = text.addr, false
	err = p.eachGo(t, &pages{src: &p.src, in: t.in}, t.count, func(e entry) error {
		ok = ok || e.off == first
		return nil
	})
	if errors.Is(err, ErrMalformed) {
		return false, nil
	}
	return ok, err
}

// entrySize is that of one entry of functab.
func (t *pclntab) entrySize() uint64 {
	if t.magic == pclntab12 || t.magic == pclntab116 {
		return 2 * t.ptr
	}
	return 8
}

// eachGo calls fn with the first n functions of a table.
func (p *parser) eachGo(t *pclntab, pg *pages, n uint64, fn func(entry) error) error {
	size := t.entrySize()
	split := func(b []byte) (pc, at uint64) {
		if size == 16 {
			return le.Uint64(b), le.Uint64(b[8:])
		}
		return uint64(le.Uint32(b)), uint64(le.Uint32(b[4:]))
	}
	head := uint64(4) // what comes before a function's name: its entry
	if size != 8 || t.magic == pclntab116 || t.magic == pclntab12 {
		head = t.ptr
	}
	var pc, at, i uint64
	return p.src.stream(t.in.off+t.functab, (n+1)*size, int(size), func(b []byte) error {
		for ; len(b) > 0; b = b[size:] {
			next, nextAt := split(b)
			if i > 0 {
				if next < pc {
					return fmt.Errorf("function %d begins at %#x, the next at %#x: %w", i-1, pc, next, ErrMalformed)
				}
				if err := p.work(64); err != nil {
					return err
				}
				if off, ok := p.executable(t.text + pc); ok {
					f, err := pg.exactly(t.funcs+at+head, 4)
					if err != nil {
						return fmt.Errorf("function %d: %w", i-1, err)
					}
					if err := fn(entry{name: le.Uint32(f), off: off, size: next - pc, typed: true}); err != nil {
						return err
					}
				}
			}
			pc, at = next, nextAt
			i++
		}
		return nil
	})
}
