package verify_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/sign"
	"probity/evidence/tlog"
	"probity/evidence/trust"
	"probity/evidence/verify"
)

// another node's key.
func another(t testing.TB) *sign.Signer {
	t.Helper()
	s, err := sign.LoadOrCreate(t.TempDir())
	must(t, err)
	return s
}

func trusting(t testing.TB, entries ...trust.Entry) *trust.File {
	t.Helper()
	b, err := trust.Write(entries)
	must(t, err)
	f, err := trust.Parse(b)
	must(t, err)
	return f
}

// signedAt is when a chunk says that it was signed.
func signedAt(t testing.TB, path string) time.Time {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	h, err := evidence.DecodeHeader(string(b[:bytes.IndexByte(b, '\n')]))
	must(t, err)
	return h.Clock.Wall.Std()
}

// mistrusted are the ways in which a trusted key is not enough.
var mistrusted = []struct {
	why string
	// entry changes what the trust file says of the node's key; at are the times of
	// its nine chunks.
	entry func(e *trust.Entry, at []time.Time)
	kept  bool // the verifier has the checkpoint from before the last three chunks
	// sound is how many chunks count, the rest and the epochs are found as want.
	sound int
	want  []verify.Kind
}{
	{"nothing speaks against it", func(*trust.Entry, []time.Time) {}, false, 9, nil},
	{"its time fits", func(e *trust.Entry, at []time.Time) {
		e.NotBefore, e.NotAfter = at[0].Add(-time.Second), at[8].Add(time.Second)
	}, false, 9, nil},
	{"it is another node's", func(e *trust.Entry, _ []time.Time) { e.Node = "node-z" }, false, 0, []verify.Kind{verify.WrongNode}},
	{"it spoke only later", func(e *trust.Entry, at []time.Time) { e.NotBefore = at[6] }, false, 3, []verify.Kind{verify.KeyNotValid}},
	{"it spoke only earlier", func(e *trust.Entry, at []time.Time) { e.NotAfter = at[5] }, false, 6, []verify.Kind{verify.KeyNotValid}},
	{"it was retired", func(e *trust.Entry, at []time.Time) {
		e.Revoked = &trust.Revocation{At: at[6], Reason: trust.Retired}
	}, false, 6, []verify.Kind{verify.KeyRevoked}},
	{"it was retired later", func(e *trust.Entry, at []time.Time) {
		e.Revoked = &trust.Revocation{At: at[8].Add(time.Second), Reason: trust.Retired}
	}, false, 9, nil},
	{"others have it, and nobody kept anything", func(e *trust.Entry, at []time.Time) {
		e.Revoked = &trust.Revocation{At: at[8].Add(time.Second), Reason: trust.Compromised}
	}, false, 0, []verify.Kind{verify.Unanchored}},
	{"others have it, and somebody kept the log of then", func(e *trust.Entry, at []time.Time) {
		e.Revoked = &trust.Revocation{At: at[8].Add(time.Second), Reason: trust.Compromised}
	}, true, 6, []verify.Kind{verify.Unanchored}},
	{"others have it, and what came since is theirs", func(e *trust.Entry, at []time.Time) {
		e.Revoked = &trust.Revocation{At: at[6], Reason: trust.Compromised}
	}, true, 6, []verify.Kind{verify.KeyRevoked}},
}

// A trust file says for which node a key speaks, and when, and what is left of a
// key that was revoked. The same holds for the log's epochs.
func TestTrust(t *testing.T) {
	base := newTheNode(t)
	var at []time.Time
	for _, c := range base.chunks(t) {
		at = append(at, signedAt(t, c))
	}
	for _, c := range mistrusted {
		t.Run(c.why, func(t *testing.T) {
			e := trust.EntryOf("node-a", base.signer.Public())
			c.entry(&e, at)
			keys := trusting(t, trust.EntryOf("node-b", another(t).Public()), e)
			var opts verify.Options
			if c.kept {
				k, err := verify.ParseKept("kept", base.kept)
				must(t, err)
				opts.Kept = []verify.Kept{k}
			}
			rep, err := verify.Path(t.Context(), []string{base.dir}, keys, opts)
			must(t, err)
			var kinds []verify.Kind
			inChunks := 0
			for _, f := range rep.Findings {
				if !slices.Contains(kinds, f.Kind) {
					kinds = append(kinds, f.Kind)
				}
				if filepath.Ext(f.File) == ".ndjson" {
					inChunks++
				}
			}
			if !slices.Equal(kinds, c.want) || rep.Chunks != c.sound || inChunks != 9-c.sound {
				t.Errorf("%d sound chunks, want %d: %v", rep.Chunks, c.sound, rep.Findings)
			}
			if unsound := len(rep.Findings) > inChunks; unsound != (c.want != nil) {
				t.Errorf("the log's epochs: %v", rep.Findings)
			}
		})
	}
}

