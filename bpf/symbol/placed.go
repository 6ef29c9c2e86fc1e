package symbol

import (
	"bytes"
	"debug/elf"
	"fmt"
	"slices"
)

// misplaced says of file offsets that somebody gave, and of those of markers,
// what is there where no instruction begins. Where it can't be told whether one
// does, because no function is known to be there or its code can't be walked,
// it says nothing.
func (p *parser) misplaced(f *File, offs []uint64) (map[uint64]string, error) {
	out := map[uint64]string{}
	for _, m := range f.Markers {
		ok, err := p.isNop(m.Offset)
		if err != nil {
			return nil, err
		}
		if !ok {
			out[m.Offset] = fmt.Sprintf("the note of marker %s:%s does not lead to a nop: it belongs to other code", m.Provider, m.Name)
		}
	}
	where, err := p.locate(offs)
	if err != nil {
		return nil, err
	}
	bodies := map[Range]*body{}
	for _, off := range offs {
		fn, ok := where[off]
		if !ok || fn.size == 0 || off-fn.start >= fn.size {
			continue
		}
		r := fn.whole()
		b, walked := bodies[r]
		if !walked {
			var why string
			if b, why, err = p.walk(r); err != nil {
				return nil, err
			}
			if why != "" {
				b = nil
			}
			bodies[r] = b
		}
		if b != nil && !bit(b.parts[0].begins, off-r.Start) {
			out[off] = fmt.Sprintf("it lies inside an instruction, at %s", Location{fn.name, off - fn.start})
		}
	}
	return out, nil
}

// nops are what sys/sdt.h has assemblers emit for a marker, and what tools that
// follow it do, by machine: one byte, one of five that kernels turn into a call,
// and two bytes.
var nops = map[elf.Machine][][]byte{
	elf.EM_X86_64:  {{0x90}, {0x0f, 0x1f, 0x44, 0x00, 0x00}, {0x66, 0x90}},
	elf.EM_AARCH64: {{0x1f, 0x20, 0x03, 0xd5}},
}

func (p *parser) isNop(off uint64) (bool, error) {
	known, ok := nops[p.machine]
	if !ok {
		return true, nil // nobody probes it
	}
	for _, n := range known {
		have := make([]byte, len(n))
		if off+uint64(len(n)) > p.src.size {
			continue
		}
		if err := p.src.read(have, off); err != nil {
			return false, err
		}
		if bytes.Equal(have, n) {
			return true, nil
		}
	}
	return false, nil
}

// placed fills f.Misplaced.
func (p *parser) placed(f *File, q Query) error {
	if len(q.Offsets) == 0 && len(f.Markers) == 0 {
		return nil
	}
	var offs []uint64
	for _, o := range q.Offsets {
		if f.ExecutableOffset(o) {
			offs = append(offs, o)
		}
	}
	slices.Sort(offs)
	var err error
	f.Misplaced, err = p.misplaced(f, slices.Compact(offs))
	return err
}
