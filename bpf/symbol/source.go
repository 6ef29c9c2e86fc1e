package symbol

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// source is the file: the only place that reads it. A read that does not lie
// within the size known at the start never happens.
type source struct {
	r    io.ReaderAt
	size uint64
	buf  []byte // of stream; streams do not nest

	deadline time.Time // no read begins after it, unless it is zero
	limit    time.Duration
	failed   error // the last read that failed, apart from those outside of the file
}

// ReadAt implements io.ReaderAt.
func (s *source) ReadAt(b []byte, off int64) (int, error) {
	if err := s.read(b, uint64(off)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// onTime says whether there is time left.
func (s *source) onTime() error {
	if !s.deadline.IsZero() && time.Now().After(s.deadline) {
		return fmt.Errorf("more than %v: %w", s.limit, ErrTime)
	}
	return nil
}

// within says whether n bytes at off lie in the file.
func (s *source) within(off, n uint64) error {
	if off > s.size || n > s.size-off {
		return fmt.Errorf("%d bytes at offset %d of a file of %d: %w", n, off, s.size, ErrTruncated)
	}
	return nil
}

// read fills b from off.
func (s *source) read(b []byte, off uint64) error {
	if err := s.within(off, uint64(len(b))); err != nil {
		return err
	}
	if err := s.onTime(); err != nil {
		s.failed = err
		return err
	}
	n, err := s.r.ReadAt(b, int64(off)) // off <= size, an int64
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		// The file became shorter since its size was taken.
		s.failed = fmt.Errorf("%d of %d bytes at offset %d: %w", n, len(b), off, ErrTruncated)
		return s.failed
	}
	err = fmt.Errorf("read %d bytes at offset %d: %w", len(b), off, err)
	s.failed = err
	return err
}

const streamBuffer = 64 << 10

// stream calls fn with consecutive pieces of n bytes at off. A piece's length
// is a multiple of unit, which is small; n is as well, or the rest is left.
func (s *source) stream(off, n uint64, unit int, fn func(piece []byte) error) error {
	if err := s.within(off, n); err != nil {
		return err
	}
	n -= n % uint64(unit)
	if need := min(n, streamBuffer); uint64(len(s.buf)) < need {
		s.buf = make([]byte, need) // most of what Identify reads is small
	}
	whole := s.buf[:len(s.buf)-len(s.buf)%unit]
	for n > 0 {
		piece := whole[:min(uint64(len(whole)), n)]
		if err := s.read(piece, off); err != nil {
			return err
		}
		if err := fn(piece); err != nil {
			return err
		}
		off += uint64(len(piece))
		n -= uint64(len(piece))
	}
	return nil
}

// begin starts the time of Limits.Time.
func (p *parser) begin() {
	p.src.deadline, p.src.limit = time.Now().Add(p.lim.Time), p.lim.Time
}

// work is called with the number of bytes that a step looks at, and fails when
// the time is over.
func (p *parser) work(n int) error {
	if p.worked += n; p.worked < streamBuffer {
		return nil
	}
	p.worked = 0
	return p.src.onTime()
}
