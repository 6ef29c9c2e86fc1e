package runtimes

import (
	"path/filepath"
	"testing"

	"probity/tests/stellaops"
)

// exported writes a spool as StellaOps' runtime evidence, holds each line to the rules
// that are published for it, and wants records of these types and of no other.
func exported(t *testing.T, a *Agent, types ...string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "export")
	code, out, errs := a.Probity(t, "evidence", "export", a.Spool, "--key", a.Key(), "--format", "stellaops-runtime-evidence", "--out", dir)
	if code != 0 {
		t.Fatalf("export: exit code %d\n%s%s", code, out, errs)
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
