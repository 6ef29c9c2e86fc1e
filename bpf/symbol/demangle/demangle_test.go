package demangle

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// What compilers made of known sources: g++ 12 and clang 14, rustc 1.95 (v0),
// rustc 1.60 (legacy), and the examples of RFC 2603.
var known = []struct{ name, full, plain, bare, clone string }{
	{"_Z1fv", "f()", "f", "f", ""},
	{"_ZN2ns5Class6methodEi", "ns::Class::method(int)", "ns::Class::method", "ns::Class::method", ""},
	{"_ZNK2ns5Class6methodEPKcm", "ns::Class::method(char const*, unsigned long) const", "ns::Class::method", "ns::Class::method", ""},
	{"_ZN2ns5ClassC1Ev", "ns::Class::Class()", "ns::Class::Class", "ns::Class::Class", ""},
	{"_ZN2ns5ClassD0Ev", "ns::Class::~Class()", "ns::Class::~Class", "ns::Class::~Class", ""},
	{"_ZN2ns3maxIiEET_S1_S1_", "int ns::max<int>(int, int)", "ns::max<int>", "ns::max", ""},
	{"_ZNSt6vectorIiSaIiEE9push_backEOi", "std::vector<int, std::allocator<int> >::push_back(int&&)", "std::vector<int, std::allocator<int> >::push_back", "std::vector::push_back", ""},
	{"_ZN12_GLOBAL__N_16hiddenEv", "(anonymous namespace)::hidden()", "(anonymous namespace)::hidden", "(anonymous namespace)::hidden", ""},
	{"_ZNKSs5c_strEv", "std::string::c_str() const", "std::string::c_str", "std::string::c_str", ""},
	{"_ZN1AcvT_IiEEv", "A::operator int<int>()", "A::operator int<int>", "A::operator int", ""},
	{"_ZlsRSoRK1A", "operator<<(std::ostream&, A const&)", "operator<<", "operator<<", ""},
	{"_ZZN2ns5outerEiENKUlvE_clEv", "ns::outer(int)::{lambda()#1}::operator()() const", "ns::outer(int)::{lambda()#1}::operator()", "ns::outer(int)::{lambda()#1}::operator()", ""},
	{"_ZThn8_N2ns5Class6methodEi", "non-virtual thunk to ns::Class::method(int)", "non-virtual thunk to ns::Class::method(int)", "non-virtual thunk to ns::Class::method(int)", ""},
	{"_ZN2ns5Class6methodEi.constprop.0", "ns::Class::method(int) [clone .constprop.0]", "ns::Class::method", "ns::Class::method", ".constprop.0"},
	{"_ZN2ns5Class6methodEi.isra.0.cold", "ns::Class::method(int) [clone .isra.0] [clone .cold]", "ns::Class::method", "ns::Class::method", ".isra.0.cold"},
	{"_ZTVN2ns5ClassE", "vtable for ns::Class", "vtable for ns::Class", "vtable for ns::Class", ""},

	{"_ZN4core3fmt9Formatter9write_str17h0123456789abcdefE", "core::fmt::Formatter::write_str", "core::fmt::Formatter::write_str", "core::fmt::Formatter::write_str", ""},
	{"_ZN67_$LT$my..Type$u20$as$u20$core..iter..traits..iterator..Iterator$GT$4next17h1a2b3c4d5e6f7a8bE", "<my::Type as core::iter::traits::iterator::Iterator>::next", "<my::Type as core::iter::traits::iterator::Iterator>::next", "<my::Type as core::iter::traits::iterator::Iterator>::next", ""},
	{"_ZN2my4main28_$u7b$$u7b$closure$u7d$$u7d$17h0123456789abcdefE.llvm.42", "my::main::{{closure}}", "my::main::{{closure}}", "my::main::{{closure}}", ".llvm.42"},
	{"_ZN2my8__hidden17h0123456789abcdefE", "my::__hidden", "my::__hidden", "my::__hidden", ""},
	{"_ZN2my1_7_hidden17h0123456789abcdefE.cold", "my::_::_hidden", "my::_::_hidden", "my::_::_hidden", ".cold"},
	{"_ZN2my6hidden17h0000000000000000E", "my::hidden::h0000000000000000", "my::hidden::h0000000000000000", "my::hidden::h0000000000000000", ""},
	{"_RNvCs1234_7mycrate4main", "mycrate::main", "mycrate::main", "mycrate::main", ""},
	{"_RNvMCs1234_7mycrateNtB2_3Foo3bar", "<mycrate::Foo>::bar", "<mycrate::Foo>::bar", "<mycrate::Foo>::bar", ""},
	{"_RNvXCs1234_7mycrateNtB2_3FooNtB2_5Trait3run", "<mycrate::Foo as mycrate::Trait>::run", "<mycrate::Foo as mycrate::Trait>::run", "<mycrate::Foo as mycrate::Trait>::run", ""},
	{"_RINvCs1234_7mycrate3maxlE", "mycrate::max::<i32>", "mycrate::max::<i32>", "mycrate::max", ""},
	{"_RNCNvCs1234_7mycrate4main0B3_", "mycrate::main::{closure#0}", "mycrate::main::{closure#0}", "mycrate::main::{closure#0}", ""},
	{"_RNvNtNtCs1234_7mycrateu8gdel_5qa6escher4bach", "mycrate::gödel::escher::bach", "mycrate::gödel::escher::bach", "mycrate::gödel::escher::bach", ""},
}