// Node B signs a chunk that says that it is node A's: both keys are trusted, and it
// is found by name.
func TestKeyIsBoundToItsNode(t *testing.T) {
	n, b := newTheNode(t), another(t)
	keys := trusting(t, trust.EntryOf("node-a", n.signer.Public()), trust.EntryOf("node-b", b.Public()))
	same := func(s string) string { return s }
	edit(t, n.chunks(t)[4], func(chunk []byte) []byte { return resign(t, chunk, b, same) })
	rep, err := verify.Path(t.Context(), n.chunks(t), keys, verify.Options{})
	must(t, err)
	if len(rep.Findings) != 1 || rep.Findings[0].Kind != verify.WrongNode || rep.Findings[0].File != n.chunks(t)[4] || rep.Chunks != 8 {
		t.Errorf("%v", rep.Findings)
	}
	// And of a node that nobody trusts it is another finding, and only that.
	rep, err = verify.Path(t.Context(), n.chunks(t), trusting(t, trust.EntryOf("node-b", b.Public())), verify.Options{})
	must(t, err)
	for _, f := range rep.Findings {
		want := verify.KeyUnknown
		if f.File == n.chunks(t)[4] {
			want = verify.WrongNode
		}
		if f.Kind != want {
			t.Errorf("%v", f)
		}
	}
	if len(rep.Findings) != 9 || rep.Chunks != 0 {
		t.Errorf("%d findings, %d sound chunks", len(rep.Findings), rep.Chunks)
	}
}

// What was signed by one key and names another in its envelope is no chunk of
// either.
func TestEnvelopeOfAnotherTrustedKey(t *testing.T) {
	n, b := newTheNode(t), another(t)
	keys := trusting(t, trust.EntryOf("node-a", n.signer.Public()), trust.EntryOf("node-a", b.Public()))
	file := n.chunks(t)[0]
	edit(t, file, func(chunk []byte) []byte {
		own := chunk[bytes.LastIndexByte(chunk[:len(chunk)-1], '\n')+1:]
		theirs := resign(t, chunk, b, func(s string) string { return s })
		return append(bytes.Clone(theirs[:bytes.LastIndexByte(theirs[:len(theirs)-1], '\n')+1]), own...)
	})
	rep, err := verify.Path(t.Context(), []string{file}, keys, verify.Options{})
	must(t, err)
	if len(rep.Findings) != 1 || rep.Findings[0].Kind != verify.KeyUnknown || rep.Chunks != 0 {
		t.Errorf("%v", rep.Findings)
	}
}

// A single file has no log here, so nothing anchors it, whatever it says of itself.
func TestSingleFileIsNotAnchored(t *testing.T) {
	n := newTheNode(t)
	e := trust.EntryOf("node-a", n.signer.Public())
	e.Revoked = &trust.Revocation{At: time.Now(), Reason: trust.Compromised}
	k, err := verify.ParseKept("kept", n.last)
	must(t, err)
	rep, err := verify.Path(t.Context(), n.chunks(t)[:1], trusting(t, e), verify.Options{Kept: []verify.Kept{k}})
	must(t, err)
	if rep.Chunks != 0 || !slices.ContainsFunc(rep.Findings, func(f verify.Finding) bool { return f.Kind == verify.Unanchored }) {
		t.Errorf("%v", rep.Findings)
	}
}

var _ sign.Keys = (*trust.File)(nil)

