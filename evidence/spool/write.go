package spool

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"probity/evidence"
)

// errTaken is wrapped when a chunk's name is there already.
var errTaken = errors.New("the name is taken by another file")

// How much is written under one checkpoint.
const (
	maxBatch      = 64
	maxBatchBytes = 32 << 20
)

// write makes the oldest of these chunks durable under their names, as many as one
// checkpoint is to cover, and returns how many. An error that wraps errNever is
// about the first of them.
//
// System calls, in order: what state.reserve does; what [tlog.Open] reads, once;
// for each chunk open(O_EXCL) in tmp/, write, fsync, close; fsync of tmp/; what
// [tlog.Log.Commit] does, for all of them together; for each mkdir of
// ready/DIGITS and fsync of what is above it if it was not there, and
// renameat2(RENAME_NOREPLACE) to ready/DIGITS/NAME.ndjson; fsync of ready/DIGITS.
//
// After an error before the commit nothing has happened: the next attempt writes
// new files from memory, at another place of the log. After an error within it the
// log is read again, and says which of the two it was. After an error behind it the
// next attempt only renames.
func (s *Spool) write(ctx context.Context, waiting []*chunk) (int, error) {
	if len(waiting) == 0 {
		return 0, nil
	}
	if err := s.prepare(ctx, nil); err != nil {
		return 0, err
	}
	if first, err := s.adoptLate(); first || err != nil {
		return 0, err // they are to be written before these
	}
	s.settleUnknown(waiting)
	logged := 0
	for logged < len(waiting) && waiting[logged].placed != nil && waiting[logged].placed.logged {
		logged++
	}
	if logged == 0 {
		var err error
		if logged, err = s.enterWithRoom(ctx, waiting); err != nil {
			return 0, err
		}
	}
	for i, c := range waiting[:logged] {
		if err := s.reveal(c); err != nil {
			return i, err
		}
		s.keepItem(c)
	}
	return logged, nil
}

// enterWithRoom is enter within the quota, and once more where the disk was full.
func (s *Spool) enterWithRoom(ctx context.Context, waiting []*chunk) (int, error) {
	more := int64(0)
	for _, c := range waiting {
		if c.carries.empty() { // what signs a loss must not cause another
			more += c.size()
		}
	}
	if err := s.makeRoom(ctx, more); err != nil {
		return 0, fmt.Errorf("make room in the spool: %w", err)
	}
	n, err := s.enter(waiting)
	if !isFull(err) || len(s.have.items) == 0 {
		return n, err
	}
	if roomErr := s.fullDisk(ctx, more); roomErr != nil {
		return 0, errors.Join(err, fmt.Errorf("make room on the disk: %w", roomErr))
	}
	n, err = s.enter(waiting)
	if err == nil {
		s.reserve()
	}
	return n, err
}

// settleUnknown finds out which chunks are in the log although its commit failed.
func (s *Spool) settleUnknown(waiting []*chunk) {
	for _, c := range waiting {
		if p := c.placed; p != nil && !p.logged {
			at, ok := s.book.has(p.leaf.Chunk)
			p.logged = ok && uint64(at.Leaf) == p.index && at.Digest == p.leaf.Digest
			if p.logged {
				s.book.see(c)
			} else {
				s.unplace(c)
			}
		}
	}
}

// unplace forgets the place that a chunk did not get.
func (s *Spool) unplace(c *chunk) {
	os.Remove(s.tmpPath(c.placed.leaf.Chunk)) // what stays is removed at the next start
	c.placed = nil
}

// enter brings the first chunks into tmp/ and into the log.
func (s *Spool) enter(waiting []*chunk) (n int, err error) {
	at := s.cfg.Clock().Wall
	if err := s.book.begin(at); err != nil {
		return 0, fmt.Errorf("begin an epoch of the node's log: %w", err)
	}
	tmp := filepath.Join(s.cfg.Dir, tmpDir)
	if err := os.MkdirAll(tmp, 0o750); err != nil {
		return 0, err
	}
	committing := false
	defer func() {
		if err == nil || committing {
			return
		}
		s.book.forget()
		for _, c := range waiting {
			if c.placed != nil {
				s.unplace(c)
			}
		}
	}()
	bytes := int64(0)
	for n < len(waiting) && n < maxBatch && (n == 0 || bytes+waiting[n].size() <= maxBatchBytes) {
		c := waiting[n]
		if err := s.ready(c); err != nil {
			if n > 0 && errors.Is(err, errNever) {
				break // it is the first of the next batch
			}
			return 0, err
		}
		if err := s.book.append(&c.placed.leaf, at); err != nil {
			return 0, err
		}
		bytes += c.size()
		n++
	}
	if err := syncPath(tmp); err != nil {
		return 0, err
	}
	committing = true
	if err := s.book.commit(); err != nil {
		return 0, err
	}
	for _, c := range waiting[:n] {
		c.placed.logged = true
		s.book.see(c)
	}
	return n, nil
}

