package demangle

import (
	"math"
	"regexp"
	"strings"

	"github.com/ianlancetaylor/demangle"
)

// Bounds of what the library may have to do for one name.
const (
	maxSteps = 1 << 17 // of its parser, as estimated by steps
	maxNodes = 1 << 16 // of the tree that it prints, with everything that is shared counted each time
	maxDepth = 1 << 9  // of that tree: while the library prints a node it looks at all those above it
)

// steps estimates from above what the library's parser has to do for a mangled
// name, in nodes of its tree that are looked at or copied.
//
// It does not parse: it counts texts that could be what makes the work grow,
// and where they are parts of an identifier it counts too many. So nothing that
// a name holds can hide something else from it.
func steps(name string) float64 {
	if strings.HasPrefix(name, "_R") {
		return rustSteps(name)
	}
	return cxxSteps(name)
}

var (
	// What a template's parameter looks like, and the beginning of a lambda.
	parameter = regexp.MustCompile(`T(L[0-9]*_)?[0-9]*_|Ul`)
	// What refers to an earlier part of the name.
	reference = regexp.MustCompile(`S[0-9A-Z]*_`)
	// A template parameter with arguments.
	applied = regexp.MustCompile(`[TS][0-9A-Z]*_I`)
	// More qualifiers than a type has: the parser moves them all for each one.
	qualified = regexp.MustCompile(`([rVK]|D[xo]){32}`)
	// A pack expansion of a parameter itself: no other one is within it.
	simplePack = regexp.MustCompile(`Dp[OPRKV]*T[0-9]*_`)
)

// cxxSteps: the parser of C++ names looks at what it has read about once, but
//
//   - a reference to a part that has template parameters, or a lambda, copies
//     that part, and the copy can be copied in turn. No more can come of n
//     references than by three times as much from each three of them. Before the
//     first parameter there are none to be copied;
//     What has none is looked at once for each reference to it;
//   - a pack expansion is written out once for each of its arguments, and so are
//     those within it;
//   - each function that is part of a name (Z) is looked at once more with
//     everything within it;
//   - the template arguments of a conversion operator (cv) can be read twice,
//     with everything within them.
func cxxSteps(name string) float64 {
	if qualified.MatchString(name) {
		return math.Inf(1)
	}
	n := float64(len(name))
	walks := n * float64(len(reference.FindAllStringIndex(name, -1)))
	first := parameter.FindStringIndex(name)
	n *= 1 + float64(strings.Count(name[2:], "Z"))
	if first != nil {
		n *= triples(len(reference.FindAllStringIndex(name[first[0]:], -1)))
		n *= packs(name)
	}
	if cv := strings.Count(name, "cv"); cv > 0 {
		n *= math.Exp2(float64(min(cv, len(applied.FindAllStringIndex(name, -1)))))
	}
	return n + walks
}

// triples is the most that n references can multiply something by.
func triples(n int) float64 { return math.Pow(3, float64(n)/3) }

// packs is the most that the pack expansions of a name can multiply something by.
func packs(name string) float64 {
	arguments := strings.IndexAny(name, "IJ") // a pack is among template arguments
	if arguments < 0 {
		return 1
	}
	all, simple := strings.Count(name, "Dp"), len(simplePack.FindAllStringIndex(name, -1))
	if strings.ContainsAny(name, "XQA") || strings.Contains(name, "DT") || strings.Contains(name, "Dt") || strings.Contains(name, "DO") {
		all += strings.Count(name, "sp") // in an expression
	}
	if all == 0 {
		return 1
	}
	most := float64(len(name) - arguments) // arguments of a pack
	if all == simple {
		return max(1, most/4) * triples(simple) // little is done for each: looked at, not copied
	}
	nested := all - simple + min(simple, 1)
	return math.Pow(most, float64(nested)) * triples(simple)
}

// extra is what takes more at one place of a Rust name than a byte does.
type extra struct {
	reference bool // to an earlier place
	to, end   int  // of what is there
	punycode  int  // so many bytes
}

// rustWork: what a back reference refers to begins where it says and ends
// before the reference, so that it costs what that text costs. Punycode costs
// the square of its length. A byte takes much less than a node of C++.
func rustWork(length int, at func(int) extra) float64 {
	upTo := make([]float64, length+1) // the cost of the text up to there
	for i := range length {
		cost := 1.0
		if e := at(i); e.reference && e.to < i {
			cost += upTo[min(e.end, i)] - upTo[e.to]
		} else {
			cost += float64(e.punycode) * float64(e.punycode) / 16
		}
		upTo[i+1] = upTo[i] + cost
	}
	return upTo[length] / 8
}

// rustSteps is rustWork of a name that was not understood: each letter may be
// the one that says so.
func rustSteps(name string) float64 {
	text := name[2:]
	return rustWork(len(text), func(i int) (e extra) {
		switch text[i] {
		case 'B':
			e.to, e.reference = base62(text[i+1:])
			e.end = i
		case 'u':
			n, at := 0, i+1
			for ; at < len(text) && text[at] >= '0' && text[at] <= '9' && n < len(text); at++ {
				n = 10*n + int(text[at]-'0')
			}
			if n <= len(text) {
				e.punycode = n
			}
		}
		return e
	})
}

// base62 reads a number that ends with '_', as far as it is an index into a name.
func base62(s string) (n int, ok bool) {
	for i := range len(s) {
		c, digit := s[i], 0
		switch {
		case c == '_' && i == 0:
			return 0, true
		case c == '_':
			return n + 1, true
		case c >= '0' && c <= '9':
			digit = int(c - '0')
		case c >= 'a' && c <= 'z':
			digit = int(c-'a') + 10
		case c >= 'A' && c <= 'Z':
			digit = int(c-'A') + 36
		default:
			return 0, false
		}
		if n = 62*n + digit; n > MaxName {
			return 0, false
		}
	}
	return 0, false
}

// measure reports whether a tree, in which nodes can have several parents, is
// small enough to be printed. One that has a cycle is not.
func measure(root demangle.AST) bool {
	type extent struct{ nodes, depth int }
	known := map[demangle.AST]extent{}
	fits := true
	var visit func(a demangle.AST, above int) extent
	visit = func(a demangle.AST, above int) extent {
		if e, ok := known[a]; ok {
			if e.nodes == 0 { // its children are being visited
				fits = false
			}
			return e
		}
		if above > maxDepth {
			fits = false
		}
		if !fits {
			return extent{}
		}
		known[a] = extent{}
		e := extent{nodes: 1}
		for _, child := range children(a) {
			c := visit(child, above+1)
			e.nodes, e.depth = e.nodes+c.nodes, max(e.depth, c.depth)
			if e.nodes > maxNodes || e.depth >= maxDepth {
				fits = false
			}
			if !fits {
				return extent{}
			}
		}
		e.depth++
		known[a] = e
		return e
	}
	visit(root, 0)
	return fits
}

// children returns what is printed as part of a node.
func children(a demangle.AST) (list []demangle.AST) {
	if p, ok := a.(*demangle.TemplateParam); ok {
		if p.Template != nil && p.Index < len(p.Template.Args) {
			list = append(list, p.Template.Args[p.Index])
		}
		return list
	}
	self := true
	a.Traverse(func(b demangle.AST) bool {
		if self {
			self = false
			return true
		}
		list = append(list, b)
		return false
	})
	return list
}
