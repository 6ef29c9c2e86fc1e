package evidence_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"probity/evidence"
)

func vectorFileLines(t testing.TB) []string {
	t.Helper()
	file, err := os.ReadFile(vectorPath())
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(file), "\n"), "\n")
}

// reference is what Decode promises, written with encoding/json: strict
// decoding and encoding again.
func reference(line string) bool {
	var claim struct{ Kind string }
	if json.Unmarshal([]byte(line), &claim) != nil || len(line) >= evidence.MaxLineBytes {
		return false
	}
	var l evidence.Line
	switch claim.Kind {
	case evidence.KindCoverage:
		l = new(evidence.Coverage)
	case evidence.KindObservation:
		l = new(evidence.Observation)
	case evidence.KindGap:
		l = new(evidence.Gap)
	default:
		return false
	}
	dec := json.NewDecoder(bytes.NewReader([]byte(line)))
	dec.DisallowUnknownFields()
	if dec.Decode(l) != nil {
		return false
	}
	b, err := evidence.Encode(l)
	return err == nil && string(b) == line
}

// Decode takes exactly the canonical lines, whatever is thrown at it.
func FuzzDecode(f *testing.F) {
	for _, l := range vectorFileLines(f) {
		f.Add(l)
	}
	for _, c := range invalidLines(f) {
		f.Add(c.Line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		l, err := evidence.Decode(line)
		if want := reference(line); (err == nil) != want {
			t.Fatalf("Decode says %v, encoding/json says canonical: %v\n%q", err, want, line)
		}
		if err != nil {
			return
		}
		_ = evidence.Validate(l) // must not panic
		b, err := evidence.Encode(l)
		if err != nil || string(b) != line {
			t.Fatalf("%q encodes to %q, %v", line, b, err)
		}
		if _, err := evidence.DecodeHeader(line); err == nil {
			t.Fatal("a line reads as a header")
		}
	})
}

func FuzzDecodeHeader(f *testing.F) {
	f.Add(vectorFileLines(f)[0])
	f.Fuzz(func(t *testing.T, line string) {
		h, err := evidence.DecodeHeader(line)
		if err != nil {
			return
		}
		_ = h.Validate()
		if b, err := evidence.EncodeHeader(h); err != nil || string(b) != line {
			t.Fatalf("%q encodes to %q, %v", line, b, err)
		}
	})
}

