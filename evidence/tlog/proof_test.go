package tlog

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestProofText(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	k := testKey(t)
	grow(t, l, 300)
	commit(t, l, k)
	r := NewReader(os.DirFS(dir))
	note, err := r.Checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []uint64{0, 1, 255, 256, 299} {
		p, err := r.Prove(note, l.Tree(), i, entry(i))
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseProof(p.Text())
		if err != nil || !bytes.Equal(again.Text(), p.Text()) {
			t.Fatalf("entry %d: %v", i, err)
		}
		if c, err := again.Check([]string{k.Verifier()}); err != nil || c.Tree != l.Tree() {
			t.Errorf("entry %d: %v", i, err)
		}
		if _, err := again.Check([]string{testKey(t).Verifier()}); err == nil {
			t.Error("checked with another key")
		}
		again.Entry = entry(i + 1)
		if _, err := again.Check([]string{k.Verifier()}); err == nil {
			t.Error("another entry is proven")
		}
	}
	p, err := r.Prove(note, l.Tree(), 7, entry(7))
	if err != nil {
		t.Fatal(err)
	}
	good := string(p.Text())
	for why, bad := range map[string]string{
		"nothing":         "",
		"another version": strings.Replace(good, "@v1", "@v2", 1),
		"no extra":        strings.Replace(good, "extra ", "x ", 1),
		"no base64":       strings.Replace(good, "extra ", "extra *", 1),
		"no index":        strings.Replace(good, "index 7", "index 07", 1),
		"no hash":         strings.Replace(good, "index 7\n", "index 7\nx\n", 1),
		"no checkpoint":   good[:strings.Index(good, "\n\n")],
		"many hashes":     strings.Replace(good, "index 7\n", "index 7\n"+strings.Repeat(Empty.String()+"\n", 70), 1),
	} {
		if _, err := ParseProof([]byte(bad)); err == nil {
			t.Errorf("%s: taken", why)
		}
	}
}

func FuzzProof(f *testing.F) {
	f.Add(Proof{Entry: []byte("e"), Index: 1, Hashes: []Hash{Empty}, Checkpoint: []byte("o\n2\n")}.Text())
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := ParseProof(b); err == nil && !bytes.Equal(p.Text(), b) {
			t.Errorf("another spelling of %q", b)
		}
	})
}
