// Package delivery puts chunks together again, byte for byte, from the lines that
// a log shipper delivered.
//
// In: what the shipper wrote at the far side, one JSON object a line, in any order,
// with duplicates, the lines of many files mixed. Each delivered line has the name
// of its file and its offset in it. Out: DIR/INSTANCE/ready/FIRST-10-DIGITS/NAME.ndjson,
// where INSTANCE is the last part of the chunk's name.
//
// True on disk: a name below ready/ holds all bytes of a chunk, durably, and they
// are those whose digest its envelope names. What is not whole yet lies below
// partial/ and is gone on with by the next delivery, so that a delivery may be
// read twice, or in pieces, or after a crash. One process at a time works on DIR.
//
// Nothing is trusted, and no signature is checked: who can deliver lines can deliver
// a chunk of his own making, under any name that is not there yet, and can spoil one
// that is on its way. Both show, here or at probity verify, and neither passes
// for what the node signed. It is not a control against lines that never arrive:
// a chunk that stays partial is reported, one of which nothing arrived is missed
// only by the node's log.
package delivery

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"probity/evidence"
)

// Names below DIR/INSTANCE.
const (
	readyDir   = "ready"
	partialDir = "partial"
)

// MaxRecordBytes bounds one line of a delivery: a batch of the OpenTelemetry
// Collector is one. A longer one is a finding.
const MaxRecordBytes = 64 << 20

// Bounds of what is kept in memory.
const (
	maxOpen     = 128     // files
	maxKnown    = 1 << 16 // files that are not open, of which it is known how far they are: some 100 bytes each
	maxFindings = 1000
)

// Finding is one thing that is wrong with a delivery.
type Finding struct {
	Source string `json:"source"` // a delivery
	Line   int    `json:"line"`   // from 1
	Reason string `json:"reason"`
}

// Chunk is one that is whole.
type Chunk struct {
	Chunk  string `json:"chunk"`
	Digest string `json:"digest"` // of all its bytes, as its leaf in the node's log has it
	Bytes  int    `json:"bytes"`
}

// Report says what was done since Open.
type Report struct {
	Lines      int       `json:"lines"`      // of chunks, delivered
	Duplicates int       `json:"duplicates"` // of these, there already
	Others     int       `json:"others"`     // records of files that are no chunks
	Chunks     []Chunk   `json:"chunks"`     // whole now
	Partial    []string  `json:"partial"`    // chunks of which lines are missing
	Findings   []Finding `json:"findings"`
	More       int       `json:"moreFindings,omitempty"` // that are not listed
}

// Joiner puts chunks together. It is for one goroutine.
type Joiner struct {
	root  *os.Root
	open  map[string]*building
	known map[string]progress // of those that were open; nobody else works on them
	rep   Report
}

// Open takes the directory that chunks are put together in, and makes it.
func Open(dir string) (*Joiner, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	return &Joiner{root: root, open: map[string]*building{}, known: map[string]progress{}, rep: Report{Chunks: []Chunk{}, Partial: []string{}, Findings: []Finding{}}}, nil
}

// Close gives up what is open; what is partial stays for the next delivery. It is
// idempotent.
func (j *Joiner) Close() error {
	if j.root == nil {
		return nil
	}
	err := errors.Join(j.closeAll(), j.root.Close())
	j.root = nil
	return err
}

func (j *Joiner) closeAll() error {
	var errs []error
	if len(j.known) >= maxKnown {
		clear(j.known)
	}
	for chunk, b := range j.open {
		if !b.whole {
			j.known[chunk] = b.progress
		}
		errs = append(errs, b.file.Close())
	}
	clear(j.open)
	return errors.Join(errs...)
}

// Report lists what has happened, and what is partial, from this delivery or an
// earlier one.
func (j *Joiner) Report() (Report, error) {
	r := j.rep
	names, err := fs.Glob(j.root.FS(), "*/"+partialDir+"/*.ndjson")
	if err != nil {
		return r, fmt.Errorf("join: %w", err)
	}
	for _, n := range names {
		r.Partial = append(r.Partial, strings.TrimSuffix(path.Base(n), ".ndjson"))
	}
	slices.SortFunc(r.Chunks, func(a, b Chunk) int { return cmp.Compare(a.Chunk, b.Chunk) })
	return r, nil
}

