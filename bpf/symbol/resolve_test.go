package symbol

import (
	"bytes"
	"os"
	"slices"
	"testing"

	"probity/tests/need"
)

// Each function of the C library is found by its first and last byte, under
// one of the names that the standard library's reader gives to it.
func TestResolver(t *testing.T) {
	path := need.CLibrary(t)
	names := map[uint64][]string{}
	all := functions(t, path)
	ef := oracle(t, path)
	list, err := ef.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		names[s.Value] = append(names[s.Value], s.Name)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := newResolver(bytes.NewReader(b), int64(len(b)), Limits{}, anything)
	if err != nil {
		t.Fatal(err)
	}
	var offs, starts []uint64
	for addr, s := range all {
		off, _ := fileOffset(ef, addr)
		offs, starts = append(offs, off, off+s.Size-1), append(starts, addr, addr)
	}
	for range 2 { // and as remembered
		where, err := r.Resolve(offs...)
		if err != nil {
			t.Fatal(err)
		}
		wrong := 0
		for i, l := range where {
			s := all[starts[i]]
			if want := uint64(i%2) * (s.Size - 1); l.Delta != want || names[s.Value] != nil && !slices.Contains(names[s.Value], l.Symbol) {
				wrong++ // a function within another one, as assembler source has them
				if t.Logf("%#x: %v, want %s+%#x", offs[i], l, s.Name, want); wrong > len(offs)/200 {
					t.Fatal("and so on")
				}
			}
		}
		r.p.src.r = failing{} // from here on it must remember
	}
	if _, err := r.Resolve(1); err == nil {
		t.Error("a place that is not remembered, and nothing to read")
	}
}

func TestResolve(t *testing.T) {
	b := tiny().bytes()
	p, err := open(bytes.NewReader(b), int64(len(b)), Limits{}, anything)
	if err != nil {
		t.Fatal(err)
	}
	r := &Resolver{p: p, known: map[uint64]Location{}}
	at := uint64(tinyText + 0x10) // "wanted", 4 bytes
	for _, c := range []struct {
		off  uint64
		want Location
	}{
		{at, Location{"wanted", 0}}, {at + 3, Location{"wanted", 3}},
		{at - 1, Location{}}, {at + 4, Location{}}, {0, Location{}}, {1 << 63, Location{}},
	} {
		if got, err := r.Resolve(c.off); err != nil || got[0] != c.want {
			t.Errorf("%#x: %v, %v; want %v", c.off, got, err, c.want)
		}
	}
	// What is remembered is bounded, and answers stay whole when it is dropped.
	many := make([]uint64, maxResolved+10)
	for i := range many {
		many[i] = at + uint64(i)
	}
	got, err := r.Resolve(many...)
	if err != nil || got[3] != (Location{"wanted", 3}) || got[4] != (Location{}) || len(r.known) > maxResolved {
		t.Errorf("%v, %v, %d remembered", got[3:5], err, len(r.known))
	}
	if _, err := newResolver(bytes.NewReader(b), int64(len(b)), Limits{Symbols: 1}, anything); err == nil {
		t.Error("more symbols than are taken")
	}
}

// FuzzResolver: whatever the bytes, each place that is named lies behind what it
// is named after, and what is remembered is what was said.
func FuzzResolver(f *testing.F) {
	f.Add(tiny().bytes(), uint64(tinyText+0x10), uint64(tinyText))
	f.Add(named("a", "b", "_Z1fv").bytes(), uint64(tinyText+0x11), uint64(1<<63))
	if _, ok := need.Look("gcc"); ok {
		b, err := os.ReadFile(greetLibrary(f, "-s"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint64(0x1100), uint64(0x1139))
	}
	f.Fuzz(func(t *testing.T, b []byte, first, second uint64) {
		r, err := newResolver(bytes.NewReader(b), int64(len(b)), Limits{FileSize: 1 << 20, Symbols: 10000, StringBytes: 1 << 20}, anything)
		if err != nil {
			return
		}
		told, err := r.Resolve(first, second, first)
		if err != nil {
			return
		}
		for i, off := range []uint64{first, second, first} {
			if l := told[i]; l.Symbol != "" && (l.Delta > off || off >= uint64(len(b)) || !printable(l.Symbol)) {
				t.Errorf("%#x: %v", off, l)
			}
		}
		again, err := r.Resolve(second, first)
		if err != nil || again[0] != told[1] || again[1] != told[0] {
			t.Errorf("%v, then %v, %v", told, again, err)
		}
	})
}
