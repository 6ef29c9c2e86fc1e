package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/redact"
	"probity/evidence/sign"
	"probity/evidence/spool"
)

// noRules redacts nothing.
var noRules *redact.Redactor

// The far side says what it has; the node acknowledges the beginning of it, and
// nothing that it did not log.
func TestAckReceived(t *testing.T) {
	dir := t.TempDir()
	signer, err := sign.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	boot := int64(1e12)
	s, err := spool.Open(spool.Config{Dir: filepath.Join(dir, "spool"), State: filepath.Join(dir, "state"), Node: "n", BootID: "5b1a7f9e-3c0d-4e2a-9b8c-7d6e5f4a3b2c", Signer: signer,
		Clock: func() evidence.Clock {
			boot += 1e6
			return evidence.Clock{BootNs: evidence.Uint64(boot), Wall: evidence.TimeOf(time.Unix(1_700_000_000, boot))}
		}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := s.Append("", func(c evidence.Clock) []redact.Line {
			at := c.Time(int64(c.BootNs))
			return noRules.Lines(&evidence.Gap{GapID: fmt.Sprint(i), Scope: evidence.ScopeNode, Reason: evidence.GapAgentDown, From: at, To: at})
		}); err != nil {
			t.Fatal(err)
		}
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	at, stdin := filepath.Join(dir, "spool"), ""
	ask := func(want int, args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		if code := run(context.Background(), append([]string{"evidence"}, args...), strings.NewReader(stdin), &out, &errs); code != want {
			t.Fatalf("%v: exit code %d, want %d\n%s%s", args, code, want, &out, &errs)
		}
		return out.String() + errs.String()
	}
	// What the far side has is the spool without its log, below the instance's name.
	names, err := filepath.Glob(filepath.Join(at, "ready", "*", "*.ndjson"))
	if err != nil || len(names) != 3 {
		t.Fatal(names, err)
	}
	far := filepath.Join(dir, "far")
	if err := os.CopyFS(filepath.Join(far, strings.TrimSuffix(filepath.Base(names[0])[17:], ".ndjson"), "ready"), os.DirFS(filepath.Join(at, "ready"))); err != nil {
		t.Fatal(err)
	}
	list := ask(0, "received", far)
	lines := strings.SplitAfter(strings.TrimSpace(list)+"\n", "\n")
	if len(lines) != 4 {
		t.Fatalf("received: %s", list)
	}
	ack := func(want int, in, received, says string) {
		t.Helper()
		stdin = in
		if got := ask(want, "ack", at, "--consumer", "far", "--received", received); !strings.Contains(got, says) {
			t.Errorf("says %q, not %q", got, says)
		}
	}
	ack(0, lines[1]+lines[2], "-", "0 chunks acknowledged, 3 are pending")
	ack(3, "x", "-", "what was received, line 1")
	lie := strings.Index(lines[0], "sha256:") + len("sha256:")
	ack(1, lines[0][:lie]+strings.Repeat("0", 64)+lines[0][lie+64:], "-", "and its leaf says")
	if got := ask(0, "pending", at); strings.Contains(got, "far") {
		t.Errorf("pending: %s", got)
	}
	ack(0, lines[0], "-", "1 chunks acknowledged, 2 are pending")
	if got := ask(0, "pending", at); !strings.Contains(got, "far ") {
		t.Errorf("pending: %s", got)
	}
	// What is printed is to be kept, and the log held against it.
	kept := filepath.Join(dir, "kept.json")
	if err := os.WriteFile(kept, []byte(ask(0, "ack", at, "--consumer", "far", "--received", far, "-o", "json")), 0o600); err != nil {
		t.Fatal(err)
	}
	held := func(want int) {
		t.Helper()
		var out, errs bytes.Buffer
		if code := run(context.Background(), []string{"verify", at, "--key", filepath.Join(dir, "node.pub"), "--checkpoint", kept}, strings.NewReader(""), &out, &errs); code != want {
			t.Errorf("verify: exit code %d, want %d\n%s%s", code, want, &out, &errs)
		}
	}
	held(0)
	b, err := os.ReadFile(kept)
	if err == nil {
		err = os.WriteFile(kept, regexp.MustCompile(`"size": "\d+"`).ReplaceAll(b, []byte(`"size": "99"`)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	held(1) // the log has grown out of another
	ack(0, "", far, "0 chunks acknowledged, 0 are pending")
	if err := os.WriteFile(filepath.Join(at, "ack", "broken.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ask(1, "pending", at); !strings.Contains(got, "broken.json: ") || !strings.Contains(got, "far ") {
		t.Errorf("pending: %s", got)
	}
	ask(2, "ack", at, "0000000000000001-0000000000000000", "--consumer", "far", "--received", far)
}
