package probe

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/bpf/symbol"
	"probity/evidence"
	"probity/tests/need"
)

// A real Rust program in both manglings: its functions by the names that their
// author knows, how often each ran, and what is said of those that did not.
func TestRust(t *testing.T) {
	rustc := need.Rustc(t)
	for _, mangling := range []string{"legacy", "v0"} {
		t.Run(mangling, func(t *testing.T) {
			lower := newLower(t)
			cmd := exec.Command(rustc, "--edition", "2018", "-O", "-g", "-Zunstable-options", "-C", "symbol-mangling-version="+mangling,
				"-o", filepath.Join(lower, "bin", "shop"), "testdata/shop.rs")
			cmd.Env = append(os.Environ(), "RUSTC_BOOTSTRAP=1") // which mangling may be chosen differs from version to version
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			b := newBox(t, lower)
			e := newEngine(t, bpf.Options{}, Config{})
			closure := map[string]string{"legacy": "{{closure}}", "v0": "{closure#0}"}[mangling]
			h, err := e.Arm(t.Context(), b.target(), MakePlan([]policy.Probe{{
				ID: "p", Type: policy.Uprobe, File: "/bin/shop",
				Symbols:       []string{"shop::shop::largest", "<shop::shop::Cart as shop::shop::Sells>::sell", "shop::checked", "shop::shop::small", "shop::nested::" + closure},
				SymbolGlobs:   []string{"shop::nest*::" + closure + "::" + closure},
				SymbolRegexps: []string{"^<&mut shop::.* as shop::shop::Sells>::sell$", "::(never|deepest)$"},
			}}, merged(t, rootfs(b), &Inspector{}), Host()))
			must(t, err)
			defer h.Close()
			b.runAt("bin/shop", []string{"RUST_BACKTRACE=0"}, "6")
			hits, inlined := map[string]uint64{}, map[string]uint64{}
			for _, s := range h.Sites {
				name := map[bool]string{false: s.Demangled, true: s.Symbol}[s.Demangled == ""]
				var c bpf.Counter
				if s.Armed {
					c, err = h.Counter(s)
					must(t, err)
				}
				t.Logf("%s at %#x by %s in %q: %s, inline %s %v %s, %d", name, s.Offset, s.Wanted, s.InlinedIn, s.Kind, s.Inline, s.InlinedAt, s.Reason, c.Count)
				switch {
				case s.Kind == symbol.KindInlined:
					inlined[name] = max(inlined[name], c.Count) // the parts of one instance are executed together
					if s.InlinedIn == "" || !s.Armed && s.Reason != evidence.UnprobeableInstruction {
						t.Errorf("%+v", s)
					}
				case !s.Armed || s.Kind != symbol.KindFunc:
					t.Errorf("%+v", s)
				// A part of the standard library comes without debugging
				// information: nobody knows what was inlined there.
				case s.Inline != symbol.InlineUnknown && s.Inline != symbol.InlineNone && (s.Inline != symbol.InlineAt || len(s.InlinedAt) == 0):
					t.Errorf("%+v", s)
				default:
					hits[name] += c.Count
				}
			}
			generic := map[string]map[string]uint64{
				"legacy": {"shop::shop::largest": 2},
				"v0":     {"shop::shop::largest::<u32>": 1, "shop::shop::largest::<f64>": 1},
			}[mangling]
			want := map[string]uint64{
				"<shop::shop::Cart as shop::shop::Sells>::sell": 7, "<&mut shop::shop::Cart as shop::shop::Sells>::sell": 1,
				"shop::checked":     1, // it panics
				"shop::shop::never": 0, "shop::nested::" + closure: 6, "shop::nested::" + closure + "::" + closure: 6,
				"shop::nested::" + closure + "::" + closure + "::deepest": 6,
			}
			maps.Copy(want, generic)
			if !maps.Equal(hits, want) {
				t.Errorf("hits %v\nwant %v", hits, want)
			}
			if inlined["shop::shop::small"] != 6 {
				t.Errorf("small, which was inlined: %v", inlined)
			}
			for _, s := range h.Sites {
				if s.Reason == evidence.SymbolNotFound {
					t.Errorf("%s: %s", s.Wanted, s.Detail)
				}
			}
		})
	}
}