func FuzzDecodeStatement(f *testing.F) {
	b, err := os.ReadFile("testdata/statement.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(b))
	f.Fuzz(func(t *testing.T, payload string) {
		s, err := evidence.DecodeStatement(payload)
		if err != nil {
			return
		}
		if b, err := evidence.EncodeStatement(s); err != nil || string(b) != payload {
			t.Fatalf("%q encodes to %q, %v", payload, b, err)
		}
	})
}

// At every byte of every vector line a few other bytes: the quick reader and the
// reference agree each time.
func TestDecodeAgreesWithReference(t *testing.T) {
	lines := vectorFileLines(t)
	for n, line := range lines[1 : len(lines)-1] {
		if !reference(line) {
			t.Fatalf("line %d is not canonical by the reference", n+2)
		}
		others := []byte{' ', '"', '0', '\\', 0xff, '\n', '}'}
		for i := range len(line) {
			for _, c := range []byte{line[i] ^ 1, others[i%len(others)]} {
				changed := line[:i] + string([]byte{c}) + line[i+1:]
				l, err := evidence.Decode(changed)
				if (err == nil) != reference(changed) {
					t.Fatalf("line %d, byte %d: Decode says %v, the reference disagrees\n%q", n+2, i, err, changed)
				}
				if err == nil {
					_ = evidence.Validate(l)
				}
			}
			if short := line[:i]; reference(short) || decodes(short) {
				t.Fatalf("line %d, cut at %d, is taken", n+2, i)
			}
		}
	}
}

func decodes(line string) bool {
	_, err := evidence.Decode(line)
	return err == nil
}

// invalidLine is a vector for other languages: a line that a verifier must
// refuse, and why.
type invalidLine struct {
	Why   string `json:"why"`
	Error string `json:"error"` // part of this package's message
	Line  string `json:"line"`
}

func invalidLines(t testing.TB) []invalidLine {
	t.Helper()
	b, err := os.ReadFile("testdata/invalid.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []invalidLine
	if err := json.Unmarshal(b, &cases); err != nil {
		t.Fatal(err)
	}
	return cases
}

// change is how testdata/invalid.json is made from the vector's lines.
type change struct {
	why, err string
	line     int // of the vector file
	old, new string
}

var changes = []change{
	{"a space after a colon", "not in canonical form", 10, `"kind":"gap",`, `"kind": "gap",`},
	{"two members exchanged", "not in canonical form", 10, `"scope":"source","reason":"runtimeDisconnected"`, `"reason":"runtimeDisconnected","scope":"source"`},
	{"a member doubled", "not in canonical form", 10, `"scope":"source"`, `"scope":"source","scope":"source"`},
	{"a member in other case", "not in canonical form", 10, `"scope":`, `"Scope":`},
	{"a member that is not known", "unknown field", 10, `"count":"1"`, `"count":"1","extra":1`},
	{"a required member removed", "not in canonical form", 10, `"count":"1",`, ``},
	{"an empty member that is left out", "not in canonical form", 10, `"source":"nri:/var/run/nri/nri.sock"`, `"source":"nri:/var/run/nri/nri.sock","path":""`},
	{"null", "not in canonical form", 6, `"probes":[]`, `"probes":null`},
	{"a character escaped without need", "not in canonical form", 10, `"source":"nri`, `"source":"\u006eri`},
	{"a character not escaped that must be", "not in canonical form", 5, `\u2028`, "\u2028"},
	{"a byte that is not UTF-8, as its escape", "not in canonical form", 10, `"source":"nri`, `"source":"\ufffdri`},
	{"half of a surrogate pair", "not in canonical form", 10, `"source":"nri`, `"source":"\ud800ri`},
	{"a 64-bit value as a number", "Uint64", 7, `"count":"0"`, `"count":0`},
	{"a 64-bit value with a leading zero", "shortest form", 3, `"offset":"4409"`, `"offset":"04409"`},
	{"a 64-bit value with a sign", "shortest form", 3, `"offset":"4409"`, `"offset":"+4409"`},
	{"a number past 64 bits", "shortest form", 2, `"cgroupId":"18446744073709551615"`, `"cgroupId":"18446744073709551616"`},
	{"a number in another spelling", "cannot unmarshal number 1e0", 2, `"sites":1`, `"sites":1e0`},
	{"a fraction in another spelling", "not in canonical form", 3, `"value":0.98`, `"value":0.980`},
	{"a time with fewer digits", "not a time", 10, `.323456789Z`, `.323456Z`},
	{"a time with another zone", "not a time", 10, `.323456789Z`, `.323456789+00:00`},
	{"a day that does not exist", "not a time", 10, `"from":"2026-02-28`, `"from":"2026-02-29`},
	{"a second that does not exist", "not a time", 10, `:59.323456789Z`, `:60.323456789Z`},
	{"something after the object", "not JSON", 10, `"}`, `"}}`},
	{"cut off", "not JSON", 10, `"source":"nri:/var/run/nri/nri.sock"}`, `"source":"nri`},
	{"a state that is not known", "state:", 3, `"state":"hit"`, `"state":"armed"`},
	{"no state", "state:", 3, `"state":"hit"`, `"state":""`},
	{"a probe type that is not known", "probeType:", 3, `"probeType":"uprobe","runId"`, `"probeType":"ebpf","runId"`},
	{"a gap reason that is not known", "reason:", 10, `"reason":"runtimeDisconnected"`, `"reason":"lunch"`},
	{"a reason for not arming that is not known", "reason:", 4, `"reason":"symbolNotFound"`, `"reason":"lunch"`},
	{"a reason on an armed line", "reason:", 7, `"count":"0"`, `"reason":"symbolNotFound","count":"0"`},
	{"notArmed without a reason", "reason:", 4, `"reason":"symbolNotFound",`, ``},
	{"notArmed with a count", "something was observed", 4, `"detail":"in neither symbol table",`, `"detail":"in neither symbol table","count":"0",`},
	{"notArmed with another probe type than asked for", "asked for", 4, `"requestedProbeType":"uprobe"`, `"requestedProbeType":"fentry"`},
	{"notArmed with a confidence", "confidence:", 4, `"confidence":{"value":0,`, `"confidence":{"value":0.5,`},
	{"a hit without a count", "count:", 3, `"count":"9007199254740993",`, ``},
	{"a hit that was counted 0 times", "count:", 3, `"count":"9007199254740993"`, `"count":"0"`},
	{"a hit without a time", "firstAt", 3, `"firstAt":"2026-02-28T23:59:59.143456789Z",`, ``},
	{"armedNoHit with a count", "count:", 7, `"count":"0"`, `"count":"1"`},
	{"armedNoHit that is not complete", "complete:", 7, `"complete":true`, `"complete":false`},
	{"partial without a gap", "gaps:", 5, `"gaps":[{"reason":"fileChanged","from":"2026-02-28T23:59:59.173456789Z","durationNs":"351000000","count":"unknowable"}],`, ``},
	{"complete, with a gap in coverage", "complete:", 3, `{"reason":"ringFull","from":"2026-02-28T23:59:59.153456789Z","to":"2026-02-28T23:59:59.154456789Z","durationNs":"1000000","count":"2"}],"complete":false`, `{"reason":"suspended","from":"2026-02-28T23:59:59.153456789Z","durationNs":"1000000","count":"2"}],"complete":true`},
	{"an armed instruction without an offset", "offset:", 7, `"offset":"4409",`, ``},
	{"an armed file without a digest or why", "fileDigest:", 7, `"fileDigest":"sha256:4444444444444444444444444444444444444444444444444444444444444444",`, ``},
	{"a digest in upper case", "imageDigest:", 3, `"imageDigest":"sha256:33`, `"imageDigest":"sha256:AA`},
	{"neither digest nor reason", "imageDigestReason", 7, `"imageDigestReason":"the image was removed from the store",`, ``},
	{"a run id that is too short", "runId:", 3, `"runId":"0f1e`, `"runId":"1e`},
	{"a runtime that is not known", "runtime:", 3, `"runtime":"containerd"`, `"runtime":"lxc"`},
	{"an end before the start", "to:", 10, `"to":"2026-02-28T23:59:59.4`, `"to":"2026-02-28T23:59:58.4`},
	{"a confidence above 1", "confidence:", 7, `"value":0.882`, `"value":1.5`},
	{"unknowable without a reason", "losses:", 6, `,"reason":"kernel 6.1 does not count missed uprobe programs"`, ``},
	{"an incomplete search without a reason", "searchReason:", 2, `,"searchReason":"/data is a volume and was not searched"`, ``},
	{"a gap of a run without its id", "runId:", 9, `"runId":"0f1e2d3c4b5a69788796a5b4c3d2e1f0",`, ``},
	{"a gap of a source without a source", "source:", 10, `,"source":"nri:/var/run/nri/nri.sock"`, ``},
}

func TestInvalidLines(t *testing.T) {
	lines := vectorFileLines(t)
	var made []invalidLine
	for _, c := range changes {
		line := lines[c.line-1]
		if !strings.Contains(line, c.old) {
			t.Fatalf("%s: line %d has no %s\n%s", c.why, c.line, c.old, line)
		}
		made = append(made, invalidLine{c.why, c.err, strings.Replace(line, c.old, c.new, 1)})
	}
	if *update {
		var buf bytes.Buffer
		enc := json.NewEncoder(&buf)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(made); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("testdata/invalid.json", buf.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cases := invalidLines(t)
	if len(cases) != len(made) {
		t.Fatalf("testdata/invalid.json has %d lines, want %d", len(cases), len(made))
	}
	for i, c := range cases {
		if c != made[i] {
			t.Errorf("%s: testdata/invalid.json says something else", made[i].Why)
		}
		l, err := evidence.Decode(c.Line)
		if err == nil {
			err = evidence.Validate(l)
		}
		if err == nil || !strings.Contains(err.Error(), c.Error) {
			t.Errorf("%s: got %v, want an error with %q", c.Why, err, c.Error)
		}
	}
}

func TestHeader(t *testing.T) {
	line := vectorFileLines(t)[0]
	for _, c := range []struct{ why, old, new, err string }{
		{"newer", `"format":"probity-chunk/1"`, `"format":"probity-chunk/2"`, `made by a newer version: format "probity-chunk/2" is not known to this verifier`},
		{"not a header", `"kind":"header"`, `"kind":"gap"`, "the kind is"},
		{"short padding", `..."`, `"`, "padding"},
		{"other padding", `..."`, `xxx"`, "padding"},
		{"seq", `"seq":"7"`, `"seq":"8"`, "seq"},
		{"name", `"chunk":"00`, `"chunk":"0x`, "chunk"},
		{"upper case instance", `66ff"`, `66FF"`, "chunk"},
		{"unknown member", `"agent":`, `"pid":1,"agent":`, "unknown field"},
		{"key", `"keyId":"SHA256:`, `"keyId":"SHA512:`, "keyId"},
		{"no node", `"node":"node-a.example"`, `"node":""`, "node"},
	} {
		changed := strings.Replace(line, c.old, c.new, 1)
		if changed == line {
			t.Fatalf("%s: nothing changed", c.why)
		}
		if grow := len(line) - len(changed); c.why == "no node" && grow > 0 { // keep the length right, so that it is not the padding
			changed = strings.Replace(changed, `"padding":"`, `"padding":"`+strings.Repeat(".", grow), 1)
		}
		h, err := evidence.DecodeHeader(changed)
		if err == nil {
			err = h.Validate()
		}
		if err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: got %v, want an error with %q", c.why, err, c.err)
		}
		if errors.Is(err, evidence.ErrNewer) != (c.why == "newer") {
			t.Errorf("%s: newer is wrong: %v", c.why, err)
		}
	}
	h := vectorHeader("SHA256:x")
	h.Node = strings.Repeat("n", 2000)
	if _, err := evidence.EncodeHeader(h); err == nil {
		t.Error("a header whose facts do not fit is encoded")
	}
}

// Text that is not UTF-8 gets one spelling, which survives being read.
func TestNotUTF8(t *testing.T) {
	for _, path := range []string{"/\xff\xfe", "/\\ufffd\xff", "/\\\\\xff\"\\", "/�\xc3("} {
		g := &evidence.Gap{GapID: "g", Scope: evidence.ScopeNode, Reason: evidence.GapSuspended, From: evidence.TimeOf(vectorHeader("").Clock.Wall.Std()), Path: path}
		b, err := evidence.Encode(g)
		if err != nil {
			t.Fatal(err)
		}
		l, err := evidence.Decode(string(b))
		if err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		if got, want := l.(*evidence.Gap).Path, strings.ToValidUTF8(path, "�"); strings.Count(got, "�") < strings.Count(want, "�") {
			t.Fatalf("%q reads as %q", path, got)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	line := vectorFileLines(b)[2]
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	for b.Loop() {
		l, err := evidence.Decode(line)
		if err != nil {
			b.Fatal(err)
		}
		if err := evidence.Validate(l); err != nil {
			b.Fatal(err)
		}
	}
}
