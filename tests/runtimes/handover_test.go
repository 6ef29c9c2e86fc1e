package runtimes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"probity/evidence"
	"probity/evidence/export"
	"probity/evidence/spool"
	"probity/tests/need"
)

// python runs the verifier in another language, which was written from FORMAT.md.
func python(t *testing.T, args ...string) (string, error) {
	t.Helper()
	python := need.Command(t, "/usr/bin/python3")[0] // Debian's, which has Debian's modules
	if out, err := exec.Command(python, "-c", "import cryptography").CombinedOutput(); err != nil {
		need.File(t, "Debian's python3-cryptography", errors.Join(os.ErrNotExist, errors.New(string(out))))
	}
	out, err := exec.Command(python, append([]string{"../../evidence/testdata/verify.py"}, args...)...).CombinedOutput()
	return string(out), err
}

// byHand checks a chunk and its proofs with it.
func byHand(t *testing.T, a *Agent, it spool.Item) {
	t.Helper()
	dir := t.TempDir()
	proof := func(name string, args ...string) string {
		code, out, errs := a.Probity(t, append([]string{"evidence", "proof", a.Spool, it.Chunk}, args...)...)
		if code != 0 {
			t.Fatalf("%v: exit code %d, %s", args, code, errs)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(out), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	chunk, epoch := proof("chunk"), proof("epoch", "--epoch")
	verify := func(chunkFile string) (string, error) {
		return python(t, a.Key(), chunkFile, chunk, epoch)
	}
	out, err := verify(it.Path)
	if err != nil || !strings.Contains(out, "leaf "+strconv.FormatUint(uint64(it.Leaf), 10)+" of "+it.Origin+" is this chunk") {
		t.Fatalf("%v\n%s", err, out)
	}
	ours := func(chunkFile string) (int, string) {
		code, out, _ := a.Probity(t, "verify", chunkFile, "--key", a.Key(), "--proof", chunk, "--proof", epoch)
		return code, out
	}
	if code, out := ours(it.Path); code != 0 || !strings.Contains(out, "\nlog: proven") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	b, err := os.ReadFile(it.Path)
	if err != nil {
		t.Fatal(err)
	}
	// One byte of a line; and the same lines signed once more cannot be made here,
	// so one byte of the leaf that the proof is of.
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, bytes.Replace(b, []byte(`"hello"`), []byte(`"hellO"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := verify(bad); err == nil || !strings.Contains(out, "NOT SOUND") {
		t.Errorf("another byte: %v\n%s", err, out)
	}
	if code, out := ours(bad); code != 1 {
		t.Errorf("another byte: exit code %d\n%s", code, out)
	}
	text, err := os.ReadFile(chunk)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(chunk, bytes.Replace(text, []byte("extra e"), []byte("extra f"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := verify(it.Path); err == nil {
		t.Errorf("another entry: taken\n%s", out)
	}
}

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
	byHand(t, a, items[1])
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
	// Who exports what is left is told that it is not all.
	if code, out, errs := a.Probity(t, "evidence", "export", a.Spool, "--key", a.Key(), "--format", export.Format, "--out", filepath.Join(t.TempDir(), "export")); code != 0 ||
		!strings.Contains(out, fmt.Sprintf("not there, chunks that the node removed: %d\nnot there, ranges of sequence numbers: 1\n", gone.Chunks)) {
		t.Errorf("export: exit code %d\n%s%s", code, out, errs)
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
	// The same by the verifier in another language: tombstones, and a kept state.
	if out, err := python(t, a.Key(), a.Spool, kept); err != nil || !strings.Contains(out, "each signed by the node and in its log") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := python(t, a.Key(), early, kept); err == nil || !strings.Contains(out, "NOT SOUND: log "+ack.Origin+": it did not grow") {
		t.Errorf("an earlier spool: %v\n%s", err, out)
	}
	if code, out, errs := a.Probity(t, "verify", early, "--key", a.Key(), "--checkpoint", kept); code != 1 || !strings.Contains(out, "rolledBack") {
		t.Errorf("an earlier spool against what was kept: exit code %d\n%s%s", code, out, errs)
	}
	if code, _, errs := a.Probity(t, "evidence", "ack", a.Spool, "--consumer", "Ship"); code != 2 || !strings.Contains(errs, "lower-case") {
		t.Errorf("a bad name: exit code %d, %s", code, errs)
	}
}
