package symbol

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"

	"probity/bpf/symbol/demangle"
)

// Bounds of a query: those of a policy with some room.
const (
	maxPatterns      = 1024
	maxPatternLength = 4096
)

// ErrQuery: a glob or a regular expression of the Query can't be read.
var ErrQuery = errors.New("not a query")

// wanted is a query, made ready to be asked about many names.
//
// A raw name is a match if it is one of the exact names, or if a pattern
// matches it without its version. A mangled name of C++ or Rust is a match as
// well if one of its forms (see [demangle.Forms]) is; an exact name is compared
// without regard to superfluous space.
//
// Demangling is slow, so that a mangled name is demangled only if it spells out
// an identifier that the demangled one must have. Identifiers are mangled
// verbatim; what the demangler adds of its own, and what Rust's legacy mangling
// escapes with '$', is not relied on.
type wanted struct {
	// items are the query's exact names, then those of selfHashNames that are
	// not among them, globs and regular expressions, each only once.
	items []string
	names int      // how many of them the query's exact names are
	exact *matcher // of raw names; they are the first items

	forms    map[string]int32    // demangled, without superfluous space -> item
	idents   map[string]struct{} // of each of forms, one that its mangled name spells out
	lengths  [128]bool           // the lengths of idents; the last for all that are longer
	patterns []pattern
	all      bool // of one of forms that is not known: each mangled name is demangled

	work     func(n int) error // see parser.work; may be nil
	unjudged Unjudged          // what could be a match
}

// pattern is a glob or a regular expression.
type pattern struct {
	item  int32
	match func(name []byte) bool
	text  []byte // spelt out by the mangled name of what it matches; nil if that is not known
}

// match is one item that matches a name.
type match struct {
	item int32
	name string // as in the table, without its version unless that was asked for
	full string // demangled; "" if that is not known
}

func newWanted(q Query) (*wanted, error) {
	w := &wanted{forms: map[string]int32{}, idents: map[string]struct{}{}}
	w.exact = newMatcher(q.Names)
	w.names = len(w.exact.names)
	w.exact = newMatcher(slices.Concat(w.exact.names, selfHashNames))
	w.items = slices.Clone(w.exact.names)
	for i, n := range w.items[:w.names] {
		if !formed(n) {
			continue
		}
		w.forms[canonical(n)] = int32(i)
		ident := spelt(n)
		if ident == "" {
			w.all = true
			continue
		}
		w.idents[ident] = struct{}{}
		w.lengths[min(len(ident), len(w.lengths)-1)] = true
	}
	if n := len(q.Globs) + len(q.Regexps); n > maxPatterns {
		return nil, fmt.Errorf("%d globs and regular expressions, %d are taken: %w", n, maxPatterns, ErrTooLarge)
	}
	for _, s := range unique(q.Globs) {
		g, err := glob(nil), error(nil)
		if len(s) > maxPatternLength {
			err = fmt.Errorf("longer than %d bytes", maxPatternLength)
		} else {
			g, err = parseGlob(s)
		}
		if err != nil {
			return nil, fmt.Errorf("glob %.64q: %w: %w", s, err, ErrQuery)
		}
		w.add(s, g.match, g.texts())
	}
	for _, s := range unique(q.Regexps) {
		re, texts, err := parseRegexp(s)
		if err != nil {
			return nil, fmt.Errorf("regular expression %.64q: %w: %w", s, err, ErrQuery)
		}
		w.add(s, re.Match, texts)
	}
	return w, nil
}

