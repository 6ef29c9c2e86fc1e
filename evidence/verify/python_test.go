package verify_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"probity/evidence"
	"probity/evidence/tlog"
	"probity/tests/need"
)

// pythonDriver runs the verifier for each list of arguments, in one process: it takes
// longer to start than to verify.
const pythonDriver = `
import contextlib, io, json, runpy, sys
out, script = [], sys.argv[1]
for args in json.load(sys.stdin):
    sys.argv, text, code = [script] + args, io.StringIO(), 0
    with contextlib.redirect_stdout(text):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as e:
            code = e.code
    out.append({"code": code, "out": text.getvalue()})
json.dump(out, sys.stdout)
`

type pythonResult struct {
	Code int
	Out  string
}

// byPython has the verifier in another language verify each of these.
func byPython(t *testing.T, args [][]string) (out []pythonResult) {
	t.Helper()
	python := need.Command(t, "/usr/bin/python3")[0] // Debian's, which has Debian's modules
	if out, err := exec.Command(python, "-c", "import cryptography").CombinedOutput(); err != nil {
		need.File(t, "Debian's python3-cryptography", errors.Join(os.ErrNotExist, errors.New(string(out))))
	}
	in, err := json.Marshal(args)
	must(t, err)
	cmd := exec.Command(python, "-c", pythonDriver, "../testdata/verify.py")
	cmd.Stdin = bytes.NewReader(in)
	cmd.Stderr = os.Stderr
	b, err := cmd.Output()
	must(t, err)
	must(t, json.Unmarshal(b, &out))
	if len(out) != len(args) {
		t.Fatalf("%d results of %d", len(out), len(args))
	}
	return out
}

// A verifier in another language, written from FORMAT.md, finds what ours finds: it
// takes a spool as it was, and refuses it after every attack of the table.
func TestAttacksInPython(t *testing.T) {
	base := newTheNode(t)
	list := append(attacks(), attack{class: "none", way: "nothing was done", do: func(*testing.T, *theNode) {}})
	var args [][]string
	for _, a := range list {
		n := base.copied(t)
		root := filepath.Dir(n.dir)
		a.do(t, n)
		run := []string{filepath.Join(root, "node.pub"), n.dir}
		must(t, os.WriteFile(run[0], n.signer.Public().PEM(), 0o600))
		if a.anchored {
			for i, b := range [][]byte{n.kept, n.last} {
				kept := filepath.Join(root, []string{"kept", "last"}[i])
				must(t, os.WriteFile(kept, b, 0o600))
				run = append(run, kept)
			}
		}
		args = append(args, run)
	}
	refused := 0
	for i, r := range byPython(t, args) {
		a := list[i]
		name := a.class + "/" + a.way
		takes := a.want == nil
		switch {
		case takes && r.Code != 0:
			t.Errorf("%s: refused: %s", name, r.Out)
		case !takes && (r.Code != 1 || !strings.Contains(r.Out, "NOT SOUND: ")):
			t.Errorf("%s: exit code %d: %s", name, r.Code, r.Out)
		case !takes:
			refused++
		}
	}
	if refused < 50 {
		t.Errorf("%d attacks were refused", refused)
	}
}

