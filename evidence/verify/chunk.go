package verify

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"probity/evidence"
	"probity/evidence/score"
	"probity/evidence/sign"
	"probity/evidence/tlog"
)

// maxFindings is how many findings of one file are listed. The rest of its lines
// are not looked at: 8 MiB of empty lines would be 8 million findings.
const maxFindings = 20

// fewBytes is less than what nearly every line has, for the guess how many there
// are: counting newlines would let 8 MiB of them ask for 128 MiB.
const fewBytes = 256

// Chunk is a sound chunk.
type Chunk struct {
	File   string
	Header evidence.Header
	// Lines between header and envelope. Their texts keep the whole chunk in
	// memory: copy what is kept for long.
	Lines []evidence.Line
	// Body is the bytes before the envelope line; the statement's first
	// subject is their digest.
	Body []byte
	// Envelope is the envelope line without its newline.
	Envelope []byte

	digest  string        // of the whole file, as its leaf in the log says it
	size    uint64        // of the whole file, in bytes, for the same
	changes []tlog.Change // that its lines make, in order
}

// Bytes checks one chunk file's bytes; name only says where findings are. The
// chunk is nil exactly if there are findings.
func Bytes(name string, data []byte, keys sign.Keys) (*Chunk, []Finding) {
	return checkBytes(name, data, ringOf(keys), nil, new(evidence.Decoder))
}

// checkBytes is Bytes for a chunk whose log is checked against these states of it.
func checkBytes(name string, data []byte, keys *ring, kept []Kept, lines *evidence.Decoder) (*Chunk, []Finding) {
	c := &checker{file: name, lines: lines}
	chunk := c.check(data, keys, kept)
	if len(c.findings) == 0 {
		return chunk, nil
	}
	return nil, c.findings
}

type checker struct {
	file     string
	lines    *evidence.Decoder
	findings []Finding
}

func (c *checker) found(kind Kind, line int, format string, args ...any) {
	c.findings = append(c.findings, Finding{Kind: kind, File: c.file, Line: line, Reason: fmt.Sprintf(format, args...)})
}

func (c *checker) check(data []byte, keys *ring, kept []Kept) *Chunk {
	switch {
	case len(data) == 0:
		c.found(Truncated, 0, "the file is empty")
		return nil
	case len(data) > evidence.MaxChunkBytes:
		c.found(Malformed, 0, "%d bytes, a chunk has at most %d", len(data), evidence.MaxChunkBytes)
		return nil
	}
	all := string(data) // the lines' texts are parts of it
	last := strings.Count(all, "\n")
	if all[len(all)-1] != '\n' {
		c.found(Truncated, last+1, "the file does not end in a newline: it is cut off, or something was added")
		return nil
	}
	first, rest, _ := strings.Cut(all, "\n")
	header, err := evidence.DecodeHeader(first)
	if err == nil {
		err = header.Validate()
	}
	key := keys.key(header.KeyID)
	if err != nil {
		if errors.Is(err, evidence.ErrNewer) {
			c.found(NewerFormat, 1, "header: %v", err)
			return nil // its lines and its statement may mean anything
		}
		c.found(Malformed, 1, "header: %v", err)
	} else if key == nil {
		c.found(KeyUnknown, 1, "header: signed with key %s", keys.unknown(header.KeyID))
	} else {
		anchored := header.Leaf != nil && holds(kept, header.Log, uint64(*header.Leaf))
		for _, d := range keys.doubts(header.KeyID, header.Node, header.Clock.Wall.Std(), anchored) {
			c.found(d.kind, 1, "header: %s", d.why)
		}
	}
	if key == nil {
		if key = keys.alone(); key == nil {
			return nil // nothing can be said of what an unknown key signed
		}
	}
	if last < 3 {
		c.found(Truncated, last, "the file has %d lines, a chunk has a header, lines and an envelope", last)
		return nil
	}

	chunk := &Chunk{File: c.file, Header: header, Lines: make([]evidence.Line, 0, min(last-2, len(data)/fewBytes))}
	var tally evidence.Tally
	for n := 2; n < last; n++ {
		if len(c.findings) >= maxFindings {
			c.found(Malformed, n, "too much is wrong with this file: from here on it was not looked at")
			return nil
		}
		var line string
		line, rest, _ = strings.Cut(rest, "\n")
		l, err := c.line(line)
		if err == nil && slices.Index(evidence.Formats, evidence.FormatOf(l)) > slices.Index(evidence.Formats, header.Format) {
			err = fmt.Errorf("a member or value of %s in a chunk of %s", evidence.FormatOf(l), header.Format)
		}
		if err != nil {
			c.found(Malformed, n, "%v", err)
			continue
		}
		tally.Add(l)
		chunk.Lines = append(chunk.Lines, l)
		if _, ok := l.(*evidence.Observation); !ok {
			if ch := tlog.ChangeOf(l, []byte(line)); ch.RunID != "" {
				chunk.changes = append(chunk.changes, ch)
			}
		}
	}
	envelope := strings.TrimSuffix(rest, "\n")
	chunk.Body = data[:len(data)-len(rest)]
	chunk.Envelope = data[len(data)-len(rest) : len(data)-1]
	if tally.Runs() > evidence.MaxChunkRuns {
		c.found(Malformed, 0, "%d runs, a chunk has at most %d", tally.Runs(), evidence.MaxChunkRuns)
	}

	payload, err := sign.Open([]byte(envelope), key)
	if err != nil {
		kind := Malformed
		switch {
		case errors.Is(err, sign.ErrKey):
			kind = KeyUnknown
		case errors.Is(err, sign.ErrSignature):
			kind = Forged
		case strings.HasPrefix(envelope, `{"kind":`):
			kind = Truncated // whole lines are gone from the end
		}
		c.found(kind, last, "envelope: %v", err)
		return nil
	}
	// One pass: the statement's digest is of what comes before the envelope, the
	// log's of the whole file.
	h := sha256.New()
	h.Write(chunk.Body)
	c.statement(last, payload, header, &tally, hex.EncodeToString(h.Sum(nil)))
	h.Write(data[len(chunk.Body):])
	chunk.digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	chunk.size = uint64(len(data))
	return chunk
}

