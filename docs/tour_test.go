package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Whatever the tour names is there: each `file Function`, and each `Function` alone in
// one of the files that its paragraph named before.
func TestTour(t *testing.T) {
	b, err := os.ReadFile("tour.md")
	if err != nil {
		t.Fatal(err)
	}
	tour := string(b)
	named := regexp.MustCompile("`(?:([a-z0-9_/]+\\.(?:bpf\\.c|go|h|c)) )?([A-Za-z_]+(?:\\.[A-Za-z]+)?)`")
	n := 0
	_, stations, ok := strings.Cut(tour, "\n## 1. ")
	if !ok {
		t.Fatal("no stations")
	}
	for section := range strings.SplitSeq(stations, "\n## ") {
		var files []string
		for _, m := range named.FindAllStringSubmatch(section, -1) {
			file, name := m[1], m[2]
			switch {
			case file != "":
				n++
				files = append(files, source(t, file))
				if !defines(files[len(files)-1], name) {
					t.Errorf("%s has no %s", file, name)
				}
			case strings.ContainsAny(name, "._"): // a method, or a function in C, of a file that was named
				n++
				found := false
				for _, f := range files {
					found = found || defines(f, name)
				}
				if !found {
					t.Errorf("none of the files named with it has %s", name)
				}
			}
		}
	}
	if n < 40 {
		t.Errorf("%d names: the tour is not read", n)
	}
}

// The line that is followed is one of a chunk that other tests verify.
func TestTourLine(t *testing.T) {
	tour := source(t, "docs/tour.md")
	_, rest, _ := strings.Cut(tour, "```json\n")
	line, _, ok := strings.Cut(rest, "\n```")
	chunk := regexp.MustCompile(`\(\.\./([a-z0-9/-]+\.ndjson)\)`).FindStringSubmatch(tour)
	if !ok || chunk == nil {
		t.Fatal("no line, or no chunk")
	}
	if all := strings.Split(source(t, chunk[1]), "\n"); len(all) < 12 || all[11] != line {
		t.Errorf("line 12 of %s is another", chunk[1])
	}
	for _, row := range strings.Split(tour, "\n") {
		cells := strings.Split(row, "|")
		if len(cells) != 5 || !strings.Contains(cells[1], "`") {
			continue
		}
		for _, m := range regexp.MustCompile("`([A-Za-z]+)`").FindAllStringSubmatch(cells[1], -1) {
			if !strings.Contains(line, `"`+m[1]+`":`) {
				t.Errorf("the line has no %s", m[1])
			}
		}
	}
}

func source(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(path)))
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// defines reports whether a file has a function, a method (Type.Name) or, in C, a
// function or a macro of the name.
func defines(text, name string) bool {
	if of, method, ok := strings.Cut(name, "."); ok {
		return regexp.MustCompile(`(?m)^func \([a-z]+ \*?` + of + `(?:\[\w+\])?\) ` + method + `\(`).MatchString(text)
	}
	return regexp.MustCompile(`(?m)^(?:func |#define |(?:static __always_inline )?[a-z_0-9() ]+ \*?)`+name+`\(`).MatchString(text) ||
		regexp.MustCompile(`(?m)^__attribute__\(\(noinline\)\) int `+name+`\(`).MatchString(text)
}
