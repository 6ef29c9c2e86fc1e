// Package symbol reads ELF files that somebody hostile may have written: which
// functions they hold and where, which instruction runs first, and which of
// their text must not be touched because it hashes itself.
//
// In: an [io.ReaderAt] over a regular file, its size, and a [Query] of what a
// policy asks for. Out: plain values, every position in them a file offset, as
// the kernel's uprobes want it. Nothing is trusted: each number of the file is
// checked against the file's size and against [Limits] before it is used, no
// symbol or string table is held in memory (both are streamed through one
// 64 KiB buffer), nothing is followed that could form a cycle, and each
// refusal wraps one of the Err values with the fact that led to it.
//
// debug/elf is used for its constants only. Its documentation says that it is
// not hardened against hostile files, and indeed it reads whole tables into
// memory, decompresses what a section claims to hold, and has no way to be
// given a bound.
//
// True on return without an error: all segments and sections lie within the
// file (it is whole), no two loadable segments overlap (so an address has one
// file offset), each [Symbol] lies in an executable loadable segment, and the
// returned names are complete for what the tables hold, apart from what
// File.Unjudged says: when another bound is reached the answer is
// [ErrTooLarge], never a shorter list.
//
// What this is not: a symbol table is the file author's claim. A file can name
// its functions as it likes, hide them, or copy their code; a name that is
// absent here is no proof that the code is. The file may also change while it
// is read; who needs to know must compare it before and after.
package symbol

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"time"
)

// Callers decide by these; each error that [Read] returns wraps one of them,
// or is an I/O error of the reader.
var (
	// ErrNotELF: not an ELF program or shared object at all.
	ErrNotELF = errors.New("not an ELF program or shared object")
	// ErrTruncated: it refers to bytes behind its end.
	ErrTruncated = errors.New("truncated ELF")
	// ErrTooLarge: a bound of Limits was reached.
	ErrTooLarge = errors.New("ELF past the bounds")
	// ErrTime: Limits.Time was over, so that another attempt may do better.
	// It is an ErrTooLarge.
	ErrTime = fmt.Errorf("out of time: %w", ErrTooLarge)
	// ErrMalformed: it contradicts itself, so that what a loader would make
	// of it can't be told.
	ErrMalformed = errors.New("malformed ELF")
	// ErrForeign: made for a machine whose code this host's kernel does not
	// run itself, or can't probe.
	ErrForeign = errors.New("foreign architecture")
)

// Limits bounds what Read takes. The zero value of each field is its default.
type Limits struct {
	// FileSize is the largest apparent size in bytes. Default 1 GiB.
	FileSize int64
	// ProgramHeaders default: 1170, what fits into the 64 KiB that
	// Linux itself takes (fs/binfmt_elf.c, load_elf_phdrs).
	ProgramHeaders int
	// Sections default: 4096.
	Sections int
	// Symbols of all tables together. Default 4 Mi.
	Symbols int
	// StringBytes of all symbol tables' string tables together. Default
	// 128 MiB. Memory needed is an eighth of the largest.
	StringBytes int64
	// Code is how much of the functions' code is decoded, in bytes, and what
	// else takes about as long as decoding a byte. Default 64 Mi.
	Code int64
	// Debug is how much debugging information is read, in bytes when it is
	// unpacked. Default 256 MiB. Past it nothing is known of inlining.
	Debug int64
	// Matches is the number of symbols returned, over all names. Default
	// 65,536.
	Matches int
	// Debugdata is the size of an unpacked .gnu_debugdata in bytes, which is
	// memory while the file is read. Default 64 MiB.
	Debugdata int64
	// Time for one file. Default 10 s.
	Time time.Duration
}

// Largest is the largest apparent size in bytes of a file that is read.
func (l Limits) Largest() int64 { return l.orDefaults().FileSize }

func (l Limits) orDefaults() Limits {
	if l.FileSize <= 0 {
		l.FileSize = 1 << 30
	}
	if l.ProgramHeaders <= 0 {
		l.ProgramHeaders = (64 << 10) / 56
	}
	if l.Sections <= 0 {
		l.Sections = 4096
	}
	if l.Symbols <= 0 {
		l.Symbols = 4 << 20
	}
	if l.StringBytes <= 0 {
		l.StringBytes = 128 << 20
	}
	if l.Code <= 0 {
		l.Code = 64 << 20
	}
	if l.Debug <= 0 {
		l.Debug = 256 << 20
	}
	if l.Matches <= 0 {
		l.Matches = 1 << 16
	}
	if l.Debugdata <= 0 {
		l.Debugdata = 64 << 20
	}
	if l.Time <= 0 {
		l.Time = 10 * time.Second
	}
	return l
}

// Range is a half-open range of file offsets.
type Range struct{ Start, End uint64 }

// File is what is known of one ELF file besides its symbols.
type File struct {
	BuildID string // GNU build-id in hex; empty if there is none, or none of at most 64 bytes
	Machine elf.Machine
	Class   elf.Class
	Type    elf.Type // ET_EXEC or ET_DYN

	// Entry is the file offset of e_entry, the first instruction that runs
	// of this file when it is a program or a program's interpreter. Valid if
	// HasEntry; a library usually has none.
	Entry    uint64
	HasEntry bool

	// Go: made by the Go toolchain (at least in part).
	Go bool
	// Stripped: there is no .symtab. Functions that are not exported
	// dynamically can't be found by name then.
	Stripped bool

	Soname string   // DT_SONAME
	Needed []string // DT_NEEDED, in its order
	Interp string   // PT_INTERP

	GoVersion string   // the toolchain that built it, "go1.26.1"; "" if that can't be told
	Markers   []Marker // those that the Query wants
	// Misplaced are those of the Query's offsets and of the markers' at which
	// no instruction begins, with what is there: a breakpoint would change the
	// instruction around it into another one. An offset of which nothing can be
	// said is not among them.
	Misplaced map[uint64]string

	// SelfHashed is the text that a program compares with a checksum of
	// itself, in which a breakpoint would make it stop: Go's FIPS 140 module,
	// BoringCrypto and others, see selfhash.go. Where a file says that it has such text but not
	// which, it is all of the file's executable segments.
	SelfHashed []Range

	// Unjudged is what may hold more of what the Query asks for.
	Unjudged Unjudged

	segments []segment // the loadable ones, by address
}

