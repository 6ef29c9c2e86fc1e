package bpf

import (
	"bytes"
	"encoding/hex"
	"fmt"

	"golang.org/x/sys/unix"
)

// MaxFrames is how many frames of a stack are told.
const MaxFrames = 64 // MAX_FRAMES in c/probity.h

// Stack is a user stack as the kernel unwound it by frame pointers, innermost
// frame first.
type Stack struct {
	Frames []Frame
	// Caller is the return address of the function that was hit, where the probe
	// is at a place where that can be told: before the function has made its
	// frame the kernel's unwinder steps over its caller. 0: not known.
	Caller uint64
	// Cut: there were more frames than MaxFrames.
	Cut bool
	// Err is why there is no frame.
	Err error
}

// Frame is one frame.
type Frame struct {
	Address uint64 // in the process; 0 if only BuildID and Offset are known
	// BuildID is the GNU build id of the file in hex, and Offset the place in
	// that file; "" where the kernel could not read it.
	BuildID string
	Offset  uint64
}

// What the kernel says of a frame (enum bpf_stack_build_id_status).
const (
	frameEmpty   = 0 // not filled
	frameValid   = 1 // has a build id and an offset
	frameAddress = 2 // has an address instead of the offset, and no build id
)

// stackOf decodes strictly what bpf_get_stack filled in twice: with build ids,
// and with addresses.
func stackOf(e *probesStackEvent) (*Stack, error) {
	ids, err := filled(e.Ids, 32, len(e.BuildIds))
	if err != nil {
		return nil, fmt.Errorf("%w: build ids of a stack: %w", ErrDecode, err)
	}
	ips, err := filled(e.Addresses, 8, len(e.Ips))
	if err != nil {
		return nil, fmt.Errorf("%w: addresses of a stack: %w", ErrDecode, err)
	}
	st := &Stack{Caller: e.Caller, Cut: max(ids, ips) == MaxFrames}
	for i := range max(ids, ips) {
		var f Frame
		if i < ips {
			f.Address = e.Ips[i]
		}
		if i < ids {
			switch b := &e.BuildIds[i]; b.Status {
			case frameValid:
				f.BuildID, f.Offset = hex.EncodeToString(trimID(b.BuildId[:])), b.Offset
			case frameAddress:
				if f.Address == 0 {
					f.Address = b.Offset // a union with ip
				}
			case frameEmpty:
			default:
				return nil, fmt.Errorf("%w: frame %d of a stack has status %d", ErrDecode, i, b.Status)
			}
		}
		st.Frames = append(st.Frames, f)
	}
	if len(st.Frames) == 0 {
		st.Err = fmt.Errorf("unwind the user stack: %w", unix.Errno(-min(e.Addresses, 0)))
	}
	return st, nil
}

// filled says how many elements a helper filled, none if it failed.
func filled(bytes int32, size, most int) (int, error) {
	if bytes < 0 {
		return 0, nil
	}
	if n := int(bytes) / size; int(bytes)%size == 0 && n <= most {
		return n, nil
	}
	return 0, fmt.Errorf("%d bytes", bytes)
}

// trimID cuts what the kernel pads a build id with: they have 20, 16 or 8 bytes.
func trimID(id []byte) []byte {
	for _, n := range []int{8, 16} {
		if len(bytes.TrimRight(id, "\x00")) <= n {
			return id[:n]
		}
	}
	return id
}
