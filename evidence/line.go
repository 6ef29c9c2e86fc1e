package evidence

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"
)

// The versions of the format that this package reads, and the one that it writes.
// A line of one version is one of the next without the members that came with that
// (see FormatOf).
const (
	Format1 = "probity-chunk/1"
	Format2 = "probity-chunk/2"
	Format3 = "probity-chunk/3"
	Format  = Format3
)

// Formats lists the versions that are read.
var Formats = []string{Format1, Format2, Format3}

// Sizes that readers may rely on (FORMAT.md, "Chunk").
const (
	MinHeaderBytes = 1024      // a header line, its newline included, has at least these
	HeaderFacts    = 1000      // within these bytes of the header stands everything but padding
	MaxLineBytes   = 31 << 10  // every line, the envelope included, is shorter
	MaxChunkBytes  = 8 << 20   // a chunk closes before it grows past this
	MaxChunkRuns   = 32        // runs in one chunk
	MaxWaitNs      = 500 * 1e6 // a chunk closes this long after its first waiting line
)

// The kinds of line.
const (
	KindHeader      = "header"
	KindCoverage    = "coverage"
	KindObservation = "observation"
	KindGap         = "gap"
)

// Header is the first line of a chunk.
type Header struct {
	Kind   string `json:"kind"`
	Chunk  string `json:"chunk"` // SEQ-INSTANCE
	Format string `json:"format"`
	Node   string `json:"node"`
	BootID string `json:"bootId"`
	Seq    Uint64 `json:"seq"`
	KeyID  string `json:"keyId"`
	Clock  Clock  `json:"clock"`
	Agent  string `json:"agent"` // "probity VERSION"
	// Log and Leaf say where the chunk is in the node's log: both, or neither.
	Log     string  `json:"log,omitempty"`  // the log's origin
	Leaf    *Uint64 `json:"leaf,omitempty"` // the index of the chunk's leaf
	Padding string  `json:"padding"`
}

// Pod is the pod of a container, in a coverage line.
type Pod struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	UID       string `json:"uid"`
}

// Losses are the loss counters of one run since it was armed.
type Losses struct {
	RingFull     Loss   `json:"ringFull"`
	KernelMissed Loss   `json:"kernelMissed"`
	Reason       string `json:"reason,omitempty"` // why a counter is unknowable
	// ByType tells the probe types apart where the kernel does. KernelMissed is
	// their sum.
	ByType []TypeLoss `json:"byType,omitempty"`
}

// TypeLoss is what the kernel missed of one probe type.
type TypeLoss struct {
	ProbeType    ProbeType `json:"probeType"`
	KernelMissed Loss      `json:"kernelMissed"`
}

// ProbeFold is the state of one probe of a run, folded over its sites.
type ProbeFold struct {
	ProbeID        string `json:"probeId"`
	State          State  `json:"state"` // inside a list: only observation lines have a top-level state
	Sites          int    `json:"sites"`
	Entries        Uint64 `json:"entries,omitempty"` // distinct entries of a set
	SearchComplete bool   `json:"searchComplete"`
	SearchReason   string `json:"searchReason,omitempty"` // why the search was not complete
}

// Coverage is the line about a run as a whole: who it is, the window, and what
// was lost.
type Coverage struct {
	Kind              string `json:"kind"`
	RunID             string `json:"runId"`
	ContainerID       string `json:"containerId"`
	ContainerName     string `json:"containerName,omitempty"`
	Runtime           string `json:"runtime"`
	Pod               *Pod   `json:"pod,omitempty"`
	Image             string `json:"image,omitempty"`
	ImageDigest       string `json:"imageDigest,omitempty"`
	ImageIndexDigest  string `json:"imageIndexDigest,omitempty"`
	ImageConfigDigest string `json:"imageConfigDigest,omitempty"`
	ImageDigestReason string `json:"imageDigestReason,omitempty"`
	BootID            string `json:"bootId"`
	CgroupID          Uint64 `json:"cgroupId"`
	CgroupPath        string `json:"cgroupPath,omitempty"`
	Attribution       string `json:"attribution"`        // how events are attributed: "cgroup"
	Source            string `json:"source"`             // who announced the run
	FirstExec         Time   `json:"firstExec,omitzero"` // the container's first execve, if seen
	Started           Time   `json:"started,omitzero"`   // when the source announced the start
	Ended             Time   `json:"ended,omitzero"`     // when the cgroup was found empty
	From              Time   `json:"from"`               // the window of all sites without one of their own
	To                Time   `json:"to"`
	Final             bool   `json:"final"`
	Policies          string `json:"policies,omitempty"` // sha256 of the policy set in force
	// FailPolicyEnforced is there if a policy requires probes of the container: whether
	// it could start only with them. Refused says why it did not.
	FailPolicyEnforced *bool       `json:"failPolicyEnforced,omitempty"`
	Refused            string      `json:"refused,omitempty"`
	Losses             Losses      `json:"losses"`
	Probes             []ProbeFold `json:"probes"`
	GapReasons         []GapReason `json:"gapReasons,omitempty"` // open or closed gaps of this run, each once
	Redacted           []Redaction `json:"redacted,omitempty"`
}

