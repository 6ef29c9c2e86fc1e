package policy

import (
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v4"
)

// walk goes over the nodes of one file. Its methods report what is wrong with
// a node and return the zero value, so that the rest is still looked at.
type walk struct{ *report }

func at(n *yaml.Node) position { return position{n.Line, n.Column} }

// refuse reports what YAML has and policies do not take: it is a way to write
// little that means much, and to hide it. Aliases are not followed anywhere.
func (w *walk) refuse(n *yaml.Node) {
	switch {
	case n.Kind == yaml.AliasNode:
		w.add(at(n), "alias *%s: aliases are not taken", n.Value)
		return
	case n.Anchor != "":
		w.add(at(n), "anchor &%s: anchors are not taken", n.Anchor)
	case n.Style&yaml.TaggedStyle != 0:
		w.add(at(n), "tag %s: tags are not taken", n.ShortTag())
	}
	for _, c := range n.Content {
		w.refuse(c)
	}
}

// what says what a node is, for a sentence "want ..., not ...".
func what(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!str":
		return "text"
	case "!!null":
		return "nothing"
	case "!!bool":
		return "a boolean"
	case "!!int", "!!float":
		return "a number"
	}
	return n.ShortTag()
}

// expect reports that n is not what is wanted. Aliases have been reported.
func (w *walk) expect(n *yaml.Node, name, wanted string) {
	if n.Kind != yaml.AliasNode {
		w.add(at(n), "%s: want %s, not %s", name, wanted, what(n))
	}
}

// pairs calls fn for each key of a mapping. It returns false if n is none.
func (w *walk) pairs(n *yaml.Node, name string, fn func(key, value *yaml.Node)) bool {
	if n.Kind != yaml.MappingNode {
		w.expect(n, name, "a mapping")
		return false
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		switch {
		case key.Kind != yaml.ScalarNode:
			w.expect(key, name, "text as a key")
		case key.ShortTag() == "!!merge":
			w.add(at(key), "merge key <<: merge keys are not taken")
		case key.ShortTag() != "!!str":
			w.add(at(key), "%s: the key %s is %s: write it in quotes", name, clip(key.Value), what(key))
		case seen[key.Value]:
			w.add(at(key), "%s: %q is there twice", name, clip(key.Value))
		default:
			seen[key.Value] = true
			fn(key, n.Content[i+1])
		}
	}
	return true
}

// field reads the value of one key.
type field func(value *yaml.Node)

// fields reads a mapping whose keys are known.
func (w *walk) fields(n *yaml.Node, name string, known map[string]field) (ok bool) {
	return w.pairs(n, name, func(key, value *yaml.Node) {
		if f := known[key.Value]; f != nil {
			f(value)
			return
		}
		names := make([]string, 0, len(known))
		for k := range known {
			names = append(names, k)
		}
		slices.Sort(names)
		if near := nearest(key.Value, names); near != "" {
			w.add(at(key), "%s: unknown key %q: did you mean %s?", name, clip(key.Value), near)
			return
		}
		w.add(at(key), "%s: unknown key %q; there are %s", name, clip(key.Value), strings.Join(names, ", "))
	})
}

// nearest returns the shortest name that differs from key by an ending or in
// case only, or "".
func nearest(key string, names []string) (near string) {
	key = strings.ToLower(key)
	for _, name := range names {
		lower := strings.ToLower(name)
		if len(key) > 2 && (strings.HasPrefix(lower, key) || strings.HasPrefix(key, lower)) && (near == "" || len(name) < len(near)) {
			near = name
		}
	}
	return near
}

// text reads text that is not empty, not longer than longest bytes, and has
// nothing in it that can't be seen.
func (w *walk) text(n *yaml.Node, name string, longest int) (string, bool) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		wanted := "text"
		if tag := n.ShortTag(); n.Kind == yaml.ScalarNode && tag != "!!null" {
			wanted = "text in quotes"
		}
		w.expect(n, name, wanted)
		return "", false
	}
	switch v := n.Value; {
	case v == "":
		w.add(at(n), "%s: empty", name)
	case len(v) > longest:
		w.add(at(n), "%s: %d bytes, at most %d are taken", name, len(v), longest)
	case strings.IndexFunc(v, unseen) >= 0:
		w.add(at(n), "%s: has a character that can't be seen", name)
	default:
		return v, true
	}
	return "", false
}

func unseen(c rune) bool { return !unicode.IsPrint(c) }

// list reads a list that is not empty; each item once.
func list[T comparable](w *walk, n *yaml.Node, name string, item func(*yaml.Node) (T, bool)) []T {
	if n.Kind != yaml.SequenceNode {
		w.expect(n, name, "a list")
		return nil
	}
	if len(n.Content) == 0 {
		w.add(at(n), "%s: empty: leave it out", name)
	}
	var out []T
	seen := map[T]bool{}
	for _, c := range n.Content {
		v, ok := item(c)
		switch {
		case !ok:
		case seen[v]:
			w.add(at(c), "%s: %q is there twice", name, clip(c.Value))
		default:
			seen[v] = true
			out = append(out, v)
		}
	}
	return out
}

// few is list for what is costly to have many of.
func few[T comparable](w *walk, n *yaml.Node, name string, most int, item func(*yaml.Node) (T, bool)) []T {
	if n.Kind == yaml.SequenceNode && len(n.Content) > most {
		w.add(at(n), "%s: %d of them, at most %d are taken: make it more than one probe", name, len(n.Content), most)
		return nil
	}
	return list(w, n, name, item)
}

// mapOfText reads a mapping of text to text.
func (w *walk) mapOfText(n *yaml.Node, name string) map[string]string {
	out := map[string]string{}
	if w.pairs(n, name, func(key, value *yaml.Node) {
		k, ok := w.text(key, name+": a key", maxText)
		if !ok {
			return
		}
		// A label's value may be empty.
		if value.Kind == yaml.ScalarNode && value.ShortTag() == "!!str" && value.Value == "" {
			out[k] = ""
		} else if v, ok := w.text(value, name+": "+clip(k), maxText); ok {
			out[k] = v
		}
	}) && len(n.Content) == 0 {
		w.add(at(n), "%s: empty: leave it out", name)
	}
	return out
}

// clip keeps messages short; the place says where to look.
func clip(s string) string {
	if r := []rune(s); len(r) > 64 {
		return string(r[:64]) + "..."
	}
	return s
}
