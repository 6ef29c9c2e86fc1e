package symbol

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
)

// What the Go toolchain leaves in a program (cmd/link/internal/ld/fips140.go,
// debug/buildinfo). Sections can be renamed or their headers dropped, so the
// content is looked for where the section is not.
const (
	fipsSection      = ".go.fipsinfo"
	fipsMagic        = "\xff Go fipsinfo \xff\x00"
	fipsSum          = 32 // bytes of checksum behind the magic
	fipsPointers     = 9  // self, then start and end of text, rodata, noptrdata, data
	buildinfoSection = ".go.buildinfo"
	buildinfoMagic   = "\xff Go buildinf:"
	maxBuildinfo     = 64 << 10
	maxDataScan      = 64 << 20
)

// Besides Go's own, these modules compare a hash of their text in memory with
// one that was put into the file when it was built, and end the program or
// refuse to work if it differs. Where it begins and ends only labels say, which
// strip removes.
//
//   - BoringSSL as a FIPS module, and AWS-LC: BORINGSSL_bcm_text_start to _end
//     (crypto/fipsmodule/bcm.c, FIPS.md). Go's copy of it
//     (GOEXPERIMENT=boringcrypto) has lost the labels, not the function. Stripped,
//     what it prints when it fails is left.
//   - wolfCrypt FIPS: wolfCrypt_FIPS_first to _last (wolfcrypt/src/
//     wolfcrypt_first.c, wolfcrypt_last.c; verifyCore in fips.c). Stripped, the
//     function that reports the hash is still exported.
//   - The OpenSSL FIPS Object Module 2.0 and before: FIPS_incore_fingerprint
//     (fips/fips.c), from what FIPS_text_start() returns.
//
// Not these, which hash a file on the disk, where no breakpoint is: OpenSSL 3's
// fips.so (providers/fips/self_test.c, verify_integrity), NSS (lib/freebl/
// shvfy.c, the .chk files), libgcrypt (src/fips.c), GnuTLS (lib/fips.c, the
// .hmac files). mbed TLS has no such test.
//
// Not recognized: strongSwan's optional integrity test, and whatever other
// program hashes its own text.
const (
	boringCheck = "BORINGSSL_integrity_test"
	boringTest  = "FIPS integrity test"  // what it is about,
	boringFails = " failed.\nExpected: " // and what goes on: in one string or as a format
	wolfCheck   = "wolfCrypt_GetCoreHash_fips"
	opensslHash = "FIPS_incore_fingerprint"

	maxTextScan = 256 << 20
)

// hashedText are pairs of labels.
var hashedText = [][2]string{
	{"BORINGSSL_bcm_text_start", "BORINGSSL_bcm_text_end"},
	{"wolfCrypt_FIPS_first", "wolfCrypt_FIPS_last"},
}

var selfHashNames = []string{
	hashedText[0][0], hashedText[0][1], hashedText[1][0], hashedText[1][1],
	boringCheck, wolfCheck, opensslHash,
}

// goMarks are the places of what the Go toolchain leaves; how much of the file
// follows in the same section or segment is their size.
type goMarks struct {
	fips, buildinfo *extent
	unsure          bool // a Go program that was too large to be searched whole
}

// selfHashed fills f.SelfHashed. When in doubt it takes all of the text: a
// probe that is not set harms nobody.
func (p *parser) selfHashed(f *File, marks goMarks, own map[string][]Symbol) error {
	whole, buildinfo := marks.unsure, marks.buildinfo
	if marks.fips != nil {
		r, ok, err := p.fipsText(*marks.fips)
		if err != nil {
			return err
		}
		if !ok {
			whole = true
		} else if r.Start < r.End {
			f.SelfHashed = append(f.SelfHashed, r)
		}
	}
	labels := false
	for _, pair := range hashedText {
		start, end := own[pair[0]], own[pair[1]]
		switch {
		case len(start) == 1 && len(end) == 1 && start[0].Offset < end[0].Offset:
			f.SelfHashed = append(f.SelfHashed, Range{start[0].Offset, end[0].Offset})
			labels = true
		case len(start)+len(end) > 0:
			whole = true
		}
	}
	whole = whole || len(own[opensslHash]) > 0
	if !labels && !whole {
		if whole = len(own[boringCheck])+len(own[wolfCheck]) > 0; !whole {
			var err error
			if whole, err = p.boringInside(buildinfo); err != nil {
				return err
			}
		}
	}
	if whole {
		f.SelfHashed = nil
		for _, s := range p.loads {
			if s.exec && s.filesz > 0 {
				f.SelfHashed = append(f.SelfHashed, Range{s.off, s.off + s.filesz})
			}
		}
	}
	return nil
}

// boringInside reports whether a file without labels has BoringSSL's test.
func (p *parser) boringInside(buildinfo *extent) (bool, error) {
	if buildinfo != nil {
		b := make([]byte, min(maxBuildinfo, buildinfo.size))
		if err := p.src.read(b, buildinfo.off); err != nil {
			return false, err
		}
		return bytes.Contains(b, []byte("boringcrypto")), nil
	}
	test, fails := false, false
	budget := uint64(maxTextScan)
	for _, s := range p.loads {
		if s.filesz > budget {
			continue
		}
		budget -= s.filesz
		found, err := p.search(extent{s.off, s.filesz}, boringTest, boringFails)
		if err != nil {
			return false, err
		}
		_, ok := found[boringTest]
		test = test || ok
		_, ok = found[boringFails]
		fails = fails || ok
	}
	return test && fails, nil
}

