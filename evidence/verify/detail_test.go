package verify_test

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/verify"
)

var update = flag.Bool("update", false, "write testdata again")

const vector2 = "../testdata/0000000000000008-00112233445566ff.ndjson"

// The second vector's table, as a person sees it. Look at it before you write it
// again.
func TestTableOfVector(t *testing.T) {
	rep, err := check(t, signer(t).Public(), vector2)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := rep.WriteTable(&got); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/table.txt"
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := string(read(t, golden)); got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &got, want)
	}
}

// lines2 decodes the second vector's lines anew.
func lines2(t *testing.T) (lines []evidence.Line) {
	t.Helper()
	all := strings.Split(strings.TrimSuffix(string(read(t, vector2)), "\n"), "\n")
	for _, x := range all[1 : len(all)-1] {
		l, err := evidence.Decode(x)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, l)
	}
	return lines
}

func later(t evidence.Time, d time.Duration) evidence.Time { return evidence.TimeOf(t.Std().Add(d)) }

// chunks2 verifies chunks of version 2 with these lines.
func chunks2(t *testing.T, chunks ...[]evidence.Line) verify.Report {
	t.Helper()
	dir := t.TempDir()
	for i, lines := range chunks {
		name, data := chunk2(t, uint64(i+1), lines)
		put(t, dir, name, data)
	}
	rep, err := check(t, signer(t).Public(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func rows(rep verify.Report, set string) (own, entries []verify.Row) {
	for _, r := range rep.Rows {
		switch {
		case r.Set != set:
		case r.Entry == nil:
			own = append(own, r)
		default:
			entries = append(entries, r)
		}
	}
	return own, entries
}

// Entries are told apart by all but their first parent; the latest line of each
// counts; and where the run has ended, so have they.
func TestEntryRows(t *testing.T) {
	lines := lines2(t)
	cov := *lines[0].(*evidence.Coverage)
	exec := *lines[9].(*evidence.Observation)
	exec.Entry = &evidence.Entry{Parent: exec.Entry.Parent} // under no other name
	lines[9] = &exec
	again := exec
	again.Count, again.Entry = new(evidence.Uint64), &evidence.Entry{Parent: &evidence.Process{Pid: 1, Comm: "other"}}
	*again.Count, again.LastAt, again.To = 7, later(exec.LastAt, time.Millisecond), later(exec.To, time.Second)
	digest := exec
	digest.FileDigest = strings.Replace(exec.FileDigest, "44", "45", 1)
	accept := *lines[11].(*evidence.Observation)
	accept.Entry = &evidence.Entry{Operation: "accept", Protocol: "tcp", Family: "ipv6", Address: "2001:db8::1", Port: 443}
	end := cov
	end.Final, end.To = true, later(cov.To, time.Hour)
	alias, session := exec, exec
	alias.Entry = &evidence.Entry{Argument: "/usr/bin/wget"}
	session.Process = &evidence.Process{Pid: 9, Session: evidence.SessionExec}
	rep := chunks2(t, lines, []evidence.Line{&again, &digest, &accept}, []evidence.Line{&alias, &session, &end})
	if !rep.Sound() {
		t.Fatal(rep.Findings)
	}
	_, entries := rows(rep, evidence.SetExec)
	if len(entries) != 4 {
		t.Fatalf("%d entries of exec", len(entries))
	}
	for _, r := range entries {
		if r.Entry.Argument != "" || r.Process.Session != "" {
			continue // others
		}
		if want := map[string]uint64{exec.FileDigest: 7, digest.FileDigest: 2}[r.FileDigest]; uint64(*r.Count) != want || !r.Final || r.To != end.To {
			t.Errorf("%+v", r)
		}
	}
	if _, entries := rows(rep, evidence.SetNetwork); len(entries) != 2 || entries[0].Entry.Operation != "accept" {
		t.Errorf("%d entries of network: %+v", len(entries), entries)
	}
}

// A file of the image and its copy in the writable layer are two sites: what is
// said of the copy supersedes nothing that was said of the image.
func TestCopiedUpIsAnotherRow(t *testing.T) {
	lines := lines2(t)
	image := *lines[1].(*evidence.Observation)
	copied := image
	copied.Origin, copied.LayerDiffID = "upper", ""
	origins := map[string]bool{}
	for _, r := range chunks2(t, lines, []evidence.Line{&copied}).Rows {
		if r.ProbeID == image.ProbeID && r.Symbol == image.Symbol && r.Path == image.Path {
			origins[r.Origin] = true
		}
	}
	if image.Origin == "" || !origins[image.Origin] || !origins["upper"] {
		t.Errorf("rows of the origins %v, the image's is %q", origins, image.Origin)
	}
}

// A coverage line is hours old at times; what the rows say since then is not.
func TestProbeStateIsNotOlderThanRows(t *testing.T) {
	lines := lines2(t)
	cov := *lines[0].(*evidence.Coverage)
	cov.Probes = []evidence.ProbeFold{
		{ProbeID: "set-network", State: evidence.ArmedNoHit, Sites: 1, SearchComplete: true},
		{ProbeID: "go", State: evidence.ArmedNoHit, Sites: 1, SearchComplete: true},
		{ProbeID: "set-exec-of-another-probe", State: evidence.ArmedNoHit, Sites: 1, SearchComplete: true},
		{ProbeID: "gc", State: evidence.Partial, Sites: 2, SearchReason: "a bound was reached"},
	}
	lines[0] = &cov
	want := map[string]evidence.State{"set-network": evidence.Hit, "go": evidence.Partial, "set-exec-of-another-probe": evidence.ArmedNoHit, "gc": evidence.Hit}
	for _, r := range chunks2(t, lines).Rows {
		if r.ProbeState != want[r.ProbeID] {
			t.Errorf("%s is %q, want %q", r.ProbeID, r.ProbeState, want[r.ProbeID])
		}
	}
}

// A later gap is only of the sites that it names: those of a probe type, or one
// instruction of several of a symbol.
func TestGapsOfSomeSites(t *testing.T) {
	lines := lines2(t)
	u, k := lines[1].(*evidence.Observation), lines[4].(*evidence.Observation)
	at := later(k.From, time.Millisecond)
	misses := &evidence.Gap{GapID: "m", Scope: evidence.ScopeRun, Reason: evidence.GapKernelMissed, From: at, RunID: k.RunID, ContainerID: k.ContainerID, ProbeType: evidence.Kprobe}
	stood := &evidence.Gap{
		GapID: "s", Scope: evidence.ScopeSite, Reason: evidence.GapBudgetDisarm, From: at, RunID: u.RunID, ContainerID: u.ContainerID,
		Path: u.Path, ProbeID: u.ProbeID, Symbol: u.Symbol, Offset: u.Offset,
	}
	function := &evidence.Gap{
		GapID: "f", Scope: evidence.ScopeSite, Reason: evidence.GapStoodDown, From: at, RunID: u.RunID, ContainerID: u.ContainerID, ProbeID: k.ProbeID, Symbol: "another_function",
	}
	incomplete := map[string]bool{}
	for _, r := range chunks2(t, lines[:7], []evidence.Line{misses, stood, function}).Rows {
		if !r.Complete {
			incomplete[string(r.ProbeType)+" "+r.Symbol+r.Function+" "+r.SymbolKind] = true
		}
		if r.Function != "" && len(r.Gaps) != 1 {
			t.Errorf("%s has the gaps %v", r.Function, r.Gaps)
		}
	}
	want := []string{"uprobe " + u.Symbol + " func", "kprobe " + k.Function + " ", "uprobe main.work func"} // the last by its own line
	if len(incomplete) != len(want) || !incomplete[want[0]] || !incomplete[want[1]] || !incomplete[want[2]] {
		t.Errorf("gaps of %v, want %v", incomplete, want)
	}
}

// A confidence is computed from what the line itself says of the symbol.
func TestConfidenceOfSymbol(t *testing.T) {
	for name, change := range map[string]func([]evidence.Line){
		"inlined as an offset":     func(l []evidence.Line) { l[2].(*evidence.Observation).Confidence.Inputs.Symbol = "offset" },
		"kernel function as event": func(l []evidence.Line) { l[4].(*evidence.Observation).Confidence.Inputs.Symbol = "event" },
	} {
		lines := lines2(t)
		change(lines)
		rep := chunks2(t, lines)
		if len(rep.Findings) != 1 || !strings.Contains(rep.Findings[0].Reason, "computed for the symbol") {
			t.Errorf("%s: %v", name, rep.Findings)
		}
	}
}
