package tlog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// CheckpointFile is where the checkpoint lies in a log's directory.
const CheckpointFile = "checkpoint"

// nextFile is where the next one lies until it is durable: only then may anybody
// read it under the name of a checkpoint.
const nextFile = CheckpointFile + temporary

// temporary ends the name of a file that has not its own yet.
const temporary = ".new"

// ErrDamaged is wrapped by Open where the directory does not hold what its
// checkpoint says. Somebody has to look, or a new log has to begin and say so.
var ErrDamaged = errors.New("the log is damaged")

// Log is a log that is written. Its methods must not be called concurrently.
type Log struct {
	dir    string
	origin string
	at     Tree // the last durable checkpoint
	size   uint64
	edge   [][]Hash // at each level, the hashes of the tile that is not full yet
	bundle []byte   // and the entries of the bundle that is not
	full   []tile   // became full since the last commit
	note   []byte   // the checkpoint that a commit tried to write
	failed error

	// grown are the partial tiles of the last commit of this Log, by level, which the
	// next one may append to. What another wrote, or a failed commit, is not.
	grown map[int]partial

	// named are the directories that this Log knows to be durable up to the log's own:
	// one that a failed commit made is there, and may go with the power.
	named map[string]bool
}

// partial is a tile that is not full, as it is on the disk.
type partial struct {
	path string
	size int64
}

// tile is a file of the log.
type tile struct {
	path string
	data []byte
}

// Open opens the log in a directory, or begins one of this name where there is
// none. It reads the right edge of the tree and checks that it gives the root that
// the checkpoint names; whose signature is on it is the caller's to check
// ([Audit]). What lies beyond the checkpoint was never part of the log.
func Open(dir, origin string) (*Log, error) {
	l := &Log{dir: dir, origin: origin, at: Tree{Origin: origin, Root: Empty}}
	b, err := readFile(os.DirFS(dir), CheckpointFile, MaxCheckpointBytes)
	if errors.Is(err, fs.ErrNotExist) {
		if names, err := os.ReadDir(filepath.Join(dir, "tile")); err == nil && len(names) > 0 {
			if _, err := os.Stat(filepath.Join(dir, filepath.FromSlash(tilePath(entries, 0, width)))); err == nil {
				return nil, fmt.Errorf("%w: %s has tiles and no checkpoint", ErrDamaged, dir)
			}
		}
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	if l.at, err = Claim(b); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, filepath.Join(dir, CheckpointFile), err)
	}
	if l.at.Origin != origin {
		return nil, fmt.Errorf("%w: its checkpoint is of %s, not of %s", ErrDamaged, clip(l.at.Origin), clip(origin))
	}
	if err := l.load(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if got := l.root(); got != l.at.Root {
		return nil, fmt.Errorf("%w: its tiles give the root %s, its checkpoint says %s", ErrDamaged, got, l.at.Root)
	}
	return l, nil
}

// load reads the tiles that are not full.
func (l *Log) load() error {
	fsys := os.DirFS(l.dir)
	l.size = l.at.Size
	for level, n := 0, l.size; n > 0; level, n = level+1, n/width {
		w := int(n % width)
		l.edge = append(l.edge, nil)
		if w == 0 {
			continue
		}
		data, err := readTile(fsys, level, int64(n/width), w)
		if err != nil {
			return err
		}
		l.edge[level] = hashes(data)
	}
	w := int(l.size % width)
	if w == 0 {
		return nil
	}
	bundle, err := readBundle(fsys, int64(l.size/width), w)
	if err != nil {
		return err
	}
	list, err := splitBundle(bundle, w)
	if err != nil {
		return err
	}
	for i, e := range list {
		if tlog.RecordHash(e) != l.edge[0][i] {
			return fmt.Errorf("entry %d is not what its tile says", l.size/width*width+uint64(i))
		}
	}
	l.bundle = bundle
	return nil
}

// Origin is the log's name.
func (l *Log) Origin() string { return l.origin }

// Size is how many entries were appended: the index of the next one.
func (l *Log) Size() uint64 { return l.size }

// Checkpointed is the state of the last durable checkpoint.
func (l *Log) Checkpointed() Tree { return l.at }

// Append adds an entry in memory and returns its index.
func (l *Log) Append(entry []byte) (uint64, error) {
	if l.failed != nil {
		return 0, fmt.Errorf("append to log: %w", l.failed)
	}
	if len(entry) > maxEntry {
		return 0, fmt.Errorf("append to log: %d bytes, an entry has at most %d", len(entry), maxEntry)
	}
	index := l.size
	l.bundle = appendEntry(l.bundle, entry)
	if (index+1)%width == 0 {
		l.full = append(l.full, tile{tilePath(entries, int64(index/width), width), l.bundle})
		l.bundle = nil
	}
	l.size++
	l.push(0, index, tlog.RecordHash(entry))
	return index, nil
}