// Read takes one delivery. An error says that it could not be read, or that DIR
// could not be written; what is wrong inside it is a finding.
func (j *Joiner) Read(ctx context.Context, source string, in io.Reader) error {
	lines := lineReader{r: bufio.NewReaderSize(in, 64<<10)}
	for n := 1; ; n++ {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("join %s: %w", source, err)
		}
		line, err := lines.next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, errLongLine):
			j.say(source, n, "%v", err)
			continue
		case err != nil:
			return fmt.Errorf("join %s: %w", source, err)
		case len(bytes.TrimSpace(line)) == 0:
			continue
		}
		records, others, err := Parse(line)
		j.rep.Others += others
		if err != nil {
			j.say(source, n, "%v", err)
		}
		for _, r := range records {
			bad, err := j.add(r)
			if err != nil {
				return fmt.Errorf("join %s:%d: chunk %s: %w", source, n, r.Chunk, err)
			}
			if bad != nil {
				j.say(source, n, "chunk %s: %v", r.Chunk, bad)
			}
		}
	}
}

// errLongLine is said of a line, and those after it are read all the same: whoever can
// deliver one must not keep others' from being read.
var errLongLine = fmt.Errorf("more than %d bytes: it is not looked at", MaxRecordBytes)

// lineReader reads lines of at most MaxRecordBytes.
type lineReader struct {
	r    *bufio.Reader
	line []byte
}

// next returns a line without its end, until the next call; io.EOF behind the last.
func (l *lineReader) next() ([]byte, error) {
	l.line = l.line[:0]
	for long := false; ; {
		piece, err := l.r.ReadSlice('\n')
		if long = long || len(l.line)+len(piece) > MaxRecordBytes+1; !long {
			l.line = append(l.line, piece...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil && (!errors.Is(err, io.EOF) || len(l.line) == 0 && !long):
			return nil, err
		case long:
			return nil, errLongLine
		}
		return bytes.TrimSuffix(l.line, []byte("\n")), nil
	}
}

func (j *Joiner) say(source string, line int, format string, args ...any) {
	if len(j.rep.Findings) >= maxFindings {
		j.rep.More++
		return
	}
	j.rep.Findings = append(j.rep.Findings, Finding{source, line, fmt.Sprintf(format, args...)})
}

// building is a chunk's file. No byte of a chunk is 0, so 0 is what is missing.
type building struct {
	file  *os.File
	whole bool // it lies below ready/
	progress
}

// progress is how far a chunk is that is not whole.
type progress struct {
	have int64 // bytes that are not 0
	end  int64 // behind the envelope, 0 if that is not there
}

func names(chunk string) (instance, ready, partial string) {
	_, instance, _ = evidence.ParseChunkName(chunk) // Parse has
	return instance, path.Join(instance, readyDir, evidence.ChunkPath(chunk)), path.Join(instance, partialDir, chunk+".ndjson")
}

func (j *Joiner) building(chunk string) (*building, error) {
	if b := j.open[chunk]; b != nil {
		return b, nil
	}
	if len(j.open) >= maxOpen {
		if err := j.closeAll(); err != nil {
			return nil, err
		}
	}
	instance, ready, partial := names(chunk)
	b := &building{whole: true}
	var err error
	if b.file, err = j.root.Open(ready); errors.Is(err, fs.ErrNotExist) {
		b.whole = false
		if err := j.root.MkdirAll(path.Join(instance, partialDir), 0o750); err != nil {
			return nil, err
		}
		b.file, err = j.root.OpenFile(partial, os.O_RDWR|os.O_CREATE, 0o640)
	}
	if err != nil {
		return nil, err
	}
	known, ok := j.known[chunk]
	switch {
	case b.whole:
	case ok:
		b.progress = known
	default:
		if err := b.count(); err != nil {
			return nil, errors.Join(err, b.file.Close())
		}
	}
	delete(j.known, chunk)
	j.open[chunk] = b
	return b, nil
}

// count finds out how far an earlier delivery came.
func (b *building) count() error {
	all, err := b.all()
	if err != nil {
		return err
	}
	b.have = int64(len(all) - bytes.Count(all, []byte{0}))
	if at := bytes.LastIndexAny(bytes.TrimSuffix(all, []byte("\n")), "\n\x00"); at >= 0 && isEnvelope(string(all[at+1:])) {
		b.end = int64(len(all))
	}
	return nil
}

func (b *building) all() ([]byte, error) {
	return io.ReadAll(io.NewSectionReader(b.file, 0, evidence.MaxChunkBytes+1))
}

func isEnvelope(line string) bool { return strings.HasPrefix(line, `{"payloadType":`) }

// add takes one line. bad is what is wrong with it.
func (j *Joiner) add(r Record) (bad, err error) {
	b, err := j.building(r.Chunk)
	if err != nil {
		return nil, err
	}
	j.rep.Lines++
	line := []byte(r.Line + "\n")
	had := make([]byte, len(line))
	if _, err := b.file.ReadAt(had, r.Offset); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.Equal(had, line):
		j.rep.Duplicates++
		if b.whole {
			return nil, nil
		}
		// Its last line may have come, and then a crash: it is whole all the same.
		return j.finish(r.Chunk, b)
	case b.whole:
		return fmt.Errorf("at offset %d, another line than in the chunk that is here", r.Offset), nil
	case bytes.Count(had, []byte{0}) != len(had):
		// Nobody knows which is right, and the next delivery may be.
		return fmt.Errorf("at offset %d, another line than the one that came before: both are dropped, and all of the chunk", r.Offset), j.discard(r.Chunk, b)
	}
	if _, err := b.file.WriteAt(line, r.Offset); err != nil {
		return nil, err
	}
	b.have += int64(len(line))
	if isEnvelope(r.Line) {
		b.end = r.Offset + int64(len(line))
	}
	return j.finish(r.Chunk, b)
}

