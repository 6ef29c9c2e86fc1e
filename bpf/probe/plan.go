package probe

import (
	"fmt"

	"probity/bpf/policy"
	"probity/evidence"
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

// maxSites bounds the sites of one plan, those with a reason included: each is a
// line of evidence.
const maxSites = 20000

// maxNameBytes bounds what those lines have of names that the image's author chose:
// without it a file's path and its symbols' names could make each as long as a line
// may be (31 KiB), and a container's lines take up the node's whole spool.
const maxNameBytes = 8 << 20

// MakePlan says for each probe which sites it has in these files. Same input,
// same plan: sites are in the order of the probes, then by path, then in the
// order in which the policy names them.
func MakePlan(probes []policy.Probe, files Files, machine Machine) Plan {
	return planEach(probes, func(pr policy.Probe, most int) ([]Site, Search) {
		search := Search{ProbeID: pr.ID, Complete: true}
		switch pr.Type {
		case policy.Uprobe, policy.Uretprobe, policy.USDT:
			p := planner{pr: pr, files: files, machine: machine, most: most, search: search}
			p.plan()
			return p.sites, p.search
		}
		return planKernel(pr), search
	})
}

// Refuse is the plan for a container of which nothing can be armed.
func Refuse(probes []policy.Probe, r evidence.NotArmedReason, why string) Plan {
	return planEach(probes, func(pr policy.Probe, _ int) ([]Site, Search) {
		s := begin(pr)
		s.Reason, s.Detail = r, why
		return sitesOf([]draft{s}), Search{ProbeID: pr.ID, Why: why}
	})
}

// draft is a site that is being planned.
type draft struct {
	Planned
	Reason evidence.NotArmedReason
	Detail string
}

// sitesOf makes the drafts sites of a container.
func sitesOf(drafts []draft) []Site {
	planned, sites := make([]Planned, len(drafts)), make([]Site, len(drafts))
	for i, d := range drafts {
		planned[i] = d.Planned
		sites[i] = Site{Planned: &planned[i], Reason: d.Reason, Detail: d.Detail}
	}
	return sites
}

// begin returns what all sites of a probe have.
func begin(pr policy.Probe) draft {
	s := draft{Planned: Planned{Probe: &pr, Set: pr.Set, Requested: evidence.ProbeType(pr.Type)}}
	if pr.Set != "" {
		s.Requested = setTypes[pr.Set]
	}
	return s
}

// setTypes are what sets ask for, since a policy does not say it: the best way
// to see each of them, of which the kernel may have another only (docs/sets.md).
var setTypes = map[string]evidence.ProbeType{
	policy.SetExec:      evidence.RawTracepoint,
	policy.SetLibraries: evidence.Fentry,
	policy.SetSyscalls:  evidence.RawTracepoint,
	policy.SetNetwork:   evidence.Fentry,
	policy.SetFiles:     evidence.Fexit,
}

// planKernel returns the sites of a probe on the kernel, and of a set: whether
// the kernel has such a place is found out by attaching.
func planKernel(pr policy.Probe) []Site {
	s := begin(pr)
	s.Event = pr.Event
	if pr.Set != "" || pr.Event != "" {
		return sitesOf([]draft{s})
	}
	var drafts []draft
	for _, s.Function = range pr.Functions {
		drafts = append(drafts, s)
	}
	s.Syscall = true
	for _, s.Function = range pr.Syscalls {
		drafts = append(drafts, s)
	}
	return sitesOf(drafts)
}

// planEach plans the probes within the bounds, and refuses the others.
func planEach(probes []policy.Probe, plan func(pr policy.Probe, most int) ([]Site, Search)) Plan {
	var p Plan
	lines, names := listed(probes), 0
	for i, pr := range probes {
		if i >= lines {
			s := begin(pr)
			s.Reason, s.Detail = evidence.OverBudget, fmt.Sprintf("more than %d probes for one container: its coverage line holds no more", lines)
			p.Sites = append(p.Sites, sitesOf([]draft{s})...)
			continue
		}
		most := max(maxSites-len(p.Sites), 0)
		sites, search := plan(pr, most)
		why := fmt.Sprintf("a container has at most %d sites", maxSites)
		for i := range sites[:min(len(sites), most)] {
			if names += sites[i].NameBytes(); names > maxNameBytes && sites[i].File != nil {
				most, why = i, fmt.Sprintf("the paths and names of a container's sites have at most %d MiB", maxNameBytes>>20)
				break
			}
		}
		if len(sites) > most {
			sites = append(sites[:most:most], over(sites[most], why))
			if search.Complete {
				search.Complete, search.Why = false, why
			}
		}
		p.Sites = append(p.Sites, sites...)
		p.Searches = append(p.Searches, search)
	}
	// It lives as long as the container: without the room that appending made.
	p.Sites = append(make([]Site, 0, len(p.Sites)), p.Sites...)
	return p
}

// over stands for the first site past the bound, and for all behind it.
func over(s Site, why string) Site {
	all := *s.Planned
	all.HasOffset, all.Offset, all.Symbol, all.Marker, all.Function = false, 0, "", "", ""
	all.Demangled, all.InlinedIn, all.InlinedAt, all.Implements = "", "", nil, ""
	s.Planned = &all
	s.Reason, s.Detail = evidence.OverBudget, why+": this one and those of its probe behind it are not armed"
	return s
}

// NameBytes is how much of a site's line is names that the author of its file chose.
func (s *Site) NameBytes() int {
	if s.File == nil {
		return 0
	}
	n := len(s.File.Match.Path) + len(s.Symbol) + len(s.Demangled) + len(s.InlinedIn) + len(s.Implements) + len(s.Marker)
	for _, at := range s.InlinedAt {
		n += len(at.Function)
	}
	return n
}
