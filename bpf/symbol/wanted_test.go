package symbol

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"probity/bpf/symbol/demangle"
	"probity/tests/need"
)

// ask reads a file of this host with a query.
func ask(t testing.TB, path string, q Query) []Symbol {
	t.Helper()
	fd, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	info, err := fd.Stat()
	if err != nil {
		t.Fatal(err)
	}
	_, syms, err := Read(fd, info.Size(), q, Limits{})
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return syms
}

func gxx(t testing.TB, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	command(t, "testdata", nil, "g++", append([]string{"-O1", "-o", out}, args...)...)
	return out
}

// functionPlaces lists the raw names of a trusted file's functions, and where they
// are, with the standard library's reader.
func functionPlaces(t testing.TB, path string) map[string][]uint64 {
	t.Helper()
	ef := oracle(t, path)
	list, _ := ef.Symbols()
	dyn, _ := ef.DynamicSymbols()
	found := map[string][]uint64{}
	for _, s := range append(list, dyn...) {
		off, ok := fileOffset(ef, s.Value)
		typ := elf.ST_TYPE(s.Info)
		if !ok || s.Section == elf.SHN_UNDEF || typ != elf.STT_FUNC && typ != elf.STT_GNU_IFUNC {
			continue
		}
		name, _, _ := strings.Cut(s.Name, "@")
		if !slices.Contains(found[name], off) {
			found[name] = append(found[name], off)
		}
	}
	return found
}

func TestCPlusPlus(t *testing.T) {
	path := gxx(t, "shapes.cc")
	for _, c := range []struct {
		q    Query
		want []string // demangled names, or raw ones where they are the same
	}{
		{Query{Names: []string{"_ZNK3geo5Shape4areaEv"}}, []string{"geo::Shape::area() const"}},
		{Query{Names: []string{"geo::Shape::area() const"}}, []string{"geo::Shape::area() const"}},
		{Query{Names: []string{"geo::Shape::area( int )const"}}, []string{"geo::Shape::area(int) const"}},
		{Query{Names: []string{"geo::Shape::area"}}, []string{"geo::Shape::area() const", "geo::Shape::area(int) const"}},
		{Query{Names: []string{"geo::largest"}}, []string{"double geo::largest<double>(double, double)", "int geo::largest<int>(int, int)"}},
		{Query{Names: []string{"geo::largest<int>"}}, []string{"int geo::largest<int>(int, int)"}},
		{Query{Names: []string{"int geo::largest<int>(int,int)"}}, []string{"int geo::largest<int>(int, int)"}},
		{Query{Names: []string{"geo::Shape::Shape"}}, []string{"geo::Shape::Shape()"}},
		{Query{Names: []string{"geo::Shape::operator=="}}, []string{"geo::Shape::operator==(geo::Shape const&) const"}},
		{Query{Names: []string{"geo::Shape::operator bool"}}, []string{"geo::Shape::operator bool() const"}},
		{Query{Names: []string{"geo::(anonymous namespace)::hidden"}}, []string{"geo::(anonymous namespace)::hidden(char const*, unsigned long)"}},
		{Query{Names: []string{"geo::Shape::fit"}}, []string{"int geo::Shape::fit<>()", "int geo::Shape::fit<int, char, std::vector<geo::Point, std::allocator<geo::Point> >*>(int, char, std::vector<geo::Point, std::allocator<geo::Point> >*)"}},
		{Query{Names: []string{"toplevel"}}, []string{"toplevel(int)"}},
		{Query{Names: []string{"c_linkage"}}, []string{"c_linkage"}},
		{Query{Names: []string{"c_linkage(int)", "area", "Shape::area", "geo::Shape::are", "geo::Shape", "geo::largest<long>"}}, nil},
		{Query{Globs: []string{"geo::Shape::area*"}}, []string{"geo::Shape::area() const", "geo::Shape::area(int) const"}},
		{Query{Globs: []string{"geo::largest<*>"}}, []string{"double geo::largest<double>(double, double)", "int geo::largest<int>(int, int)"}},
		{Query{Globs: []string{"_ZN3geo7largestI[id]E*"}}, []string{"double geo::largest<double>(double, double)", "int geo::largest<int>(int, int)"}},
		{Query{Globs: []string{"geo::Shape::operator*"}}, []string{"geo::Shape::operator bool() const", "geo::Shape::operator==(geo::Shape const&) const"}},
		{Query{Globs: []string{"?_linkage"}}, []string{"c_linkage"}},
		{Query{Globs: []string{"{lambda*"}}, nil},
		{Query{Globs: []string{"main::{lambda*operator()*"}}, []string{"main::{lambda(int)#1}::operator()(int) const"}},
		{Query{Regexps: []string{`^geo::Shape::area$`}}, []string{"geo::Shape::area() const", "geo::Shape::area(int) const"}},
		{Query{Regexps: []string{`geo::.*Shape::(area|fit<>)`}}, []string{"geo::Shape::area() const", "geo::Shape::area(int) const", "int geo::Shape::fit<>()"}},
		{Query{Regexps: []string{`(?i)SHAPE::AREA`}}, []string{"geo::Shape::area() const", "geo::Shape::area(int) const"}},
		{Query{Regexps: []string{`^(c_link|toplev)`}}, []string{"c_linkage", "toplevel(int)"}},
	} {
		var got []string
		for _, s := range ask(t, path, c.q) {
			name := s.Demangled
			if name == "" {
				name = s.Name
			} else if f, err := demangle.Of(s.Name); err != nil || f.Full != name {
				t.Errorf("%+v: %+v", c.q, s)
			}
			got = append(got, name)
		}
		slices.Sort(got)
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v:\n     %q,\nwant %q", c.q, got, c.want)
		}
	}
	// A constructor's two names stand for one function, and so for one symbol.
	s := ask(t, path, Query{Names: []string{"geo::Shape::Shape"}})
	if len(s) != 1 || s[0].Name != "_ZN3geo5ShapeC1Ev" || s[0].Kind != KindAlias || !slices.Equal(s[0].Alias, []string{"_ZN3geo5ShapeC2Ev"}) {
		t.Errorf("constructor: %+v", s)
	}
	// The same text as name and glob: one symbol.
	if s := ask(t, path, Query{Names: []string{"c_linkage"}, Globs: []string{"c_linkage"}}); len(s) != 1 {
		t.Errorf("name and glob: %+v", s)
	}
}