// finish publishes a chunk that is whole now. bad is what is wrong with it.
func (j *Joiner) finish(chunk string, b *building) (bad, err error) {
	if b.end == 0 || b.have < b.end {
		return nil, nil
	}
	// Two short lines make this so, again and again: all is read only of what was
	// delivered whole.
	st, err := b.file.Stat()
	if err != nil {
		return nil, err
	}
	behind := errors.New("lines behind its envelope: all of the chunk is dropped")
	if st.Size() != b.end {
		return behind, j.discard(chunk, b)
	}
	all, err := b.all()
	if err != nil {
		return nil, err
	}
	if int64(len(all)) != b.end || bytes.IndexByte(all, 0) >= 0 {
		return behind, j.discard(chunk, b)
	}
	if bad := check(chunk, all); bad != nil {
		return fmt.Errorf("%w: all of the chunk is dropped", bad), j.discard(chunk, b)
	}
	return nil, j.publish(chunk, b, all)
}

func (j *Joiner) discard(chunk string, b *building) error {
	_, _, partial := names(chunk)
	delete(j.open, chunk)
	return errors.Join(b.file.Close(), j.root.Remove(partial))
}

// publish makes a whole chunk durable under its name: fsync, rename, fsync of the
// directories.
func (j *Joiner) publish(chunk string, b *building, all []byte) error {
	instance, ready, partial := names(chunk)
	delete(j.open, chunk)
	if err := errors.Join(b.file.Sync(), b.file.Close(), j.root.MkdirAll(path.Dir(ready), 0o750)); err != nil {
		return err
	}
	if err := j.root.Rename(partial, ready); err != nil {
		return err
	}
	for _, dir := range []string{path.Dir(ready), path.Join(instance, readyDir), instance, "."} {
		d, err := j.root.Open(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return err
		}
	}
	j.rep.Chunks = append(j.rep.Chunks, wholeChunk(chunk, all))
	return nil
}

// check compares a whole chunk with what its own header and envelope say. It reads
// no more of them than it must, so that chunks of a newer format arrive too.
func check(chunk string, all []byte) error {
	first, _, _ := bytes.Cut(all, []byte("\n"))
	var header struct{ Chunk string }
	if err := json.Unmarshal(first, &header); err != nil || header.Chunk != chunk {
		return fmt.Errorf("its header names %.60q", header.Chunk)
	}
	at := bytes.LastIndexByte(all[:len(all)-1], '\n') + 1
	var envelope struct{ Payload string }
	if err := json.Unmarshal(all[at:], &envelope); err != nil {
		return fmt.Errorf("its envelope: %w", err)
	}
	payload, err := base64.StdEncoding.DecodeString(envelope.Payload)
	if err != nil {
		return fmt.Errorf("its envelope: %w", err)
	}
	var statement struct{ Subject []evidence.Subject }
	if err := json.Unmarshal(payload, &statement); err != nil {
		return fmt.Errorf("its statement: %w", err)
	}
	sum := sha256.Sum256(all[:at])
	if len(statement.Subject) == 0 || statement.Subject[0].Digest.SHA256 != hex.EncodeToString(sum[:]) {
		return fmt.Errorf("its lines have the digest %x, and its statement is about others", sum)
	}
	return nil
}
