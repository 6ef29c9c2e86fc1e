package probe

import (
	"cmp"
	"container/list"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf/symbol"
	"probity/runtime/image"
)

// Inspector reads ELF files once and remembers what it found, so that a warm
// start is a look-up. The zero value is ready to use. Safe for concurrent use.
type Inspector struct {
	Limits symbol.Limits
	Max    int // files remembered (4096)

	mu    sync.Mutex
	known map[inspectKey]*list.Element
	order list.List // of *inspected, most recently used first

	layers scans
}

// stamp identifies the bytes of a file as well as the kernel can tell, if it was
// steady when it was taken: any write changes ctime, which only who may set the clock
// can choose, before Linux 6.13.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

func stampOf(f *os.File) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return stamp{}, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return stamp{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}, nil
}

// unchanged returns nil if a file has the bytes that were read at that time.
func unchanged(f *os.File, at stamp) error {
	now, err := stampOf(f)
	if err == nil && now != at {
		err = fmt.Errorf("%s has changed since it was read", f.Name())
	}
	return err
}

type inspectKey struct {
	stamp
	query string // all of it
}

func keyOf(at stamp, q symbol.Query) inspectKey {
	return inspectKey{at, fmt.Sprintf("%#v", q)} // names every field, quotes every string
}

// headBytes is as much of a file as the kernel looks at for an interpreter
// (BINPRM_BUF_SIZE).
const headBytes = 256

type inspected struct {
	key    inspectKey
	once   sync.Once
	facts  Facts // but for its digest
	digest *digester
	id     symbol.Identity // where only that was asked for
	err    error
}

// Inspect implements Files for one match.
func (in *Inspector) Inspect(m image.Match, q symbol.Query) (Facts, error) {
	return in.inspect(m, q, time.Time{})
}

// inspect reads a file that is not known yet until the time given.
func (in *Inspector) inspect(m image.Match, q symbol.Query, until time.Time) (Facts, error) {
	f, err := m.Open()
	if err != nil {
		return Facts{}, err
	}
	defer f.Close()
	at, err := stampOf(f)
	if err != nil {
		return Facts{}, err
	}
	key := keyOf(at, q)
	if !until.IsZero() && time.Now().After(until) && !in.knows(key) {
		return Facts{}, fmt.Errorf("%w: reading the files of this container took too long", symbol.ErrTime)
	}
	e := in.entry(key)
	e.once.Do(func() {
		e.facts.stamp, e.facts.plans = at, new(filePlans)
		var s *steady
		if s, e.facts.unsteady = hold(m, f); s != nil {
			defer func() {
				e.facts.unsteady = cmp.Or(s.still(), unchanged(f, at))
				s.free()
			}()
		}
		head := make([]byte, headBytes)
		n, _ := f.ReadAt(head, 0) // what it could not read, symbol.Read will say
		e.facts.Head = string(head[:n])
		e.facts.ELF, e.facts.Symbols, e.err = symbol.Read(f, at.size, q, in.Limits)
		e.digest = &digester{at: at, most: in.Limits.Largest(), busy: make(chan struct{}, 1)}
	})
	if errors.Is(e.err, symbol.ErrTime) || e.facts.unsteady != nil { // it says little about the file
		in.forget(e)
	}
	// What is remembered is of the bytes. The way to them is whoever's who asks: the
	// next one's file may be closed by the time that this one's is hashed.
	facts := e.facts
	facts.DigestBy = func(until time.Time) (string, error) { return e.digest.by(m, until) }
	facts.Digest = func() (string, error) { return e.digest.by(m, time.Time{}) }
	return facts, e.err
}

func (in *Inspector) knows(k inspectKey) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.known[k] != nil
}

func (in *Inspector) forget(e *inspected) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if el := in.known[e.key]; el != nil && el.Value == e {
		in.order.Remove(el)
		delete(in.known, e.key)
	}
}

func (in *Inspector) entry(k inspectKey) *inspected {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.known == nil {
		in.known = map[inspectKey]*list.Element{}
	}
	if el := in.known[k]; el != nil {
		in.order.MoveToFront(el)
		return el.Value.(*inspected)
	}
	e := &inspected{key: k}
	in.known[k] = in.order.PushFront(e)
	bound := in.Max
	if bound == 0 {
		bound = 4096
	}
	for len(in.known) > bound {
		last := in.order.Back()
		in.order.Remove(last)
		delete(in.known, last.Value.(*inspected).key)
	}
	return e
}

// ErrNotHashed reports that a file was not hashed in time.
var ErrNotHashed = errors.New("it was not hashed: there was no time for all of the container's files")

// digester hashes a file once, for all who ask. It holds none of their files.
type digester struct {
	at   stamp
	most int64
	busy chan struct{} // holds one token while somebody uses the fields below

	done bool
	sum  string
	err  error
}

// by returns the digest, hashing the file that m leads to until the time given;
// zero is no bound. That m does not lead to it is not remembered: the next one may.
func (d *digester) by(m image.Match, until time.Time) (string, error) {
	select {
	case d.busy <- struct{}{}: // also past the time: it may be known
	default:
		var late <-chan time.Time
		if !until.IsZero() {
			timer := time.NewTimer(time.Until(until))
			defer timer.Stop()
			late = timer.C
		}
		select {
		case d.busy <- struct{}{}:
		case <-late:
			return "", fmt.Errorf("hash %s: %w", m.Path, ErrNotHashed)
		}
	}
	defer func() { <-d.busy }()
	if d.done {
		return d.sum, d.err
	}
	if d.at.size > d.most {
		return "", fmt.Errorf("hash %s: %w: it has %d bytes, %d are taken", m.Path, symbol.ErrTooLarge, d.at.size, d.most)
	}
	f, err := m.Open()
	if err == nil {
		defer f.Close()
		err = unchanged(f, d.at)
	}
	if err != nil {
		return "", fmt.Errorf("hash %s: %w", m.Path, err)
	}
	sum, err := digest(m, f, d.at, until)
	if errors.Is(err, ErrNotHashed) || errors.Is(err, errUnsteady) { // another time
		return "", err
	}
	d.done, d.sum, d.err = true, sum, err
	return sum, err
}

// digestPart is how much is hashed until somebody looks at the clock.
const digestPart = 4 << 20

// digest hashes the file's bytes as they are on disk, never as they are in a
// process: a probed function has a breakpoint in it. They must be the bytes
// that were inspected, from the first to the last. A file past the bound of
// what is inspected is not hashed at all: it may be terabytes of holes.
func digest(m image.Match, f *os.File, at stamp, until time.Time) (string, error) {
	s, err := hold(m, f)
	if err != nil {
		return "", err
	}
	defer s.free()
	h := sha256.New()
	for left := at.size; left > 0; left -= digestPart {
		if !until.IsZero() && time.Now().After(until) {
			return "", fmt.Errorf("hash %s: %w", m.Path, ErrNotHashed)
		}
		if _, err := io.Copy(h, io.LimitReader(s, min(left, digestPart))); err != nil {
			return "", fmt.Errorf("hash %s: %w", m.Path, err)
		}
	}
	if err := cmp.Or(s.still(), unchanged(f, at)); err != nil {
		return "", fmt.Errorf("hash: %w", err)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}
