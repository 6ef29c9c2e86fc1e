package trust_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"probity/evidence/schema"
	"probity/evidence/sign"
	"probity/evidence/trust"
)

func aKey(t testing.TB) *sign.PublicKey {
	t.Helper()
	s, err := sign.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s.Public()
}

// testKey is the one of the vectors.
func testKey(t testing.TB) *sign.PublicKey {
	t.Helper()
	b, err := os.ReadFile("../testdata/test.pub")
	if err != nil {
		t.Fatal(err)
	}
	k, err := sign.LoadPublic(b)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func at(t testing.TB, s string) time.Time {
	t.Helper()
	v, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// full has every member.
func full(t testing.TB) []byte {
	t.Helper()
	e := trust.EntryOf("node-a", testKey(t))
	e.NotBefore, e.NotAfter, e.Note = at(t, "2026-01-01T00:00:00Z"), at(t, "2027-01-01T00:00:00Z"), "rack 7"
	e.Revoked = &trust.Revocation{At: at(t, "2026-06-01T12:00:00Z"), Reason: trust.Compromised, Note: "ticket 9"}
	b, err := trust.Write([]trust.Entry{e})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func validator(t testing.TB) *jsonschema.Schema {
	t.Helper()
	b, err := schema.FS.ReadFile("trust.json")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("trust.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("trust.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParse(t *testing.T) {
	b := full(t)
	f, err := trust.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := trust.Write(f.Entries())
	if err != nil || !bytes.Equal(again, b) {
		t.Errorf("written again it is another file: %v\n%s", err, again)
	}
	key := testKey(t)
	if e, ok := f.Entry(key.KeyID()); !ok || e.Node != "node-a" || f.Key(key.KeyID()).KeyID() != key.KeyID() || f.Key("SHA256:x") != nil {
		t.Errorf("entry: %+v, %v", e, ok)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := validator(t).Validate(doc); err != nil {
		t.Errorf("schema: %v", err)
	}
}

// What another reader could take for something else, and what nobody meant, is
// refused; by the schema too, where a schema can see it.
func TestParseRefuses(t *testing.T) {
	good := string(full(t))
	swap := func(from, to string) string {
		t.Helper()
		s := strings.Replace(good, from, to, 1)
		if s == good {
			t.Fatalf("no %q", from)
		}
		return s
	}
	s := validator(t)
	for _, c := range []struct {
		why, file, err string
		schema         bool // sees it
	}{
		{"nothing", "", "EOF", false},
		{"another format", swap("probity-trust/1", "probity/1"), "format", true},
		{"no format", swap(`"format": "probity-trust/1",`, ""), "format", true},
		{"no keys", `{"format": "probity-trust/1", "keys": []}`, "0 keys", true},
		{"an unknown member", swap(`"note": "rack 7"`, `"notes": "rack 7"`), `"notes" is not known`, true},
		{"a known member elsewhere", swap(`"note": "rack 7"`, `"reason": "rack 7"`), "reason", true},
		{"other letters", swap(`"node"`, `"Node"`), `"Node" is not known`, true},
		{"a member twice", swap(`"node": "node-a",`, `"node": "node-a", "node": "node-b",`), "twice", false},
		{"null", swap(`"rack 7"`, `null`), "null", true},
		{"two documents", good + good, "follows", false},
		{"garbage behind", good + "x", "", false},
		{"no node", swap(`"node": "node-a",`, ""), "node: missing", true},
		{"an empty node", swap(`"node-a"`, `""`), "node: missing", true},
		{"a control character", swap(`"node-a"`, `"node\u001ba"`), "control", true},
		{"a long name", swap(`"node-a"`, `"`+strings.Repeat("n", 600)+`"`), "more than", true},
		{"another key's id", swap(`"SHA256:`, `"SHA256:A`), "keyId", true},
		{"no key", swap(`"publicKey": "M`, `"publicKey": "N`), "publicKey", false},
		{"a broken key", swap(`"publicKey": "M`, `"publicKey": " M`), "publicKey", true},
		{"a time without zone", swap("2026-01-01T00:00:00Z", "2026-01-01T00:00:00"), "parsing time", true},
		{"no time", swap("2026-01-01T00:00:00Z", "soon"), "parsing time", true},
		{"ends before it begins", swap("2027-01-01", "2025-01-01"), "before notBefore", false},
		{"revoked nowhen", swap(`"at": "2026-06-01T12:00:00Z",`, ""), "revoked.at", true},
		{"revoked because", swap(`"compromised"`, `"lost"`), "revoked.reason", true},
		{"an array for an object", swap(`"revoked": {`, `"revoked": [{`), "", false},
		{"the key twice", strings.Replace(good, "]\n}", ","+good[strings.Index(good, "[")+1:], 1), "already", false},
		{"not UTF-8", swap("rack 7", "rack \xff"), "UTF-8", false},
		{"deep", `{"format":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, "nested", true},
	} {
		t.Run(c.why, func(t *testing.T) {
			if _, err := trust.Parse([]byte(c.file)); err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %v, want an error with %q", err, c.err)
			}
			var v any
			if json.Unmarshal([]byte(c.file), &v) != nil {
				return
			}
			doc, err := jsonschema.UnmarshalJSON(strings.NewReader(c.file))
			if err != nil {
				return
			}
			if err := s.Validate(doc); (err != nil) != c.schema {
				t.Errorf("schema: %v", err)
			}
		})
	}
	if _, err := trust.Parse([]byte(swap("probity-trust/1", "probity-trust/2"))); !errors.Is(err, trust.ErrNewer) {
		t.Errorf("a newer version: %v", err)
	}
	if _, err := trust.Parse([]byte(`{"format":"probity-trust/2","keys":{"unknown":null}}`)); !errors.Is(err, trust.ErrNewer) {
		t.Errorf("a newer version that looks otherwise: %v", err)
	}
}

func TestJudge(t *testing.T) {
	key, from, to, gone := testKey(t), "2026-01-01T00:00:00Z", "2026-12-31T00:00:00Z", "2026-06-01T00:00:00Z"
	for _, c := range []struct {
		why, node, at, reason string
		want                  []trust.Doubt
	}{
		{"in time", "node-a", "2026-03-01T00:00:00Z", "", nil},
		{"first moment", "node-a", from, "", nil},
		{"last moment", "node-a", to, "", nil},
		{"too early", "node-a", "2025-12-31T23:59:59.999999999Z", "", []trust.Doubt{trust.NotValid}},
		{"too late", "node-a", "2026-12-31T00:00:00.000000001Z", "", []trust.Doubt{trust.NotValid}},
		{"another node", "node-b", "2026-03-01T00:00:00Z", "", []trust.Doubt{trust.OtherNode}},
		{"another node, too late", "node-b", "2027-03-01T00:00:00Z", "", []trust.Doubt{trust.OtherNode, trust.NotValid}},
		{"before it was retired", "node-a", "2026-05-31T23:59:59Z", trust.Retired, nil},
		{"when it was retired", "node-a", gone, trust.Retired, []trust.Doubt{trust.Revoked}},
		{"after it was retired", "node-a", "2026-07-01T00:00:00Z", trust.Retired, []trust.Doubt{trust.Revoked}},
		{"before others had it", "node-a", "2026-05-31T23:59:59Z", trust.Compromised, []trust.Doubt{trust.Unanchored}},
		{"since others have it", "node-a", gone, trust.Compromised, []trust.Doubt{trust.Revoked}},
	} {
		t.Run(c.why, func(t *testing.T) {
			e := trust.EntryOf("node-a", key)
			e.NotBefore, e.NotAfter = at(t, from), at(t, to)
			if c.reason != "" {
				e.Revoked = &trust.Revocation{At: at(t, gone), Reason: c.reason}
			}
			b, err := trust.Write([]trust.Entry{e, trust.EntryOf("node-b", aKey(t)), trust.EntryOf("node-a", aKey(t))})
			if err != nil {
				t.Fatal(err)
			}
			f, err := trust.Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			got := f.Judge(key.KeyID(), c.node, at(t, c.at))
			for _, d := range trust.Doubts {
				want := false
				for _, w := range c.want {
					want = want || w == d
				}
				if why, ok := got[d]; ok != want || ok && !strings.Contains(why, key.KeyID()) {
					t.Errorf("%s: %q, wanted %v", d, why, want)
				}
			}
			if d := f.Judge("SHA256:x", c.node, at(t, c.at)); d != nil {
				t.Errorf("a key that is not in it: %v", d)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(full(f))
	f.Add([]byte(`{"format":"probity-trust/1","keys":[{"node":"a","keyId":"SHA256:","publicKey":""}]}`))
	f.Add([]byte(`{"format":"probity-trust/1","keys":[[[[[]]]]]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := trust.Parse(b)
		if err != nil {
			return
		}
		again, err := trust.Write(file.Entries())
		if err != nil {
			t.Fatalf("taken, and not written: %v", err)
		}
		if twice, err := trust.Parse(again); err != nil || len(twice.Entries()) != len(file.Entries()) {
			t.Fatalf("written, and not taken: %v", err)
		}
	})
}
