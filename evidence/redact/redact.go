// Package redact takes out of lines what the node's policy keeps out of evidence,
// before they are counted as entries, written or signed.
//
// In: lines and entries as evidence/witness makes them, and the rules for their
// container. Out: the same with marks in place of what was taken out, and listed as
// redacted. What a rule is for is found by the text alone; where that cannot be
// decided (a relative path, the rest of a long one, an error's text that may name
// one), the whole text goes: redacting too much is the safe side.
//
// It trusts the policy and the kernel's paths. It is not anonymity: digests of
// files, symbols and ids stay, and who has the node's key for digests can try out
// what a token stands for.
package redact

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"probity/bpf/policy"
	"probity/evidence"
)

// Redactor redacts the lines of one run, or of the node. A nil one leaves all as it
// is. Safe for concurrent use.
type Redactor struct {
	rules []policy.Rule
	paths int    // the first rule that is for paths, or -1
	comms int    // and for names of tasks
	key   []byte // the node's, of tokens that tell values of the node apart
	own   []byte // of tokens that tell values of this run apart; nobody keeps it
	image []gone // the name of the run's own image, where it is to be taken out
}

// gone is something that was taken out, and must not be in the same line's texts.
type gone struct {
	text string
	rule int
}

// New returns a redactor of a run with an image of this name ("" if it is not
// known), or of the node; nil without a rule. key is the node's (see [Key]); it is
// needed if a rule is keyed.
func New(rules []policy.Rule, key []byte, image string) *Redactor {
	if len(rules) == 0 {
		return nil
	}
	r := &Redactor{rules: rules, key: key, own: make([]byte, 32)}
	_, _ = rand.Read(r.own) // never fails (crypto/rand since Go 1.24)
	r.paths = slices.IndexFunc(rules, func(x policy.Rule) bool { return len(x.Paths) > 0 })
	r.comms = slices.IndexFunc(rules, func(x policy.Rule) bool { return x.Comms })
	if i := r.imageRule(image); i >= 0 {
		r.image = []gone{{image, i}}
		name, _, _ := strings.Cut(image, "@")
		if at := strings.LastIndexByte(name, ':'); at > strings.LastIndexByte(name, '/') {
			name = name[:at]
		}
		r.image = append(r.image, gone{name, i})
	}
	return r
}

func (r *Redactor) imageRule(image string) int {
	if image == "" {
		return -1
	}
	return slices.IndexFunc(r.rules, func(x policy.Rule) bool { return x.HasImage(image) })
}

// mark is what stands for a value. identify asks for a token also where the rule
// does not.
func (r *Redactor) mark(rule int, value string, identify bool) string {
	x, key := &r.rules[rule], r.own
	if x.Keyed {
		key = r.key
	} else if !identify {
		return evidence.Mark(x.ID, "")
	}
	h := hmac.New(sha256.New, key)
	h.Write([]byte(x.ID + "\x00" + value))
	return evidence.Mark(x.ID, hex.EncodeToString(h.Sum(nil)[:8]))
}

// list collects what is redacted of one line.
type list struct {
	kind string
	have []evidence.Redaction // of the line when it came
	all  []evidence.Redaction
	gone []gone
}

func (l *list) add(r *Redactor, member string, rules ...int) {
	for _, i := range rules {
		if x := (evidence.Redaction{Member: member, Rule: r.rules[i].ID}); !slices.Contains(l.all, x) {
			l.all = append(l.all, x)
		}
	}
}

// done reports whether the member was redacted before the line came here.
func (l *list) done(member string) bool { return evidence.IsRedacted(l.have, member) }

func (l *list) sorted() []evidence.Redaction {
	if len(l.all) == 0 {
		return l.have
	}
	return evidence.SortRedactions(l.kind, slices.Concat(l.have, l.all))
}

// of says what of a path is known.
type of struct {
	member   string
	most     int  // characters that the member may have
	cut      bool // a part of it is missing
	identify bool // two must not become one
	listed   bool // the member is one of a list: others of it may be redacted
}

