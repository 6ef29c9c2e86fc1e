package verify

import (
	"fmt"
	"strings"
	"time"

	"probity/evidence"
)

// details writes what does not fit into the table: system calls, durations, stacks
// and inlined code.
func (r Report) details(p *printer) {
	section := func(title string, of func(Row) []string) {
		first := true
		for _, x := range r.Rows {
			lines := of(x)
			if len(lines) == 0 {
				continue
			}
			if first {
				p.line(title)
				first = false
			}
			for _, l := range lines {
				p.line("  " + clean(l))
			}
		}
		if !first {
			p.line("")
		}
	}
	section("System calls that were used, by number:", Row.systemCalls)
	section("How long functions ran, from entry to return:", Row.durations)
	section("User stacks of first hits, innermost first:", Row.stackLines)
	section("Functions that are inlined elsewhere too: their row speaks only of the instruction that was armed:", Row.inlined)
	if n := r.inlineUnknown(); n > 0 {
		p.line(fmt.Sprintf("Of %s that were not hit it is not known whether the compiler inlined them elsewhere: that code was not watched.", plural(n, "function")))
		p.line("")
	}
}

// inlineUnknown counts the rows that somebody could read as "this function was not
// executed", and that do not say so.
func (r Report) inlineUnknown() (n int) {
	for _, x := range r.Rows {
		if x.State == evidence.ArmedNoHit && x.Inline == "unknown" {
			n++
		}
	}
	return n
}

// where is a row's probe and container, in front of its detail.
func (r Row) where() string {
	return r.ProbeID + " of container " + Short(r.ContainerID)
}

// maxNumbers is how many system calls are listed in one line.
const maxNumbers = 24

func (r Row) systemCalls() (out []string) {
	for _, c := range r.SystemCalls {
		var line []string
		flush := func(head string) {
			if len(line) > 0 {
				out = append(out, head+strings.Join(line, " "))
				line = line[:0]
			}
		}
		head := fmt.Sprintf("%s, %s: ", r.where(), c.Arch)
		for _, n := range c.Numbers {
			if line = append(line, fmt.Sprint(n)); len(line) == maxNumbers {
				flush(head)
			}
		}
		if c.Beyond {
			line = append(line, "and numbers that no kernel has")
		}
		flush(head)
	}
	if r.IOUring {
		out = append(out, r.where()+": io_uring was used; what was asked for through it is not listed")
	}
	return out
}

func (r Row) durations() []string {
	d := r.Duration
	if d == nil {
		return nil
	}
	s := fmt.Sprintf("%s, %s: %s matched, %d unmatched", r.where(), r.function(), plural(int(d.Count), "return"), d.Unmatched)
	if d.Count > 0 {
		s += fmt.Sprintf(", mean %v", time.Duration(uint64(d.SumNs)/uint64(d.Count)))
	}
	out := []string{s}
	for i, n := range d.Counts {
		if n != 0 {
			out = append(out, fmt.Sprintf(" %v to %v: %d", bucket(i), bucket(i+1), n))
		}
	}
	return out
}

// bucket is where a duration's bucket begins.
func bucket(i int) time.Duration {
	if i == 0 {
		return 0
	}
	return time.Duration(min(uint64(1)<<min(i, 63), 1<<63-1))
}

func (r Row) function() string {
	if r.Function != "" {
		return r.Function
	}
	return r.name()
}

func (r Row) stackLines() []string {
	s := r.Stack
	if s == nil {
		return nil
	}
	head := r.where() + ", " + r.function()
	if r.Process != nil {
		head += ", in " + process(r.Process)
	}
	out := []string{head}
	for i := range s.Frames {
		out = append(out, " "+frame(&s.Frames[i]))
	}
	switch {
	case s.More > 0:
		out = append(out, fmt.Sprintf(" ... and %s that did not fit", plural(int(s.More), "frame")))
	case s.Truncated:
		out = append(out, " ... callers may be missing")
	}
	if s.Reason != "" {
		out = append(out, " "+s.Reason)
	}
	return out
}

func frame(f *evidence.Frame) string {
	at := ""
	if f.Offset != nil {
		at = fmt.Sprintf("+0x%x", uint64(*f.Offset))
	}
	var parts []string
	if f.Symbol != "" {
		parts = append(parts, f.Symbol)
	}
	switch {
	case f.Path != "":
		parts = append(parts, f.Path+at)
	case f.BuildID != "":
		parts = append(parts, "build id "+f.BuildID+at)
	}
	if f.Reason != "" {
		parts = append(parts, "("+f.Reason+")")
	}
	return strings.Join(parts, " ")
}

func (r Row) inlined() []string {
	if r.Inline != "inlinedAt" {
		return nil
	}
	var at []string
	for _, x := range r.InlinedAt {
		s := fmt.Sprintf("+0x%x", uint64(x.Offset))
		if x.In != "" {
			s = x.In + s
		}
		at = append(at, s)
	}
	if r.InlinedAtMore > 0 {
		at = append(at, plural(int(r.InlinedAtMore), "further place"))
	}
	return []string{fmt.Sprintf("%s, %s: in %s", r.where(), r.function(), strings.Join(at, ", "))}
}
