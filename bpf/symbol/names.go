package symbol

import (
	"bytes"
	"fmt"
	"math/bits"
	"math/rand/v2"
)

const none = int32(-1)

// hit says which wanted names begin at an offset of a string table: the one
// that is the whole string from there to its end, and the one that is what
// comes before the version ("memcpy" in "memcpy@@GLIBC_2.14", as linkers
// write it into .symtab).
type hit struct{ whole, base int32 }

// matcher finds wanted names in string tables in one pass and without keeping
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

func (m *matcher) step(h uint64, c byte) uint64 { return (h + uint64(c) + 1) * m.mult }

// match fills t.hits.
func (p *parser) match(t *table, m *matcher) error {
	if t.str.size > 0 {
		var last [1]byte
		if err := p.src.read(last[:], t.str.off+t.str.size-1); err != nil {
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
	t.hits = map[uint32]hit{}
	s := scan{matcher: m, used: used, hits: t.hits, most: p.lim.Matches, window: make([]byte, 0, m.longest+streamBuffer)}
	return p.src.stream(t.str.off, t.str.size, 1, s.piece)
}

// scan is the state of one pass over one string table.
type scan struct {
	*matcher
	used []uint64
	hits map[uint32]hit
	most int

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
		if !s.versioned {
			if v := bytes.IndexByte(rest[:end], '@'); v >= 0 {
				s.versioned = true
				if err := s.back(at+v, true); err != nil {
					return err
				}
			}
		}
		at += end
		if at == len(s.window) {
			break // the string goes on
		}
		if err := s.back(at, false); err != nil {
			return err
		}
		at++
		s.start, s.versioned = s.base+uint64(at), false
	}
	if keep := min(len(s.window), s.longest); keep < len(s.window) {
		s.base += uint64(len(s.window) - keep)
		s.window = s.window[:copy(s.window, s.window[len(s.window)-keep:])]
	}
	return nil
}

// back looks for names that end before window[end].
func (s *scan) back(end int, version bool) error {
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
		if err := s.add(uint32(off), n, version); err != nil {
			return err
		}
	}
	return nil
}

func (s *scan) add(off uint32, n int32, version bool) error {
	h, ok := s.hits[off]
	if !ok {
		if len(s.hits) == s.most {
			return fmt.Errorf("more than %d names match: %w", s.most, ErrTooLarge)
		}
		h = hit{none, none}
	}
	if version {
		h.base = n
	} else {
		h.whole = n
	}
	s.hits[off] = h
	return nil
}