// path redacts a path.
func (r *Redactor) path(l *list, s *string, o of) (changed bool) {
	p := *s
	if p == "" || l.done(o.member) {
		return false
	}
	whole := func(rule int) bool {
		*s = r.mark(rule, p, o.identify)
		l.add(r, o.member, rule)
		for name := range strings.SplitSeq(p, "/") {
			l.gone = append(l.gone, gone{name, rule})
		}
		return true
	}
	switch {
	case r.paths < 0 || strings.HasPrefix(p, "memfd:") && !strings.Contains(p, "/") && (o.member == "path" || o.member == "stack.frames.path"):
		// The kernel's word for a file that is in no directory. What a process passed to
		// execve may begin so, too, and lead anywhere.
		if o.listed && evidence.HasMark(p) {
			return whole(max(r.paths, 0))
		}
		return false
	case p[0] != '/' || o.cut:
		return whole(r.paths)
	}
	if strings.ContainsRune(p, utf8.RuneError) {
		// It is not what the name's bytes are, and no pattern was written for it.
		for i := range r.rules {
			if slices.ContainsFunc(r.rules[i].Paths, func(x policy.PathPattern) bool { return x.MayBeIn(p) }) {
				return whole(i)
			}
		}
		if evidence.IsCut(p) {
			return whole(r.paths)
		}
	}
	clean := path.Clean(strings.TrimSuffix(p, " (deleted)"))
	names := strings.Split(clean[1:], "/")
	owner := make([]int, len(names))
	found := -1
	for i := range r.rules {
		for _, pattern := range r.rules[i].Paths {
			from, to, all, ok := pattern.Part(names)
			switch {
			case !ok:
				continue
			case all:
				return whole(i)
			case found < 0:
				found = i
			}
			for k := from; k < to; k++ {
				if owner[k] == 0 {
					owner[k] = i + 1
				}
			}
		}
	}
	switch {
	case found < 0:
		if o.listed && evidence.HasMark(p) {
			return whole(r.paths)
		}
		return false
	case clean != p: // what else is in it is not certain
		return whole(found)
	}
	var b strings.Builder
	var rules []int
	for k := 0; k < len(names); {
		b.WriteByte('/')
		i := owner[k] - 1
		if i < 0 {
			if evidence.HasMark(names[k]) { // it could be taken for one
				return whole(found)
			}
			b.WriteString(names[k])
			k++
			continue
		}
		end := k
		for ; end < len(names) && owner[end] == owner[k]; end++ {
			l.gone = append(l.gone, gone{names[end], i})
		}
		b.WriteString(r.mark(i, strings.Join(names[k:end], "/"), o.identify))
		rules = append(rules, i)
		k = end
	}
	if utf8.RuneCountInString(b.String()) > o.most {
		return whole(found)
	}
	*s = b.String()
	l.add(r, o.member, rules...)
	return true
}

// text redacts a sentence that may have something in it that a rule is for. It goes
// as a whole: where a name in it ends is not certain.
func (r *Redactor) text(l *list, s *string, member string, listed bool) (changed bool) {
	if *s == "" || l.done(member) {
		return false
	}
	rule := r.ruleFor(l, *s)
	if rule < 0 && listed && evidence.HasMark(*s) {
		rule = 0
	}
	if rule < 0 {
		return false
	}
	*s = evidence.Mark(r.rules[rule].ID, "")
	l.add(r, member, rule)
	return true
}

func (r *Redactor) ruleFor(l *list, s string) int {
	for i := range r.rules {
		x := &r.rules[i]
		if len(x.Paths) > 0 && (quotesName(s) || slices.ContainsFunc(x.Paths, func(p policy.PathPattern) bool { return p.MayBeIn(s) })) || (x.AllAddresses || len(x.Addresses) > 0) && hasAddress(x, s) {
			return i
		}
	}
	for _, g := range slices.Concat(r.image, l.gone) {
		if len(g.text) > 1 && strings.Contains(s, g.text) {
			return g.rule
		}
	}
	return -1
}

// quotesName reports whether a text quotes something that is no absolute path, as
// errors quote a name in a directory that they do not name, or as it was given: of
// which path it is a part is not known.
func quotesName(s string) bool {
	for i, quoted := range strings.Split(s, `"`) {
		if i%2 == 1 && !strings.HasPrefix(quoted, "/") {
			return true
		}
	}
	return false
}

