package verify_test

import (
	"slices"
	"strings"
	"testing"

	"probity/evidence"
	"probity/evidence/verify"
)

const thirdVector = "../testdata/0000000000000009-00112233445566ff.ndjson"

// What was redacted is shown as that; a file of a name that looks like it is not.
func TestRedactedRows(t *testing.T) {
	rep, err := check(t, signer(t).Public(), thirdVector)
	if err != nil || !rep.Sound() || len(rep.Rows) != 4 || len(rep.Gaps) != 1 {
		t.Fatalf("%v, %v: %d rows, %d gaps", rep.Findings, err, len(rep.Rows), len(rep.Gaps))
	}
	var table strings.Builder
	if err := rep.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"/home/\u2039redacted:home:0123456789abcdef\u203A/lib.so+0x1139",
		"connect tcp \u2039redacted:peers\u203A ",
		"exec \u2039redacted:home\u203A as \u2039redacted:home\u203A",
		`read /tmp/\u2039redacted:home\u203a `, // a real name
		"Redacted by the node's policy before it was signed",
		"  rule peers: entry.address of 1 row, entry.port of 1 row\n",
	} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, table.String())
		}
	}
	if strings.Contains(table.String(), "/tmp/\u2039") {
		t.Errorf("a file's name passes for a mark:\n%s", table.String())
	}
}

// An entry that was redacted and one whose name is what the other's looks like are
// two, in whichever order they come: the one does not take the other's place.
func TestLooksRedacted(t *testing.T) {
	third := read(t, thirdVector)
	var redacted, real evidence.Observation
	for _, l := range strings.Split(string(third), "\n") {
		if strings.Contains(l, `"set":"files"`) {
			v, err := evidence.Decode(l)
			if err != nil {
				t.Fatal(err)
			}
			real = *v.(*evidence.Observation)
		}
	}
	real.ImageDigestReason, real.Redacted = "none", nil
	redacted = real
	redacted.Redacted = []evidence.Redaction{{Member: "path", Rule: "home"}}
	three := evidence.Uint64(3)
	redacted.Count = &three
	for _, order := range [][]evidence.Line{{&real, &redacted}, {&redacted, &real}} {
		name, data := chunk3(t, 1, order)
		rep, err := check(t, signer(t).Public(), put(t, t.TempDir(), name, data))
		if err != nil || len(rep.Rows) != 2 {
			t.Fatalf("%v %v: rows %+v", err, rep.Findings, rep.Rows)
		}
		i := slices.IndexFunc(rep.Rows, func(r verify.Row) bool { return len(r.Redacted) == 1 })
		if i < 0 || *rep.Rows[i].Count != 3 || *rep.Rows[1-i].Count != 2 {
			t.Errorf("rows %+v", rep.Rows)
		}
	}
}

// A gap of a file that was redacted with a token is also one of an entry that was
// redacted without: that it is another file is not known.
func TestGapOfRedactedPath(t *testing.T) {
	third := strings.Split(string(read(t, thirdVector)), "\n")
	var entry *evidence.Observation
	var gap *evidence.Gap
	for _, l := range third[1 : len(third)-2] {
		v, err := evidence.Decode(l)
		if err != nil {
			t.Fatal(err)
		}
		if o, ok := v.(*evidence.Observation); ok && o.Set == evidence.SetFiles {
			entry = o
		}
		if g, ok := v.(*evidence.Gap); ok {
			gap = g
		}
	}
	entry.Path, entry.Redacted = "/home/"+evidence.Mark("home", "")+"/lib.so", append(slices.Clone(entry.Redacted), evidence.Redaction{Member: "path", Rule: "home"})
	for path, want := range map[string]bool{
		"/home/" + evidence.Mark("home", "0123456789abcdef") + "/lib.so":   true,
		"/home/" + evidence.Mark("home", "0123456789abcdef") + "/other.so": false,
		"/home/" + evidence.Mark("work", "0123456789abcdef") + "/lib.so":   false,
	} {
		g := *gap
		g.Path, g.Redacted = path, slices.Clone(gap.Redacted)
		if strings.Contains(path, "work") {
			g.Redacted[0].Rule = "work"
		}
		name, data := chunk3(t, 1, []evidence.Line{entry, &g})
		rep, err := check(t, signer(t).Public(), put(t, t.TempDir(), name, data))
		if err != nil || len(rep.Rows) != 1 {
			t.Fatalf("%v %v: rows %+v", err, rep.Findings, rep.Rows)
		}
		if got := len(rep.Rows[0].Gaps) == 1; got != want {
			t.Errorf("%s: a gap of the entry: %v, want %v", path, got, want)
		}
	}
}