// push adds the n-th hash of a level.
func (l *Log) push(level int, n uint64, h Hash) {
	if level == len(l.edge) {
		l.edge = append(l.edge, nil)
	}
	l.edge[level] = append(l.edge[level], h)
	if len(l.edge[level]) < width {
		return
	}
	l.full = append(l.full, tile{tilePath(level, int64(n/width), width), join(l.edge[level])})
	up := rfc6962(l.edge[level])
	l.edge[level] = nil
	l.push(level+1, n/width, up)
}

// root is the hash over all entries: RFC 6962's tree is perfect trees, each
// smaller than the one to its left.
func (l *Log) root() Hash {
	var perfect []Hash
	for _, h := range slices.Backward(l.edge) {
		for len(h) > 0 {
			n := 1
			for n*2 <= len(h) {
				n *= 2
			}
			perfect = append(perfect, rfc6962(h[:n]))
			h = h[n:]
		}
	}
	if len(perfect) == 0 {
		return Empty
	}
	root := perfect[len(perfect)-1]
	for _, h := range slices.Backward(perfect[:len(perfect)-1]) {
		root = tlog.NodeHash(h, root)
	}
	return root
}

// Tree is the log with everything that was appended.
func (l *Log) Tree() Tree { return Tree{Origin: l.origin, Size: l.size, Root: l.root()} }

// Commit makes everything that was appended durable under a new checkpoint, which
// sign makes. After an error the Log takes nothing more: what is to be done depends
// on the checkpoint that the directory has then. If it is the one before, Open
// another Log, which goes on from there. If it is the one that Commit tried to
// write (see [Log.Tried]), somebody may have read it, and no other of its size may
// ever be signed: Again.
//
// System calls, in order: for every tile and bundle that changed open(O_EXCL) of
// a temporary name, write, fsync, rename; for the checkpoint open(O_EXCL) of
// checkpoint.new, write, fsync; fsync of every directory that has a new name (and of
// those above it, until they were once); then rename of checkpoint.new to checkpoint,
// and fsync of the directory. So a checkpoint that somebody has read is on the disk
// under one name or the other: see [Next]. A partial tile
// that this Log wrote is appended to instead, fsynced, and renamed to its new width:
// a log that grows by one leaf a minute would else write its last bundle each time.
// Partial tiles that a wider one has replaced are gone then, which C2SP tlog-tiles
// does not allow a log that serves readers over HTTP: here they are read on disk.
func (l *Log) Commit(sign func(Tree) ([]byte, error)) error {
	if l.failed != nil {
		return fmt.Errorf("commit log: %w", l.failed)
	}
	if l.size == l.at.Size {
		return nil
	}
	if err := l.commit(sign); err != nil {
		l.failed = err
		return fmt.Errorf("commit log: %w", err)
	}
	return nil
}

// Tried is what the checkpoint of a Commit that failed is over; nothing if there
// was none, or if it was not signed yet.
func (l *Log) Tried() (t Tree, ok bool) {
	if l.failed == nil || l.note == nil {
		return Tree{}, false
	}
	return l.Tree(), true
}

// Again writes what a failed Commit tried to write, byte for byte, into new files:
// an fsync that failed may have left the old ones in memory only, and the next one
// on them would not say so.
func (l *Log) Again() error {
	if _, ok := l.Tried(); !ok {
		return errors.New("commit log again: nothing was tried")
	}
	note := l.note
	if err := l.commit(func(Tree) ([]byte, error) { return note, nil }); err != nil {
		l.failed = err
		return fmt.Errorf("commit log again: %w", err)
	}
	l.failed = nil
	return nil
}

func (l *Log) commit(sign func(Tree) ([]byte, error)) error {
	tree := l.Tree()
	dirs := map[string]bool{}
	for _, f := range l.full {
		if err := l.replace(f.path, f.data, dirs); err != nil {
			return err
		}
	}
	before := l.grown
	l.grown = nil // until all of it is durable
	grown := map[int]partial{}
	write := func(level int, path string, data []byte) error {
		if len(data) == 0 {
			return nil
		}
		grown[level] = partial{path, int64(len(data))}
		was, ok := before[level]
		switch {
		case ok && was == grown[level]:
			return nil // nothing came to it
		case ok && was.size < int64(len(data)) && filepath.Dir(was.path) == filepath.Dir(path):
			return l.extend(was, path, data[was.size:], dirs)
		}
		return l.replace(path, data, dirs)
	}
	for level, h := range l.edge {
		if err := write(level, tilePath(level, l.tileOf(level), len(h)), join(h)); err != nil {
			return err
		}
	}
	if err := write(entries, tilePath(entries, l.tileOf(0), int(l.size%width)), l.bundle); err != nil {
		return err
	}
	b, err := sign(tree)
	if err != nil {
		return err
	}
	l.note = b
	if err := l.create(CheckpointFile, b); err != nil {
		return err
	}
	dirs["."] = true
	if err := l.syncDirs(dirs); err != nil {
		return err
	}
	if l.named == nil {
		l.named = map[string]bool{}
	}
	maps.Copy(l.named, dirs)
	if err := Take(l.dir); err != nil {
		return err
	}
	last := l.at
	l.at, l.full, l.note, l.grown = tree, nil, nil, grown
	l.sweep(last.Size)
	return nil
}

