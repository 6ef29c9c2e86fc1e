package verify

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"probity/evidence"
)

// WriteTable writes the report for a person who has never seen one. Names in it
// came from containers: what a terminal would act on is shown as an escape.
func (r Report) WriteTable(w io.Writer) error {
	p := &printer{w: w}
	if len(r.Rows) > 0 {
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		t := &printer{w: tw}
		t.line("CONTAINER\tIMAGE\tPROBE\tSITE\tTYPE\tSTATE\tCOUNT\tCONF\tFROM\tTO")
		for _, x := range r.Rows {
			t.line(strings.Join([]string{
				x.container(), x.image(), clean(x.ProbeID), x.site(), clean(string(x.ProbeType)), x.state(), x.count(),
				strconv.FormatFloat(x.Confidence, 'f', 2, 64), second(x.From), x.until(),
			}, "\t"))
		}
		if t.err != nil {
			return t.err
		}
		if err := tw.Flush(); err != nil {
			return err
		}
		p.line("")
	}
	if incomplete := r.incomplete(); len(incomplete) > 0 {
		p.line("Probes for which not all files were searched: what was not searched may have been executed:")
		for _, s := range incomplete {
			p.line("  " + s)
		}
		p.line("")
	}
	if len(r.Gaps) > 0 {
		p.line("Gaps, in which nothing is claimed:")
		for _, g := range r.Gaps {
			p.line("  " + g.text())
		}
		p.line("")
	}
	if len(r.Holes) > 0 {
		p.line("Chunks that are not here (delivered and removed, skipped by an agent that was killed, or deleted):")
		for _, h := range r.Holes {
			p.line(fmt.Sprintf("  sequence %d to %d of instance %s", h.From, h.To, h.Instance))
		}
		p.line("")
	}
	if len(r.Findings) > 0 {
		p.line("FINDINGS: this evidence is not sound")
		for _, f := range r.Findings {
			p.line("  " + clean(f.String()))
		}
		p.line("")
	}
	verdict := "sound"
	if !r.Sound() {
		verdict = "NOT SOUND"
	}
	p.line(fmt.Sprintf("%s: %s of %s, %s of %s, %s", verdict,
		plural(r.Chunks, "sound chunk"), plural(r.Files, "file"), plural(r.Lines, "line"), plural(r.Runs, "run"), plural(len(r.Findings), "finding")))
	p.line("key: " + r.KeyID)
	p.line("log: " + r.Log)
	return p.err
}

// incomplete lists the probes of runs whose search for sites reached a bound.
func (r Report) incomplete() (out []string) {
	seen := map[[2]string]bool{}
	for _, x := range r.Rows {
		key := [2]string{x.RunID, x.ProbeID}
		if x.SearchReason == "" || seen[key] {
			continue
		}
		seen[key] = true
		out = append(out, fmt.Sprintf("%s of container %s is %s: %s", clean(x.ProbeID), x.container(), x.ProbeState, clean(x.SearchReason)))
	}
	return out
}

// printer keeps the first error, so that lines can be written one after another.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(s string) {
	if p.err == nil {
		_, p.err = io.WriteString(p.w, s+"\n")
	}
}

func (r Row) container() string {
	id := Short(r.ContainerID)
	switch {
	case r.ContainerName != "" && r.Pod != "":
		return clean(r.Pod + "/" + r.ContainerName + " " + id)
	case r.ContainerName != "":
		return clean(r.ContainerName + " " + id)
	}
	return clean(id)
}

func (r Row) image() string {
	digest := "no digest"
	if hex, ok := strings.CutPrefix(r.ImageDigest, "sha256:"); ok {
		digest = "sha256:" + Short(hex)
	}
	if r.Image == "" {
		return clean(digest)
	}
	return clean(r.Image + " " + digest)
}

func (r Row) site() string {
	var parts []string
	if r.Symbol != "" {
		parts = append(parts, r.Symbol)
	}
	if r.Event != "" {
		parts = append(parts, r.Event)
	}
	if r.Path != "" {
		at := r.Path
		if r.Offset != nil {
			at += fmt.Sprintf("+0x%x", uint64(*r.Offset))
		}
		parts = append(parts, at)
	}
	if len(parts) == 0 {
		return "-"
	}
	return clean(strings.Join(parts, " "))
}

// state carries what qualifies it: a reason, or the gaps.
func (r Row) state() string {
	s := string(r.State)
	if r.Reason != "" {
		s += ": " + string(r.Reason)
	}
	if r.SearchReason != "" {
		s += " (search incomplete)"
	}
	if len(r.Gaps) > 0 {
		names := make([]string, len(r.Gaps))
		for i, g := range r.Gaps {
			names[i] = string(g)
		}
		s += " (gaps: " + strings.Join(names, ", ") + ")"
	}
	return clean(s)
}

// count of an incomplete hit is a lower bound.
func (r Row) count() string {
	switch {
	case r.Count == nil:
		return "-"
	case r.State == evidence.Hit && !r.Complete:
		return fmt.Sprintf(">=%d", *r.Count)
	}
	return strconv.FormatUint(uint64(*r.Count), 10)
}

func (r Row) until() string {
	if !r.Final {
		return second(r.To) + " (not final)"
	}
	return second(r.To)
}

func (g GapRow) text() string {
	s := string(g.Reason) + " (" + g.Scope + ")"
	switch {
	case g.ContainerID != "":
		s += " of container " + Short(g.ContainerID)
	case g.Source != "":
		s += " of " + g.Source
	}
	if g.Path != "" {
		s += " in " + g.Path
	}
	s += ", from " + second(g.From)
	if g.To.IsZero() {
		s += ", still open"
	} else {
		s += " for " + g.To.Std().Sub(g.From.Std()).Round(time.Microsecond).String()
	}
	if g.Count.Unknowable {
		s += ", count unknowable"
	} else {
		s += ", count " + strconv.FormatUint(g.Count.N, 10)
	}
	if g.Detail != "" {
		s += ": " + g.Detail
	}
	return clean(s)
}

// second is a time as a person reads it; -o json has all digits.
func second(t evidence.Time) string { return t.Std().Format("2006-01-02T15:04:05.000Z") }

// Short is an id as a person reads it: its first 12 characters.
func Short(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// Printable shows what is not printable as escapes: a container must not move
// the reader's cursor, nor turn the line around.
func Printable(s string) string {
	for _, r := range s {
		if !unicode.IsPrint(r) {
			q := strconv.QuoteToGraphic(s)
			return q[1 : len(q)-1]
		}
	}
	return s
}

// clean is Printable for a cell of a table: the name of a file may not look
// like further columns, which two spaces divide.
func clean(s string) string { return strings.ReplaceAll(Printable(s), "  ", ` \x20`) }
