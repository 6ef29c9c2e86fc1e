package symbol

import "fmt"

// describe adds to the symbols what the code itself and its debugging
// information say of them, and the symbols that these bring: instances that
// were inlined, and what an IFUNC chooses from.
func (p *parser) describe(f *File, q Query, syms []Symbol) ([]Symbol, error) {
	p.goCode = f.Go
	for i := range syms {
		s := &syms[i]
		s.Inline.State = InlineUnknown
		if _, kind := splitClone(s.Name, p.goCode); kind != notCloned && kind != clonedCold && (s.Kind == KindFunc || s.Kind == KindAlias) {
			s.Kind = KindClone
		}
	}
	if err := p.folded(syms); err != nil {
		return nil, fmt.Errorf("folded code: %w", err)
	}
	syms, err := p.thunks(syms)
	if err != nil {
		return nil, fmt.Errorf("thunks: %w", err)
	}
	syms, err = p.choices(syms)
	if err != nil {
		return nil, fmt.Errorf("IFUNC: %w", err)
	}
	if q.Inlined {
		if syms, err = p.inlining(q, syms); err != nil {
			return nil, fmt.Errorf("inlined code: %w", err)
		}
	}
	for i := range syms {
		if s := &syms[i]; s.Kind == KindInlined || s.Implements != "" {
			if err := p.complete(s); err != nil {
				return nil, err
			}
		}
	}
	if q.Returns {
		if err := p.returns(syms); err != nil {
			return nil, fmt.Errorf("return instructions: %w", err)
		}
	}
	return syms, nil
}
