package probe

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"probity/bpf/policy"
	"probity/bpf/symbol"
	"probity/evidence"
	"probity/runtime/image"
)

// planner plans one probe on files.
type planner struct {
	pr      policy.Probe
	files   Files
	machine Machine
	most    int // sites
	sites   []Site
	drafts  []draft // of the file that is being planned
	search  Search
}

func (p *planner) incomplete(format string, args ...any) {
	if p.search.Complete {
		p.search.Complete, p.search.Why = false, fmt.Sprintf(format, args...)
	}
}

// full reports whether there is one more site than the bound, which will say so.
func (p *planner) full() bool { return len(p.sites)+len(p.drafts) > p.most }

func (p *planner) add(s draft) {
	if !p.full() {
		p.drafts = append(p.drafts, s)
	}
}

// take makes the drafts sites.
func (p *planner) take() {
	p.sites = append(p.sites, sitesOf(p.drafts)...)
	clear(p.drafts)
	p.drafts = p.drafts[:0]
}

func (p *planner) plan() {
	matches, none := p.targets()
	base := begin(p.pr)
	base.Copies = len(matches)
	if len(matches) == 0 {
		base.Reason, base.Detail = evidence.FileNotFound, cmp.Or(p.search.Why, none)
		p.add(base)
		p.take()
		return
	}
	q := p.query()
	for _, m := range matches {
		if p.full() {
			return
		}
		one := base
		one.File = &File{Match: m, Size: m.Size}
		facts, err := p.files.Inspect(m, q)
		if err != nil {
			p.unreadable(one, facts, err)
			p.take()
			continue
		}
		p.file(one, facts)
	}
}

// file adds the sites of one file. If a container has the same ones, it is
// theirs that are used.
func (p *planner) file(one draft, facts Facts) {
	known := facts.plans.find(p, one)
	if known == nil {
		search := p.search
		p.search = Search{Complete: true}
		one.File.BuildID = facts.ELF.BuildID
		one.File.Digest, one.File.DigestBy, one.File.stamp, one.File.unsteady = facts.Digest, facts.DigestBy, facts.stamp, facts.unsteady
		if p.machine.runs(facts.ELF) {
			p.functions(one, facts)
			p.offsets(one, facts)
			p.markers(one, facts)
		} else {
			one.Reason, one.Detail = evidence.ForeignArchitecture, facts.ELF.Machine.String()
			p.add(one)
		}
		known = &filePlan{probe: one.Probe, machine: p.machine, copies: one.Copies, match: one.File.Match, why: p.search.Why, whole: !p.full()}
		p.search = search
		known.sites = sitesOf(p.drafts)
		clear(p.drafts)
		p.drafts = p.drafts[:0]
		facts.plans.put(known)
	}
	if known.why != "" {
		p.incomplete("%s", known.why)
	}
	p.sites = append(p.sites, known.sites[:min(len(known.sites), p.most+1-len(p.sites))]...)
}

// targets finds the probe's files, or says what there is none of.
func (p *planner) targets() (matches []image.Match, none string) {
	var complete bool
	var why string
	find, ok := p.files.(Finder)
	switch pr := p.pr; {
	case pr.File != "":
		matches, complete, why = p.files.Glob(pr.File)
		none = "no file of the container matches"
	case !ok:
		why = "files are found by their paths only here"
	case pr.Library != "":
		matches, complete, why = find.Objects(bySoname(pr.Library))
		none = "no file of the container has the soname " + pr.Library
	case pr.BuildID != "":
		matches, complete, why = find.Objects(byBuildID(pr.BuildID))
		none = "no file of the container has the build-id " + pr.BuildID
	default:
		matches, complete, why, none = program(find, pr.Program)
	}
	if !complete {
		p.incomplete("%s", why)
	}
	return matches, none
}

