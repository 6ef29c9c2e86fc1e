package kernels

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
)

// Disk is a disk with a volatile write cache, as a guest sees it: QEMU reaches it as
// an NBD server. What a flush was answered for is there after a loss of power, and a
// write with forced unit access is; of any other write each sector of 512 bytes may
// be there or not. It remembers everything since the power came on, so that the
// power can have been cut behind any operation.
//
// Operations are done one after the other, so a flush is over all writes that came
// before it, and not only over those that had been answered.
type Disk struct {
	mu     sync.Mutex
	before []byte // when the power came on
	now    []byte // as the guest sees it
	ops    []diskOp
	cut    int           // so many operations, and then nothing is answered any more
	gone   chan struct{} // closed then
}

// diskOp is a write, or a flush if it has no data.
type diskOp struct {
	at    int64
	data  []byte
	force bool
}

// sectorSize is what a disk writes whole.
const sectorSize = 512

// NewDisk is a disk with this content, whose power goes after so many operations.
func NewDisk(content []byte, cut int) *Disk {
	return &Disk{before: content, now: append([]byte(nil), content...), cut: cut, gone: make(chan struct{})}
}

// Gone is closed when the power is.
func (d *Disk) Gone() <-chan struct{} { return d.gone }

// Done is how many operations were done.
func (d *Disk) Done() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.ops)
}

// do adds an operation, or says that the power is gone.
func (d *Disk) do(o diskOp) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.ops) == d.cut {
		return false
	}
	d.ops = append(d.ops, o)
	copy(d.now[o.at:], o.data)
	if len(d.ops) == d.cut {
		close(d.gone)
	}
	return true
}

func (d *Disk) read(b []byte, at int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(b, d.now[at:])
	return len(d.ops) < d.cut
}

// After is what the disk holds when the power was cut behind its first operations:
// of what was not flushed every sector with this probability.
//
// The superblock of ext4 lies in two sectors under one checksum, and is written in
// place: a file system whose superblock is torn is lost, whoever wrote on it. So
// these two are there both or not.
func (d *Disk) After(ops int, keep float64, r *rand.Rand) []byte {
	const superblock = 1024
	d.mu.Lock()
	defer d.mu.Unlock()
	out := append([]byte(nil), d.before...)
	flushed := 0
	for i, o := range d.ops[:ops] {
		if o.data == nil {
			flushed = i
		}
	}
	for i, o := range d.ops[:ops] {
		if i < flushed || o.force {
			copy(out[o.at:], o.data)
			continue
		}
		kept := false
		for off := 0; off < len(o.data); off += sectorSize {
			at := o.at + int64(off)
			if off == 0 || at != superblock+sectorSize {
				kept = r.Float64() < keep
			}
			if kept {
				copy(out[at:], o.data[off:min(off+sectorSize, len(o.data))])
			}
		}
	}
	return out
}

// The NBD protocol, as far as QEMU speaks it to a server that can do little
// (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md).
const (
	nbdMagic       = 0x4e42444d41474943
	nbdOption      = 0x49484156454f5054
	nbdOptionReply = 0x3e889045565a9
	nbdRequest     = 0x25609513
	nbdReply       = 0x67446698
	nbdGo          = 7
	nbdAck         = 1
	nbdInfo        = 3
	nbdUnsupported = 1<<31 + 1
	nbdFixed       = 1         // the handshake's flag
	nbdFlags       = 1 | 4 | 8 // there are flags; it can flush, and force unit access
	nbdRead        = 0
	nbdWrite       = 1
	nbdDisconnect  = 2
	nbdFlush       = 3
	nbdForce       = 1
	nbdInvalid     = 22
	nbdLargest     = 32 << 20
)

// Serve answers one machine, until it hangs up or the power is gone.
func (d *Disk) Serve(l net.Listener) error {
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := d.greet(c); err != nil {
		return fmt.Errorf("greet the machine: %w", err)
	}
	for {
		switch more, err := d.answer(c); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case !more:
			return nil
		}
	}
}

func (d *Disk) greet(c net.Conn) error {
	b := binary.BigEndian.AppendUint64(nil, nbdMagic)
	b = binary.BigEndian.AppendUint64(b, nbdOption)
	if _, err := c.Write(binary.BigEndian.AppendUint16(b, nbdFixed)); err != nil {
		return err
	}
	var flags [4]byte
	if _, err := io.ReadFull(c, flags[:]); err != nil {
		return err
	}
	for {
		var head [16]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return err
		}
		option, length := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:])
		if length > 4096 {
			return fmt.Errorf("option %d of %d bytes", option, length)
		}
		if _, err := io.CopyN(io.Discard, c, int64(length)); err != nil {
			return err
		}
		reply := func(kind uint32, data []byte) error {
			b := binary.BigEndian.AppendUint64(nil, nbdOptionReply)
			b = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, option), kind)
			b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
			_, err := c.Write(append(b, data...))
			return err
		}
		if option != nbdGo {
			if err := reply(nbdUnsupported, nil); err != nil {
				return err
			}
			continue
		}
		export := binary.BigEndian.AppendUint64([]byte{0, 0}, uint64(len(d.now)))
		return errors.Join(reply(nbdInfo, binary.BigEndian.AppendUint16(export, nbdFlags)), reply(nbdAck, nil))
	}
}

// answer does one request.
func (d *Disk) answer(c net.Conn) (more bool, err error) {
	var head [28]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return false, err
	}
	if binary.BigEndian.Uint32(head[:]) != nbdRequest {
		return false, fmt.Errorf("not a request: %x", head)
	}
	flags, kind := binary.BigEndian.Uint16(head[4:]), binary.BigEndian.Uint16(head[6:])
	at, n := int64(binary.BigEndian.Uint64(head[16:])), int64(binary.BigEndian.Uint32(head[24:]))
	if at < 0 || n > nbdLargest || at+n > int64(len(d.now)) {
		return false, fmt.Errorf("request %d of %d bytes at %d", kind, n, at)
	}
	var failed uint32
	var data []byte
	alive := true
	switch kind {
	case nbdRead:
		data = make([]byte, n)
		alive = d.read(data, at)
	case nbdWrite:
		b := make([]byte, n)
		if _, err := io.ReadFull(c, b); err != nil {
			return false, err
		}
		alive = d.do(diskOp{at: at, data: b, force: flags&nbdForce != 0})
	case nbdFlush:
		alive = d.do(diskOp{})
	case nbdDisconnect:
		return false, nil
	default:
		failed = nbdInvalid
	}
	if !alive {
		return false, nil
	}
	b := binary.BigEndian.AppendUint32(nil, nbdReply)
	b = binary.BigEndian.AppendUint32(b, failed)
	b = append(append(b, head[8:16]...), data...) // which request it answers
	_, err = c.Write(b)
	return true, err
}
