package symbol

import (
	"debug/elf"
	"fmt"
	"io"
	"slices"
	"sync"
)

// Location is a place in a file as a person reads it: so many bytes behind the
// beginning of a function.
type Location struct {
	Symbol string // raw; "" if no function of the tables is there
	Delta  uint64
}

func (l Location) String() string { return fmt.Sprintf("%s+%#x", l.Symbol, l.Delta) }

// Resolver says which functions file offsets lie in. Safe for concurrent use.
type Resolver struct {
	mu    sync.Mutex
	p     *parser
	known map[uint64]Location
}

// maxResolved bounds what a Resolver remembers; then it forgets all and starts
// again.
const maxResolved = 16 << 10

// NewResolver makes a resolver of an ELF file, which it goes on to read from
// r. What it holds in memory is what it answered, not the file's tables.
func NewResolver(r io.ReaderAt, size int64, lim Limits) (*Resolver, error) {
	return newResolver(r, size, lim, native)
}

func newResolver(r io.ReaderAt, size int64, lim Limits, runs func(elf.Machine, elf.Class) bool) (*Resolver, error) {
	p, err := open(r, size, lim, runs)
	if err != nil {
		return nil, err
	}
	if err := p.bounded(); err != nil {
		return nil, err
	}
	return &Resolver{p: p, known: map[uint64]Location{}}, nil
}

// Resolve names the functions that file offsets lie in, in their order. All
// that are not remembered cost one pass over the file's tables together.
func (r *Resolver) Resolve(offs ...uint64) ([]Location, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Location, len(offs))
	var ask []uint64
	for i, off := range offs {
		var ok bool
		if out[i], ok = r.known[off]; !ok {
			ask = append(ask, off)
		}
	}
	if len(ask) == 0 {
		return out, nil
	}
	r.p.begin()
	found, err := r.p.locate(ask)
	if err != nil {
		return nil, err
	}
	if len(r.known)+len(ask) > maxResolved {
		clear(r.known)
	}
	for i, off := range offs {
		if out[i].Symbol != "" {
			continue
		}
		if f, ok := found[off]; ok {
			out[i] = Location{f.name, off - f.start}
		}
		if len(r.known) < maxResolved {
			r.known[off] = out[i]
		}
	}
	return out, nil
}

// function is what the tables say of the function that a place lies in.
type function struct {
	name        string
	start, size uint64 // file offset; 0 if the table does not say the size
	table       *table
	at          uint32 // where the name is in its strings
}

func (f function) whole() Range { return Range{f.start, f.start + f.size} }

// locate finds the functions that file offsets lie in: for each the one that
// begins last before it, if it does not end before it as well. It passes over
// each symbol table once.
func (p *parser) locate(offs []uint64) (map[uint64]function, error) {
	offs = slices.Clone(offs)
	slices.Sort(offs)
	offs = slices.Compact(offs)
	best := make([]function, len(offs))
	have := make([]bool, len(offs))
	for i := range p.tables {
		t := &p.tables[i]
		err := p.eachFunction(t, func(e entry) error {
			k, _ := slices.BinarySearch(offs, e.off)
			if k == len(offs) || !e.typed && have[k] {
				return nil
			}
			if b := best[k]; !have[k] || e.off > b.start || e.off == b.start && e.size > b.size {
				best[k], have[k] = function{start: e.off, size: e.size, table: t, at: e.name}, true
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.what, err)
		}
	}
	out := make(map[uint64]function, len(offs))
	for i, off := range offs {
		if i > 0 && have[i-1] && (!have[i] || best[i-1].start > best[i].start) {
			best[i], have[i] = best[i-1], true
		}
		f := best[i]
		if !have[i] || f.size > 0 && off-f.start >= f.size || !p.sameSegment(f.start, off) {
			continue
		}
		name, ok, err := p.aliasName(f.table, f.at)
		if err != nil {
			return nil, err
		}
		if ok {
			f.name = name
			out[off] = f
		}
	}
	return out, p.locateGo(offs, out)
}

// sameSegment reports whether one executable segment has both places.
func (p *parser) sameSegment(a, b uint64) bool {
	return slices.ContainsFunc(p.loads, func(s segment) bool {
		return s.exec && a >= s.off && a-s.off < s.filesz && b >= s.off && b-s.off < s.filesz
	})
}
