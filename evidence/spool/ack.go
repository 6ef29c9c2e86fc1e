package spool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"probity/evidence"
	"probity/evidence/tlog"
	"probity/evidence/verify"
)

// AckDir is where consumers acknowledge, below the spool's directory.
const AckDir = verify.AckDir

// Item is one chunk for a consumer. Origin, Leaf and the number of a line in the
// chunk are what tells a line from all others: a chunk may be delivered twice.
type Item struct {
	Origin string          `json:"origin"`
	Leaf   evidence.Uint64 `json:"leaf"`
	Chunk  string          `json:"chunk"`
	Digest string          `json:"digest"`
	Bytes  evidence.Uint64 `json:"bytes"`
	Path   string          `json:"path"`
}

// Reader gives one consumer what it has not acknowledged yet, in the order of the
// log. It trusts the spool as it finds it on the disk: that its chunks are what the
// node signed is for whoever has the node's key to verify.
type Reader struct {
	dir, consumer string
}

// NewReader returns a reader for the consumer of this name: lower-case letters,
// digits, '.', '_' and '-', at most 64.
func NewReader(dir, consumer string) (*Reader, error) {
	if !evidence.ValidConsumer(consumer) {
		return nil, fmt.Errorf("read spool: %.80q is no name of a consumer: want lower-case letters, digits, '.', '_' and '-', at most 64", consumer)
	}
	return &Reader{dir: dir, consumer: consumer}, nil
}

// oneLog is a log of the spool, and its chunks.
type oneLog struct {
	tree  tlog.Tree
	read  *tlog.Reader
	items []Item
	gone  map[string]bool // the node removed them
}

// Pending lists the chunks that the consumer has not acknowledged, oldest first.
// What the node has removed meanwhile is not in it: a gap line says so.
func (r *Reader) Pending(ctx context.Context) ([]Item, error) {
	logs, at, err := r.position(ctx)
	if err != nil {
		return nil, fmt.Errorf("read spool: %w", err)
	}
	var out []Item
	for i, l := range logs {
		for _, it := range l.items {
			if l.gone[it.Chunk] || i < at.log || i == at.log && uint64(it.Leaf) < at.size {
				continue
			}
			out = append(out, it)
		}
	}
	return out, nil
}

type position struct {
	log  int // in the list of logs
	size uint64
}

// position is how far the consumer is.
func (r *Reader) position(ctx context.Context) ([]oneLog, position, error) {
	logs, err := readLogs(ctx, r.dir, allChunks)
	if err != nil {
		return nil, position{}, err
	}
	root, err := os.OpenRoot(r.dir)
	if err != nil {
		return nil, position{}, err
	}
	defer root.Close()
	a, err := verify.Ack(root, r.consumer)
	if errors.Is(err, fs.ErrNotExist) {
		return logs, position{}, nil
	}
	if err != nil {
		return nil, position{}, err
	}
	for i, l := range logs {
		if l.tree.Origin != a.Origin {
			continue
		}
		if err := l.has(a); err != nil {
			return nil, position{}, err
		}
		return logs, position{i, uint64(a.Size)}, nil
	}
	return nil, position{}, fmt.Errorf("%s acknowledged %d leaves of %s, which is not here", r.consumer, a.Size, a.Origin)
}

// has checks an acknowledgement against the log.
func (l oneLog) has(a evidence.Ack) error {
	t, err := tlog.TreeOf(a.LogTree())
	if err != nil {
		return err
	}
	at, err := l.read.At(l.tree, t.Size)
	if err != nil {
		return fmt.Errorf("%s acknowledged %d leaves of %s, which has %d: %w", a.Consumer, a.Size, a.Origin, l.tree.Size, err)
	}
	if at != t {
		return fmt.Errorf("%s acknowledged another history of %s: its first %d leaves have the root %s, not %s", a.Consumer, a.Origin, a.Size, at.Root, t.Root)
	}
	return nil
}

// allChunks and firstChunk say how far a log is read. Its first chunk tells it from
// other logs in time, and what else is asked of it its tiles prove.
const (
	allChunks  = 0
	firstChunk = 1
)

