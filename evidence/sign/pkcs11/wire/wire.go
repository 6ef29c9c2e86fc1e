// Package wire is what the agent and its PKCS#11 helper say to each other over the
// helper's standard input and output: one request, one answer, in frames.
//
// In and out: frames, a length of four bytes, big endian, and as many bytes, of
// which the first says what it is. The package trusts neither side: a frame is
// bounded, and what is in it is taken whole or refused.
package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxFrame bounds a frame without its length.
const MaxFrame = 16 << 10

// What a request asks for.
const (
	OpOpen byte = 'O' // an [Open] in JSON; the answer is the SubjectPublicKeyInfo
	OpSign byte = 'S' // a SHA-256 digest; the answer is r and s, 32 bytes each
)

// How an answer begins.
const (
	Done   byte = 0 // what was asked for follows
	Failed byte = 1 // why not follows
	// Refused is Failed where the token did not take the PIN: after a few of these
	// it locks itself.
	Refused byte = 2
	// Locked is Failed where it has done so.
	Locked byte = 3
)

// Open says which key to open. Exactly one key must be meant.
type Open struct {
	Module       string  `json:"module"` // path of the module
	Token        string  `json:"token,omitempty"`
	Manufacturer string  `json:"manufacturer,omitempty"`
	Serial       string  `json:"serial,omitempty"`
	Model        string  `json:"model,omitempty"`
	Slot         *uint64 `json:"slot,omitempty"`
	Object       string  `json:"object,omitempty"`
	ID           []byte  `json:"id,omitempty"`
	PIN          []byte  `json:"pin,omitempty"`
	// Generate makes the key, which must not be there yet.
	Generate bool `json:"generate,omitempty"`
}

// ErrFrame is wrapped where what was read is no frame.
var ErrFrame = errors.New("not a frame")

// Write writes one frame, in one call.
func Write(w io.Writer, kind byte, body []byte) error {
	if len(body)+1 > MaxFrame {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrFrame, len(body)+1, MaxFrame)
	}
	b := make([]byte, 0, 5+len(body))
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)+1))
	_, err := w.Write(append(append(b, kind), body...))
	return err
}

// Read reads one frame. io.EOF is before its first byte only.
func Read(r io.Reader) (kind byte, body []byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: cut off", ErrFrame)
		}
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > MaxFrame {
		return 0, nil, fmt.Errorf("%w: of %d bytes, want 1 to %d", ErrFrame, n, MaxFrame)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: cut off", ErrFrame)
		}
		return 0, nil, err
	}
	return b[0], b[1:], nil
}

// ParseOpen reads an Open.
func ParseOpen(b []byte) (Open, error) {
	var o Open
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&o); err != nil {
		return o, fmt.Errorf("which key to open: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return o, errors.New("which key to open: something follows")
	}
	if o.Module == "" || o.Object == "" && len(o.ID) == 0 {
		return o, errors.New("which key to open: a module, and an object or an id, are missing")
	}
	return o, nil
}
