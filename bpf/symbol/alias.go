package symbol

import (
	"bytes"
	"fmt"
	"slices"
)

// Bounds of what is told of aliases. They are the file author's text and end
// in evidence lines and on terminals.
const (
	maxAliases   = 16
	maxAliasName = 512
)

// aliases finds the functions that lie where wanted ones do, under names that
// nobody asked for.
func (p *parser) aliases(places map[uint64]*place) error {
	if len(places) == 0 {
		return nil
	}
	// A file can have millions of names at one address: the number of names
	// that are read is bounded, that of the symbols passed over is anyway.
	reads := p.lim.Matches
	for i := range p.tables {
		t := &p.tables[i]
		if t.source == SourcePclntab {
			continue // see place.names
		}
		err := p.eachFunction(t, func(e entry) error {
			pl := places[e.off]
			if pl == nil || !e.typed { // untyped: may be a mere label, or arm64's $x
				return nil
			}
			pl.ifunc = pl.ifunc || e.ifunc
			if _, ok := t.hits[e.name]; ok {
				return nil
			}
			pl.shared = true
			if len(pl.others) >= maxAliases || reads == 0 {
				return nil
			}
			reads--
			name, ok, err := p.aliasName(t, e.name)
			if err != nil {
				return err
			}
			if ok && !slices.Contains(pl.others, name) {
				pl.others = append(pl.others, name)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", t.what, err)
		}
	}
	return nil
}

// aliasName reads a name without its version; ok is whether it can be told.
func (p *parser) aliasName(t *table, at uint32) (name string, ok bool, err error) {
	var b [maxAliasName + 1]byte
	n := min(uint64(len(b)), t.str.size-uint64(at)) // at < t.str.size, see eachFunction
	if err := t.src.read(b[:n], t.str.off+uint64(at)); err != nil {
		return "", false, err
	}
	text, _, ended := bytes.Cut(b[:n], []byte{0})
	if i := bytes.IndexByte(text, '@'); i > 0 {
		text, ended = text[:i], true
	}
	if !ended || len(text) == 0 {
		return "", false, nil
	}
	s := string(text)
	return s, printable(s), nil
}
