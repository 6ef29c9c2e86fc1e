package schemas

import (
	"os"
	"strings"
	"testing"

	"probity/evidence"
)

// Every value of the format's closed lists is shown by somebody's evidence, or it is said
// why not, and nothing else is in the lists.
func TestEverythingIsShownOrSaid(t *testing.T) {
	want := map[string]bool{}
	add := func(prefix, value string) { want[prefix+value] = true }
	for _, k := range []string{"header", "envelope", "statement", evidence.KindCoverage, evidence.KindObservation, evidence.KindGap} {
		add("line ", k)
	}
	for _, s := range evidence.States {
		add("state ", string(s))
	}
	for _, p := range evidence.ProbeTypes {
		add("probe type ", string(p))
	}
	for _, s := range evidence.Sets {
		add("set ", s)
		add("entry of ", s)
	}
	for _, s := range evidence.Scopes {
		add("scope ", s)
	}
	for _, r := range evidence.GapReasons {
		add("gap ", string(r))
	}
	for _, r := range evidence.NotArmedReasons {
		add("not armed ", string(r))
	}
	for what := range want {
		if (len(Shown[what]) == 0) == (Nobody[what] == "") {
			t.Errorf("%q: say in shown.go which tests show it, or why none do", what)
		}
	}
	for what := range Shown {
		if !want[what] && !want["gap "+strings.TrimPrefix(what, "gap of a site ")] {
			t.Errorf("%q is shown, and is nothing", what)
		}
	}
	for what := range Nobody {
		if !want[what] {
			t.Errorf("%q is not shown, and is nothing", what)
		}
	}
}

// A chunk with one thing that the schemas do not allow is refused, wherever it is, and
// what was not seen fails the run.
func TestSees(t *testing.T) {
	b, err := os.ReadFile("../../evidence/testdata/0000000000000008-00112233445566ff.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	if err := chunk(b); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]string{
		{`"kind":"header",`, `"kind":"header","x":1,`}, {`"state":"hit"`, `"state":"hot"`}, {`"payloadType"`, `"payloadtype"`},
		{`"payload":"`, `"payload":"AAAA`}, {`"scope":"run"`, `"scope":"all"`}, {`"kind":"gap"`, `"kind":"gaps"`},
	} {
		bad := strings.Replace(string(b), c[0], c[1], 1)
		if err := chunk([]byte(bad)); bad == string(b) || err == nil {
			t.Errorf("%s as %s is taken", c[0], c[1])
		}
	}
	mu.Lock()
	was := seen
	seen = map[string]bool{}
	mu.Unlock()
	defer func() { seen = was }()
	if !filtered() && (Done(witness, false, 0) != 1 || Done("another", false, 0) != 0) {
		t.Error("nothing was seen, and nobody says so")
	}
	t.Setenv("PROBITY_REQUIRE", "")
	if Done(agent, true, 0) != 0 || Done(agent, true, 2) != 2 {
		t.Error("tests that may be skipped have to show everything")
	}
}
