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
	return Identity{BuildID: f.BuildID, Soname: soname}, nil
}

// soname reads DT_SONAME. Only what comes before the NUL is read of it.
func (p *parser) soname() (string, error) {
	if p.dynamic == nil || p.dynamic.filesz == 0 {
		return "", nil
	}
	if p.dynamic.filesz > maxDynamic {
		return "", fmt.Errorf("%d bytes of PT_DYNAMIC, %d are taken: %w", p.dynamic.filesz, maxDynamic, ErrTooLarge)
	}
	where, err := p.translate(p.dynamic.vaddr, p.dynamic.filesz)
	if err != nil {
		return "", err
	}
	b := make([]byte, where.size)
	if err := p.src.read(b, where.off); err != nil {
		return "", err
	}
	size := 16
	if !p.is64() {
		size = 8
	}
	v := map[elf.DynTag]uint64{} // a later entry wins, as in readDynamic
	for ; len(b) >= size; b = b[size:] {
		tag := elf.DynTag(p.word(b))
		if tag == elf.DT_NULL {
			break
		}
		if tag == elf.DT_SONAME || tag == elf.DT_STRTAB || tag == elf.DT_STRSZ {
			v[tag] = p.word(b[size/2:])
		}
	}
	at, ok := v[elf.DT_SONAME]
	if !ok {
		return "", nil
	}
	if at >= v[elf.DT_STRSZ] {
		return "", fmt.Errorf("at %d of %d bytes of strings: %w", at, v[elf.DT_STRSZ], ErrMalformed)
	}
	name, err := p.translate(v[elf.DT_STRTAB]+at, min(v[elf.DT_STRSZ]-at, maxSoname+1))
	if err != nil {
		return "", err
	}
	text := make([]byte, name.size)
	if err := p.src.read(text, name.off); err != nil {
		return "", err
	}
	end := bytes.IndexByte(text, 0)
	if end < 0 {
		return "", fmt.Errorf("longer than %d bytes, or without an end: %w", maxSoname, ErrMalformed)
	}
	return string(text[:end]), nil
}
