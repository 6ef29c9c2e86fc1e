package symbol

import (
	"debug/elf"
	"errors"
	"fmt"
)

const maxDynamic = 64 << 10

// readDynamic finds the symbol table that the dynamic linker uses. Section
// headers can be missing or say something else: nothing needs them to run.
// Addresses are translated as the loader does it, p_vaddr of PT_DYNAMIC too.
func (p *parser) readDynamic() error {
	if p.dynamic == nil || p.dynamic.filesz == 0 {
		return nil
	}
	if p.dynamic.filesz > maxDynamic {
		return fmt.Errorf("%d bytes, %d are taken: %w", p.dynamic.filesz, maxDynamic, ErrTooLarge)
	}
	where, err := p.translate(p.dynamic.vaddr, p.dynamic.filesz)
	if err != nil {
		return err
	}
	b := make([]byte, where.size)
	if err := p.src.read(b, where.off); err != nil {
		return err
	}
	size := 16
	if !p.is64() {
		size = 8
	}
	v := map[elf.DynTag]uint64{} // a later entry wins, as in glibc
	for ; len(b) >= size; b = b[size:] {
		tag := elf.DynTag(p.word(b))
		if tag == elf.DT_NULL {
			break
		}
		v[tag] = p.word(b[size/2:])
	}
	if n := v[elf.DT_RELASZ]; n > 0 {
		if p.rela, err = p.translate(v[elf.DT_RELA], n); err != nil {
			return fmt.Errorf("DT_RELA: %w", err)
		}
	}
	if v[elf.DT_SYMTAB] == 0 {
		return nil
	}
	if e, ok := v[elf.DT_SYMENT]; ok && e != p.symbolSize() {
		return fmt.Errorf("symbols in entries of %d, not %d: %w", e, p.symbolSize(), ErrMalformed)
	}
	count, err := p.hashCount(v[elf.DT_HASH])
	if err != nil {
		return fmt.Errorf("DT_HASH: %w", err)
	}
	gnu, err := p.gnuHashCount(v[elf.DT_GNU_HASH])
	if err != nil {
		return fmt.Errorf("DT_GNU_HASH: %w", err)
	}
	if count = max(count, gnu); count == 0 {
		return nil // without a hash table nothing can be looked up
	}
	if count > uint64(p.lim.Symbols) {
		return fmt.Errorf("%d symbols, %d are taken: %w", count, p.lim.Symbols, ErrTooLarge)
	}
	syms, err := p.translate(v[elf.DT_SYMTAB], count*p.symbolSize())
	if err != nil {
		return fmt.Errorf("DT_SYMTAB: %w", err)
	}
	str, err := p.translate(v[elf.DT_STRTAB], v[elf.DT_STRSZ])
	if err != nil {
		return fmt.Errorf("DT_STRTAB: %w", err)
	}
	for i := range p.tables {
		if t := &p.tables[i]; t.off == syms.off && t.str == str {
			t.count = max(t.count, count)
			return nil
		}
	}
	p.tables = append(p.tables, table{what: "DT_SYMTAB", source: SourceDynsym, src: &p.src, sections: p.sections, off: syms.off, count: count, str: str})
	return nil
}

// hashCount is the number of symbols that a DT_HASH table at addr covers.
func (p *parser) hashCount(addr uint64) (uint64, error) {
	if addr == 0 {
		return 0, nil
	}
	head, err := p.words(addr, 2) // nbucket, nchain
	if err != nil {
		return 0, err
	}
	return uint64(head[1]), nil
}

// words reads n 32-bit words at an address; n is small.
func (p *parser) words(addr uint64, n int) ([]uint32, error) {
	where, err := p.translate(addr, uint64(n)*4)
	if err != nil {
		return nil, err
	}
	b := make([]byte, where.size)
	if err := p.src.read(b, where.off); err != nil {
		return nil, err
	}
	w := make([]uint32, n)
	for i := range w {
		w[i] = le.Uint32(b[4*i:])
	}
	return w, nil
}

// gnuHashCount is the number of symbols up to the last that a DT_GNU_HASH table
// at addr covers: the end of the chain that begins last. Chains lie one behind
// the other, so no other can end later.
func (p *parser) gnuHashCount(addr uint64) (uint64, error) {
	if addr == 0 {
		return 0, nil
	}
	head, err := p.words(addr, 4) // nbuckets, symoffset, bloom_size, bloom_shift
	if err != nil {
		return 0, err
	}
	nbuckets, first, bloom := uint64(head[0]), uint64(head[1]), uint64(head[2])
	if nbuckets > uint64(p.lim.Symbols) || bloom > uint64(p.lim.Symbols) {
		return 0, fmt.Errorf("%d buckets and %d filter words, %d are taken: %w", nbuckets, bloom, p.lim.Symbols, ErrTooLarge)
	}
	width := uint64(8)
	if !p.is64() {
		width = 4
	}
	addr += 16 + bloom*width
	buckets, err := p.translate(addr, nbuckets*4)
	if err != nil {
		return 0, err
	}
	var last uint64
	err = p.src.stream(buckets.off, buckets.size, 4, func(b []byte) error {
		for ; len(b) > 0; b = b[4:] {
			last = max(last, uint64(le.Uint32(b)))
		}
		return nil
	})
	if err != nil || last == 0 {
		return 0, err
	}
	if last < first {
		return 0, fmt.Errorf("bucket of symbol %d before the first, %d: %w", last, first, ErrMalformed)
	}
	addr += (nbuckets + last - first) * 4
	s, ok := p.load(addr)
	if !ok {
		return 0, fmt.Errorf("chain at %#x is not loaded from the file: %w", addr, ErrMalformed)
	}
	return p.chainEnd(addr-s.vaddr+s.off, s.filesz-(addr-s.vaddr), last)
}

var errChainEnd = errors.New("end of chain")

// chainEnd follows a chain, of which at most n bytes at off are there, from
// symbol i to its end, and returns the number of the symbol after it.
func (p *parser) chainEnd(off, n, i uint64) (uint64, error) {
	most := uint64(p.lim.Symbols)
	err := p.src.stream(off, n, 4, func(b []byte) error {
		for ; len(b) > 0; b = b[4:] {
			if i++; i > most {
				return fmt.Errorf("more than %d symbols: %w", most, ErrTooLarge)
			}
			if le.Uint32(b)&1 != 0 {
				return errChainEnd
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, errChainEnd):
		return i, nil
	case err == nil:
		return 0, fmt.Errorf("chain does not end: %w", ErrMalformed)
	}
	return 0, err
}
