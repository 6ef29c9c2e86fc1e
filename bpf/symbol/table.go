package symbol

import (
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"probity/bpf/symbol/demangle"
)

// table is one symbol table and its string table.
type table struct {
	what       string
	source     string // one of the Source constants
	src        *source
	off, count uint64
	str        extent
	mixed      bool                             // between the names there may be other data, and they have no versions
	each       func(fn func(entry) error) error // of a table that has another form than ELF's
	sections   []section                        // that the symbols refer to
	hits       map[uint32][]match               // string offset -> what its name matches
}

// entry is one symbol of a table that is a function in executable text.
type entry struct {
	name  uint32 // string offset, within the string table
	off   uint64 // file offset
	size  uint64
	ifunc bool
	typed bool // the table says that it is a function
	weak  bool
}

func (p *parser) symbolSize() uint64 {
	if p.is64() {
		return elf.Sym64Size
	}
	return elf.Sym32Size
}

// eachFunction calls fn with the functions of a table.
func (p *parser) eachFunction(t *table, fn func(entry) error) error {
	if t.each != nil {
		return t.each(func(e entry) error {
			if uint64(e.name) >= t.str.size {
				return fmt.Errorf("a name at %d of %d bytes: %w", e.name, t.str.size, ErrMalformed)
			}
			return fn(e)
		})
	}
	size := int(p.symbolSize())
	return t.src.stream(t.off, t.count*uint64(size), size, func(b []byte) error {
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
			if typ != elf.STT_FUNC && typ != elf.STT_GNU_IFUNC && (typ != elf.STT_NOTYPE || !textSection(t.sections, shndx)) {
				continue
			}
			switch elf.SectionIndex(shndx) {
			case elf.SHN_UNDEF, elf.SHN_ABS, elf.SHN_COMMON:
				continue
			}
			e := entry{name: le.Uint32(b), size: n, ifunc: typ == elf.STT_GNU_IFUNC, typed: typ != elf.STT_NOTYPE, weak: elf.ST_BIND(info) == elf.STB_WEAK}
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
func textSection(sections []section, shndx uint16) bool {
	if len(sections) == 0 || shndx >= uint16(elf.SHN_LORESERVE) {
		return true
	}
	return int(shndx) < len(sections) && sections[shndx].exec
}

// place is a file offset that at least one wanted name stands for.
type place struct {
	claims []claim
	others []string // names there that nothing matches, as far as they are listed
	shared bool     // whether there are any
	ifunc  bool
}

// claim is one item at one place.
type claim struct {
	match
	source string
	size   uint64
}

// find looks for what q wants in all tables, and for the names that selfHashed
// needs, which are returned apart. It passes over each symbol table three
// times and over each string table once, and keeps only what matched.
func (p *parser) find(q Query) (syms []Symbol, own map[string][]Symbol, err error) {
	if err := p.bounded(); err != nil {
		return nil, nil, err
	}
	w, err := newWanted(q)
	if err != nil {
		return nil, nil, err
	}
	w.work = p.work
	slices.SortStableFunc(p.tables, func(a, b table) int { return cmp.Compare(rank(a.source), rank(b.source)) })
	for i := 0; i < len(p.tables); i++ {
		t := &p.tables[i]
		if err := p.match(t, w); t.source == SourceDebugdata && !errors.Is(err, ErrTooLarge) && p.unjudgedDebugdata(err) {
			p.tables = slices.Delete(p.tables, i, i+1)
			i--
		} else if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", t.what, err)
		}
	}
	p.unjudged.merge(w.unjudged)
	places, err := p.claims()
	if err != nil {
		return nil, nil, err
	}
	if err := p.aliases(places); err != nil {
		return nil, nil, err
	}
	syms, own = results(places, w)
	for i := range syms {
		if err := p.complete(&syms[i]); err != nil {
			return nil, nil, err
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

// claims collects the places of what matched.
func (p *parser) claims() (map[uint64]*place, error) {
	places, count := map[uint64]*place{}, 0
	for i := range p.tables {
		t := &p.tables[i]
		if len(t.hits) == 0 {
			continue
		}
		err := p.eachFunction(t, func(e entry) error {
			hits, ok := t.hits[e.name]
			if !ok {
				return nil
			}
			pl := places[e.off]
			if pl == nil {
				pl = &place{}
				places[e.off] = pl
			}
			pl.ifunc = pl.ifunc || e.ifunc
			for _, m := range hits {
				if err := p.work(len(pl.claims)); err != nil {
					return err
				}
				if i := slices.IndexFunc(pl.claims, func(c claim) bool { return c.item == m.item && c.name == m.name }); i >= 0 {
					pl.claims[i].size = max(pl.claims[i].size, e.size) // the table before has the better source
					continue
				}
				if count == p.lim.Matches {
					return fmt.Errorf("more than %d symbols match: %w", p.lim.Matches, ErrTooLarge)
				}
				count++
				pl.claims = append(pl.claims, claim{m, t.source, e.size})
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.what, err)
		}
	}
	return places, nil
}

// results turns places into symbols, those that the query asked for in the
// order of its items and then of their offsets. own has the others, by name.
func results(places map[uint64]*place, w *wanted) (syms []Symbol, own map[string][]Symbol) {
	type result struct {
		item int32
		Symbol
	}
	var all []result
	for off, pl := range places {
		// The best source first: one symbol for each item.
		slices.SortFunc(pl.claims, func(a, b claim) int {
			return cmp.Or(cmp.Compare(a.item, b.item), cmp.Compare(rank(a.source), rank(b.source)), cmp.Compare(a.name, b.name))
		})
		here := pl.names()
		for i, c := range pl.claims {
			if i > 0 && pl.claims[i-1].item == c.item {
				last := &all[len(all)-1]
				last.Size = max(last.Size, c.size)
				continue
			}
			s := Symbol{Name: c.name, Demangled: c.full, Wanted: w.items[c.item], Source: c.source, Offset: off, Size: c.size, Kind: KindFunc}
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
			all = append(all, result{c.item, s})
		}
	}
	slices.SortFunc(all, func(a, b result) int { return cmp.Or(cmp.Compare(a.item, b.item), cmp.Compare(a.Offset, b.Offset)) })
	own = map[string][]Symbol{}
	type key struct {
		wanted string
		off    uint64
	}
	seen := map[key]bool{} // the same text may be a name and a glob
	for _, r := range all {
		if int(r.item) < len(w.exact.names) && slices.Contains(selfHashNames, r.Wanted) {
			own[r.Wanted] = append(own[r.Wanted], r.Symbol)
		}
		if k := (key{r.Wanted, r.Offset}); w.asked(r.item) && !seen[k] {
			seen[k] = true
			syms = append(syms, r.Symbol)
		}
	}
	return syms, own
}

// names returns all names of a place, sorted, as far as they can be told.
func (pl *place) names() []string {
	names := slices.Clone(pl.others)
	better := slices.ContainsFunc(pl.claims, func(c claim) bool { return c.source != SourcePclntab })
	for _, c := range pl.claims {
		// Go's runtime has other names for functions of the linker's table
		// (it knows no ABI): that makes no alias.
		if c.source == SourcePclntab && better {
			continue
		}
		names = append(names, c.name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// maxTold is the longest name that is told, in bytes.
const maxTold = 4 << 10

// complete fills in what the name says, and makes it one that can be told.
func (p *parser) complete(s *Symbol) error {
	if s.Demangled == "" && demangle.Mangled([]byte(s.Name)) {
		if err := p.work(demangling); err != nil {
			return err
		}
		if f, err := demangle.Of(s.Name); err == nil {
			s.Demangled = f.Full
		}
	}
	if len(s.Demangled) > maxTold || !printable(s.Demangled) {
		s.Demangled = ""
	}
	if s.Name != s.Wanted && (len(s.Name) > maxTold || !printable(s.Name)) { // the file author's text
		cut := s.Name[:min(len(s.Name), maxTold/4)] // a byte becomes 4 at most, a character 10
		s.Name = strings.Trim(strconv.QuoteToGraphic(cut), `"`)
		if len(cut) < maxTold/4 {
			return nil
		}
		s.Name += "..."
	}
	return nil
}
