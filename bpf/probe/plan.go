package probe

import (
	"errors"
	"fmt"
	"sort"

	"probity/bpf/policy"
	"probity/bpf/symbol"
	"probity/evidence"
	"probity/runtime/image"
)

// MaxProbes bounds the probes of one container, and maxProbeBytes what they
// take up in its coverage line, which lists them all. Those past the bounds are
// not armed, and say so.
const (
	MaxProbes     = 200
	maxProbeBytes = 20 << 10
	probeBytes    = 90 // of one, besides its id and the search's reason
)

// listed says how many of the probes are within the bounds.
func listed(probes []policy.Probe) int {
	bytes := 0
	for i, p := range probes {
		bytes += probeBytes + len(p.ID)
		if i >= MaxProbes || bytes > maxProbeBytes {
			return i
		}
	}
	return len(probes)
}

// MakePlan says for each probe which sites it has in these files. Same input,
// same plan: sites are in the order of the probes, then by path, then in the
// order in which the policy names them.
func MakePlan(probes []policy.Probe, files Files, machine Machine) Plan {
	return planEach(probes, func(pr policy.Probe) ([]Site, Search) {
		switch pr.Type {
		case policy.Uprobe, policy.Uretprobe, policy.USDT:
			return planFiles(pr, files, machine)
		}
		return planKernel(pr), Search{ProbeID: pr.ID, Complete: true}
	})
}

// Refuse is the plan for a container of which nothing can be armed.
func Refuse(probes []policy.Probe, r evidence.NotArmedReason, why string) Plan {
	return planEach(probes, func(pr policy.Probe) ([]Site, Search) {
		s := begin(pr)
		s.Reason, s.Detail = r, why
		return []Site{s}, Search{ProbeID: pr.ID, Why: why}
	})
}

// begin returns what all sites of a probe have.
func begin(pr policy.Probe) Site {
	s := Site{Probe: pr, Set: pr.Set, Requested: evidence.ProbeType(pr.Type)}
	if pr.Set != "" {
		s.Requested = evidence.UnknownProbe // it asks for facts, by whatever the kernel has
	}
	return s
}

// planKernel returns the sites of a probe on the kernel, and of a set: whether
// the kernel has such a place is found out by attaching.
func planKernel(pr policy.Probe) []Site {
	s := begin(pr)
	s.Event = pr.Event
	if pr.Set != "" || pr.Event != "" {
		return []Site{s}
	}
	var sites []Site
	for _, s.Function = range pr.Functions {
		sites = append(sites, s)
	}
	s.Syscall = true
	for _, s.Function = range pr.Syscalls {
		sites = append(sites, s)
	}
	return sites
}

// planEach plans the probes within the bounds, and refuses the others.
func planEach(probes []policy.Probe, plan func(policy.Probe) ([]Site, Search)) Plan {
	var p Plan
	most := listed(probes)
	for i, pr := range probes {
		if i >= most {
			p.Sites = append(p.Sites, tooMany(pr, most))
			continue
		}
		sites, search := plan(pr)
		p.Sites = append(p.Sites, sites...)
		p.Searches = append(p.Searches, search)
	}
	return p
}

func tooMany(pr policy.Probe, most int) Site {
	s := begin(pr)
	s.Reason, s.Detail = evidence.OverBudget, fmt.Sprintf("more than %d probes for one container: its coverage line holds no more", most)
	return s
}

func planFiles(pr policy.Probe, files Files, machine Machine) ([]Site, Search) {
	matches, complete, why := files.Glob(pr.File)
	search := Search{ProbeID: pr.ID, Complete: complete, Why: why}
	base := begin(pr)
	base.Copies = len(matches)
	if len(matches) == 0 {
		none := base
		none.Reason, none.Detail = evidence.FileNotFound, why
		return []Site{none}, search
	}
	var sites []Site
	for _, m := range matches {
		one := base
		one.File = &File{Match: m, Size: m.Size}
		facts, err := files.Inspect(m, symbol.Query{Names: pr.Symbols})
		if err != nil {
			one.Reason, one.Detail = unreadable(err), err.Error()
			if one.Reason == evidence.FileUnreadable || one.Reason == evidence.RemoteFilesystem {
				search.Complete = false
				search.Why = fmt.Sprintf("%s: %v", m.Path, err)
			}
			sites = append(sites, one)
			continue
		}
		one.File.BuildID = facts.ELF.BuildID
		one.File.Digest, one.File.stamp = facts.Digest, facts.stamp
		if !machine.runs(facts.ELF) {
			one.Reason, one.Detail = evidence.ForeignArchitecture, facts.ELF.Machine.String()
			sites = append(sites, one)
			continue
		}
		sites = append(sites, planSymbols(one, pr, facts)...)
		sites = append(sites, planOffsets(one, pr, facts)...)
	}
	return sites, search
}

func planSymbols(one Site, pr policy.Probe, facts Facts) []Site {
	byWanted := map[string][]symbol.Symbol{} // a copy: others read the facts at the same time
	for _, sym := range facts.Symbols {
		byWanted[sym.Wanted] = append(byWanted[sym.Wanted], sym)
	}
	var sites []Site
	for _, name := range pr.Symbols {
		found := byWanted[name]
		s := one
		s.Symbol = name
		if len(found) == 0 {
			s.Reason = evidence.SymbolNotFound
			sites = append(sites, s)
			continue
		}
		sort.Slice(found, func(i, j int) bool { return found[i].Offset < found[j].Offset })
		for _, sym := range found {
			s.Symbol, s.Demangled, s.Wanted = sym.Name, sym.Demangled, sym.Wanted
			s.Kind, s.Inline = sym.Kind, sym.Inline.State
			s.InlinedIn, s.Implements = sym.InlinedIn, sym.Implements
			s.Offset, s.HasOffset = sym.Offset, true
			sites = append(sites, guard(s, facts))
		}
	}
	return sites
}

func planOffsets(one Site, pr policy.Probe, facts Facts) []Site {
	var sites []Site
	for _, off := range pr.Offsets {
		s := one
		s.Offset, s.HasOffset = off.Value, true
		if off.Entry {
			if !facts.ELF.HasEntry {
				s.HasOffset = false
				s.Reason, s.Detail = evidence.UnprobeableInstruction, "e_entry does not lie in an executable segment of the file"
				sites = append(sites, s)
				continue
			}
			s.Offset = facts.ELF.Entry
		}
		sites = append(sites, guard(s, facts))
	}
	return sites
}

// guard refuses sites that must not or cannot be armed.
func guard(s Site, facts Facts) Site {
	switch {
	case facts.ELF.WouldBreak(s.Offset):
		s.Reason, s.Detail = evidence.WouldBreakTarget, "the instruction lies in text that verifies its own hash"
	case !facts.ELF.ExecutableOffset(s.Offset):
		s.Reason, s.Detail = evidence.UnprobeableInstruction, "the offset does not lie in an executable segment of the file"
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
