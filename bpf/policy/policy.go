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
	"path"
	"strings"
	"time"

	"github.com/bmatcuk/doublestar/v4"

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
	// FailPolicy is FailOpen or FailClosed (FailOpen): what its probes require that
	// do not say so themselves, nothing or to be armed.
	FailPolicy string
	Probes     []Probe
	Redact     []Rule // what is kept out of the evidence of these containers
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
	Uprobe        = "uprobe"
	Uretprobe     = "uretprobe"
	USDT          = "usdt"
	Kprobe        = "kprobe"
	Kretprobe     = "kretprobe"
	Fentry        = "fentry"
	Fexit         = "fexit"
	Tracepoint    = "tracepoint"
	RawTracepoint = "rawTracepoint"
)

// Types lists them all: those on files of the container first.
var Types = []string{Uprobe, Uretprobe, USDT, Kprobe, Kretprobe, Fentry, Fexit, Tracepoint, RawTracepoint}

// The sets that can be asked for.
const (
	SetExec      = "exec"
	SetLibraries = "libraries"
	SetSyscalls  = "syscalls"
	SetNetwork   = "network"
	SetFiles     = "files"
)

// Sets lists them all.
var Sets = []string{SetExec, SetLibraries, SetSyscalls, SetNetwork, SetFiles}

// ProcessExec is the event of every execve(2) that succeeded.
const ProcessExec = "sched:sched_process_exec"

// Entrypoint as a Program is the one that the container starts.
const Entrypoint = "entrypoint"

// Probe is one thing to watch. ID is unique in a Set. Either Type or Set is
// given; what may be given beside it depends on it.
type Probe struct {
	ID   string
	Type string // one of Types, or "" for a set
	Set  string // one of Sets, or ""

	// The target of a uprobe, uretprobe or usdt: exactly one of these.
	File    string // an absolute doublestar glob inside the container
	Library string // a glob over DT_SONAME: every file of the container that bears it
	BuildID string // a GNU build-id in hex: every file of the container that has it
	Program string // a name that is looked up in the container's $PATH, or Entrypoint

	// What in the target: of a uprobe and uretprobe. At least one of them, in
	// any of these ways. Names match raw or demangled, without a version.
	Symbols       []string
	SymbolGlobs   []string
	SymbolRegexps []string // RE2, matches anywhere in the name
	Offsets       []Offset // of a uprobe only
	// Of a usdt: "provider:name", of which name may be a glob.
	Markers []string

	// Of kprobe, kretprobe, fentry and fexit: at least one of them.
	Functions []string // of the kernel
	Syscalls  []string // by name; the kernel's function is found for the machine

	// Of a tracepoint "group:name", of a rawTracepoint "name".
	Event string

	// Options.
	Duration   bool          // of a uprobe, kprobe or fentry: pair entry with return
	Stack      bool          // the user stack of the first hit
	StopAfter  uint64        // stand down after so many hits; 0: never
	MaxRate    uint64        // stand down past so many hits per second; 0: the engine's bound
	RearmAfter time.Duration // arm again so long after standing down; 0: not
	Requires   string        // one of Requirements, with "" as RequireNothing; see Required
	Quota      uint64        // of a set but syscalls: entries that a container may have; 0: the set's own bound
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

// OfFiles reports whether the probe is for files, and not for the kernel.
func (p Probe) OfFiles() bool { return p.File+p.Library+p.BuildID+p.Program != "" }

// MayBe reports whether the file of that path may be one that the probe is for.
// It errs by saying yes: a symlink on the way gives a file other paths, but
// seldom another name, and for a target that is not named by its path any file
// may be it.
func (p Probe) MayBe(file string) bool {
	switch {
	case p.Library != "" || p.BuildID != "" || p.Program != "":
		return true
	case p.File == "":
		return false
	case strings.ContainsAny(p.File, "{["): // which may hold a '/'
		return true
	}
	ok, err := doublestar.Match(path.Base(p.File), path.Base(file))
	return err != nil || ok // an error: the policy was not made by Parse
}
