package probe

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/bpf/symbol"
	"probity/evidence"
	"probity/runtime/image"
	"probity/tests/need"
)

// compiled makes a real program in the layer of a box.
func compiled(t *testing.T, lower, name, source string, compiler ...string) {
	t.Helper()
	need.Command(t, compiler[0])
	dir := t.TempDir()
	suffix := ".c"
	if compiler[0] == "go" {
		suffix = ".go"
	}
	src := filepath.Join(dir, "main"+suffix)
	must(t, os.WriteFile(src, []byte(source), 0o600))
	cmd := exec.Command(compiler[0], append(compiler[1:], "-o", filepath.Join(lower, "bin", name), src)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GO111MODULE=off", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// sum is how often the sites of a symbol were hit, and how many there are.
func sum(t *testing.T, h *Handle, name string) (hits uint64, sites int) {
	t.Helper()
	for _, s := range h.Sites {
		if s.Symbol != name {
			continue
		}
		if !s.Armed {
			t.Errorf("%s: %s %s", s.Symbol, s.Reason, s.Detail)
			continue
		}
		sites++
		c, err := h.Counter(s)
		must(t, err)
		hits += c.Count
	}
	return hits, sites
}

const goProgram = `package main

import (
	"os"
	"sync"
)

//go:noinline
func answer(n int) int {
	if n%3 == 0 {
		return n
	}
	if n%3 == 1 {
		return grow(n) + 1
	}
	return n * 2
}

// grow makes the runtime move the stack that answer returns on.
//
//go:noinline
func grow(n int) int {
	var big [512]int
	big[n%512] = n
	if n > 7 {
		return grow(n-7) + big[n%512] - n
	}
	return big[0]
}

func small(n int) int { return n ^ 5 }

func main() {
	var wg sync.WaitGroup
	out := make([]int, 20)
	for i := range out {
		wg.Go(func() {
			for j := range 50 {
				out[i] += answer(i*50+j)
				if j == 0 {
					out[i] += small(out[i])
				}
			}
		})
	}
	wg.Wait()
	if out[1] == 0 {
		os.Exit(7)
	}
}
`

// Returns are counted in a Go program whose stacks move, and it lives.
func TestReturnsOfGo(t *testing.T) {
	lower := newLower(t)
	compiled(t, lower, "answers", goProgram, "go", "build")
	b := newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{})
	plan := func(pr policy.Probe) Plan {
		pr.File = "/bin/answers"
		return MakePlan([]policy.Probe{pr}, merged(t, rootfs(b), &Inspector{}), Host())
	}
	h, err := e.Arm(t.Context(), b.target(), plan(policy.Probe{ID: "r", Type: policy.Uretprobe, Symbols: []string{"main.answer", "main.small"}}))
	must(t, err)
	defer h.Close()
	b.runAt("bin/answers", nil)
	hits, sites := uint64(0), 0
	for _, s := range h.Sites {
		switch {
		case s.Symbol == "main.small": // inlined everywhere: nothing returns from it
			if s.Armed || s.Reason != evidence.UnprobeableInstruction && s.Reason != evidence.SymbolNotFound {
				t.Errorf("%+v", s)
			}
		case !s.Armed || !s.Return || s.Requested != evidence.Uretprobe || s.Type != evidence.Uprobe:
			t.Errorf("%+v", s)
		default:
			c, err := h.Counter(s)
			must(t, err)
			hits, sites = hits+c.Count, sites+1
		}
	}
	if hits != 1000 || sites < 2 {
		t.Errorf("%d returns at %d instructions, want 1000 at two or more", hits, sites)
	}
}

// A function that was inlined everywhere is seen where its code is.
func TestInlinedOfGo(t *testing.T) {
	lower := newLower(t)
	compiled(t, lower, "answers", goProgram, "go", "build")
	b := newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{})
	h, err := e.Arm(t.Context(), b.target(), MakePlan([]policy.Probe{{ID: "p", Type: policy.Uprobe, File: "/bin/answers", Symbols: []string{"main.answer", "main.small"}}},
		merged(t, rootfs(b), &Inspector{}), Host()))
	must(t, err)
	defer h.Close()
	b.runAt("bin/answers", nil)
	// A Go function whose stack is too small begins again once it has been
	// moved, so its first instruction runs more often than it is called.
	if hits, sites := sum(t, h, "main.answer"); hits < 1000 || hits > 1100 || sites != 1 {
		t.Errorf("answer: %d hits at %d sites", hits, sites)
	}
	hits, sites := sum(t, h, "main.small")
	if hits != 20 || sites == 0 {
		t.Errorf("small, which was inlined: %d hits at %d sites, want 20", hits, sites)
	}
	for _, s := range h.Sites {
		if s.Symbol == "main.small" && (s.Kind != symbol.KindInlined || s.InlinedIn == "") {
			t.Errorf("%+v", s)
		}
	}
}