// Process is the process that an event was seen in.
type Process struct {
	Pid     int    `json:"pid"`               // on the host
	Comm    string `json:"comm,omitempty"`    // 15 bytes at most, as the kernel has it
	Path    string `json:"path,omitempty"`    // of the executable, as passed to execve
	Session string `json:"session,omitempty"` // SessionExec, or "" for the container's own
}

// SessionExec marks a process that somebody put into the running container
// (podman exec, kubectl exec), and what came of it.
const SessionExec = "exec"

// Inputs are what a confidence was computed from (evidence/score).
type Inputs struct {
	ProbeType   string `json:"probeType"`
	Attribution string `json:"attribution"`
	Symbol      string `json:"symbol"`
	Losses      string `json:"losses"`
}

// Confidence is a number in [0,1] and what it was made of.
type Confidence struct {
	Value   float64 `json:"value"`
	Version string  `json:"version"`
	Inputs  Inputs  `json:"inputs"`
}

// SiteGap is one reason's gaps within a site's window.
type SiteGap struct {
	Reason     GapReason `json:"reason"`
	From       Time      `json:"from"`        // of the first
	To         Time      `json:"to,omitzero"` // of the last; absent while open
	DurationNs Uint64    `json:"durationNs"`  // of all together, as of the line's to
	Count      Loss      `json:"count"`       // how many gaps, or events where the reason counts events
}

// Observation is the state of one site, or of one probe without a site, since
// the run's start, as of To. The latest line supersedes earlier ones.
type Observation struct {
	Kind               string         `json:"kind"`
	State              State          `json:"state"`
	ProbeType          ProbeType      `json:"probeType"` // what the kernel really used
	RunID              string         `json:"runId"`
	ContainerID        string         `json:"containerId"`
	Runtime            string         `json:"runtime"`
	ImageDigest        string         `json:"imageDigest,omitempty"`
	ImageDigestReason  string         `json:"imageDigestReason,omitempty"`
	ProbeID            string         `json:"probeId"`
	RequestedProbeType ProbeType      `json:"requestedProbeType"`
	Symbol             string         `json:"symbol,omitempty"`
	Offset             *Uint64        `json:"offset,omitempty"` // in the file, bytes
	Path               string         `json:"path,omitempty"`   // in the container; the glob for fileNotFound
	FileDigest         string         `json:"fileDigest,omitempty"`
	BuildID            string         `json:"buildId,omitempty"`
	Origin             string         `json:"origin,omitempty"` // imageLayer, upper, volume, tmpfs, memfd, other
	LayerDiffID        string         `json:"layerDiffId,omitempty"`
	SymbolKind         string         `json:"symbolKind,omitempty"`    // func, ifunc, alias, clone, folded, inlined
	Inline             string         `json:"inline,omitempty"`        // none, unknown, inlinedAt
	Demangled          string         `json:"demangled,omitempty"`     // of Symbol, where it differs
	Wanted             string         `json:"wanted,omitempty"`        // the policy's name, glob or expression that matched
	InlinedIn          string         `json:"inlinedIn,omitempty"`     // the function that this inlined instance lies in
	InlinedAt          []Instance     `json:"inlinedAt,omitempty"`     // where else the function's code is
	InlinedAtMore      Uint64         `json:"inlinedAtMore,omitempty"` // that did not fit
	Implements         string         `json:"implements,omitempty"`    // the IFUNC that may pick this code
	Function           string         `json:"function,omitempty"`      // of the kernel
	Duration           *Duration      `json:"duration,omitempty"`
	Stack              *Stack         `json:"stack,omitempty"`   // of the first hit
	Set                string         `json:"set,omitempty"`     // exec, libraries, syscalls, network, files
	Entry              *Entry         `json:"entry,omitempty"`   // which of a set's entries the line is about; else the set itself
	Entries            Uint64         `json:"entries,omitempty"` // distinct entries that have lines of their own, on a set's own line
	SystemCalls        []SystemCalls  `json:"systemCalls,omitempty"`
	IOUring            bool           `json:"ioUring,omitempty"` // operations that are no system calls may have been asked for
	Copies             int            `json:"copies,omitempty"`
	Event              string         `json:"event,omitempty"`  // of a tracepoint, "group:name"; of a marker, "provider:name"
	Reason             NotArmedReason `json:"reason,omitempty"` // exactly on notArmed
	Detail             string         `json:"detail,omitempty"` // for a person: the errno, the bound
	Count              *Uint64        `json:"count,omitempty"`  // executions counted; absent on notArmed
	FirstAt            Time           `json:"firstAt,omitzero"`
	LastAt             Time           `json:"lastAt,omitzero"`
	Process            *Process       `json:"process,omitempty"`   // of the first hit
	Processes          []Process      `json:"processes,omitempty"` // distinct executables of an exec probe, bounded
	Redacted           []Redaction    `json:"redacted,omitempty"`  // members that do not hold what was seen
	Confidence         Confidence     `json:"confidence"`
	Gaps               []SiteGap      `json:"gaps,omitempty"`
	Complete           bool           `json:"complete"` // no gap in the window but such as cost detail only
	Final              bool           `json:"final"`
	From               Time           `json:"from"`
	To                 Time           `json:"to"`
}

