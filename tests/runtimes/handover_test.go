package runtimes

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"probity/evidence"
	"probity/evidence/spool"
)

// A consumer takes the evidence of a container, says so, and the agent removes it:
// what is left says who removed it, and what the consumer keeps outside shows a
// spool that is put back to an earlier state.
func TestHandOver(t *testing.T) {
	p := NewPodman(t)
	d := podmanDriver{p}
	a := StartAgent(t, d.agent(AgentOptions{Policies: []string{targetPolicy}}))
	d.attach(t, a)
	targetImage(t, d)
	run := func() {
		p.Run(t, targetName, "hello")
		a.WaitIdle(t)
	}
	ask := func(into any, args ...string) {
		t.Helper()
		code, out, errs := a.Probity(t, append(args, "-o", "json")...)
		if code != 0 {
			t.Fatalf("%v: exit code %d\n%s%s", args, code, out, errs)
		}
		if err := json.Unmarshal([]byte(out), into); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	run()
	early := filepath.Join(t.TempDir(), "spool")
	if err := os.CopyFS(early, os.DirFS(a.Spool)); err != nil {
		t.Fatal(err)
	}
	run()
	var items []spool.Item
	ask(&items, "evidence", "pending", a.Spool, "--consumer", "ship")
	if len(items) < 2 {
		t.Fatalf("pending: %+v", items)
	}
	var ack evidence.Ack
	ask(&ack, "evidence", "ack", a.Spool, "--consumer", "ship")
	ask(&items, "evidence", "pending", a.Spool, "--consumer", "ship")
	if len(items) != 0 {
		t.Errorf("pending after the acknowledgement: %+v", items)
	}
	var gone struct{ Chunks int }
	ask(&gone, "evidence", "gc", "--admin-socket", a.AdminSocket)
	if gone.Chunks < 2 {
		t.Errorf("removed %d chunks", gone.Chunks)
	}
	run()
	a.Stop(t)
	if out := a.Verify(t); !strings.Contains(out, "removed by the node itself") || !strings.Contains(out, "log: sound") {
		t.Errorf("verify says\n%s", out)
	}
	// What the consumer kept, against the spool as it was before.
	kept := filepath.Join(t.TempDir(), "kept.json")
	b, err := json.Marshal(ack)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kept, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := a.Probity(t, "verify", a.Spool, "--key", a.Key(), "--checkpoint", kept); code != 0 {
		t.Errorf("against what was kept: exit code %d\n%s%s", code, out, errs)
	}
	if code, out, errs := a.Probity(t, "verify", early, "--key", a.Key(), "--checkpoint", kept); code != 1 || !strings.Contains(out, "rolledBack") {
		t.Errorf("an earlier spool against what was kept: exit code %d\n%s%s", code, out, errs)
	}
	if code, _, errs := a.Probity(t, "evidence", "ack", a.Spool, "--consumer", "Ship"); code != 2 || !strings.Contains(errs, "lower-case") {
		t.Errorf("a bad name: exit code %d, %s", code, errs)
	}
}
