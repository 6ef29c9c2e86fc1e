package symbol

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"runtime"
)

var le = binary.LittleEndian

// parser holds what was read so far of one file, while [Read] runs.
type parser struct {
	src source
	lim Limits

	// The ELF header.
	class        elf.Class
	machine      elf.Machine
	typ          elf.Type
	entry        uint64 // an address
	phoff, shoff uint64
	phnum, shnum uint32
	shstrndx     uint32

	loads    []segment // loadable, by address
	text     *segment  // the executable one of them that was last asked for
	notes    []extent  // PT_NOTE
	dynamic  *segment  // PT_DYNAMIC, not translated yet
	interp   extent    // PT_INTERP
	sections []section
	names    []byte // section names
	stripped bool

	walked uint64 // bytes of code, see Limits.Code
	goCode bool   // the Go compiler made it, at least in part

	goTab       *goTable
	goTableRead bool
	tables      []table
	rela        extent // DT_RELA

	// What matching has cost so far.
	matches int // names
	kept    int // bytes of them
	worked  int // bytes looked at since the time was

	unjudged Unjudged
}

// extent is a part of the file, known to lie within it.
type extent struct{ off, size uint64 }

// native reports whether this host's kernel runs such code itself and can
// probe it. 32-bit programs on arm64 run but can't be probed
// (arch/arm64/kernel/probes/uprobes.c refuses AArch32), and x32 is not built
// into distribution kernels.
func native(m elf.Machine, c elf.Class) bool {
	switch runtime.GOARCH {
	case "amd64":
		return m == elf.EM_X86_64 && c == elf.ELFCLASS64 || m == elf.EM_386 && c == elf.ELFCLASS32
	case "arm64":
		return m == elf.EM_AARCH64 && c == elf.ELFCLASS64
	}
	return false
}

func (p *parser) is64() bool { return p.class == elf.ELFCLASS64 }

// word is an address or an offset: 8 bytes, 4 in a 32-bit file.
func (p *parser) word(b []byte) uint64 {
	if p.is64() {
		return le.Uint64(b)
	}
	return uint64(le.Uint32(b))
}

func (p *parser) readHeader(runs func(elf.Machine, elf.Class) bool) error {
	var b [64]byte
	n := min(uint64(len(b)), p.src.size)
	if err := p.src.read(b[:n], 0); err != nil {
		return err
	}
	if n < 4 || !bytes.Equal(b[:4], []byte(elf.ELFMAG)) {
		return fmt.Errorf("no ELF magic: %w", ErrNotELF)
	}
	if n < elf.EI_NIDENT {
		return p.src.within(0, elf.EI_NIDENT)
	}
	p.class = elf.Class(b[elf.EI_CLASS])
	if p.class != elf.ELFCLASS32 && p.class != elf.ELFCLASS64 {
		return fmt.Errorf("class %d: %w", b[elf.EI_CLASS], ErrMalformed)
	}
	switch elf.Data(b[elf.EI_DATA]) {
	case elf.ELFDATA2LSB:
	case elf.ELFDATA2MSB:
		return fmt.Errorf("big-endian: %w", ErrForeign)
	default:
		return fmt.Errorf("byte order %d: %w", b[elf.EI_DATA], ErrMalformed)
	}
	ehsize, phentsize, shentsize := uint64(64), uint16(56), uint16(64)
	if !p.is64() {
		ehsize, phentsize, shentsize = 52, 32, 40
	}
	if err := p.src.within(0, ehsize); err != nil {
		return err
	}
	p.typ = elf.Type(le.Uint16(b[16:]))
	p.machine = elf.Machine(le.Uint16(b[18:]))
	if v := le.Uint32(b[20:]); b[elf.EI_VERSION] != 1 || v != 1 {
		return fmt.Errorf("version %d: %w", v, ErrMalformed)
	}
	if p.typ != elf.ET_EXEC && p.typ != elf.ET_DYN {
		return fmt.Errorf("type %v: %w", p.typ, ErrNotELF)
	}
	if !runs(p.machine, p.class) {
		return fmt.Errorf("%v %v: %w", p.machine, p.class, ErrForeign)
	}
	rest := b[48:]
	if p.is64() {
		p.entry, p.phoff, p.shoff = le.Uint64(b[24:]), le.Uint64(b[32:]), le.Uint64(b[40:])
	} else {
		p.entry, p.phoff, p.shoff = uint64(le.Uint32(b[24:])), uint64(le.Uint32(b[28:])), uint64(le.Uint32(b[32:]))
		rest = b[36:]
	}
	// rest: e_flags, e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
	p.phnum = uint32(le.Uint16(rest[8:]))
	p.shnum, p.shstrndx = uint32(le.Uint16(rest[12:])), uint32(le.Uint16(rest[14:]))
	if s := le.Uint16(rest[6:]); p.phnum != 0 && s != phentsize {
		return fmt.Errorf("program headers of %d bytes each, not %d: %w", s, phentsize, ErrMalformed)
	}
	if s := le.Uint16(rest[10:]); p.shoff != 0 && s != shentsize {
		return fmt.Errorf("section headers of %d bytes each, not %d: %w", s, shentsize, ErrMalformed)
	}
	return nil
}