func (p *planner) query() symbol.Query {
	q := symbol.Query{Names: p.pr.Symbols, Globs: p.pr.SymbolGlobs, Regexps: p.pr.SymbolRegexps, Markers: p.pr.Markers}
	for _, o := range p.pr.Offsets {
		if !o.Entry {
			q.Offsets = append(q.Offsets, o.Value)
		}
	}
	q.Inlined = len(q.Names)+len(q.Globs)+len(q.Regexps) > 0
	q.Returns = q.Inlined && (p.pr.Type == policy.Uretprobe || p.pr.Duration)
	return q
}

// unreadable adds what stands for a file that is no ELF file of this machine's.
func (p *planner) unreadable(one draft, facts Facts, err error) {
	one.Reason, one.Detail = unreadable(err), err.Error()
	if errors.Is(err, symbol.ErrNotELF) {
		if detail := managedFile(one.File.Match.Path, facts.Head); detail != "" {
			one.Reason, one.Detail = evidence.ManagedCode, detail
		}
	}
	if one.Reason == evidence.FileUnreadable || one.Reason == evidence.RemoteFilesystem {
		p.incomplete("%s: %v", one.File.Match.Path, err)
	}
	p.add(one)
}

// functions adds the sites of the functions that the policy names. Names that
// it spells out have a site each, also where two of them are one function; what
// a pattern matches has one for each place.
func (p *planner) functions(one draft, facts Facts) {
	if u := facts.ELF.Unjudged.String(); u != "" && len(p.pr.Symbols)+len(p.pr.SymbolGlobs)+len(p.pr.SymbolRegexps) > 0 {
		p.incomplete("%s: %s", one.File.Match.Path, u)
	}
	found := map[string][]symbol.Symbol{} // a copy: others read the facts at the same time
	for _, sym := range facts.Symbols {
		found[sym.Wanted] = append(found[sym.Wanted], sym)
	}
	known := map[uint64]bool{}
	for i, item := range slices.Concat(p.pr.Symbols, p.pr.SymbolGlobs, p.pr.SymbolRegexps) {
		spelled := i < len(p.pr.Symbols)
		syms := found[item]
		if len(syms) == 0 {
			p.missing(one, item)
			continue
		}
		slices.SortStableFunc(syms, func(a, b symbol.Symbol) int { return cmp.Compare(a.Offset, b.Offset) })
		for _, sym := range syms {
			if sym.Doubt != "" {
				p.incomplete("%s of %s: %s", item, one.File.Match.Path, sym.Doubt)
			}
			if !spelled && known[sym.Offset] {
				continue
			}
			known[sym.Offset] = true
			p.function(one, sym, facts)
		}
	}
}

func (p *planner) missing(one draft, item string) {
	one.Symbol, one.Wanted, one.Reason = item, item, evidence.SymbolNotFound
	if l := languageOf(path.Base(one.File.Match.Path)); l != nil {
		one.Detail = l.detail(one.File.Match.Path)
		if p.pr.Program != "" {
			one.Reason = evidence.ManagedCode
		}
	}
	p.add(one)
}

