package evidence

import (
	"fmt"
	"sort"
	"strings"
)

// Constants of the signed statement.
const (
	StatementType = "https://in-toto.io/Statement/v1"
	PredicateType = "https://in-toto.io/attestation/runtime-trace/v0.1"
	PayloadType   = "application/vnd.in-toto+json" // the one spelling that cosign 3 verifies offline
	MonitorType   = "urn:probity:monitor:v1"
	ProcessType   = "urn:probity:process:chunk:v1"
)

// Statement is an in-toto Statement v1. Its top level and its subjects take no
// further fields (in-toto attestation spec v1, "Statement"); the predicate does.
type Statement struct {
	Type          string    `json:"_type"`
	Subject       []Subject `json:"subject"`
	PredicateType string    `json:"predicateType"`
	Predicate     Predicate `json:"predicate"`
}

// Subject is a ResourceDescriptor with a name and a SHA-256.
type Subject struct {
	Name   string `json:"name"`
	Digest Digest `json:"digest"`
}

// Digest is a DigestSet with only SHA-256, in lower-case hex.
type Digest struct {
	SHA256 string `json:"sha256"`
}

// Predicate is runtime-trace v0.1 with one extension object, "probity".
type Predicate struct {
	Monitor          Monitor          `json:"monitor"`
	MonitoredProcess MonitoredProcess `json:"monitoredProcess"`
	MonitorLog       MonitorLog       `json:"monitorLog"`
	Metadata         Metadata         `json:"metadata"`
	Probity          Extension        `json:"probity"`
}

// Monitor names this software.
type Monitor struct {
	Type string `json:"type"`
}

// MonitoredProcess names the node and the chunk.
type MonitoredProcess struct {
	HostID string `json:"hostID"` // "urn:probity:node:" and the node's name
	Type   string `json:"type"`
	Event  string `json:"event"` // the chunk's name
}

// MonitorLog carries one process item per run, and one for the node when the
// chunk has no run: the predicate wants a non-empty list.
type MonitorLog struct {
	Process []LogItem `json:"process"`
}

// LogItem is the coverage item of one run.
type LogItem struct {
	EventType   string `json:"eventType"` // "coverage"
	RunID       string `json:"runId,omitempty"`
	ImageDigest string `json:"imageDigest,omitempty"`
}

// Metadata is the time span of the chunk.
type Metadata struct {
	StartedOn  Time `json:"buildStartedOn"`
	FinishedOn Time `json:"buildFinishedOn"`
}

// Extension is what the statement itself says of the lines, so that a policy
// engine that sees only the statement can decide.
type Extension struct {
	Format       string       `json:"format"`
	Node         string       `json:"node"`
	BootID       string       `json:"bootId"`
	Seq          Uint64       `json:"seq"`
	Lines        Uint64       `json:"lines"` // header included, envelope not
	Observations []StateCount `json:"observations"`
	Gaps         []GapTotal   `json:"gaps"`
}

// StateCount counts observation lines of one probe type and state.
type StateCount struct {
	ProbeType ProbeType `json:"probeType"`
	State     State     `json:"state"`
	Count     Uint64    `json:"count"`
}

// GapTotal counts gap lines of one reason.
type GapTotal struct {
	Reason GapReason `json:"reason"`
	Count  Uint64    `json:"count"`
}

// Tally collects, line by line, what a statement says about a chunk. The
// writer and the verifier use the same Tally, so a statement that was made
// from other lines differs. The zero value is ready to use.
type Tally struct {
	lines       uint64
	states      map[[2]string]*uint64
	gaps        map[GapReason]uint64
	runs        map[string]string // runId -> imageDigest
	images      map[string]string // digest -> image name, "" unless some coverage line had it
	nameBytes   int               // of all image names
	first, last Time

	// Of the last observation: most are about what the one before was about.
	lastRun, lastDigest string
	lastState           [2]string
	lastStates          *uint64
}

func (t *Tally) span(from, to Time) {
	for _, x := range [...]Time{from, to} {
		if x.IsZero() {
			continue
		}
		if t.first.IsZero() || x.t.Before(t.first.t) {
			t.first = x
		}
		if t.last.IsZero() || x.t.After(t.last.t) {
			t.last = x
		}
	}
}

func (t *Tally) seeRun(runID, digest string) {
	if t.runs == nil {
		t.runs, t.images = map[string]string{}, map[string]string{}
	}
	if runID == "" {
		return
	}
	if digest != "" || t.runs[runID] == "" {
		t.runs[runID] = digest
	}
	if digest != "" {
		if _, ok := t.images[digest]; !ok {
			t.images[digest] = ""
		}
	}
}

// Add counts one line between header and envelope.
func (t *Tally) Add(l Line) {
	t.lines++
	switch v := l.(type) {
	case *Coverage:
		t.seeRun(v.RunID, v.ImageDigest)
		t.lastRun, t.lastDigest = "", ""
		if v.ImageDigest != "" && t.images[v.ImageDigest] == "" {
			t.images[v.ImageDigest] = v.Image
			t.nameBytes += len(v.Image)
		}
		t.span(v.From, v.To)
	case *Observation:
		if v.RunID != t.lastRun || v.ImageDigest != t.lastDigest || t.runs == nil {
			t.seeRun(v.RunID, v.ImageDigest)
			t.lastRun, t.lastDigest = v.RunID, v.ImageDigest
		}
		pt := v.ProbeType
		if pt == "" { // a record without a probe type reads as unknown
			pt = UnknownProbe
		}
		if state := [2]string{string(pt), string(v.State)}; state != t.lastState || t.lastStates == nil {
			t.lastState, t.lastStates = state, t.states[state]
			if t.lastStates == nil {
				if t.states == nil {
					t.states = map[[2]string]*uint64{}
				}
				t.lastStates = new(uint64)
				t.states[state] = t.lastStates
			}
		}
		*t.lastStates++
		t.span(v.From, v.To)
	case *Gap:
		t.seeRun(v.RunID, "")
		if t.gaps == nil {
			t.gaps = map[GapReason]uint64{}
		}
		t.gaps[v.Reason]++
		t.span(v.From, v.To)
	}
}

