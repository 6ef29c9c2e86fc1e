package evidence

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Redaction says that a member of a line does not hold what was seen, because a
// rule of the node's policy keeps it out of evidence. It came with version 3 of the
// format.
type Redaction struct {
	Member string `json:"member"` // which, one of RedactedIn
	Rule   string `json:"rule"`   // the id of the policy's rule
}

// RedactedIn lists, for each kind of line, the members that can be redacted. A
// number or an optional name is then absent; a text has a mark in place of what
// was taken out.
var RedactedIn = map[string][]string{
	KindCoverage: {"image", "imageDigestReason", "probes.searchReason"},
	KindObservation: {
		"imageDigestReason", "path", "stack.frames.path", "stack.reason", "entry.parent.comm", "entry.parent.path", "entry.argument", "entry.device", "entry.inode",
		"entry.address", "entry.port", "detail", "process.comm", "process.path", "processes.comm", "processes.path",
	},
	KindGap: {"path", "detail"},
}

// A mark begins and ends with these. A name that a container chose may look like
// one: it is one only in a member that the line lists as redacted, and there
// nothing else has these characters.
const (
	markOpen  = "\u2039"
	markClose = "\u203A"
	markBegin = markOpen + "redacted:"
)

// Bounds of a mark.
const (
	MaxRule  = 32 // characters of a rule's id
	tokenLen = 16 // hex digits of a token
)

// Mark is what stands in a text for what a rule took out of it. A token, 16 hex
// digits, tells different values apart; "" is none.
func Mark(rule, token string) string {
	if token != "" {
		token = ":" + token
	}
	return markBegin + rule + token + markClose
}

// HasMark reports whether the text has a character of a mark.
func HasMark(s string) bool { return strings.Contains(s, markOpen) || strings.Contains(s, markClose) }

// WithoutTokens returns a redacted text with its marks' tokens left out.
func WithoutTokens(s string) string {
	var b strings.Builder
	for {
		at := strings.Index(s, markBegin)
		if at < 0 {
			return b.String() + s
		}
		end := strings.Index(s[at:], markClose)
		if end < 0 {
			return b.String() + s
		}
		rule, _, _ := strings.Cut(s[at+len(markBegin):at+end], ":")
		b.WriteString(s[:at])
		b.WriteString(Mark(rule, ""))
		s = s[at+end+len(markClose):]
	}
}

// Redacted returns the line's list of what was taken out of it.
func Redacted(l Line) []Redaction {
	switch v := l.(type) {
	case *Coverage:
		return v.Redacted
	case *Observation:
		return v.Redacted
	case *Gap:
		return v.Redacted
	}
	return nil
}

// IsRedacted reports whether a member is in the list.
func IsRedacted(list []Redaction, member string) bool {
	return slices.ContainsFunc(list, func(r Redaction) bool { return r.Member == member })
}

// SortRedactions puts a list into the one order that the format takes, each item
// once.
func SortRedactions(kind string, list []Redaction) []Redaction {
	slices.SortFunc(list, func(a, b Redaction) int { return compareRedactions(kind, a, b) })
	return slices.Compact(list)
}

func compareRedactions(kind string, a, b Redaction) int {
	order := RedactedIn[kind]
	if c := slices.Index(order, a.Member) - slices.Index(order, b.Member); c != 0 {
		return c
	}
	return strings.Compare(a.Rule, b.Rule)
}

// redactions checks a line's list. texts returns what a member holds: its texts, and
// whether there may be further ones that were left as they are.
func redactions(kind string, list []Redaction, texts func(member string) (have []string, some bool)) error {
	for i, r := range list {
		switch {
		case !slices.Contains(RedactedIn[kind], r.Member):
			return fmt.Errorf("redacted: %q is not a member that can be", clip(r.Member))
		case !ruleName(r.Rule):
			return fmt.Errorf("redacted: %q is not the id of a rule", clip(r.Rule))
		case i > 0 && compareRedactions(kind, list[i-1], r) >= 0:
			return errors.New("redacted: not in order, each once")
		}
		if i > 0 && list[i-1].Member == r.Member {
			continue
		}
		var rules []string
		for _, o := range list[i:] {
			if o.Member == r.Member {
				rules = append(rules, o.Rule)
			}
		}
		have, some := texts(r.Member)
		for _, s := range have {
			if n, err := marks(s, rules); err != nil {
				return fmt.Errorf("redacted: %s: %w", r.Member, err)
			} else if n == 0 && !some {
				return fmt.Errorf("redacted: %s has no mark", r.Member)
			}
		}
	}
	return nil
}

