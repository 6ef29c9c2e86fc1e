package symbol

import (
	"bytes"
	"fmt"
	"math/bits"
	"math/rand/v2"
)

// matcher finds exact names in string tables in one pass and without keeping
// the table. Linkers let names share their tails ("write" is the end of
// "__write"), so that a name can begin anywhere; from each end of a string the
// matcher walks back and hashes, and asks only where the hash is one of the
// wanted ones. The multiplier is random: a file can't be made to collide.
type matcher struct {
	names   []string
	longest int
	mult    uint64
	filter  []uint64 // a bit set over the top bits of the hashes
	shift   int
	byHash  map[uint64]int32
}

func newMatcher(want []string) *matcher {
	m := &matcher{}
	have := make(map[string]bool, len(want))
	for _, n := range want {
		if n == "" || have[n] {
			continue
		}
		have[n] = true
		m.names = append(m.names, n)
		m.longest = max(m.longest, len(n))
	}
	width := max(12, bits.Len(uint(len(m.names)))+5) // at most one bit in 16 is set
	m.shift = 64 - width
	for !m.build(width) { // another multiplier
	}
	return m
}

// build chooses a multiplier; false if two of the names collide under it.
func (m *matcher) build(width int) bool {
	m.mult = rand.Uint64() | 1
	m.filter = make([]uint64, 1<<width/64)
	m.byHash = make(map[uint64]int32, len(m.names))
	for i, n := range m.names {
		var h uint64
		for k := len(n) - 1; k >= 0; k-- {
			h = m.step(h, n[k])
		}
		if _, ok := m.byHash[h]; ok {
			return false
		}
		m.byHash[h] = int32(i)
		m.filter[h>>m.shift/64] |= 1 << (h >> m.shift % 64)
	}
	return true
}

// index is the index of a name among m.names; -1 if it is not there.
func (m *matcher) index(name string) int32 {
	var h uint64
	for k := len(name) - 1; k >= 0; k-- {
		h = m.step(h, name[k])
	}
	if i, ok := m.byHash[h]; ok && m.names[i] == name {
		return i
	}
	return -1
}

func (m *matcher) step(h uint64, c byte) uint64 { return (h + uint64(c) + 1) * m.mult }

// Bounds of what is kept of names.
const (
	// maxWhole is the longest name that is matched as a whole; exact raw
	// names are matched whatever follows or precedes them.
	maxWhole = 1 << 20
	// maxKept is the sum of the lengths of all names that matched.
	maxKept = 32 << 20
)

// match fills t.hits.
func (p *parser) match(t *table, w *wanted) error {
	if t.str.size > 0 && !t.mixed {
		var last [1]byte
		if err := t.src.read(last[:], t.str.off+t.str.size-1); err != nil {
			return err
		}
		if last[0] != 0 {
			return fmt.Errorf("names do not end with NUL: %w", ErrMalformed)
		}
	}
	// Which string offsets do functions have as their names? Only these
	// count, else the name "f" would match wherever a string ends with f.
	used, functions := make([]uint64, t.str.size/64+1), false
	err := p.eachFunction(t, func(e entry) error {
		used[e.name/64] |= 1 << (e.name % 64)
		functions = true
		return nil
	})
	if err != nil || !functions {
		return err
	}
	t.hits = map[uint32][]match{}
	s := scan{
		matcher: w.exact, p: p, used: used, hits: t.hits, mixed: t.mixed,
		window: make([]byte, 0, w.exact.longest+streamBuffer),
	}
	if !w.empty() {
		s.ask = func(name []byte, found func(match) error) error { return p.askClones(w, name, found) }
		s.found = func(m match) error { return s.add(s.asked, m) }
	}
	if err := t.src.stream(t.str.off, t.str.size, 1, s.piece); err != nil {
		return err
	}
	if s.uses(s.start, s.base+uint64(len(s.window))) {
		return fmt.Errorf("a name does not end: %w", ErrMalformed)
	}
	return nil
}

