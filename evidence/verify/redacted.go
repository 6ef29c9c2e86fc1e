package verify

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"probity/evidence"
)

// This file shows what the node's policy took out of lines before they were signed,
// and that it was that and no container's name for something.

// identifying are the members that tell sites and entries apart.
var identifying = []string{"path", "entry.argument", "entry.device", "entry.inode", "entry.address", "entry.port"}

// redactedKey is what of a line's list tells its site or entry from one whose names
// only look redacted.
func redactedKey(o *evidence.Observation) string {
	if o.Redacted == nil {
		return ""
	}
	var b strings.Builder
	for _, x := range o.Redacted {
		if slices.Contains(identifying, x.Member) {
			b.WriteString(x.Member + " " + x.Rule + "\n")
		}
	}
	return b.String()
}

func (f *fold) redactions(list []evidence.Redaction) (out []evidence.Redaction) {
	for _, x := range list {
		out = append(out, evidence.Redaction{Member: f.keep(x.Member), Rule: f.keep(x.Rule)})
	}
	return out
}

// samePath reports whether a gap's path may be the row's. The two may have been
// redacted with and without tokens: then it is not known, and it may.
func samePath(g *GapRow, r *Row) bool {
	if g.Path == "" || g.Path == r.Path {
		return true
	}
	return evidence.IsRedacted(g.Redacted, "path") && evidence.IsRedacted(r.Redacted, "path") &&
		evidence.WithoutTokens(g.Path) == evidence.WithoutTokens(r.Path) && (g.Path == evidence.WithoutTokens(g.Path) || r.Path == evidence.WithoutTokens(r.Path))
}

// unlike writes the characters of a mark as escapes.
var unlike = strings.NewReplacer("\u2039", `\u2039`, "\u203A", `\u203a`)

// showMarks makes the rows and gaps such that each mark in them is one.
func (r *Report) showMarks() {
	rows, gaps := false, false
	for i := range r.Rows {
		if x, changed := r.Rows[i].withMarks(); changed {
			if !rows {
				r.Rows, rows = slices.Clone(r.Rows), true
			}
			r.Rows[i] = x
		}
	}
	for i := range r.Gaps {
		g := r.Gaps[i]
		changed := false
		for member, s := range map[string]*string{"path": &g.Path, "detail": &g.Detail, "symbol": &g.Symbol, "source": &g.Source} {
			changed = show(s, evidence.IsRedacted(g.Redacted, member)) || changed
		}
		if changed {
			if !gaps {
				r.Gaps, gaps = slices.Clone(r.Gaps), true
			}
			r.Gaps[i] = g
		}
	}
}

func show(s *string, marked bool) (changed bool) {
	if marked || !evidence.HasMark(*s) {
		return false
	}
	*s = unlike.Replace(*s)
	return true
}

func (r Row) withMarks() (Row, bool) {
	changed := false
	plain := func(member string, s *string) {
		changed = show(s, evidence.IsRedacted(r.Redacted, member)) || changed
	}
	plain("image", &r.Image)
	plain("path", &r.Path)
	plain("detail", &r.Detail)
	plain("probes.searchReason", &r.SearchReason)
	for _, s := range []*string{&r.ContainerID, &r.ContainerName, &r.Pod, &r.ProbeID, &r.Symbol, &r.Demangled, &r.Wanted, &r.InlinedIn, &r.Implements, &r.Function, &r.Event} {
		plain("", s)
	}
	process := func(member string, p *evidence.Process) *evidence.Process {
		if p == nil {
			return nil
		}
		c := *p
		plain(member+".comm", &c.Comm)
		plain(member+".path", &c.Path)
		return &c
	}
	r.Process = process("process", r.Process)
	if r.Entry != nil {
		e := *r.Entry
		plain("entry.argument", &e.Argument)
		plain("entry.address", &e.Address)
		e.Parent = process("entry.parent", e.Parent)
		r.Entry = &e
	}
	if r.Stack != nil {
		s := *r.Stack
		s.Frames = slices.Clone(s.Frames)
		plain("stack.reason", &s.Reason)
		for i := range s.Frames {
			plain("stack.frames.path", &s.Frames[i].Path)
			plain("", &s.Frames[i].Symbol)
		}
		r.Stack = &s
	}
	return r, changed
}

// redacted sums up what was taken out, by rule.
func (r Report) redacted(p *printer) {
	rules := map[string]map[string]int{} // rows by rule and member
	add := func(list []evidence.Redaction) {
		for _, x := range list {
			if rules[x.Rule] == nil {
				rules[x.Rule] = map[string]int{}
			}
			rules[x.Rule][x.Member]++
		}
	}
	for i := range r.Rows {
		add(r.Rows[i].Redacted)
	}
	for i := range r.Gaps {
		add(r.Gaps[i].Redacted)
	}
	if len(rules) == 0 {
		return
	}
	p.line("Redacted by the node's policy before it was signed (" + evidence.Mark("RULE", "") + " stands for what was there):")
	for _, rule := range slices.Sorted(maps.Keys(rules)) {
		var members []string
		for _, m := range slices.Sorted(maps.Keys(rules[rule])) {
			members = append(members, fmt.Sprintf("%s of %s", m, plural(rules[rule][m], "row")))
		}
		p.line("  rule " + clean(rule) + ": " + clean(strings.Join(members, ", ")))
	}
	p.line("")
}