const inlineProgram = `#include <stdlib.h>
#define KEPT __attribute__((noinline, noclone, used, externally_visible))
volatile int sink;
static inline __attribute__((always_inline)) void checked(int n) { __asm__ volatile("nop"); sink = n; }
KEPT void first(int n) { checked(n); }
KEPT void second(int n) { for (int i = 0; i < n; i++) checked(i); }
int main(int argc, char **argv) {
	int n = atoi(argv[1]);
	first(n);
	second(n);
	return 0;
}
`

func TestInlinedOfC(t *testing.T) {
	for _, compiler := range []string{"gcc", "clang-14"} {
		t.Run(compiler, func(t *testing.T) {
			lower := newLower(t)
			compiled(t, lower, "inlined", inlineProgram, compiler, "-O2", "-g", "-static")
			b := newBox(t, lower)
			e := newEngine(t, bpf.Options{}, Config{})
			h, err := e.Arm(t.Context(), b.target(), MakePlan([]policy.Probe{{ID: "p", Type: policy.Uprobe, File: "/bin/inlined", Symbols: []string{"checked", "first"}}},
				merged(t, rootfs(b), &Inspector{}), Host()))
			must(t, err)
			defer h.Close()
			b.runAt("bin/inlined", nil, "9")
			for _, s := range h.Sites {
				c, _ := h.Counter(s)
				t.Logf("%s at %#x in %q: %s %s %s, %d hits", s.Symbol, s.Offset, s.InlinedIn, s.Kind, s.Reason, s.Detail, c.Count)
			}
			// Each instance is armed or says why not: compilers also put parts of
			// one elsewhere.
			hits := map[string]uint64{}
			for _, s := range h.Sites {
				if s.Armed == (s.Reason != "") || s.InlinedIn == "" && s.Symbol == "checked" {
					t.Errorf("%+v", s)
				}
				if c, err := h.Counter(s); s.Armed && err == nil {
					hits[s.Symbol+" in "+s.InlinedIn] = max(hits[s.Symbol+" in "+s.InlinedIn], c.Count)
				}
			}
			if hits["checked in first"] != 1 || hits["checked in second"] != 9 || hits["first in "] != 1 {
				t.Errorf("%v", hits)
			}
		})
	}
}

const ifuncProgram = `#define KEPT __attribute__((noinline, noclone, used, externally_visible))
KEPT int fast(int n) { return n + 2; }
KEPT int slow(int n) { return n + 1; }
static int (*choose(void))(int) { return fast; }
int work(int) __attribute__((ifunc("choose")));
int main(int argc, char **argv) {
	int n = argc;
	for (int i = 0; i < 5; i++) n = work(n);
	return n == 0;
}
`

// A hit of what chooses an IFUNC's code is no hit of the function.
func TestImplementationsOfIFUNC(t *testing.T) {
	lower := newLower(t)
	compiled(t, lower, "chosen", ifuncProgram, "gcc", "-O2", "-g", "-static")
	b := newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{})
	h, err := e.Arm(t.Context(), b.target(), MakePlan([]policy.Probe{{ID: "p", Type: policy.Uprobe, File: "/bin/chosen", Symbols: []string{"work"}}},
		merged(t, rootfs(b), &Inspector{}), Host()))
	must(t, err)
	defer h.Close()
	b.runAt("bin/chosen", nil)
	for _, s := range h.Sites {
		c, _ := h.Counter(s)
		t.Logf("%s at %#x implements %q: %s %s %s, %d hits", s.Symbol, s.Offset, s.Implements, s.Kind, s.Reason, s.Detail, c.Count)
		if s.Implements == "" && !strings.Contains(s.Detail, "resolver") {
			t.Errorf("%s: the resolver speaks for the function", s.Symbol)
		}
		if want := map[string]uint64{"fast": 5}[s.Symbol]; s.Armed && c.Count != want {
			t.Errorf("%s: %d hits, want %d", s.Symbol, c.Count, want)
		}
	}
}

