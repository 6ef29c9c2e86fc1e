package verify

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"probity/evidence"
)

// chunkStream takes chunks apart that come one behind another, as `cat` or a
// shipper writes them: an envelope line ends a chunk, and a header line begins one.
// The lines of one chunk must stand together: which chunk a line between others
// belongs to nobody can say. take is given each, whose bytes it must not keep.
func chunkStream(ctx context.Context, name string, r *bufio.Reader, take func(file, io.Reader, int64) error) (n int, err error) {
	var (
		buf    []byte
		began  = 1 // the line that the chunk begins with
		line   = 1
		within bool // a line
		ends   bool // the line is an envelope
	)
	flush := func() error {
		if len(buf) == 0 {
			return nil
		}
		n++
		err := take(file{path: fmt.Sprintf("%s (from line %d)", name, began)}, bytes.NewReader(buf), int64(len(buf)))
		buf, began = buf[:0], line
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		piece, err := r.ReadSlice('\n')
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return n, fmt.Errorf("read %s: %w", name, err)
		}
		if !within {
			if ends = bytes.HasPrefix(piece, []byte(`{"payloadType":`)); bytes.HasPrefix(piece, []byte(`{"kind":"header"`)) {
				if err := flush(); err != nil { // one without its end
					return n, err
				}
			}
		}
		// One byte past the bound says that it is past it.
		buf = append(buf, piece[:min(len(piece), evidence.MaxChunkBytes+1-len(buf))]...)
		if within = !bytes.HasSuffix(piece, []byte("\n")); !within {
			line++
		}
		if !within && ends || errors.Is(err, io.EOF) {
			if err := flush(); err != nil {
				return n, err
			}
		}
		if errors.Is(err, io.EOF) {
			return n, nil
		}
	}
}
