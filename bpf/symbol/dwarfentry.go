package symbol

import (
	"bytes"
	"debug/dwarf"
	"fmt"
)

// The forms of DWARF's values (DWARF 5, 7.5.6; GNU's of versions 4 and before).
const (
	formAddr     = 0x01
	formBlock2   = 0x03
	formBlock4   = 0x04
	formData2    = 0x05
	formData4    = 0x06
	formData8    = 0x07
	formString   = 0x08
	formBlock    = 0x09
	formBlock1   = 0x0a
	formData1    = 0x0b
	formFlag     = 0x0c
	formSdata    = 0x0d
	formStrp     = 0x0e
	formUdata    = 0x0f
	formRefAddr  = 0x10
	formRef1     = 0x11
	formRef2     = 0x12
	formRef4     = 0x13
	formRef8     = 0x14
	formRefUdata = 0x15
	formIndirect = 0x16
	formSec      = 0x17
	formExpr     = 0x18
	formPresent  = 0x19
	formStrx     = 0x1a
	formAddrx    = 0x1b
	formRefSup4  = 0x1c
	formStrpSup  = 0x1d
	formData16   = 0x1e
	formLineStrp = 0x1f
	formRefSig8  = 0x20
	formImplicit = 0x21
	formLoclistx = 0x22
	formRnglistx = 0x23
	formRefSup8  = 0x24
	formStrx1    = 0x25
	formStrx4    = 0x28
	formAddrx1   = 0x29
	formAddrx4   = 0x2c
	formGNUAddr  = 0x1f01
	formGNUStr   = 0x1f02
	formRefAlt   = 0x1f20
	formStrpAlt  = 0x1f21
)

// Attributes that debug/dwarf has no name for.
const (
	attrMIPSLinkage = dwarf.Attr(0x2007)
	attrGNUDwoName  = dwarf.Attr(0x2130)
	attrGNUAddrBase = dwarf.Attr(0x2133)
)

// value is one attribute's: a number, or bytes that stand in the entry.
type value struct {
	form uint64
	n    uint64
	b    []byte
}

// read reads one value.
func (u *unit) read(c *cursor, a attribute) value {
	v := value{form: a.form}
	if v.form == formIndirect {
		if v.form = c.uleb(); v.form == formIndirect || v.form == formImplicit {
			c.bad = true
		}
	}
	switch v.form {
	case formAddr:
		v.n = c.number(uint64(u.addrs))
	case formData1, formFlag, formRef1, formStrx1, formAddrx1:
		v.n = c.number(1)
	case formData2, formRef2, formStrx1 + 1, formAddrx1 + 1:
		v.n = c.number(2)
	case formStrx1 + 2, formAddrx1 + 2:
		v.n = c.number(3)
	case formData4, formRef4, formStrx4, formAddrx4, formRefSup4:
		v.n = c.number(4)
	case formData8, formRef8, formRefSig8, formRefSup8:
		v.n = c.number(8)
	case formData16:
		c.take(16)
	case formSdata:
		v.n = uint64(c.sleb())
	case formUdata, formRefUdata, formStrx, formAddrx, formLoclistx, formRnglistx, formGNUAddr, formGNUStr:
		v.n = c.uleb()
	case formStrp, formSec, formLineStrp, formStrpSup, formRefAlt, formStrpAlt:
		v.n = c.offset(u.wide)
	case formRefAddr:
		if u.version == 2 {
			v.n = c.number(uint64(u.addrs))
		} else {
			v.n = c.offset(u.wide)
		}
	case formString:
		i := bytes.IndexByte(c.b[c.at:], 0)
		if i < 0 {
			c.bad = true
			break
		}
		v.b = c.take(uint64(i))
		c.at++
	case formBlock1:
		c.take(c.number(1))
	case formBlock2:
		c.take(c.number(2))
	case formBlock4:
		c.take(c.number(4))
	case formBlock, formExpr:
		c.take(c.uleb())
	case formPresent:
	case formImplicit:
		v.n = uint64(a.value)
	default:
		c.bad = true
	}
	return v
}

