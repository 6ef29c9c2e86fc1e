package policy

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"probity/runtime/container"
)

// Bounds, in bytes.
const (
	maxName   = 128     // of a policy's name and a probe's id, which stand in every line of evidence
	maxText   = 4 << 10 // of anything else
	maxSymbol = 4 << 10
)

func (w *walk) policy(n *yaml.Node) (p Policy, where places) {
	var name, probes *yaml.Node
	ok := w.fields(n, "policy", map[string]field{
		"name":   func(v *yaml.Node) { name, p.Name, where.name = v, w.name(v, "name"), at(v) },
		"select": func(v *yaml.Node) { p.Select = w.selector(v) },
		"probes": func(v *yaml.Node) { probes = v; p.Probes, where.ids = w.probes(v) },
	})
	if ok && name == nil {
		w.add(at(n), "policy: no name")
	}
	if ok && probes == nil {
		w.add(at(n), "policy: no probes")
	}
	return p, where
}

// name reads what names a thing in evidence, in file names and on command
// lines.
func (w *walk) name(n *yaml.Node, what string) string {
	s, ok := w.text(n, what, maxName)
	if ok && !plainName(s) {
		w.add(at(n), "%s %q: want letters, digits, '.', '_' and '-', the first a letter or a digit", what, s)
		return ""
	}
	return s
}

func plainName(s string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return true
}

func (w *walk) selector(n *yaml.Node) (s Selector) {
	globs := func(name string, to *[]string) field {
		return func(v *yaml.Node) {
			*to = list(w, v, name, func(c *yaml.Node) (string, bool) { return w.glob(c, name) })
		}
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		// What was meant to be below it would not restrict anything.
		w.add(at(n), "select: nothing in it: write {} or leave it out to select every container")
		return s
	}
	w.fields(n, "select", map[string]field{
		"runtimes":    func(v *yaml.Node) { s.Runtimes = list(w, v, "runtimes", w.runtime) },
		"namespaces":  globs("namespaces", &s.Namespaces),
		"images":      globs("images", &s.Images),
		"containers":  globs("containers", &s.Containers),
		"podLabels":   func(v *yaml.Node) { s.PodLabels = w.mapOfText(v, "podLabels") },
		"annotations": func(v *yaml.Node) { s.Annotations = w.mapOfText(v, "annotations") },
	})
	return s
}

func (w *walk) runtime(n *yaml.Node) (container.Runtime, bool) {
	s, ok := w.text(n, "runtimes", maxText)
	if ok && !container.Runtime(s).Valid() {
		w.add(at(n), "runtimes: unknown runtime %q: want containerd, cri-o, podman, docker, runc or crun", clip(s))
		return "", false
	}
	return container.Runtime(s), ok
}

func (w *walk) probes(n *yaml.Node) (probes []Probe, ids []position) {
	if n.Kind != yaml.SequenceNode {
		w.expect(n, "probes", "a list")
		return nil, nil
	}
	if len(n.Content) == 0 {
		w.add(at(n), "probes: empty")
	}
	first := map[string]position{}
	for _, c := range n.Content {
		p, where := w.probe(c)
		if f, ok := first[p.ID]; ok && p.ID != "" {
			w.add(where, "id %q is taken by the probe at line %d", p.ID, f.line)
		} else {
			first[p.ID] = where
		}
		probes, ids = append(probes, p), append(ids, where)
	}
	return probes, ids
}

// probe reads one probe and returns where its id is.
func (w *walk) probe(n *yaml.Node) (p Probe, id position) {
	given := map[string]*yaml.Node{}
	note := func(key string, f field) field {
		return func(v *yaml.Node) { given[key] = v; f(v) }
	}
	ok := w.fields(n, "probe", map[string]field{
		"id":      note("id", func(v *yaml.Node) { p.ID = w.name(v, "id") }),
		"type":    note("type", func(v *yaml.Node) { p.Type = w.oneOf(v, "type", Uprobe, Tracepoint) }),
		"file":    note("file", func(v *yaml.Node) { p.File = w.file(v) }),
		"symbols": note("symbols", func(v *yaml.Node) { p.Symbols = list(w, v, "symbols", w.symbol) }),
		"offsets": note("offsets", func(v *yaml.Node) { p.Offsets = list(w, v, "offsets", w.offset) }),
		"event":   note("event", func(v *yaml.Node) { p.Event = w.oneOf(v, "event", ProcessExec) }),
	})
	if !ok {
		return Probe{}, at(n)
	}
	id = at(n)
	if v := given["id"]; v != nil {
		id = at(v)
	}
	for _, key := range []string{"id", "type"} {
		if given[key] == nil {
			w.add(at(n), "probe: no %s", key)
		}
	}
	foreign := func(keys ...string) {
		for _, key := range keys {
			if v := given[key]; v != nil {
				w.add(at(v), "%s: a %s has none", key, p.Type)
			}
		}
	}
	switch p.Type {
	case Uprobe:
		if given["file"] == nil {
			w.add(at(n), "uprobe: no file")
		}
		if given["symbols"] == nil && given["offsets"] == nil {
			w.add(at(n), "uprobe: neither symbols nor offsets")
		}
		foreign("event")
	case Tracepoint:
		if given["event"] == nil {
			w.add(at(n), "tracepoint: no event")
		}
		foreign("file", "symbols", "offsets")
	}
	return p, id
}

func (w *walk) oneOf(n *yaml.Node, name string, values ...string) string {
	s, ok := w.text(n, name, maxText)
	if ok && !slices.Contains(values, s) {
		w.add(at(n), "%s: unknown value %q: want %s", name, clip(s), strings.Join(values, " or "))
		return ""
	}
	return s
}

func (w *walk) symbol(n *yaml.Node) (string, bool) {
	s, ok := w.text(n, "symbols", maxSymbol)
	if ok && strings.Contains(s, "@") {
		w.add(at(n), "symbols: %q: want the name without its version", clip(s))
		return "", false
	}
	return s, ok
}

// offset reads "entry" or a number. YAML has more spellings of numbers (0o17,
// 1_000, 010, which was octal once); an offset is written as tools print it.
func (w *walk) offset(n *yaml.Node) (Offset, bool) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" && n.Value == "entry" {
		return Offset{Entry: true}, true
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" {
		w.expect(n, "offsets", "entry, a decimal number or a hexadecimal one with 0x")
		return Offset{}, false
	}
	digits, base := n.Value, 10
	if hex, ok := strings.CutPrefix(digits, "0x"); ok {
		digits, base = hex, 16
	} else if len(digits) > 1 && digits[0] == '0' {
		digits = ""
	}
	if strings.Trim(digits, "0123456789abcdefABCDEF") != "" { // signs, which ParseUint refuses, and underscores
		digits = ""
	}
	v, err := strconv.ParseUint(digits, base, 64)
	if err != nil || v > math.MaxInt64 {
		w.add(at(n), "offsets: %s: want a decimal number or a hexadecimal one with 0x, less than 2^63", clip(n.Value))
		return Offset{}, false
	}
	return Offset{Value: v}, true
}
