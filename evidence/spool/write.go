package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"probity/evidence"
)

// errTaken is wrapped when a chunk's name is there with other bytes.
var errTaken = errors.New("the name is taken by another file")

// write makes c durable under its name.
//
// System calls, in order: what state.reserve does; mkdir of ready/DIGITS and
// fsync of ready if it was not there; open(O_EXCL) in tmp/, write, fsync, close;
// renameat2(RENAME_NOREPLACE) to ready/DIGITS/NAME.ndjson; fsync of
// ready/DIGITS. After an error at or before rename nothing is visible and the
// next attempt writes a new file from memory: what a failed fsync left in the
// page cache is not relied on. After an error of the last fsync the file is
// visible; the next attempt finds its own bytes and syncs file and directory
// again.
func (s *Spool) write(c *chunk) error {
	envelope, err := c.envelope(s.cfg.Signer)
	if err != nil {
		return err
	}
	if err := s.state.reserve(uint64(c.header.Seq)); err != nil {
		return fmt.Errorf("reserve sequence number %d: %w", c.header.Seq, err)
	}
	name := c.header.Chunk
	ready := filepath.Join(s.cfg.Dir, ReadyDir, filepath.FromSlash(evidence.ChunkPath(name)))
	if err := s.makeFanOut(filepath.Dir(ready)); err != nil {
		return err
	}
	if st, err := os.Lstat(ready); err == nil {
		if !st.Mode().IsRegular() { // it will not go away, and others wait behind this chunk
			return fmt.Errorf("%w: %s: %w", errNever, ready, errTaken)
		}
		return confirm(ready, c.body, int64(len(c.body)+len(envelope)))
	}
	tmp := filepath.Join(s.cfg.Dir, tmpDir, name+".ndjson")
	if err := os.MkdirAll(filepath.Dir(tmp), 0o750); err != nil {
		return err
	}
	if err := ignoreMissing(os.Remove(tmp)); err != nil {
		return err
	}
	if err := writeFile(tmp, 0o640, c.body, envelope); err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(tmp)))
	}
	if err := renameNoReplace(tmp, ready); err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(tmp)))
	}
	return syncPath(filepath.Dir(ready))
}

// sigSlack is by how much the lengths of two signatures of one payload differ at
// most: the numbers in DER lose their leading zero bytes, base64 rounds up.
const sigSlack = 64

// confirm handles a file that is already there: ours, if everything but the
// envelope (whose signature differs each time) is the same, and that is about as
// long.
func confirm(path string, body []byte, size int64) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	have := make([]byte, len(body))
	if _, err := f.ReadAt(have, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if d := st.Size() - size; d < -sigSlack || d > sigSlack || !bytes.Equal(have, body) {
		return fmt.Errorf("%w: %s: %w", errNever, path, errTaken)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return syncPath(filepath.Dir(path))
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

func emptyDir(dir string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := os.RemoveAll(filepath.Join(dir, n.Name())); err != nil {
			return err
		}
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
