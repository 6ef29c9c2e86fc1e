package tlog

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"probity/evidence"
)

// ErrChain is wrapped where the leaves do not follow from one another: an epoch
// that nobody signed, a leaf out of its place, something after a close.
var ErrChain = errors.New("the log's leaves do not follow from one another")

// Epochs follows a log's leaves in order: which key signs the checkpoint of which
// size, and whether each epoch was opened by who may. What it is given has to be
// proven by [Reader.Scan] too.
type Epochs struct {
	// Origin is the log's name.
	Origin string
	// NodeKey says whether the node's key with this id and SubjectPublicKeyInfo is
	// trusted and signed these bytes ([evidence.EpochType]). Where the key is another
	// than the last epoch's, the leaf's successions name that one, and are the
	// caller's to check.
	NodeKey func(leaf *evidence.EpochLeaf, publicKey, unsigned, signature []byte) error

	next   uint64
	closed bool
	epochs []*evidence.EpochLeaf
}

// See takes the next entry.
func (e *Epochs) See(index uint64, entry []byte) (evidence.Leaf, error) {
	if index != e.next {
		return nil, fmt.Errorf("%w: entry %d comes after %d entries", ErrChain, index, e.next)
	}
	leaf, err := evidence.DecodeLeaf(string(entry))
	if err != nil {
		return nil, fmt.Errorf("%w: entry %d: %w", ErrChain, index, err)
	}
	if own, _ := evidence.PlaceOf(leaf); own != index {
		return nil, fmt.Errorf("%w: entry %d says that it is entry %d", ErrChain, index, own)
	}
	if err := e.see(leaf); err != nil {
		return nil, fmt.Errorf("%w: entry %d: %w", ErrChain, index, err)
	}
	e.next++
	return leaf, nil
}

func (e *Epochs) see(leaf evidence.Leaf) error {
	switch l := leaf.(type) {
	case *evidence.EpochLeaf:
		if err := e.open(l); err != nil {
			return err
		}
		e.epochs, e.closed = append(e.epochs, l), false
		return nil
	case *evidence.CloseLeaf:
		if len(e.epochs) > 0 && !e.closed {
			e.closed = true
			return nil
		}
	}
	switch {
	case len(e.epochs) == 0:
		return errors.New("a log begins with an epoch")
	case e.closed:
		return errors.New("after a close only an epoch may come")
	}
	return nil
}

func (e *Epochs) open(l *evidence.EpochLeaf) error {
	if l.Origin != e.Origin {
		return fmt.Errorf("an epoch of %s in the log %s", clip(l.Origin), clip(e.Origin))
	}
	if int(l.Epoch) != len(e.epochs) {
		return fmt.Errorf("epoch %d after %d epochs", l.Epoch, len(e.epochs))
	}
	name, _, err := parseVerifier(l.CheckpointKey, algEd25519)
	if err != nil {
		return err
	}
	if name != e.Origin {
		return fmt.Errorf("a checkpoint key of %s", clip(name))
	}
	switch {
	case l.Start == evidence.StartClean && !e.closed:
		return errors.New("an epoch that starts clean, and nothing was closed")
	case l.Start == evidence.StartUnclean && e.closed, l.Start == evidence.StartRotation && e.closed:
		return fmt.Errorf("an epoch that starts %s after a close", l.Start)
	}
	if n := len(e.epochs); n > 0 && e.epochs[n-1].PublicKey != l.PublicKey && !slices.ContainsFunc(l.Successions, func(s evidence.Succession) bool { return s.PublicKey == e.epochs[n-1].PublicKey }) {
		return fmt.Errorf("the node's key changed from %s to %s, and no succession leads there", clip(e.epochs[n-1].KeyID), clip(l.KeyID))
	}
	if l.Start == evidence.StartRotation {
		unsigned, err := l.Unsigned()
		if err != nil {
			return err
		}
		sig, err := base64.StdEncoding.DecodeString(l.Announced)
		if err != nil {
			return err
		}
		if err := announced(e.epochs[len(e.epochs)-1].CheckpointKey, unsigned, sig); err != nil {
			return err
		}
	}
	return Opened(l, e.NodeKey)
}

// Opened asks by, as [Epochs.NodeKey] says, who opened an epoch.
func Opened(l *evidence.EpochLeaf, by func(leaf *evidence.EpochLeaf, publicKey, unsigned, signature []byte) error) error {
	unsigned, err := l.Unsigned()
	if err != nil {
		return err
	}
	public, err := base64.StdEncoding.DecodeString(l.PublicKey)
	if err != nil {
		return err
	}
	sig, err := base64.StdEncoding.DecodeString(l.Signature)
	if err != nil {
		return err
	}
	return by(l, public, unsigned, sig)
}

// All returns the epochs so far.
func (e *Epochs) All() []*evidence.EpochLeaf { return e.epochs }

// Closed reports whether the last leaf closed the log.
func (e *Epochs) Closed() bool { return e.closed }

// KeyAt returns the key that signs the checkpoint of this size: the one of the
// last epoch in it.
func (e *Epochs) KeyAt(size uint64) (string, bool) {
	for i := len(e.epochs) - 1; i >= 0; i-- {
		if uint64(e.epochs[i].Index) < size {
			return e.epochs[i].CheckpointKey, true
		}
	}
	return "", false
}

// OriginOf reads a checkpoint's first line, which nobody has checked.
func OriginOf(checkpoint []byte) string {
	first, _, _ := strings.Cut(string(checkpoint), "\n")
	return first
}
