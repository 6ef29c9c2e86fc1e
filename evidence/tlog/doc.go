// Package tlog keeps a node's log: an RFC 6962 Merkle tree over every chunk, gap,
// epoch, heartbeat and tombstone, in the files of C2SP tlog-tiles, under
// checkpoints of C2SP tlog-checkpoint.
//
// In: the entries' bytes ([evidence.EncodeLeaf] makes them), a directory, and the
// key of the day. Out: tile/ and checkpoint in that directory; for a reader the
// entries, all of them proven to be what a checkpoint was signed over, and proofs
// that one entry is among them or that one state of the log grew out of another.
//
// True on disk: what checkpoint says, the tiles have, at every moment and after
// kill -9 or loss of power: tiles are durable before the checkpoint over them, and
// the checkpoint is durable before it has its name ([Next]). When
// [Log.Commit] returns nil, the checkpoint over everything appended before is
// durable. After an error the log takes nothing more: what a failed fsync left
// behind is not relied on. Open begins again at what it can verify, or, where the
// new checkpoint is visible already, [Log.Again] writes all of it into new files.
//
// The tree's arithmetic is golang.org/x/mod/sumdb/tlog, the signatures are those
// of golang.org/x/mod/sumdb/note. The package trusts its directory's file system
// and whoever calls it to sign; a reader trusts the keys that it is given. It is
// no control against who holds the key of the day or the node's: they can write
// another history, and only somebody who kept an earlier checkpoint sees it (an
// acknowledgement, a witness). Deleting the newest leaves together with their
// checkpoint shows to nobody else either.
package tlog
