package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"probity/evidence"
	"probity/evidence/verify"
)

// leftover is a write-ahead file of an earlier process.
type leftover struct {
	path string
	name string // of the chunk that its lines were for
	walContent
}

func (l leftover) last() evidence.Time { return l.head.Clock.Time(l.atNs) }

// leftovers reads the write-ahead files, in order of their numbers. What has no
// whole head was never said to be durable, and is removed. What nothing can be made of
// is put aside.
func (s *Spool) leftovers() ([]leftover, error) {
	names, err := os.ReadDir(s.walPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []leftover
	for _, e := range names { // sorted
		l := leftover{path: filepath.Join(s.walPath(), e.Name())}
		var isWAL bool
		l.name, isWAL = strings.CutSuffix(e.Name(), walExtension)
		if _, _, ok := evidence.ParseChunkName(l.name); !ok || !isWAL {
			s.cfg.Log.Warn("not a write-ahead file", "file", l.path)
			continue
		}
		b, err := readWALFile(l.path)
		if err != nil {
			return nil, err
		}
		l.walContent, err = readWAL(b)
		if err == nil {
			err = s.canHead(l.head)
		}
		switch {
		case errors.Is(err, errNoHead):
			s.cfg.Log.Info("removed a write-ahead file whose first write was torn", "file", l.path, "bytes", len(b))
			if err := ignoreMissing(os.Remove(l.path)); err != nil {
				return nil, err
			}
			continue
		case err != nil: // not torn: somebody has to look at it
			if err := s.putAside(l, err); err != nil {
				return nil, err
			}
			continue
		}
		if l.cut > 0 {
			s.cfg.Log.Warn("cut off the torn end of a write-ahead file", "file", l.path, "bytes", l.cut)
		}
		out = append(out, l)
	}
	return out, nil
}

// canHead returns an error if no chunk can begin with what this head says: it would
// keep every later one from being published.
func (s *Spool) canHead(head walHead) error {
	_, err := newChunk(s.headerOf(head, 1), nil, s.instance)
	return err
}

// headerOf is the header of a chunk of an earlier process's lines.
func (s *Spool) headerOf(head walHead, seq uint64) evidence.Header {
	h := s.header(head.Clock, seq)
	h.Node, h.BootID = head.Node, head.BootID
	return h
}

// putAside leaves a file to a person, and has its lines signed as lost.
func (s *Spool) putAside(l leftover, why error) error {
	lines := uint64(bytes.Count(l.lines, []byte("\n")))
	s.cfg.Log.Error("a write-ahead file is put aside", "file", l.path, "lines", lines, "error", why)
	if err := os.Rename(l.path, l.path+".unreadable"); err != nil {
		return err
	}
	if lines > 0 {
		seq, _, _ := evidence.ParseChunkName(l.name)
		at := int64(s.cfg.Clock().BootNs)
		s.drops.merge(drops{lines: lines, chunks: 1, firstSeq: seq, lastSeq: seq, fromNs: at, toNs: at, why: "a write-ahead file was put aside: " + why.Error()})
	}
	return nil
}

func readWALFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxWALBytes)) // what is longer is cut off like what is torn
}

// adopt makes chunks of what earlier processes left in write-ahead files. Those
// whose chunk is published lose their file. The log is open.
//
// The chunks have the numbers from first on: of lines of one process before those of
// a later one. Each file is given its chunk's name before the chunk can come into
// the log: another start after a crash finds one or the other, and does not say the
// lines twice. After an error adopt can be called again.
func (s *Spool) adopt(first uint64) ([]*chunk, error) {
	for i := 0; i < len(s.left); {
		l := s.left[i]
		if !s.published(l.name) && len(l.lines) > 0 {
			i++
			continue
		}
		if err := ignoreMissing(os.Remove(l.path)); err != nil {
			return nil, err
		}
		s.left = slices.Delete(s.left, i, i+1)
	}
	s.foundLost()
	if len(s.left) == 0 {
		return nil, nil
	}
	order := make([]int, len(s.left))
	for i := range order {
		order[i] = i
	}
	if have, _, _ := evidence.ParseChunkName(s.left[0].name); first > have {
		slices.Reverse(order) // names move up: the last one has room first
	}
	for _, i := range order {
		l, name := &s.left[i], evidence.ChunkName(first+uint64(i), s.state.instance)
		if name == l.name {
			continue
		}
		to := filepath.Join(s.walPath(), name+walExtension)
		if err := renameNoReplace(l.path, to); err != nil {
			return nil, err
		}
		l.path, l.name = to, name
	}
	if err := syncPath(s.walPath()); err != nil {
		return nil, err
	}
	var out []*chunk
	for _, l := range s.left {
		c, bad, err := s.chunkOf(l)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.path, err)
		}
		if bad > 0 {
			s.cfg.Log.Error("lines of a write-ahead file cannot be signed by this version", "file", l.path, "lines", bad)
			at := int64(s.here(c.header).BootNs)
			s.mu.Lock()
			s.drops.merge(drops{
				lines: bad, chunks: 1, firstSeq: uint64(c.header.Seq), lastSeq: uint64(c.header.Seq), fromNs: at, toNs: at,
				why: "not lines of this version's, in a write-ahead file",
			})
			s.mu.Unlock()
		}
		if c.tally.Lines() == 0 {
			c.wal.remove()
			continue
		}
		s.cfg.Log.Info("found lines that an earlier agent could not publish", "chunk", c.header.Chunk, "lines", c.tally.Lines(), "until", l.last())
		out = append(out, c)
	}
	s.left = nil
	return out, nil
}

