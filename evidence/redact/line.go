package redact

import (
	"slices"

	"probity/evidence"
)

// Line is a line that a redactor has seen: what the spool takes. Nothing else makes
// one, so nobody writes past the redactor by mistake; who changes what it points to
// afterwards still can. The zero one is none.
type Line struct{ line evidence.Line }

// Evidence is the line itself; nil of the zero Line.
func (l Line) Evidence() evidence.Line { return l.line }

// Lines redacts these lines, in their order.
func (r *Redactor) Lines(lines ...evidence.Line) []Line {
	out := make([]Line, len(lines))
	for i, l := range lines {
		out[i] = r.Line(l)
	}
	return out
}

// Cleared says that an entry of a set was redacted, and what of it. The zero one
// says that it was not.
type Cleared struct {
	redacted []evidence.Redaction
	done     bool
}

// Done reports whether the entry was redacted.
func (c Cleared) Done() bool { return c.done }

// Redacted is what was taken out of it.
func (c Cleared) Redacted() []evidence.Redaction { return c.redacted }

// Line begins the line of the entry in o, as a copy of alike, which is what all
// lines of its set have alike. The caller puts the entry itself into it.
func (c Cleared) Line(alike Line, o *evidence.Observation) Line {
	a, ok := alike.line.(*evidence.Observation)
	if !ok || !c.done {
		return Line{}
	}
	*o = *a
	if c.redacted != nil {
		o.Redacted = slices.Concat(a.Redacted, c.redacted) // in order: what is alike comes first
	}
	return Line{o}
}
