package tlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"

	"golang.org/x/mod/sumdb/tlog"
)

// maxBundle bounds a bundle of entries.
const maxBundle = width * (2 + maxEntry)

// Reader reads a log's directory: on disk, or in an archive.
type Reader struct {
	fsys fs.FS
}

// NewReader returns a reader of the log whose checkpoint and tile/ lie in fsys.
func NewReader(fsys fs.FS) *Reader { return &Reader{fsys} }

// Checkpoint returns the checkpoint's bytes, which nobody has checked.
func (r *Reader) Checkpoint() ([]byte, error) {
	return readFile(r.fsys, CheckpointFile, MaxCheckpointBytes)
}

// Scan calls see with every entry of a tree, in order, and returns nil only if all
// of them together are the tree and its tiles say so. What see is given is proven
// only then: it must not act on it before. An error of see ends the scan.
func (r *Reader) Scan(ctx context.Context, t Tree, see func(index uint64, entry []byte) error) error {
	whole := &Log{origin: t.Origin}
	for whole.size < t.Size {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := int64(whole.size / width)
		w := int(min(width, t.Size-whole.size))
		bundle, err := readBundle(r.fsys, n, w)
		if err != nil {
			return err
		}
		list, err := splitBundle(bundle, w)
		if err != nil {
			return fmt.Errorf("%s: %w", tilePath(entries, n, w), err)
		}
		for _, e := range list {
			index, err := whole.Append(e)
			if err != nil {
				return err
			}
			if err := see(index, e); err != nil {
				return err
			}
		}
		if err := r.compare(whole); err != nil {
			return err
		}
	}
	if got := whole.root(); got != t.Root {
		return fmt.Errorf("%w: the entries give the root %s, the checkpoint says %s", ErrDamaged, got, t.Root)
	}
	for level, h := range whole.edge {
		if len(h) == 0 {
			continue
		}
		if err := r.same(tilePath(level, whole.tileOf(level), len(h)), level, whole.tileOf(level), join(h)); err != nil {
			return err
		}
	}
	return nil
}

// compare looks whether the tiles that have become full are those on disk.
func (r *Reader) compare(whole *Log) error {
	for _, f := range whole.full {
		level, n, _, _ := parseTilePath(f.path)
		if level == entries {
			continue
		}
		if err := r.same(f.path, level, n, f.data); err != nil {
			return err
		}
	}
	whole.full = nil
	return nil
}

func (r *Reader) same(name string, level int, n int64, want []byte) error {
	got, err := readTile(r.fsys, level, n, len(want)/tlog.HashSize)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%w: %s is not what the entries give", ErrDamaged, name)
	}
	return nil
}

// inclusion proves that the entry at index is in a tree: the hashes of RFC 6962
// section 2.1.1, in its order.
func (r *Reader) inclusion(t Tree, index uint64) ([]Hash, error) {
	if index >= t.Size {
		return nil, fmt.Errorf("prove entry %d: the tree has %d", index, t.Size)
	}
	p, err := tlog.ProveRecord(int64(t.Size), int64(index), r.hashes(t))
	if err != nil {
		return nil, fmt.Errorf("prove entry %d: %w", index, err)
	}
	return p, nil
}

// checkInclusion checks such a proof.
func checkInclusion(proof []Hash, t Tree, index uint64, entry []byte) error {
	if index >= t.Size {
		return fmt.Errorf("entry %d is not in a tree of %d", index, t.Size)
	}
	if err := tlog.CheckRecord(proof, int64(t.Size), t.Root, int64(index), tlog.RecordHash(entry)); err != nil {
		return fmt.Errorf("entry %d is not in the tree of %d entries with root %s: %w", index, t.Size, t.Root, err)
	}
	return nil
}

