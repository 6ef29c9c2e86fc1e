// Package policy reads what an operator wants probed, and where.
//
// In: YAML files, from the directory of policies or from the command line. Out:
// a [Set] of policies whose every field has been checked, or [Diagnostics] that
// name each problem with its file, line and column. The package knows nothing
// of eBPF and opens no file but those that [Load] is given.
//
// The author of a policy is trusted, mistakes are expected: what is unknown,
// empty, written twice or of another type than it should be is an error and
// never a guess, so that a policy that loads means what it says. Sizes are
// bounded all the same, YAML's anchors, aliases, tags and merge keys are not
// taken, and a pattern that a match could take for ever on is refused.
//
// What this is not: a policy does not say that a container complies with
// anything, and selecting by names, labels or annotations is no security
// boundary, since whoever starts a container chooses them.
package policy

import (
	"probity/runtime/container"
)

// Set is all policies of a node.
type Set struct {
	Policies []Policy // in the order of their files' names
	// Digest is "sha256:" and the hex digest over, for each file in the
	// order of names: its name, NUL, its size in decimal, NUL, its bytes.
	Digest string
}

// Policy is one file.
type Policy struct {
	Name   string
	File   string // as the file was named to the parser
	Select Selector
	Probes []Probe
}

// Selector says which containers a policy is for. All that is given must
// match; the zero value matches every container.
type Selector struct {
	Runtimes    []container.Runtime // any of them
	Namespaces  []string            // globs over the pod's namespace, any of them
	PodLabels   map[string]string   // all of them, values exactly
	Images      []string            // globs over the image's name, any of them
	Containers  []string            // globs over the container's name, any of them
	Annotations map[string]string   // all of them, values exactly
}

// The probe types that can be asked for.
const (
	Uprobe     = "uprobe"
	Tracepoint = "tracepoint"
)

// ProcessExec is the event of the only tracepoint that can be asked for.
const ProcessExec = "sched:sched_process_exec"

// Probe is one thing to watch. ID is unique in a Set.
type Probe struct {
	ID   string
	Type string // Uprobe or Tracepoint

	// Of a uprobe: File is an absolute doublestar glob inside the container,
	// and there is at least one symbol or offset.
	File    string
	Symbols []string // without a version
	Offsets []Offset

	// Of a tracepoint: the event as the kernel names it, with its group.
	Event string
}

// Offset is a place in a file.
type Offset struct {
	Entry bool   // the ELF's e_entry; Value is 0
	Value uint64 // a file offset
}

// Select returns the probes for a container: those of every policy that
// selects it, in the order of the set.
func (s *Set) Select(id container.Identity) []Probe {
	var probes []Probe
	for _, p := range s.Policies {
		if p.Select.Match(id) {
			probes = append(probes, p.Probes...)
		}
	}
	return probes
}
