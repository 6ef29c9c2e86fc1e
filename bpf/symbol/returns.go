package symbol

import (
	"errors"
	"fmt"
	"slices"
)

// ErrReturns: the return instructions of a function are not all known.
// Symbol.Returns then holds those that are, or none.
//
// What it says if they are all known: each way back to the caller is one of
// these instructions. An exception, longjmp, a panic that passes through and
// the end of the thread leave a function without returning from it.
var ErrReturns = errors.New("its return instructions are not all known")

// returns fills Returns and ReturnsErr of all symbols.
func (p *parser) returns(syms []Symbol) error {
	bodies := make([]*body, len(syms))
	var leads []uint64 // file offsets that functions jump to
	for i := range syms {
		s := &syms[i]
		var why string
		var err error
		switch {
		case s.Kind == KindInlined:
			why = "it is inlined"
		case s.Size == 0:
			why = "its size is not known"
		default:
			bodies[i], why, err = p.walk(s.whole())
		}
		if err != nil {
			return err
		}
		if why != "" {
			s.ReturnsErr = fmt.Errorf("%s: %w", why, ErrReturns)
			continue
		}
		leads = p.leads(bodies[i], leads)
	}
	where, err := p.locate(leads)
	if err != nil {
		return err
	}
	for i, b := range bodies {
		if b == nil {
			continue
		}
		s := &syms[i]
		if b, err = p.withCold(s, b, where); err != nil {
			return err
		}
		s.Returns = b.rets
		if len(b.leaves) > 0 {
			s.ReturnsErr = fmt.Errorf("%s: %w", p.leaving(b, where), ErrReturns)
		}
	}
	return nil
}

func (s *Symbol) whole() Range { return Range{s.Offset, s.Offset + s.Size} }

// leads appends the file offsets that the direct jumps out of a function lead
// to.
func (p *parser) leads(b *body, to []uint64) []uint64 {
	for _, l := range b.leaves {
		if off, ok := p.executable(l.to); ok && l.to != 0 {
			to = append(to, off)
		}
	}
	return to
}

// withCold walks again over a function that has a cold part, which compilers
// put elsewhere: it jumps there, and perhaps returns from there.
func (p *parser) withCold(s *Symbol, b *body, where map[uint64]function) (*body, error) {
	parts := []Range{s.whole()}
	for _, to := range p.leads(b, nil) {
		f, ok := where[to]
		if !ok || f.size == 0 {
			continue
		}
		base, kind := splitClone(f.name, p.goCode)
		own, _ := splitClone(s.Name, p.goCode)
		cold := Range{f.start, f.start + f.size}
		if kind == clonedCold && (base == s.Name || base == own) && !slices.Contains(parts, cold) {
			parts = append(parts, cold)
		}
	}
	if len(parts) == 1 {
		return b, nil
	}
	whole, why, err := p.walk(parts...)
	if why != "" || err != nil {
		return b, err // with the jump that leaves it
	}
	return whole, nil
}

// leaving says how control leaves a function other than by a return.
func (p *parser) leaving(b *body, where map[uint64]function) string {
	l := b.leaves[0]
	more := ""
	if n := len(b.leaves) - 1; n > 0 {
		more = fmt.Sprintf(", and so do %d more", n)
	}
	off, ok := p.executable(l.to)
	switch f, known := where[off]; {
	case l.to == 0:
		return fmt.Sprintf("the instruction at %#x jumps to an address that it computes%s", l.from, more)
	case ok && known:
		return fmt.Sprintf("the instruction at %#x jumps to %s%s", l.from, Location{f.name, off - f.start}, more)
	default:
		return fmt.Sprintf("the instruction at %#x jumps out of it, to %#x%s", l.from, l.to, more)
	}
}
