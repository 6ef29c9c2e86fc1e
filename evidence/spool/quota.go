package spool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"probity/evidence"
	"probity/evidence/verify"
)

// reserveFile keeps room on the disk so that a loss can be signed when nothing else
// can be written any more.
const (
	reserveFile  = "reserve"
	reserveBytes = 4 << 20
)

// fullDiskPatience is how long a full disk may keep evidence waiting before older
// evidence goes for it.
const fullDiskPatience = 5 * time.Second

// inventory is the chunks in ready/ that are in a log, oldest first.
type inventory struct {
	items []kept
	bytes int64
}

func (v *inventory) add(it kept) {
	v.items = append(v.items, it)
	v.bytes += int64(it.Bytes)
}

// take removes those that it is asked for, in one pass from the oldest on.
func (v *inventory) take(wanted func(kept) bool) (out []kept) {
	v.items = slices.DeleteFunc(v.items, func(it kept) bool {
		if !wanted(it) {
			return false
		}
		out = append(out, it)
		v.bytes -= int64(it.Bytes)
		return true
	})
	return out
}

// count makes the inventory of what is there at the start. A chunk that is in no
// log, of an agent before there were logs, is not the quota's to remove.
func (s *Spool) count(ctx context.Context) error {
	logs, err := retiredLogs(ctx, s.cfg.Dir, allChunks)
	if err != nil {
		return err
	}
	s.have = inventory{}
	for _, l := range logs {
		for _, it := range l.items {
			if !l.gone[it.Chunk] {
				s.countOne(it)
			}
		}
	}
	for _, it := range s.book.known { // the log was just read
		s.countOne(it)
	}
	slices.SortFunc(s.have.items, olderFirst)
	s.letGo(nil)
	return nil
}

func olderFirst(a, b kept) int { return strings.Compare(a.Chunk, b.Chunk) }

func (s *Spool) countOne(it Item) {
	if st, err := os.Lstat(it.Path); err == nil && st.Mode().IsRegular() {
		s.have.add(kept{Item: it})
	}
}

// Collect removes what every consumer has acknowledged, and returns how many chunks
// that were. Each has a tombstone in the log before it goes. Without any consumer
// nothing is acknowledged.
func (s *Spool) Collect(ctx context.Context) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.prepare(ctx, nil); err != nil {
		return 0, fmt.Errorf("collect acknowledged chunks: %w", err)
	}
	acked := s.acknowledged(ctx)
	gone := s.have.take(func(it kept) bool { return acked(it.Item) })
	if err := s.bury(gone, evidence.TombstoneAcknowledged, nil); err != nil {
		return 0, fmt.Errorf("collect acknowledged chunks: %w", err)
	}
	return len(gone), nil
}

// acknowledged returns what says whether every consumer has a chunk. An
// acknowledgement that the log does not bear out counts as none at all: then
// nothing of that consumer's is.
func (s *Spool) acknowledged(ctx context.Context) func(Item) bool {
	acks, err := acksOf(s.cfg.Dir)
	if err != nil {
		s.cfg.Log.Warn("an acknowledgement cannot be read: nothing counts as acknowledged", "error", err)
		return func(Item) bool { return false }
	}
	if len(acks) == 0 {
		return func(Item) bool { return false }
	}
	logs, err := readLogs(ctx, s.cfg.Dir, firstChunk)
	if err != nil {
		return func(Item) bool { return false }
	}
	rank := map[string]int{}
	for i, l := range logs {
		rank[l.tree.Origin] = i
	}
	for _, a := range acks {
		i, ok := rank[a.Origin]
		if ok {
			err = logs[i].has(a)
		}
		if !ok || err != nil {
			s.cfg.Log.Warn("an acknowledgement is not of this log: nothing counts as acknowledged", "consumer", a.Consumer, "origin", a.Origin, "error", err)
			return func(Item) bool { return false }
		}
	}
	return func(it Item) bool {
		for _, a := range acks {
			if rank[it.Origin] > rank[a.Origin] || it.Origin == a.Origin && it.Leaf >= a.Size {
				return false
			}
		}
		return true
	}
}

// maxAckNames bounds what may lie in the directory of acknowledgements: who may write
// there is not the agent, and it reads them all.
const maxAckNames = 1024

// acksOf reads what all consumers say; one that cannot be read is an error.
func acksOf(dir string) ([]evidence.Ack, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if d, err := root.OpenFile(AckDir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0); err == nil {
		names, _ := d.Readdirnames(maxAckNames + 1)
		d.Close()
		if len(names) > maxAckNames {
			return nil, fmt.Errorf("%s has more than %d names", filepath.Join(dir, AckDir), maxAckNames)
		}
	}
	acks, bad, err := verify.Acks(root)
	if err != nil {
		return nil, err
	}
	if len(bad) > 0 {
		first := slices.Min(slices.Collect(maps.Keys(bad)))
		return nil, fmt.Errorf("%d cannot be read, the first is %q: %w", len(bad), first, bad[first])
	}
	return acks, nil
}

// makeRoom removes chunks where so many bytes more do not fit below the quota: first
// what every consumer has, then what somebody has not. Of the latter it remembers
// what has to be signed. It removes a fifth more than it must, so that not every
// further chunk costs another.
func (s *Spool) makeRoom(ctx context.Context, more int64) error {
	if s.cfg.Quota <= 0 || more == 0 || s.have.bytes+more <= s.cfg.Quota {
		return nil
	}
	over := s.have.bytes + min(more, s.cfg.Quota/2) - s.cfg.Quota + s.cfg.Quota/5
	return s.free(ctx, over, true, DroppedSpoolQuota, fmt.Errorf("the spool's quota of %d bytes is full", s.cfg.Quota))
}

