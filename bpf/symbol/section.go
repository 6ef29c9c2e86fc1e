package symbol

import (
	"bytes"
	"debug/elf"
	"fmt"
)

// section is one section header; its bytes lie within the file unless its type
// is SHT_NOBITS or SHT_NULL.
type section struct {
	name       uint32 // into the section names
	typ        elf.SectionType
	exec       bool
	addr       uint64
	off, size  uint64
	link       uint32
	entsize    uint64
	compressed bool
}

const maxSectionNames = 1 << 20

func (p *parser) readSections() error {
	p.stripped = true
	if p.shoff == 0 {
		return nil
	}
	size := 64
	if !p.is64() {
		size = 40
	}
	first := make([]byte, size)
	if err := p.src.read(first, p.shoff); err != nil {
		return err
	}
	zero := p.section(first)
	count := uint64(p.shnum)
	if count == 0 { // more than fit into e_shnum (gABI, ELF header)
		count = zero.size
	}
	if p.shstrndx == uint32(elf.SHN_XINDEX) {
		p.shstrndx = zero.link
	}
	if count > uint64(p.lim.Sections) {
		return fmt.Errorf("%d of them, %d are taken: %w", count, p.lim.Sections, ErrTooLarge)
	}
	err := p.src.stream(p.shoff, count*uint64(size), size, func(b []byte) error {
		for ; len(b) > 0; b = b[size:] {
			s := p.section(b)
			if i := len(p.sections); i > 0 && s.typ != elf.SHT_NULL && s.typ != elf.SHT_NOBITS {
				if err := p.src.within(s.off, s.size); err != nil {
					return fmt.Errorf("section %d: %w", i, err)
				}
			}
			p.sections = append(p.sections, s)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(p.sections) > 0 {
		p.sections[0] = section{} // its fields mean something else, see above
	}
	if err := p.readSectionNames(); err != nil {
		return fmt.Errorf("section names: %w", err)
	}
	return p.addSectionTables()
}

func (p *parser) section(b []byte) section {
	s := section{name: le.Uint32(b), typ: elf.SectionType(le.Uint32(b[4:]))}
	var flags uint64
	if p.is64() {
		flags, s.addr = le.Uint64(b[8:]), le.Uint64(b[16:])
		s.off, s.size = le.Uint64(b[24:]), le.Uint64(b[32:])
		s.link, s.entsize = le.Uint32(b[40:]), le.Uint64(b[56:])
	} else {
		flags, s.addr = uint64(le.Uint32(b[8:])), uint64(le.Uint32(b[12:]))
		s.off, s.size = uint64(le.Uint32(b[16:])), uint64(le.Uint32(b[20:]))
		s.link, s.entsize = le.Uint32(b[24:]), uint64(le.Uint32(b[36:]))
	}
	s.exec = flags&uint64(elf.SHF_EXECINSTR) != 0
	s.compressed = flags&uint64(elf.SHF_COMPRESSED) != 0
	return s
}

func (p *parser) readSectionNames() error {
	if p.shstrndx == uint32(elf.SHN_UNDEF) {
		return nil
	}
	if uint64(p.shstrndx) >= uint64(len(p.sections)) {
		return fmt.Errorf("section %d of %d: %w", p.shstrndx, len(p.sections), ErrMalformed)
	}
	s := p.sections[p.shstrndx]
	if s.typ != elf.SHT_STRTAB {
		return fmt.Errorf("section %d is a %v: %w", p.shstrndx, s.typ, ErrMalformed)
	}
	if s.size > maxSectionNames {
		return fmt.Errorf("%d bytes, %d are taken: %w", s.size, maxSectionNames, ErrTooLarge)
	}
	p.names = make([]byte, s.size)
	return p.src.read(p.names, s.off)
}

// named finds the first section of a name that has bytes in the file.
func (p *parser) named(name string) (section, bool) {
	for _, s := range p.sections {
		if s.typ != elf.SHT_NULL && s.typ != elf.SHT_NOBITS && p.hasName(&s, name) {
			return s, true
		}
	}
	return section{}, false
}

func (p *parser) hasName(s *section, name string) bool {
	if uint64(s.name) >= uint64(len(p.names)) {
		return false
	}
	rest, ok := bytes.CutPrefix(p.names[s.name:], []byte(name))
	return ok && len(rest) > 0 && rest[0] == 0
}

// addSectionTables finds the symbol tables that the section headers name.
func (p *parser) addSectionTables() error {
	var seen [2]bool
	for i, s := range p.sections {
		var k int
		switch s.typ {
		case elf.SHT_SYMTAB:
			p.stripped = false
		case elf.SHT_DYNSYM:
			k = 1
		default:
			continue
		}
		if seen[k] { // one of each (gABI, sections)
			return fmt.Errorf("section %d: a second %v: %w", i, s.typ, ErrMalformed)
		}
		seen[k] = true
		if s.compressed || s.entsize != p.symbolSize() || s.size%s.entsize != 0 {
			return fmt.Errorf("section %d: %v of %d bytes in entries of %d, not %d: %w", i, s.typ, s.size, s.entsize, p.symbolSize(), ErrMalformed)
		}
		if s.link == 0 || uint64(s.link) >= uint64(len(p.sections)) {
			return fmt.Errorf("section %d: %v has its names in section %d of %d: %w", i, s.typ, s.link, len(p.sections), ErrMalformed)
		}
		str := p.sections[s.link]
		if str.typ != elf.SHT_STRTAB || str.compressed {
			return fmt.Errorf("section %d: %v has its names in section %d, a %v: %w", i, s.typ, s.link, str.typ, ErrMalformed)
		}
		if s.off < str.off+str.size && str.off < s.off+s.size { // no overflow: both lie within the file
			return fmt.Errorf("section %d: %v overlaps its names: %w", i, s.typ, ErrMalformed)
		}
		source := [...]string{SourceSymtab, SourceDynsym}[k]
		p.tables = append(p.tables, table{what: s.typ.String(), source: source, src: &p.src, sections: p.sections, off: s.off, count: s.size / s.entsize, str: extent{str.off, str.size}})
	}
	return nil
}
