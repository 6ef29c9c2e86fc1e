package symbol

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"probity/tests/need"
)

func goProgram(t testing.TB, env []string, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	src, err := os.ReadFile("testdata/fips.go.txt")
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"main.go": src, "go.mod": []byte("module selfhashed\ngo 1.24\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	command(t, dir, append(env, "GOFLAGS=", "GOWORK=off"), "go", append([]string{"build", "-o", "out"}, args...)...)
	return filepath.Join(dir, "out")
}

func TestGoFIPS(t *testing.T) {
	for name, args := range map[string][]string{
		"plain":        nil,
		"pie":          {"-buildmode=pie"},
		"stripped":     {"-ldflags=-s -w"},
		"external pie": {"-buildmode=pie", "-ldflags=-linkmode=external"},
	} {
		t.Run(name, func(t *testing.T) {
			var env []string
			if name == "external pie" {
				need.Command(t, "gcc")
				env = []string{"CGO_ENABLED=1"}
			}
			path := goProgram(t, env, args...)
			f, _ := readFile(t, path)
			if !f.Go || f.Stripped != (name == "stripped") || len(f.SelfHashed) != 1 || !f.HasEntry {
				t.Fatalf("%+v", f)
			}
			if name != "stripped" {
				checkFIPSSymbols(t, path)
			}
			checkFIPSBoundary(t, path, f.SelfHashed[0])
		})
	}
}

// checkFIPSSymbols compares with what the linker's own symbols say.
func checkFIPSSymbols(t *testing.T, path string) {
	ef := oracle(t, path)
	list, err := ef.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, s := range list {
		want = append(want, s.Name)
	}
	f, syms := readFile(t, path, want...)
	inside, outside := 0, 0
	for name, list := range syms {
		for _, s := range list {
			// The package itself and those below it, not what wraps them:
			// type..eq and the like are data-driven and not hashed.
			module := strings.HasPrefix(name, "crypto/internal/fips140/") || strings.HasPrefix(name, "crypto/internal/fips140.")
			switch {
			case name == "go:textfipsstart" && s.Offset != f.SelfHashed[0].Start, name == "go:textfipsend" && s.Offset != f.SelfHashed[0].End:
				t.Errorf("%s at %#x, range %#x", name, s.Offset, f.SelfHashed)
			case module && f.WouldBreak(s.Offset):
				inside++
			case module:
				t.Errorf("%s at %#x is not in %#x", name, s.Offset, f.SelfHashed)
			case strings.HasPrefix(name, "main.") || strings.HasPrefix(name, "runtime.") || strings.HasPrefix(name, "fmt."):
				outside++
				if f.WouldBreak(s.Offset) {
					t.Errorf("%s at %#x is in %#x", name, s.Offset, f.SelfHashed)
				}
			}
		}
	}
	if inside < 100 || outside < 500 || len(syms["main.main"]) != 1 || len(syms["main.target"]) != 1 {
		t.Errorf("%d functions inside, %d outside, main %+v", inside, outside, syms["main.main"])
	}
}

// checkFIPSBoundary writes a breakpoint's byte to the edges of the range and
// lets the program say whether it notices.
func checkFIPSBoundary(t *testing.T, path string, r Range) {
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		at      uint64
		notices bool
	}{{"first", r.Start, true}, {"last", r.End - 1, true}, {"behind", r.End, false}} {
		b := bytes.Clone(whole)
		b[c.at] ^= 0x55
		changed := path + "." + c.name
		if err := os.WriteFile(changed, b, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(changed)
		cmd.Env = append(os.Environ(), "GODEBUG=fips140=on")
		out, err := cmd.CombinedOutput()
		if noticed := err != nil; noticed != c.notices || noticed && !bytes.Contains(out, []byte("fips140: verification mismatch")) {
			t.Errorf("%s byte, %#x, changed: %v\n%s", c.name, c.at, err, out)
		}
	}
}

// A range that is not written down in the usual way is still found, or all of
// the text is taken.
func TestGoFIPSHidden(t *testing.T) {
	path := goProgram(t, nil, "-buildmode=pie")
	original, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, _, err := readBytes(original)
	if err != nil {
		t.Fatal(err)
	}
	exact := f.SelfHashed[0]
	info := bytes.Index(original, []byte(fipsMagic))
	noSections := func(b []byte) { clear(b[40:48]) }
	noPointers := func(b []byte) { clear(b[info+48:][:72]) } // as linkers leave what RELA entries fill in
	noDynamic := func(b []byte) {
		for _, ph := range programHeaders(b) {
			if le.Uint32(ph) == uint32(elf.PT_DYNAMIC) {
				le.PutUint32(ph, uint32(elf.PT_NULL))
			}
		}
	}
	noName := func(b []byte) {
		i := bytes.LastIndex(b, []byte(fipsSection+"\x00"))
		copy(b[i:], ".renamed")
	}
	badEnd := func(b []byte) { le.PutUint64(b[info+64:], 1<<40) }
	for _, c := range []struct {
		name   string
		change []func([]byte)
		exact  bool
	}{
		{"no section headers", []func([]byte){noSections}, true},
		{"section renamed", []func([]byte){noName}, true},
		{"pointers in relocations only", []func([]byte){noPointers}, true},
		{"pointers nowhere", []func([]byte){noPointers, noDynamic}, false},
		{"end outside", []func([]byte){badEnd}, false},
	} {
		b := bytes.Clone(original)
		for _, change := range c.change {
			change(b)
		}
		f, syms, err := readBytes(b, "main.main")
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if !f.Go || len(f.SelfHashed) != 1 || (f.SelfHashed[0] == exact) != c.exact {
			t.Errorf("%s: %+v, usually %+v", c.name, f.SelfHashed, exact)
		}
		if !c.exact && (len(syms["main.main"]) != 1 || !f.WouldBreak(syms["main.main"][0].Offset)) {
			t.Errorf("%s: %+v does not hold main.main %+v", c.name, f.SelfHashed, syms)
		}
	}
}

func TestGoBoring(t *testing.T) {
	need.Command(t, "gcc")
	for _, flags := range []string{"", "-s -w"} {
		path := goProgram(t, []string{"GOEXPERIMENT=boringcrypto", "CGO_ENABLED=1"}, "-ldflags="+flags)
		f, _ := readFile(t, path)
		if !f.Go || len(f.SelfHashed) != 1 || !f.WouldBreak(f.Entry) {
			t.Errorf("ldflags %q: %+v", flags, f)
		}
	}
}

// A C program that has BoringSSL's labels.
func TestBoringLabels(t *testing.T) {
	src := filepath.Join(t.TempDir(), "boring.s")
	text := ".text\n.globl before\n.type before,%function\nbefore: nop\nBORINGSSL_bcm_text_start:\n.globl hashed\n.type hashed,%function\nhashed: nop\n nop\n nop\n nop\n" +
		"BORINGSSL_bcm_text_end:\n.globl _start\n.type _start,%function\n_start: nop\n"
	if err := os.WriteFile(src, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	f, syms := readFile(t, gcc(t, "-nostdlib", "-static", src), "before", "hashed", "_start")
	for name, want := range map[string]bool{"before": false, "hashed": true, "_start": false} {
		if s := syms[name]; len(s) != 1 || f.WouldBreak(s[0].Offset) != want {
			t.Errorf("%s: %+v, range %+v", name, s, f.SelfHashed)
		}
	}
}

// Other modules that hash their text in memory, by their labels and without.
func TestHashedModules(t *testing.T) {
	const labels = "{first}: nop\n.globl hashed\n.type hashed,%function\nhashed: nop\n nop\n nop\n nop\n{last}: nop\n"
	const print = ".section .rodata\n.asciz \"{text}\"\n.text\n"
	function := func(name string) string {
		return ".globl " + name + "\n.type " + name + ",%function\n" + name + ": nop\n"
	}
	wolf := strings.NewReplacer("{first}", "wolfCrypt_FIPS_first", "{last}", "wolfCrypt_FIPS_last")
	for _, c := range []struct {
		name, text string
		args       []string
		want       map[string]bool
	}{
		{"wolfCrypt", wolf.Replace(labels), nil, map[string]bool{"before": false, "hashed": true, "_start": false}},
		{"wolfCrypt, half", wolf.Replace("{first}: nop\n") + function("hashed"), nil, map[string]bool{"before": true, "hashed": true, "_start": true}},
		{"wolfCrypt, stripped", function(wolfCheck), []string{"-s", "-shared"}, map[string]bool{"before": true}},
		{"OpenSSL 1.0", function(opensslHash), nil, map[string]bool{"before": true}},
		{"BoringSSL, stripped", strings.ReplaceAll(print, "{text}", "FIPS integrity test failed.\\nExpected: "), []string{"-s", "-shared"}, map[string]bool{"before": true}},
		{"AWS-LC, stripped", strings.ReplaceAll(print, "{text}", "FIPS integrity test") + strings.ReplaceAll(print, "{text}", "%s failed.\\nExpected: "), []string{"-s", "-shared"}, map[string]bool{"before": true}},
		{"none", strings.ReplaceAll(print, "{text}", "FIPS integrity test passed"), []string{"-s", "-shared"}, map[string]bool{"before": false}},
	} {
		src := filepath.Join(t.TempDir(), "module.s")
		text := ".text\n" + function("before") + c.text + function("_start")
		if err := os.WriteFile(src, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		args := c.args
		if args == nil {
			args = []string{"-static"}
		}
		f, syms := readFile(t, gcc(t, append(args, "-nostdlib", src)...), "before", "hashed", "_start")
		for name, want := range c.want {
			if s := syms[name]; len(s) != 1 || f.WouldBreak(s[0].Offset) != want {
				t.Errorf("%s: %s: %+v, range %+v", c.name, name, s, f.SelfHashed)
			}
		}
	}
}

// A pattern is found wherever it lies, also across two pieces of a stream.
func TestSearch(t *testing.T) {
	for _, at := range []int{0, 1, streamBuffer - len(boringTest), streamBuffer - 5, streamBuffer - 1, streamBuffer, 3*streamBuffer - len(boringTest)} {
		b := make([]byte, 3*streamBuffer)
		copy(b[at:], boringTest)
		p := &parser{src: source{r: bytes.NewReader(b), size: uint64(len(b))}}
		if got, err := p.search(extent{0, uint64(len(b))}, "x", boringTest); err != nil || len(got) != 1 || got[boringTest] != uint64(at) {
			t.Errorf("at %d: %v, %v", at, got, err)
		}
	}
}

func TestForeign(t *testing.T) {
	b := tiny().bytes()
	le.PutUint16(b[18:], uint16(elf.EM_PPC64))
	if _, _, err := readBytes(b); !errors.Is(err, ErrForeign) {
		t.Errorf("ppc64: %v", err)
	}
	other := elf.EM_AARCH64
	if runtime.GOARCH == "arm64" {
		other = elf.EM_X86_64
	}
	le.PutUint16(b[18:], uint16(other))
	if _, _, err := readBytes(b); !errors.Is(err, ErrForeign) {
		t.Errorf("%v: %v", other, err)
	}
	b[elf.EI_DATA] = byte(elf.ELFDATA2MSB)
	if _, _, err := readBytes(b); !errors.Is(err, ErrForeign) {
		t.Errorf("big-endian: %v", err)
	}
}
