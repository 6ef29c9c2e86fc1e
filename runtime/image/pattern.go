package image

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/bmatcuk/doublestar/v4"
)

// Bounds of a pattern, after its braces are expanded.
const (
	maxPattern      = 4 << 10
	maxAlternatives = 256
	maxSegments     = 128
)

// segment is what one path component must look like.
type segment struct {
	deep    bool   // "**": any number of directories, none included
	literal bool   // exactly text
	text    string // the literal, or the pattern
	prefix  string // what every matching name begins with
}

func (s *segment) match(name string) bool {
	if s.literal {
		return name == s.text
	}
	return strings.HasPrefix(name, s.prefix) && doublestar.MatchUnvalidated(s.text, name)
}

// parsePattern compiles an absolute doublestar pattern into lists of segments,
// one for each way to choose from its braces: alternatives may hold slashes.
func parsePattern(pattern string) ([][]segment, error) {
	switch {
	case len(pattern) > maxPattern:
		return nil, fmt.Errorf("the pattern is longer than %d bytes", maxPattern)
	case !doublestar.ValidatePattern(pattern), !utf8.ValidString(pattern):
		return nil, fmt.Errorf("pattern %q: %w", pattern, doublestar.ErrBadPattern)
	}
	plain, err := expand(pattern, nil)
	if err != nil {
		return nil, fmt.Errorf("pattern %q: %w", pattern, err)
	}
	all := make([][]segment, 0, len(plain))
	for _, p := range plain {
		segs, err := segments(p)
		if err != nil {
			return nil, fmt.Errorf("pattern %q: %w", pattern, err)
		}
		all = append(all, segs)
	}
	return all, nil
}

// expand appends the patterns that p stands for, none with braces. It finds
// braces as doublestar does: not in a class, but classes in braces do not
// protect.
func expand(p string, to []string) ([]string, error) {
	for i := 0; i < len(p); i++ {
		switch p[i] {
		case '\\':
			i++
		case '[':
			n := classEnd(p[i:])
			if n < 0 {
				return nil, doublestar.ErrBadPattern
			}
			i += n
		case '{':
			depth, start := 1, i+1
			var alts []string
			j := start
			for ; j < len(p) && depth > 0; j++ {
				switch p[j] {
				case '\\':
					j++
				case '{':
					depth++
				case '}':
					depth--
				case ',':
					if depth == 1 {
						alts = append(alts, p[start:j])
						start = j + 1
					}
				}
			}
			if depth > 0 || j > len(p) {
				return nil, doublestar.ErrBadPattern
			}
			for _, alt := range append(alts, p[start:j-1]) {
				var err error
				if to, err = expand(p[:i]+alt+p[j:], to); err != nil {
					return nil, err
				}
			}
			return to, nil
		}
	}
	if len(to) == maxAlternatives {
		return nil, fmt.Errorf("it stands for more than %d patterns", maxAlternatives)
	}
	return append(to, p), nil
}

// classEnd returns the index of the ']' that ends the class at the beginning
// of s, or -1.
func classEnd(s string) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case ']':
			return i
		}
	}
	return -1
}

func segments(p string) ([]segment, error) {
	if !strings.HasPrefix(p, "/") {
		return nil, errors.New("it is not absolute")
	}
	var segs []segment
	add := func(s string) error {
		switch {
		case s == "":
			return nil
		case s == "." || s == "..":
			return fmt.Errorf("%q cannot be matched", s)
		case s == "**":
			if n := len(segs); n == 0 || !segs[n-1].deep { // twice says nothing more
				segs = append(segs, segment{deep: true})
			}
		default:
			segs = append(segs, plain(s))
		}
		if len(segs) > maxSegments {
			return fmt.Errorf("more than %d segments", maxSegments)
		}
		return nil
	}
	start := 1
	for i := 1; i < len(p); i++ {
		cut := 0
		switch p[i] {
		case '\\':
			if i++; i < len(p) && p[i] == '/' {
				cut = 1 // an escaped slash is a slash
			} else {
				continue
			}
		case '[':
			n := classEnd(p[i:])
			if n < 0 {
				return nil, doublestar.ErrBadPattern
			}
			if strings.Contains(p[i:i+n], "/") {
				return nil, errors.New("a class cannot hold a slash")
			}
			i += n
			continue
		case '/':
		default:
			continue
		}
		if err := add(p[start : i-cut]); err != nil {
			return nil, err
		}
		start = i + 1
	}
	if err := add(p[start:]); err != nil {
		return nil, err
	}
	if len(segs) == 0 {
		return nil, errors.New("it matches the root directory only")
	}
	return segs, nil
}

// plain finds out how much of a segment is literal. Stars in a row are one:
// doublestar does not always let two of them match nothing.
func plain(s string) segment {
	var text, prefix strings.Builder
	literal := true
	for i := 0; i < len(s); i++ {
		n := 1
		switch s[i] {
		case '*':
			if i+1 < len(s) && s[i+1] == '*' {
				continue
			}
			literal = false
		case '?':
			literal = false
		case '[':
			literal = false
			n += max(classEnd(s[i:]), 0)
		case '\\':
			n = min(2, len(s)-i)
			if literal {
				prefix.WriteString(s[i+1 : i+n])
			}
			text.WriteString(s[i : i+n])
			i++
			continue
		default:
			if literal {
				prefix.WriteByte(s[i])
			}
		}
		text.WriteString(s[i : i+n])
		i += n - 1
	}
	if literal {
		return segment{literal: true, text: prefix.String(), prefix: prefix.String()}
	}
	return segment{text: text.String(), prefix: prefix.String()}
}