// Every function of a large C++ library, by a pattern, with the simplest
// matcher as oracle.
func TestPatternsAgainstOracle(t *testing.T) {
	lib := strings.TrimSpace(string(command(t, ".", nil, "g++", "-print-file-name=libstdc++.so.6")))
	all := functionPlaces(t, lib)
	if len(all) < 3000 {
		t.Fatalf("oracle found %d functions", len(all))
	}
	forms := map[string][]string{}
	for name := range all {
		forms[name] = []string{name}
		if f, err := demangle.Of(name); err == nil && demangle.Mangled([]byte(name)) {
			forms[name] = append(forms[name], f.Full, f.Plain, f.Bare)
		}
		if base, ok := thunkOf(name); ok { // stands for what it is a thunk of
			f, err := demangle.Of(base)
			if forms[name] = append(forms[name], base); err == nil {
				forms[name] = append(forms[name], f.Full, f.Plain, f.Bare)
			}
		}
	}
	check := func(q Query, matches func(string) bool) {
		t.Helper()
		want := map[uint64]bool{}
		for name, list := range forms {
			if slices.ContainsFunc(list, matches) {
				for _, off := range all[name] {
					want[off] = true
				}
			}
		}
		got := ask(t, lib, q)
		for _, s := range got {
			if !want[s.Offset] {
				t.Errorf("%+v: unexpected %+v", q, s)
			}
			delete(want, s.Offset)
		}
		jumps := 0
		for name, offs := range all { // thunks that only jump to what is found as well
			if _, ok := thunkOf(name); ok {
				for _, off := range offs {
					if want[off] {
						delete(want, off)
						jumps++
					}
				}
			}
		}
		if len(got) == 0 || len(want) != 0 || jumps > 10 {
			t.Errorf("%+v: %d places, not these: %v, nor %d thunks", q, len(got), want, jumps)
		}
	}
	for _, g := range []string{"*", "std::string::*", "*::append", "*basic_string*compare*", "*[aeiou]tor*", "*thread*", "_ZNS*", "__cxa_?hrow", "*operator*", "*<char>*"} {
		check(Query{Globs: []string{g}}, func(form string) bool {
			ok, err := path.Match(strings.ReplaceAll(g, "/", "_"), strings.ReplaceAll(form, "/", "_"))
			return err == nil && ok
		})
	}
	for _, r := range []string{"append", "^std::", "::(insert|erase)$", "x{2,}", "(?i)RUNTIME_ERROR", "streambuf.*seek", "operator(<<|>>)"} {
		re := regexp.MustCompile(r)
		check(Query{Regexps: []string{r}}, re.MatchString)
	}
	// Each form of each function, as an exact name, must not be filtered out.
	count := 0
	for name, list := range forms {
		if count++; count%8 != 0 || !demangle.Mangled([]byte(name)) { // others each time
			continue
		}
		if _, ok := thunkOf(name); ok {
			continue // w alone knows nothing of them
		}
		for _, form := range list[1:] {
			w, err := newWanted(Query{Names: []string{form}})
			if err != nil {
				t.Fatal(err)
			}
			found := false
			if err := w.ask([]byte(name), func(match) error { found = true; return nil }); err != nil || !found {
				t.Errorf("%s is not found as %s: %v", name, form, err)
			}
		}
	}
}

