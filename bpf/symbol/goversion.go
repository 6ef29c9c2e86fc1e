package symbol

import (
	"encoding/binary"
	"math"
)

const maxGoVersion = 256

// goVersion reads the version of the toolchain from its buildinfo (package
// debug/buildinfo), "" if there is none, or none that can be told. From Go 1.18
// on the text is in it, before that a pointer to a string.
func (p *parser) goVersion(info *extent) (string, error) {
	if info == nil || info.size < 32 {
		return "", nil
	}
	b := make([]byte, min(info.size, 32+binary.MaxVarintLen64+maxGoVersion))
	if err := p.src.read(b, info.off); err != nil {
		return "", err
	}
	width, flags := b[14], b[15]
	var text []byte
	switch {
	case flags&2 != 0:
		n, k := binary.Uvarint(b[32:])
		if rest := b[32+max(k, 0):]; k > 0 && n <= min(maxGoVersion, uint64(len(rest))) {
			text = rest[:n]
		}
	case flags&1 == 0 && (width == 8) == p.is64() && (width == 8 || width == 4):
		header, err := p.pointed(p.word(b[16:]), 2*uint64(width))
		if err != nil {
			return "", err
		}
		if header != nil {
			if n := p.word(header[width:]); n <= maxGoVersion {
				if text, err = p.pointed(p.word(header), n); err != nil {
					return "", err
				}
			}
		}
	}
	if s := string(text); printable(s) {
		return s, nil
	}
	return "", nil
}

// pointed reads n bytes at an address; nil if they are not there, which may be
// left to relocations.
func (p *parser) pointed(addr, n uint64) ([]byte, error) {
	if addr == 0 || n > math.MaxUint16 {
		return nil, nil
	}
	where, err := p.translate(addr, n)
	if err != nil {
		return nil, nil
	}
	b := make([]byte, n)
	return b, p.src.read(b, where.off)
}
