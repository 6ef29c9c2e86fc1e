package spool

import (
	"fmt"
	"slices"
	"sync"

	"probity/evidence"
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

// encode checks and encodes all lines, instead of those before.
func (e *encoder) encode(runID string, oneRun bool, lines []evidence.Line) error {
	e.buf = slices.Grow(e.buf[:0], min(len(lines)*usualLine, maxKeptBuffer))
	clear(e.lines)
	e.lines = e.lines[:0]
	for _, l := range lines {
		if r := evidence.RunOf(l); oneRun && r != "" && r != runID {
			return fmt.Errorf("a line of run %s among those of %q", r, runID)
		}
		at := len(e.buf)
		var err error
		if e.buf, err = e.encoder.Append(e.buf, l); err != nil {
			return err
		}
		e.lines = append(e.lines, encoded{l, e.buf[at:]}) // stays as it is where buf grows into another array
	}
	return nil
}
