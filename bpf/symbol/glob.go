package symbol

import (
	"bytes"
	"path"
	"unicode/utf8"
)

// glob is a pattern over the names of functions, in the syntax of [path.Match]:
// * is any text, ? one character, [a-z] and [^a-z] one of a class, and \ takes
// the next character as it is. Unlike there, '/' is a character like any other:
// names are no paths.
type glob []globPart

// globPart is one part of a glob: literal text, or one character of a class
// (any, if it has no ranges), or with star set any text.
type globPart struct {
	star    bool
	literal []byte
	ranges  []runeRange
	negated bool
}

type runeRange struct{ lo, hi rune }

func parseGlob(s string) (glob, error) {
	if _, err := path.Match(s, ""); err != nil {
		return nil, err
	}
	// From here on the syntax is known to be right.
	var g glob
	literal := func(c string) {
		if n := len(g); n > 0 && g[n-1].literal != nil {
			g[n-1].literal = append(g[n-1].literal, c...)
			return
		}
		g = append(g, globPart{literal: []byte(c)})
	}
	char := func() rune { // one character of a class
		if s[0] == '\\' {
			s = s[1:]
		}
		r, n := utf8.DecodeRuneInString(s)
		s = s[n:]
		return r
	}
	for s != "" {
		switch s[0] {
		case '*':
			if n := len(g); n == 0 || !g[n-1].star {
				g = append(g, globPart{star: true})
			}
			s = s[1:]
		case '?':
			g = append(g, globPart{})
			s = s[1:]
		case '[':
			var p globPart
			if s = s[1:]; s[0] == '^' {
				p.negated, s = true, s[1:]
			}
			for len(p.ranges) == 0 || s[0] != ']' {
				r := runeRange{lo: char()}
				if r.hi = r.lo; s[0] == '-' {
					s = s[1:]
					r.hi = char()
				}
				p.ranges = append(p.ranges, r)
			}
			s = s[1:]
			g = append(g, p)
		case '\\':
			s = s[1:]
			fallthrough
		default:
			_, n := utf8.DecodeRuneInString(s)
			literal(s[:n])
			s = s[n:]
		}
	}
	return g, nil
}

// match takes time proportional to the length of the name times that of the
// glob at worst.
func (g glob) match(name []byte) bool {
	i, star, from := 0, -1, 0 // the part, the last star before it, and where the text after that begins
	rest := name
	for {
		if i < len(g) && g[i].star {
			i++
			if i == len(g) {
				return true
			}
			star, from = i, len(name)-len(rest)
			continue
		}
		if i == len(g) {
			if len(rest) == 0 {
				return true
			}
		} else if n, ok := g[i].take(rest); ok {
			rest = rest[n:]
			i++
			continue
		}
		// Let the star have more.
		if star < 0 || from >= len(name) {
			return false
		}
		if lit := g[star].literal; lit != nil {
			at := bytes.Index(name[from+1:], lit)
			if at < 0 {
				return false
			}
			from += 1 + at
		} else {
			_, n := utf8.DecodeRune(name[from:])
			from += n
		}
		i, rest = star, name[from:]
	}
}

// take matches the beginning of s, n bytes of it.
func (p *globPart) take(s []byte) (n int, ok bool) {
	if p.literal != nil {
		return len(p.literal), bytes.HasPrefix(s, p.literal)
	}
	if len(s) == 0 {
		return 0, false
	}
	r, n := utf8.DecodeRune(s)
	if p.ranges == nil {
		return n, true
	}
	in := false
	for _, c := range p.ranges {
		in = in || c.lo <= r && r <= c.hi
	}
	return n, in != p.negated
}

// texts returns the literal texts that every match contains.
func (g glob) texts() (list [][]byte) {
	for _, p := range g {
		if p.literal != nil {
			list = append(list, p.literal)
		}
	}
	return list
}
