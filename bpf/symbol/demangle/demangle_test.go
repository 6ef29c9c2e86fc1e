package demangle

import (
	"errors"
	"strings"
	"testing"
	"time"
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
	{"_RNvCs1234_7mycrate4main", "mycrate::main", "mycrate::main", "mycrate::main", ""},
	{"_RNvMCs1234_7mycrateNtB2_3Foo3bar", "<mycrate::Foo>::bar", "<mycrate::Foo>::bar", "<mycrate::Foo>::bar", ""},
	{"_RNvXCs1234_7mycrateNtB2_3FooNtB2_5Trait3run", "<mycrate::Foo as mycrate::Trait>::run", "<mycrate::Foo as mycrate::Trait>::run", "<mycrate::Foo as mycrate::Trait>::run", ""},
	{"_RINvCs1234_7mycrate3maxlE", "mycrate::max::<i32>", "mycrate::max::<i32>", "mycrate::max", ""},
	{"_RNCNvCs1234_7mycrate4main0B3_", "mycrate::main::{closure#0}", "mycrate::main::{closure#0}", "mycrate::main::{closure#0}", ""},
	{"_RNvNCNvCs1234_7mycrate4main05inner", "mycrate::main::{closure#0}::inner", "mycrate::main::{closure#0}::inner", "mycrate::main::{closure#0}::inner", ""},
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
		} else if errors.Is(err, ErrTooLarge) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func base62(n int) string {
	if n == 0 {
		return "_"
	}
	const digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	s := "_"
	for n--; ; n /= 62 {
		if s = string(digits[n%62]) + s; n < 62 {
			return s
		}
	}
}

// hostile names, each of which takes a parser without bounds exponential or
// quadratic time, or memory.
func hostile() map[string]string {
	casts := func(n int) string {
		return "_ZN1bI" + strings.Repeat("L_ZN1acvT_I", n) + "i" + strings.Repeat("EEviE", n) + "E1fEv"
	}
	packs := func(n, depth int) string {
		return "_Z1fIJ" + strings.Repeat("i", n) + "EEv" + strings.Repeat("Dp1aIT_", depth) + strings.Repeat("E", depth)
	}
	rust, at := "_RINvC1a1fTaaE", 8
	for range 40 {
		next := len(rust) - 2
		rust += "TB" + base62(at) + "B" + base62(at) + "E"
		at = next
	}
	doubled := "_Z1fFviEFvS_S_E"
	for _, s := range "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		doubled += "FvS" + string(s) + "_S" + string(s) + "_E"
	}
	return map[string]string{
		"casts within casts":      casts(18),
		"a thousand of them":      casts(1000),
		"packs within packs":      packs(30, 20),
		"long packs within packs": packs(3000, 20),
		"one pack many times":     "_Z1fIJ" + strings.Repeat("i", 3000) + "EEv" + strings.Repeat("Dp", 3000) + "T_",
		"pointers":                "_Z1f" + strings.Repeat("P", 16000) + "i",
		"nested names":            "_ZN" + strings.Repeat("1a", 8000) + "E",
		"templates":               "_Z1f" + strings.Repeat("1aI", 4000) + "i" + strings.Repeat("E", 4000),
		"substitutions":           doubled,
		"rust references":         rust + "E",
		"rust punycode":           "_RNvC1au16000_" + strings.Repeat("a", 16000),
		"longer than is taken":    "_Z" + strings.Repeat("1a", MaxName/2),
	}
}

func TestHostile(t *testing.T) {
	for what, name := range hostile() {
		began := time.Now()
		_, err := Of(name)
		if took := time.Since(began); !errors.Is(err, ErrTooLarge) || took > 3*time.Second {
			t.Errorf("%s: %v after %v", what, err, took)
		}
	}
}

// FuzzOf: whatever the name, an answer within its bounds.
func FuzzOf(f *testing.F) {
	for _, c := range known {
		f.Add(c.name)
	}
	for _, name := range hostile() {
		f.Add(name[:min(len(name), 512)])
	}
	f.Fuzz(func(t *testing.T, name string) {
		began := time.Now()
		forms, burnt, err := measure(name)
		if took := time.Since(began); took > 5*time.Second {
			t.Fatalf("%d bytes took %v and %d steps: %v", len(name), took, burnt, err)
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
