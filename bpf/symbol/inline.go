package symbol

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// inlined is one place that a function was inlined at, as its debugging
// information or Go's runtime describes it.
type inlined struct {
	name   string  // of the function, as there
	within []Range // the code of the function that holds it, in the file; the first has its entry
	code   []Range // the instructions that are of the inlined one, in the file
}

// inlining is what one source says of all functions that are asked for.
type inlining struct {
	source string
	places []inlined
	// unknown: names of functions of which it can't be told everywhere that
	// they were inlined, and why. The name "" stands for all.
	unknown map[string]string
	covers  func(s *Symbol) bool // whether the source speaks of a function at all
	named   map[string]bool      // the wanted names that it has
}

// inlining finds where the functions that a query asks for were inlined: it
// adds what it finds to syms.
func (p *parser) inlining(q Query, syms []Symbol) ([]Symbol, error) {
	w, err := newWanted(q)
	if err != nil {
		return nil, err
	}
	w.work = p.work
	defer func() { p.unjudged.merge(w.unjudged) }()
	var late error
	wanted := func(name string) (items []string) {
		if i := w.exact.index(name); i >= 0 && w.asked(i) {
			items = append(items, w.items[i])
		}
		err := w.ask([]byte(name), func(m match) error {
			if !slices.Contains(items, w.items[m.item]) {
				items = append(items, w.items[m.item])
			}
			return nil
		})
		late = errors.Join(late, err)
		return items
	}
	var sources []*inlining
	goes, err := p.goInlining(wanted)
	if err != nil {
		return nil, err
	}
	if goes != nil {
		sources = append(sources, goes)
	}
	if goes == nil || !goes.knows(q.Names, syms) {
		debug, err := p.dwarfInlining(wanted)
		if err != nil {
			return nil, err
		}
		if debug != nil {
			sources = append(sources, debug)
		}
	}
	syms, err = p.inlinedSymbols(syms, sources, wanted)
	return syms, errors.Join(err, late)
}

// ways returns where control can come into a part of a function from outside
// of that part, as addresses: each instruction in it that is the function's
// entry, that follows one which is not in it and goes on, or that a jump from
// elsewhere leads to. With jumps to places that are not known (a switch), each
// instruction at which nothing else arrives may be one as well. in are
// addresses.
//
// To execute any instruction of the part is to come in by one of these.
func (b *body) ways(in []Range) []uint64 {
	inside := func(addr uint64) bool {
		i, found := slices.BinarySearchFunc(in, addr, func(r Range, a uint64) int { return cmp.Compare(r.Start, a) })
		if !found {
			i--
		}
		return i >= 0 && addr < in[i].End
	}
	var at []uint64
	reached := map[uint64]bool{}
	for _, j := range b.jumps {
		if inside(j.to) {
			if reached[j.to] = true; !inside(j.from) {
				at = append(at, j.to)
			}
		}
	}
	for k := range b.parts {
		p := &b.parts[k]
		for _, r := range in {
			from, to := max(r.Start, p.addr), min(r.End, p.addr+p.size)
			for a := from; a < to; a++ {
				if !bit(p.begins, a-p.addr) {
					continue
				}
				before, falls := p.before(a)
				switch {
				case a == p.addr: // the function's entry, or that of a part that it jumps to
					at = append(at, a)
				case falls && !inside(before):
					at = append(at, a)
				case !falls && b.blind && !reached[a]:
					at = append(at, a)
				}
			}
		}
	}
	slices.Sort(at)
	return slices.Compact(at)
}

// before returns the instruction before the one at an address, and whether it
// goes on to that.
func (p *part) before(addr uint64) (uint64, bool) {
	for i := addr - p.addr; i > 0; {
		if i--; bit(p.begins, i) {
			return p.addr + i, bit(p.falls, i)
		}
	}
	return 0, false
}

// maxEntries bounds the ways into one inlined instance.
const maxEntries = 64

// knows reports whether a source has each of the names, and covers each of the
// symbols.
func (in *inlining) knows(names []string, syms []Symbol) bool {
	for _, n := range names {
		if !in.named[n] {
			return false
		}
	}
	for i := range syms {
		if !in.covers(&syms[i]) {
			return false
		}
	}
	return true
}

