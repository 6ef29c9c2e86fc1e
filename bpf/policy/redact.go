package policy

import (
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
	"go.yaml.in/yaml/v4"

	"probity/runtime/container"
)

// Rule is one thing that is kept out of evidence: exactly one of Paths, Addresses
// and AllAddresses, Images and Comms. ID is unique in a Set.
type Rule struct {
	ID           string
	Paths        []PathPattern
	Addresses    []netip.Prefix
	AllAddresses bool // of every family
	Ports        bool // with an address: its port too
	Images       []string
	Comms        bool // the names of tasks
	// Keyed marks equal values alike, by a digest under the node's secret key.
	Keyed bool
}

// Bounds on rules: each value of a line is held against each of them.
const (
	maxRules    = 64 // of a file
	maxRuleName = 32 // evidence.MaxRule
	maxPatterns = 64 // of a rule
	maxStars    = 2  // "**" in a pattern
)

// PathPattern is a glob over paths inside a container, and which part of them is
// taken out: the whole, or what stands in place of the names in angle brackets, as
// alice does of /home/<*>/** in /home/alice/x.
type PathPattern struct {
	Glob string // without the brackets

	before, after []string // names before and after what is taken out
	taken         string   // a glob over one name, or "**"; "" is the whole path
}

// Part returns which names of a clean absolute path, given without its first '/',
// are to be taken out: names[from:to]. whole says that the whole path is.
func (p PathPattern) Part(names []string) (from, to int, whole, ok bool) {
	if p.taken == "" {
		return 0, len(names), true, p.match(p.Glob, "/"+strings.Join(names, "/"))
	}
	from, to = len(p.before), len(names)-len(p.after)
	if p.taken != "**" {
		if slices.Contains(p.before, "**") {
			from = to - 1
		} else {
			to = from + 1
		}
	}
	if from < 0 || to <= from || to > len(names) {
		return 0, 0, false, false
	}
	ok = p.names(p.before, names[:from]) && p.names(p.after, names[to:]) && (p.taken == "**" || p.match(p.taken, names[from]))
	return from, to, false, ok
}

func (p PathPattern) names(globs, names []string) bool {
	if len(globs) == 0 || len(names) == 0 {
		return len(names) == 0 && (len(globs) == 0 || len(globs) == 1 && globs[0] == "**")
	}
	return p.match(strings.Join(globs, "/"), strings.Join(names, "/"))
}

func (p PathPattern) match(glob, s string) bool {
	ok, err := doublestar.Match(glob, s)
	return err != nil || ok // an error: the policy was not made by Parse
}

