package symbol

import (
	"slices"
	"strings"
	"testing"
)

func TestSplitClone(t *testing.T) {
	for _, c := range []struct {
		name, base string
		kind       cloned
	}{
		{"f.part.0", "f", clonedPart}, {"f.isra.0", "f", clonedCopy}, {"f.constprop.12", "f", clonedCopy}, {"f.isra.0.part.3", "f.isra.0", clonedPart},
		{"f.cold", "f", clonedCold}, {"f.isra.0.cold", "f.isra.0", clonedCold}, {"f.cold.1", "f", clonedCold}, {"f.llvm.123456789", "f", clonedCopy},
		{"f.lto_priv.0.lto_priv.0", "f.lto_priv.0", clonedCopy}, {"_ZN1fEv.part.0", "_ZN1fEv", clonedPart}, {"f._omp_fn.0", "f", clonedPart},
		{"f", "f", notCloned}, {"", "", notCloned}, {".part.0", ".part.0", notCloned}, {"f.0", "f.0", notCloned}, {"f.part", "f.part", notCloned},
		{"f.avx2", "f.avx2", notCloned}, {"main.f", "main.f", notCloned}, {"f.part.x", "f.part.x", notCloned},
		{"_Z1fv.resume", "_Z1fv", clonedPart}, {"runtime.(*p).destroy", "runtime.(*p).destroy", notCloned}, {"f..0", "f..0", notCloned},
	} {
		if base, kind := splitClone(c.name, false); base != c.base || kind != c.kind {
			t.Errorf("%s: %s, %d; want %s, %d", c.name, base, kind, c.base, c.kind)
		}
	}
	if base, kind := splitClone("main.cold", true); kind != notCloned {
		t.Errorf("Go's main.cold: %s, %d", base, kind)
	}
}

// A function is found by its name although only copies of it are there, and
// breakpoints at what was found are met by the runs that call it.
func TestClonesOfCompilers(t *testing.T) {
	for _, how := range []string{"names", "regexps", "globs"} {
		path := gcc(t, "-O2", "clone.c")
		q := map[string]Query{
			"names":   {Names: []string{"constant", "parts", "mostly"}},
			"regexps": {Regexps: []string{"^constant$", "^parts$", "^mostly$"}},
			"globs":   {Globs: []string{"constan?", "par[t]s", "mostl*"}},
		}[how]
		_, syms := query(t, path, q)
		kinds := map[string]string{}
		var offs []uint64
		for _, s := range syms {
			kinds[s.Name] = s.Kind
			if base, _ := splitClone(s.Name, false); base == "constant" {
				offs = append(offs, s.Offset)
			}
		}
		if kinds["mostly"] != KindFunc {
			t.Errorf("%s: %v", how, kinds)
		}
		clones := 0
		for name, kind := range kinds {
			base, c := splitClone(name, false)
			if c != notCloned && kind != KindClone || strings.Contains(name, ".cold") {
				t.Errorf("%s: %s is %s", how, name, kind)
			}
			if c != notCloned && (base == "constant" || base == "parts") {
				clones++
			}
		}
		if clones < 2 {
			t.Errorf("%s: %v", how, kinds)
		}
		for run, want := range map[string]bool{"constant": true, "parts": false, "mostly": false} {
			if got := trapped(t, path, offs, run); got != want {
				t.Errorf("%s: run %s, breakpoints at constant %#x: %v", how, run, offs, got)
			}
		}
		// A cold part only for who asks for it.
		_, syms = query(t, path, Query{Names: []string{"mostly.cold", "constant.constprop.0"}})
		by := byWanted(syms)
		if len(by["mostly.cold"]) != 1 || len(by["constant.constprop.0"]) != 1 || by["constant.constprop.0"][0].Kind != KindClone {
			t.Errorf("%+v", syms)
		}
	}
}

