package symbol

import (
	"bytes"
	"debug/elf"
	"fmt"
	"path"
	"strings"
)

// What SystemTap's sys/sdt.h leaves in a program for each marker: a note in a
// section that is not loaded. https://sourceware.org/systemtap/wiki/UserSpaceProbeImplementation
const (
	markerSection = ".note.stapsdt"
	markerBase    = ".stapsdt.base"
	markerOwner   = "stapsdt\x00"
	markerType    = 3

	maxMarkerSection = 16 << 20
	maxMarkerNote    = 4 << 10
)

// findMarkers fills f.Markers with those that one of the patterns matches:
// "provider:name", of which name may be a glob as package path has it. A marker
// that was inlined or unrolled is several. Markers need section headers: a file
// without any has none.
func (p *parser) findMarkers(f *File, patterns []string) error {
	if len(patterns) == 0 {
		return nil
	}
	for _, pattern := range patterns {
		if _, err := path.Match(pattern, ""); err != nil {
			return fmt.Errorf("pattern %q: %w", pattern, err)
		}
	}
	var moved uint64 // how far prelink moved the code since the notes were written
	base, hasBase := p.named(markerBase)
	for i := range p.sections {
		s := &p.sections[i]
		if s.typ != elf.SHT_NOTE || !p.hasName(s, markerSection) {
			continue
		}
		if s.size > maxMarkerSection {
			return fmt.Errorf("%d bytes, %d are taken: %w", s.size, maxMarkerSection, ErrTooLarge)
		}
		err := p.eachMarker(extent{s.off, s.size}, func(m Marker, addr, was, semaphore uint64) error {
			if hasBase {
				moved = base.addr - was
			}
			var ok bool
			if m.Offset, ok = p.executable(addr + moved); !ok || !wantsMarker(patterns, m) {
				return nil
			}
			if semaphore != 0 {
				where, err := p.translate(semaphore+moved, 2)
				if err != nil {
					return fmt.Errorf("semaphore of %s:%s: %w", m.Provider, m.Name, err)
				}
				m.Semaphore = where.off
			}
			if len(f.Markers) == p.lim.Matches {
				return fmt.Errorf("more than %d match: %w", p.lim.Matches, ErrTooLarge)
			}
			f.Markers = append(f.Markers, m)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func wantsMarker(patterns []string, m Marker) bool {
	for _, pattern := range patterns {
		provider, name, ok := strings.Cut(pattern, ":")
		if match, err := path.Match(name, m.Name); ok && provider == m.Provider && match && err == nil {
			return true
		}
	}
	return false
}

// eachMarker calls fn with the markers of a section of notes: with their
// addresses, and with that of .stapsdt.base when they were written.
func (p *parser) eachMarker(in extent, fn func(m Marker, addr, base, semaphore uint64) error) error {
	g := &pages{src: &p.src, in: in}
	width := 8
	if !p.is64() {
		width = 4
	}
	for off := uint64(0); off+12 <= in.size; {
		head, err := g.exactly(off, 12)
		if err != nil {
			return err
		}
		names, descs, typ := uint64(le.Uint32(head)), uint64(le.Uint32(head[4:])), le.Uint32(head[8:])
		end := (names+3)&^3 + descs
		off += 12
		if end > in.size-off {
			return fmt.Errorf("note of %d bytes at %d of %d: %w", end, off, in.size, ErrMalformed)
		}
		if typ == markerType && names == uint64(len(markerOwner)) {
			if end > maxMarkerNote {
				return fmt.Errorf("marker of %d bytes, %d are taken: %w", end, maxMarkerNote, ErrTooLarge)
			}
			b, err := g.exactly(off, int(end))
			if err != nil {
				return err
			}
			if owner, desc, _ := bytes.Cut(b, []byte(markerOwner)); len(owner) == 0 {
				if err := p.marker(desc, width, fn); err != nil {
					return err
				}
			}
		}
		off += (end + 3) &^ 3
	}
	return nil
}

func (p *parser) marker(desc []byte, width int, fn func(m Marker, addr, base, semaphore uint64) error) error {
	if len(desc) < 3*width {
		return fmt.Errorf("marker of %d bytes: %w", len(desc), ErrMalformed)
	}
	text := bytes.SplitN(desc[3*width:], []byte{0}, 4)
	if len(text) < 4 {
		return fmt.Errorf("marker without provider, name and arguments: %w", ErrMalformed)
	}
	for _, t := range text[:3] { // they end in evidence lines and on terminals
		if len(t) > 0 && !printable(string(t)) {
			return nil // no policy can name it
		}
	}
	m := Marker{Provider: string(text[0]), Name: string(text[1]), Args: string(text[2])}
	return fn(m, p.word(desc), p.word(desc[width:]), p.word(desc[2*width:]))
}