// At returns an earlier state of a tree, as its tiles prove it.
func (r *Reader) At(t Tree, size uint64) (Tree, error) {
	switch {
	case size > t.Size:
		return Tree{}, fmt.Errorf("the tree has %d entries, not %d", t.Size, size)
	case size == t.Size:
		return t, nil
	case size == 0:
		return Tree{Origin: t.Origin, Root: Empty}, nil
	}
	h, err := tlog.TreeHash(int64(size), r.hashes(t))
	if err != nil {
		return Tree{}, fmt.Errorf("the tree of the first %d entries: %w", size, err)
	}
	return Tree{Origin: t.Origin, Size: size, Root: h}, nil
}

// hashes reads hashes of a tree that its root proves.
func (r *Reader) hashes(t Tree) tlog.HashReader {
	return tlog.TileHashReader(tlog.Tree{N: int64(t.Size), Hash: t.Root}, tiles{r.fsys})
}

// tiles implements tlog.TileReader.
type tiles struct{ fsys fs.FS }

func (t tiles) Height() int { return height }

func (t tiles) ReadTiles(want []tlog.Tile) ([][]byte, error) {
	var out [][]byte
	for _, w := range want {
		b, err := readTile(t.fsys, w.L, w.N, w.W)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// SaveTiles keeps nothing: the files are here.
func (t tiles) SaveTiles([]tlog.Tile, [][]byte) {}

// readTile reads the first w hashes of a tile. A log that has grown since has a
// wider tile in its place, which begins with the same hashes.
func readTile(fsys fs.FS, level int, n int64, w int) ([]byte, error) {
	b, err := widest(fsys, level, n, w, width*tlog.HashSize)
	if err != nil {
		return nil, err
	}
	if len(b) < w*tlog.HashSize || w == width && len(b) > w*tlog.HashSize {
		return nil, fmt.Errorf("%w: %s has %d bytes, %d hashes have %d", ErrDamaged, tilePath(level, n, w), len(b), w, w*tlog.HashSize)
	}
	return b[:w*tlog.HashSize], nil
}

// readBundle reads the first w entries of a bundle, likewise.
func readBundle(fsys fs.FS, n int64, w int) ([]byte, error) {
	b, err := widest(fsys, entries, n, w, maxBundle)
	if err != nil {
		return nil, err
	}
	list, err := splitBundle(b, w)
	if err == nil && len(list) < w {
		err = fmt.Errorf("%d entries of %d", len(list), w)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, tilePath(entries, n, w), err)
	}
	size := 0
	for _, e := range list {
		size += 2 + len(e)
	}
	if w == width && len(b) > size {
		return nil, fmt.Errorf("%w: %s: %d bytes too many", ErrDamaged, tilePath(entries, n, w), len(b)-size)
	}
	return b[:size], nil
}

// widest reads a tile of at least w hashes or entries: of exactly as many, or
// full, or of any width between.
func widest(fsys fs.FS, level int, n int64, w int, most int64) (b []byte, err error) {
	const attempts = 4 // a log that is being written sweeps a tile between our looking and our reading
	for range attempts {
		if b, err = widestNow(fsys, level, n, w, most); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return b, err
}

func widestNow(fsys fs.FS, level int, n int64, w int, most int64) ([]byte, error) {
	exact := tilePath(level, n, w)
	b, err := readFile(fsys, exact, most)
	if !errors.Is(err, fs.ErrNotExist) || w == width {
		return b, err
	}
	if b, err := readFile(fsys, tilePath(level, n, width), most); !errors.Is(err, fs.ErrNotExist) {
		return b, err
	}
	names, listErr := fs.ReadDir(fsys, path.Dir(exact))
	if listErr != nil {
		return nil, err
	}
	for _, e := range names {
		if have, convErr := strconv.Atoi(e.Name()); convErr == nil && have > w && have < width && strconv.Itoa(have) == e.Name() {
			return readFile(fsys, tilePath(level, n, have), most)
		}
	}
	return nil, err
}

// readFile reads a regular file of at most so many bytes.
func readFile(fsys fs.FS, name string, most int64) ([]byte, error) {
	st, err := fs.Stat(fsys, name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file (%v)", name, st.Mode().Type())
	}
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(b)) > most {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrDamaged, name, most)
	}
	return b, nil
}
