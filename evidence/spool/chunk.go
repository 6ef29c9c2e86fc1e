package spool

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"probity/evidence"
	"probity/evidence/sign"
)

// errNever is wrapped when trying again cannot help.
var errNever = errors.New("this chunk can never be written")

// chunk is a header and lines that wait for their place in the log, and then for
// their envelope.
type chunk struct {
	header   evidence.Header
	body     []byte // header and lines, each with its newline: what the envelope signs
	head     int    // of these, the header's, which has the same length wherever the chunk comes to lie
	placed   *placed
	closed   time.Time // for the patience with the disk
	name     string    // of its write-ahead file: the chunk's, as it is known
	walHead  []byte
	wal      *walFile // nil if it has none; with keeping held, and kept too
	kept     int      // so much of the body is durable in it
	tally    evidence.Tally
	perRun   map[string]runLines
	opened   time.Time       // for the timer
	closedNs int64           // boot time
	carries  drops           // what its lines say was dropped, and nothing else
	tells    []*evidence.Gap // spoolDropped, among other lines
}

// runLines counts one run's lines.
type runLines struct {
	containerID string
	lines       uint64
	bytes       int64
	types       map[evidence.ProbeType]uint64 // of these, observations
}

// newChunk begins a chunk, whose body may take the place of spare. Its lines are
// made by an agent that writes the log of instance.
func newChunk(h evidence.Header, spare []byte, instance string) (*chunk, error) {
	line, err := evidence.EncodeHeader(h)
	if err != nil {
		return nil, err
	}
	h.Kind, h.Format = evidence.KindHeader, evidence.Format
	if err := h.Validate(); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	return &chunk{
		header: h, body: append(append(spare[:0], line...), '\n'), head: len(line) + 1, perRun: map[string]runLines{}, opened: time.Now(),
		name: h.Chunk, walHead: encodeWALHead(h, instance), kept: len(line) + 1,
	}, nil
}

// placed is a chunk as it is in the log.
type placed struct {
	leaf     evidence.ChunkLeaf
	index    uint64
	envelope []byte // the last line, with its newline
	logged   bool   // a durable checkpoint covers it: nothing may change any more
}

// place gives the chunk its name and its leaf, and signs it.
func (c *chunk) place(s *sign.Signer, name, log string, leaf uint64) error {
	h, index := c.header, evidence.Uint64(leaf)
	h.Chunk, h.Log, h.Leaf, h.KeyID = name, log, &index, s.KeyID() // which may be another than when it began
	line, err := evidence.EncodeHeader(h)
	if err == nil {
		err = h.Validate()
	}
	if err == nil && len(line)+1 != c.head {
		err = fmt.Errorf("a header of %d bytes", len(line))
	}
	if err != nil {
		return fmt.Errorf("%w: header: %w", errNever, err)
	}
	c.header = h
	copy(c.body, line)
	sum := sha256.New()
	sum.Write(c.body)
	envelope, err := c.envelope(s, hex.EncodeToString(sum.Sum(nil)))
	if err != nil {
		return err
	}
	sum.Write(envelope) // one pass over the body for both digests
	c.placed = &placed{
		leaf:  evidence.ChunkLeaf{Chunk: name, Digest: "sha256:" + hex.EncodeToString(sum.Sum(nil)), Bytes: evidence.Uint64(len(c.body) + len(envelope))},
		index: leaf, envelope: envelope,
	}
	return nil
}

func (c *chunk) size() int64 { return int64(len(c.body)) }

// fits reports whether e can be added within the bounds of a chunk, and its
// statement within those of a line.
func (c *chunk) fits(e encoded) bool {
	if len(c.body)+len(e.bytes)+1+evidence.MaxLineBytes > evidence.MaxChunkBytes {
		return false
	}
	if r := evidence.RunOf(e.line); r != "" && !c.tally.HasRun(r) && c.tally.Runs() >= evidence.MaxChunkRuns {
		return false
	}
	const envelope = 512 // all but the payload
	return c.tally.Lines() == 0 || envelope+(c.tally.Bound(e.line)+2)/3*4 < evidence.MaxLineBytes
}

// full reports whether a further run, or even one further line, surely does not
// fit.
func (c *chunk) full(runID string) bool {
	if runID != "" && !c.tally.HasRun(runID) && c.tally.Runs() >= evidence.MaxChunkRuns {
		return true
	}
	return len(c.body)+2*evidence.MaxLineBytes > evidence.MaxChunkBytes
}

func (c *chunk) add(e encoded) {
	if need := len(e.bytes) + 1; len(c.body)+need > cap(c.body) {
		c.body = slices.Grow(c.body, max(need, len(c.body))) // it is copied a few times, and not at every quarter
	}
	c.body = append(append(c.body, e.bytes...), '\n')
	c.tally.Add(e.line)
	countLine(c.perRun, e.line, len(e.bytes)+1)
	if g, ok := e.line.(*evidence.Gap); ok && isRefusal(g) {
		c.tells = append(c.tells, g)
	}
}

// isRefusal reports whether a gap says what was refused of a container, in the
// middle of its other lines.
func isRefusal(g *evidence.Gap) bool {
	return g.Reason == evidence.GapSpoolDropped && g.Scope == evidence.ScopeSite
}

// countLine counts a line that is about a run.
func countLine(perRun map[string]runLines, l evidence.Line, bytes int) {
	r := evidence.RunOf(l)
	if r == "" {
		return
	}
	n, known := perRun[r]
	n.lines++
	n.bytes += int64(bytes)
	switch l := l.(type) {
	case *evidence.Coverage:
		n.containerID = l.ContainerID
	case *evidence.Observation:
		n.containerID = l.ContainerID
		if n.types == nil {
			n.types = map[evidence.ProbeType]uint64{}
		}
		n.types[l.ProbeType]++
	case *evidence.Gap:
		n.containerID = l.ContainerID
	}
	if !known {
		r = strings.Clone(r)
		n.containerID = strings.Clone(n.containerID)
	}
	perRun[r] = n
}

// envelope signs the chunk, whose body has this digest, and returns its last line,
// with the newline.
func (c *chunk) envelope(s *sign.Signer, body string) ([]byte, error) {
	payload, err := evidence.EncodeStatement(c.tally.Statement(c.header, body))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNever, err)
	}
	line, err := s.Envelope(payload)
	if err != nil {
		return nil, err
	}
	if len(line) >= evidence.MaxLineBytes {
		return nil, fmt.Errorf("%w: the envelope line has %d bytes, at most %d are allowed", errNever, len(line), evidence.MaxLineBytes-1)
	}
	return append(line, '\n'), nil
}
