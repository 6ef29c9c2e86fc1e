package spool

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"probity/evidence"
)

// walDir holds the write-ahead files, in the state directory and not in the spool:
// what is found in them is signed at the next start, so nobody may write there who
// may not sign.
const walDir = "wal"

// keepEvery is how often lines that wait are made durable: they are for at most
// this long in memory alone, and there are at most so many fsyncs.
const keepEvery = 100 * time.Millisecond

// keepPatience is how long a closed chunk has to come into the log before its lines
// go into a write-ahead file too. A disk that keeps up does not write them twice.
const keepPatience = 500 * time.Millisecond

// walFile is a write-ahead file that this process writes.
type walFile struct {
	f    *os.File // nil of one that an earlier process wrote
	path string
	sum  uint32 // of its last frame
}

// Sync returns nil when everything that was appended before the call is durable: in
// the log, or in a write-ahead file, of which the next start makes a chunk. It
// closes no chunk. Callers at once share the fsyncs.
func (s *Spool) Sync() error {
	if err := s.keep(true); err != nil {
		return fmt.Errorf("sync spool: %w", err)
	}
	return nil
}

// keepUp keeps lines that wait until ctx ends.
func (s *Spool) keepUp(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.waits:
		}
		wait := keepEvery
		if failed {
			wait = retryAfter
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := s.keep(false)
		switch {
		case err != nil && !failed:
			s.cfg.Log.Error("lines that wait are in memory only", "error", err)
		case err == nil && failed:
			s.cfg.Log.Info("lines that wait are kept again")
		}
		failed = err != nil
	}
}

// waiting has keepUp look, with mu held.
func (s *Spool) waiting() {
	if s.due {
		return
	}
	s.due = true
	select {
	case s.waits <- struct{}{}:
	default:
	}
}

// share is what one write-ahead file is given.
type share struct {
	c        *chunk
	from, to int // in keepBuf: frames, which still lack their sums
	lines    int // where the frame with the lines begins
	upTo     int // of the chunk's body
	err      error
}

// keep writes lines that are in memory only into write-ahead files: with all every
// line, else not those of chunks that are on their way into the log.
//
// System calls, in order: for each chunk open(O_EXCL) where it has no file yet,
// write, fdatasync; and where a file was made, fsync of their directory. After an
// error the file is not touched again: the chunk's lines all go into a new one at
// the next attempt, from memory.
func (s *Spool) keep(all bool) error {
	s.keeping.Lock()
	defer s.keeping.Unlock()
	s.tidy()
	shares := s.shares(all)
	var errs []error
	made := false
	for i := range shares {
		sh := &shares[i]
		isNew := sh.c.wal == nil
		if sh.err = s.keepShare(sh); sh.err != nil {
			errs = append(errs, sh.err)
			continue
		}
		made = made || isNew
	}
	if made {
		if err := syncPath(s.walPath()); err != nil {
			errs = append(errs, err)
			for i := range shares {
				shares[i].err = err // nobody knows which
			}
		}
	}
	for i := range shares {
		if sh := &shares[i]; sh.err != nil {
			s.abandon(sh.c)
		} else {
			sh.c.kept = sh.upTo
		}
	}
	if len(errs) > 0 {
		s.mu.Lock()
		s.waiting()
		s.mu.Unlock()
	}
	return errors.Join(errs...)
}

func (s *Spool) walPath() string { return filepath.Join(s.cfg.State, walDir) }

// shares copies what is to be written, with keeping held.
func (s *Spool) shares(all bool) (out []share) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.due = false
	s.keepBuf = s.keepBuf[:0]
	now, stamp := time.Now(), int64(s.cfg.Clock().BootNs)
	take := func(c *chunk) {
		if c.kept == len(c.body) {
			return
		}
		sh := share{c: c, from: len(s.keepBuf), upTo: len(c.body)}
		if c.wal == nil {
			c.kept = c.head
			s.keepBuf = append(openFrame(s.keepBuf), c.walHead...)
		}
		sh.lines = len(s.keepBuf)
		s.keepBuf = binary.LittleEndian.AppendUint64(openFrame(s.keepBuf), uint64(stamp))
		s.keepBuf = append(s.keepBuf, c.body[c.kept:]...)
		sh.to = len(s.keepBuf)
		out = append(out, sh)
	}
	for i, c := range s.pending {
		if i >= s.inflight && c.placed != nil && c.placed.logged {
			continue
		}
		if !all && s.failing == nil && now.Sub(c.closed) < keepPatience {
			s.waiting() // to look again
			continue
		}
		take(c)
	}
	if s.open != nil {
		take(s.open)
	}
	return out
}

