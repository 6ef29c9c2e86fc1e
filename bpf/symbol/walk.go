package symbol

import (
	"debug/elf"
	"fmt"
	"slices"
)

// Bounds of walks over code. A function past them is not walked, and what
// depends on it is not known; Limits.Code bounds all walks of one file.
const (
	maxFunction = 1 << 20 // bytes
	maxParts    = 8       // pieces of one function
)

// body is one function as a walk from its first byte to its last found it:
// each instruction follows the one before without a gap, the last ends where
// the function does, and each direct jump leads to where one begins. Data
// between the instructions, and a length that is wrong, break that sooner or
// later, and then there is no body but a reason.
type body struct {
	parts  []part
	rets   []uint64 // file offsets
	jumps  []jump   // direct, conditional or not
	leaves []leave  // ways out that are no return
	refs   []ref    // addresses that it takes or loads from
	calls  []jump   // to is 0 of a computed one
	opaque []uint64 // addresses of instructions that load what is not among refs, see instr
	blind  bool     // there are jumps to places that are not known
}

// part is consecutive code of a function.
type part struct {
	off, addr, size uint64
	begins          []uint64 // a bit for each byte: whether an instruction begins there
	falls           []uint64 // a bit for each byte: whether that one goes on to the next
}

// jump is from an instruction to another place, both as addresses.
type jump struct{ from, to uint64 }

// ref is an address that an instruction takes, or that it loads 8 bytes from.
type ref struct {
	addr uint64
	load bool
}

// leave is a jump out of the function; to is 0 if it is not known where to.
type leave struct{ from, to uint64 }

func (p *part) has(addr uint64) bool { return addr-p.addr < p.size }

func bit(set []uint64, i uint64) bool { return set[i/64]&(1<<(i%64)) != 0 }

// part finds the part that an address lies in.
func (b *body) part(addr uint64) *part {
	for i := range b.parts {
		if b.parts[i].has(addr) {
			return &b.parts[i]
		}
	}
	return nil
}

// boundary reports whether an instruction begins at an address.
func (b *body) boundary(addr uint64) bool {
	p := b.part(addr)
	return p != nil && bit(p.begins, addr-p.addr)
}

// walk walks over the parts of a function, given as file offsets, the first of
// which holds its entry. why says why there is no body.
func (p *parser) walk(parts ...Range) (b *body, why string, err error) {
	if decoder(p.machine) == nil {
		return nil, fmt.Sprintf("code of %v is not decoded", p.machine), nil
	}
	if len(parts) > maxParts {
		return nil, fmt.Sprintf("in %d pieces, %d are taken", len(parts), maxParts), nil
	}
	b = &body{}
	for _, r := range parts {
		addr, ok := p.textAddress(r)
		if !ok {
			return nil, fmt.Sprintf("its %d bytes at %#x are not all of one executable segment", r.End-r.Start, r.Start), nil
		}
		b.parts = append(b.parts, part{off: r.Start, addr: addr, size: r.End - r.Start})
	}
	for i := range b.parts {
		if why, err = p.walkPart(b, &b.parts[i]); why != "" || err != nil {
			return nil, why, err
		}
	}
	for _, j := range b.jumps {
		if in := b.part(j.to); in == nil {
			b.leaves = append(b.leaves, leave(j))
		} else if !bit(in.begins, j.to-in.addr) {
			return nil, fmt.Sprintf("the instruction at %#x jumps into the middle of another, to %#x", j.from, j.to), nil
		}
	}
	return b, "", nil
}

// spend takes from the budget of the file: a byte of code is a unit, as is
// whatever else takes about as long. It says false once there is no more.
func (p *parser) spend(n uint64) bool {
	p.walked += n
	return p.walked <= uint64(p.lim.Code)
}

// textAddress is where a part of the file is loaded to, if one executable
// segment has it all.
func (p *parser) textAddress(r Range) (uint64, bool) {
	for _, s := range p.loads {
		if s.exec && r.Start >= s.off && r.Start-s.off < s.filesz && r.End > r.Start && r.End-s.off <= s.filesz {
			return r.Start - s.off + s.vaddr, true
		}
	}
	return 0, false
}