// hasAddress reports whether a text has an IP address in it that the rule is for.
func hasAddress(x *policy.Rule, s string) bool {
	for word := range strings.FieldsFuncSeq(s, func(c rune) bool {
		return !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' || c == ':' || c == '.')
	}) {
		word = strings.TrimRight(word, ".")
		host, _, _ := strings.Cut(word, ":") // of ADDRESS:PORT
		for _, w := range []string{word, strings.TrimSuffix(word, ":"), host} {
			if _, err := netip.ParseAddr(w); err == nil && x.Has(w) {
				return true
			}
		}
	}
	return false
}

// comm takes out a task's name, where that is asked for, or where it is the name of
// a file that was taken out.
func (r *Redactor) comm(l *list, s *string, member string) (changed bool) {
	if *s == "" || l.done(member) {
		return false
	}
	rule := r.comms
	if rule < 0 {
		begin := strings.TrimRight(*s, "\uFFFD") // a character that was cut
		for _, g := range l.gone {
			if begin != "" && strings.HasPrefix(g.text, begin) {
				rule = g.rule
				break
			}
		}
	}
	if rule < 0 {
		return false
	}
	*s = ""
	l.add(r, member, rule)
	return true
}

// maxExecPath is how much of a path an exec event has (PATH_LEN less its NUL).
const maxExecPath = 255

// process redacts a process. Others may look at it, so it is copied.
func (r *Redactor) process(l *list, p **evidence.Process, member string) {
	if *p == nil {
		return
	}
	c := **p
	changed := r.path(l, &c.Path, of{member: member + ".path", most: evidence.MaxPath, cut: len(c.Path) >= maxExecPath})
	if r.comm(l, &c.Comm, member+".comm") || changed {
		*p = &c
	}
}

// Process redacts one of a list of processes; the result is of the whole list.
func (r *Redactor) Process(p *evidence.Process) []evidence.Redaction {
	if r == nil {
		return nil
	}
	l := list{kind: evidence.KindObservation}
	r.path(&l, &p.Path, of{member: "processes.path", most: evidence.MaxPath, cut: len(p.Path) >= maxExecPath, listed: true})
	r.comm(&l, &p.Comm, "processes.comm")
	return l.all
}

// Entry is an entry of a set, as far as it can be redacted.
type Entry struct {
	Path, Detail *string
	Process      *evidence.Process
	*evidence.Entry
	// PathCut and ArgumentCut say that a part of the one and the other is missing.
	PathCut, ArgumentCut bool
}

// Entry redacts an entry of a set. Without tokens, entries that read alike become
// one.
func (r *Redactor) Entry(e Entry) Cleared {
	if r == nil {
		return Cleared{done: true}
	}
	l := list{kind: evidence.KindObservation}
	changed := r.path(&l, e.Path, of{member: "path", most: evidence.MaxPath, cut: e.PathCut})
	// Of an argument that is not absolute nobody knows what it is below.
	changed = r.path(&l, &e.Argument, of{member: "entry.argument", most: evidence.MaxPath, cut: e.ArgumentCut}) || changed
	if changed { // the file's number would tell it apart all the same
		if e.Device != "" {
			l.add(r, "entry.device", l.gone[0].rule)
		}
		if e.Inode != 0 {
			l.add(r, "entry.inode", l.gone[0].rule)
		}
		e.Device, e.Inode = "", 0
	}
	r.address(&l, e.Entry)
	r.process(&l, &e.Parent, "entry.parent")
	r.comm(&l, &e.Process.Comm, "process.comm")
	r.path(&l, &e.Process.Path, of{member: "process.path", most: evidence.MaxPath, cut: len(e.Process.Path) >= maxExecPath})
	r.text(&l, e.Detail, "detail", false)
	return Cleared{redacted: l.sorted(), done: true}
}

func (r *Redactor) address(l *list, e *evidence.Entry) {
	if e.Address == "" {
		return
	}
	for i := range r.rules {
		x := &r.rules[i]
		if !x.Has(e.Address) {
			continue
		}
		e.Address = r.mark(i, e.Address, false)
		l.add(r, "entry.address", i)
		if x.Ports && e.Port != 0 {
			e.Port = 0
			l.add(r, "entry.port", i)
		}
		return
	}
	switch {
	case e.Family != "unix":
	case e.Address[0] == '@': // any text, and often the path of what it is for
		for i := range r.rules {
			if slices.ContainsFunc(r.rules[i].Paths, func(p policy.PathPattern) bool { return p.MayBeIn(e.Address) }) {
				e.Address = r.mark(i, e.Address, false)
				l.add(r, "entry.address", i)
				return
			}
		}
	default:
		r.path(l, &e.Address, of{member: "entry.address", most: evidence.MaxSocketPath, cut: len(e.Address) >= evidence.MaxSocketPath-1})
	}
}

