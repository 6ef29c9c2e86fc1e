package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every row of the catalogue names the tests that provoke it, and they are
// there; or it says why there is none.
func TestBlindSpots(t *testing.T) {
	data, err := os.ReadFile("blind-spots.md")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile("`([a-z/]+) (Test[A-Za-z0-9]+)([^`]*)`")
	rows := 0
	for i, line := range strings.Split(string(data), "\n") {
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 3 {
			t.Errorf("line %d: %d columns", i+1, len(cells))
			continue
		}
		last := strings.TrimSpace(cells[2])
		if last == "test" {
			continue
		}
		rows++
		found := name.FindAllStringSubmatch(last, -1)
		if len(found) == 0 && !strings.HasPrefix(last, "None") {
			t.Errorf("line %d names no test: %s", i+1, last)
		}
		for _, m := range found {
			if !has(t, m[1], "\nfunc "+m[2]+"(") {
				t.Errorf("line %d: there is no %s in %s", i+1, m[2], m[1])
			}
			// A part is called as its test's table has it; go test writes a space
			// as _.
			for part := range strings.SplitSeq(strings.TrimPrefix(m[3], "/"), "/") {
				if part != "" && !has(t, m[1], `"`+part+`"`) && !has(t, m[1], `"`+strings.ReplaceAll(part, "_", " ")+`"`) {
					t.Errorf("line %d: %s in %s has no part %s", i+1, m[2], m[1], part)
				}
			}
		}
	}
	if rows < 40 {
		t.Errorf("%d rows: the table is not read", rows)
	}
}

// has says whether the tests of dir contain text.
func has(t *testing.T, dir, text string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", filepath.FromSlash(dir), "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), text) {
			return true
		}
	}
	return false
}
