package spool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"probity/evidence"
)

// Received is how far a consumer has come by what its far side says that it has.
type Received struct {
	Chunks  int           `json:"chunks"`            // acknowledged now
	Pending int           `json:"pending"`           // still
	Missing string        `json:"missing,omitempty"` // the first chunk that the far side does not have
	Wrong   string        `json:"wrong,omitempty"`   // why no more was acknowledged, where something is wrong
	Ack     *evidence.Ack `json:"ack,omitempty"`     // absent if nothing was acknowledged
}

// AckReceived acknowledges, of what is pending, the longest beginning of which
// nothing is missing. far returns the digest of a chunk's bytes at the far side, "" if
// it does not have it. A chunk counts as received if that is the digest that its leaf
// names; and of one that is still here, the bytes here have to have it, too: what was
// changed on this disk is to be looked at and not collected.
//
// Who tells far is the consumer: it can claim to have what it has not, as it can
// with Ack. It cannot have anything acknowledged behind what it does not claim, nor
// under a digest that the node did not log.
func (r *Reader) AckReceived(ctx context.Context, far func(chunk string) string) (Received, error) {
	items, err := r.Pending(ctx)
	if err != nil {
		return Received{}, err
	}
	got := Received{Pending: len(items)}
	for _, it := range items {
		digest := far(it.Chunk)
		if digest == "" {
			got.Missing = it.Chunk
			break
		}
		if digest != it.Digest {
			got.Wrong = fmt.Sprintf("chunk %s: the far side has it with the digest %s, and its leaf says %s", it.Chunk, digest, it.Digest)
			break
		}
		if _, err := r.Read(it); err != nil && !errors.Is(err, fs.ErrNotExist) {
			got.Wrong = err.Error()
			break
		}
		got.Chunks++
	}
	if got.Chunks == 0 {
		return got, nil
	}
	a, err := r.Ack(ctx, items[got.Chunks-1])
	if err != nil {
		return Received{Pending: len(items)}, err
	}
	got.Ack, got.Pending = &a, len(items)-got.Chunks
	return got, nil
}
