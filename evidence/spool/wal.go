package spool

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"probity/evidence"
)

// A write-ahead file holds the lines of one chunk that is not in the log yet. It is
// a sequence of frames:
//
//	length of the payload   4 bytes, little endian, at least 1
//	checksum                4 bytes, little endian
//	payload
//
// The checksum is CRC-32C (Castagnoli), begun with the checksum of the frame before
// (0 for the first), over the length and the payload: a frame counts only at its
// place in its file. The first payload is the head, in JSON; each further one is
// the boot time of the write (8 bytes, little endian) and whole lines, each with
// its newline, as the chunk has them.
//
// A file is only ever appended to. What its end lacks, or what is damaged, is cut
// off: from the first frame whose length or checksum does not fit.
const (
	walFormat    = "probity-wal/1"
	frameHead    = 8
	stampBytes   = 8
	maxWALHead   = 16 << 10                   // a node's name may need six bytes for each of its own
	maxWALBytes  = 2 * evidence.MaxChunkBytes // of a file: its lines, and what frames them
	walExtension = ".wal"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// walHead says what the chunk's header needs of the time when its lines were made.
// The chunk's number is the file's name; an epoch of the log it has none, because
// one begins with the first commit after the line.
type walHead struct {
	Format   string         `json:"format"`
	Lines    string         `json:"lines"` // the format of the lines
	Node     string         `json:"node"`
	Instance string         `json:"instance"`
	Seq      uint64         `json:"seq,string"`
	BootID   string         `json:"bootId"`
	Clock    evidence.Clock `json:"clock"`
}

// openFrame begins a frame at the end of b; closeFrame completes it.
func openFrame(b []byte) []byte { return append(b, make([]byte, frameHead)...) }

// closeFrame completes the frame that begins at b[at] and goes up to the end of b.
func closeFrame(b []byte, at int, before uint32) (sum uint32) {
	binary.LittleEndian.PutUint32(b[at:], uint32(len(b)-at-frameHead))
	sum = frameSum(b[at:at+4], b[at+frameHead:], before)
	binary.LittleEndian.PutUint32(b[at+4:], sum)
	return sum
}

func frameSum(length, payload []byte, before uint32) uint32 {
	return crc32.Update(crc32.Update(before, castagnoli, length), castagnoli, payload)
}

// nextFrame returns the payload of the first frame of b, or nil if b has no whole one.
func nextFrame(b []byte, before uint32) (payload []byte, sum uint32) {
	if len(b) < frameHead {
		return nil, 0
	}
	n := binary.LittleEndian.Uint32(b)
	if n == 0 || uint64(n) > uint64(len(b)-frameHead) {
		return nil, 0
	}
	payload, sum = b[frameHead:frameHead+int(n)], binary.LittleEndian.Uint32(b[4:])
	if frameSum(b[:4], payload, before) != sum {
		return nil, 0
	}
	return payload, sum
}

// walContent is what a write-ahead file holds.
type walContent struct {
	head  walHead
	lines []byte // each with its newline
	atNs  int64  // boot time of the last write
	cut   int    // so many bytes at the end do not count
}

// errNoHead says that nothing in a write-ahead file counts: the first write of it
// did not come to its end.
var errNoHead = errors.New("no whole head")

// readWAL reads a write-ahead file. After an error that is not errNoHead the lines
// are there all the same: somebody will want to know how many there were.
func readWAL(b []byte) (walContent, error) {
	payload, sum := nextFrame(b, 0)
	if payload == nil || len(payload) > maxWALHead {
		return walContent{}, errNoHead
	}
	head, err := decodeWALHead(payload)
	c := walContent{head: head}
	rest := b[frameHead+len(payload):]
	for {
		payload, next := nextFrame(rest, sum)
		if len(payload) <= stampBytes || payload[len(payload)-1] != '\n' || len(c.lines)+len(payload)-stampBytes > evidence.MaxChunkBytes {
			c.cut = len(rest)
			return c, err
		}
		c.atNs = int64(binary.LittleEndian.Uint64(payload))
		c.lines = append(c.lines, payload[stampBytes:]...)
		rest, sum = rest[frameHead+len(payload):], next
	}
}

func decodeWALHead(b []byte) (h walHead, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&h); err != nil {
		return walHead{}, fmt.Errorf("the head of a write-ahead file: %w", err)
	}
	if d.InputOffset() != int64(len(b)) {
		return walHead{}, errors.New("the head of a write-ahead file: more than one value")
	}
	if h.Format != walFormat {
		return walHead{}, fmt.Errorf("the head of a write-ahead file: the format %.40q is not %s", h.Format, walFormat)
	}
	return h, nil
}
