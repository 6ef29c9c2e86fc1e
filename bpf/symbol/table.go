package symbol

import (
	"cmp"
	"debug/elf"
	"fmt"
	"slices"
)

// table is one symbol table and its string table.
type table struct {
	what       string
	source     string // one of the Source constants
	off, count uint64
	str        extent
	hits       map[uint32]hit // string offset -> which wanted name begins there
}

// entry is one symbol of a table that is a function in executable text.
type entry struct {
	name  uint32 // string offset, within the string table
	off   uint64 // file offset
	size  uint64
	ifunc bool
	typed bool // the table says that it is a function
}

func (p *parser) symbolSize() uint64 {
	if p.is64() {
		return elf.Sym64Size
	}
	return elf.Sym32Size
}

// eachFunction calls fn with the functions of a table.
func (p *parser) eachFunction(t *table, fn func(entry) error) error {
	size := int(p.symbolSize())
	return p.src.stream(t.off, t.count*uint64(size), size, func(b []byte) error {
		for ; len(b) > 0; b = b[size:] {
			var value, n uint64
			var info byte
			var shndx uint16
			if p.is64() {
				info, shndx, value, n = b[4], le.Uint16(b[6:]), le.Uint64(b[8:]), le.Uint64(b[16:])
			} else {
				value, n, info, shndx = uint64(le.Uint32(b[4:])), uint64(le.Uint32(b[8:])), b[12], le.Uint16(b[14:])
			}
			typ := elf.ST_TYPE(info)
			if typ != elf.STT_FUNC && typ != elf.STT_GNU_IFUNC && (typ != elf.STT_NOTYPE || !p.textSection(shndx)) {
				continue
			}
			switch elf.SectionIndex(shndx) {
			case elf.SHN_UNDEF, elf.SHN_ABS, elf.SHN_COMMON:
				continue
			}
			e := entry{name: le.Uint32(b), size: n, ifunc: typ == elf.STT_GNU_IFUNC, typed: typ != elf.STT_NOTYPE}
			if e.name == 0 {
				continue
			}
			var ok bool
			if e.off, ok = p.executable(value); !ok {
				continue
			}
			if uint64(e.name) >= t.str.size {
				return fmt.Errorf("a name at %d of %d bytes: %w", e.name, t.str.size, ErrMalformed)
			}
			if err := fn(e); err != nil {
				return err
			}
		}
		return nil
	})
}

// textSection reports whether an untyped symbol (assembler source often has
// no other) may be code: where there are section headers, executable segments
// of older linkers hold read-only data as well.
func (p *parser) textSection(shndx uint16) bool {
	if len(p.sections) == 0 || shndx >= uint16(elf.SHN_LORESERVE) {
		return true
	}
	return int(shndx) < len(p.sections) && p.sections[shndx].exec
}

// place is a file offset that at least one wanted name stands for.
type place struct {
	names  []int32  // indices of the wanted names
	others []string // other names there, as far as they are listed
	shared bool     // whether there are any
	ifunc  bool
	source string
}

// claim is one wanted name at one file offset.
type claim struct {
	off  uint64
	name int32
}

// find looks the wanted names up in all tables, and those that selfHashed
// needs, which are returned apart. It passes over each symbol table three
// times and over each string table once, and keeps only what matched.
func (p *parser) find(q Query) (syms []Symbol, own map[string][]Symbol, err error) {
	if err := p.bounded(); err != nil {
		return nil, nil, err
	}
	if len(q.Globs)+len(q.Regexps) > 0 {
		return nil, nil, fmt.Errorf("globs and regular expressions are not matched yet: %w", ErrTooLarge)
	}
	slices.SortStableFunc(p.tables, func(a, b table) int { return cmp.Compare(rank(a.source), rank(b.source)) })
	m := newMatcher(slices.Concat(q.Names, selfHashNames))
	for i := range p.tables {
		if err := p.match(&p.tables[i], m); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", p.tables[i].what, err)
		}
	}
	places, sizes, err := p.claims()
	if err != nil {
		return nil, nil, err
	}
	if err := p.aliases(places); err != nil {
		return nil, nil, err
	}
	all := results(places, sizes, m.names)
	own = map[string][]Symbol{}
	for _, n := range selfHashNames {
		if s, ok := all[n]; ok {
			own[n] = s
		}
	}
	seen := map[string]bool{}
	for _, n := range q.Names {
		if !seen[n] {
			seen[n] = true
			syms = append(syms, all[n]...)
		}
	}
	return syms, own, nil
}

// bounded holds the tables against the bounds.
func (p *parser) bounded() error {
	var symbols, stringBytes uint64
	for _, t := range p.tables { // each number is below the file's size
		symbols, stringBytes = symbols+t.count, stringBytes+t.str.size
	}
	if symbols > uint64(p.lim.Symbols) {
		return fmt.Errorf("%d symbols, %d are taken: %w", symbols, p.lim.Symbols, ErrTooLarge)
	}
	if stringBytes > uint64(p.lim.StringBytes) {
		return fmt.Errorf("%d bytes of symbol names, %d are taken: %w", stringBytes, p.lim.StringBytes, ErrTooLarge)
	}
	return nil
}

// claims collects the places of the names that matched, and the sizes that the
// tables give them.
func (p *parser) claims() (map[uint64]*place, map[claim]uint64, error) {
	places, sizes := map[uint64]*place{}, map[claim]uint64{}
	for i := range p.tables {
		t := &p.tables[i]
		if len(t.hits) == 0 {
			continue
		}
		err := p.eachFunction(t, func(e entry) error {
			h, ok := t.hits[e.name]
			if !ok {
				return nil
			}
			pl := places[e.off]
			if pl == nil {
				pl = &place{source: t.source}
				places[e.off] = pl
			}
			pl.ifunc = pl.ifunc || e.ifunc
			for _, n := range [...]int32{h.whole, h.base} {
				if n == none {
					continue
				}
				c := claim{e.off, n}
				size, ok := sizes[c]
				if !ok {
					if len(sizes) == p.lim.Matches {
						return fmt.Errorf("more than %d symbols match: %w", p.lim.Matches, ErrTooLarge)
					}
					pl.names = append(pl.names, n)
				}
				sizes[c] = max(size, e.size)
			}
			return nil
		})
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", t.what, err)
		}
	}
	return places, sizes, nil
}

// results turns places into the symbols of each name, by offset.
func results(places map[uint64]*place, sizes map[claim]uint64, names []string) map[string][]Symbol {
	out := map[string][]Symbol{}
	for off, pl := range places {
		here := slices.Clone(pl.others)
		for _, n := range pl.names {
			here = append(here, names[n])
		}
		slices.Sort(here)
		here = slices.Compact(here)
		for _, i := range pl.names {
			s := Symbol{Name: names[i], Wanted: names[i], Source: pl.source, Offset: off, Size: sizes[claim{off, i}], Kind: KindFunc}
			for _, n := range here[:min(len(here), maxAliases+1)] {
				if n != s.Name && len(s.Alias) < maxAliases {
					s.Alias = append(s.Alias, n)
				}
			}
			switch {
			case pl.ifunc:
				s.Kind = KindIFunc
			case pl.shared || len(here) > 1:
				s.Kind = KindAlias
			}
			out[s.Name] = append(out[s.Name], s)
		}
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b Symbol) int { return cmp.Compare(a.Offset, b.Offset) })
	}
	return out
}