// ready places a chunk and writes it to tmp/.
func (s *Spool) ready(c *chunk) error {
	seq := uint64(c.header.Seq)
	if err := s.state.reserve(seq); err != nil {
		return fmt.Errorf("reserve sequence number %d: %w", seq, err)
	}
	name := evidence.ChunkName(seq, s.state.instance)
	if err := s.rename(c, name); err != nil {
		return err
	}
	if _, err := os.Lstat(s.readyPath(name)); err == nil {
		return fmt.Errorf("%w: %s: %w", errNever, s.readyPath(name), errTaken)
	}
	if err := c.place(s.cfg.Signer, name, s.book.origin(), s.book.log.Size()); err != nil {
		return err
	}
	return s.writeTmp(c)
}

func (s *Spool) tmpPath(name string) string { return filepath.Join(s.cfg.Dir, tmpDir, name+".ndjson") }

func (s *Spool) readyPath(name string) string {
	return filepath.Join(s.cfg.Dir, ReadyDir, filepath.FromSlash(evidence.ChunkPath(name)))
}

func (s *Spool) writeTmp(c *chunk) error {
	tmp := s.tmpPath(c.header.Chunk)
	if err := ignoreMissing(os.Remove(tmp)); err != nil {
		return err
	}
	if err := writeFile(tmp, 0o640, c.body, c.placed.envelope); err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(tmp)))
	}
	return nil
}

// reveal publishes a chunk that is in the log.
func (s *Spool) reveal(c *chunk) error {
	name := c.header.Chunk
	ready := s.readyPath(name)
	if err := s.makeFanOut(filepath.Dir(ready)); err != nil {
		return err
	}
	err := renameNoReplace(s.tmpPath(name), ready)
	switch {
	case errors.Is(err, fs.ErrExist):
		if mine, _ := digestOf(ready); mine != c.placed.leaf.Digest {
			return fmt.Errorf("%w: %s: %w", errNever, ready, errTaken)
		}
	case errors.Is(err, fs.ErrNotExist):
		// Published already, and taken away; or somebody emptied tmp/.
		if mine, _ := digestOf(ready); mine != c.placed.leaf.Digest {
			if err := s.writeTmp(c); err != nil {
				return err
			}
			if err := renameNoReplace(s.tmpPath(name), ready); err != nil {
				return err
			}
		}
	case err != nil:
		return err
	}
	return syncPath(filepath.Dir(ready))
}

// finish completes what an earlier process began: a chunk in tmp/ that is in the
// log is published, all else there goes.
func (s *Spool) finish() error {
	tmp := filepath.Join(s.cfg.Dir, tmpDir)
	names, err := os.ReadDir(tmp)
	if err != nil {
		return err
	}
	for _, n := range names {
		name, _ := strings.CutSuffix(n.Name(), ".ndjson")
		if at, ok := s.book.has(name); ok && n.Type().IsRegular() {
			if have, _ := digestOf(s.tmpPath(name)); have == at.Digest {
				ready := s.readyPath(name)
				if err := s.makeFanOut(filepath.Dir(ready)); err != nil {
					return err
				}
				if err := renameNoReplace(s.tmpPath(name), ready); err == nil {
					s.cfg.Log.Info("published a chunk that an earlier agent left", "chunk", name)
					if err := syncPath(filepath.Dir(ready)); err != nil {
						return err
					}
					continue
				}
			}
		}
		if err := os.RemoveAll(filepath.Join(tmp, n.Name())); err != nil {
			return err
		}
	}
	return nil
}

// digestOf is a chunk file's digest as its leaf says it.
func digestOf(path string) (string, error) {
	b, err := readBounded(path)
	if err != nil {
		return "", err
	}
	return digest(b), nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func writeFile(path string, mode os.FileMode, parts ...[]byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	for _, p := range parts {
		if _, err := f.Write(p); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// renameNoReplace falls back to rename where the file system does not know the
// flag: the state's lock keeps other writers out, so nothing can be there.
func renameNoReplace(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return os.Rename(from, to)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// makeFanOut makes a directory below ready/ and its ancestors durable, once: an
// error on the way leaves it to be done again.
func (s *Spool) makeFanOut(dir string) error {
	if st, err := os.Stat(dir); err == nil && st.IsDir() && dir == s.synced {
		return nil
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	for _, up := range []string{filepath.Join(s.cfg.Dir, ReadyDir), s.cfg.Dir, filepath.Dir(s.cfg.Dir)} {
		if err := syncPath(up); err != nil {
			return err
		}
	}
	s.synced = dir
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync %s: %w", path, err), f.Close())
	}
	return f.Close()
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