// readLogs reads the logs of a spool, the oldest first.
func readLogs(ctx context.Context, dir string, chunks int) ([]oneLog, error) {
	out, err := retiredLogs(ctx, dir, chunks)
	if err != nil {
		return nil, err
	}
	l, err := readOne(ctx, dir, filepath.Join(dir, LogDir), chunks)
	switch {
	case err == nil:
		out = append(out, l)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	slices.SortStableFunc(out, func(a, b oneLog) int { return strings.Compare(a.first(), b.first()) })
	return out, nil
}

// retiredLogs reads those that are not written any more. One that was put aside
// because it cannot be read is none.
func retiredLogs(ctx context.Context, dir string, chunks int) (out []oneLog, err error) {
	dirs, err := filepath.Glob(filepath.Join(dir, retiredDir, "*"))
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		if l, err := readOne(ctx, dir, d, chunks); err == nil {
			out = append(out, l)
		} else if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return out, nil
}

// first orders logs: numbers go on from one to the next.
func (l oneLog) first() string {
	if len(l.items) == 0 {
		return "~" // the newest: nothing is in it yet
	}
	return l.items[0].Chunk
}

var errEnough = errors.New("read far enough")

func readOne(ctx context.Context, spool, dir string, chunks int) (oneLog, error) {
	l := oneLog{read: tlog.NewReader(os.DirFS(dir)), gone: map[string]bool{}}
	note, err := l.read.Checkpoint()
	if err != nil {
		return l, err
	}
	if l.tree, err = tlog.Claim(note); err != nil {
		return l, err
	}
	err = l.read.Scan(ctx, l.tree, func(_ uint64, entry []byte) error {
		leaf, err := evidence.DecodeLeaf(string(entry))
		if err != nil {
			return err
		}
		switch v := leaf.(type) {
		case *evidence.ChunkLeaf:
			l.items = append(l.items, Item{
				Origin: l.tree.Origin, Leaf: v.Index, Chunk: v.Chunk, Digest: v.Digest, Bytes: v.Bytes,
				Path: filepath.Join(spool, ReadyDir, filepath.FromSlash(evidence.ChunkPath(v.Chunk))),
			})
			if len(l.items) == chunks {
				return errEnough
			}
		case *evidence.TombstoneLeaf:
			l.gone[v.Chunk] = true
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return l, err
}

// Read returns a chunk's bytes, which are those that its leaf names. fs.ErrNotExist
// says that it has been removed since Pending.
func (r *Reader) Read(it Item) ([]byte, error) {
	b, err := readBounded(it.Path)
	if err != nil {
		return nil, fmt.Errorf("read chunk %s: %w", it.Chunk, err)
	}
	if got := digest(b); got != it.Digest {
		return nil, fmt.Errorf("read chunk %s: its digest is %s, and its leaf says %s", it.Chunk, got, it.Digest)
	}
	return b, nil
}

// Ack says, durably, that the consumer has everything up to and with this chunk,
// and returns what it said: keep it where the node cannot change it.
func (r *Reader) Ack(ctx context.Context, it Item) (evidence.Ack, error) {
	a, err := r.ack(ctx, it)
	if err != nil {
		return a, fmt.Errorf("acknowledge %s: %w", it.Chunk, err)
	}
	return a, nil
}

func (r *Reader) ack(ctx context.Context, it Item) (evidence.Ack, error) {
	logs, at, err := r.position(ctx)
	if err != nil {
		return evidence.Ack{}, err
	}
	i := slices.IndexFunc(logs, func(l oneLog) bool { return l.tree.Origin == it.Origin })
	if i < 0 {
		return evidence.Ack{}, fmt.Errorf("the log %s is not here", it.Origin)
	}
	size := uint64(it.Leaf) + 1
	if i < at.log || i == at.log && size < at.size {
		return evidence.Ack{}, fmt.Errorf("leaf %d of %s: more than that was acknowledged already", it.Leaf, it.Origin)
	}
	if !slices.ContainsFunc(logs[i].items, func(have Item) bool { return have.Chunk == it.Chunk && have.Leaf == it.Leaf }) {
		return evidence.Ack{}, fmt.Errorf("leaf %d of %s is another", it.Leaf, it.Origin)
	}
	t, err := logs[i].read.At(logs[i].tree, size)
	if err != nil {
		return evidence.Ack{}, err
	}
	a := evidence.Ack{Consumer: r.consumer, Origin: t.Origin, Size: evidence.Uint64(t.Size), Root: t.Root.String(), At: evidence.TimeOf(time.Now())}
	return a, r.write(a)
}

func (r *Reader) write(a evidence.Ack) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	dir := filepath.Join(r.dir, verify.AckDir)
	// Not for the spool's group to write: what is acknowledged may be removed.
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// A name that no other consumer can have taken before.
	tmp := filepath.Join(dir, "."+r.consumer+"-"+randomID()+".new")
	err = writeFile(tmp, 0o644, append(b, '\n'))
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, r.consumer+".json"))
	}
	if err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(tmp)))
	}
	return syncPath(dir)
}
