package verify_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"probity/evidence/verify"
)

// docs/trust.md says of each way to cheat that the tests try what it is found as, and
// of each finding what it means.
func TestTrustPage(t *testing.T) {
	const page, begin, end = "../../docs/trust.md", "-update -->\n", "<!-- end -->"
	b, err := os.ReadFile(page)
	must(t, err)
	head, rest, ok := strings.Cut(string(b), begin)
	got, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatal("the page has no place for the table")
	}
	var want strings.Builder
	want.WriteString("| class | way | found as |\n|---|---|---|\n")
	row := func(class, way string, kinds []verify.Kind) {
		names := make([]string, len(kinds))
		for i, k := range kinds {
			names[i] = "`" + string(k) + "`"
		}
		if kinds == nil {
			names = []string{"**nothing**"}
		}
		fmt.Fprintf(&want, "| %s | %s | %s |\n", class, strings.ReplaceAll(way, "|", `\|`), strings.Join(names, ", "))
	}
	for _, a := range attacks() {
		way := a.way
		if a.anchored {
			way += "; the verifier has a later checkpoint"
		}
		row(a.class, way, a.want)
	}
	for _, m := range mistrusted {
		if m.want != nil {
			row("key", m.why, m.want)
		}
	}
	for _, a := range hostileArchives {
		row("archive", a.why, a.want)
	}
	if got != want.String() {
		if !*update {
			t.Error("the table of ways to cheat is not that of the tests: run with -update")
		} else {
			must(t, os.WriteFile(page, []byte(head+begin+want.String()+end+tail), 0o644))
		}
	}
	for _, k := range verify.Kinds {
		if !strings.Contains(head, "\n| `"+string(k)+"` | ") {
			t.Errorf("the page does not say what %s means", k)
		}
	}
}