// The rest of what the format has: keys that follow one another, checkpoint keys that
// rotate, gap leaves, tombstones, heartbeats over live runs, and a log that goes on
// after another. Each is taken as it is, and refused when it is not.
func TestLogInPython(t *testing.T) {
	n := newTheNode(t)
	var args [][]string
	var want []string // part of what it says; "NOT SOUND" refuses
	try := func(n *theNode, say string, kept ...string) {
		t.Helper()
		pub := filepath.Join(t.TempDir(), "node.pub")
		must(t, os.WriteFile(pub, n.signer.Public().PEM(), 0o600))
		args, want = append(args, append([]string{pub, n.dir}, kept...)), append(want, say)
	}
	keep := func(b []byte) string {
		name := filepath.Join(t.TempDir(), "kept")
		must(t, os.WriteFile(name, b, 0o600))
		return name
	}
	try(n, "9 chunks, each signed by the node", keep(n.kept), keep(n.last))
	other := newTheNode(t)
	try(n, "NOT SOUND: the log of which somebody kept a state is not here", keep(other.kept))
	spoiled := bytes.Replace(n.kept, []byte("— "), []byte("— x"), 1)
	try(n, "NOT SOUND: checkpoint: not signed", keep(spoiled))

	// A gap leaf and a tombstone, as the quota leaves them, with the node's own key.
	quota := n.copied(t)
	gone := strings.TrimSuffix(filepath.Base(quota.chunks(t)[0]), ".ndjson")
	leaves := quota.entries(t)
	quota.insider(t, func(add func(evidence.Leaf)) {
		for _, e := range leaves[1:4] {
			l, err := evidence.DecodeLeaf(string(e))
			must(t, err)
			add(l)
		}
		at := quota.clock().Wall
		add(&evidence.TombstoneLeaf{Chunk: gone, Of: 1, Reason: evidence.TombstoneQuota})
		add(&evidence.GapLeaf{Reason: evidence.GapSpoolDropped, From: at, To: at, Count: evidence.Loss{N: 7}})
		add(&evidence.HeartbeatLeaf{Root: tlog.Empty.String()})
	})
	for _, c := range append(quota.chunks(t)[3:], quota.chunks(t)[0]) {
		must(t, os.Remove(c))
	}
	try(quota, "7 lines were lost: spoolDropped")
	try(quota, "2 chunks, each signed by the node")

	// A run that is live: its coverage is not final, and a heartbeat stands over it.
	live := func(runs uint64, root func(tlog.Hash) tlog.Hash) *theNode {
		t.Helper()
		n := n.copied(t)
		c := n.chunks(t)
		h, _, err := chunkHeader(n, strings.TrimSuffix(filepath.Base(c[0]), ".ndjson"))
		must(t, err)
		lines := aRun(5)(h.Clock)[:1]
		lines[0].(*evidence.Coverage).Final = false
		b := sealedAs(t, h, n.signer, lines)
		must(t, os.WriteFile(c[0], b, 0o600))
		for _, p := range c[1:] {
			must(t, os.Remove(p))
		}
		var v tlog.Live
		text, err := evidence.Encode(lines[0])
		must(t, err)
		v.See(lines[0], text)
		_, over := v.Root()
		n.insider(t, func(add func(evidence.Leaf)) {
			add(&evidence.ChunkLeaf{Chunk: h.Chunk, Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(b)), Bytes: evidence.Uint64(len(b))})
			add(&evidence.HeartbeatLeaf{Runs: evidence.Uint64(runs), Root: root(over).String()})
		})
		return n
	}
	same := func(h tlog.Hash) tlog.Hash { return h }
	try(live(1, same), "1 heartbeats stand over their lines")
	try(live(2, same), "NOT SOUND: leaf 2: the heartbeat is over other lines")
	try(live(1, func(tlog.Hash) tlog.Hash { return tlog.Empty }), "NOT SOUND: leaf 2: the heartbeat is over other lines")

	// The node's key changes twice between two lives: who trusts the first key trusts
	// the third.
	rotated := nodeAt(t, t.TempDir())
	first := rotated.signer
	rotated.life(t, 1, 2)
	rotated.succeeded(t)
	rotated.succeeded(t)
	rotated.life(t, 3)
	last := rotated.signer
	try(rotated, "NOT SOUND: ") // what came before the last key is not its own
	rotated.signer = first
	try(rotated, "3 chunks, each signed by the node")
	rotated.signer = last

	// A log that was lost, and the one after it.
	lost := n.copied(t)
	must(t, os.RemoveAll(lost.state))
	lost.life(t, 10)
	try(lost, "10 chunks, each signed by the node", keep(n.last))

	for i, r := range byPython(t, args) {
		if !strings.Contains(r.Out, want[i]) || (r.Code == 0) == strings.HasPrefix(want[i], "NOT SOUND") {
			t.Errorf("%d: exit code %d, want %q\n%s", i, r.Code, want[i], r.Out)
		}
	}
}
