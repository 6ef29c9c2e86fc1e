package probe

import (
	"cmp"
	"container/list"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"probity/bpf/symbol"
	"probity/runtime/image"
)

// Bounds of searches for files by what they are.
const (
	maxObjects  = 1 << 16 // ELF files that are remembered, of all layers
	maxDoubtful = 256     // files of one layer that could not be read
)

// Tree is the file tree of one container: a view of its layers, read by an
// Inspector. It is a Finder.
type Tree struct {
	*image.View
	*Inspector
	// Runs is what the container starts.
	Runs Command
	// Until bounds the reading of files that nobody has read yet, in a search by
	// soname or build-id: a start is not held any longer. What was read by then
	// is remembered, so that the next start goes on from there. The zero value is
	// no bound.
	Until time.Time
	// ReadUntil bounds the reading of files for what is in them: who puts
	// thousands of files that are slow to read into an image must not keep the
	// agent busy. Those that nobody has read by then are fileUnreadable. The zero
	// value is no bound.
	ReadUntil time.Time
}

// Inspect implements Files.
func (t Tree) Inspect(m image.Match, q symbol.Query) (Facts, error) {
	return t.Inspector.inspect(m, q, t.ReadUntil)
}

var _ Finder = Tree{}

// Command implements Finder.
func (t Tree) Command() Command { return t.Runs }

// Objects implements Finder.
func (t Tree) Objects(want func(symbol.Identity) bool) (matches []image.Match, complete bool, why string) {
	note := func(format string, args ...any) {
		if why == "" {
			why = fmt.Sprintf(format, args...)
		}
	}
	for _, f := range t.View.LayerFiles() {
		if f.Key() == "" {
			continue // unreadable: Unsearched says so
		}
		found, doubtful, err := t.Inspector.scan(f.Key()).objects(f, t.Until, t.Limits)
		if err != nil {
			note("look for ELF files in layer %s: %v", f.Layer.Dir, err)
		}
		for _, o := range found {
			if !want(o.id) {
				continue
			}
			if m, ok := t.View.Shows(f.Layer, o.rel); ok {
				matches = append(matches, m)
			}
		}
		for _, d := range doubtful {
			if m, ok := t.View.Shows(f.Layer, d.rel); ok {
				note("%s: %v", m.Path, d.err)
			}
		}
	}
	late := false
	upper := t.View.EachUpper(func(m image.Match) bool {
		if late = t.late(); late {
			return false
		}
		id, err := t.identify(m)
		switch {
		case err == nil && want(id):
			matches = append(matches, m)
		case doubted(err):
			note("%s: %v", m.Path, err)
		}
		return true
	})
	if late {
		note("the files of the writable layer could not all be read within the time of a start")
	}
	for _, w := range []string{upper, t.View.Unsearched()} {
		if w != "" {
			note("%s", w)
		}
	}
	slices.SortFunc(matches, func(a, b image.Match) int { return strings.Compare(a.Path, b.Path) })
	return matches, why == "", why
}

func (t Tree) late() bool { return !t.Until.IsZero() && time.Now().After(t.Until) }

// doubted reports whether a file that could not be read may be an ELF file that
// a loader takes. One of another byte order is none for this kernel.
func doubted(err error) bool {
	return err != nil && !errors.Is(err, symbol.ErrNotELF) && !errors.Is(err, symbol.ErrForeign)
}

// identify reads a file of the writable layer. Of those that are not ELF nothing
// is remembered: a container can have any number of them.
func (in *Inspector) identify(m image.Match) (symbol.Identity, error) {
	f, err := m.Open()
	if err != nil {
		return symbol.Identity{}, err
	}
	defer f.Close()
	if !elfMagic(f) {
		return symbol.Identity{}, symbol.ErrNotELF
	}
	at, err := stampOf(f)
	if err != nil {
		return symbol.Identity{}, err
	}
	e := in.entry(inspectKey{at, "identity"})
	e.once.Do(func() {
		s, unsteady := hold(m, f)
		e.id, e.err = symbol.Identify(f, at.size, in.Limits)
		if unsteady == nil {
			unsteady = cmp.Or(s.still(), unchanged(f, at))
			s.free()
		}
		e.facts.unsteady = unsteady
	})
	if e.facts.unsteady != nil { // it may be another one by the next time
		in.forget(e)
	}
	return e.id, e.err
}

func elfMagic(r io.ReaderAt) bool {
	var b [4]byte
	n, _ := r.ReadAt(b[:], 0) // what cannot be read is not run either
	return string(b[:n]) == "\x7fELF"
}