// root reads the unit's first entry, which says where its addresses, strings
// and ranges are, and returns the code of the unit.
func (u *unit) root() ([]Range, error) {
	c := &cursor{b: u.b, at: u.first}
	a := u.abbrevs[c.uleb()]
	if a == nil {
		if c.at >= len(u.b) || u.b[u.first] == 0 {
			return nil, nil // empty
		}
		return nil, fmt.Errorf("its first entry: %w", errDebug)
	}
	var e entryAttrs
	for _, at := range a.attrs {
		v := u.read(c, at)
		switch at.name {
		case dwarf.AttrLowpc:
			e.low, e.hasLow = v, true
		case dwarf.AttrHighpc:
			e.high, e.hasHigh = v, true
		case dwarf.AttrRanges:
			e.ranges, e.hasRanges = v, true
		case dwarf.AttrStrOffsetsBase:
			u.strs, u.hasStrs = v.n, true
		case dwarf.AttrAddrBase, attrGNUAddrBase:
			u.addrBase, u.hasAddr = v.n, true
		case dwarf.AttrRnglistsBase:
			u.rngs, u.hasRngs = v.n, true
		case dwarf.AttrLanguage:
			u.goCode = v.n == 0x16 // DW_LANG_Go
		case dwarf.AttrDwoName, attrGNUDwoName:
			u.split = true
		}
	}
	if c.bad {
		return nil, fmt.Errorf("its first entry: %w", errDebug)
	}
	if u.split {
		return nil, fmt.Errorf("it is in another file: %w", errDebug)
	}
	if e.hasLow {
		var err error
		if u.low, err = u.address(e.low); err != nil {
			return nil, err
		}
	}
	return u.code(e)
}

// entryAttrs says which code an entry stands for.
type entryAttrs struct {
	low, high, ranges          value
	hasLow, hasHigh, hasRanges bool
}

// code returns the addresses of an entry's code; none if it has none.
func (u *unit) code(e entryAttrs) ([]Range, error) {
	switch {
	case e.hasRanges:
		return u.ranges(e.ranges)
	case e.hasLow && e.hasHigh:
		low, err := u.address(e.low)
		if err != nil {
			return nil, err
		}
		high := e.high.n
		switch e.high.form {
		case formAddr, formAddrx, formAddrx1, formAddrx1 + 1, formAddrx1 + 2, formAddrx4, formGNUAddr:
			if high, err = u.address(e.high); err != nil {
				return nil, err
			}
		default:
			high += low
		}
		if low < high {
			return []Range{{low, high}}, nil
		}
	}
	return nil, nil
}

func (u *unit) address(v value) (uint64, error) {
	if v.form == formAddr {
		return v.n, nil
	}
	if !u.hasAddr {
		return 0, fmt.Errorf("an address without DW_AT_addr_base: %w", errDebug)
	}
	g, err := u.section(".debug_addr")
	if err != nil {
		return 0, err
	}
	if v.n > 1<<32 || u.addrBase > 1<<40 {
		return 0, fmt.Errorf("address %d: %w", v.n, errDebug)
	}
	b, err := g.exactly(u.addrBase+v.n*uint64(u.addrs), u.addrs)
	if err != nil {
		return 0, fmt.Errorf(".debug_addr: %w", debugError(err))
	}
	return (&cursor{b: b}).number(uint64(u.addrs)), nil
}

// ranges reads a list of ranges.
func (u *unit) ranges(v value) (out []Range, err error) {
	if u.version < 5 {
		return u.oldRanges(v.n)
	}
	g, err := u.section(".debug_rnglists")
	if err != nil {
		return nil, err
	}
	at := v.n
	if v.form == formRnglistx {
		if !u.hasRngs || v.n > 1<<32 || u.rngs > 1<<40 {
			return nil, fmt.Errorf("ranges without DW_AT_rnglists_base: %w", errDebug)
		}
		n := 4
		if u.wide {
			n = 8
		}
		b, err := g.exactly(u.rngs+v.n*uint64(n), n)
		if err != nil {
			return nil, fmt.Errorf(".debug_rnglists: %w", debugError(err))
		}
		at = u.rngs + (&cursor{b: b}).number(uint64(n))
	}
	base := u.low
	for {
		b, err := g.bytes(at, 24) // no entry is longer
		if err != nil {
			return nil, fmt.Errorf(".debug_rnglists: %w", debugError(err))
		}
		c := &cursor{b: bytes.Clone(b)}
		kind := c.u8()
		var r Range
		indexed := func() uint64 {
			var a uint64
			if a, err = u.address(value{form: formAddrx, n: c.uleb()}); err != nil {
				c.bad = true
			}
			return a
		}
		switch kind {
		case 0: // end of list
			return out, nil
		case 1: // base_addressx
			base = indexed()
		case 2: // startx_endx
			r.Start = indexed()
			r.End = indexed()
		case 3: // startx_length
			r.Start = indexed()
			r.End = r.Start + c.uleb()
		case 4: // offset_pair
			r.Start = base + c.uleb()
			r.End = base + c.uleb()
		case 5: // base_address
			base = c.number(uint64(u.addrs))
		case 6: // start_end
			r.Start = c.number(uint64(u.addrs))
			r.End = c.number(uint64(u.addrs))
		case 7: // start_length
			r.Start = c.number(uint64(u.addrs))
			r.End = r.Start + c.uleb()
		default:
			c.bad = true
		}
		if c.bad {
			return nil, fmt.Errorf("ranges at %#x: %w", v.n, errDebug)
		}
		if r.Start < r.End {
			if out = append(out, r); len(out) > maxRanges {
				return nil, fmt.Errorf("more than %d ranges: %w", maxRanges, errDebug)
			}
		}
		if u.budget -= int64(c.at); u.budget < 0 {
			return nil, fmt.Errorf("more than %d bytes: %w", u.p.lim.Debug, errDebug)
		}
		at += uint64(c.at)
	}
}

