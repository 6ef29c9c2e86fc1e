package symbol

import "strings"

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

var cloneWords = map[string]cloned{
	"constprop":  clonedCopy, // an argument is known
	"isra":       clonedCopy, // arguments replaced by parts of them
	"lto_priv":   clonedCopy, // a static function that link-time optimization made global
	"llvm":       clonedCopy, // the same, by ThinLTO; its number is a hash
	"clone":      clonedCopy, // target_clones, OpenMP and others
	"simdclone":  clonedCopy,
	"localalias": clonedCopy,
	"part":       clonedPart,
	"_omp_fn":    clonedPart,
	"_omp_cpyfn": clonedPart,
	"resume":     clonedPart, // LLVM's coroutines
	"destroy":    clonedPart,
	"cleanup":    clonedPart,
	"actor":      clonedPart, // GCC's coroutines
	"cold":       clonedCold,
	"unlikely":   clonedCold,
}

// splitClone splits the name of a clone into that of the function that it was
// made of, and what it is. "f.isra.0.cold" is a cold part of "f.isra.0".
func splitClone(name string) (base string, kind cloned) {
	for rest := name; ; {
		dot := strings.LastIndexByte(rest, '.')
		if dot <= 0 {
			break
		}
		word := rest[dot+1:]
		if isNumber(word) && word != "" {
			rest = rest[:dot]
			continue
		}
		k := cloneWords[word]
		if k == notCloned {
			break
		}
		return rest[:dot], k
	}
	return name, notCloned
}

func isNumber(s string) bool {
	return strings.Trim(s, "0123456789") == ""
}