// MayBeIn reports whether a text, such as an error's, may name a path that the
// pattern is for: whether it has the names that come before what is taken out, or
// the longest run of them without a glob. It errs by saying yes.
func (p PathPattern) MayBeIn(text string) bool {
	all := strings.Split(strings.TrimPrefix(p.Glob, "/"), "/")
	names := all
	if p.taken != "" {
		names = p.before
	}
	longest := "/" // all that paths have
	for i := 0; i < len(names); i++ {
		run := ""
		for ; i < len(names) && !strings.ContainsAny(names[i], `*?[{\`); i++ {
			if run += names[i]; i+1 < len(all) {
				run += "/"
			}
		}
		if len(run) > len(longest) {
			longest = run
		}
	}
	return strings.Contains(text, longest)
}

// Has reports whether an address is one of the rule's. A text that is none of IPv4
// or IPv6 is of another family.
func (r *Rule) Has(address string) bool {
	if r.AllAddresses {
		return true
	}
	a, err := netip.ParseAddr(address)
	if err != nil {
		return false
	}
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(r.Addresses, func(p netip.Prefix) bool { return p.Contains(a) })
}

// HasImage reports whether an image's name is one of the rule's.
func (r *Rule) HasImage(name string) bool { return len(r.Images) > 0 && anyGlob(r.Images, name) }

// Redact returns the rules for a container: those of every policy that selects it,
// in the order of the set. What is not known of a container is taken to be what a
// policy asks for: redacting too much is the safe side.
func (s *Set) Redact(id container.Identity) (rules []Rule) {
	for _, p := range s.Policies {
		if len(p.Redact) > 0 && p.Select.mayMatch(id) {
			rules = append(rules, p.Redact...)
		}
	}
	return rules
}

// RedactAll returns the rules of all policies, for what is of no container, or of
// one that is not known.
func (s *Set) RedactAll() (rules []Rule) {
	for _, p := range s.Policies {
		rules = append(rules, p.Redact...)
	}
	return rules
}

// mayMatch is Match for a container of which not all may be known.
func (s Selector) mayMatch(id container.Identity) bool {
	if id.Pod == nil {
		s.Namespaces, s.PodLabels = nil, nil
	} else {
		if id.Pod.Namespace == "" {
			s.Namespaces = nil
		}
		if id.Pod.Labels == nil {
			s.PodLabels = nil
		}
	}
	if id.Image.Name == "" {
		s.Images = nil
	}
	if id.Name == "" {
		s.Containers = nil
	}
	if id.Annotations == nil {
		s.Annotations = nil
	}
	return s.Match(id)
}

func (w *walk) redact(n *yaml.Node) (rules []Rule, ids []position) {
	if n.Kind != yaml.SequenceNode {
		w.expect(n, "redact", "a list of rules")
		return nil, nil
	}
	if len(n.Content) == 0 {
		w.add(at(n), "redact: empty: leave it out")
	}
	if len(n.Content) > maxRules {
		w.add(at(n), "redact: %d rules, at most %d are taken in a file", len(n.Content), maxRules)
		return nil, nil
	}
	return distinct(w, n, "rule", w.rule, func(r Rule) string { return r.ID })
}

func (w *walk) rule(n *yaml.Node) (r Rule, where position) {
	where = at(n)
	var kinds []string
	var ports, keyed *yaml.Node
	hasID := false
	kind := func(name string, read func(v *yaml.Node)) field {
		return func(v *yaml.Node) { kinds = append(kinds, name); read(v) }
	}
	only := func(v *yaml.Node, name string) bool {
		on := w.boolean(v, name)
		if v.Value == "false" {
			w.add(at(v), "%s: false does nothing: leave it out", name)
		}
		return on
	}
	ok := w.fields(n, "rule", map[string]field{
		"id": func(v *yaml.Node) {
			hasID, where = true, at(v)
			if r.ID = w.name(v, "id"); len(r.ID) > maxRuleName {
				w.add(at(v), "id %q: %d characters, a rule's id has at most %d: it stands in evidence for what is taken out", clip(r.ID), len(r.ID), maxRuleName)
			}
		},
		"paths": kind("paths", func(v *yaml.Node) {
			few(w, v, "paths", maxPatterns, func(c *yaml.Node) (string, bool) {
				p, ok := w.pathPattern(c)
				if ok {
					r.Paths = append(r.Paths, p)
				}
				return c.Value, ok
			})
		}),
		"addresses": kind("addresses", func(v *yaml.Node) {
			for _, a := range few(w, v, "addresses", maxPatterns, w.prefix) {
				if a == (netip.Prefix{}) {
					r.AllAddresses = true
				} else {
					r.Addresses = append(r.Addresses, a)
				}
			}
		}),
		"images": kind("images", func(v *yaml.Node) {
			r.Images = few(w, v, "images", maxPatterns, func(c *yaml.Node) (string, bool) { return w.glob(c, "images") })
		}),
		"comms": kind("comms", func(v *yaml.Node) { r.Comms = only(v, "comms") }),
		"ports": func(v *yaml.Node) { ports = v; r.Ports = only(v, "ports") },
		"keyed": func(v *yaml.Node) { keyed = v; r.Keyed = only(v, "keyed") },
	})
	switch {
	case !ok:
	case !hasID:
		w.add(at(n), "rule: no id")
	case len(kinds) == 0:
		w.add(at(n), "rule %s: nothing to redact: want one of paths, addresses, images and comms (arguments and environment are never recorded)", clip(r.ID))
	case len(kinds) > 1:
		w.add(at(n), "rule %s: %s: one rule is for one of them: make it %d rules", clip(r.ID), strings.Join(kinds, ", "), len(kinds))
	case ports != nil && kinds[0] != "addresses":
		w.add(at(ports), "rule %s: ports: only with addresses", clip(r.ID))
	case keyed != nil && r.Comms:
		w.add(at(keyed), "rule %s: keyed: a task's name has no room for a mark: it is left out", clip(r.ID))
	}
	return r, where
}

// prefix reads an address, with or without the length of a prefix, or all, which is
// the zero value.
func (w *walk) prefix(n *yaml.Node) (netip.Prefix, bool) {
	s, ok := w.text(n, "addresses", maxText)
	if !ok || s == "all" {
		return netip.Prefix{}, ok
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		w.add(at(n), "addresses: %q: want an address, a prefix such as 10.0.0.0/8 or fd00::/8, or all", clip(s))
	case p.Addr().Is4In6():
		w.add(at(n), "addresses: %q: write it as IPv4: it is meant in both spellings", clip(s))
	case p.Masked() != p:
		w.add(at(n), "addresses: %q has bits past its length: want %s", clip(s), p.Masked())
	default:
		return p, true
	}
	return netip.Prefix{}, false
}

// pathPattern reads a glob with at most one part in angle brackets.
func (w *walk) pathPattern(n *yaml.Node) (p PathPattern, ok bool) {
	s := n.Value
	plain := *n
	plain.Value = strings.NewReplacer("<", "", ">", "").Replace(s)
	if p.Glob, ok = w.glob(&plain, "paths"); !ok {
		return p, false
	}
	names := strings.Split(strings.TrimPrefix(s, "/"), "/")
	marked := 0
	for i, name := range names {
		if !strings.ContainsAny(name, "<>") {
			continue
		}
		marked++
		inner := strings.TrimSuffix(strings.TrimPrefix(name, "<"), ">")
		if len(inner) != len(name)-2 || inner == "" || strings.ContainsAny(inner, "<>") {
			w.add(at(n), "paths: %q: want angle brackets around one whole name, or around **, such as /home/<*>/** or /srv/<**>", clip(s))
			return p, false
		}
		p.before, p.taken, p.after = names[:i], inner, names[i+1:]
	}
	groups := false
	for g, depth := 0, 0; g < len(s); g++ {
		switch s[g] {
		case '{':
			depth++
		case '}':
			depth--
		case '/':
			groups = groups || depth > 0
		}
	}
	switch {
	case s[0] != '/':
		w.add(at(n), "paths: %q is not absolute: it begins with '/', as seen in the container", clip(s))
	case path.Clean(s) != s || s == "/":
		w.add(at(n), "paths: %q: want a path without '//', '.' and '..', and without '/' at its end: such a pattern matches nothing", clip(s))
	case groups:
		w.add(at(n), "paths: %q: a '/' in braces: write it as several patterns", clip(s))
	case strings.Count(s, "**") > maxStars:
		w.add(at(n), "paths: %q: at most %d times ** are taken", clip(s), maxStars)
	case slices.ContainsFunc(names, func(x string) bool { x = strings.Trim(x, "<>"); return strings.Contains(x, "**") && x != "**" }):
		w.add(at(n), "paths: %q: ** stands for whole names: want it alone between two '/'", clip(s))
	case marked > 1:
		w.add(at(n), "paths: %q: more than one part in angle brackets: make it several patterns", clip(s))
	case p.taken == "**" && (slices.Contains(p.before, "**") || slices.Contains(p.after, "**")),
		p.taken != "" && slices.Contains(p.before, "**") && slices.Contains(p.after, "**"):
		w.add(at(n), "paths: %q: which part is meant is not certain: want no ** beside <**>, and ** on one side of a name at most", clip(s))
	default:
		return p, true
	}
	return p, false
}
