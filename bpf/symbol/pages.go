package symbol

import "fmt"

// pages reads a part of the file, or a section that was unpacked, here and
// there. It keeps the last pages that it read.
type pages struct {
	src  *source
	in   extent
	held []byte // the whole, where it was unpacked
	page [pageCount]page
	turn int
	buf  []byte
}

type page struct {
	n uint64 // its number, from 1
	b []byte
}

const (
	pageSize  = 8 << 10
	pageCount = 32
)

// size is how many bytes there are.
func (g *pages) size() uint64 {
	if g.held != nil {
		return uint64(len(g.held))
	}
	return g.in.size
}

// bytes returns at most n bytes at off, less only where the part ends. They
// are good until the next call.
func (g *pages) bytes(off uint64, n int) ([]byte, error) {
	if off >= g.size() {
		return nil, fmt.Errorf("offset %d of %d bytes: %w", off, g.size(), ErrMalformed)
	}
	n = int(min(uint64(n), g.size()-off))
	if g.held != nil {
		return g.held[off:][:n], nil
	}
	b, err := g.at(off)
	if err != nil || len(b) >= n {
		return b[:min(n, len(b))], err
	}
	g.buf = append(g.buf[:0], b...)
	for len(g.buf) < n {
		if b, err = g.at(off + uint64(len(g.buf))); err != nil {
			return nil, err
		}
		g.buf = append(g.buf, b...)
	}
	return g.buf[:n], nil
}

// exactly is bytes, or an error if there are less.
func (g *pages) exactly(off uint64, n int) ([]byte, error) {
	b, err := g.bytes(off, n)
	if err == nil && len(b) < n {
		return nil, fmt.Errorf("%d bytes at offset %d of %d: %w", n, off, g.size(), ErrMalformed)
	}
	return b, err
}

// at returns the rest of the page that off lies in.
func (g *pages) at(off uint64) ([]byte, error) {
	number := off/pageSize + 1
	for i := range g.page {
		if g.page[i].n == number {
			return g.page[i].b[off%pageSize:], nil
		}
	}
	p := &g.page[g.turn%pageCount]
	g.turn++
	start := off - off%pageSize
	if p.b == nil {
		p.b = make([]byte, 0, pageSize)
	}
	p.n, p.b = 0, p.b[:min(pageSize, g.in.size-start)]
	if err := g.src.read(p.b, g.in.off+start); err != nil {
		return nil, err
	}
	p.n = number
	return p.b[off%pageSize:], nil
}
