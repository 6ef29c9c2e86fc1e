package symbol

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Bounds of Go's trees of inlined calls. One function has at most so many.
const (
	maxGoTree  = 1 << 14
	maxGoDepth = 256
)

// goInlining says what Go's runtime knows of inlining: for each instruction of
// each function the stack of calls that it belongs to (runtime/symtabinl.go).
// A call of which no instruction is left is not there. It is in stripped
// programs as well. nil if this is no Go program.
func (p *parser) goInlining(wanted func(name string) []string) (*inlining, error) {
	t, err := p.goFunctions()
	if t == nil || err != nil {
		return nil, err
	}
	in := &inlining{source: SourcePclntab, unknown: map[string]string{}, named: map[string]bool{}}
	in.covers = func(s *Symbol) bool {
		f, ok, err := t.find(p, s.Offset)
		if err != nil || !ok || f.off != s.Offset {
			return false
		}
		if name, err := t.nameAt(f.name); err != nil || name != s.Name {
			in.unknown[s.Name] = "the table has another name for it" // main.F[...], or what the linker renamed
		}
		return true
	}
	if t.data == nil {
		in.unknown[""] = "its tree of inlined calls was not found"
		return in, nil
	}
	names := map[uint32]string{}
	err = t.eachName(func(name []byte, off uint32) {
		if s := string(name); len(wanted(s)) > 0 && printable(s) {
			names[off], in.named[s] = s, true
			if strings.Contains(s, "[...]") {
				in.unknown[s] = "instances of a generic function have one name"
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("names of %s: %w", goTableSection, err)
	}
	if len(names) == 0 {
		return in, nil
	}
	for i := range t.count {
		f, err := t.function(p, i)
		if err == nil && f.tree != noTree && f.inline != 0 && f.size > 0 {
			err = p.goInlined(t, f, names, in)
		}
		switch {
		case errors.Is(err, ErrMalformed) || errors.Is(err, ErrTooLarge):
			in.unknown[""] = err.Error() // a table that is not as expected: perhaps of a later Go
			return in, nil
		case err != nil:
			return nil, err
		}
	}
	return in, nil
}

// goInlined adds the places of one function at which wanted ones were inlined.
func (p *parser) goInlined(t *goTable, f goFunc, names map[uint32]string, in *inlining) error {
	type span struct {
		Range
		call int32
	}
	var spans []span
	most := int32(-1)
	err := t.steps(p, f, f.inline, func(from, to uint64, call int32) {
		if call >= 0 && from < to {
			spans = append(spans, span{Range{from, to}, call})
			most = max(most, call)
		}
	})
	if err != nil || most < 0 {
		return err
	}
	if most >= maxGoTree {
		return fmt.Errorf("a tree of %d inlined calls, %d are taken: %w", most, maxGoTree, ErrTooLarge)
	}
	at := func(pc uint64) int32 {
		i, found := slices.BinarySearchFunc(spans, pc, func(s span, pc uint64) int { return cmp.Compare(s.Start, pc) })
		if !found {
			i--
		}
		if i < 0 || pc >= spans[i].End {
			return -1
		}
		return spans[i].call
	}
	// Which calls are of wanted functions, and which call each is in.
	calls := make([]goCall, most+1)
	any := false
	for i := range calls {
		c, err := t.call(f, int32(i))
		if err != nil {
			return err
		}
		calls[i] = c
		_, ok := names[c.name]
		any = any || ok
	}
	if !any {
		return nil
	}
	if !t.old {
		for i := range calls {
			calls[i].parent = at(calls[i].pc)
		}
	}
	code := map[int32][]Range{} // of wanted calls
	for _, s := range spans {
		depth := 0
		for i := s.call; i >= 0; i = calls[i].parent {
			if depth++; depth > maxGoDepth || i > most || !p.spend(1) {
				return fmt.Errorf("inlined call %d of the function at %#x is in none: %w", i, f.addr, ErrMalformed)
			}
			if _, ok := names[calls[i].name]; ok {
				code[i] = append(code[i], Range{f.off + s.Start, f.off + s.End})
			}
		}
	}
	for i, r := range code {
		in.places = append(in.places, inlined{name: names[calls[i].name], within: []Range{f.whole()}, code: r})
	}
	slices.SortFunc(in.places[len(in.places)-len(code):], func(a, b inlined) int { return int(a.code[0].Start) - int(b.code[0].Start) })
	return nil
}

func (f goFunc) whole() Range { return Range{f.off, f.off + f.size} }

// goCall is one inlined call of a function.
type goCall struct {
	name   uint32
	pc     uint64 // of an instruction of the function that it was inlined into, from the outer function's start
	parent int32  // the call that it is in; -1 if that is the function itself
}

// call reads the i-th entry of a function's tree. It must name something: that
// holds a layout that is not known against what it is read as.
func (t *goTable) call(f goFunc, i int32) (c goCall, err error) {
	size := uint64(16) // runtime.inlinedCall
	if t.old {
		size = 20
	}
	b, err := t.data.exactly(uint64(f.tree)+uint64(i)*size, int(size))
	if err != nil {
		return c, err
	}
	if t.old {
		c.parent, c.name, c.pc = int32(int16(le.Uint16(b))), le.Uint32(b[12:]), uint64(le.Uint32(b[16:]))
	} else {
		c.name, c.pc = le.Uint32(b[4:]), uint64(le.Uint32(b[8:]))
	}
	if c.pc >= f.size || c.name >= uint32(t.names.size) || c.parent < -1 {
		return c, fmt.Errorf("inlined call %d of the function at %#x: %w", i, f.addr, ErrMalformed)
	}
	if c.name > 0 { // a name begins behind the end of another
		if b, err = t.exactly(t.names.off+uint64(c.name)-1, 1); err != nil {
			return c, err
		}
		if b[0] != 0 {
			return c, fmt.Errorf("inlined call %d of the function at %#x has no name: %w", i, f.addr, ErrMalformed)
		}
	}
	return c, nil
}
