package verify_test

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"probity/evidence/sign"
	"probity/evidence/tlog"
	"probity/evidence/verify"
)

func (n *theNode) proof(t testing.TB, log, chunk string, epoch bool) verify.Proof {
	t.Helper()
	made, err := verify.Prove(t.Context(), os.DirFS(log), chunk, epoch)
	must(t, err)
	p, err := verify.ParseProof("proof of "+chunk, made.Text())
	must(t, err)
	return p
}

// altered is a proof with one thing changed.
func altered(t testing.TB, log, chunk string, epoch bool, how func(*tlog.Proof)) verify.Proof {
	t.Helper()
	made, err := verify.Prove(t.Context(), os.DirFS(log), chunk, epoch)
	must(t, err)
	how(&made)
	p, err := verify.ParseProof("altered", made.Text())
	must(t, err)
	return p
}

// Who has some chunks and their proofs, and neither spool nor log, knows that they are
// in the node's log as they are; and nothing else passes.
func TestProofs(t *testing.T) {
	n := newTheNode(t)
	log := filepath.Join(n.dir, "log")
	chunks := n.chunks(t)
	name := func(i int) string { return strings.TrimSuffix(filepath.Base(chunks[i]), ".ndjson") }
	of := func(i int) verify.Proof { return n.proof(t, log, name(i), false) }
	epoch := n.proof(t, log, name(0), true)
	flip := func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/2] ^= 1; return b }

	// A chunk of the same name, signed by the same node, with another line.
	own := n.copied(t)
	edit(t, own.chunks(t)[3], func(b []byte) []byte {
		return resign(t, b, n.signer, func(s string) string { return strings.Replace(s, `"symbol":"f"`, `"symbol":"g"`, 1) })
	})
	otherNode := newTheNode(t)
	otherLog := filepath.Join(otherNode.dir, "log")

	for what, c := range map[string]struct {
		files  []string
		proofs []verify.Proof
		want   []verify.Kind // none: proven
	}{
		"one":                           {chunks[3:4], []verify.Proof{of(3), epoch}, nil},
		"all of them":                   {chunks, []verify.Proof{of(0), of(1), of(2), of(3), of(4), of(5), of(6), of(7), of(8), epoch}, nil},
		"one without a proof":           {chunks[3:5], []verify.Proof{of(3), epoch}, []verify.Kind{verify.LogMissing}},
		"a proof of what is not there":  {chunks[3:4], []verify.Proof{of(3), of(4), epoch}, []verify.Kind{verify.Removed}},
		"no epoch":                      {chunks[3:4], []verify.Proof{of(3)}, []verify.Kind{verify.LogDamaged}},
		"an epoch that did not sign it": {chunks[3:4], []verify.Proof{of(3), n.proof(t, filepath.Join(n.old, "log"), name(0), true)}, []verify.Kind{verify.LogDamaged}},
		"another node's epoch":          {chunks[3:4], []verify.Proof{of(3), otherNode.proof(t, otherLog, strings.TrimSuffix(filepath.Base(otherNode.chunks(t)[0]), ".ndjson"), true)}, []verify.Kind{verify.KeyUnknown, verify.LogDamaged}},
		"other lines under its name":    {own.chunks(t)[3:4], []verify.Proof{of(3), epoch}, []verify.Kind{verify.Modified}},
		"another entry in its place": {chunks[3:4], []verify.Proof{altered(t, log, name(3), false, func(p *tlog.Proof) {
			p.Entry = bytes.Replace(p.Entry, []byte(name(3)), []byte(name(4)), 1)
		}), epoch}, []verify.Kind{verify.LogDamaged, verify.LogMissing}},
		"another hash": {chunks[3:4], []verify.Proof{altered(t, log, name(3), false, func(p *tlog.Proof) { p.Hashes[0][5] ^= 1 }), epoch}, []verify.Kind{verify.LogDamaged}},
		"a checkpoint that nobody signed": {chunks[3:4], []verify.Proof{altered(t, log, name(3), false, func(p *tlog.Proof) {
			sig := bytes.LastIndexByte(bytes.TrimSuffix(p.Checkpoint, []byte("\n")), ' ') + 1
			raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(p.Checkpoint[sig:])))
			must(t, err)
			p.Checkpoint = append(bytes.Clone(p.Checkpoint[:sig]), base64.StdEncoding.EncodeToString(flip(raw))+"\n"...)
		}), epoch}, []verify.Kind{verify.LogDamaged}},
		"an epoch that the node did not sign": {chunks[3:4], []verify.Proof{of(3), altered(t, log, name(3), true, func(p *tlog.Proof) {
			p.Entry = bytes.Replace(p.Entry, []byte(`"agent":"probity test"`), []byte(`"agent":"probity best"`), 1)
		})}, []verify.Kind{verify.LogDamaged, verify.LogDamaged}},
	} {
		rep, err := verify.Path(t.Context(), c.files, n.signer.Public(), verify.Options{Proofs: c.proofs})
		must(t, err)
		var got []verify.Kind
		for _, f := range rep.Findings {
			got = append(got, f.Kind)
		}
		slices.Sort(got)
		slices.Sort(c.want)
		log := verify.LogProven
		if c.want != nil {
			log = verify.LogUnsound
		}
		if !slices.Equal(got, c.want) || rep.Log != log {
			t.Errorf("%s: log %s, %v, want %v", what, rep.Log, rep.Findings, c.want)
		}
	}

	// Nobody is asked to trust the key that the epoch names.
	stranger, err := sign.LoadOrCreate(t.TempDir())
	must(t, err)
	rep, err := verify.Path(t.Context(), chunks[3:4], stranger.Public(), verify.Options{Proofs: []verify.Proof{of(3), epoch}})
	must(t, err)
	if rep.Sound() || rep.Log != verify.LogUnsound {
		t.Errorf("with another key: %+v", rep)
	}
	// A spool has its log, and the proof is of one of its chunks.
	rep, err = verify.Path(t.Context(), []string{n.dir}, n.signer.Public(), verify.Options{Proofs: []verify.Proof{of(3), epoch}})
	must(t, err)
	if !rep.Sound() || rep.Log != verify.LogSound {
		t.Errorf("a spool: %+v", rep.Findings)
	}
}

func FuzzParseProof(f *testing.F) {
	n := newTheNode(f)
	for _, epoch := range []bool{false, true} {
		p, err := verify.Prove(f.Context(), os.DirFS(filepath.Join(n.dir, "log")), strings.TrimSuffix(filepath.Base(n.chunks(f)[0]), ".ndjson"), epoch)
		must(f, err)
		f.Add(p.Text())
	}
	chunk := n.chunks(f)[0]
	key := n.signer.Public()
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := verify.ParseProof("fuzz", b)
		if err != nil {
			return
		}
		rep, err := verify.Path(t.Context(), []string{chunk}, key, verify.Options{Proofs: []verify.Proof{p}})
		must(t, err)
		if rep.Sound() { // it takes two
			t.Error("one proof proves it")
		}
	})
}