// Node B is trusted, and writes into chunks of its own, under its own name, lines
// about a run and a gap of node A. They are B's word, and take nothing of A's away.
func TestLinesOfAnotherNodesRun(t *testing.T) {
	n, b := newTheNode(t), another(t)
	keys := trusting(t, trust.EntryOf("node-a", n.signer.Public()), trust.EntryOf("node-b", b.Public()))
	chunk, err := os.ReadFile(n.chunks(t)[0])
	must(t, err)
	h, err := evidence.DecodeHeader(string(chunk[:bytes.IndexByte(chunk, '\n')]))
	must(t, err)
	clock := evidence.Clock{BootNs: h.Clock.BootNs, Wall: h.Clock.Wall}
	at := clock.Time(int64(h.Clock.BootNs))
	lines := func(detail string, to evidence.Time) []evidence.Line {
		list := append(aRun(1)(clock), &evidence.Gap{
			GapID: "00000000000000000000000000000001", Scope: evidence.ScopeRun, Reason: evidence.GapUnarmedMapping, From: at, To: to,
			Count: evidence.Loss{N: 1}, RunID: fmt.Sprintf("%032x", 1), ContainerID: "container", Detail: detail,
		})
		list[1].(*evidence.Observation).Detail = detail
		return list
	}
	h.Leaf, h.Log = nil, ""
	dir := t.TempDir()
	var files []string
	write := func(node string, seq uint64, s *sign.Signer, list []evidence.Line) {
		h.Node, h.Seq = node, evidence.Uint64(seq)
		h.Chunk = evidence.ChunkName(seq, node[5:]+"000000000000000")
		files = append(files, filepath.Join(dir, h.Chunk+".ndjson"))
		must(t, os.WriteFile(files[len(files)-1], sealedAs(t, h, s, list), 0o600))
	}
	write("node-a", 1, n.signer, lines("as A says", evidence.Time{}))
	write("node-b", 999, b, lines("as B says", at))
	rep, err := verify.Path(t.Context(), files, keys, verify.Options{})
	must(t, err)
	if !rep.Sound() || len(rep.Rows) != 2 || len(rep.Gaps) != 2 || rep.Runs != 2 {
		t.Fatalf("%d rows, %d gaps, %d runs, %v", len(rep.Rows), len(rep.Gaps), rep.Runs, rep.Findings)
	}
	var table strings.Builder
	must(t, rep.WriteTable(&table))
	for _, want := range []string{"NODE    CONTAINER", "node-a  container", "node-b  container", "  node-a: unarmedMapping", "  node-b: unarmedMapping"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, table.String())
		}
	}
	for i, node := range []string{"node-a", "node-b"} {
		want := "as " + string(node[5]-'a'+'A') + " says"
		if r := rep.Rows[i]; r.Node != node || r.Detail != want {
			t.Errorf("row of %s: %q", r.Node, r.Detail)
		}
		if g := rep.Gaps[i]; g.Node != node || g.Detail != want || g.To.IsZero() != (node == "node-a") {
			t.Errorf("gap of %s: %q to %v", g.Node, g.Detail, g.To)
		}
	}
	// With one key there is one node, which may have been renamed.
	files = files[:1]
	write("node-b", 2, n.signer, lines("under its new name", at))
	rep, err = verify.Path(t.Context(), files, n.signer.Public(), verify.Options{})
	must(t, err)
	if !rep.Sound() || len(rep.Rows) != 1 || len(rep.Gaps) != 1 || rep.Rows[0].Detail != "under its new name" || rep.Rows[0].Node != "node-b" {
		t.Errorf("%+v, %v", rep.Rows, rep.Findings)
	}
}

// Node B is trusted, and has a log of its own in A's spool, which says that it removed a
// chunk of A's: that is not B's to say, wherever its log lies.
func TestTombstoneOfAnotherNode(t *testing.T) {
	base, b := newTheNode(t), another(t)
	own, origin := b.Public(), "node-b/probity/0123456789abcdef"
	key, err := tlog.NewKey(origin)
	must(t, err)
	at := base.clock().Wall
	for _, first := range []bool{false, true} {
		n := base.copied(t)
		chunk := n.chunks(t)[4]
		must(t, os.Remove(chunk))
		dir := filepath.Join(n.dir, "retired", "b")
		must(t, os.MkdirAll(filepath.Dir(dir), 0o755))
		if first {
			dir = filepath.Join(n.dir, "log")
			must(t, os.Rename(dir, filepath.Join(n.dir, "retired", "a")))
		}
		e := &evidence.EpochLeaf{
			At: at, Format: evidence.LogFormat, Start: evidence.StartFirst, Origin: origin, Node: "node-b", BootID: "boot", Agent: "probity test",
			KeyID: own.KeyID(), PublicKey: base64.StdEncoding.EncodeToString(own.DER()), CheckpointKey: key.Verifier(),
		}
		unsigned, err := e.Unsigned()
		must(t, err)
		sig, err := b.Sign(evidence.EpochType, unsigned)
		must(t, err)
		e.Signature = base64.StdEncoding.EncodeToString(sig)
		l, err := tlog.Open(dir, origin)
		must(t, err)
		for i, leaf := range []evidence.Leaf{e, &evidence.TombstoneLeaf{Chunk: strings.TrimSuffix(filepath.Base(chunk), ".ndjson"), Log: tlog.OriginOf(n.last), Of: 1, Reason: evidence.TombstoneAcknowledged}} {
			entry, err := evidence.EncodeLeaf(leaf, uint64(i), at)
			must(t, err)
			_, err = l.Append(entry)
			must(t, err)
		}
		must(t, l.Commit(key.Sign))
		keys := trusting(t, trust.EntryOf("node-a", n.signer.Public()), trust.EntryOf("node-b", own))
		rep, err := verify.Path(t.Context(), []string{n.dir}, keys, verify.Options{})
		must(t, err)
		if len(rep.Findings) != 1 || rep.Findings[0].Kind != verify.Removed || len(rep.Logs) != 2 {
			t.Errorf("B's log first: %v: %v, %+v", first, rep.Findings, rep.Logs)
		}
	}
}
