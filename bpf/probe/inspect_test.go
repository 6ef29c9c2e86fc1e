package probe

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf/symbol"
	"probity/runtime/image"
)

// What was found for one query is no answer to another, whichever field they
// differ in, also one that is added later.
func TestInspectorKey(t *testing.T) {
	var in Inspector
	seen := map[*inspected]string{}
	entry := func(q symbol.Query, what string) {
		t.Helper()
		e := in.entry(keyOf(stamp{}, q))
		if e != in.entry(keyOf(stamp{}, q)) {
			t.Errorf("%s: forgotten", what)
		}
		if other, ok := seen[e]; ok {
			t.Errorf("%s is taken for %s", what, other)
		}
		seen[e] = what
	}
	entry(symbol.Query{}, "nothing")
	typ := reflect.TypeFor[symbol.Query]()
	for i := range typ.NumField() {
		var q symbol.Query
		switch f := reflect.ValueOf(&q).Elem().Field(i); f.Kind() {
		case reflect.Bool:
			f.SetBool(true)
			entry(q, typ.Field(i).Name)
		default:
			if f.Type() == reflect.TypeFor[[]uint64]() {
				for _, list := range [][]uint64{{1, 2}, {2, 1}, {12}} {
					f.Set(reflect.ValueOf(list))
					entry(q, typ.Field(i).Name)
				}
				continue
			}
			for _, list := range [][]string{{"a", "b"}, {"b", "a"}, {"a b"}, {`a" "b`}, {`a", "b`}, {"a\x00b"}} {
				f.Set(reflect.ValueOf(list))
				entry(q, typ.Field(i).Name)
			}
		}
	}
}

// A file that could not be read in time may be readable later.
func TestInspectorAgain(t *testing.T) {
	self, err := os.Executable()
	must(t, err)
	layer := t.TempDir()
	must(t, os.Mkdir(filepath.Join(layer, "bin"), 0o755))
	text, err := os.ReadFile(self)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(layer, "bin", "target"), text, 0o755))
	in := &Inspector{Limits: symbol.Limits{Time: 1}}
	matches, _, _ := one{layer, in}.Glob("")
	q := symbol.Query{Names: []string{"main.main"}}
	if _, err := in.Inspect(matches[0], q); !errors.Is(err, symbol.ErrTime) {
		t.Fatalf("in no time: %v", err)
	}
	in.Limits.Time = 0
	if facts, err := in.Inspect(matches[0], q); err != nil || !facts.ELF.HasEntry {
		t.Errorf("%+v, %v", facts.ELF, err)
	}
}

// A container can make a file of terabytes that takes no room.
func TestDigestIsBounded(t *testing.T) {
	layer := t.TempDir()
	f, err := os.Create(filepath.Join(layer, "big"))
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(1<<40))
	facts, err := new(Inspector).Inspect(image.Match{Path: "/big", Rel: "big", Layer: image.Layer{Dir: layer}, Kind: image.Regular}, symbol.Query{})
	if !errors.Is(err, symbol.ErrTooLarge) {
		t.Error(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := facts.Digest()
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, symbol.ErrTooLarge) {
			t.Error(err)
		}
	case <-time.After(3 * time.Minute):
		t.Error("a terabyte is hashed")
	}
}

// A digest that there is no time for is no fact about the file: it is computed the
// next time.
func TestDigestInTime(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "f"), bytes.Repeat([]byte("x"), 3*digestPart/2), 0o644))
	f, _ := (&Inspector{}).Inspect(image.Match{Path: "/f", Layer: image.Layer{Dir: dir}, Rel: "f", Kind: image.Regular}, symbol.Query{})
	past := time.Now().Add(-time.Second)
	if _, err := f.DigestBy(past); !errors.Is(err, ErrNotHashed) {
		t.Fatal(err)
	}
	sum := sha256.Sum256(bytes.Repeat([]byte("x"), 3*digestPart/2))
	want := "sha256:" + hex.EncodeToString(sum[:])
	if got, err := f.DigestBy(time.Now().Add(time.Minute)); err != nil || got != want {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
	if got, err := f.DigestBy(past); err != nil || got != want {
		t.Errorf("known: %s, %v", got, err)
	}
}

// What is remembered of a file holds nobody's way to it: who had it open first may
// have closed it, or never come to hash it.
func TestDigestByWhoAsks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(path, []byte("x"), 0o644))
	in := &Inspector{}
	peek := func() *image.Mapped {
		f, err := os.OpenFile(path, unix.O_PATH, 0)
		must(t, err)
		defer f.Close()
		m, err := image.Peek(f, "/f")
		must(t, err)
		return m
	}
	first, second := peek(), peek()
	defer second.Close()
	one, _ := in.Inspect(first.Match, symbol.Query{})
	must(t, first.Close())
	if _, err := one.Digest(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("of a file that was closed: %v", err)
	}
	two, _ := in.Inspect(second.Match, symbol.Query{})
	if got, err := two.Digest(); err != nil || got != "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881" {
		t.Errorf("of one that is open: %s, %v", got, err)
	}
	must(t, second.Close())
	if got, err := one.Digest(); err != nil || got == "" {
		t.Errorf("known: %s, %v", got, err)
	}
}

// A way that leads to another file by now is its own fault, and the file's bytes
// are not hashed for it.
func TestDigestOfAnother(t *testing.T) {
	dir := t.TempDir()
	in := &Inspector{}
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644))
	must(t, os.Link(filepath.Join(dir, "f"), filepath.Join(dir, "g"))) // before it is read: a link changes its change time
	of := func(rel string) Facts {
		facts, _ := in.Inspect(image.Match{Path: "/" + rel, Layer: image.Layer{Dir: dir}, Rel: rel, Kind: image.Regular, Origin: image.FromLayer}, symbol.Query{})
		return facts
	}
	f, g := of("f"), of("g")
	must(t, os.Remove(filepath.Join(dir, "f")))
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("y"), 0o644))
	if got, err := f.Digest(); err == nil {
		t.Errorf("another file's digest: %s", got)
	}
	if got, err := g.Digest(); err == nil { // removing its other name has changed it, too
		t.Errorf("%s", got)
	}
	if got, err := of("g").Digest(); err != nil || got == "" {
		t.Errorf("read again: %s, %v", got, err)
	}
}