// findGoMarks finds the marks of the Go toolchain.
func (p *parser) findGoMarks(isGo bool) (m goMarks, err error) {
	if m.fips, err = p.marked(fipsSection, fipsMagic); err != nil {
		return m, err
	}
	if m.buildinfo, err = p.marked(buildinfoSection, buildinfoMagic); err != nil {
		return m, err
	}
	isGo = isGo || m.buildinfo != nil
	if m.fips != nil || !isGo && len(p.sections) > 0 {
		return m, nil
	}
	// Go before 1.24, or without section headers (then perhaps not Go).
	budget := uint64(maxDataScan)
	for _, s := range p.loads {
		if !s.write || m.fips != nil {
			continue
		}
		if s.filesz > budget {
			m.unsure = isGo || m.buildinfo != nil
			return m, nil
		}
		budget -= s.filesz
		offs, err := p.search(extent{s.off, s.filesz}, fipsMagic, buildinfoMagic)
		if err != nil {
			return m, err
		}
		if at, ok := offs[fipsMagic]; ok {
			m.fips = &extent{at, s.off + s.filesz - at}
		}
		if at, ok := offs[buildinfoMagic]; ok && m.buildinfo == nil {
			m.buildinfo = &extent{at, s.off + s.filesz - at}
		}
	}
	return m, nil
}

// marked finds a section of this name that begins with magic.
func (p *parser) marked(name, magic string) (*extent, error) {
	s, ok := p.named(name)
	if !ok || s.size < uint64(len(magic)) {
		return nil, nil
	}
	b := make([]byte, len(magic))
	if err := p.src.read(b, s.off); err != nil {
		return nil, err
	}
	if string(b) != magic {
		return nil, nil
	}
	return &extent{s.off, s.size}, nil
}

// search finds the first occurrence of each pattern.
func (p *parser) search(in extent, patterns ...string) (map[string]uint64, error) {
	longest := 0
	for _, pat := range patterns {
		longest = max(longest, len(pat))
	}
	found, tail, at := map[string]uint64{}, []byte(nil), in.off
	err := p.src.stream(in.off, in.size, 1, func(b []byte) error {
		// A pattern may lie across two pieces.
		joint := append(tail, b[:min(len(b), longest)]...)
		for _, pat := range patterns {
			if _, ok := found[pat]; ok {
				continue
			}
			if i := bytes.Index(joint, []byte(pat)); i >= 0 {
				found[pat] = at - uint64(len(tail)) + uint64(i)
			} else if i := bytes.Index(b, []byte(pat)); i >= 0 {
				found[pat] = at + uint64(i)
			}
		}
		at += uint64(len(b))
		tail = append([]byte(nil), b[max(0, len(b)-longest):]...)
		return nil
	})
	return found, err
}

// fipsText reads which text a fipsinfo covers. ok is false when it can't be
// told: then its pointers are neither stored in place nor relocated by
// entries of DT_RELA. The pointer to itself proves which of them is so.
func (p *parser) fipsText(info extent) (r Range, ok bool, err error) {
	width := uint64(8)
	if !p.is64() {
		width = 4
	}
	b := make([]byte, fipsPointers*width)
	at := uint64(len(fipsMagic) + fipsSum)
	if at+uint64(len(b)) > info.size {
		return Range{}, false, nil
	}
	if err := p.src.read(b, info.off+at); err != nil {
		return Range{}, false, err
	}
	var ptr [fipsPointers]uint64
	for i := range ptr {
		ptr[i] = p.word(b[uint64(i)*width:])
	}
	self, ok := p.address(info.off)
	if !ok {
		return Range{}, false, nil
	}
	if ptr[0] != self {
		if err := p.relocate(self+at, ptr[:]); err != nil {
			return Range{}, false, err
		}
	}
	if ptr[0] != self || ptr[1] > ptr[2] {
		return Range{}, false, nil
	}
	text, err := p.translate(ptr[1], ptr[2]-ptr[1])
	if errors.Is(err, ErrMalformed) {
		return Range{}, false, nil
	}
	return Range{text.off, text.off + text.size}, err == nil, err
}

// address is where the byte at a file offset is loaded to.
func (p *parser) address(off uint64) (uint64, bool) {
	for _, s := range p.loads {
		if s.write && off >= s.off && off-s.off < s.filesz {
			return off - s.off + s.vaddr, true
		}
	}
	return 0, false
}

// relocate applies the base-relative relocations of the 64-bit pointers that
// lie from addr on.
func (p *parser) relocate(addr uint64, ptr []uint64) error {
	relative := uint32(elf.R_X86_64_RELATIVE)
	if p.machine == elf.EM_AARCH64 {
		relative = uint32(elf.R_AARCH64_RELATIVE)
	}
	if !p.is64() {
		return nil // addends are stored in place (Elf32_Rel)
	}
	err := p.src.stream(p.rela.off, p.rela.size, 24, func(b []byte) error {
		for ; len(b) > 0; b = b[24:] {
			d := le.Uint64(b) - addr
			if i := d / 8; d%8 == 0 && i < uint64(len(ptr)) && le.Uint32(b[8:]) == relative {
				ptr[i] = le.Uint64(b[16:])
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("relocations: %w", err)
	}
	return nil
}
