package symbol

import (
	"fmt"
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
