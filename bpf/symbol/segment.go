package symbol

import (
	"cmp"
	"debug/elf"
	"fmt"
	"slices"
)

// segment is one PT_LOAD: memsz bytes at vaddr, of which the first filesz are
// the file's, from off.
type segment struct {
	vaddr, memsz uint64
	off, filesz  uint64
	exec, write  bool
}

// smallestPage is the smallest page size of the machines that are read.
const smallestPage = 4 << 10

func (p *parser) readSegments() error {
	// A count of 0xffff means "see section header 0", which Linux does not
	// do when it runs a program; here it is past the bound as well.
	if int64(p.phnum) > int64(p.lim.ProgramHeaders) {
		return fmt.Errorf("%d of them, %d are taken: %w", p.phnum, p.lim.ProgramHeaders, ErrTooLarge)
	}
	size := 56
	if !p.is64() {
		size = 32
	}
	err := p.src.stream(p.phoff, uint64(p.phnum)*uint64(size), size, func(b []byte) error {
		for ; len(b) > 0; b = b[size:] {
			if err := p.addSegment(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(p.loads) == 0 {
		return fmt.Errorf("nothing to load: %w", ErrMalformed)
	}
	slices.SortStableFunc(p.loads, func(a, b segment) int { return cmp.Compare(a.vaddr, b.vaddr) })
	for i := 1; i < len(p.loads); i++ {
		a, b := p.loads[i-1], p.loads[i]
		if b.vaddr-a.vaddr < a.memsz {
			return fmt.Errorf("loadable segments at %#x and %#x overlap: %w", a.vaddr, b.vaddr, ErrMalformed)
		}
	}
	return nil
}

func (p *parser) addSegment(b []byte) error {
	var s segment
	var flags uint32
	if p.is64() {
		flags = le.Uint32(b[4:])
		s.off, s.vaddr, s.filesz, s.memsz = le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[32:]), le.Uint64(b[40:])
	} else {
		flags = le.Uint32(b[24:])
		s.off, s.vaddr = uint64(le.Uint32(b[4:])), uint64(le.Uint32(b[8:]))
		s.filesz, s.memsz = uint64(le.Uint32(b[16:])), uint64(le.Uint32(b[20:]))
	}
	s.exec, s.write = flags&uint32(elf.PF_X) != 0, flags&uint32(elf.PF_W) != 0
	switch typ := elf.ProgType(le.Uint32(b)); typ {
	case elf.PT_LOAD:
		if s.memsz < s.filesz || s.vaddr+s.memsz < s.vaddr {
			return fmt.Errorf("loadable segment of %d bytes in %d at %#x: %w", s.filesz, s.memsz, s.vaddr, ErrMalformed)
		}
		if s.filesz > 0 && (s.off-s.vaddr)%smallestPage != 0 {
			// Linux and glibc refuse it, musl rounds: no one answer.
			return fmt.Errorf("loadable segment at %#x from offset %#x: not the same place in a page: %w", s.vaddr, s.off, ErrMalformed)
		}
		if err := p.src.within(s.off, s.filesz); err != nil {
			return fmt.Errorf("loadable segment at %#x: %w", s.vaddr, err)
		}
		if s.memsz > 0 {
			p.loads = append(p.loads, s)
		}
	case elf.PT_NOTE:
		if err := p.src.within(s.off, s.filesz); err != nil {
			return fmt.Errorf("%v: %w", typ, err)
		}
		p.notes = append(p.notes, extent{s.off, s.filesz})
	case elf.PT_INTERP:
		if err := p.src.within(s.off, s.filesz); err != nil {
			return fmt.Errorf("%v: %w", typ, err)
		}
		if p.interp.size == 0 { // the kernel takes the first
			p.interp = extent{s.off, s.filesz}
		}
	case elf.PT_DYNAMIC:
		if p.dynamic != nil {
			return fmt.Errorf("two of %v: %w", typ, ErrMalformed)
		}
		p.dynamic = &s
	}
	return nil
}

// load finds the segment that holds the byte of the file that is loaded to
// addr.
func (p *parser) load(addr uint64) (*segment, bool) {
	i, found := slices.BinarySearchFunc(p.loads, addr, func(s segment, a uint64) int { return cmp.Compare(s.vaddr, a) })
	if !found {
		i--
	}
	if i < 0 || addr-p.loads[i].vaddr >= p.loads[i].filesz {
		return nil, false
	}
	return &p.loads[i], true
}

// executable translates an address in executable text to a file offset.
func (p *parser) executable(addr uint64) (uint64, bool) {
	s := p.text // nearly always the one
	if s == nil || addr-s.vaddr >= s.filesz {
		var ok bool
		if s, ok = p.load(addr); !ok || !s.exec {
			return 0, false
		}
		p.text = s
	}
	return addr - s.vaddr + s.off, true
}

// translate turns n bytes at an address into a part of the file. It fails
// unless one segment holds them all.
func (p *parser) translate(addr, n uint64) (extent, error) {
	s, ok := p.load(addr)
	if !ok || n > s.filesz-(addr-s.vaddr) {
		return extent{}, fmt.Errorf("%d bytes at address %#x are not loaded from the file: %w", n, addr, ErrMalformed)
	}
	return extent{addr - s.vaddr + s.off, n}, nil
}