func (s *Spool) keepShare(sh *share) error {
	c, b := sh.c, s.keepBuf[sh.from:sh.to]
	if c.wal == nil {
		w, err := s.createWAL(c.name)
		if err != nil {
			return err
		}
		c.wal = w
		w.sum = closeFrame(b[:sh.lines-sh.from], 0, 0)
	}
	c.wal.sum = closeFrame(b, sh.lines-sh.from, c.wal.sum)
	if _, err := c.wal.f.Write(b); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(c.wal.f.Fd())); err != nil {
		return &os.PathError{Op: "fdatasync", Path: c.wal.path, Err: err}
	}
	return nil
}

func (s *Spool) createWAL(name string) (*walFile, error) {
	dir := s.walPath()
	if err := os.Mkdir(dir, 0o700); err == nil {
		s.walNamed = false
	} else if !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	if !s.walNamed {
		if err := syncPath(s.cfg.State); err != nil {
			return nil, err
		}
		s.walNamed = true
	}
	path := filepath.Join(dir, name+walExtension)
	if err := ignoreMissing(os.Remove(path)); err != nil { // of an attempt that failed
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	return &walFile{f: f, path: path}, nil
}

// abandon lets go of a file that could not be written.
func (s *Spool) abandon(c *chunk) {
	if c.wal != nil {
		c.wal.remove()
		c.wal = nil
	}
	c.kept = c.head
}

// remove needs no fsync of the directory: a file that comes back is of a chunk that
// the log has, and the next start sees that.
func (w *walFile) remove() {
	w.close()
	os.Remove(w.path)
}

func (w *walFile) close() {
	if w.f != nil {
		w.f.Close()
		w.f = nil
	}
}

// tidy removes the files of chunks that are published or given up, with keeping
// held.
func (s *Spool) tidy() {
	s.mu.Lock()
	over := s.over
	s.over = nil
	s.mu.Unlock()
	for _, c := range over {
		if c.wal != nil {
			c.wal.remove()
			c.wal = nil
		}
	}
}

// isOver notes that a chunk needs no write-ahead file any more, with mu held.
func (s *Spool) isOver(c *chunk) {
	s.wait(c, -1)
	c.body = nil
	s.over = append(s.over, c)
}

// rename gives a chunk's file the name that the chunk has in the log, so that the
// next start finds it there.
func (s *Spool) rename(c *chunk, name string) error {
	s.keeping.Lock()
	defer s.keeping.Unlock()
	if c.name == name {
		return nil
	}
	if c.wal != nil {
		to := filepath.Join(filepath.Dir(c.wal.path), name+walExtension)
		if err := renameNoReplace(c.wal.path, to); err != nil {
			return fmt.Errorf("rename a write-ahead file: %w", err)
		}
		c.wal.path = to
	}
	c.name = name
	return nil
}

// closeWALs closes the files of chunks that stay for the next start.
func (s *Spool) closeWALs() {
	s.keeping.Lock()
	defer s.keeping.Unlock()
	s.tidy()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.pending {
		if c.wal != nil {
			c.wal.close()
		}
	}
}

// encodeWALHead is the head of a chunk's file.
func encodeWALHead(h evidence.Header, instance string) []byte {
	b, err := json.Marshal(walHead{
		Format: walFormat, Lines: evidence.Format, Node: h.Node, Instance: instance, Seq: uint64(h.Seq), BootID: h.BootID, Clock: h.Clock,
	})
	if err != nil {
		panic(err) // texts and numbers
	}
	return b
}
