package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// What docs/keys.md shows is what is printed, but for keys and times.
func TestDocumentedKeys(t *testing.T) {
	doc, err := os.ReadFile("../docs/keys.md")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(doc), "\n```text session\n")
	shown, _, ok := strings.Cut(shown, "```\n")
	if !ok {
		t.Fatal("docs/keys.md has no session")
	}
	dir, printed := t.TempDir(), ""
	for line := range strings.Lines(shown) {
		typed, ok := strings.CutPrefix(line, "$ ")
		if !ok {
			continue
		}
		out, errs, code := command(t, strings.TrimSpace(typed), dir)
		if code != 0 {
			t.Errorf("%s: exit code %d\n%s", typed, code, errs)
		}
		printed += line + strings.ReplaceAll(out+errs, dir, "DIR")
	}
	if nameless(printed) != nameless(shown) {
		t.Errorf("docs/keys.md shows\n%s\nthe commands print\n%s", shown, printed)
	}
}

// nameless has each key's name replaced by when it appears first, and what is random
// otherwise by what it is.
func nameless(session string) string {
	names := map[string]string{}
	session = regexp.MustCompile(`SHA256:[A-Za-z0-9+/]{43}`).ReplaceAllStringFunc(session, func(id string) string {
		if names[id] == "" {
			names[id] = fmt.Sprint("key ", len(names)+1)
		}
		return names[id]
	})
	session = regexp.MustCompile(`[0-9-]{10}T[0-9:]{8}Z`).ReplaceAllString(session, "time")
	return regexp.MustCompile(`MFkw[A-Za-z0-9+/=]{60,}(\n[A-Za-z0-9+/=]{60})?`).ReplaceAllString(session, "public half")
}
