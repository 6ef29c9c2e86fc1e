package policy

import (
	"go.yaml.in/yaml/v4"

	"probity/runtime/container"
)

// Bounds, in bytes.
const (
	maxName   = 128     // of a policy's name and a probe's id, which stand in every line of evidence
	maxText   = 4 << 10 // of anything else
	maxSymbol = 4 << 10
	maxKernel = 511 // of what the kernel names (KSYM_NAME_LEN less its NUL)
	maxRegexp = 512
)

func (w *walk) policy(n *yaml.Node) (p Policy, where places) {
	var name, fail, probes, redact *yaml.Node
	ok := w.fields(n, "policy", map[string]field{
		"name":       func(v *yaml.Node) { name, p.Name, where.name = v, w.name(v, "name"), at(v) },
		"select":     func(v *yaml.Node) { p.Select = w.selector(v) },
		"failPolicy": func(v *yaml.Node) { fail, p.FailPolicy = v, w.oneOf(v, "failPolicy", FailPolicies) },
		"probes":     func(v *yaml.Node) { probes = v; p.Probes, where.ids = w.probes(v) },
		"redact":     func(v *yaml.Node) { redact = v; p.Redact, where.rules = w.redact(v) },
	})
	if ok && name == nil {
		w.add(at(n), "policy: no name")
	}
	if ok && probes == nil && redact == nil {
		w.add(at(n), "policy: no probes, and nothing to redact")
	}
	if ok && fail != nil {
		w.requirements(&p, fail)
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
	return distinct(w, n, "probe", w.probe, func(p Probe) string { return p.ID })
}

// distinct reads the items of a list, of which no two may have the same id.
func distinct[T any](w *walk, n *yaml.Node, what string, read func(*yaml.Node) (T, position), id func(T) string) (items []T, ids []position) {
	first := map[string]position{}
	for _, c := range n.Content {
		item, where := read(c)
		if f, ok := first[id(item)]; ok && id(item) != "" {
			w.add(where, "id %q is taken by the %s at line %d", id(item), what, f.line)
		} else {
			first[id(item)] = where
		}
		items, ids = append(items, item), append(ids, where)
	}
	return items, ids
}
