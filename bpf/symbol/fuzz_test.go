package symbol

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"
	"testing"

	"probity/tests/need"
)

func binaryWrite(w io.Writer, v any) error { return binary.Write(w, binary.LittleEndian, v) }

// FuzzRead: whatever the bytes, an answer that keeps what the package promises,
// or an error that wraps a sentinel.
func FuzzRead(f *testing.F) {
	f.Add(tiny().bytes())
	f.Add([]byte(elf.ELFMAG))
	f.Add([]byte{})
	if _, ok := need.Look("gcc"); ok { // real files as seeds, where they can be made
		for _, path := range []string{greetLibrary(f, "-s"), gcc(f, "-nostdlib", "-shared", "-Wl,-z,noseparate-code", "greet2.c")} {
			b, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	want := []string{"wanted", "greet_hello", "greet_versioned", "_start", "main.main", "f"}
	q := Query{Names: want, Globs: []string{"greet_*", "*::?*"}, Regexps: []string{"(e|f)+"}}
	items := slices.Concat(q.Names, q.Globs, q.Regexps)
	lim := Limits{FileSize: 1 << 20, Symbols: 10000, StringBytes: 1 << 20, Matches: 100}
	f.Fuzz(func(t *testing.T, b []byte) {
		file, syms, err := read(bytes.NewReader(b), int64(len(b)), q, lim, anything)
		if err != nil {
			for _, sentinel := range []error{ErrNotELF, ErrTruncated, ErrTooLarge, ErrMalformed, ErrForeign} {
				if errors.Is(err, sentinel) {
					return
				}
			}
			t.Fatalf("error without a sentinel: %v", err)
		}
		if file.HasEntry && !file.ExecutableOffset(file.Entry) {
			t.Errorf("entry %#x is not executable", file.Entry)
		}
		for _, r := range file.SelfHashed {
			if r.Start >= r.End || r.End > uint64(len(b)) {
				t.Errorf("range %+v of %d bytes", r, len(b))
			}
		}
		for name, list := range byWanted(syms) {
			for _, s := range list {
				if !slices.Contains(items, name) || len(s.Name) > maxTold || len(s.Demangled) > maxTold || s.Offset >= uint64(len(b)) || !file.ExecutableOffset(s.Offset) || len(s.Alias) > maxAliases {
					t.Errorf("%s: %+v", name, s)
				}
			}
		}
	})
}

// FuzzNames compares the matcher with the obvious way to do it.
func FuzzNames(f *testing.F) {
	f.Add("\x00__write\x00memcpy@@V_2\x00a@b@c\x00", "write", "memcpy", "a@b@c")
	f.Add("\x00ab\x00b\x00", "b", "ab", "b")
	f.Fuzz(func(t *testing.T, text, a, b, c string) {
		text += "\x00"
		var want []string
		for _, n := range []string{a, b, c} {
			if !bytes.ContainsRune([]byte(n), 0) && len(n) < 1000 {
				want = append(want, n)
			}
		}
		m := newMatcher(want)
		used := make([]uint64, len(text)/64+1)
		for i := range used {
			used[i] = ^uint64(0)
		}
		got := map[uint32][]match{}
		p := &parser{lim: Limits{}.orDefaults()}
		s := scan{matcher: m, p: p, used: used, hits: got, window: make([]byte, 0, m.longest+streamBuffer)}
		for rest := []byte(text); len(rest) > 0; { // in pieces of 7
			n := min(7, len(rest))
			if err := s.piece(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		expect := map[uint32][]match{}
		for i := range len(text) {
			whole := text[i : i+bytes.IndexByte([]byte(text[i:]), 0)]
			start := bytes.LastIndexByte([]byte(text[:i]), 0) + 1
			for k, n := range m.names {
				// The version begins at the first '@' of the whole string.
				end := bytes.IndexByte([]byte(text[start:]), '@') + start
				if end >= start && end < i+len(whole) && end > i && n == text[i:end] {
					expect[uint32(i)] = slices.Insert(expect[uint32(i)], 0, match{item: int32(k), name: n})
				}
				if n == whole {
					expect[uint32(i)] = append(expect[uint32(i)], match{item: int32(k), name: n})
				}
			}
		}
		if len(got) != len(expect) {
			t.Fatalf("%q in %q: %v, want %v", want, text, got, expect)
		}
		for off, h := range expect {
			if !slices.Equal(got[off], h) {
				t.Fatalf("%q in %q at %d: %v, want %v", want, text, off, got[off], h)
			}
		}
	})
}
