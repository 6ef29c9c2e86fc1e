package symbol

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
)

// maxSoname bounds a soname: it is a file's name.
const maxSoname = 255

// Identity is what names an ELF file as a whole, whatever path it lies at.
type Identity struct {
	BuildID string // as in File
	Soname  string // DT_SONAME, "" if there is none
	Interp  string // PT_INTERP, "" if there is none
}

// Identify reads only what names a file: a few KiB of its headers, PT_NOTE and
// PT_DYNAMIC, and no symbol, so that all files of an image can be asked. Files
// for other machines are read too; those without executable bytes of their own
// (debugging information has the build-id too) are ErrNotELF: nothing runs from
// them. A build-id that only a section holds is not seen: no loader would.
func Identify(r io.ReaderAt, size int64, lim Limits) (Identity, error) {
	lim = lim.orDefaults()
	if size < 0 {
		return Identity{}, fmt.Errorf("file of %d bytes: %w", size, ErrTruncated)
	}
	p := &parser{src: source{r: r, size: uint64(size)}, lim: lim}
	if err := p.readHeader(func(elf.Machine, elf.Class) bool { return true }); err != nil {
		return Identity{}, fmt.Errorf("ELF header: %w", err)
	}
	if err := p.readSegments(); err != nil {
		return Identity{}, fmt.Errorf("program headers: %w", err)
	}
	runs := false
	for _, s := range p.loads {
		runs = runs || s.exec && s.filesz > 0
	}
	if !runs {
		return Identity{}, fmt.Errorf("no executable bytes: %w", ErrNotELF)
	}
	f := &File{}
	if err := p.readNotes(f); err != nil {
		return Identity{}, fmt.Errorf("notes: %w", err)
	}
	soname, err := p.soname()
	if err != nil {
		return Identity{}, fmt.Errorf("soname: %w", err)
	}
	interp, err := p.interpreter()
	if err != nil {
		return Identity{}, fmt.Errorf("interpreter: %w", err)
	}
	return Identity{BuildID: f.BuildID, Soname: soname, Interp: interp}, nil
}

// soname reads DT_SONAME.
func (p *parser) soname() (string, error) {
	names, err := p.dynamicNames(elf.DT_SONAME)
	if err != nil || len(names) == 0 {
		return "", err
	}
	return names[len(names)-1], nil // a later entry wins, as in readDynamic
}

// maxNeeded bounds DT_NEEDED.
const maxNeeded = 1024

// dynamicNames reads the names that entries of one tag refer to. Only what
// comes before the NUL is read of each.
func (p *parser) dynamicNames(want elf.DynTag) (names []string, err error) {
	if p.dynamic == nil || p.dynamic.filesz == 0 {
		return nil, nil
	}
	if p.dynamic.filesz > maxDynamic {
		return nil, fmt.Errorf("%d bytes of PT_DYNAMIC, %d are taken: %w", p.dynamic.filesz, maxDynamic, ErrTooLarge)
	}
	where, err := p.translate(p.dynamic.vaddr, p.dynamic.filesz)
	if err != nil {
		return nil, err
	}
	b := make([]byte, where.size)
	if err := p.src.read(b, where.off); err != nil {
		return nil, err
	}
	size := 16
	if !p.is64() {
		size = 8
	}
	var at []uint64
	var strings, length uint64
	for end := false; len(b) >= size && !end; b = b[size:] {
		tag, v := elf.DynTag(p.word(b)), p.word(b[size/2:])
		switch tag {
		case elf.DT_NULL:
			end = true
		case want:
			at = append(at, v)
		case elf.DT_STRTAB:
			strings = v
		case elf.DT_STRSZ:
			length = v
		}
	}
	if len(at) > maxNeeded {
		return nil, fmt.Errorf("%d of %v, %d are taken: %w", len(at), want, maxNeeded, ErrTooLarge)
	}
	for _, off := range at {
		if off >= length {
			return nil, fmt.Errorf("at %d of %d bytes of strings: %w", off, length, ErrMalformed)
		}
		name, err := p.translate(strings+off, min(length-off, maxSoname+1))
		if err != nil {
			return nil, err
		}
		text := make([]byte, name.size)
		if err := p.src.read(text, name.off); err != nil {
			return nil, err
		}
		end := bytes.IndexByte(text, 0)
		if end < 0 {
			return nil, fmt.Errorf("longer than %d bytes, or without an end: %w", maxSoname, ErrMalformed)
		}
		names = append(names, string(text[:end]))
	}
	return names, nil
}

// maxInterp is PATH_MAX, as the kernel has it.
const maxInterp = 4096

// interpreter reads PT_INTERP; "" if there is none, or one that the kernel
// would refuse (fs/binfmt_elf.c, load_elf_binary).
func (p *parser) interpreter() (string, error) {
	if p.interp.size < 2 || p.interp.size > maxInterp {
		return "", nil
	}
	b := make([]byte, p.interp.size)
	if err := p.src.read(b, p.interp.off); err != nil {
		return "", err
	}
	if b[len(b)-1] != 0 {
		return "", nil
	}
	path, _, _ := bytes.Cut(b, []byte{0})
	return string(path), nil
}
