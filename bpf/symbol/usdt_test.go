package symbol

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// readelfMarkers is what readelf says, with addresses translated by the
// standard library's reader.
func readelfMarkers(t *testing.T, path string) (list []Marker) {
	ef := oracle(t, path)
	offset := func(hex []byte) uint64 {
		addr, err := strconv.ParseUint(string(hex), 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range ef.Progs {
			if p.Type == elf.PT_LOAD && addr != 0 && addr >= p.Vaddr && addr < p.Vaddr+p.Filesz {
				return addr - p.Vaddr + p.Off
			}
		}
		return 0
	}
	note := regexp.MustCompile(`Provider: (.*)\n\s+Name: (.*)\n\s+Location: (\w+), Base: \w+, Semaphore: (\w+)\n\s+Arguments: (.*)\n`)
	for _, m := range note.FindAllSubmatch(command(t, "", nil, "readelf", "-nW", path), -1) {
		list = append(list, Marker{Provider: string(m[1]), Name: string(m[2]), Offset: offset(m[3]), Semaphore: offset(m[4]), Args: string(bytes.TrimSpace(m[5]))})
	}
	return list
}

func markers(t *testing.T, path string, patterns ...string) []Marker {
	t.Helper()
	f, _ := query(t, path, Query{Markers: patterns})
	return f.Markers
}

func TestMarkers(t *testing.T) {
	for _, build := range [][]string{{"-shared", "-fPIC"}, {"-shared", "-fPIC", "-s"}, {"-nostdlib", "-no-pie", "-Wl,-e,wanted"}, {"-nostdlib", "-pie", "-fPIE", "-Wl,-e,wanted"}} {
		t.Run(fmt.Sprint(build), func(t *testing.T) {
			path := gcc(t, append(build, "-O2", "usdt.c")...)
			want := readelfMarkers(t, path)
			if len(want) != 5 {
				t.Fatalf("readelf says %+v", want)
			}
			if got := markers(t, path, "shop:*", "other:opened"); !slices.Equal(got, want) {
				t.Errorf("%+v\nwant %+v", got, want)
			}
			for pattern, n := range map[string]int{"shop:asked": 2, "shop:o*": 1, "*:opened": 0, "shop": 0, "shop:": 0, "shop:?old": 1, "other:*": 1} {
				if got := markers(t, path, pattern); len(got) != n {
					t.Errorf("%s: %+v, want %d", pattern, got, n)
				}
			}
			for _, m := range markers(t, path, "shop:*") {
				if (m.Semaphore != 0) != (m.Name == "sold") {
					t.Errorf("%+v", m)
				}
			}
		})
	}
}

// A library that has markers as Debian builds it.
func TestMarkersOfLibrary(t *testing.T) {
	path := strings.TrimSpace(string(command(t, ".", nil, "g++", "-print-file-name=libstdc++.so.6")))
	want := readelfMarkers(t, path)
	if got := markers(t, path, "libstdcxx:*"); len(want) < 3 || !slices.Equal(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
}

// prelink moves a program after the notes were written; how far, the section
// .stapsdt.base tells.
func TestMarkersMoved(t *testing.T) {
	path := gcc(t, "-shared", "-fPIC", "-O2", "usdt.c")
	want := markers(t, path, "shop:*")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; ; {
		i := bytes.Index(b[at:], []byte("stapsdt\x00"))
		if i < 0 {
			break
		}
		at += i + 8
		if le.Uint32(b[at-12:]) != markerType {
			continue
		}
		for k := range 3 {
			if v := le.Uint64(b[at+8*k:]); v != 0 {
				le.PutUint64(b[at+8*k:], v-0x1000)
			}
		}
	}
	f, _, err := read(bytes.NewReader(b), int64(len(b)), Query{Markers: []string{"shop:*"}}, Limits{}, anything)
	if err != nil || !slices.Equal(f.Markers, want) {
		t.Errorf("%+v, %v; want %+v", f, err, want)
	}
}

// notes makes a file that has these bytes as its section of markers.
func notesFile(notes []byte) []byte {
	b := tiny().bytes()
	b = append(b, markerSection+"\x00"...)
	names := len(b) - len(markerSection) - 1
	at := len(b)
	b = append(b, notes...)
	// The section of symbols becomes that of the notes.
	sec := sectionHeaders(b)
	le.PutUint32(sec[2][4:], uint32(elf.SHT_NOTE))
	le.PutUint32(sec[2][0:], 0)
	le.PutUint64(sec[2][24:], uint64(at))
	le.PutUint64(sec[2][32:], uint64(len(notes)))
	// The names are only that.
	le.PutUint64(sec[4][24:], uint64(names))
	le.PutUint64(sec[4][32:], uint64(len(markerSection)+1))
	for _, i := range []int{1, 3, 4} {
		le.PutUint32(sec[i], 500)
	}
	return b
}

func note(typ uint32, owner, desc string) []byte {
	b := le.AppendUint32(nil, uint32(len(owner)))
	b = le.AppendUint32(b, uint32(len(desc)))
	b = le.AppendUint32(b, typ)
	for _, s := range []string{owner, desc} {
		b = append(b, s...)
		b = append(b, make([]byte, -len(b)&3)...)
	}
	return b
}

func desc(addr, semaphore uint64, text string) string {
	b := le.AppendUint64(nil, addr)
	b = le.AppendUint64(b, 0)
	b = le.AppendUint64(b, semaphore)
	return string(b) + text
}

func TestMarkersHostile(t *testing.T) {
	good := note(3, markerOwner, desc(tinyAddress+5, 0, "p\x00n\x00a\x00"))
	for _, c := range []struct {
		name  string
		notes []byte
		want  int
		err   error
	}{
		{"one", good, 1, nil},
		{"others between", slices.Concat(note(1, "GNU\x00", "abc"), good, note(3, "XYZ\x00", "1"), note(4, markerOwner, "x"), good), 2, nil},
		{"not in text", note(3, markerOwner, desc(5, 0, "p\x00n\x00a\x00")), 0, nil},
		{"semaphore nowhere", note(3, markerOwner, desc(tinyAddress, 1<<40, "p\x00n\x00a\x00")), 0, ErrMalformed},
		{"control characters", note(3, markerOwner, desc(tinyAddress, 0, "p\x00n\x1b[2J\x00a\x00")), 0, nil},
		{"arguments that do not end", note(3, markerOwner, desc(tinyAddress, 0, "p\x00n\x00a")), 0, ErrMalformed},
		{"no strings", note(3, markerOwner, desc(tinyAddress, 0, "")), 0, ErrMalformed},
		{"short", note(3, markerOwner, "12345678901234567890123"), 0, ErrMalformed},
		{"long", note(3, markerOwner, desc(tinyAddress, 0, string(make([]byte, maxMarkerNote)))), 0, ErrTooLarge},
		{"cut off", good[:len(good)-8], 0, ErrMalformed},
		{"sizes that wrap", slices.Concat(le.AppendUint64(nil, math.MaxUint64), good), 0, ErrMalformed},
		{"too many", bytes.Repeat(good, 11), 0, ErrTooLarge},
		{"a section past the bound", make([]byte, maxMarkerSection+4), 0, ErrTooLarge},
	} {
		b := notesFile(c.notes)
		f, _, err := read(bytes.NewReader(b), int64(len(b)), Query{Markers: []string{"p:*"}}, Limits{Matches: 10}, anything)
		if !errors.Is(err, c.err) || err == nil && len(f.Markers) != c.want {
			t.Errorf("%s: %+v, %v; want %d, %v", c.name, f, err, c.want, c.err)
		}
	}
	if _, _, err := Read(bytes.NewReader(notesFile(good)), int64(len(notesFile(good))), Query{Markers: []string{"p:[a"}}, Limits{}); err == nil {
		t.Error("a pattern that is none")
	}
}

func FuzzMarkers(f *testing.F) {
	f.Add(note(3, markerOwner, desc(tinyAddress+5, tinyAddress, "p\x00n\x00a\x00")))
	f.Add(note(3, "GNU\x00", "abc"))
	f.Fuzz(func(t *testing.T, notes []byte) {
		b := notesFile(notes)
		file, _, err := read(bytes.NewReader(b), int64(len(b)), Query{Markers: []string{"p:*"}}, Limits{Matches: 10}, anything)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrTruncated) {
				t.Fatal(err)
			}
			return
		}
		for _, m := range file.Markers {
			if m.Provider != "p" || !file.ExecutableOffset(m.Offset) || m.Semaphore >= uint64(len(b)) || len(m.Args) > maxMarkerNote {
				t.Errorf("%+v", m)
			}
		}
	})
}