// Named completes a gap whose detail is about a file that a process has named, in
// words that may be relative: nobody can tell that from the text, so the name is
// handed over apart, and stands before the detail.
func (r *Redactor) Named(g *evidence.Gap, name string) {
	if r != nil {
		l := list{kind: evidence.KindGap, have: g.Redacted}
		r.path(&l, &name, of{member: "detail", most: maxNamed, cut: len(name) >= maxExecPath, listed: true})
		r.text(&l, &g.Detail, "detail", true)
		g.Redacted = l.sorted()
	}
	g.Detail = name + ": " + g.Detail
}

// maxNamed is how long a name before a detail may become by its marks: both together
// are a text (evidence.MaxText).
const maxNamed = 480

// Line redacts a line. What is shared with other lines is copied. One that is about
// an entry of a set is made by [Cleared.Line]: here it becomes the zero Line, which
// nothing takes.
func (r *Redactor) Line(line evidence.Line) Line {
	if o, ok := line.(*evidence.Observation); ok && o.Entry != nil {
		return Line{}
	}
	if r != nil {
		r.line(line)
	}
	return Line{line}
}

func (r *Redactor) line(line evidence.Line) {
	switch v := line.(type) {
	case *evidence.Coverage:
		l := list{kind: evidence.KindCoverage, have: v.Redacted}
		if i := r.imageRule(v.Image); i >= 0 && !l.done("image") {
			v.Image = r.mark(i, v.Image, false)
			l.add(r, "image", i)
		}
		r.text(&l, &v.ImageDigestReason, "imageDigestReason", false)
		for i := range v.Probes {
			r.text(&l, &v.Probes[i].SearchReason, "probes.searchReason", true)
		}
		v.Redacted = l.sorted()
	case *evidence.Gap:
		l := list{kind: evidence.KindGap, have: v.Redacted}
		r.path(&l, &v.Path, of{member: "path", most: evidence.MaxPath, identify: true})
		r.text(&l, &v.Detail, "detail", false)
		v.Redacted = l.sorted()
	case *evidence.Observation:
		r.observation(v)
	}
}

func (r *Redactor) observation(v *evidence.Observation) {
	l := list{kind: evidence.KindObservation, have: v.Redacted}
	r.text(&l, &v.ImageDigestReason, "imageDigestReason", false)
	if v.Reason != evidence.FileNotFound { // else it is the policy's own glob
		r.path(&l, &v.Path, of{member: "path", most: evidence.MaxPath, identify: true})
	}
	r.process(&l, &v.Process, "process")
	r.processes(&l, v)
	stack := r.stack(&l, v)
	r.text(&l, &v.Detail, "detail", false)
	v.Redacted = l.sorted()
	if stack { // marks may be longer than what they stand for
		evidence.Cut(v)
	}
}

// processes redacts the list of them, unless that was done as it was made.
func (r *Redactor) processes(l *list, v *evidence.Observation) {
	if l.done("processes.path") || l.done("processes.comm") {
		return
	}
	list := slices.Clone(v.Processes)
	for i := range list {
		for _, x := range r.Process(&list[i]) {
			if !slices.Contains(l.all, x) {
				l.all = append(l.all, x)
			}
			v.Processes = list
		}
	}
}

func (r *Redactor) stack(l *list, v *evidence.Observation) (changed bool) {
	if v.Stack == nil || l.done("stack.frames.path") {
		return false
	}
	s := *v.Stack
	s.Frames = slices.Clone(s.Frames)
	for i := range s.Frames {
		changed = r.path(l, &s.Frames[i].Path, of{member: "stack.frames.path", most: evidence.MaxFrameText, listed: true}) || changed
	}
	if changed = r.text(l, &s.Reason, "stack.reason", false) || changed; changed {
		v.Stack = &s
	}
	return changed
}