// Real names are within the bounds of demangling, and are what binutils say,
// apart from what the library numbers in another way in some expressions.
func TestRealNames(t *testing.T) {
	need.Command(t, "c++filt")
	paths := []string{strings.TrimSpace(string(command(t, ".", nil, "g++", "-print-file-name=libstdc++.so.6")))}
	others, _ := filepath.Glob("/usr/lib/*-linux-gnu/lib[ILicz]*.so.*") // LLVM, ICU and others, where there are any
	for _, path := range others {
		if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && len(paths) < 12 {
			paths = append(paths, path)
		}
	}
	var names []string
	for _, path := range paths {
		n := len(names)
		for name := range functionPlaces(t, path) {
			if demangle.Mangled([]byte(name)) {
				names = append(names, name)
			}
		}
		if t.Logf("%s: %d mangled names", path, len(names)-n); len(names) > 50_000 {
			break
		}
	}
	filt := exec.Command("c++filt")
	filt.Stdin = strings.NewReader(strings.Join(names, "\n") + "\n")
	out, err := filt.Output()
	if err != nil {
		t.Fatal(err)
	}
	said := strings.Split(string(out), "\n")
	unjudged, differ := 0, 0
	for i, name := range names {
		f, err := demangle.Of(name)
		switch {
		case errors.Is(err, demangle.ErrUnjudged):
			unjudged++
		// c++filt spells these out.
		case err == nil && f.Full != said[i] && !regexp.MustCompile("S[sioda]").MatchString(name):
			if differ++; differ <= 5 {
				t.Logf("%s: %q, c++filt says %q", name, f.Full, said[i])
			}
		case err != nil && name != said[i]:
			t.Errorf("%s: %v, c++filt says %q", name, err, said[i])
		}
	}
	t.Logf("%d names, %d unjudged, %d differ", len(names), unjudged, differ)
	if len(names) < 3000 || unjudged > len(names)/1000 || differ > len(names)/100 {
		t.Errorf("%d names, %d unjudged, %d differ", len(names), unjudged, differ)
	}
}

