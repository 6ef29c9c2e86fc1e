package tlog

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// proofVersion is the first line of a proof (C2SP tlog-proof).
const proofVersion = "c2sp.org/tlog-proof@v1"

// maxProof is more hashes than a proof in a tree of 2^62 leaves has.
const maxProof = 63

// Proof says offline that one entry is in a log: the entry, its place, the hashes
// up to the root, and the checkpoint that names the root.
type Proof struct {
	Entry      []byte // the "extra data", which the hashes then prove
	Index      uint64
	Hashes     []Hash
	Checkpoint []byte
}

// Text is the proof as C2SP tlog-proof writes it.
func (p Proof) Text() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nextra %s\nindex %d\n", proofVersion, base64.StdEncoding.EncodeToString(p.Entry), p.Index)
	for _, h := range p.Hashes {
		b.WriteString(h.String() + "\n")
	}
	b.WriteString("\n")
	b.Write(p.Checkpoint)
	return []byte(b.String())
}

// ParseProof reads what Text writes. Nothing is checked yet: see Check.
func ParseProof(text []byte) (Proof, error) {
	var p Proof
	if len(text) > MaxCheckpointBytes {
		return p, fmt.Errorf("proof: more than %d bytes", MaxCheckpointBytes)
	}
	head, checkpoint, ok := strings.Cut(string(text), "\n\n")
	lines := strings.Split(head, "\n")
	if !ok || len(lines) < 3 || lines[0] != proofVersion {
		return p, fmt.Errorf("proof: it does not begin with %s, or has no checkpoint", proofVersion)
	}
	extra, ok := strings.CutPrefix(lines[1], "extra ")
	if !ok {
		return p, errors.New("proof: it has no extra data, which is the entry")
	}
	var err error
	if p.Entry, err = base64.StdEncoding.Strict().DecodeString(extra); err != nil {
		return p, fmt.Errorf("proof: extra: %w", err)
	}
	index, ok := strings.CutPrefix(lines[2], "index ")
	if p.Index, err = strconv.ParseUint(index, 10, 62); !ok || err != nil || strconv.FormatUint(p.Index, 10) != index {
		return p, fmt.Errorf("proof: %q is no index", clip(lines[2]))
	}
	if len(lines)-3 > maxProof {
		return p, fmt.Errorf("proof: %d hashes, at most %d are needed", len(lines)-3, maxProof)
	}
	for _, l := range lines[3:] {
		h, err := tlog.ParseHash(l)
		if err != nil || h.String() != l {
			return p, fmt.Errorf("proof: %q is no hash", clip(l))
		}
		p.Hashes = append(p.Hashes, h)
	}
	p.Checkpoint = []byte(checkpoint)
	return p, nil
}

// Check says whether the entry is in the tree of the proof's checkpoint, which one
// of these keys must have signed, and returns that checkpoint.
func (p Proof) Check(keys []string) (Checkpoint, error) {
	c, err := OpenCheckpoint(p.Checkpoint, keys, nil)
	if err != nil {
		return c, err
	}
	return c, checkInclusion(p.Hashes, c.Tree, p.Index, p.Entry)
}

// Prove makes a proof of an entry of the tree of a checkpoint.
func (r *Reader) Prove(checkpoint []byte, t Tree, index uint64, entry []byte) (Proof, error) {
	h, err := r.inclusion(t, index)
	return Proof{Entry: entry, Index: index, Hashes: h, Checkpoint: checkpoint}, err
}
