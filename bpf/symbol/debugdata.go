package symbol

import (
	"bytes"
	"debug/elf"
	"fmt"
)

const debugdataSection = ".gnu_debugdata"

// addDebugdata adds the symbol table that Fedora and others leave in stripped
// files for debuggers: an ELF file without code, packed by xz, whose .symtab
// has the functions that .dynsym has not.
func (p *parser) addDebugdata() error {
	s, ok := p.named(debugdataSection)
	if !ok {
		return nil
	}
	if s.compressed {
		return fmt.Errorf("compressed once more: %w", ErrMalformed)
	}
	b, err := p.unxz(extent{s.off, s.size}, uint64(p.lim.Debugdata))
	if err != nil {
		return err
	}
	in := &parser{src: source{r: bytes.NewReader(b), size: uint64(len(b)), deadline: p.src.deadline, limit: p.src.limit}, lim: p.lim}
	if err := in.readHeader(func(m elf.Machine, c elf.Class) bool { return m == p.machine && c == p.class }); err != nil {
		return fmt.Errorf("ELF header: %w: %w", err, ErrMalformed)
	}
	if err := in.readSections(); err != nil {
		return fmt.Errorf("section headers: %w", err)
	}
	for _, t := range in.tables {
		if t.source == SourceSymtab {
			t.what, t.source = debugdataSection, SourceDebugdata
			p.tables = append(p.tables, t)
		}
	}
	return nil
}
