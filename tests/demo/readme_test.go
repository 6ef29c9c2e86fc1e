package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"probity/tests/need"
	"probity/tests/runtimes"
	"probity/tests/schemas"
)

// The README shows what the demo prints. A fresh run must print the same, but
// for ids, times and where the compiler puts functions.
func TestReadmeShowsARealRun(t *testing.T) {
	need.Root(t)
	need.BPF(t)
	need.Podman(t)
	need.Command(t, "gcc")
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	demo := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.Command("go", "build", "-o", demo, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	bins := runtimes.Programs(t)
	kept := filepath.Join(t.TempDir(), "kept")
	cmd := exec.Command(demo, "-source", root, "-bin", filepath.Dir(bins.Probity), "-out", kept)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("demo: %v\n%s", err, out)
	}
	schemas.Spool(t, filepath.Join(kept, "spool"))
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, shown, ok := strings.Cut(string(readme), "<!-- demo: ")
	if ok {
		_, shown, ok = strings.Cut(shown, "```text\n")
	}
	if !ok {
		t.Fatal("README.md has no block after <!-- demo:")
	}
	shown, _, _ = strings.Cut(shown, "```")
	_, printed, _ := strings.Cut(string(out), "== Its verification: probity verify SPOOL --key node.pub\n")
	printed, _, _ = strings.Cut(printed, "\n== Kept in ")
	if a, b := settle(shown), settle(printed); a != b {
		t.Errorf("README.md shows\n%s\nthe demo prints\n%s", a, b)
	}
}

// varying is what differs from run to run and from machine to machine.
var varying = []struct {
	re *regexp.Regexp
	to string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+Z`), "TIME"},
	{regexp.MustCompile(`SHA256:[A-Za-z0-9+/]{43}`), "KEY"},
	{regexp.MustCompile(`\+0x[0-9a-f]+`), "+OFFSET"},
	{regexp.MustCompile(`\b[0-9a-f]{12}\b`), "ID"},
	// How many chunks and lines there are depends on how fast the machine is.
	{regexp.MustCompile(`\d+ sound chunks? of \d+ files?, \d+ lines`), "N sound chunks of N files, N lines"},
	{regexp.MustCompile(`/probity/[0-9a-f]{16}: \d+ leaves up to TIME, \d+ chunks?, \d+ heartbeats?`), "/probity/INSTANCE: N leaves up to TIME"},
	{regexp.MustCompile(`tracepoint|rawTracepoint`), "TRACEPOINT"},
	{regexp.MustCompile(` +`), " "},
}

func settle(s string) string {
	for _, v := range varying {
		s = v.re.ReplaceAllString(s, v.to)
	}
	return strings.TrimSpace(s)
}