// Aliases and folded code, by linkers that fold and that don't.
func TestFoldedByLinker(t *testing.T) {
	for _, c := range []struct {
		args []string
		want map[string]string
	}{
		{nil, map[string]string{"sell": KindFunc, "destroy": KindFunc, "shop_open": KindAlias, "close_shop": KindAlias, "second": KindAlias}},
		{[]string{"-fuse-ld=gold", "-Wl,--icf=all"}, map[string]string{"sell": KindFolded, "destroy": KindFolded, "shop_open": KindAlias, "close_shop": KindAlias, "second": KindFolded}},
		{[]string{"-fuse-ld=gold"}, map[string]string{"sell": KindFunc, "destroy": KindFunc, "shop_open": KindAlias, "close_shop": KindAlias, "second": KindFolded}},
		{[]string{"no comment"}, map[string]string{"sell": KindFunc, "destroy": KindFunc, "shop_open": KindAlias, "close_shop": KindAlias, "second": KindFolded}},
	} {
		args := slices.DeleteFunc(slices.Clone(c.args), func(s string) bool { return s == "no comment" })
		path := gcc(t, append([]string{"-O2", "-ffunction-sections", "clone.c"}, args...)...)
		if len(args) < len(c.args) {
			command(t, "", nil, "objcopy", "--remove-section=.comment", path)
		}
		_, syms := query(t, path, Query{Names: []string{"sell", "destroy", "shop_open", "close_shop", "second"}})
		for _, s := range syms {
			if s.Kind != c.want[s.Name] {
				t.Errorf("%q: %s is %s with %q, want %s", c.args, s.Name, s.Kind, s.Alias, c.want[s.Name])
			}
		}
		if len(syms) != 5 {
			t.Errorf("%q: %+v", c.args, syms)
		}
	}
}

func TestAliased(t *testing.T) {
	for _, c := range []struct {
		list  []naming
		folds bool
		want  bool
	}{
		{[]naming{{"a", false, 4}}, true, true},
		{[]naming{{"a", false, 4}, {"b", false, 4}}, true, false},
		{[]naming{{"a", false, 4}, {"b", false, 4}}, false, true},
		{[]naming{{"a", false, 4}, {"b", true, 4}}, true, true},
		{[]naming{{"a", false, 4}, {"b", false, 8}}, true, true},
		{[]naming{{"a", false, 0}, {"b", false, 4}, {"c", false, 8}}, true, true},
		{[]naming{{"__libc_read", false, 4}, {"read", false, 4}, {"__GI___read", false, 4}}, true, true},
		{[]naming{{"fopen", false, 4}, {"fopen64", false, 4}, {"_IO_fopen", false, 4}}, true, true},
		{[]naming{{"_ZN1AC1Ev", true, 4}, {"_ZN1AC2Ev", true, 4}}, true, true},
		{[]naming{{"_ZN1AD1Ev", true, 4}, {"_ZN1BD1Ev", true, 4}}, false, false},
		{[]naming{{"_ZN1A1fEv", true, 4}, {"_ZN1A1gEv", true, 4}}, false, false},
	} {
		if got := aliased(c.list, c.folds); got != c.want {
			t.Errorf("%v, folds %v: %v", c.list, c.folds, got)
		}
	}
}

// FuzzAliased: what is said of names at one address does not depend on their
// order, and what a name is a clone of gets shorter until it is no clone.
func FuzzAliased(f *testing.F) {
	f.Add("read", "__libc_read", "__GI___read", uint8(0), uint64(4), uint64(4), uint64(0))
	f.Add("_ZN1AC1Ev", "_ZN1AC2Ev", "_ZN1AD1Ev", uint8(3), uint64(0), uint64(4), uint64(8))
	f.Add("f.isra.0.cold", "f.part.1", "f.llvm.12", uint8(9), uint64(1), uint64(1), uint64(1))
	f.Fuzz(func(t *testing.T, a, b, c string, flags uint8, sizeA, sizeB, sizeC uint64) {
		list := []naming{{a, flags&1 != 0, sizeA}, {b, flags&2 != 0, sizeB}, {c, flags&4 != 0, sizeC}}
		want := aliased(list, flags&8 != 0)
		for _, order := range [][]int{{0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
			if got := aliased([]naming{list[order[0]], list[order[1]], list[order[2]]}, flags&8 != 0); got != want {
				t.Fatalf("%v: %v, in the order %v: %v", list, want, order, got)
			}
		}
		for _, name := range []string{a, b, c} {
			for base, kind := splitClone(name, flags&16 != 0); ; base, kind = splitClone(base, flags&16 != 0) {
				if kind == clonedThunk && len(base) < len(name) && strings.HasPrefix(name, "_ZT") && strings.HasSuffix(name, base[2:]) {
					name = base
					continue
				}
				if kind == notCloned && base != name || kind != notCloned && (len(base) >= len(name) || !strings.HasPrefix(name, base+".")) {
					t.Fatalf("%q: %q, %d", name, base, kind)
				}
				if name = base; kind == notCloned {
					break
				}
			}
		}
	})
}