// oldRanges reads a list as it was before DWARF 5.
func (u *unit) oldRanges(at uint64) (out []Range, err error) {
	g, err := u.section(".debug_ranges")
	if err != nil {
		return nil, err
	}
	n := uint64(u.addrs)
	base, most := u.low, ^uint64(0)>>(64-8*n)
	for ; ; at += 2 * n {
		b, err := g.exactly(at, int(2*n))
		if err != nil {
			return nil, fmt.Errorf(".debug_ranges: %w", debugError(err))
		}
		c := &cursor{b: b}
		r := Range{c.number(n), c.number(n)}
		if u.budget -= int64(2 * n); u.budget < 0 {
			return nil, fmt.Errorf("more than %d bytes: %w", u.p.lim.Debug, errDebug)
		}
		switch {
		case r == Range{}:
			return out, nil
		case r.Start == most:
			base = r.End
		case r.Start < r.End:
			if out = append(out, Range{base + r.Start, base + r.End}); len(out) > maxRanges {
				return nil, fmt.Errorf("more than %d ranges: %w", maxRanges, errDebug)
			}
		}
	}
}

// text reads a name.
func (u *unit) text(v value) ([]byte, error) {
	in, at := ".debug_str", v.n
	switch v.form {
	case formString:
		return v.b, nil
	case formStrp:
	case formLineStrp:
		in = ".debug_line_str"
	case formStrx, formStrx1, formStrx1 + 1, formStrx1 + 2, formStrx4, formGNUStr:
		g, err := u.section(".debug_str_offsets")
		if err != nil {
			return nil, err
		}
		n := 4
		if u.wide {
			n = 8
		}
		if !u.hasStrs || v.n > 1<<32 || u.strs > 1<<40 {
			return nil, fmt.Errorf("a string without DW_AT_str_offsets_base: %w", errDebug)
		}
		b, err := g.exactly(u.strs+v.n*uint64(n), n)
		if err != nil {
			return nil, fmt.Errorf(".debug_str_offsets: %w", debugError(err))
		}
		at = (&cursor{b: b}).number(uint64(n))
	default:
		return nil, fmt.Errorf("a name in form %#x: %w", v.form, errDebug)
	}
	g, err := u.section(in)
	if err != nil {
		return nil, err
	}
	for n := 128; ; n *= 8 {
		b, err := g.bytes(at, n)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", in, debugError(err))
		}
		if name, _, ok := bytes.Cut(b, []byte{0}); ok {
			return name, nil
		}
		if len(b) < n || n > 64<<10 {
			return nil, fmt.Errorf("%s: the name at %#x does not end: %w", in, at, errDebug)
		}
	}
}

// target is the entry that a reference leads to, as its offset in .debug_info.
func (u *unit) target(v value) (uint64, error) {
	switch v.form {
	case formRef1, formRef2, formRef4, formRef8, formRefUdata:
		if v.n >= uint64(len(u.b)) {
			return 0, fmt.Errorf("a reference to %#x of a unit of %d bytes: %w", v.n, len(u.b), errDebug)
		}
		return u.off + v.n, nil
	case formRefAddr:
		return v.n, nil
	}
	return 0, fmt.Errorf("a reference in form %#x: %w", v.form, errDebug)
}
