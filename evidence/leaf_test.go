package evidence_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"probity/evidence"
)

const root64 = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="

func leaves(t testing.TB) map[evidence.Leaf]string {
	t.Helper()
	var from, to evidence.Time
	for p, s := range map[*evidence.Time]string{&from: "2026-01-02T03:04:05.000000006Z", &to: "2026-01-02T03:04:06.000000000Z"} {
		if err := p.UnmarshalText([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	const name, digest = "0000000000000007-00112233445566ff", "sha256:47debc9a2f4cbf5e5bd3f0ea7d44f6dd1f9b7b1f2f1b9fb9dc4dd4db3a2a6a00"
	return map[evidence.Leaf]string{
		&evidence.EpochLeaf{
			Format: evidence.LogFormat, Epoch: 1, Start: evidence.StartRotation, Origin: "n/probity/00112233445566ff", Node: "n", BootID: "b", Agent: "probity 1",
			KeyID: "SHA256:x", PublicKey: "AAAA", CheckpointKey: "n/probity/00112233445566ff+01234567+AAAA", Announced: "AAAB", Signature: "AAAC",
		}: `{"leaf":"epoch","index":"9","at":"2026-01-02T03:04:05.000000006Z","format":"probity-log/1","epoch":"1","start":"rotation","origin":"n/probity/00112233445566ff","node":"n","bootId":"b","agent":"probity 1","keyId":"SHA256:x","publicKey":"AAAA","checkpointKey":"n/probity/00112233445566ff+01234567+AAAA","announced":"AAAB","signature":"AAAC"}`,
		&evidence.ChunkLeaf{Chunk: name, Digest: digest, Bytes: 4096}:                                                       `{"leaf":"chunk","index":"9","at":"2026-01-02T03:04:05.000000006Z","chunk":"` + name + `","digest":"` + digest + `","bytes":"4096"}`,
		&evidence.GapLeaf{Reason: evidence.GapSpoolDropped, From: from, To: to, Count: evidence.Loss{N: 5}, Detail: "full"}: `{"leaf":"gap","index":"9","at":"2026-01-02T03:04:05.000000006Z","reason":"spoolDropped","from":"2026-01-02T03:04:05.000000006Z","to":"2026-01-02T03:04:06.000000000Z","count":"5","detail":"full"}`,
		&evidence.HeartbeatLeaf{Runs: 0, Root: root64}:                                                                      `{"leaf":"heartbeat","index":"9","at":"2026-01-02T03:04:05.000000006Z","runs":"0","root":"` + root64 + `"}`,
		&evidence.TombstoneLeaf{Chunk: name, Of: 3, Reason: evidence.TombstoneQuota}:                                        `{"leaf":"tombstone","index":"9","at":"2026-01-02T03:04:05.000000006Z","chunk":"` + name + `","of":"3","reason":"quota"}`,
		&evidence.CloseLeaf{}: `{"leaf":"close","index":"9","at":"2026-01-02T03:04:05.000000006Z"}`,
	}
}

// Each kind has one spelling, which is read back.
func TestLeaves(t *testing.T) {
	var at evidence.Time
	if err := at.UnmarshalText([]byte("2026-01-02T03:04:05.000000006Z")); err != nil {
		t.Fatal(err)
	}
	for l, want := range leaves(t) {
		b, err := evidence.EncodeLeaf(l, 9, at)
		if err != nil || string(b) != want {
			t.Errorf("%T: %v\n%s\nwant\n%s", l, err, b, want)
			continue
		}
		got, err := evidence.DecodeLeaf(want)
		if err != nil || !reflect.DeepEqual(got, l) {
			t.Errorf("%T: read as %+v, %v", l, got, err)
		}
		if index, when := evidence.PlaceOf(got); index != 9 || when != at {
			t.Errorf("%T: at %d, %v", l, index, when)
		}
		if !json.Valid(b) {
			t.Errorf("%T: no JSON", l)
		}
	}
}

func TestLeavesRefused(t *testing.T) {
	good := map[string]string{}
	for l, s := range leaves(t) {
		good[strings.TrimSuffix(strings.TrimPrefix(reflect.TypeOf(l).String(), "*evidence."), "Leaf")] = s
	}
	for _, c := range []struct{ leaf, old, new, err string }{
		{"Chunk", `"bytes":"4096"`, `"bytes":"0"`, "bytes: 0"},
		{"Chunk", `"bytes":"4096"`, `"bytes":"4096","more":1`, "unknown field"},
		{"Chunk", `"0000000000000007-`, `"7-`, "is not 16 digits"},
		{"Chunk", `sha256:`, ``, "lower-case hex"},
		{"Chunk", `,"chunk"`, `, "chunk"`, "not in canonical form"},
		{"Chunk", `"leaf":"chunk"`, `"leaf":"lump"`, "is not known"},
		{"Chunk", `{"leaf":"chunk","index":"9"`, `{"index":"9","leaf":"chunk"`, "not in canonical form"},
		{"Tombstone", `"of":"3"`, `"of":"9"`, "comes after"},
		{"Tombstone", `"quota"`, `"whim"`, "is not one of"},
		{"Heartbeat", root64, "AAAA", "32 bytes"},
		{"Gap", `"spoolDropped"`, `"bored"`, "is not a known gap"},
		{"Gap", `"to":"2026-01-02T03:04:06`, `"to":"2025-01-02T03:04:06`, "wrong way round"},
		{"Epoch", `"announced":"AAAB",`, ``, "announced"},
		{"Epoch", `"start":"rotation"`, `"start":"clean"`, "announced"},
		{"Epoch", `"start":"rotation"`, `"start":"first"`, "first at index 9"},
		{"Epoch", `"epoch":"1"`, `"epoch":"0"`, "epoch: 0"},
		{"Epoch", `probity-log/1`, `probity-log/3`, "not known to this reader"},
		{"Epoch", `probity-log/1`, `probity-log/2`, "successions: there exactly"},
		{"Epoch", `"publicKey":"AAAA"`, `"publicKey":"AA=="`, ""},
		{"Epoch", `"publicKey":"AAAA"`, `"publicKey":"AB=="`, "publicKey"},
		{"Epoch", `,"signature":"AAAC"`, ``, "signature"},
		{"Close", `"close"`, `"close","x":1`, "unknown field"},
	} {
		bad := strings.Replace(good[c.leaf], c.old, c.new, 1)
		if bad == good[c.leaf] {
			t.Errorf("%s: nothing was changed by %q", c.leaf, c.old)
		}
		_, err := evidence.DecodeLeaf(bad)
		if c.err == "" && err == nil {
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s, %s: %v", c.leaf, c.new, err)
		}
	}
	for _, bad := range []string{"", "x", "{}", `{"leaf":null}`, strings.Repeat("x", evidence.MaxLeafBytes+1)} {
		if _, err := evidence.DecodeLeaf(bad); err == nil {
			t.Errorf("%.20q is taken", bad)
		}
	}
}

func TestOrigin(t *testing.T) {
	for node, want := range map[string]string{
		"web-1.example": "web-1.example/probity/00112233445566ff",
		"a node":        "a%20node/probity/00112233445566ff",
		"a+b":           "a%2Bb/probity/00112233445566ff",
		"zwölf":         "zwölf/probity/00112233445566ff",
		"a\nb":          "a%0Ab/probity/00112233445566ff",
	} {
		if got := evidence.Origin(node, "00112233445566ff"); got != want {
			t.Errorf("%q: %s", node, got)
		}
	}
}

func FuzzLeaf(f *testing.F) {
	for _, s := range leaves(f) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := evidence.DecodeLeaf(s)
		if err != nil {
			return
		}
		index, at := evidence.PlaceOf(l)
		if b, err := evidence.EncodeLeaf(l, index, at); err != nil || string(b) != s {
			t.Errorf("%v\n%s\n%s", err, s, b)
		}
	})
}
