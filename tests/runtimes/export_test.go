package runtimes

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"probity/evidence"
	"probity/evidence/export"
	"probity/tests/stellaops"
)

// exported writes a spool as StellaOps' runtime evidence, holds each line to the rules
// that are published for it, and wants records of these types and of no other.
func exported(t *testing.T, a *Agent, types ...string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "export")
	code, out, errs := a.Probity(t, "evidence", "export", a.Spool, "--key", a.Key(), "--format", "stellaops-runtime-evidence", "--out", dir, "-o", "json")
	if code != 0 {
		t.Fatalf("export: exit code %d\n%s%s", code, out, errs)
	}
	var rep export.Report
	if err := json.Unmarshal([]byte(out), &rep); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	counted := rep.Records
	for _, n := range rep.LeftOut {
		counted += n
	}
	if counted != rep.States[evidence.Hit] {
		t.Errorf("%d sites and entries were hit, %d are counted\n%s", rep.States[evidence.Hit], counted, out)
	}
	seen, err := stellaops.Check(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range types {
		if seen[typ] == 0 {
			t.Errorf("no %s was exported\n%s", typ, out)
		}
	}
	if len(seen) != len(types) {
		t.Errorf("exported %v, want only %v", seen, types)
	}
}