func (p *parser) walkPart(b *body, in *part) (why string, err error) {
	if in.size > maxFunction {
		return fmt.Sprintf("%d bytes, %d are taken", in.size, maxFunction), nil
	}
	if !p.spend(in.size) {
		return fmt.Sprintf("more than %d bytes of code of this file", p.lim.Code), nil
	}
	code := make([]byte, in.size)
	if err := p.src.read(code, in.off); err != nil {
		return "", err
	}
	in.begins = make([]uint64, in.size/64+1)
	in.falls = make([]uint64, in.size/64+1)
	decode := decoder(p.machine)
	var t tables
	for at := uint64(0); at < in.size; {
		addr := in.addr + at
		i, ok := decode(code[at:], addr)
		if !ok {
			return fmt.Sprintf("the bytes % x at %#x are no instruction that is known", code[at:min(at+8, in.size)], addr), nil
		}
		in.begins[at/64] |= 1 << (at % 64)
		switch i.flow {
		case flowRet:
			b.rets = append(b.rets, in.off+at)
		case flowJump, flowBranch:
			b.jumps = append(b.jumps, jump{addr, i.target})
		case flowCall:
			b.calls = append(b.calls, jump{addr, i.target})
			if in.has(i.target) { // of itself, or to learn where it is
				b.jumps = append(b.jumps, jump{addr, i.target})
			}
		case flowIndirect:
			inside, err := p.switches(b, &t, i)
			if err != nil {
				return "", err
			}
			if b.blind = true; !inside {
				b.leaves = append(b.leaves, leave{from: addr})
			}
		}
		if i.flow == flowNext || i.flow == flowBranch || i.flow == flowCall {
			in.falls[at/64] |= 1 << (at % 64)
		}
		if r, ok := t.note(i); ok {
			b.refs = append(b.refs, r)
		} else if i.opaque {
			b.opaque = append(b.opaque, addr)
		}
		at += uint64(i.len)
	}
	return "", nil
}

// tables remembers what may lead to the table of a switch.
type tables struct {
	known  [32]uint64 // register -> the address that it was last given
	added  [6]uint8   // the registers that the last instructions added to
	scaled [6]uint8   // those that they loaded from a table of 8-byte entries
	n      int
}

// note remembers an instruction, and returns the address that it refers to.
func (t *tables) note(i instr) (r ref, ok bool) {
	added, scaled := uint8(noReg), uint8(noReg)
	switch {
	case i.adds:
		added = i.reg
	case i.scaled && i.flow == flowNext:
		scaled = i.reg
	}
	t.added[t.n%len(t.added)], t.scaled[t.n%len(t.scaled)] = added, scaled
	t.n++
	switch i.kind {
	case refPage:
		t.known[i.reg%32] = i.ref
	case refAdd:
		t.known[i.reg%32] += i.ref
		return ref{addr: t.known[i.reg%32]}, true
	case refAddress:
		if i.reg != noReg {
			t.known[i.reg%32] = i.ref
		}
		return ref{addr: i.ref}, true
	case refLoad:
		return ref{i.ref, true}, true
	case refSlot:
		if page := t.known[i.base%32]; page != 0 {
			return ref{page + i.ref, true}, true
		}
	}
	return ref{}, false
}

// switches reports whether a computed jump is that of a switch statement, and
// so leads to a place within the function. It must look like what compilers
// make of one, and the first entry of its table must lead into the function.
func (p *parser) switches(b *body, t *tables, i instr) (bool, error) {
	if i.notrack {
		return true, nil
	}
	if i.scaled { // jmp *table(,%reg,8)
		table := i.ref
		if i.kind == refNone && i.reg != noReg {
			table = t.known[i.reg%32]
		}
		if p.goCode { // Go has no tail calls through tables; the table may need relocation
			return true, nil
		}
		return p.leadsInto(b, table, 8)
	}
	if p.goCode && slices.Contains(t.scaled[:min(t.n, len(t.scaled))], i.reg) {
		return true, nil
	}
	if !slices.Contains(t.added[:min(t.n, len(t.added))], i.reg) {
		return false, nil
	}
	for _, table := range t.known {
		if table == 0 {
			continue
		}
		if ok, err := p.leadsInto(b, table, 4); ok || err != nil {
			return ok, err
		}
	}
	// Those of arm64 have entries of one byte or two, which count from an
	// address in the function itself.
	return p.machine == elf.EM_AARCH64 && slices.ContainsFunc(t.known[:], func(base uint64) bool { return b.part(base) != nil }), nil
}

// leadsInto reads the first entry of a table: an address, or 4 bytes that are
// relative to the table.
func (p *parser) leadsInto(b *body, table uint64, width int) (bool, error) {
	where, err := p.translate(table, uint64(width))
	if err != nil {
		return false, nil
	}
	var e [8]byte
	if err := p.src.read(e[:width], where.off); err != nil {
		return false, err
	}
	to := le.Uint64(e[:])
	if width == 4 {
		to = table + uint64(int64(int32(le.Uint32(e[:]))))
	}
	return b.part(to) != nil, nil
}
