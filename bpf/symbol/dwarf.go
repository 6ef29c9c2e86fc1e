package symbol

import (
	"bufio"
	"compress/zlib"
	"debug/dwarf"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// debug/dwarf is used for its constants only: it wants whole sections in
// memory, and has no bounds.
//
// Bounds of debugging information. Past them it is not known what it says; the
// file is read all the same. Limits.Debug bounds what is read in all.
const (
	maxUnit       = 32 << 20 // bytes of one unit; they are held in memory
	maxHeld       = 32 << 20 // bytes of all sections that must be unpacked to be read here and there
	maxAbbrevs    = 1 << 16  // of one table
	maxAttributes = 256      // of one abbreviation
	maxDepth      = 1024     // of entries
	maxRanges     = 1 << 16  // of one entry
)

// errDebug: the debugging information is not there, not whole, or not of a
// kind that is read. Nothing is known from it then.
var errDebug = errors.New("debugging information can't be used")

// debugInfo reads DWARF, of the versions 2 to 5, unit by unit.
type debugInfo struct {
	p      *parser
	info   section
	names  map[string]*pages // by the section's name; nil if there is none
	held   int
	budget int64

	abbrevAt uint64 // of the table that was parsed last
	abbrevs  map[uint64]*abbrev
	parsed   bool
}

type abbrev struct {
	tag      dwarf.Tag
	children bool
	attrs    []attribute
}

type attribute struct {
	name  dwarf.Attr
	form  uint64
	value int64 // of an implicit constant
}

// debugSection finds a section of debugging information under its name or as
// older linkers call it if it is compressed.
func (p *parser) debugSection(name string) (section, bool) {
	if s, ok := p.named(name); ok {
		return s, ok
	}
	return p.named(strings.Replace(name, ".debug_", ".zdebug_", 1))
}

// unpack returns a reader of a section's content, and its size.
func (p *parser) unpack(s section) (io.Reader, uint64, error) {
	raw := io.NewSectionReader(strict{&p.src}, int64(s.off), int64(s.size))
	var size uint64
	switch {
	case s.compressed:
		head := make([]byte, 24) // Elf64_Chdr
		if !p.is64() {
			head = head[:12]
		}
		if _, err := io.ReadFull(raw, head); err != nil {
			return nil, 0, short(err)
		}
		if typ := elf.CompressionType(le.Uint32(head)); typ != elf.COMPRESS_ZLIB {
			return nil, 0, fmt.Errorf("compressed as %v: %w", typ, errDebug)
		}
		if size = uint64(le.Uint32(head[4:])); p.is64() {
			size = le.Uint64(head[8:])
		}
	default:
		var head [12]byte
		if _, err := raw.ReadAt(head[:], 0); err != nil || string(head[:4]) != "ZLIB" {
			return raw, s.size, nil
		}
		size = binary.BigEndian.Uint64(head[4:])
		if _, err := raw.Seek(12, io.SeekStart); err != nil {
			return nil, 0, err
		}
	}
	z, err := zlib.NewReader(bufio.NewReader(raw))
	if err != nil {
		return nil, 0, short(err)
	}
	return io.LimitReader(z, int64(min(size, 1<<62))), size, nil
}

// strict is the file as an io.ReaderAt that does not lose what went wrong.
type strict struct{ src *source }

func (s strict) ReadAt(b []byte, off int64) (int, error) {
	if err := s.src.read(b, uint64(off)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// short says what a decompressor's error means: an error of the file's reader
// is that, all else is the content's.
func short(err error) error {
	var corrupt = errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, zlib.ErrHeader) || errors.Is(err, zlib.ErrChecksum) || errors.Is(err, zlib.ErrDictionary)
	if corrupt || strings.HasPrefix(err.Error(), "flate: ") {
		return fmt.Errorf("%w: %w", err, errDebug)
	}
	return err
}

// openDebug finds the debugging information; nil if there is none.
func (p *parser) openDebug() *debugInfo {
	info, ok := p.debugSection(".debug_info")
	if !ok {
		return nil
	}
	return &debugInfo{p: p, info: info, names: map[string]*pages{}, budget: p.lim.Debug}
}

// section opens a section to be read here and there.
func (d *debugInfo) section(name string) (*pages, error) {
	if g, ok := d.names[name]; ok {
		if g == nil {
			return nil, fmt.Errorf("no %s: %w", name, errDebug)
		}
		return g, nil
	}
	d.names[name] = nil
	s, ok := d.p.debugSection(name)
	if !ok {
		return nil, fmt.Errorf("no %s: %w", name, errDebug)
	}
	r, size, err := d.p.unpack(s)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	g := &pages{src: &d.p.src, in: extent{s.off, s.size}}
	if _, plain := r.(*io.SectionReader); !plain {
		if size > uint64(maxHeld-d.held) {
			return nil, fmt.Errorf("%s: %d bytes when unpacked, %d in all are taken: %w", name, size, maxHeld, errDebug)
		}
		d.held += int(size)
		g.held = make([]byte, size)
		if _, err := io.ReadFull(r, g.held); err != nil {
			return nil, fmt.Errorf("%s: %w", name, short(err))
		}
	}
	d.names[name] = g
	return g, nil
}

// unit is one unit of .debug_info while it is looked at.
type unit struct {
	*debugInfo
	off     uint64 // in .debug_info
	b       []byte // from its header on
	first   int    // where its entries begin in b
	version uint16
	wide    bool // 64-bit DWARF
	addrs   int  // bytes of an address
	abbrev  uint64
	split   bool
	goCode  bool

	// From its first entry.
	low, strs, addrBase, rngs uint64
	hasStrs, hasAddr, hasRngs bool
}

// units calls fn with each unit that holds code.
func (d *debugInfo) units(fn func(u *unit) error) error {
	r, size, err := d.p.unpack(d.info)
	if err != nil {
		return fmt.Errorf(".debug_info: %w", err)
	}
	in := bufio.NewReaderSize(r, streamBuffer)
	var buf []byte
	for off := uint64(0); off < size; {
		u := &unit{debugInfo: d, off: off}
		var head [12]byte
		if _, err := io.ReadFull(in, head[:4]); err != nil {
			return fmt.Errorf(".debug_info at %#x: %w", off, short(err))
		}
		n, used := uint64(le.Uint32(head[:])), 4
		if n == 0xffffffff {
			if _, err := io.ReadFull(in, head[4:]); err != nil {
				return fmt.Errorf(".debug_info at %#x: %w", off, short(err))
			}
			n, used, u.wide = le.Uint64(head[4:]), 12, true
		}
		if n > maxUnit || n > size-off {
			return fmt.Errorf("unit at %#x: %d bytes, %d are taken: %w", off, n, maxUnit, errDebug)
		}
		if d.budget -= int64(n) + int64(used); d.budget < 0 {
			return fmt.Errorf("more than %d bytes of .debug_info: %w", d.p.lim.Debug, errDebug)
		}
		if cap(buf) < int(n)+used {
			buf = make([]byte, int(n)+used)
		}
		u.b = buf[:int(n)+used]
		copy(u.b, head[:used])
		if _, err := io.ReadFull(in, u.b[used:]); err != nil {
			return fmt.Errorf("unit at %#x: %w", off, short(err))
		}
		code, err := u.header(used)
		if err == nil && code {
			if err = u.table(); err == nil {
				err = fn(u)
			}
		}
		if err != nil {
			return fmt.Errorf("unit at %#x: %w", off, err)
		}
		off += uint64(len(u.b))
	}
	return nil
}

// header reads a unit's header; code is whether it can hold functions.
func (u *unit) header(at int) (code bool, err error) {
	c := cursor{b: u.b, at: at}
	u.version = c.u16()
	typ := byte(1) // DW_UT_compile
	switch {
	case u.version >= 2 && u.version <= 4:
		u.abbrev = c.offset(u.wide)
		u.addrs = int(c.u8())
	case u.version == 5:
		typ = c.u8()
		u.addrs = int(c.u8())
		u.abbrev = c.offset(u.wide)
	default:
		return false, fmt.Errorf("version %d: %w", u.version, errDebug)
	}
	switch typ {
	case 1, 3: // compile, partial
	case 2, 6: // types
		return false, nil
	case 4, 5:
		return false, fmt.Errorf("it is in another file: %w", errDebug)
	default:
		return false, fmt.Errorf("a unit of type %d: %w", typ, errDebug)
	}
	if c.bad || u.addrs != 4 && u.addrs != 8 {
		return false, fmt.Errorf("its header: %w", errDebug)
	}
	u.first = c.at
	return true, nil
}

// table parses the unit's abbreviations.
func (u *unit) table() error {
	if u.parsed && u.abbrevAt == u.abbrev {
		return nil
	}
	g, err := u.section(".debug_abbrev")
	if err != nil {
		return err
	}
	u.parsed, u.abbrevs = false, map[uint64]*abbrev{}
	b, err := g.bytes(u.abbrev, 64<<10)
	if err != nil {
		return fmt.Errorf(".debug_abbrev: %w", debugError(err))
	}
	for size := 64 << 10; ; size *= 4 { // most tables are small
		c := cursor{b: b}
		if u.parse(&c); !c.bad {
			break
		}
		if len(b) < size || size > 4<<20 || len(u.abbrevs) > maxAbbrevs {
			return fmt.Errorf(".debug_abbrev at %#x: %w", u.abbrev, errDebug)
		}
		if b, err = g.bytes(u.abbrev, size*4); err != nil {
			return fmt.Errorf(".debug_abbrev: %w", debugError(err))
		}
		clear(u.abbrevs)
	}
	u.parsed, u.abbrevAt = true, u.abbrev
	return nil
}

func (u *unit) parse(c *cursor) {
	for !c.bad {
		code := c.uleb()
		if code == 0 {
			return
		}
		a := &abbrev{tag: dwarf.Tag(c.uleb()), children: c.u8() != 0}
		for !c.bad {
			at := attribute{name: dwarf.Attr(c.uleb()), form: c.uleb()}
			if at.form == formImplicit {
				at.value = c.sleb()
			}
			if at.name == 0 && at.form == 0 {
				break
			}
			if a.attrs = append(a.attrs, at); len(a.attrs) > maxAttributes {
				c.bad = true
			}
		}
		if u.abbrevs[code] = a; len(u.abbrevs) > maxAbbrevs {
			c.bad = true
		}
	}
}

// debugError turns a file's contradiction into one of its debugging
// information only.
func debugError(err error) error {
	if errors.Is(err, ErrMalformed) || errors.Is(err, ErrTruncated) {
		return fmt.Errorf("%w: %w", err, errDebug)
	}
	return err
}

// cursor reads numbers, little endian. A read behind the end gives 0 and makes
// it bad; who reads asks in the end.
type cursor struct {
	b   []byte
	at  int
	bad bool
}

func (c *cursor) take(n uint64) []byte {
	if n > uint64(len(c.b)-c.at) {
		c.bad, c.at = true, len(c.b)
		return nil
	}
	c.at += int(n)
	return c.b[c.at-int(n) : c.at]
}

func (c *cursor) number(n uint64) (v uint64) {
	for i, x := range c.take(n) {
		v |= uint64(x) << (8 * i)
	}
	return v
}

func (c *cursor) u8() byte    { return byte(c.number(1)) }
func (c *cursor) u16() uint16 { return uint16(c.number(2)) }

func (c *cursor) offset(wide bool) uint64 {
	if wide {
		return c.number(8)
	}
	return c.number(4)
}

func (c *cursor) uleb() (v uint64) {
	for shift := 0; ; shift += 7 {
		x := c.number(1)
		if v |= x & 0x7f << shift; x < 0x80 {
			return v
		}
	}
}

func (c *cursor) sleb() int64 {
	var v uint64
	for shift := 0; ; {
		x := c.number(1)
		v |= x & 0x7f << shift
		if shift += 7; x < 0x80 {
			if x&0x40 != 0 && shift < 64 {
				v |= ^uint64(0) << shift
			}
			return int64(v)
		}
	}
}
