package spool

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"probity/evidence"
	"probity/evidence/redact"
)

// encoder holds lines and their bytes on their way into a chunk, which copies
// them.
type encoder struct {
	encoder evidence.Encoder
	buf     []byte
	lines   []encoded
}

type encoded struct {
	line  evidence.Line
	bytes []byte // a part of encoder.buf
}

var buffers = sync.Pool{New: func() any { return new(encoder) }}

// usualLine is how much room is made for a line before it is known how long it is.
const usualLine = 900

// maxKeptBuffer is how large a buffer is kept for the next lines: those of a run
// with ten thousand sites are rare.
const maxKeptBuffer = 256 << 10

func (e *encoder) put() {
	clear(e.lines)
	e.encoder.Forget()
	if cap(e.buf) <= maxKeptBuffer {
		buffers.Put(e)
	}
}

// content makes and encodes what goes under a clock.
type content func(*encoder, evidence.Clock) error

var errNotRedacted = errors.New("a line that no redactor has seen")

// redacted is lines of one run, and lines of none.
func redacted(runID string, build func(evidence.Clock) []redact.Line) content {
	return func(e *encoder, clock evidence.Clock) error {
		lines := build(clock)
		e.begin(len(lines))
		for _, l := range lines {
			line := l.Evidence()
			if line == nil {
				return errNotRedacted
			}
			if r := evidence.RunOf(line); r != "" && r != runID {
				return fmt.Errorf("a line of run %s among those of %q", r, runID)
			}
			if err := e.add(line); err != nil {
				return err
			}
		}
		return nil
	}
}

// own is what the spool itself says of lines that it lost.
func own(build func(evidence.Clock) []*evidence.Gap) content {
	return func(e *encoder, clock evidence.Clock) error {
		gaps := build(clock)
		e.begin(len(gaps))
		for _, g := range gaps {
			if err := e.add(g); err != nil {
				return err
			}
		}
		return nil
	}
}

// begin makes room for so many lines, instead of those before.
func (e *encoder) begin(lines int) {
	e.buf = slices.Grow(e.buf[:0], min(lines*usualLine, maxKeptBuffer))
	clear(e.lines)
	e.lines = e.lines[:0]
}

// add checks and encodes a line.
func (e *encoder) add(l evidence.Line) (err error) {
	at := len(e.buf)
	if e.buf, err = e.encoder.Append(e.buf, l); err != nil {
		return err
	}
	e.lines = append(e.lines, encoded{l, e.buf[at:]}) // stays as it is where buf grows into another array
	return nil
}