// The same for Rust, whose compiler is not at hand.
func TestRustNames(t *testing.T) {
	text, err := os.ReadFile("testdata/rust.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		name, form, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if !ok {
			t.Fatalf("line %q", line)
		}
		f, err := demangle.Of(name)
		if err != nil || f.Full != form {
			t.Errorf("%s: %q, %v, want %q", name, f.Full, err, form)
			continue
		}
		for _, form := range []string{f.Full, f.Plain, f.Bare} {
			for _, q := range []Query{{Names: []string{form}}, {Regexps: []string{regexp.QuoteMeta(form)}}, {Globs: []string{"*" + globQuote(form[len(form)/3:])}}} {
				w, err := newWanted(q)
				if err != nil {
					t.Fatal(err)
				}
				found := false
				if err := w.ask([]byte(name), func(match) error { found = true; return nil }); err != nil || !found {
					t.Errorf("%s is not found by %+v: %v", name, q, err)
				}
			}
		}
	}
}

func globQuote(s string) string {
	return regexp.MustCompile(`[\\*?\[\]]`).ReplaceAllString(s, `\$0`)
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		glob, name string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "a/b", true}, {"a*", "a/b", true}, {"?", "/", true}, {"?", "", false}, {"?", "é", true},
		{"a*b*c", "aXbYc", true}, {"a*b*c", "aXbYcZ", false}, {"*ab", "aab", true}, {"*aab", "aaab", true}, {"**a**", "bab", true},
		{"[a-c]x", "bx", true}, {"[^a-c]x", "bx", false}, {"[^a-c]x", "/x", true}, {`\*`, "*", true}, {`\*`, "a", false},
		{`main.Max\[...\]`, "main.Max[...]", true}, {"main.(*T).M", "main.(*T).M", true}, {`net/http.(\*Server).*`, "net/http.(*Server).Serve", true},
		{"[é-ü]", "ö", true}, {`[\]]`, "]", true}, {`[\--a]`, "-", true}, {"a[b]c*", "abcd", true}, {"*[b]", "aab", true}, {"*?", "", false},
		{"*[^é]", "é", false}, {"*é", "aéé", true},
	} {
		g, err := parseGlob(c.glob)
		if err != nil || g.match([]byte(c.name)) != c.want {
			t.Errorf("%q, %q: %v, want %v", c.glob, c.name, err, c.want)
		}
	}
	for _, bad := range []string{"[", "[]", "[a", `\`, "a[-]", `[\`} {
		if _, err := parseGlob(bad); err == nil {
			t.Errorf("%q is a glob", bad)
		}
	}
}

// FuzzGlob compares with the standard library's matcher, which takes names for
// paths.
func FuzzGlob(f *testing.F) {
	for _, s := range [][2]string{{"a*b?[c-e]\\*", "axbxd*"}, {"*[^e]*", "ea"}, {"[\\-]", "-"}, {"*a*a*a", "aaaa"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		name = strings.ReplaceAll(name, "/", "_")
		if strings.ContainsFunc(name, func(r rune) bool { return r >= 0x80 }) {
			return // there, a star can end within a character
		}
		want, err := path.Match(pattern, name)
		g, ours := parseGlob(pattern)
		if ours != nil {
			return // path.Match finds some mistakes only if the name leads it there
		}
		if err != nil {
			t.Fatalf("%q is a glob", pattern)
		}
		if got := g.match([]byte(name)); got != want {
			t.Fatalf("%q, %q: %v, want %v", pattern, name, got, want)
		}
		for _, text := range g.texts() {
			if want && !strings.Contains(name, string(text)) {
				t.Fatalf("%q, %q: text %q", pattern, name, text)
			}
		}
	})
}

func TestBadQueries(t *testing.T) {
	long := strings.Repeat("a", maxPatternLength+1)
	for _, c := range []struct {
		q    Query
		want error
	}{
		{Query{Globs: []string{"[a"}}, ErrQuery},
		{Query{Globs: []string{long}}, ErrQuery},
		{Query{Regexps: []string{"(a"}}, ErrQuery},
		{Query{Regexps: []string{long}}, ErrQuery},
		{Query{Globs: make([]string, maxPatterns/2), Regexps: make([]string, maxPatterns/2+1)}, ErrTooLarge},
	} {
		b := tiny().bytes()
		if _, _, err := Read(bytes.NewReader(b), int64(len(b)), c.q, Limits{}); !errors.Is(err, c.want) {
			t.Errorf("%.80v: %v", c.q, err)
		}
	}
}

// named is a file with these functions, 16 bytes apart.
func named(names ...string) layout {
	l := layout{symbols: tiny().symbols[:1], strings: "\x00"}
	for i, n := range names {
		s := tiny().symbols[1]
		s.Name = uint32(len(l.strings))
		s.Value = tinyAddress + uint64(16*i)%0x1000
		l.strings += n + "\x00"
		l.symbols = append(l.symbols, s)
	}
	return l
}

func askBytes(b []byte, q Query, lim Limits) ([]Symbol, error) {
	_, syms, err := Read(bytes.NewReader(b), int64(len(b)), q, lim)
	return syms, err
}

// Each bound of matching, reached.
func TestMatchBounds(t *testing.T) {
	long := strings.Repeat("n", maxWhole+1)
	many := make([]string, 200)
	for i := range many {
		many[i] = fmt.Sprint("many", i)
	}
	kept := make([]string, 0, 40)
	for i := range 40 {
		kept = append(kept, fmt.Sprint("kept", i, strings.Repeat("x", maxWhole-100)))
	}
	for _, c := range []struct {
		name  string
		names []string
		q     Query
		lim   Limits
		want  error
	}{
		{"all fit", many, Query{Globs: []string{"*"}}, Limits{Matches: 200}, nil},
		{"one match too many", many, Query{Globs: []string{"*"}}, Limits{Matches: 199}, ErrTooLarge},
		{"two patterns match each", many, Query{Globs: []string{"*"}, Regexps: []string{"m"}}, Limits{Matches: 399}, ErrTooLarge},
		{"name too long", []string{long}, Query{Globs: []string{"n*"}}, Limits{}, ErrTooLarge},
		{"name just not too long", []string{long[1:]}, Query{Globs: []string{"n*"}}, Limits{}, nil},
		{"names too long together", kept, Query{Globs: []string{"kept*"}}, Limits{}, ErrTooLarge},
		{"no time", many, Query{Names: []string{"many1"}}, Limits{Time: 1}, ErrTime},
	} {
		l := named(c.names...)
		syms, err := askBytes(l.bytes(), c.q, c.lim)
		if !errors.Is(err, c.want) || c.want != nil && syms != nil {
			t.Errorf("%s: %d symbols, %v, want %v", c.name, len(syms), err, c.want)
		}
	}
}

// A mangled name that is too much to demangle takes nothing from the file's
// other names, and is told of if it could be a match.
func TestUnjudged(t *testing.T) {
	huge := "_Z1f" + strings.Repeat("P", demangle.MaxName) + "i"
	costly := "_Z1fIJ" + strings.Repeat("i", 3000) + "EEv" + strings.Repeat("Dp1aIT_", 20) + strings.Repeat("E", 20)
	l := named(huge, "_Z1fi", "_Z1gv", costly, "plain", "_Z1f\x1b"+strings.Repeat("P", demangle.MaxName))
	b := l.bytes()
	for _, c := range []struct {
		q        Query
		want     []string
		unjudged int
	}{
		{Query{Names: []string{"f"}}, []string{"_Z1fi"}, 3},
		{Query{Names: []string{"f", "plain", huge}}, []string{"_Z1fi", "plain", huge}, 3},
		{Query{Globs: []string{"f(*"}}, []string{"_Z1fi"}, 3},
		{Query{Globs: []string{"g*", "x*y"}}, []string{"_Z1gv"}, 3},
		{Query{Names: []string{"g"}}, []string{"_Z1gv"}, 0},
		{Query{Names: []string{"plain"}}, []string{"plain"}, 0},
		{Query{}, nil, 0},
	} {
		file, syms, err := Read(bytes.NewReader(b), int64(len(b)), c.q, Limits{})
		if err != nil {
			t.Errorf("%.80v: %v", c.q, err)
			continue
		}
		var got []string
		for _, s := range syms {
			got = append(got, s.Name)
		}
		slices.Sort(got)
		slices.Sort(c.want)
		u := file.Unjudged
		if !slices.Equal(got, c.want) || u.Names != c.unjudged || (u.String() == "") != (c.unjudged == 0) {
			t.Errorf("%.80v: %.80q, %+v, want %d of %.80q", c.q, got, u, c.unjudged, c.want)
		}
		if u.Names > 0 && (len(u.Example) > 80 || !strings.HasPrefix(u.Example, "_Z1f") || u.Why == "" || !printable(u.String())) {
			t.Errorf("%.80v: %q", c.q, u)
		}
	}
}

// Names that share one long tail, each to be looked at as a whole: quadratic,
// so the time must end it.
func TestTailFlood(t *testing.T) {
	for _, c := range []struct {
		piece string
		q     Query
	}{
		{"_Z1", Query{Names: []string{"wanted"}}},
		{"n", Query{Regexps: []string{"(m|nm)+o"}}},
		{"n", Query{Globs: []string{"*n*n*n*m"}}},
	} {
		l := layout{symbols: tiny().symbols[:1], strings: "\x00" + strings.Repeat(c.piece, 900_000/len(c.piece)) + "\x00"}
		for i := 1; i < len(l.strings)-1; i += len(c.piece) {
			s := tiny().symbols[1]
			s.Name = uint32(i)
			l.symbols = append(l.symbols, s)
		}
		b := l.bytes()
		began := time.Now()
		_, err := askBytes(b, c.q, Limits{Time: 100 * time.Millisecond})
		if took := time.Since(began); !errors.Is(err, ErrTime) || !errors.Is(err, ErrTooLarge) || took > 10*time.Second {
			t.Errorf("%+v: %v after %v", c.q, err, took)
		}
	}
}

// What a hostile file calls its functions must not reach a terminal or a line
// of evidence as it is, and is found all the same.
func TestUnprintable(t *testing.T) {
	names := []string{"\x1b[31mred", "not\xffutf8", "_Z3\x1b[3v", strings.Repeat("long", 2000), "fine"}
	l := named(names...)
	syms, err := askBytes(l.bytes(), Query{Globs: []string{"*"}}, Limits{})
	if err != nil || len(syms) != len(names) {
		t.Fatalf("%+v, %v", syms, err)
	}
	for i, want := range []string{`\x1b[31mred`, `not\xffutf8`, `_Z3\x1b[3v`, strings.Repeat("long", 256) + "...", "fine"} {
		if syms[i].Name != want || syms[i].Demangled != "" {
			t.Errorf("%+v", syms[i])
		}
	}
	// Who asks for such a name gets it back.
	if syms, err := askBytes(l.bytes(), Query{Names: []string{names[1]}}, Limits{}); err != nil || len(syms) != 1 || syms[0].Name != names[1] {
		t.Errorf("%+v, %v", syms, err)
	}
}

// Patterns look at every name and hold none of them.
func TestPatternMemory(t *testing.T) {
	l := tiny()
	var names strings.Builder
	names.WriteString(l.strings)
	for i := range 300_000 {
		s := l.symbols[1]
		s.Name = uint32(names.Len())
		s.Value += 16
		l.symbols = append(l.symbols, s)
		fmt.Fprintf(&names, "function_number_%d_of_many_that_do_not_match\x00", i)
	}
	l.strings = names.String()
	b := l.bytes()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	syms, err := askBytes(b, Query{Globs: []string{"*wanted", "wan*"}, Regexps: []string{"^wanted$"}}, Limits{})
	runtime.ReadMemStats(&after)
	// Under the race detector the regular expression's memory is not always used
	// again, which comes to 9 MiB; the names alone are 14.
	if used := after.TotalAlloc - before.TotalAlloc; err != nil || len(syms) != 3 || used > uint64(names.Len())*3/4 {
		t.Errorf("%d symbols, %v, %d bytes allocated", len(syms), err, used)
	}
}