func unique(list []string) (out []string) {
	seen := map[string]bool{}
	for _, s := range list {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

func (w *wanted) add(item string, match func([]byte) bool, texts [][]byte) {
	w.patterns = append(w.patterns, pattern{int32(len(w.items)), match, spells(texts)})
	w.items = append(w.items, item)
}

// parseRegexp also returns literal texts that every match contains.
func parseRegexp(s string) (*regexp.Regexp, [][]byte, error) {
	if len(s) > maxPatternLength {
		return nil, nil, fmt.Errorf("longer than %d bytes", maxPatternLength)
	}
	re, err := regexp.Compile(s)
	if err != nil {
		return nil, nil, err
	}
	tree, err := syntax.Parse(s, syntax.Perl)
	if err != nil {
		return nil, nil, err
	}
	var texts [][]byte
	var walk func(*syntax.Regexp)
	walk = func(t *syntax.Regexp) {
		switch t.Op {
		case syntax.OpLiteral:
			if t.Flags&syntax.FoldCase == 0 {
				texts = append(texts, []byte(string(t.Rune)))
			}
		case syntax.OpConcat, syntax.OpCapture, syntax.OpPlus:
			for _, sub := range t.Sub {
				walk(sub)
			}
		case syntax.OpRepeat:
			if t.Min > 0 {
				walk(t.Sub[0])
			}
		}
	}
	walk(tree)
	return re, texts, nil
}

// asked reports whether the query asks for an item.
func (w *wanted) asked(item int32) bool {
	return int(item) < w.names || int(item) >= len(w.exact.names)
}

// empty reports whether the query asks for no function at all.
func (w *wanted) empty() bool { return w.names == 0 && len(w.patterns) == 0 }

// demangling is what it takes to demangle a name at most, in bytes looked at:
// the time is looked at before every few names.
const demangling = streamBuffer / 8

// ask calls found with each item that a name matches as what it is or
// demangled, apart from exact matches of the raw name, which w.exact finds.
// The name has no version.
func (w *wanted) ask(name []byte, found func(match) error) error {
	var forms demangle.Forms
	if demangle.Mangled(name) && w.demangles(name) {
		if w.work != nil {
			if err := w.work(demangling); err != nil {
				return err
			}
		}
		var err error
		if forms, err = demangle.Of(string(name)); errors.Is(err, demangle.ErrUnjudged) {
			w.unjudged.add(name, err)
		}
	}
	for i := range w.patterns {
		p := &w.patterns[i]
		if p.match(name) || forms.Full != "" && (p.match([]byte(forms.Full)) || p.match([]byte(forms.Plain)) || p.match([]byte(forms.Bare))) {
			if err := found(match{p.item, string(name), forms.Full}); err != nil {
				return err
			}
		}
	}
	if forms.Full == "" || len(w.forms) == 0 {
		return nil
	}
	last := int32(-1)
	for _, form := range [...]string{forms.Full, forms.Plain, forms.Bare} {
		// A clone has the name of what it is a clone of, and is none the less
		// another function.
		if item, ok := w.forms[canonical(form)]; ok && item != last && (forms.Clone == "" || form == forms.Full) {
			last = item
			if err := found(match{item, string(name), forms.Full}); err != nil {
				return err
			}
		}
	}
	return nil
}

// demangles says whether a mangled name could be a match once demangled.
func (w *wanted) demangles(name []byte) bool {
	if len(w.forms) == 0 && len(w.patterns) == 0 {
		return false
	}
	if w.all || bytes.IndexByte(name, '$') >= 0 {
		return true
	}
	for i := range w.patterns {
		if t := w.patterns[i].text; t == nil || bytes.Contains(name, t) {
			return true
		}
	}
	if len(w.idents) == 0 {
		return false
	}
	// An identifier comes after its length, in Rust sometimes with an '_'
	// between them. Where the length begins can't be told from what is before
	// it.
	for i := 0; i < len(name); i++ {
		n, at := 0, i
		for ; at < len(name) && name[at] >= '0' && name[at] <= '9' && n < len(name); at++ {
			n = 10*n + int(name[at]-'0')
		}
		if at == i {
			continue
		}
		if w.ident(name[at:], n) {
			return true
		}
		if at < len(name) && name[at] == '_' && w.ident(name[at+1:], n) {
			return true
		}
	}
	return false
}

func (w *wanted) ident(s []byte, n int) bool {
	if n <= 0 || n > len(s) || !w.lengths[min(n, len(w.lengths)-1)] {
		return false
	}
	_, ok := w.idents[string(s[:n])]
	return ok
}

// canonical drops the space of a demangled name that does not keep words apart.
func canonical(s string) string {
	if strings.IndexByte(s, ' ') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := range len(s) {
		if s[i] != ' ' || len(b) > 0 && wordByte(b[len(b)-1]) && i+1 < len(s) && wordByte(s[i+1]) {
			b = append(b, s[i])
		}
	}
	return string(b)
}

func wordByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' || c >= 0x80
}

// formed reports whether a name may be one of the forms of a mangled one, and is
// none itself. Names of Go and of other languages have dots and slashes before any bracket.
func formed(name string) bool {
	if strings.Contains(name, "::") {
		return true
	}
	if strings.HasPrefix(name, "_Z") || strings.HasPrefix(name, "_R") { // no other name may begin so
		return false
	}
	head := name
	if i := strings.IndexAny(name, "(<"); i > 0 {
		head = name[:i]
	}
	return !strings.ContainsAny(head, "./@$")
}

// spelt returns an identifier that the mangled form of a demangled name must
// spell out, whole: the last one of its path, which is rarest, or else the
// longest of its arguments; "" if there is none.
func spelt(name string) string {
	depth, from, found := 0, 0, ""
	part := func(s string) { // between two "::"
		if i := strings.IndexAny(s, "(<"); i > 0 {
			s = s[:i]
		}
		if s = s[strings.LastIndexByte(s, ' ')+1:]; identifier(s) { // without what it returns
			found = s
		}
	}
	for i := 0; i < len(name) && depth >= 0; i++ {
		switch name[i] {
		case '(', '<', '[', '{':
			depth++
		case ')', '>', ']', '}':
			depth--
		case ':':
			if depth == 0 && strings.HasPrefix(name[i:], "::") {
				part(name[from:i])
				i++
				from = i + 1
			}
		}
	}
	if depth == 0 {
		part(name[from:])
	}
	if depth == 0 && found != "" {
		return found
	}
	found = "" // brackets that do not match are those of an operator
	for _, word := range strings.FieldsFunc(name, func(r rune) bool { return r < 0x80 && !wordByte(byte(r)) }) {
		if len(word) > len(found) && identifier(word) {
			found = word
		}
	}
	return found
}

// identifier reports whether a word can only come from a mangled name that
// spells it out.
func identifier(s string) bool {
	if s == "" || s[0] >= '0' && s[0] <= '9' || strings.HasPrefix(s, "operator") || demangle.Own(s) {
		return false
	}
	for i := range len(s) {
		if !wordByte(s[i]) || s[i] >= 0x80 { // punycode
			return false
		}
	}
	return true
}

// spells returns the longest part of the texts that a mangled name must spell
// out if each text is in the demangled one.
func spells(texts [][]byte) (longest []byte) {
	for _, t := range texts {
		for _, word := range bytes.FieldsFunc(t, func(r rune) bool { return r >= 0x80 || !wordByte(byte(r)) }) {
			if len(word) >= 3 && len(word) > len(longest) && (word[0] < '0' || word[0] > '9') && !demangle.OwnPart(string(word)) {
				longest = word
			}
		}
	}
	return longest
}