// adoptLate is adopt where the log could not be opened at the start. It reports
// whether there are chunks now that come before all others.
func (s *Spool) adoptLate() (bool, error) {
	if len(s.left) == 0 {
		return false, nil
	}
	found, err := s.adopt(s.leftAt)
	if err != nil {
		return false, fmt.Errorf("write-ahead files: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = slices.Insert(s.pending, 0, found...)
	for _, c := range found {
		s.bytes += c.size()
		s.wait(c, 1)
	}
	return len(found) > 0, nil
}

// published says whether a chunk of an earlier process came into the log. Where its
// log was lost, a sound chunk of that name in the spool did.
func (s *Spool) published(name string) bool {
	if _, ok := s.book.has(name); ok {
		return true
	}
	if _, instance, _ := evidence.ParseChunkName(name); instance == s.state.instance {
		return false
	}
	b, err := readBounded(s.readyPath(name))
	if err != nil {
		return false
	}
	c, _ := verify.Bytes(name, b, s.cfg.Signer.Public())
	return c != nil && c.Header.Chunk == name
}

// chunkOf makes a chunk of a file's lines, and counts those that this version would
// not have written.
func (s *Spool) chunkOf(l leftover) (c *chunk, bad uint64, err error) {
	seq, _, _ := evidence.ParseChunkName(l.name)
	h := s.headerOf(l.head, seq)
	h.Chunk = l.name
	if c, err = newChunk(h, nil, l.head.Instance); err != nil {
		return nil, 0, err
	}
	for line := range bytes.SplitSeq(bytes.TrimSuffix(l.lines, []byte("\n")), []byte("\n")) {
		v, err := evidence.Decode(string(line))
		if e := (encoded{v, line}); err == nil && slices.Contains(evidence.Formats, l.head.Lines) && c.fits(e) {
			c.add(e)
			if g, ok := v.(*evidence.Gap); ok && g.Reason == evidence.GapSpoolDropped && !isRefusal(g) {
				c.carries.carryOn(g, c.header)
			}
			continue
		}
		bad++
	}
	c.kept, c.wal = len(c.body), &walFile{path: l.path}
	c.closedNs = l.atNs
	return c, bad, nil
}

// here is a chunk's clock as this boot's time has it: boot times of another boot
// are told by the wall clock.
func (s *Spool) here(h evidence.Header) evidence.Clock {
	if h.BootID == s.cfg.BootID {
		return h.Clock
	}
	return evidence.Clock{BootNs: evidence.Uint64(s.cfg.Clock().Boot(h.Clock.Wall)), Wall: h.Clock.Wall}
}

// PowerLoss says since when evidence may have been lost with the machine: the last
// agent was in another boot and did not end in order, and from is the last moment
// of which something was found. Who starts signs that as a powerLoss gap. After a
// mere kill in the same boot there is none: what was written is in the kernel, and
// is published.
func (s *Spool) PowerLoss() (from evidence.Time, lost bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost, !s.lost.IsZero()
}

// lostSince moves the last moment of which something was found.
func (s *Spool) lostSince(t evidence.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost.IsZero() || t.Std().After(s.lost.Std()) {
		s.lost = t
	}
}

func (s *Spool) foundLost() {
	for _, l := range s.left {
		if l.head.BootID != s.cfg.BootID {
			s.lostSince(l.last())
		}
	}
}