// inlinedSymbols turns places into symbols, one for each instruction at which
// control comes into one of them, and says of each function of syms where it
// was inlined. wanted returns what a name was asked for by.
func (p *parser) inlinedSymbols(syms []Symbol, sources []*inlining, wanted func(name string) []string) ([]Symbol, error) {
	type at struct {
		name string
		off  uint64
	}
	seen := map[at]bool{}
	found := map[string][]Instance{}
	unknown := make([]map[string]string, len(sources))
	var starts []uint64
	for _, src := range sources {
		for _, pl := range src.places {
			starts = append(starts, pl.within[0].Start)
		}
	}
	holders, err := p.locate(starts)
	if err != nil {
		return nil, err
	}
	var out []Symbol
	for k, src := range sources {
		unknown[k] = src.unknown
		if unknown[k] == nil {
			unknown[k] = map[string]string{}
		}
		// Those that one function holds stand together.
		slices.SortStableFunc(src.places, func(a, b inlined) int { return cmp.Compare(a.within[0].Start, b.within[0].Start) })
		for i := 0; i < len(src.places); {
			first := src.places[i].within
			n := i
			for n < len(src.places) && slices.Equal(src.places[n].within, first) {
				n++
			}
			b, why, err := p.walk(first...)
			if err != nil {
				return nil, err
			}
			holder := holders[first[0].Start].name
			for ; i < n; i++ {
				pl := src.places[i]
				if b == nil {
					unknown[k][pl.name] = "the function that holds it was not decoded: " + why
					continue
				}
				offs, why := p.entries(b, pl)
				if why != "" {
					unknown[k][pl.name] = why
				}
				for _, off := range offs {
					if seen[at{pl.name, off}] {
						continue
					}
					seen[at{pl.name, off}] = true
					if len(seen) > p.lim.Matches {
						return nil, fmt.Errorf("more than %d inlined instances match: %w", p.lim.Matches, ErrTooLarge)
					}
					found[pl.name] = append(found[pl.name], Instance{holder, off})
					for _, w := range wanted(pl.name) {
						out = append(out, Symbol{
							Name: pl.name, Wanted: w, Source: src.source, Offset: off, Kind: KindInlined, InlinedIn: holder,
							Inline: InlineKnown{State: InlineUnknown},
						})
					}
				}
			}
		}
	}
	for i := range syms {
		s := &syms[i]
		base := p.original(s.Name)
		for k, src := range sources {
			if !src.covers(s) {
				continue
			}
			s.Inline.Instances = found[base]
			_, one := unknown[k][base]
			_, all := unknown[k][""]
			switch {
			case one || all:
				s.Inline.State = InlineUnknown
			case len(found[base]) > 0:
				s.Inline.State = InlineAt
			default:
				s.Inline.State = InlineNone
			}
			break
		}
	}
	slices.SortStableFunc(out, func(a, b Symbol) int { return cmp.Compare(a.Offset, b.Offset) })
	return append(syms, out...), nil
}

// entries returns the file offsets by which control comes into a place. why
// says that they are not all of them.
func (p *parser) entries(b *body, pl inlined) (offs []uint64, why string) {
	var in []Range // addresses
	for _, r := range pl.code {
		addr, ok := p.textAddress(r)
		if !ok {
			return nil, fmt.Sprintf("%d bytes at %#x are said to be of it and are not code", r.End-r.Start, r.Start)
		}
		in = append(in, Range{addr, addr + r.End - r.Start})
	}
	in = joined(in)
	for _, r := range in {
		if !p.spend(r.End - r.Start + uint64(len(b.jumps))) {
			return nil, fmt.Sprintf("more than %d bytes of code of this file", p.lim.Code)
		}
		if b.part(r.Start) == nil || !b.boundary(r.Start) {
			return nil, fmt.Sprintf("it is said to begin at %#x, where no instruction does", r.Start)
		}
	}
	ways := b.ways(in)
	switch {
	case len(ways) == 0:
		return nil, "no way leads into it"
	case len(ways) > maxEntries:
		return nil, fmt.Sprintf("%d ways lead into it, %d are taken", len(ways), maxEntries)
	}
	for _, addr := range ways {
		if off, ok := p.executable(addr); ok {
			offs = append(offs, off)
		}
	}
	return offs, ""
}

// joined sorts ranges and joins those that touch; empty ones vanish.
func joined(in []Range) []Range {
	in = slices.DeleteFunc(in, func(r Range) bool { return r.Start >= r.End })
	slices.SortFunc(in, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
	var out []Range
	for _, r := range in {
		if n := len(out); n > 0 && r.Start <= out[n-1].End {
			out[n-1].End = max(out[n-1].End, r.End)
		} else {
			out = append(out, r)
		}
	}
	return out
}
