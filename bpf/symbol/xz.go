package symbol

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"

	"crypto/sha256"

	"github.com/ulikunitz/xz/lzma"
)

// xzRatio is more than LZMA2 can make of a byte.
const xzRatio = 8 << 10

// unxz unpacks a part of the file that holds one .xz stream (The .xz File
// Format 1.2.0) to at most limit bytes. The container is read here, because the
// size of the dictionary, which is memory, must be bounded before LZMA2 is
// decoded, and there is none that is larger than what comes out of it.
func (p *parser) unxz(in extent, limit uint64) ([]byte, error) {
	x := &xzReader{p: p, in: bufio.NewReader(io.NewSectionReader(&p.src, int64(in.off), int64(in.size)))}
	out, err := x.stream(min(limit, in.size*xzRatio)) // no overflow: a file has less than 2^50 bytes
	if err == nil && x.at != in.size {
		for x.at < in.size && err == nil { // stream padding
			var b [4]byte
			if err = x.read(b[:]); err == nil && b != [4]byte{} {
				err = fmt.Errorf("more behind the stream: %w", ErrMalformed)
			}
		}
	}
	if err == nil {
		return out, nil
	}
	if p.src.failed != nil {
		return nil, p.src.failed
	}
	if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) {
		err = fmt.Errorf("%w: %w", err, ErrMalformed) // LZMA2's own
	}
	return nil, err
}

// xzReader counts what it reads.
type xzReader struct {
	p  *parser
	in *bufio.Reader
	at uint64
}

func (x *xzReader) ReadByte() (byte, error) {
	c, err := x.in.ReadByte()
	if err == nil {
		x.at++
	}
	return c, err
}

func (x *xzReader) Read(b []byte) (int, error) {
	n, err := x.in.Read(b)
	x.at += uint64(n)
	return n, err
}

func (x *xzReader) read(b []byte) error {
	if _, err := io.ReadFull(x, b); err != nil {
		return fmt.Errorf("ends at %d: %w: %w", x.at, err, ErrMalformed)
	}
	return nil
}

// padding reads zeros until the position relative to from is one of 4 bytes.
func (x *xzReader) padding(from uint64) error {
	for (x.at-from)%4 != 0 {
		if c, err := x.ReadByte(); err != nil || c != 0 {
			return fmt.Errorf("padding at %d: %w", x.at, ErrMalformed)
		}
	}
	return nil
}

func (x *xzReader) stream(limit uint64) (out []byte, err error) {
	var h [12]byte
	if err := x.read(h[:]); err != nil {
		return nil, err
	}
	if string(h[:6]) != "\xfd7zXZ\x00" || h[6] != 0 || h[7] > 15 || crc32.ChecksumIEEE(h[6:8]) != le.Uint32(h[8:]) {
		return nil, fmt.Errorf("no head of an xz stream: %w", ErrMalformed)
	}
	var check hash.Hash
	size := []int{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}[h[7]]
	switch h[7] {
	case 1:
		check = crc32.NewIEEE()
	case 4:
		check = crc64.New(crc64.MakeTable(crc64.ECMA))
	case 10:
		check = sha256.New()
	}
	for blocks := uint64(0); ; blocks++ {
		from := x.at
		n, err := x.ReadByte()
		if err != nil {
			return nil, fmt.Errorf("ends at %d: %w", x.at, ErrMalformed)
		}
		if n == 0 {
			return out, x.index(from, blocks)
		}
		dict, err := x.block(n)
		if err != nil {
			return nil, err
		}
		begin, from := len(out), x.at
		if out, err = x.lzma2(out, dict, limit); err != nil {
			return nil, err
		}
		if err := x.padding(from); err != nil {
			return nil, err
		}
		sum := make([]byte, size)
		if err := x.read(sum); err != nil {
			return nil, err
		}
		if check == nil {
			continue
		}
		check.Reset()
		check.Write(out[begin:])
		want := check.Sum(nil)
		if size < 32 { // CRCs are little-endian
			for i := range want[:size/2] {
				want[i], want[size-1-i] = want[size-1-i], want[i]
			}
		}
		if string(want) != string(sum) {
			return nil, fmt.Errorf("block %d does not match its checksum: %w", blocks, ErrMalformed)
		}
	}
}

// block reads the head of a block, of which n is the first byte, and returns
// the size of its dictionary.
func (x *xzReader) block(n byte) (dict uint64, err error) {
	b := make([]byte, 4*(int(n)+1))
	b[0] = n
	if err := x.read(b[1:]); err != nil {
		return 0, err
	}
	body, sum := b[:len(b)-4], b[len(b)-4:]
	if crc32.ChecksumIEEE(body) != le.Uint32(sum) {
		return 0, fmt.Errorf("head of a block at %d does not match its checksum: %w", x.at, ErrMalformed)
	}
	flags, rest := body[1], body[2:]
	number := func() uint64 {
		v, k := binary.Uvarint(rest)
		if k <= 0 {
			err = fmt.Errorf("head of a block at %d: %w", x.at, ErrMalformed)
			return 0
		}
		rest = rest[k:]
		return v
	}
	for _, bit := range []byte{0x40, 0x80} { // sizes, which the data has too
		if flags&bit != 0 {
			number()
		}
	}
	id, props := number(), number()
	if err != nil {
		return 0, err
	}
	if flags&0x3f != 0 || id != 0x21 || props != 1 || len(rest) < 1 || rest[0] > 40 {
		return 0, fmt.Errorf("a block that is not of LZMA2 alone: %w", ErrMalformed)
	}
	if rest[0] == 40 {
		return 1<<32 - 1, nil
	}
	return uint64(2|rest[0]&1) << (rest[0]/2 + 11), nil
}

// lzma2 appends what comes out of a block.
func (x *xzReader) lzma2(out []byte, dict, limit uint64) (_ []byte, err error) {
	defer func() {
		if r := recover(); r != nil { // a slip of the decoder
			err = fmt.Errorf("decode LZMA2: %v: %w", r, ErrMalformed)
		}
	}()
	r, err := lzma.Reader2Config{DictCap: int(max(lzma.MinDictCap, min(dict, limit)))}.NewReader2(x)
	if err != nil {
		return nil, err
	}
	piece := make([]byte, streamBuffer)
	for {
		n, err := r.Read(piece)
		if uint64(len(out)+n) > limit {
			return nil, fmt.Errorf("more than %d bytes: %w", limit, ErrTooLarge)
		}
		out = append(out, piece[:n]...)
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if err := x.p.work(n + 1); err != nil {
			return nil, err
		}
	}
}

// index reads the rest of the stream: the list of its blocks, which says
// nothing new, and the foot.
func (x *xzReader) index(from, blocks uint64) error {
	n, err := binary.ReadUvarint(x)
	if err != nil || n != blocks {
		return fmt.Errorf("an index of %d blocks, there are %d: %w", n, blocks, ErrMalformed)
	}
	for range 2 * n {
		if _, err := binary.ReadUvarint(x); err != nil {
			return fmt.Errorf("the index at %d: %w", x.at, ErrMalformed)
		}
	}
	if err := x.padding(from); err != nil {
		return err
	}
	var foot [4 + 12]byte
	if err := x.read(foot[:]); err != nil {
		return err
	}
	if string(foot[14:]) != "YZ" {
		return fmt.Errorf("no foot of an xz stream: %w", ErrMalformed)
	}
	return nil
}