// line checks one line between header and envelope.
func (c *checker) line(line string) (evidence.Line, error) {
	l, err := c.lines.Decode(line)
	if err != nil {
		return nil, err
	}
	if err := evidence.Validate(l); err != nil {
		return nil, err
	}
	o, ok := l.(*evidence.Observation)
	if !ok || o.State == evidence.NotArmed {
		return l, nil
	}
	if o.Confidence.Inputs.ProbeType != string(o.ProbeType) {
		return nil, fmt.Errorf("confidence: computed for %.40q, but the line's probeType is %s", o.Confidence.Inputs.ProbeType, o.ProbeType)
	}
	knows := o.Confidence.Version == score.Version || o.Confidence.Version == score.Version2
	if want := symbolInput(o); want != "" && knows && o.Confidence.Inputs.Symbol != want {
		return nil, fmt.Errorf("confidence: computed for the symbol %.40q, but the line's is %s", o.Confidence.Inputs.Symbol, want)
	}
	if v, known := score.Of(o.Confidence); known && v != o.Confidence.Value {
		return nil, fmt.Errorf("confidence: %v, but its inputs give %v", o.Confidence.Value, v)
	}
	return l, nil
}

// symbolInput is what a confidence must have been computed from, where the line
// says it.
func symbolInput(o *evidence.Observation) string {
	if o.Function != "" {
		return score.SymbolKernel
	}
	return o.SymbolKind
}

// statement compares what was signed with what the bytes say.
func (c *checker) statement(line int, payload []byte, h evidence.Header, tally *evidence.Tally, sum string) {
	want, err := evidence.EncodeStatement(tally.Statement(h, sum))
	if err != nil {
		c.found(Malformed, line, "statement: %v", err)
		return
	}
	if string(payload) == string(want) {
		return
	}
	s, err := evidence.DecodeStatement(string(payload))
	switch {
	case err != nil:
		c.found(Malformed, line, "statement: %v", err)
	case len(s.Subject) == 0:
		c.found(Malformed, line, "statement: it has no subject")
	case s.Subject[0].Name != "chunk:"+h.Chunk:
		c.found(Modified, line, "statement: it was signed for %.80s, not for chunk:%s", s.Subject[0].Name, h.Chunk)
	case s.Subject[0].Digest.SHA256 != sum:
		c.found(Modified, line, "statement: the lines before it are not those that were signed (sha256 %s, signed %.64s)", sum, s.Subject[0].Digest.SHA256)
	case len(c.findings) == 0: // else it was counted without the bad lines
		c.found(Modified, line, "statement: what it says of the lines is not what they say (signed %.2000s, computed %.2000s)", payload, want)
	}
}
