package symbol

import (
	"debug/elf"
	"fmt"
	"slices"
)

// maxChoices bounds what one IFUNC may choose from.
const maxChoices = 64

// choices replaces each IFUNC among the symbols by what its resolver can
// choose from: the functions whose addresses the resolver takes, or loads from
// the global offset table. What it returns is the function; the resolver itself
// runs once, when the program starts, whether or not the function ever does.
//
// They are all that there are (no Doubt) only if the resolver could not have
// got an address in another way: it is walked from end to end, calls nothing
// but the compiler's own detection of the processor, and loads no 8 bytes that
// are not known. So it is for GCC's target_clones; the resolvers of the C
// library call and load, and what they choose from is armed with a Doubt. An
// IFUNC of which nothing is found stays, with a Doubt, and without Implements.
func (p *parser) choices(syms []Symbol) ([]Symbol, error) {
	type resolver struct {
		offs  []uint64
		doubt string
	}
	found := map[uint64]resolver{}
	var all []uint64
	for i := range syms {
		s := &syms[i]
		if _, ok := found[s.Offset]; ok || s.Kind != KindIFunc {
			continue
		}
		offs, doubt, err := p.chooses(s)
		if err != nil {
			return nil, err
		}
		found[s.Offset] = resolver{offs, doubt}
		all = append(all, offs...)
	}
	if len(found) == 0 {
		return syms, nil
	}
	where, err := p.locate(all)
	if err != nil {
		return nil, err
	}
	var out []Symbol
	for _, s := range syms {
		r := found[s.Offset]
		if s.Kind != KindIFunc {
			out = append(out, s)
			continue
		}
		if len(r.offs) == 0 {
			s.Doubt = r.doubt
			out = append(out, s)
			continue
		}
		for _, off := range r.offs {
			c := Symbol{Wanted: s.Wanted, Source: s.Source, Offset: off, Kind: KindIFunc, Implements: s.Name, Inline: InlineKnown{State: InlineUnknown}, Doubt: r.doubt}
			if f, ok := where[off]; ok && f.start == off {
				c.Name, c.Size = f.name, f.size
			} else {
				c.Name = s.Name // its own name was stripped
			}
			out = append(out, c)
		}
	}
	return out, nil
}

// chooses returns the file offsets of the functions that a resolver takes the
// addresses of; doubt says why there may be others.
func (p *parser) chooses(s *Symbol) (offs []uint64, doubt string, err error) {
	if s.Size == 0 {
		return nil, "the size of its resolver is not known", nil
	}
	b, why, err := p.walk(s.whole())
	if b == nil {
		return nil, "its resolver was not decoded: " + why, err
	}
	add := func(addr uint64) bool {
		off, ok := p.executable(addr)
		if ok && b.part(addr) == nil && !slices.Contains(offs, off) && len(offs) < maxChoices {
			offs = append(offs, off)
		}
		return ok
	}
	unknown := b.opaque
	for _, r := range b.refs {
		if !r.load {
			add(r.addr)
			continue
		}
		to, ok, err := p.pointer(r.addr)
		if err != nil {
			return nil, "", err
		}
		if !ok || !add(to) {
			unknown = append(unknown, r.addr)
		}
	}
	for _, l := range b.leaves { // "return other_resolver();"
		unknown = append(unknown, l.from)
	}
	for _, c := range b.calls {
		if harmless, err := p.detects(c.to); err != nil {
			return nil, "", err
		} else if !harmless {
			unknown = append(unknown, c.from)
		}
	}
	slices.Sort(offs)
	switch {
	case len(offs) == maxChoices:
		doubt = fmt.Sprintf("its resolver chooses from %d functions or more", maxChoices)
	case len(offs) == 0:
		doubt = "its resolver takes the address of no function of this file"
	case b.blind || len(unknown) > 0 || p.machine != elf.EM_X86_64:
		doubt = "its resolver may choose from more than the functions whose addresses it takes"
	}
	return offs, doubt, nil
}

// pointer reads an address that the dynamic linker puts into the file's image,
// if it is one of this file itself.
func (p *parser) pointer(addr uint64) (to uint64, ok bool, err error) {
	where, err := p.translate(addr, 8)
	if err != nil {
		return 0, false, nil
	}
	var b [8]byte
	if err := p.src.read(b[:], where.off); err != nil {
		return 0, false, err
	}
	v := [1]uint64{le.Uint64(b[:])}
	if v[0] == 0 && p.spend(p.rela.size/24) {
		if err := p.relocate(addr, v[:]); err != nil {
			return 0, false, err
		}
	}
	return v[0], v[0] != 0, nil
}

// detects reports whether an address is that of libgcc's or compiler-rt's
// detection of the processor, which returns no function.
func (p *parser) detects(addr uint64) (bool, error) {
	off, ok := p.executable(addr)
	if !ok {
		return false, nil
	}
	where, err := p.locate([]uint64{off})
	f := where[off]
	return f.start == off && slices.Contains([]string{"__cpu_indicator_init", "__init_cpu_features_resolver"}, f.name), err
}