// scan is the state of one pass over one string table.
type scan struct {
	*matcher
	p     *parser
	used  []uint64
	hits  map[uint32][]match
	mixed bool // see table
	ask   func(name []byte, found func(match) error) error
	asked uint32            // the string offset of the name that ask was called with
	found func(match) error // what ask was called with

	window    []byte // the end of what went before, and the present piece
	base      uint64 // string offset of window[0]
	start     uint64 // string offset where the present string begins
	versioned bool   // its '@' has been seen
}

func (s *scan) piece(b []byte) error {
	at := len(s.window)
	s.window = append(s.window, b...)
	for at < len(s.window) {
		rest := s.window[at:]
		end := bytes.IndexByte(rest, 0)
		if end < 0 {
			end = len(rest)
		}
		if !s.versioned && !s.mixed {
			if v := bytes.IndexByte(rest[:end], '@'); v >= 0 {
				s.versioned = true
				if err := s.back(at + v); err != nil {
					return err
				}
			}
		}
		at += end
		if at == len(s.window) {
			break // the string goes on
		}
		if err := s.back(at); err != nil {
			return err
		}
		if s.ask != nil {
			if err := s.whole(at); err != nil {
				return err
			}
		}
		at++
		s.start, s.versioned = s.base+uint64(at), false
	}
	keep := s.longest
	if s.ask != nil {
		keep = max(keep, int(min(s.base+uint64(len(s.window))-s.start, maxWhole)))
	}
	if keep < len(s.window) {
		s.base += uint64(len(s.window) - keep)
		s.window = s.window[:copy(s.window, s.window[len(s.window)-keep:])]
	}
	return nil
}

// back looks for exact names that end before window[end].
func (s *scan) back(end int) error {
	from := max(0, end-s.longest)
	if s.start > s.base {
		from = max(from, int(s.start-s.base))
	}
	var h uint64
	for i := end - 1; i >= from; i-- {
		h = s.step(h, s.window[i])
		if top := h >> s.shift; s.filter[top/64]&(1<<(top%64)) == 0 {
			continue
		}
		off := s.base + uint64(i)
		if s.used[off/64]&(1<<(off%64)) == 0 {
			continue
		}
		n, ok := s.byHash[h]
		if !ok || s.names[n] != string(s.window[i:end]) {
			continue
		}
		if err := s.add(uint32(off), match{item: n, name: s.names[n]}); err != nil {
			return err
		}
	}
	return nil
}

// whole asks for each name that ends before window[end], without its version.
func (s *scan) whole(end int) error {
	from := s.start
	to := s.base + uint64(end)
	if first := max(s.base, to-min(to, maxWhole)); from < first {
		if s.uses(from, first) {
			return fmt.Errorf("a name of more than %d bytes: %w", maxWhole, ErrTooLarge)
		}
		from = first
	}
	for off, ok := s.next(from, to); ok; off, ok = s.next(off+1, to) {
		name := s.window[off-s.base : end]
		if v := bytes.IndexByte(name, '@'); v > 0 && !s.mixed {
			name = name[:v]
		}
		if err := s.p.work(len(name)); err != nil {
			return err
		}
		s.asked = uint32(off)
		if err := s.ask(name, s.found); err != nil {
			return err
		}
	}
	return nil
}

// next finds the first string offset in a range that is a function's name.
func (s *scan) next(from, to uint64) (uint64, bool) {
	for from < to {
		if word := s.used[from/64] >> (from % 64); word != 0 {
			from += uint64(bits.TrailingZeros64(word))
			return from, from < to
		}
		from = (from/64 + 1) * 64
	}
	return 0, false
}

func (s *scan) uses(from, to uint64) bool {
	_, ok := s.next(from, to)
	return ok
}

func (s *scan) add(off uint32, m match) error {
	if s.p.matches == s.p.lim.Matches {
		return fmt.Errorf("more than %d names match: %w", s.p.lim.Matches, ErrTooLarge)
	}
	s.p.matches++
	if s.p.kept += len(m.name) + len(m.full); s.p.kept > maxKept {
		return fmt.Errorf("the names that match have more than %d bytes: %w", maxKept, ErrTooLarge)
	}
	s.hits[off] = append(s.hits[off], m)
	return nil
}
