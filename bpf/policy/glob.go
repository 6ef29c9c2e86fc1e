package policy

import (
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
	"go.yaml.in/yaml/v4"
)

// Bounds on globs: alternatives multiply, {a,a}{a,a}... takes time exponential
// in their number to match.
const (
	maxGroups       = 4
	maxAlternatives = 32
)

// glob reads a doublestar pattern: * and ? do not match '/', ** does.
func (w *walk) glob(n *yaml.Node, name string) (string, bool) {
	s, ok := w.text(n, name, maxText)
	if !ok {
		return "", false
	}
	if !doublestar.ValidatePattern(s) {
		w.add(at(n), "%s: %q is not a glob: brackets or braces that do not match, or a '\\' at its end", name, clip(s))
		return "", false
	}
	if _, err := doublestar.Match(s, "name"); err != nil {
		w.add(at(n), "%s: %q is not a glob: %v", name, clip(s), err)
		return "", false
	}
	if g := strings.Count(s, "{"); g > maxGroups || g > 0 && strings.Count(s, ",") > maxAlternatives {
		w.add(at(n), "%s: %q: at most %d groups in braces and %d commas are taken", name, clip(s), maxGroups, maxAlternatives)
		return "", false
	}
	return s, true
}

// file reads the glob of a file inside a container.
func (w *walk) file(n *yaml.Node) string {
	s, ok := w.glob(n, "file")
	if !ok {
		return ""
	}
	parts := strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune("/{},", r) })
	switch {
	case s[0] != '/':
		w.add(at(n), "file: %q is not absolute: it begins with '/', as seen in the container", clip(s))
	case strings.HasSuffix(s, "/"):
		w.add(at(n), "file: %q ends with '/': want a file, not a directory", clip(s))
	case strings.Contains(s, "//"), slices.Contains(parts, "."), slices.Contains(parts, ".."):
		w.add(at(n), "file: %q: want a path without '//', '.' and '..': such a pattern matches nothing", clip(s))
	default:
		return s
	}
	return ""
}
