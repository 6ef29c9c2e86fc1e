package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"probity/evidence"
	"probity/evidence/export"
)

// command runs a line that somebody types, DIR being a directory.
func command(t *testing.T, line, dir string) (out, errs string, code int) {
	t.Helper()
	args := strings.Fields(strings.ReplaceAll(line, "DIR", dir))
	for i := 0; i < len(args); i++ {
		if strings.Contains(args[i], "*") {
			names, err := filepath.Glob(args[i])
			if err != nil || len(names) == 0 {
				t.Fatal(args[i], err)
			}
			args = append(args[:i:i], append(names, args[i+1:]...)...)
		}
	}
	if args[0] == "cat" {
		b, err := os.ReadFile(args[1])
		if err != nil {
			t.Fatal(err)
		}
		return string(b), "", 0
	}
	var o, e bytes.Buffer
	code = run(context.Background(), args[1:], strings.NewReader(""), &o, &e)
	return o.String(), e.String(), code
}

// What docs/export.md shows is what is printed.
func TestDocumentedExport(t *testing.T) {
	t.Chdir("..")
	doc, err := os.ReadFile("docs/export.md")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(doc), "\n```text session\n")
	shown, _, ok := strings.Cut(shown, "```\n")
	if !ok {
		t.Fatal("docs/export.md has no session")
	}
	dir, printed := filepath.Join(t.TempDir(), "out"), ""
	for line := range strings.Lines(shown) {
		typed, ok := strings.CutPrefix(line, "$ ")
		if !ok {
			continue
		}
		out, errs, code := command(t, typed, dir)
		if code != 0 {
			t.Errorf("%s: exit code %d\n%s", typed, code, errs)
		}
		printed += line + out + errs
	}
	if printed != shown {
		t.Errorf("docs/export.md shows\n%s\nthe commands print\n%s", shown, printed)
	}
}

// Every site that was hit is a record, or is counted among those that are none.
func TestExportCounts(t *testing.T) {
	t.Chdir("..")
	out, errs, code := command(t, "probity evidence export evidence/testdata/*.ndjson --key evidence/testdata/test.pub --format stellaops-runtime-evidence --out DIR -o json", filepath.Join(t.TempDir(), "out"))
	var rep export.Report
	if err := json.Unmarshal([]byte(out), &rep); err != nil || code != 0 {
		t.Fatalf("exit code %d, %v\n%s%s", code, err, out, errs)
	}
	counted := rep.Records
	for _, n := range rep.LeftOut {
		counted += n
	}
	if counted != rep.States[evidence.Hit] || counted == 0 || rep.States[evidence.ArmedNoHit] == 0 || rep.States[evidence.Partial] == 0 || rep.States[evidence.NotArmed] == 0 || rep.Gaps == 0 {
		t.Errorf("%d are counted\n%s", counted, out)
	}
}