// Read reads an ELF file of size bytes. It returns the functions that q wants,
// from .symtab, from the dynamic symbol table, from .gnu_debugdata and from the
// table of a stripped Go program, in the order of q's items
// (names, globs, regular expressions) and for each of them by offset; an item
// that matches nothing has no Symbol, and one that several functions match
// (static functions of several files bear the same name) has several. Names are
// matched without a version: "memcpy" finds each memcpy@VERSION.
//
// Besides what grows with q and with the matches (whose names have 32 MiB at
// most), Read holds at most 2 MiB, the longest name (1 MiB), an eighth of the
// largest string table and an unpacked .gnu_debugdata with its dictionary (twice
// Limits.Debugdata), whatever is in the file. It takes no longer than
// Limits.Time and what one step more takes, less than two seconds; who can be
// interrupted gives it an r that fails then, and gets r's error.
func Read(r io.ReaderAt, size int64, q Query, lim Limits) (*File, []Symbol, error) {
	return read(r, size, q, lim, native)
}

func read(r io.ReaderAt, size int64, q Query, lim Limits, runs func(elf.Machine, elf.Class) bool) (*File, []Symbol, error) {
	p, err := open(r, size, lim, runs)
	if err != nil {
		return nil, nil, err
	}
	f := &File{
		Machine: p.machine, Class: p.class, Type: p.typ,
		Stripped: p.stripped, segments: p.loads,
	}
	if err := p.readNotes(f); err != nil {
		return nil, nil, fmt.Errorf("notes: %w", err)
	}
	if f.Soname, err = p.soname(); err != nil {
		return nil, nil, fmt.Errorf("soname: %w", err)
	}
	if f.Needed, err = p.dynamicNames(elf.DT_NEEDED); err != nil {
		return nil, nil, fmt.Errorf("needed libraries: %w", err)
	}
	if f.Interp, err = p.interpreter(); err != nil {
		return nil, nil, fmt.Errorf("interpreter: %w", err)
	}
	p.goCode = f.Go
	if p.entry != 0 { // 0 is "no entry" (gABI, ELF header)
		f.Entry, f.HasEntry = p.executable(p.entry)
	}
	marks, err := p.findGoMarks(f.Go)
	if err != nil {
		return nil, nil, fmt.Errorf("marks of Go: %w", err)
	}
	f.Go = f.Go || marks.fips != nil || marks.buildinfo != nil
	p.goCode = f.Go
	if f.GoVersion, err = p.goVersion(marks.buildinfo); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", buildinfoSection, err)
	}
	if err := p.addDebugdata(); err != nil && !p.unjudgedDebugdata(err) {
		return nil, nil, fmt.Errorf("%s: %w", debugdataSection, err)
	}
	if err := p.addPclntab(); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", goTableSection, err)
	}
	syms, own, err := p.find(q)
	if err != nil {
		return nil, nil, err
	}
	if err := p.selfHashed(f, marks, own); err != nil {
		return nil, nil, fmt.Errorf("self-hashing text: %w", err)
	}
	if syms, err = p.describe(f, q, syms); err != nil {
		return nil, nil, err
	}
	if err := p.findMarkers(f, q.Markers); err != nil {
		return nil, nil, fmt.Errorf("markers: %w", err)
	}
	if err := p.placed(f, q); err != nil {
		return nil, nil, fmt.Errorf("instructions: %w", err)
	}
	f.Unjudged = p.unjudged
	return f, syms, nil
}

// open reads what the rest is found by.
func open(r io.ReaderAt, size int64, lim Limits, runs func(elf.Machine, elf.Class) bool) (*parser, error) {
	lim = lim.orDefaults()
	if size < 0 {
		return nil, fmt.Errorf("file of %d bytes: %w", size, ErrTruncated)
	}
	if size > lim.FileSize {
		return nil, fmt.Errorf("file of %d bytes, %d are taken: %w", size, lim.FileSize, ErrTooLarge)
	}
	p := &parser{src: source{r: r, size: uint64(size)}, lim: lim}
	p.begin()
	if err := p.readHeader(runs); err != nil {
		return nil, fmt.Errorf("ELF header: %w", err)
	}
	if err := p.readSegments(); err != nil {
		return nil, fmt.Errorf("program headers: %w", err)
	}
	if err := p.readSections(); err != nil {
		return nil, fmt.Errorf("section headers: %w", err)
	}
	if err := p.readDynamic(); err != nil {
		return nil, fmt.Errorf("dynamic section: %w", err)
	}
	return p, nil
}

// ExecutableOffset reports whether a file offset lies in the part of an
// executable loadable segment that is backed by the file.
func (f *File) ExecutableOffset(off uint64) bool {
	for _, s := range f.segments {
		if s.exec && off >= s.off && off-s.off < s.filesz {
			return true
		}
	}
	return false
}

// WouldBreak reports whether a breakpoint at a file offset would be found by
// the program itself, see SelfHashed.
func (f *File) WouldBreak(off uint64) bool {
	for _, r := range f.SelfHashed {
		if off >= r.Start && off < r.End {
			return true
		}
	}
	return false
}
