package spool

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"probity/evidence"
	"probity/evidence/tlog"
)

// Files of the state directory.
const (
	seqFile      = "seq"      // the highest number that may have been used, decimal
	instanceFile = "instance" // 16 hex digits, new with each empty state directory and each log
	treeFile     = "log"      // the last checkpoint's text, without its signature
)

// reserveAhead is how many numbers one fsync reserves. A loss of power leaves a hole
// of at most as many; Close and a kill leave none.
const reserveAhead = 64

// state is the part of the spool that outlives the chunks: shippers remove
// them, and their numbers must still not be used again.
//
// Invariant: no chunk is published under a number above what seq durably says,
// nor before instance is durable.
type state struct {
	dir      *os.File // locked
	instance string
	used     uint64    // what seq says
	since    time.Time // when it was last written, as found; zero if it was not there
	kept     bool      // instance is durable
	tree     tlog.Tree // of the last checkpoint that this directory knows of
}

// openState locks and reads the state directory. It creates the directory but
// no file in it: a disk that is full now must not keep the agent from starting.
func openState(dir string) (*state, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	// Its name has to outlive a loss of power too: what is written below is.
	if err := syncPath(filepath.Dir(filepath.Clean(dir))); err != nil && !errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	s := &state{dir: d}
	if err := s.load(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return s, nil
}

func (s *state) load() error {
	if err := unix.Flock(int(s.dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock %s: %w (is another agent running?)", s.dir.Name(), err)
	}
	seq, err := s.read(seqFile)
	if err != nil {
		return err
	}
	if seq != "" {
		n, err := strconv.ParseUint(seq, 10, 64)
		if err != nil || n >= evidence.MaxSeq {
			return fmt.Errorf("%s: %.40q is not a sequence number", filepath.Join(s.dir.Name(), seqFile), seq)
		}
		s.used = n
		if st, err := os.Stat(filepath.Join(s.dir.Name(), seqFile)); err == nil {
			s.since = st.ModTime()
		}
	}
	s.recall()
	instance, err := s.read(instanceFile)
	if err != nil {
		return err
	}
	switch {
	case instance != "" && !evidence.ValidInstance(instance):
		return fmt.Errorf("%s: %.40q is not 16 hex digits", filepath.Join(s.dir.Name(), instanceFile), instance)
	case instance != "" && seq != "":
		s.instance, s.kept = instance, true
	default:
		// Without the numbers that were used, the instance cannot be used on: the
		// chunks of these names may be with a shipper already.
		s.instance = newInstance()
	}
	return nil
}

func newInstance() string {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand, Go 1.24)
	return hex.EncodeToString(b[:])
}

// renew gives the chunks and the log another name from here on.
func (s *state) renew() error {
	instance := newInstance()
	if err := s.replace(instanceFile, instance); err != nil {
		return err
	}
	s.instance, s.kept = instance, true
	return nil
}

// unused takes another name where numbers were reserved and no log ever began, or
// nobody knows of it any more: so they can be counted from the first again.
func (s *state) unused() {
	s.instance, s.kept = newInstance(), false
}

// first reports whether the state is that of an installation that was killed in its
// first commit: no checkpoint is remembered, and no second lot of numbers was
// reserved. A chunk is published only after its checkpoint was remembered, so none of
// that log was, and who may write the spool has nothing to roll it back to.
func (s *state) first() bool { return s.tree.Size == 0 && s.used <= reserveAhead }

// recall reads the last checkpoint that was remembered. What cannot be read says
// nothing: it is written without a sync, and may be empty after loss of power.
func (s *state) recall() {
	f, err := os.OpenFile(filepath.Join(s.dir.Name(), treeFile), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 8<<10))
	if err != nil {
		return
	}
	if t, err := tlog.ParseText(string(b)); err == nil {
		s.tree = t
	}
}

// remember keeps a checkpoint where who may write the spool may not. It is not
// synced: an older one than the last still shows that a log was rolled back
// further than that.
func (s *state) remember(t tlog.Tree) {
	path := filepath.Join(s.dir.Name(), treeFile)
	if err := os.WriteFile(path+".new", []byte(t.Text()), 0o640); err != nil {
		return
	}
	if os.Rename(path+".new", path) == nil {
		s.tree = t
	}
}

// read returns a small file's content without its newline, "" if it is not there.
func (s *state) read(name string) (string, error) {
	f, err := os.OpenFile(filepath.Join(s.dir.Name(), name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return "", err
	}
	text, ok := strings.CutSuffix(string(b), "\n")
	if !ok || text == "" {
		return "", fmt.Errorf("%s: %.40q: want one line", f.Name(), b)
	}
	return text, nil
}

// reserve returns nil when a chunk may be published under seq.
func (s *state) reserve(seq uint64) error {
	if seq > evidence.MaxSeq-reserveAhead {
		return fmt.Errorf("%w: no sequence numbers are left", errNever)
	}
	if !s.kept {
		if err := s.replace(instanceFile, s.instance); err != nil {
			return err
		}
		s.kept = true
	}
	if seq <= s.used {
		return nil
	}
	return s.settle(seq + reserveAhead - 1)
}

// settle makes used the highest number that may have been used.
func (s *state) settle(used uint64) error {
	if used == s.used || !s.kept {
		return nil
	}
	if err := s.replace(seqFile, strconv.FormatUint(used, 10)); err != nil {
		return err
	}
	s.used = used
	return nil
}

// replace makes one line durable: temporary file, fsync, rename, fsync of the
// directory.
func (s *state) replace(name, text string) error {
	path := filepath.Join(s.dir.Name(), name)
	tmp := path + ".new"
	if err := ignoreMissing(os.Remove(tmp)); err != nil {
		return err
	}
	if err := writeFile(tmp, 0o640, []byte(text+"\n")); err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(tmp)))
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return s.dir.Sync()
}

// close gives up the lock.
func (s *state) close() error { return s.dir.Close() }

// visible lists the chunks below ready/ by name, and the highest sequence number
// of them, 0 if there is none. It matters when the state directory was lost: numbers
// then go on above those of the former instance, so that names still sort by age. A
// name that is no chunk's is not ours to judge, and one so high that it would use up
// the numbers is somebody's joke.
func visible(dir string) (names map[string]bool, top uint64, err error) {
	names = map[string]bool{}
	err = filepath.WalkDir(filepath.Join(dir, ReadyDir), func(_ string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // no spool yet, or a shipper has just removed it
		}
		if err != nil {
			return err
		}
		name, _ := strings.CutSuffix(e.Name(), ".ndjson")
		if seq, _, ok := evidence.ParseChunkName(name); ok && seq < evidence.MaxSeq/2 {
			names[name] = true
			top = max(top, seq)
		}
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list %s: %w", dir, err)
	}
	return names, top, nil
}
