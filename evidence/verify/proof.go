package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"probity/evidence"
	"probity/evidence/tlog"
)

// Proof shows one leaf of a node's log to who does not have the log.
type Proof struct {
	Name  string // for findings
	proof tlog.Proof
	leaf  evidence.Leaf
	tree  tlog.Tree // that its checkpoint claims
}

// ParseProof reads a C2SP tlog-proof whose extra data is the leaf.
func ParseProof(name string, b []byte) (Proof, error) {
	p, err := tlog.ParseProof(b)
	if err != nil {
		return Proof{}, err
	}
	tree, err := tlog.Claim(p.Checkpoint)
	if err != nil {
		return Proof{}, err
	}
	leaf, err := evidence.DecodeLeaf(string(p.Entry))
	if err != nil {
		return Proof{}, fmt.Errorf("proof: its extra data: %w", err)
	}
	switch leaf.(type) {
	case *evidence.ChunkLeaf, *evidence.EpochLeaf:
	default:
		return Proof{}, errors.New("proof: neither of a chunk nor of an epoch")
	}
	if own, _ := evidence.PlaceOf(leaf); own != p.Index {
		return Proof{}, fmt.Errorf("proof: of entry %d, which says that it is entry %d", p.Index, own)
	}
	return Proof{Name: name, proof: p, leaf: leaf, tree: tree}, nil
}

// Prove makes the proof that a chunk is in a log, or, with epoch, of the epoch whose
// key signed the log's checkpoint. It verifies nothing.
func Prove(ctx context.Context, log fs.FS, chunk string, epoch bool) (tlog.Proof, error) {
	r := tlog.NewReader(log)
	note, err := r.Checkpoint()
	if err != nil {
		return tlog.Proof{}, err
	}
	tree, err := tlog.Claim(note)
	if err != nil {
		return tlog.Proof{}, err
	}
	var found, opened []byte
	var at, openedAt uint64
	if err := r.Scan(ctx, tree, func(i uint64, entry []byte) error {
		l, err := evidence.DecodeLeaf(string(entry))
		if err != nil {
			return err
		}
		switch v := l.(type) {
		case *evidence.ChunkLeaf:
			if v.Chunk == chunk {
				found, at = bytes.Clone(entry), i
			}
		case *evidence.EpochLeaf:
			opened, openedAt = bytes.Clone(entry), i
		}
		return nil
	}); err != nil {
		return tlog.Proof{}, err
	}
	if found == nil {
		return tlog.Proof{}, fmt.Errorf("chunk %.80q is not in it", chunk)
	}
	if epoch {
		found, at = opened, openedAt
	}
	return r.Prove(note, tree, at, found)
}

// checkProofs holds the chunks that were named themselves against opts.Proofs.
func (r *Report) checkProofs(c *crew) {
	if len(c.opts.Proofs) == 0 {
		return
	}
	check := proofCheck{crew: c, keys: map[tlog.Tree]string{}, proven: map[string]bool{}}
	for _, p := range c.opts.Proofs {
		if l, ok := p.leaf.(*evidence.EpochLeaf); ok {
			check.epoch(p, l)
		}
	}
	for _, p := range c.opts.Proofs {
		if l, ok := p.leaf.(*evidence.ChunkLeaf); ok {
			check.chunk(p, l)
		}
	}
	for name, p := range c.all.inLog[alone] {
		if !check.proven[name] {
			check.say(LogMissing, p.file, "none of the proofs is of this chunk, leaf %d of %.200q", p.leaf, p.log)
		}
	}
	r.Findings = append(r.Findings, check.found...)
	switch {
	case len(check.found) > 0:
		r.Log = LogUnsound
	case r.Log == LogNotChecked && len(check.proven) > 0:
		r.Log = LogProven
	}
}

type proofCheck struct {
	crew   *crew
	keys   map[tlog.Tree]string // that sign the checkpoints of these trees
	proven map[string]bool      // chunks of which there is a proof, which may be of other bytes
	found  []Finding
}

func (c *proofCheck) say(k Kind, file, format string, args ...any) {
	c.found = append(c.found, Finding{Kind: k, File: file, Reason: fmt.Sprintf(format, args...)})
}

// epoch takes the key of an epoch that the node has opened, for the tree in which it is
// proven. That no later epoch is in that tree its checkpoint says: it is signed with
// this one's key.
func (c *proofCheck) epoch(p Proof, l *evidence.EpochLeaf) {
	node := logCheck{key: c.crew.key, kept: c.crew.opts.Kept, crew: c.crew, spool: p.Name}
	err := tlog.Opened(l, node.nodeKey)
	c.found = append(c.found, node.found...)
	switch {
	case err != nil:
		c.say(kindOf(err), p.Name, "the epoch that it proves: %v", err)
	case l.Origin != p.tree.Origin:
		c.say(LogDamaged, p.Name, "an epoch of %.200q in the log %.200q", l.Origin, p.tree.Origin)
	default:
		if _, err := p.proof.Check([]string{l.CheckpointKey}); err != nil {
			c.say(LogDamaged, p.Name, "%v", err)
			return
		}
		c.keys[p.tree] = l.CheckpointKey
	}
}

func (c *proofCheck) chunk(p Proof, l *evidence.ChunkLeaf) {
	c.proven[l.Chunk] = true
	key, ok := c.keys[p.tree]
	if !ok {
		c.say(LogDamaged, p.Name, "none of the proofs is of the epoch that signed its checkpoint, of %d leaves of %.200q (evidence proof --epoch, at the same state of the log)", p.tree.Size, p.tree.Origin)
		return
	}
	if _, err := p.proof.Check([]string{key}); err != nil {
		c.say(LogDamaged, p.Name, "%v", err)
		return
	}
	at, ok := c.crew.all.inLog[alone][l.Chunk]
	for _, chunks := range c.crew.all.inLog {
		if !ok {
			at, ok = chunks[l.Chunk]
		}
	}
	if !ok {
		c.say(Removed, p.Name, "leaf %d of %.200q is chunk %s, and no sound chunk of that name was given", l.Index, p.tree.Origin, l.Chunk)
		return
	}
	c.found = append(c.found, at.differs(p.tree.Origin, l)...)
}

// successionsOfProofs are those that the proven epochs tell of, whoever signed them.
func successionsOfProofs(proofs []Proof) (links []evidence.Succession) {
	for _, p := range proofs {
		if l, ok := p.leaf.(*evidence.EpochLeaf); ok {
			links = append(links, l.Successions...)
		}
	}
	return slices.Clip(links)
}

// differs says what a chunk and the leaf of its name in a log do not agree about.
func (p inLog) differs(origin string, l *evidence.ChunkLeaf) []Finding {
	say := func(k Kind, format string, args ...any) []Finding {
		return []Finding{{Kind: k, File: p.file, Reason: fmt.Sprintf(format, args...)}}
	}
	switch {
	case p.log != origin:
		return say(NotInLog, "it is leaf %d of %s, and says that it is in the log %q", l.Index, origin, p.log)
	case p.leaf != uint64(l.Index):
		return say(Reordered, "it is leaf %d of %s, and says that it is leaf %d", l.Index, origin, p.leaf)
	case p.digest != l.Digest:
		return say(Modified, "its bytes have the digest %s, leaf %d of %s says %s", p.digest, l.Index, origin, l.Digest)
	case p.size != uint64(l.Bytes):
		return say(Modified, "it has %d bytes, leaf %d of %s says %d", p.size, l.Index, origin, l.Bytes)
	}
	return nil
}
