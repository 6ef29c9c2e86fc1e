package symbol

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"probity/tests/need"
)

// What an IFUNC chooses from is armed in its place: breakpoints at all of it
// are met by the runs that call the function, although its resolver runs in
// each. What may not be all of it says so.
func TestIFunc(t *testing.T) {
	for _, build := range []string{"-O2", "-O0", "-O2 -no-pie", "-O2 -s", "-O2 -static", "-O2 -fcf-protection"} {
		t.Run(build, func(t *testing.T) {
			path := gcc(t, append(strings.Fields(build), "ifunc.c")...)
			stripped := strings.Contains(build, "-s ") || strings.HasSuffix(build, "-s")
			names := []string{"picked", "looked", "mixed", "cloned"}
			if stripped {
				path = gcc(t, append(strings.Fields(build), "-rdynamic", "ifunc.c")...)
			}
			_, syms := query(t, path, Query{Names: names})
			by := byWanted(syms)
			want := map[string][]string{"picked": {"fast", "slow"}, "mixed": {"fast"}, "cloned": {"cloned.avx2.0", "cloned.default.1", "cloned.sse4_2.2"}}
			for _, name := range names {
				var got []string
				doubt := map[string]bool{}
				for _, s := range by[name] {
					if s.Kind != KindIFunc {
						t.Errorf("%+v", s)
					}
					doubt[s.Doubt] = true
					if s.Implements != "" {
						got = append(got, s.Name)
					}
				}
				slices.Sort(got)
				if stripped { // the names are gone
					got = slices.Compact(got)
					if len(want[name]) > 0 && !slices.Equal(got, []string{name}) || len(by[name]) != max(1, len(want[name])) {
						t.Errorf("%s: %q, %+v", name, got, by[name])
					}
				} else if fmt.Sprintf("%.10q", got) != fmt.Sprintf("%.10q", want[name]) {
					t.Errorf("%s: %q, want %q", name, got, want[name])
				}
				certain := name == "picked" || name == "cloned" && !stripped
				if len(doubt) != 1 || doubt[""] != certain {
					t.Errorf("%s: doubts %v, certain should be %v", name, doubt, certain)
				}
				if name != "looked" && name != "mixed" { // these are where doubt says
					var offs []uint64
					for _, s := range by[name] {
						offs = append(offs, s.Offset)
					}
					for _, run := range names {
						if got := trapped(t, path, offs, run); got != (run == name) {
							t.Errorf("run %s, breakpoints at what %s chooses from, %#x: met %v", run, name, offs, got)
						}
					}
				}
			}
		})
	}
}

// The C library's: more than one choice for what everybody calls, and in doubt.
func TestIFuncLibc(t *testing.T) {
	path := need.GNUCLibrary(t)
	_, syms := query(t, path, Query{Names: []string{"strchr", "strlen"}, Returns: true})
	by := byWanted(syms)
	for _, name := range []string{"strchr", "strlen"} {
		if len(by[name]) < 3 {
			t.Errorf("%s: %+v", name, by[name])
		}
		for _, s := range by[name] {
			if s.Kind != KindIFunc || s.Implements != name || s.Doubt == "" {
				t.Errorf("%+v", s)
			}
		}
	}
}

// FuzzIFunc changes the resolvers of a real program, and what the dynamic linker
// puts into its image: what is then said to be chosen from is code of the file.
func FuzzIFunc(f *testing.F) {
	path := gcc(f, "-O2", "ifunc.c")
	original, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	ef := oracle(f, path)
	var areas [][2]uint64 // where what is changed begins, and its size
	symbols, err := ef.Symbols()
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range symbols {
		if off, ok := fileOffset(ef, s.Value); ok && elf.ST_TYPE(s.Info) == elf.STT_GNU_IFUNC && s.Size > 0 {
			areas = append(areas, [2]uint64{off, s.Size})
		}
	}
	if len(areas) < 4 {
		f.Fatalf("resolvers at %#x", areas)
	}
	for _, name := range []string{".rela.dyn", ".rela.plt", ".data.rel.ro", ".got", ".symtab"} {
		if s := ef.Section(name); s != nil {
			areas = append(areas, [2]uint64{s.Offset, s.Size})
		}
	}
	q := Query{Names: []string{"picked", "looked", "mixed", "cloned", "cloned.resolver"}, Returns: true}
	f.Add(uint8(0), uint32(4), []byte{0x48, 0x8d, 0x05}, uint8(4), uint32(16), []byte{0xff, 0xff})
	f.Add(uint8(1), uint32(0), []byte{0xe9, 0, 0, 0, 0}, uint8(6), uint32(8), []byte{1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, area1 uint8, at1 uint32, b1 []byte, area2 uint8, at2 uint32, b2 []byte) {
		b := bytes.Clone(original)
		for i, area := range []uint8{area1, area2} {
			in := areas[int(area)%len(areas)]
			where := b[in[0]:][:in[1]]
			copy(where[[]uint32{at1, at2}[i]%uint32(len(where)):], [][]byte{b1, b2}[i])
		}
		file, syms, err := read(bytes.NewReader(b), int64(len(b)), q, Limits{Code: 1 << 20}, anything)
		if err != nil {
			return
		}
		chosen := map[string]int{}
		for _, s := range syms {
			if !file.ExecutableOffset(s.Offset) || !slices.Contains(q.Names, s.Wanted) || s.Implements != "" && s.Kind != KindIFunc {
				t.Errorf("%+v", s)
			}
			if chosen[s.Wanted]++; s.Implements != "" && chosen[s.Wanted] > maxChoices*8 { // a resolver has a few names
				t.Errorf("%s: %d", s.Wanted, chosen[s.Wanted])
			}
		}
	})
}