// Gap is the line that opens or closes a gap. The closing line repeats GapID.
type Gap struct {
	Kind        string    `json:"kind"`
	GapID       string    `json:"gapId"`
	Scope       string    `json:"scope"` // node, source, run, file, site
	Reason      GapReason `json:"reason"`
	From        Time      `json:"from"`
	To          Time      `json:"to,omitzero"` // absent while open
	Count       Loss      `json:"count"`
	Source      string    `json:"source,omitempty"`
	RunID       string    `json:"runId,omitempty"`
	ContainerID string    `json:"containerId,omitempty"`
	Path        string    `json:"path,omitempty"`
	ProbeID     string    `json:"probeId,omitempty"`
	Symbol      string    `json:"symbol,omitempty"`    // or the kernel function
	Offset      *Uint64   `json:"offset,omitempty"`    // the one instruction that is meant
	ProbeType   ProbeType `json:"probeType,omitempty"` // only sites that the kernel serves so are meant
	Detail      string    `json:"detail,omitempty"`

	Redacted []Redaction `json:"redacted,omitempty"`
}

// The scopes of a gap.
const (
	ScopeNode   = "node"
	ScopeSource = "source"
	ScopeRun    = "run"
	ScopeFile   = "file"
	ScopeSite   = "site"
)

// Line is one line between header and envelope: *Coverage, *Observation or *Gap.
type Line interface {
	kind() string
	run() string
}

func (*Coverage) kind() string    { return KindCoverage }
func (*Observation) kind() string { return KindObservation }
func (*Gap) kind() string         { return KindGap }

func (c *Coverage) run() string    { return c.RunID }
func (o *Observation) run() string { return o.RunID }
func (g *Gap) run() string         { return g.RunID }

// RunOf returns the run that l is about, or "" for a node's or source's gap.
func RunOf(l Line) string { return l.run() }

// marshal is encoding/json's spelling of a value: of what is written once in a
// chunk, and what the faster writer of lines is compared with.
func marshal(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return plainReplacement(bytes.TrimSuffix(buf.Bytes(), []byte("\n"))), nil
}

// plainReplacement spells U+FFFD as itself. encoding/json writes it as an escape
// where it stands for a byte that was not UTF-8, and as itself where it was in
// the text: two spellings of one value, so that a line with such a path would
// not encode to the same bytes again.
func plainReplacement(b []byte) []byte {
	const escape = `\ufffd`
	if !bytes.Contains(b, []byte(escape)) {
		return b
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); {
		switch {
		case b[i] != '\\':
			out = append(out, b[i])
			i++
		case bytes.HasPrefix(b[i:], []byte(escape)):
			out = utf8.AppendRune(out, utf8.RuneError)
			i += len(escape)
		default: // another escape: its second byte may be a backslash
			out = append(out, b[i], b[i+1])
			i += 2
		}
	}
	return out
}
