package tlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

const origin = "node.test/probity/0011223344556677"

func entry(i uint64) []byte { return fmt.Appendf(nil, "entry %d", i) }

func testKey(t testing.TB) *Key {
	t.Helper()
	k, err := NewKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func open(t testing.TB, dir string) *Log {
	t.Helper()
	l, err := Open(dir, origin)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// grow appends entries up to a size.
func grow(t testing.TB, l *Log, size uint64) {
	t.Helper()
	for i := l.Size(); i < size; i++ {
		if at, err := l.Append(entry(i)); err != nil || at != i {
			t.Fatalf("entry %d: index %d, %v", i, at, err)
		}
	}
}

func commit(t testing.TB, l *Log, k *Key) {
	t.Helper()
	if err := l.Commit(k.Sign); err != nil {
		t.Fatal(err)
	}
}

// mth is RFC 6962 section 2.1 as it stands there.
func mth(from, to uint64) Hash {
	if to-from == 1 {
		return tlog.RecordHash(entry(from))
	}
	k := uint64(1)
	for k*2 < to-from {
		k *= 2
	}
	return tlog.NodeHash(mth(from, from+k), mth(from+k, to))
}

// files lists a directory's files, in order.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	err := fs.WalkDir(os.DirFS(dir), ".", func(p string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			out = append(out, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func read(r *Reader, t Tree) ([]string, error) {
	var got []string
	err := r.Scan(context.Background(), t, func(i uint64, e []byte) error {
		if i != uint64(len(got)) {
			return fmt.Errorf("entry %d after %d", i, len(got))
		}
		got = append(got, string(e))
		return nil
	})
	return got, err
}

// At every size the tree is RFC 6962's, and a log that is opened again goes on
// where it was, however the commits fell.
func TestTree(t *testing.T) {
	k := testKey(t)
	for _, step := range []uint64{1, 17, 255, 256, 257, 1000} {
		dir := t.TempDir()
		for size := step; size <= min(1300, 40*step); size += step {
			l := open(t, dir)
			grow(t, l, size)
			commit(t, l, k)
			if want := mth(0, size); l.Tree().Root != want || l.Checkpointed() != l.Tree() {
				t.Fatalf("size %d: root %s, want %s", size, l.Tree().Root, want)
			}
			if size%3 != 0 && size%256 > 1 {
				continue
			}
			if got, err := read(NewReader(os.DirFS(dir)), l.Tree()); err != nil || uint64(len(got)) != size {
				t.Fatalf("size %d: %d entries, %v", size, len(got), err)
			}
		}
	}
}

// C2SP tlog-tiles' own example: what 70,000 entries lie in.
func TestTiles(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	grow(t, l, 70_000)
	commit(t, l, testKey(t))
	count := map[string]int{}
	for _, f := range files(t, dir) {
		if f == CheckpointFile {
			continue
		}
		level, n, w, ok := parseTilePath(f)
		if !ok {
			t.Fatalf("a file %s", f)
		}
		count[fmt.Sprintf("level %d width %d", level, w)]++
		st, err := os.Stat(filepath.Join(dir, f))
		if err != nil {
			t.Fatal(err)
		}
		if level >= 0 && st.Size() != int64(w*tlog.HashSize) {
			t.Errorf("tile %d of level %d has %d bytes for %d hashes", n, level, st.Size(), w)
		}
	}
	want := map[string]int{
		"level -1 width 256": 273, "level -1 width 112": 1, "level 0 width 256": 273, "level 0 width 112": 1,
		"level 1 width 256": 1, "level 1 width 17": 1, "level 2 width 1": 1,
	}
	if fmt.Sprint(count) != fmt.Sprint(want) {
		t.Errorf("files: %v, want %v", count, want)
	}
	// The tiles are what the library that Go's checksum database uses reads.
	tree := l.Tree()
	h, err := tlog.TreeHash(70_000, tlog.TileHashReader(tlog.Tree{N: 70_000, Hash: tree.Root}, tiles{os.DirFS(dir)}))
	if err != nil || h != tree.Root {
		t.Errorf("%s, %v", h, err)
	}
}

func TestPaths(t *testing.T) {
	for _, c := range []struct {
		level int
		n     int64
		w     int
		want  string
	}{
		{0, 0, 256, "tile/0/000"},
		{0, 5, 1, "tile/0/005.p/1"},
		{1, 1234067, 256, "tile/1/x001/x234/067"},
		{63, 1000, 255, "tile/63/x001/000.p/255"},
		{entries, 999, 3, "tile/entries/999.p/3"},
	} {
		if got := tilePath(c.level, c.n, c.w); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
		if level, n, w, ok := parseTilePath(c.want); !ok || level != c.level || n != c.n || w != c.w {
			t.Errorf("%s: %d %d %d %v", c.want, level, n, w, ok)
		}
	}
	for _, bad := range []string{"", "tile", "tile/0", "tile/0/", "tile/00/000", "tile/64/000", "tile/-1/000", "tile/0/0", "tile/0/x000/001", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/01", "tile/0/001/000", "tile/0/+01", "tile/entries/x99999999999999999999/000"} {
		if _, _, _, ok := parseTilePath(bad); ok {
			t.Errorf("%q is taken", bad)
		}
	}
}

// Every entry's proof holds, and none for another entry, place or tree; and every
// earlier state is proven to have grown into the last.
func TestProofs(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	k := testKey(t)
	const size = 600
	var states []Tree
	for n := uint64(1); n <= size; n++ {
		grow(t, l, n)
		states = append(states, l.Tree())
		if n%100 == 0 {
			commit(t, l, k)
		}
	}
	r, last := NewReader(os.DirFS(dir)), l.Tree()
	for i := uint64(0); i < size; i++ {
		p, err := r.inclusion(last, i)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkInclusion(p, last, i, entry(i)); err != nil {
			t.Fatal(err)
		}
		if checkInclusion(p, last, i, entry(i+1)) == nil || checkInclusion(p, last, (i+1)%size, entry(i)) == nil || checkInclusion(p, states[size-2], i, entry(i)) == nil {
			t.Fatalf("the proof of entry %d proves too much", i)
		}
	}
	for _, earlier := range states {
		if got, err := r.At(last, earlier.Size); err != nil || got != earlier {
			t.Fatalf("the state at %d: %+v, %v", earlier.Size, got, err)
		}
	}
	if _, err := r.inclusion(last, size); err == nil {
		t.Error("a proof of an entry that is not there")
	}
	if checkInclusion(nil, last, size, entry(size)) == nil {
		t.Error("checked what is not there")
	}
	if got, err := r.At(last, 0); err != nil || got.Root != Empty {
		t.Errorf("the empty state: %+v, %v", got, err)
	}
}

// Whatever byte of whatever file is another, and whichever file is not there, it
// is found.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	grow(t, l, 600)
	commit(t, l, testKey(t))
	tree := l.Tree()
	for _, f := range files(t, dir) {
		if f == CheckpointFile {
			continue
		}
		at := filepath.Join(dir, filepath.FromSlash(f))
		good, err := os.ReadFile(at)
		if err != nil {
			t.Fatal(err)
		}
		for what, b := range map[string][]byte{
			"its first byte":  append([]byte{good[0] ^ 1}, good[1:]...),
			"its last byte":   append(slices.Clone(good[:len(good)-1]), good[len(good)-1]^1),
			"cut off":         good[:len(good)-1],
			"empty":           nil,
			"one byte more":   append(slices.Clone(good), 0),
			"other entries":   bytes.ReplaceAll(good, []byte("entry 5"), []byte("entry 6")),
			"a hash too many": append(slices.Clone(good), good[:min(32, len(good))]...),
		} {
			if bytes.Equal(b, good) {
				continue
			}
			if err := os.WriteFile(at, b, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := read(NewReader(os.DirFS(dir)), tree)
			if strings.Contains(f, ".p/") && (what == "a hash too many" || what == "one byte more") && err == nil {
				continue // a wider tile begins with the same hashes, and may end in the middle of one
			}
			if err == nil {
				t.Errorf("%s, %s: not found", f, what)
			}
		}
		if err := os.Remove(at); err != nil {
			t.Fatal(err)
		}
		if _, err := read(NewReader(os.DirFS(dir)), tree); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s gone: %v", f, err)
		}
		if strings.Contains(f, ".p/") {
			if _, err := Open(dir, origin); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s gone: Open says %v", f, err)
			}
		}
		if err := os.WriteFile(at, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := read(NewReader(os.DirFS(dir)), tree); err != nil {
		t.Errorf("put back: %v", err)
	}
	if _, err := Open(dir, "other.test/probity/0011223344556677"); !errors.Is(err, ErrDamaged) {
		t.Errorf("another log's name: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, CheckpointFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, origin); !errors.Is(err, ErrDamaged) {
		t.Errorf("no checkpoint: %v", err)
	}
}

// What an agent wrote that died before its checkpoint was never part of the log,
// and what comes instead takes its place.
func TestUncommitted(t *testing.T) {
	dir := t.TempDir()
	k := testKey(t)
	l := open(t, dir)
	grow(t, l, 300)
	commit(t, l, k)
	before := l.Tree()
	grow(t, l, 700)
	died := errors.New("died")
	if err := l.Commit(func(Tree) ([]byte, error) { return nil, died }); !errors.Is(err, died) {
		t.Fatal(err)
	}
	if _, err := l.Append(nil); !errors.Is(err, died) {
		t.Errorf("a log that failed goes on: %v", err)
	}
	if err := l.Commit(k.Sign); !errors.Is(err, died) {
		t.Errorf("a log that failed goes on: %v", err)
	}
	l = open(t, dir)
	if l.Tree() != before {
		t.Fatalf("opened at %+v, want %+v", l.Tree(), before)
	}
	for i := uint64(300); i < 600; i++ {
		if _, err := l.Append(fmt.Appendf(nil, "another entry %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	commit(t, l, k)
	r := NewReader(os.DirFS(dir))
	got, err := read(r, l.Tree())
	if err != nil || len(got) != 600 || got[299] != "entry 299" || got[300] != "another entry 300" {
		t.Fatalf("%d entries, %v", len(got), err)
	}
	if got, err := r.At(l.Tree(), 300); err != nil || got != before {
		t.Errorf("it did not grow out of what was committed: %v", err)
	}
}

// What a crash leaves behind the end of a tile is not part of the log, and is not
// appended to: the next Log writes the tile anew. One that goes on appends.
func TestAppendToTiles(t *testing.T) {
	dir := t.TempDir()
	k := testKey(t)
	l := open(t, dir)
	number := func(name string) uint64 {
		t.Helper()
		st, err := os.Stat(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil {
			t.Fatal(err)
		}
		return st.Sys().(*syscall.Stat_t).Ino
	}
	grow(t, l, 3)
	commit(t, l, k)
	was := number("tile/entries/000.p/3")
	grow(t, l, 5)
	commit(t, l, k)
	if number("tile/entries/000.p/5") != was {
		t.Error("the bundle was written anew")
	}
	three := l.Tree()
	for _, torn := range []string{"tile/entries/000.p/5", "tile/0/000.p/5"} {
		at := filepath.Join(dir, filepath.FromSlash(torn))
		b, err := os.ReadFile(at)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, append(b, 0, 200, 'x'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := read(NewReader(os.DirFS(dir)), three); err != nil {
		t.Errorf("with a torn end: %v", err)
	}
	// Who goes on without a crash finds that somebody else was there.
	if _, err := l.Append([]byte("entry 5")); err != nil {
		t.Fatal(err)
	}
	if err := l.Commit(k.Sign); err == nil {
		t.Error("appended to what somebody else wrote")
	}
	l, err := Open(dir, origin)
	if err != nil {
		t.Fatal(err)
	}
	for size := uint64(6); size <= 600; size += 7 {
		grow(t, l, size)
		commit(t, l, k)
		if _, err := read(NewReader(os.DirFS(dir)), l.Tree()); err != nil {
			t.Fatalf("size %d: %v", size, err)
		}
	}
	for _, f := range files(t, dir) {
		if f == "tile/entries/000.p/5" || f == "tile/0/000.p/5" {
			t.Errorf("%s is left", f)
		}
	}
}

// A log at rest is as large as what is in it: narrower tiles go.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	k := testKey(t)
	l := open(t, dir)
	for size := uint64(1); size <= 264; size++ {
		grow(t, l, size)
		commit(t, l, k)
	}
	want := []string{
		CheckpointFile, "tile/0/000", "tile/0/001.p/8", "tile/1/000.p/1",
		"tile/entries/000", "tile/entries/001.p/8",
	}
	if got := files(t, dir); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestTooLong(t *testing.T) {
	l := open(t, t.TempDir())
	if _, err := l.Append(make([]byte, maxEntry)); err != nil {
		t.Error(err)
	}
	if _, err := l.Append(make([]byte, maxEntry+1)); err == nil {
		t.Error("an entry longer than its length can say")
	}
}

// A directory that cannot be written is an error, and nothing is half there.
func TestCommitFails(t *testing.T) {
	dir := t.TempDir()
	k := testKey(t)
	l := open(t, dir)
	grow(t, l, 3)
	commit(t, l, k)
	grow(t, l, 5)
	if err := os.Mkdir(filepath.Join(dir, CheckpointFile+".new"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, CheckpointFile+".new", "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.Commit(k.Sign); err == nil {
		t.Fatal("committed without a checkpoint")
	}
	if again := open(t, dir); again.Size() != 3 {
		t.Errorf("opened at %d", again.Size())
	}
}

func FuzzTilePath(f *testing.F) {
	f.Add("tile/0/x001/x234/067.p/8")
	f.Add("tile/entries/000")
	f.Fuzz(func(t *testing.T, p string) {
		if level, n, w, ok := parseTilePath(p); ok && tilePath(level, n, w) != p {
			t.Errorf("%q is tile %d %d %d", p, level, n, w)
		}
	})
}

func FuzzBundle(f *testing.F) {
	f.Add(appendEntry(appendEntry(nil, []byte("a")), nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := splitBundle(b, width)
		if err != nil {
			return
		}
		var again []byte
		for _, e := range list {
			again = appendEntry(again, e)
		}
		if !bytes.Equal(again, b) && (len(list) < width || !bytes.HasPrefix(b, again)) {
			t.Error("another bundle has the same entries")
		}
	})
}