// extend appends to a tile and gives it the name of its new width. What it had
// before stays what it was, under either name: a reader of an earlier checkpoint
// takes only so much, and what lies behind is not part of its log.
func (l *Log) extend(was partial, name string, more []byte, dirs map[string]bool) error {
	at := filepath.Join(l.dir, filepath.FromSlash(was.path))
	f, err := os.OpenFile(at, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && st.Size() != was.size {
		err = fmt.Errorf("it has %d bytes, and was written with %d", st.Size(), was.size)
	}
	if err == nil {
		_, err = f.WriteAt(more, was.size)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("append to %s: %w", was.path, err)
	}
	dirs[path.Dir(name)] = true
	return os.Rename(at, filepath.Join(l.dir, filepath.FromSlash(name)))
}

// tileOf is the index of the tile at the right edge of a level.
func (l *Log) tileOf(level int) int64 { return int64(l.count(level) / width) }

// replace writes a file whole, and notes which directories have to be synced.
func (l *Log) replace(name string, data []byte, dirs map[string]bool) error {
	at := filepath.Join(l.dir, filepath.FromSlash(name))
	dir := filepath.Dir(at)
	if !l.named[path.Dir(name)] {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return err
		}
		for d := path.Dir(path.Dir(name)); d != "."; d = path.Dir(d) {
			dirs[d] = true
		}
		dirs["."], dirs[".."] = true, true
	}
	dirs[path.Dir(name)] = true
	if err := l.create(name, data); err != nil {
		return err
	}
	return os.Rename(at+temporary, at)
}

// create writes a file that replaces another one when it is renamed.
func (l *Log) create(name string, data []byte) error {
	tmp := filepath.Join(l.dir, filepath.FromSlash(name)) + temporary
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", name, err), os.Remove(tmp))
	}
	return nil
}

// Next returns the checkpoint that waits for its name in a log's directory, or nil.
// After a crash it is one of three: torn; of a commit that nobody ever saw; or one
// that had its name already, and the rename was lost with the power. The last kind
// is over tiles that are durable, and somebody may have read it: whoever finds, after
// the machine has started again, that the log's tiles and keys prove it has to Take
// it, and may then append. Any other is for Discard.
func Next(dir string) ([]byte, error) {
	b, err := readFile(os.DirFS(dir), nextFile, MaxCheckpointBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the next checkpoint: %w", err)
	}
	return b, nil
}

// Take makes the next checkpoint the log's, durably.
func Take(dir string) error {
	if err := os.Rename(filepath.Join(dir, nextFile), filepath.Join(dir, CheckpointFile)); err != nil {
		return err
	}
	return syncDir(dir)
}

// Discard removes the next checkpoint, durably, if there is one: what it is over
// did not happen, and must not come back.
func Discard(dir string) error {
	err := os.Remove(filepath.Join(dir, nextFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

func (l *Log) syncDirs(dirs map[string]bool) error {
	for d := range dirs {
		if err := syncDir(filepath.Join(l.dir, filepath.FromSlash(d))); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// sweep removes the partial tiles of an earlier size. What cannot be removed is in
// nobody's way.
func (l *Log) sweep(size uint64) {
	gone := func(level int, n uint64) {
		if w := int(n % width); w > 0 && (n != l.count(level)) {
			p := filepath.Join(l.dir, filepath.FromSlash(tilePath(level, int64(n/width), w)))
			os.Remove(p)
			if n/width != l.count(level)/width {
				os.Remove(filepath.Dir(p)) // the tile is full: its .p directory is empty now
				delete(l.named, path.Dir(tilePath(level, int64(n/width), w)))
			}
		}
	}
	gone(entries, size)
	for level, n := 0, size; n > 0; level, n = level+1, n/width {
		gone(level, n)
	}
}

// count is how many hashes a level has, or how many entries there are.
func (l *Log) count(level int) uint64 {
	n := l.size
	for range level {
		n /= width
	}
	return n
}

func join(h []Hash) []byte {
	var b bytes.Buffer
	for i := range h {
		b.Write(h[i][:])
	}
	return b.Bytes()
}