// marks counts the marks of a text, which must be of these rules, and all that has
// their characters.
func marks(s string, rules []string) (n int, err error) {
	for HasMark(s) {
		open := strings.Index(s, markOpen)
		end := strings.Index(s, markClose)
		if open < 0 || end < open || !strings.HasPrefix(s[open:], markBegin) {
			return n, errors.New("a character of a mark outside of one")
		}
		rule, token, found := strings.Cut(s[open+len(markBegin):end], ":")
		if !slices.Contains(rules, rule) {
			return n, fmt.Errorf("a mark of the rule %q, which is not listed", clip(rule))
		}
		if found && !isHex(token, tokenLen) {
			return n, fmt.Errorf("a mark with the token %q", clip(token))
		}
		n++
		s = s[end+len(markClose):]
	}
	return n, nil
}

// ruleName reports whether s can be the id of a rule: letters, digits, '.', '_' and
// '-', the first a letter or a digit.
func ruleName(s string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return s != "" && len(s) <= MaxRule
}

func (c *Coverage) redactions() error {
	return redactions(KindCoverage, c.Redacted, func(member string) (have []string, some bool) {
		switch member {
		case "image":
			return []string{c.Image}, false
		case "imageDigestReason":
			return []string{c.ImageDigestReason}, false
		}
		for i := range c.Probes {
			have = append(have, c.Probes[i].SearchReason)
		}
		return have, true
	})
}

func (g *Gap) redactions() error {
	return redactions(KindGap, g.Redacted, func(member string) ([]string, bool) {
		if member == "path" {
			return []string{g.Path}, false
		}
		return []string{g.Detail}, false
	})
}

func (o *Observation) redactions() error {
	if o.Redacted == nil {
		return nil
	}
	e := o.Entry
	if e == nil {
		e = new(Entry)
	}
	for member, there := range map[string]bool{
		"entry.device": e.Device != "", "entry.inode": e.Inode != 0, "entry.port": e.Port != 0,
		"process.comm": o.Process != nil && o.Process.Comm != "", "entry.parent.comm": e.Parent != nil && e.Parent.Comm != "",
	} {
		if there && IsRedacted(o.Redacted, member) {
			return fmt.Errorf("redacted: %s is there", member)
		}
	}
	return redactions(KindObservation, o.Redacted, func(member string) (have []string, some bool) {
		switch member {
		case "imageDigestReason":
			return []string{o.ImageDigestReason}, false
		case "path":
			return []string{o.Path}, false
		case "detail":
			return []string{o.Detail}, false
		case "entry.argument":
			return []string{e.Argument}, false
		case "entry.address":
			return []string{e.Address}, false
		case "entry.parent.path":
			if e.Parent != nil {
				return []string{e.Parent.Path}, false
			}
		case "process.path":
			if o.Process != nil {
				return []string{o.Process.Path}, false
			}
		case "processes.path":
			for i := range o.Processes {
				have = append(have, o.Processes[i].Path)
			}
			return have, true
		case "stack.frames.path", "stack.reason":
			if o.Stack == nil {
				return nil, false // there was no room for it
			}
			if member == "stack.reason" {
				return []string{o.Stack.Reason}, true
			}
			for i := range o.Stack.Frames {
				have = append(have, o.Stack.Frames[i].Path)
			}
			return have, true
		default: // absent
			return nil, false
		}
		return []string{""}, false
	})
}
