package verify

import (
	"fmt"
	"io"
	"slices"
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
	r.showMarks()
	node := func(string, string) string { return "" } // several nodes are told apart
	if r.severalNodes() {
		node = func(name, then string) string { return clean(name) + then }
	}
	if len(r.Rows) > 0 {
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		t := &printer{w: tw}
		t.line(node("NODE", "\t") + "CONTAINER\tIMAGE\tPROBE\tSITE\tTYPE\tSTATE\tCOUNT\tCONF\tFROM\tTO")
		for _, x := range r.Rows {
			t.line(node(x.Node, "\t") + strings.Join([]string{
				x.container(), x.image(), clean(x.ProbeID), x.site(), x.probeType(), x.state(), x.count(),
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
	r.details(p)
	if incomplete := r.incomplete(); len(incomplete) > 0 {
		p.line("Probes for which not all files were searched: what was not searched may have been executed:")
		for _, s := range incomplete {
			p.line("  " + s)
		}
		p.line("")
	}
	for _, of := range []struct {
		head   string
		clocks bool
	}{{"Gaps, in which nothing is claimed:", false}, {"What the clocks of the node did. It takes nothing from what is claimed:", true}} {
		gaps := slices.DeleteFunc(slices.Clone(r.Gaps), func(g GapRow) bool { return g.ofClock() != of.clocks })
		if len(gaps) == 0 {
			continue
		}
		p.line(of.head)
		for _, g := range gaps {
			p.line("  " + node(g.Node, ": ") + g.text())
		}
		p.line("")
	}
	r.redacted(p)
	if len(r.Holes) > 0 {
		p.line("Chunks that are not here (delivered and removed, skipped by an agent that was killed, or deleted):")
		for _, h := range r.Holes {
			p.line(fmt.Sprintf("  sequence %d to %d of instance %s", h.From, h.To, h.Instance))
		}
		p.line("")
	}
	for _, image := range r.Images {
		if !slices.ContainsFunc(r.Rows, func(x Row) bool { return x.ImageDigest == image || x.Image == image }) {
			p.line("No container of the image " + clean(image) + " is in this evidence.")
			p.line("")
		}
	}
	if len(r.Findings) > 0 {
		if r.onlyIncomplete() {
			p.line("FINDINGS: this evidence is sound, and it is not complete")
		} else {
			p.line("FINDINGS: this evidence is not sound")
		}
		for _, f := range r.Findings {
			p.line("  " + clean(f.String()))
		}
		p.line("")
	}
	verdict := "sound"
	switch {
	case r.onlyIncomplete():
		verdict = "NOT COMPLETE"
	case !r.Sound():
		verdict = "NOT SOUND"
	}
	p.line(fmt.Sprintf("%s: %s of %s, %s of %s, %s", verdict,
		plural(r.Chunks, "sound chunk"), plural(r.Files, "file"), plural(r.Lines, "line"), plural(r.Runs, "run"), plural(len(r.Findings), "finding")))
	if r.KeyID != "" {
		p.line("key: " + r.KeyID)
	}
	for _, f := range r.Followed {
		p.line(fmt.Sprintf("  and %s, which follows %s since %s", f.KeyID, f.After, second(f.Since)))
	}
	r.logs(p)
	return p.err
}

// logs says what the logs are worth, and how far they reach.
func (r Report) logs(p *printer) {
	if !r.Since.IsZero() {
		p.line("since: " + second(r.Since) + "; what ended before is checked and not listed")
	}
	p.line("log: " + r.Log)
	for _, l := range r.Logs {
		p.line(fmt.Sprintf("  %s: %s up to %s, %s, %s", clean(l.Origin), leaves(l.Leaves), second(l.Last), plural(l.Chunks, "chunk"), plural(l.Heartbeats, "heartbeat")))
		if l.Removed > 0 {
			p.line(fmt.Sprintf("    %s removed by the node itself, which signed that it did", plural(l.Removed, "chunk")))
		}
		for _, w := range l.Witnessed {
			p.line(fmt.Sprintf("    witnessed by %s at %s, up to %s", clean(w.Witness), second(w.At), leaves(w.Leaves)))
		}
		if l.Unchecked > 0 {
			p.line(fmt.Sprintf("    %s stand over chunks that are not here any more", plural(l.Unchecked, "heartbeat")))
		}
		if l.Begins != "" {
			p.line("    it is not the node's first log: " + clean(l.Begins))
		}
		if l.After != nil {
			p.line(fmt.Sprintf("    before it there was %s with %s", clean(l.After.Origin), leaves(uint64(l.After.Size))))
		}
		for _, at := range l.Unclean {
			p.line(fmt.Sprintf("    the agent that began at %s followed one that did not end in order", second(at)))
		}
	}
}

func leaves(n uint64) string {
	if n == 1 {
		return "1 leaf"
	}
	return strconv.FormatUint(n, 10) + " leaves"
}

func (r Report) severalNodes() bool {
	nodes := map[string]bool{}
	for i := range r.Rows {
		nodes[r.Rows[i].Node] = true
	}
	for i := range r.Gaps {
		nodes[r.Gaps[i].Node] = true
	}
	return len(nodes) > 1
}

// incomplete lists the probes of runs whose search for sites reached a bound.
func (r Report) incomplete() (out []string) {
	type probe struct {
		run ownID
		id  string
	}
	seen := map[probe]bool{}
	for _, x := range r.Rows {
		key := probe{x.run, x.ProbeID}
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

// site says what the row is about.
func (r Row) site() string {
	switch {
	case r.Set != "" && r.Entry == nil:
		return clean(r.setItself())
	case r.Set != "":
		return clean(r.entry())
	case r.Function != "":
		return clean("kernel function " + r.Function)
	}
	var parts []string
	if name := r.name(); name != "" {
		switch {
		case r.SymbolKind == "inlined" && r.InlinedIn != "":
			name += " inlined in " + r.InlinedIn
		case r.SymbolKind == "inlined":
			name += " inlined"
		case r.Requested == evidence.Uretprobe && r.ProbeType == evidence.Uprobe && r.State != evidence.NotArmed:
			name = "return of " + name
		case r.Implements != "":
			name += " (an implementation of " + r.Implements + ")"
		}
		parts = append(parts, name)
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

// name is the symbol as a person reads it.
func (r Row) name() string {
	if r.Demangled != "" {
		return r.Demangled
	}
	return r.Symbol
}

func (r Row) setItself() string {
	s := "all of " + r.Set
	switch {
	case r.Set == evidence.SetSyscalls && r.Count != nil:
		return "all of system calls: " + plural(int(*r.Count), "number")
	case r.Entries == 1:
		return s + ": 1 entry"
	case r.Entries > 1:
		return fmt.Sprintf("%s: %d entries", s, r.Entries)
	}
	return s
}

func (r Row) entry() string {
	e := r.Entry
	switch r.Set {
	case evidence.SetNetwork:
		to := e.Address
		switch {
		case e.Port != 0 && r.Entry.Family == "ipv6":
			to = fmt.Sprintf("[%s]:%d", to, e.Port)
		case e.Port != 0:
			to = fmt.Sprintf("%s:%d", to, e.Port)
		}
		return strings.TrimSpace(fmt.Sprintf("%s %s %s", e.Operation, e.Protocol, to))
	case evidence.SetFiles:
		return e.Access + " " + r.Path
	case evidence.SetLibraries:
		return "map " + r.Path + " (" + e.Mapped + ")"
	case evidence.SetExec:
		s := "exec " + r.Path
		if e.Argument != "" {
			s += " as " + e.Argument
		}
		if e.Parent != nil {
			s += " by " + process(e.Parent)
		}
		return s
	}
	return r.Set + " " + r.Path
}

// process is a process as a person reads it.
func process(p *evidence.Process) string {
	s := fmt.Sprintf("%s[%d]", p.Comm, p.Pid)
	if p.Session == evidence.SessionExec {
		s += " of an exec session"
	}
	return s
}

// probeType says what was used, and what had been asked for if it is not that.
func (r Row) probeType() string {
	if r.Requested == r.ProbeType || r.Requested == "" || r.Requested == evidence.UnknownProbe {
		return clean(string(r.ProbeType))
	}
	return clean(string(r.ProbeType) + " (for " + string(r.Requested) + ")")
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
	return clean(s + named("gaps", r.Gaps) + named("in this time", r.NodeGaps))
}

func named(what string, reasons []evidence.GapReason) string {
	if len(reasons) == 0 {
		return ""
	}
	names := make([]string, len(reasons))
	for i, g := range reasons {
		names[i] = string(g)
	}
	return " (" + what + ": " + strings.Join(names, ", ") + ")"
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
	if g.ProbeID != "" {
		s += ", probe " + g.ProbeID
	}
	if g.Symbol != "" {
		s += ", " + g.Symbol
	}
	if g.ProbeType != "" {
		s += ", sites of type " + string(g.ProbeType)
	}
	if g.Path != "" {
		s += " in " + g.Path
		if g.Offset != nil {
			s += fmt.Sprintf("+0x%x", uint64(*g.Offset))
		}
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