// free does so, the oldest first. Without lose it removes only what every consumer
// has. Of the others those go first that are of containers with more than their
// share and of nobody else, then those that are mostly of such, and only then any:
// it is theirs that goes until they have no more than their share.
func (s *Spool) free(ctx context.Context, bytes int64, lose bool, reason string, why error) error {
	acked := s.acknowledged(ctx)
	freed, going := int64(0), map[*holding]int64{}
	oldest := func(wanted func(kept) bool) []kept {
		return s.have.take(func(it kept) bool {
			if freed >= bytes || !wanted(it) {
				return false
			}
			freed += int64(it.Bytes)
			for _, p := range it.parts {
				going[p.of] += p.bytes
			}
			return true
		})
	}
	known := oldest(func(it kept) bool { return acked(it.Item) })
	var lost []kept
	if lose {
		for _, now := range sacrifices {
			lost = append(lost, oldest(func(it kept) bool { return now(s.greedyStored(it, going)) })...)
		}
	}
	if err := s.bury(known, evidence.TombstoneAcknowledged, nil); err != nil {
		return err
	}
	d := drops{}
	for _, it := range lost {
		d.addFile(it.Item, s.here, why)
	}
	if err := s.bury(lost, evidence.TombstoneQuota, &d); err != nil {
		return err
	}
	if len(lost) > 0 {
		s.mu.Lock()
		s.drops.merge(d)
		s.dropped[reason] += d.lines
		s.mu.Unlock()
		s.cfg.Log.Error("removed chunks that no consumer has acknowledged", "chunks", len(lost), "lines", d.lines, "error", why)
	}
	return nil
}

// bury puts tombstones of chunks into the log, and then removes their files. What
// is lost with them is said by a gap leaf under the same checkpoint: the gap lines,
// which say it by run and probe type, come in a later chunk, and a crash may come
// before it.
func (s *Spool) bury(list []kept, reason string, lost *drops) error {
	if len(list) == 0 {
		return nil
	}
	clock := s.cfg.Clock()
	at := clock.Wall
	err := s.book.begin(at)
	for _, it := range list {
		if err == nil {
			l := &evidence.TombstoneLeaf{Chunk: it.Chunk, Of: it.Leaf, Reason: reason}
			if it.Origin != s.book.origin() {
				l.Log = it.Origin
			}
			err = s.book.append(l, at)
		}
	}
	if err == nil && lost != nil {
		err = s.book.append(lost.leaf(clock), at)
	}
	if err == nil {
		err = s.book.commit()
	}
	if err != nil {
		s.book.forget()
		if isFull(err) && len(list) > 1 {
			// There is no room even for a tombstone, not with the reserve gone: one
			// chunk goes before its tombstone is durable. A crash now would leave it
			// removed by nobody.
			if rmErr := os.Remove(list[0].Path); rmErr == nil {
				if err := s.book.open(context.Background()); err == nil {
					return s.bury(slices.Concat(list[1:], list[:1]), reason, lost)
				}
			}
		}
		for _, it := range list { // they stay
			s.have.add(it)
		}
		slices.SortStableFunc(s.have.items, olderFirst)
		return err
	}
	s.letGo(list)
	dirs := map[string]bool{}
	for _, it := range list {
		if err := ignoreMissing(os.Remove(it.Path)); err != nil {
			return err
		}
		dirs[filepath.Dir(it.Path)] = true
	}
	for d := range dirs {
		if d != s.synced {
			if err := os.Remove(d); err == nil || errors.Is(err, fs.ErrNotExist) { // nothing is in it any more
				continue
			}
		}
		if err := syncPath(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// reserve makes the file that keeps room, where the file system can. Without it
// all goes on, and a full disk may leave a loss unsigned until there is room.
func (s *Spool) reserve() {
	f, err := os.OpenFile(filepath.Join(s.cfg.Dir, reserveFile), os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, reserveBytes); err != nil {
		s.cfg.Log.Warn("no room can be kept in the spool for signing a loss", "error", err)
	}
}

// fullDisk makes room on a disk that has none: the reserve goes first, so that the
// tombstones can be written, then the oldest chunks. Chunks that somebody has not
// acknowledged go only when what waits in memory would be lost soon instead, or has
// waited for long: a disk that is full may have room again in a moment.
func (s *Spool) fullDisk(ctx context.Context, more int64) error {
	if err := ignoreMissing(os.Remove(filepath.Join(s.cfg.Dir, reserveFile))); err != nil {
		return err
	}
	if err := s.prepare(ctx, nil); err != nil {
		return err
	}
	s.mu.Lock()
	lose := s.bytes > s.cfg.MaxPending/2 || s.failing != nil && time.Since(s.failed) > fullDiskPatience
	s.mu.Unlock()
	return s.free(ctx, more+reserveBytes, lose, DroppedDiskFull, errors.New("the disk is full"))
}

func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// itemOf is a chunk that is in the log.
func (s *Spool) itemOf(c *chunk) Item {
	p := c.placed
	return Item{
		Origin: s.book.origin(), Leaf: evidence.Uint64(p.index), Chunk: p.leaf.Chunk, Digest: p.leaf.Digest, Bytes: p.leaf.Bytes, Path: s.readyPath(p.leaf.Chunk),
	}
}