func rootfs(b *box) image.Rootfs {
	return image.Rootfs{Layers: []image.Layer{{Dir: b.lower}}, Upper: b.upper}
}

const cppProgram = `#include <cstdlib>
namespace http {
struct Parser { int n; __attribute__((noinline)) int feed(int x) { asm volatile(""); return n += x; } __attribute__((noinline)) void end() { asm volatile(""); } };
template <typename T> __attribute__((noinline)) T most(T a, T b) { asm volatile(""); return a > b ? a : b; }
}
int main(int argc, char **argv) {
	http::Parser p{0};
	int n = atoi(argv[1]);
	for (int i = 0; i < n; i++) p.feed(i);
	p.end();
	return http::most<int>(p.n, 1) == 0 || http::most<long>(p.n, 1) == 0;
}
`

// C++ functions by the names that their author knows, exactly and by pattern; a
// function that both find has one site.
func TestNamesOfCPP(t *testing.T) {
	lower := newLower(t)
	compiled(t, lower, "parser", cppProgram, "g++", "-x", "c++", "-O1", "-static")
	b := newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{})
	h, err := e.Arm(t.Context(), b.target(), MakePlan([]policy.Probe{{
		ID: "p", Type: policy.Uprobe, File: "/bin/parser", Symbols: []string{"http::Parser::feed", "http::Parser::gone"},
		SymbolGlobs: []string{"http::Parser::*"}, SymbolRegexps: []string{`^http::most<(int|long)>$`},
	}}, merged(t, rootfs(b), &Inspector{}), Host()))
	must(t, err)
	defer h.Close()
	b.runAt("bin/parser", nil, "6")
	var got []string
	for _, s := range h.Sites {
		var c bpf.Counter
		if s.Armed {
			c, err = h.Counter(s)
			must(t, err)
		}
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s by %s: %d %s", s.Demangled, s.Wanted, c.Count, s.Reason)))
	}
	want := []string{
		"http::Parser::feed(int) by http::Parser::feed: 6", " by http::Parser::gone: 0 symbolNotFound", "http::Parser::end() by http::Parser::*: 1",
		`int http::most<int>(int, int) by ^http::most<(int|long)>$: 1`, `long http::most<long>(long, long) by ^http::most<(int|long)>$: 1`,
	}
	slices.Sort(got[3:])
	for i := range want {
		want[i] = strings.TrimSpace(want[i])
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// A glob or a regular expression that a policy may have can be asked for.
func FuzzPatternsAreTaken(f *testing.F) {
	for _, s := range []string{"*", "a[b-d]?", `main.(\*T).*`, "^SSL_(read|write)$", "(?i)a{1,5}", "[[:alpha:]]", `\pL`, "x*", "{closure#0}"} {
		f.Add(s)
	}
	need.Command(f, "gcc")
	bin, err := target()
	must(f, err)
	b, err := os.ReadFile(bin)
	must(f, err)
	f.Fuzz(func(t *testing.T, pattern string) {
		quoted, err := json.Marshal(pattern) // YAML reads JSON's strings
		if err != nil {
			return
		}
		for _, key := range []string{"symbolGlobs", "symbolRegexps"} {
			p, err := policy.Parse("f", fmt.Appendf(nil, "name: n\nprobes: [{id: p, type: uprobe, file: /a, %s: [%s]}]\n", key, quoted))
			if err != nil {
				continue
			}
			_, _, err = symbol.Read(bytes.NewReader(b), int64(len(b)), (&planner{pr: p.Probes[0]}).query(), symbol.Limits{})
			if err != nil {
				t.Errorf("%s %q: %v", key, pattern, err)
			}
		}
	})
}
