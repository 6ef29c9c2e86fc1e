package delivery_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"probity/evidence"
	"probity/evidence/delivery"
)

func told(t testing.TB, dir string) (list []delivery.Chunk, err error) {
	t.Helper()
	err = delivery.Whole(t.Context(), dir, func(c delivery.Chunk) error { list = append(list, c); return nil })
	return list, err
}

// What is whole is told with the digest of what is there, and read as that.
func TestReceived(t *testing.T) {
	dir := t.TempDir()
	deliver(t, dir, append(lines(t, "flat", vectors[0]), lines(t, "flat", vectors[1])[1:]...)...)
	list, err := told(t, dir)
	want := delivery.Chunk{Chunk: vectors[0], Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(chunk(t, vectors[0]))), Bytes: len(chunk(t, vectors[0]))}
	if err != nil || len(list) != 1 || list[0] != want {
		t.Fatalf("%+v, %v", list, err)
	}
	b, err := json.Marshal(list[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, wanted := range []bool{true, false} {
		got, err := delivery.ReadReceived(bytes.NewReader(append(b, '\n')), func(string) bool { return wanted })
		if err != nil || (got[vectors[0]] == want) != wanted || len(got) > 1 {
			t.Errorf("%+v, %v", got, err)
		}
	}
	at := filepath.Join(dir, vectors[0][17:], "ready", filepath.FromSlash(evidence.ChunkPath(vectors[0])))
	spoilt := chunk(t, vectors[0])
	spoilt[1500] ^= 1
	for what, bad := range map[string][]byte{"changed": spoilt, "empty": nil, "torn": spoilt[:2000]} {
		if err := os.WriteFile(at, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if list, err := told(t, dir); err == nil {
			t.Errorf("%s: %+v", what, list)
		}
	}
}

// A far side may lie: only what is exactly a chunk's name, digest and size is read.
func TestReceivedRefused(t *testing.T) {
	name, digest := vectors[0], "sha256:"+strings.Repeat("a", 64)
	good := fmt.Sprintf(`{"chunk":"%s","digest":"%s","bytes":5}`, name, digest)
	for what, in := range map[string]string{
		"no JSON":        "x",
		"two values":     good + good,
		"another member": strings.Replace(good, `"bytes"`, `"more":1,"bytes"`, 1),
		"no name":        strings.Replace(good, name, "", 1),
		"a path":         strings.Replace(good, name, "../../"+name, 1),
		"no digest":      strings.Replace(good, digest, "", 1),
		"a short digest": strings.Replace(good, "aa", "", 1),
		"capitals":       strings.Replace(good, "aa", "AA", 1),
		"no bytes":       strings.Replace(good, ":5}", ":0}", 1),
		"below 0":        strings.Replace(good, ":5}", ":-5}", 1),
		"too large":      strings.Replace(good, ":5}", ":99999999}", 1),
		"two digests":    good + "\n" + strings.Replace(good, "aa", "bb", 1),
		"a member twice": strings.Replace(good, `{`, `{"chunk":"`+vectors[1]+`",`, 1),
		"in capitals":    strings.Replace(good, `"digest"`, `"DIGEST"`, 1),
		"twice, once so": strings.Replace(good, `{`, `{"Chunk":"`+vectors[1]+`",`, 1),
		"a long line":    good + strings.Repeat(" ", 2000),
	} {
		if in == good {
			t.Fatalf("%s: nothing was changed", what)
		}
		if got, err := delivery.ReadReceived(strings.NewReader(in), func(string) bool { return true }); err == nil {
			t.Errorf("%s: %+v", what, got)
		}
	}
	if got, err := delivery.ReadReceived(strings.NewReader(good+"\n"+good+"\n"), func(string) bool { return true }); err != nil || len(got) != 1 {
		t.Errorf("twice the same: %+v, %v", got, err)
	}
}

func FuzzReceived(f *testing.F) {
	f.Add([]byte(fmt.Sprintf(`{"chunk":"%s","digest":"sha256:%s","bytes":5}`, vectors[0], strings.Repeat("a", 64))))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := delivery.ReadReceived(bytes.NewReader(b), func(string) bool { return true })
		if err != nil && got != nil {
			t.Error("a list and an error")
		}
		for name, c := range got {
			if _, _, ok := evidence.ParseChunkName(name); !ok || c.Chunk != name || c.Bytes < 1 || len(c.Digest) != 71 {
				t.Errorf("%q: %+v", name, c)
			}
		}
	})
}