// elfFile is an ELF file of a layer.
type elfFile struct {
	rel string
	id  symbol.Identity
}

type unread struct {
	rel string
	err error
}

// scan is what is known of the ELF files of one layer. It is made piece by
// piece, by whoever has time.
type scan struct {
	key  string
	busy chan struct{} // holds one token while somebody reads

	mu       sync.Mutex
	next     [2]int // how far the passes are, in regular files: likely ones, others
	done     bool
	found    []elfFile
	doubtful []unread
}

var (
	errLate = errors.New("not all of its files could be read within the time of a start")
	errMany = errors.New("it has too many ELF files, or too many that cannot be read")
)

// objects reads on where the layer was left, until the time given, and returns
// all that is known. The slices are not to be changed.
func (s *scan) objects(f image.LayerFiles, until time.Time, lim symbol.Limits) ([]elfFile, []unread, error) {
	err := s.lock(until)
	if err == nil {
		defer func() { <-s.busy }()
		err = s.read(f, until, lim)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.found, s.doubtful, err
}

// lock waits for another one who reads the same layer.
func (s *scan) lock(until time.Time) error {
	if until.IsZero() {
		s.busy <- struct{}{}
		return nil
	}
	select {
	case s.busy <- struct{}{}: // also past the time: it may be known
		return nil
	default:
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case s.busy <- struct{}{}:
		return nil
	case <-timer.C:
		return errLate
	}
}

func (s *scan) read(f image.LayerFiles, until time.Time, lim symbol.Limits) error {
	if s.done {
		return nil
	}
	dir, err := f.Open()
	if err != nil {
		return err
	}
	defer dir.Close()
	for pass := range s.next {
		f.Each(s.next[pass], func(rel string) bool {
			if likely(rel) == (pass == 0) {
				err = s.look(dir, rel, until, lim)
			}
			if err == nil {
				s.next[pass]++
			}
			return err == nil
		})
		if err != nil {
			return err
		}
	}
	s.done = true
	return nil
}

// likely reports whether a file's path is such as programs and libraries have:
// where there is no time for all files, these were read.
func likely(rel string) bool {
	dir, name := path.Split(rel)
	return strings.Contains(name, ".so") || strings.HasSuffix(dir, "bin/")
}

func (s *scan) look(dir *image.OpenDir, rel string, until time.Time, lim symbol.Limits) error {
	if !until.IsZero() && time.Now().After(until) {
		return errLate
	}
	id, err := readObject(dir, rel, lim)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(s.found) == maxObjects || len(s.doubtful) == maxDoubtful:
		return errMany
	case err == nil:
		s.found = append(s.found, elfFile{rel, id})
	case doubted(err):
		s.doubtful = append(s.doubtful, unread{rel, err})
	}
	return nil
}

func readObject(dir *image.OpenDir, rel string, lim symbol.Limits) (symbol.Identity, error) {
	f, size, err := dir.Read(rel)
	if err != nil {
		return symbol.Identity{}, err
	}
	defer f.Close()
	if !elfMagic(f) {
		return symbol.Identity{}, symbol.ErrNotELF
	}
	return symbol.Identify(f, size, lim)
}

// scans are the layers that were looked into, least recently used last.
type scans struct {
	mu    sync.Mutex
	known map[string]*list.Element
	order list.List // of *scan
}

func (in *Inspector) scan(key string) *scan {
	c := &in.layers
	c.mu.Lock()
	defer c.mu.Unlock()
	if el := c.known[key]; el != nil {
		c.order.MoveToFront(el)
		return el.Value.(*scan)
	}
	if c.known == nil {
		c.known = map[string]*list.Element{}
	}
	// Those that are new or still grow are counted when the next one comes.
	held := 0
	for el := c.order.Front(); el != nil; {
		s, next := el.Value.(*scan), el.Next()
		s.mu.Lock()
		held += 1 + len(s.found) + len(s.doubtful)
		s.mu.Unlock()
		if held > maxObjects {
			c.order.Remove(el)
			delete(c.known, s.key)
		}
		el = next
	}
	s := &scan{key: key, busy: make(chan struct{}, 1)}
	c.known[key] = c.order.PushFront(s)
	return s
}

// bySoname matches a glob over sonames.
func bySoname(glob string) func(symbol.Identity) bool {
	return func(id symbol.Identity) bool {
		ok, err := path.Match(glob, id.Soname)
		return id.Soname != "" && ok && err == nil // an error: the policy was not made by Parse
	}
}

func byBuildID(want string) func(symbol.Identity) bool {
	return func(id symbol.Identity) bool { return id.BuildID == want }
}