// function adds the sites of one function at one place.
func (p *planner) function(s draft, sym symbol.Symbol, facts Facts) {
	s.Symbol, s.Demangled, s.Wanted = sym.Name, sym.Demangled, sym.Wanted
	s.Kind, s.Inline, s.InlinedAt = sym.Kind, sym.Inline.State, sym.Inline.Instances
	s.InlinedIn, s.Implements = sym.InlinedIn, sym.Implements
	s.Offset, s.HasOffset = sym.Offset, true

	if sym.Kind == symbol.KindIFunc && sym.Implements == "" {
		// It runs once, when the function is bound: its hit would be taken for one
		// of the function.
		s.Reason, s.Detail = evidence.UnprobeableInstruction, "this is a resolver, which chooses the function's code when it is bound; what it chooses from is not known: "+sym.Doubt
		p.add(s)
		return
	}
	inlined := sym.Kind == symbol.KindInlined
	breaks := p.machine.noUretprobe
	if facts.ELF.Go {
		breaks = "Go moves its stacks, and a return probe of the kernel leaves an address on them"
	}
	if p.pr.Type != policy.Uretprobe {
		switch {
		case !p.pr.Duration:
		case inlined:
			s.Detail = "no duration: it was inlined, and nothing returns from it"
		case sym.ReturnsErr == nil && len(sym.Returns) > 0: // a program does not notice
			s.Duration, s.Returns, s.Go = true, sym.Returns, facts.ELF.Go
		case breaks == "":
			s.Duration = true
		case sym.ReturnsErr == nil:
			s.Detail = "no duration: it has no return instruction"
		default:
			s.Detail = fmt.Sprintf("no duration: %s; its return instructions are not known: %v", breaks, sym.ReturnsErr)
		}
		p.add(guard(s, facts))
		return
	}
	switch {
	case inlined:
		s.Reason, s.Detail = evidence.UnprobeableInstruction, "it was inlined in "+sym.InlinedIn+", and nothing returns from it"
	case breaks == "":
		s = guard(s, facts)
	case sym.ReturnsErr != nil:
		s.Reason, s.Detail = evidence.WouldBreakTarget, fmt.Sprintf("%s; its return instructions are not known: %v", breaks, sym.ReturnsErr)
	case len(sym.Returns) == 0:
		s.Reason, s.Detail = evidence.UnprobeableInstruction, "it has no return instruction"
	default:
		s.Return = true
		for _, s.Offset = range sym.Returns {
			p.add(guard(s, facts))
		}
		return
	}
	p.add(s)
}

func (p *planner) offsets(one draft, facts Facts) {
	for _, off := range p.pr.Offsets {
		s := one
		s.Offset, s.HasOffset = off.Value, true
		if off.Entry {
			if !facts.ELF.HasEntry {
				s.HasOffset = false
				s.Reason, s.Detail = evidence.UnprobeableInstruction, "e_entry does not lie in an executable segment of the file"
				p.add(s)
				continue
			}
			s.Offset = facts.ELF.Entry
		}
		p.add(guard(s, facts))
	}
}

// markers adds the sites of USDT markers: one for each place that has the
// marker, compilers copy them when they inline.
func (p *planner) markers(one draft, facts Facts) {
	known := map[uint64]bool{}
	for _, item := range p.pr.Markers {
		any := false
		for _, m := range facts.ELF.Markers {
			if !matchesMarker(item, m) {
				continue
			}
			any = true
			if known[m.Offset] {
				continue
			}
			known[m.Offset] = true
			s := one
			s.Marker, s.Wanted, s.Semaphore = m.Provider+":"+m.Name, item, m.Semaphore
			s.Offset, s.HasOffset = m.Offset, true
			p.add(guard(s, facts))
		}
		if !any {
			p.missing(one, item)
		}
	}
}

// matchesMarker matches "provider:name", of which the name may be a glob.
func matchesMarker(item string, m symbol.Marker) bool {
	provider, name, _ := strings.Cut(item, ":")
	ok, err := path.Match(name, m.Name)
	return err == nil && ok && provider == m.Provider
}

// guard refuses sites that must not or cannot be armed.
func guard(s draft, facts Facts) draft {
	switch {
	case facts.ELF.WouldBreak(s.Offset):
		s.Reason, s.Detail = evidence.WouldBreakTarget, "the instruction lies in text that verifies its own hash"
	case !facts.ELF.ExecutableOffset(s.Offset):
		s.Reason, s.Detail = evidence.UnprobeableInstruction, "the offset does not lie in an executable segment of the file"
	case facts.ELF.Misplaced[s.Offset] != "":
		s.Reason, s.Detail = evidence.UnprobeableInstruction, facts.ELF.Misplaced[s.Offset]
	}
	return s
}

// unreadable maps what went wrong with a file to the closed list.
func unreadable(err error) evidence.NotArmedReason {
	switch {
	case errors.Is(err, image.ErrRemote):
		return evidence.RemoteFilesystem
	case errors.Is(err, symbol.ErrForeign):
		return evidence.ForeignArchitecture
	}
	return evidence.FileUnreadable
}