// Runs returns how many runs the lines so far are about.
func (t *Tally) Runs() int { return len(t.runs) }

// HasRun reports whether a line so far was about the run.
func (t *Tally) HasRun(runID string) bool {
	if runID != "" && runID == t.lastRun {
		return true
	}
	_, ok := t.runs[runID]
	return ok
}

// Lines returns how many lines were added.
func (t *Tally) Lines() uint64 { return t.lines }

// Bound returns a number of bytes that the encoded statement will not exceed
// if l is added now. A writer closes a chunk before its envelope line grows past
// MaxLineBytes: 32 runs of 32 images with very long names would.
func (t *Tally) Bound(l Line) int {
	const (
		fixed = 4 << 10 // everything that does not grow: the header bounds its texts
		state = 80      // one entry of observations
		gap   = 64      // one entry of gaps
		run   = 192     // one item of monitorLog.process
		image = 160     // one subject without its name
		char  = 6       // the longest escape of one byte
	)
	n := fixed + state*len(ProbeTypes)*len(States) + gap*len(GapReasons) +
		run*(len(t.runs)+1) + image*(len(t.images)+1) + char*t.nameBytes
	if c, ok := l.(*Coverage); ok {
		n += char * len(c.Image)
	}
	return n
}

// Statement returns the statement for a chunk with this header and these
// lines, whose bytes before the envelope line have the given SHA-256 (hex).
func (t *Tally) Statement(h Header, bodySHA256 string) Statement {
	span := [2]Time{t.first, t.last}
	if span[0].IsZero() {
		span = [2]Time{h.Clock.Wall, h.Clock.Wall}
	}
	s := Statement{
		Type:          StatementType,
		Subject:       []Subject{{Name: "chunk:" + h.Chunk, Digest: Digest{bodySHA256}}},
		PredicateType: PredicateType,
		Predicate: Predicate{
			Monitor:          Monitor{Type: MonitorType},
			MonitoredProcess: MonitoredProcess{HostID: "urn:probity:node:" + h.Node, Type: ProcessType, Event: h.Chunk},
			MonitorLog:       MonitorLog{Process: []LogItem{}},
			Metadata:         Metadata{StartedOn: span[0], FinishedOn: span[1]},
			Probity: Extension{
				Format: h.Format, Node: h.Node, BootID: h.BootID, Seq: h.Seq, Lines: Uint64(t.lines + 1),
				Observations: []StateCount{}, Gaps: []GapTotal{},
			},
		},
	}
	for _, d := range sortedKeys(t.images) {
		name := t.images[d]
		if name == "" {
			name = d
		}
		s.Subject = append(s.Subject, Subject{Name: name, Digest: Digest{strings.TrimPrefix(d, "sha256:")}})
	}
	for _, r := range sortedKeys(t.runs) {
		s.Predicate.MonitorLog.Process = append(s.Predicate.MonitorLog.Process, LogItem{EventType: "coverage", RunID: r, ImageDigest: t.runs[r]})
	}
	if len(t.runs) == 0 {
		s.Predicate.MonitorLog.Process = append(s.Predicate.MonitorLog.Process, LogItem{EventType: "coverage"})
	}
	for _, pt := range ProbeTypes {
		for _, st := range States {
			if n := t.states[[2]string{string(pt), string(st)}]; n != nil {
				s.Predicate.Probity.Observations = append(s.Predicate.Probity.Observations, StateCount{pt, st, Uint64(*n)})
			}
		}
	}
	for _, r := range GapReasons {
		if n := t.gaps[r]; n > 0 {
			s.Predicate.Probity.Gaps = append(s.Predicate.Probity.Gaps, GapTotal{r, Uint64(n)})
		}
	}
	return s
}

// EncodeStatement returns the canonical bytes of a statement: the payload of
// the envelope.
func EncodeStatement(s Statement) ([]byte, error) {
	b, err := marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode statement: %w", err)
	}
	return b, nil
}

// EncodeHeader returns the canonical bytes of a header line, without a
// newline, padded so that with its newline it has at least MinHeaderBytes. A
// header without a format is of the one that is written now.
func EncodeHeader(h Header) ([]byte, error) {
	h.Kind, h.Padding = KindHeader, ""
	if h.Format == "" {
		h.Format = Format
	}
	b, err := marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode header: %w", err)
	}
	if len(b) > HeaderFacts {
		return nil, fmt.Errorf("encode header: %d bytes of facts, at most %d are allowed (is the node's name very long?)", len(b), HeaderFacts)
	}
	h.Padding = strings.Repeat(".", MinHeaderBytes-1-len(b))
	return marshal(h)
}

func sortedKeys[V any](m map[string]V) []string {
	ks := make([]string, 0, len(m))
	for k := range m {
		ks = append(ks, k)
	}
	sort.Strings(ks)
	return ks
}
