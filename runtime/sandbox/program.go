package sandbox

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Program is what is known of a program's file.
type Program struct {
	Path     string // import path of a Go program, if it says so
	Module   string // module of a Go program, if it says so
	Sentry   bool   // a Go program with gVisor's kernel in it
	WasmShim bool   // a shim of runwasi
}

const (
	// Programs like tailscale and podman's network have other packages of that
	// module in them. Functions keep their names in a stripped program.
	gvisorModule  = "gvisor.dev/gvisor"
	sentryPackage = gvisorModule + "/pkg/sentry/kernel"
	// Messages of a Rust program carry the name of the crate.
	wasmCrate   = "containerd-shim-wasm"
	wasmTarget  = "containerd_shim_wasm::"
	shimsPrefix = "containerd-shim-"
)

// Bounds on a program's file. The largest of gVisor has thirty sections,
// 12 KB of build information and 25 MB of function table.
const (
	maxSections  = 1 << 10
	maxNames     = 64 << 10
	maxBuildInfo = 1 << 20
	maxScan      = 256 << 20
)

var errELF = errors.New("not an ELF file of this machine's kind")

// section is one section that is in the file.
type section struct {
	name      string
	off, size uint64
}

// readProgram reads an executable's file of that size. Of an ordinary runtime
// it reads the headers and the build information; only a Go program that has
// gVisor among its dependencies or does not say from what it was built, and a
// containerd shim, are searched.
func readProgram(r io.ReaderAt, size int64, path string) (p Program, err error) {
	all, err := sections(r, size)
	if err != nil {
		return p, err
	}
	named := func(names ...string) (s section, ok bool) {
		for _, s := range all {
			for _, n := range names {
				if s.name == n {
					return s, true
				}
			}
		}
		return s, false
	}
	info, isGo := named(".go.buildinfo")
	if !isGo {
		base := path[strings.LastIndexByte(path, '/')+1:]
		if s, ok := named(".rodata"); ok && strings.HasPrefix(base, shimsPrefix) {
			p.WasmShim, err = contains(r, s, wasmCrate, wasmTarget)
		}
		return p, err
	}
	text, err := buildInfo(r, info)
	if err != nil {
		return p, err
	}
	linked := text == "" // released gVisor is built by Bazel, which does not say
	for line := range strings.SplitSeq(text, "\n") {
		kind, rest, _ := strings.Cut(line, "\t")
		value, _, _ := strings.Cut(rest, "\t")
		switch kind {
		case "path":
			p.Path = value
		case "mod":
			p.Module = value
		case "dep":
			linked = linked || value == gvisorModule
		}
	}
	if s, ok := named(".gopclntab", ".data.rel.ro.gopclntab"); ok && linked && p.Module != gvisorModule {
		p.Sentry, err = contains(r, s, sentryPackage)
	}
	return p, err
}

// sections reads the section headers of a 64-bit little-endian ELF file
// (System V ABI, chapter 4). A file without any has none that are named.
func sections(r io.ReaderAt, size int64) ([]section, error) {
	header := make([]byte, 64)
	if err := readAt(r, header, 0, size); err != nil {
		return nil, errors.Join(errELF, err)
	}
	if !bytes.HasPrefix(header, []byte(elf.ELFMAG)) || header[elf.EI_CLASS] != byte(elf.ELFCLASS64) || header[elf.EI_DATA] != byte(elf.ELFDATA2LSB) {
		return nil, errELF
	}
	le := binary.LittleEndian
	at, each, count, names := le.Uint64(header[40:]), le.Uint16(header[58:]), le.Uint16(header[60:]), le.Uint16(header[62:])
	if at == 0 || count == 0 {
		return nil, nil
	}
	if each != 64 || count > maxSections || names >= count {
		return nil, fmt.Errorf("%d section headers of %d bytes, their names in number %d", count, each, names)
	}
	table := make([]byte, int(count)*64)
	if err := readAt(r, table, at, size); err != nil {
		return nil, fmt.Errorf("section headers: %w", err)
	}
	extent := func(i int) (off, n uint64) { return le.Uint64(table[i*64+24:]), le.Uint64(table[i*64+32:]) }
	off, n := extent(int(names))
	if n > maxNames {
		return nil, fmt.Errorf("%d bytes of section names", n)
	}
	text := make([]byte, n)
	if err := readAt(r, text, off, size); err != nil {
		return nil, fmt.Errorf("section names: %w", err)
	}
	var out []section
	for i := range int(count) {
		name, _, ended := bytes.Cut(text[min(uint64(le.Uint32(table[i*64:])), n):], []byte{0})
		off, length := extent(i)
		if !ended || len(name) == 0 || elf.SectionType(le.Uint32(table[i*64+4:])) == elf.SHT_NOBITS {
			continue
		}
		if off > uint64(size) || length > uint64(size)-off {
			return nil, fmt.Errorf("section %.64q is not in the file", name)
		}
		out = append(out, section{string(name), off, length})
	}
	return out, nil
}

// buildInfo returns the text that the Go toolchain leaves of a program's
// modules, "" if there is none or it is older than Go 1.18
// (debug/buildinfo, which reads hostile files no less carefully but takes
// megabytes of other programs).
func buildInfo(r io.ReaderAt, s section) (string, error) {
	const start, magic, inline = 32, "\xff Go buildinf:", 2
	b := make([]byte, min(s.size, maxBuildInfo))
	if err := fill(r, b, s.off); err != nil {
		return "", fmt.Errorf("build information: %w", err)
	}
	if len(b) < start || !bytes.HasPrefix(b, []byte(magic)) || b[15]&inline == 0 {
		return "", nil
	}
	b = b[start:]
	var text []byte
	for range 2 { // the toolchain's version, then the modules
		n, k := binary.Uvarint(b)
		if k <= 0 || n > uint64(len(b)-k) {
			return "", errors.New("build information: it is longer than its section, or than is read")
		}
		text, b = b[k:k+int(n)], b[k+int(n):]
	}
	// Sixteen bytes on both sides mark it for who looks for it in memory.
	if len(text) < 33 || text[len(text)-17] != '\n' {
		return "", nil
	}
	return string(text[16 : len(text)-16]), nil
}

// contains reports whether one of the words is in a section.
func contains(r io.ReaderAt, s section, words ...string) (bool, error) {
	if s.size > maxScan {
		return false, fmt.Errorf("section %s has %d bytes, more than are searched", s.name, s.size)
	}
	const piece, most = 256 << 10, 64 // no word is longer
	b := make([]byte, most+piece)
	kept := 0
	for at := uint64(0); at < s.size; {
		n := int(min(piece, s.size-at))
		if err := fill(r, b[kept:kept+n], s.off+at); err != nil {
			return false, fmt.Errorf("search section %s: %w", s.name, err)
		}
		for _, w := range words {
			if bytes.Contains(b[:kept+n], []byte(w)) {
				return true, nil
			}
		}
		at += uint64(n)
		end := kept + n
		kept = copy(b, b[max(0, end-most):end]) // a word may lie across two pieces
	}
	return false, nil
}

// readAt fills b from an offset of a file of that size.
func readAt(r io.ReaderAt, b []byte, off uint64, size int64) error {
	if off > uint64(size) || uint64(len(b)) > uint64(size)-off {
		return io.ErrUnexpectedEOF
	}
	return fill(r, b, off)
}

func fill(r io.ReaderAt, b []byte, off uint64) error {
	if n, err := r.ReadAt(b, int64(off)); n < len(b) {
		return cmp.Or(err, io.ErrUnexpectedEOF)
	}
	return nil
}