func TestKnown(t *testing.T) {
	for _, c := range known {
		f, err := Of(c.name)
		if want := (Forms{c.full, c.plain, c.bare, c.clone}); err != nil || f != want {
			t.Errorf("%s: %+v, %v\nwant %+v", c.name, f, err, want)
		}
		if !Mangled([]byte(c.name)) {
			t.Errorf("%s does not look mangled", c.name)
		}
	}
}

func TestNotMangled(t *testing.T) {
	for _, name := range []string{"", "_", "_Z", "_R", "main", "_ZN", "_ZN1", "_ZN99999999999999999999f", "_Rust_alloc", "_RNvC", "_Z1fv trailing", "_ZN\x00E", "_Z1f\xff"} {
		if f, err := Of(name); err == nil {
			t.Errorf("%q: %+v", name, f)
		} else if errors.Is(err, ErrUnjudged) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func base36(n int) string {
	if n == 0 {
		return "S_"
	}
	return "S" + strings.ToUpper(strconv.FormatInt(int64(n-1), 36)) + "_"
}

// Names that the library alone can't read, as c++filt does: an empty identifier
// before another one, and references to what is behind it.
func TestClosures(t *testing.T) {
	for name, want := range map[string]string{
		"_RNvNCNvCs1234_7mycrate4main05inner":            "mycrate::main::{closure#0}::inner",
		"_RNvNCNCNvCs1234_7mycrate4main00s_5inner":       "mycrate::main::{closure#0}::{closure#0}::inner",
		"_RNCNCNvCsbxQjNsTKZZh_4shop6nested00B5_":        "shop::nested::{closure#0}::{closure#0}",
		"_RINvNCNvC1a4main03bigNtB2_5SmallNtNCB4_03TopE": "a::main::{closure#0}::big::<a::main::{closure#0}::Small, a::main::{closure#0}::Top>",
		"_RNvNtNvCs1_1a05inner1f.llvm.1":                 "a::::inner::f",
	} {
		f, err := Of(name)
		if err != nil || f.Full != want {
			t.Errorf("%s: %+v, %v, want %s", name, f, err, want)
		}
	}
	// What has not the grammar that is known.
	for _, name := range []string{"_RNvNCNvC1a4main05innerW_", "_RINvNCNvC1a4main05innerWE", "_RNvMC5alloc6RawVecINtB2_3VecNtNCNvC1a4main08DeferredE4grow"} {
		if f, err := Of(name); !errors.Is(err, ErrUnjudged) {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
	// A constant that the library does not take.
	if f, err := Of("_RINvC1a1fKn80000000000000000000000000000000_E"); err == nil {
		t.Errorf("%+v", f)
	}
}

// What does not need it is not written anew.
func TestRespell(t *testing.T) {
	for _, c := range known {
		if !strings.HasPrefix(c.name, "_R") {
			continue
		}
		if got, work, ok := respell(c.name); !ok || got != c.name || work <= 0 || work > rustSteps(c.name) {
			t.Errorf("%s: %s, %f, %v", c.name, got, work, ok)
		}
	}
	// A reference whose new text is longer moves what is behind it, too.
	name := "_RTNCNvC53_" + strings.Repeat("a", 53) + "4main00B2_E"
	if got, _, ok := respell(name); ok {
		t.Errorf("a type is no name: %s", got)
	}
	long := "_RINvNCNvC1a" + "52_" + strings.Repeat("b", 52) + "01fTNtB2_1xNtBV_1yEE"
	if got, _, ok := respell(long); !ok || !strings.Contains(got, "0_1f") {
		t.Errorf("%s: %s, %v", long, got, ok)
	}
}

// hostile returns names of each shape that takes a parser without bounds
// exponential or quadratic time, or memory, larger and larger.
func hostile() map[string][]string {
	rep := strings.Repeat
	shapes := map[string]func(n int) string{
		"casts within casts":         func(n int) string { return "_ZN1bI" + rep("L_ZN1acvT_I", n) + "i" + rep("EEviE", n) + "E1fEv" },
		"one pack many times":        func(n int) string { return "_Z1fIJ" + rep("i", n) + "EEv" + rep("Dp", n) + "T_" },
		"a long pack":                func(n int) string { return "_Z1fIJ" + rep("i", n) + "EEvDpT_" },
		"a long pack, in a template": func(n int) string { return "_Z1fIJ" + rep("i", n) + "EEvDp1aIT_E" },
		"a long pack, in a function": func(n int) string { return "_Z1fIJ" + rep("i", n) + "EEvDpPFvT_E" },
		"a pack of large things": func(n int) string {
			return "_Z1fI1bI" + rep("1cI", n) + "i" + rep("E", n) + "EJ" + rep("S1_", n) + "EEvDpT0_"
		},
		"packs in expressions": func(n int) string {
			return "_Z1fIJ" + rep("i", 8) + "EEvDTcl" + rep("spcl", n) + "spT_" + rep("E", n) + "EE"
		},
		"functions within functions":  func(n int) string { return "_Z" + rep("Z", n) + "1av" + rep("E1bi", n) },
		"literals within literals":    func(n int) string { return "_Z1fI" + rep("L_Z1aI", n) + "i" + rep("EvvE", n) + "Evv" },
		"pointers":                    func(n int) string { return "_Z1f" + rep("P", n) + "i" },
		"qualifiers":                  func(n int) string { return "_Z1f" + rep("K", n) + "i" },
		"qualifiers of methods":       func(n int) string { return "_ZN" + rep("K", n) + "1a1fEv" },
		"qualifiers of functions":     func(n int) string { return "_Z1fP" + rep("Dx", n) + "FvvE" },
		"qualifiers with expressions": func(n int) string { return "_Z1fP" + rep("DOLi1EE", n) + "FvvE" },
		"nested names":                func(n int) string { return "_ZN" + rep("1a", n) + "E" },
		"templates":                   func(n int) string { return "_Z1f" + rep("1aI", n) + "i" + rep("E", n) },
		"functions":                   func(n int) string { return "_Z1f" + rep("PFv", n) + "i" + rep("E", n) },
		"members":                     func(n int) string { return "_Z1f" + rep("M1a", n) + "i" },
		"arrays":                      func(n int) string { return "_Z1f" + rep("A1_K", n) + "i" },
		"references to all":           func(n int) string { return "_Z1f" + rep("P", n) + "i" + rep(base36(n-1), n) },
		"expressions":                 func(n int) string { return "_Z1fIXcl" + rep("plLi1E", n) + "Li1EEEEvv" },
		"clones":                      func(n int) string { return "_Z1fv" + rep(".a", n) },
		"tags":                        func(n int) string { return "_Z1f" + rep("B1a", n) + "v" },
		"vendors":                     func(n int) string { return "_Z1f" + rep("U1a", n) + "v" },
		"elaborated":                  func(n int) string { return "_Z1f" + rep("Ts1a", n) },
		"parameters":                  func(n int) string { return "_Z1fIiEv" + rep("T_", n) },
		"rust punycode":               func(n int) string { return fmt.Sprintf("_RNvC1au%d_", n) + rep("a", n) },
		"rust punycode that is hidden": func(n int) string {
			return fmt.Sprintf("_RINvC1a1fMCu%d_", n) + rep("a", n) + "l" + rep("B7_", n) + "E"
		},
		"rust implementations": func(n int) string { return fmt.Sprintf("_RINvC1a1fMC%d_", n) + rep("a", n) + "l" + rep("B7_", n) + "E" },
		"rust lifetimes":       func(n int) string { return "_RINvC1a1fFG" + base62Text(n/3) + "Eu" + rep("l", n) },
		"rust tuples":          func(n int) string { return "_RINvC1a1f" + rep("T", n) + "l" + rep("E", n) + "E" },
		"rust references": func(n int) string {
			name, at := "_RINvC1a1fTaaE", 8
			for range n {
				next := len(name) - 2
				name += "TB" + base62Text(at) + "B" + base62Text(at) + "E"
				at = next
			}
			return name + "E"
		},
	}
	for _, depth := range []int{2, 3, 5} {
		shapes[fmt.Sprint("packs within packs ", depth)] = func(n int) string {
			return "_Z1fIJ" + rep("i", n) + "EEv" + rep("Dp1aIT_", depth) + rep("E", depth)
		}
		shapes[fmt.Sprint("substitutions ", depth)] = func(n int) string {
			name := "_Z1fFviE"
			for i := range n {
				name += "Fv" + rep(base36(i), depth) + "E"
			}
			return name
		}
		shapes[fmt.Sprint("copies of parameters ", depth)] = func(n int) string {
			name := "_Z1fIiEv1bIT_E"
			for i := range n {
				name += "Fv" + rep(base36(i+3), depth) + "E"
			}
			return name
		}
		shapes[fmt.Sprint("copies of many parameters ", depth)] = func(n int) string {
			name := "_Z1fIiEv1bI" + rep("1cIT_E", 8*n) + "E"
			for i := range n {
				name += "Fv" + rep(base36(i+3+16*n), depth) + "E"
			}
			return name
		}
		shapes[fmt.Sprint("lambdas ", depth)] = func(n int) string {
			name := "_Z1fNUlvE_1aE"
			for i := range n {
				name += "NUl" + rep(base36(2*i), depth) + "E_1aE"
			}
			return name
		}
	}
	sizes := []int{1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 40, 80, 160, 300, 480, 700, 1000, 2000, MaxName - 100}
	names := map[string][]string{"longer than is taken": {"_Z" + rep("1a", MaxName/2)}}
	for what, shape := range shapes {
		for _, n := range sizes {
			if name := shape(n); len(name) <= 2*MaxName {
				names[what] = append(names[what], name)
			}
		}
	}
	return names
}

// maxGarbage is what one call may allocate, in bytes. Time is not measured: the
// machine may be busy.
const maxGarbage = 64 << 20

// garbage returns what Of allocates for a name.
func garbage(name string) (forms Forms, err error, bytes uint64) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	forms, err = Of(name)
	runtime.ReadMemStats(&after)
	return forms, err, after.TotalAlloc - before.TotalAlloc
}

// Each hostile shape, as it grows: cheap, and refused in the end if the others
// would not be.
func TestHostile(t *testing.T) {
	var worst uint64
	all := hostile()
	for what, names := range all {
		taken := 0
		for _, name := range names {
			_, err, bytes := garbage(name)
			if bytes > maxGarbage {
				t.Errorf("%s: %d bytes, %.0f steps: %d bytes of garbage, %v", what, len(name), steps(name), bytes, err)
			}
			if bytes > worst {
				worst = bytes
				t.Logf("%s: %d bytes, %.0f steps: %d KiB of garbage, %v", what, len(name), steps(name), bytes>>10, err)
			}
			if !errors.Is(err, ErrUnjudged) {
				taken++
			}
		}
		if !strings.Contains(what, "within packs") && len(names) > 1 && taken == 0 {
			t.Errorf("%s: not even the smallest is taken", what)
		}
	}
	last := func(what string) string { return all[what][len(all[what])-1] }
	for what, name := range map[string]string{
		"casts":         "_ZN1bI" + strings.Repeat("L_ZN1acvT_I", 18) + "i" + strings.Repeat("EEviE", 18) + "E1fEv",
		"packs":         "_Z1fIJ" + strings.Repeat("i", 3000) + "EEv" + strings.Repeat("Dp1aIT_", 20) + strings.Repeat("E", 20),
		"length":        "_Z1f" + strings.Repeat("P", MaxName) + "i",
		"depth":         "_Z1f" + strings.Repeat("P", 2*maxDepth) + "i",
		"substitutions": last("substitutions 3"),
		"copies":        last("copies of parameters 3"),
		"lambdas":       last("lambdas 3"),
		"references":    last("rust references"),
		"punycode":      last("rust punycode that is hidden"),
	} {
		if _, err, bytes := garbage(name); !errors.Is(err, ErrUnjudged) {
			t.Errorf("%s: %v, %d bytes", what, err, bytes)
		}
	}
}

// FuzzOf: whatever the name, an answer within its bounds.
func FuzzOf(f *testing.F) {
	for _, c := range known {
		f.Add(c.name)
	}
	for _, names := range hostile() {
		for i, name := range names {
			if i%6 == 5 && len(name) < 512 {
				f.Add(name)
			}
		}
	}
	f.Fuzz(func(t *testing.T, name string) {
		forms, err, bytes := garbage(name)
		if bytes > maxGarbage {
			t.Fatalf("%d bytes of garbage for %d bytes: %v", bytes, len(name), err)
		}
		for _, s := range []string{forms.Full, forms.Plain, forms.Bare} {
			if len(s) >= 1<<maxText {
				t.Fatalf("a form of %d bytes", len(s))
			}
		}
		if err != nil && forms != (Forms{}) {
			t.Fatalf("%+v and %v", forms, err)
		}
	})
}
