package symbol

import (
	"bytes"
	"slices"
	"strings"
)

// The kinds of copies that compilers make of functions. They name them after
// the function, a dot and a word (GCC's clone_function_name; LLVM's
// promotion of local symbols).
type cloned uint8

const (
	notCloned   cloned = iota
	clonedCopy         // a whole function, with an entry of its own
	clonedPart         // a piece that was split off: part of the function calls it
	clonedCold         // code that seldom runs, moved away: the function jumps into it, wherever it likes
	clonedThunk        // where a virtual call of C++ comes in: it jumps to the function, or has its code in it
)

// cloneWords are followed by a dot and a number, but those of numberless.
var cloneWords = map[string]cloned{
	"constprop":  clonedCopy, // an argument is known
	"isra":       clonedCopy, // arguments replaced by parts of them
	"lto_priv":   clonedCopy, // a static function that link-time optimization made global
	"llvm":       clonedCopy, // the same, by ThinLTO; its number is a hash
	"clone":      clonedCopy,
	"simdclone":  clonedCopy,
	"localalias": clonedCopy,
	"part":       clonedPart,
	"_omp_fn":    clonedPart,
	"_omp_cpyfn": clonedPart,
	"resume":     clonedPart, // LLVM's coroutines
	"destroy":    clonedPart, // and GCC's
	"cleanup":    clonedPart,
	"actor":      clonedPart, // GCC's
	"cold":       clonedCold,
	"unlikely":   clonedCold,
}

var (
	coroutine  = []string{"resume", "destroy", "cleanup", "actor"}
	numberless = append([]string{"localalias", "cold"}, coroutine...)
)

// splitClone splits the name of a clone into that of the function that it was
// made of, and what it is. "f.isra.0.cold" is a cold part of "f.isra.0". Go
// names its functions pkg.cold: goCode takes no word without a number.
func splitClone(name string, goCode bool) (base string, kind cloned) {
	if base, ok := thunkOf(name); ok {
		return base, clonedThunk
	}
	head, word, numbered := name, "", false
	for {
		dot := strings.LastIndexByte(head, '.')
		if dot <= 0 {
			return name, notCloned
		}
		head, word = head[:dot], head[dot+1:]
		if word == "" || !isNumber(word) {
			break
		}
		numbered = true
	}
	kind = cloneWords[word]
	if kind == notCloned || !numbered && (goCode || !slices.Contains(numberless, word)) {
		return name, notCloned
	}
	if slices.Contains(coroutine, word) && !strings.HasPrefix(head, "_Z") { // of C++ only
		return name, notCloned
	}
	return head, kind
}

// thunkOf returns the mangled name of the function that a thunk is of (Itanium
// C++ ABI, 5.1.4.4): "_ZThn16_N1A1fEv" is of "_ZN1A1fEv".
func thunkOf(name string) (string, bool) {
	rest, ok := strings.CutPrefix(name, "_ZT")
	if !ok || rest == "" {
		return "", false
	}
	offsets := 1
	if rest[0] == 'c' { // of a covariant return type: two
		offsets, rest = 2, rest[1:]
	}
	for range offsets {
		numbers := 0
		switch {
		case strings.HasPrefix(rest, "h"):
			numbers = 1
		case strings.HasPrefix(rest, "v"):
			numbers = 2
		default:
			return "", false
		}
		rest = rest[1:]
		for range numbers {
			n, after, ok := strings.Cut(rest, "_")
			if n = strings.TrimPrefix(n, "n"); !ok || n == "" || !isNumber(n) {
				return "", false
			}
			rest = after
		}
	}
	return "_Z" + rest, rest != ""
}

// thunks leaves out those that only jump to a function that is there as well:
// each hit of one would be a hit of the other. The rest have the function's code
// in them, as far as can be told, and compilers write no debugging information
// of that.
func (p *parser) thunks(syms []Symbol) ([]Symbol, error) {
	type named struct{ wanted, name string }
	at := map[named]uint64{}
	for i := range syms {
		at[named{syms[i].Wanted, syms[i].Name}] = syms[i].Offset
	}
	var out []Symbol
	for _, s := range syms {
		base, thunk := thunkOf(s.Name)
		off, ok := at[named{s.Wanted, base}]
		if thunk && ok && s.Size > 0 {
			b, _, err := p.walk(s.whole())
			if err != nil {
				return nil, err
			}
			if b != nil && slices.ContainsFunc(b.leaves, func(l leave) bool {
				to, ok := p.executable(l.to)
				return ok && to == off
			}) {
				continue
			}
		}
		out = append(out, s)
	}
	return out, nil
}

// original is the name of what a clone was made of, or the name itself.
func (p *parser) original(name string) string {
	for {
		base, kind := splitClone(name, p.goCode)
		if kind == notCloned {
			return name
		}
		name = base
	}
}

// askClones is ask, and asks as well for what a name is a clone of: a copy of
// a function, and a part that was split off, are found by the function's name.
// A cold part is not: it is no entry, and control comes into it anywhere.
func (p *parser) askClones(w *wanted, name []byte, found func(match) error) error {
	if bytes.LastIndexByte(name, '.') <= 0 && !bytes.HasPrefix(name, []byte("_ZT")) { // nearly all
		return w.ask(name, found)
	}
	base, kind := splitClone(string(name), p.goCode)
	if kind != clonedCold {
		if err := w.ask(name, found); err != nil {
			return err
		}
	}
	for range maxParts {
		switch kind {
		case notCloned, clonedCold:
			return nil
		}
		if i := w.exact.index(base); i >= 0 && w.asked(i) {
			if err := found(match{item: i, name: string(name)}); err != nil {
				return err
			}
		}
		err := w.ask([]byte(base), func(m match) error {
			m.name, m.full = string(name), ""
			return found(m)
		})
		if err != nil {
			return err
		}
		base, kind = splitClone(base, p.goCode)
	}
	return nil
}

func isNumber(s string) bool {
	return strings.Trim(s, "0123456789") == ""
}
