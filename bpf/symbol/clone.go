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
	notCloned  cloned = iota
	clonedCopy        // a whole function, with an entry of its own
	clonedPart        // a piece that was split off: part of the function calls it
	clonedCold        // code that seldom runs, moved away: the function jumps into it, wherever it likes
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
	if bytes.LastIndexByte(name, '.') <= 0 { // nearly all
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
