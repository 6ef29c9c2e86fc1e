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

func (v vector) fileLines(t testing.TB) []string {
	t.Helper()
	file, err := os.ReadFile(v.path())
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(file), "\n"), "\n")
}

func vectorFileLines(t testing.TB) []string { return vectors[0].fileLines(t) }

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
	for _, v := range vectors {
		for _, l := range v.fileLines(f) {
			f.Add(l)
		}
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
	for _, v := range vectors {
		f.Add(v.fileLines(f)[0])
	}
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
	for _, v := range vectors {
		b, err := os.ReadFile("testdata/" + v.statement)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
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
	for _, v := range vectors {
		t.Run(v.format, func(t *testing.T) { agreesWithReference(t, v.fileLines(t)) })
	}
}

func agreesWithReference(t *testing.T, lines []string) {
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

// change is how testdata/invalid.json is made from the vectors' lines.
type change struct {
	why, err string
	line     int // of the vector file
	old, new string
}

// changes2 are of the second vector.
var changes2 = []change{
	{"an IPv6 address in another spelling", "address:", 13, `"address":"2001:db8::1"`, `"address":"2001:0db8::1"`},
	{"an address of another family", "address:", 13, `"family":"ipv6"`, `"family":"ipv4"`},
	{"a port past 16 bits", "port:", 13, `"port":443`, `"port":65536`},
	{"a network entry with a path", "path:", 13, `"set":"network"`, `"path":"/x","set":"network"`},
	{"an operation that is not known", "operation:", 13, `"operation":"connect"`, `"operation":"dial"`},
	{"a library that is mapped in no known way", "mapped:", 12, `"mapped":"private"`, `"mapped":"rw"`},
	{"a device in another spelling", "device:", 12, `"device":"0:57"`, `"device":"00:57"`},
	{"an inode without a device", "device:", 12, `"device":"0:57",`, ``},
	{"an executable without a path", "path:", 11, `"path":"/usr/bin/curl",`, ``},
	{"a parent that is no process of exec", "parent:", 14, `"access":"write"`, `"parent":{"pid":1},"access":"write"`},
	{"an entry without a set", "set:", 14, `"set":"files",`, ``},
	{"an entry of a set that was not hit", "a hit was observed", 10, `"set":"exec"`, `"set":"exec","entries":"2"`},
	{"a set that is not known", "set:", 10, `"set":"exec"`, `"set":"dreams"`},
	{"a set on a line about an instruction", "set:", 3, `"count":"4","firstAt"`, `"set":"exec","count":"4","firstAt"`},
	{"system calls on another set's line", "systemCalls", 15, `"set":"syscalls"`, `"set":"files"`},
	{"system calls that do not rise", "numbers:", 15, `[0,1,59,231]`, `[0,59,1,231]`},
	{"an observation without a probe type", "not in canonical form", 3, `"probeType":"uprobe",`, ``},
	{"a list of system calls that is null", "not in canonical form", 15, `"numbers":[0,1,59,231]`, `"numbers":null`},
	{"an architecture that is not known", "arch:", 15, `"arch":"i386"`, `"arch":"x86"`},
	{"ioUring that is false", "not in canonical form", 15, `"ioUring":true`, `"ioUring":false`},
	{"a duration whose counts are not its count", "duration:", 3, `"count":"3","unmatched"`, `"count":"4","unmatched"`},
	{"a duration that ends in a bucket of 0", "duration:", 3, `"counts":["0","0","2","1"]`, `"counts":["0","0","2","1","0"]`},
	{"a duration in another unit", "unit:", 3, `"unit":"ns"`, `"unit":"us"`},
	{"a stack that is cut and does not say why", "reason:", 3, `"truncated":true,"reason":"the chain of frame pointers ends in code without them"`, `"truncated":true`},
	{"a frame with neither build id nor reason", "buildId, reason", 3, `{"reason":"anonymous"}`, `{"symbol":"x"}`},
	{"a frame with build id and no offset", "offset:", 3, `"buildId":"aa11","offset":"4660"`, `"buildId":"aa11"`},
	{"a frame's reason that is not known", "reason:", 3, `{"reason":"anonymous"}`, `{"reason":"lunch"}`},
	{"instances without inlinedAt", "inlinedAt:", 3, `"inline":"inlinedAt"`, `"inline":"unknown"`},
	{"inlinedAt without an instance", "inlinedAt:", 4, `"symbolKind":"inlined"`, `"symbolKind":"inlined","inline":"inlinedAt"`},
	{"inlinedIn where nothing is inlined", "inlinedIn:", 4, `"symbolKind":"inlined"`, `"symbolKind":"func"`},
	{"a session that is not known", "session:", 6, `"session":"exec"`, `"session":"login"`},
	{"a kernel function that was armed, without its name", "function:", 6, `"function":"__x64_sys_openat",`, ``},
	{"a kernel function in a file", "function:", 6, `"wanted":"openat"`, `"path":"/x","wanted":"openat"`},
	{"a kernel function of a uprobe", "function:", 5, `"symbol":"memcpy","offset":"8192","path":"/usr/lib/libc.so.6","fileDigest":"sha256:4444444444444444444444444444444444444444444444444444444444444444","implements":"memcpy"`, `"function":"memcpy"`},
	{"a gap of a run with an offset", "offset:", 17, `"scope":"site"`, `"scope":"run"`},
	{"a gap of a probe type that is not known", "probeType:", 16, `"probeType":"kprobe"`, `"probeType":"probe"`},
	{"unknowable of one probe type, without a reason", "losses:", 2, `,"reason":"kernel 6.1 does not count missed uprobe programs"`, ``},
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

// changes3 are of the third vector.
var changes3 = []change{
	{"a redacted member without a mark", "redacted: path has no mark", 7, "\u2039redacted:home:0123456789abcdef\u203A", "alice"},
	{"a mark of a rule that is not listed", `a mark of the rule "work", which is not listed`, 7, "redacted:home:0", "redacted:work:0"},
	{"a mark that does not end", "a character of a mark outside of one", 7, "0123456789abcdef\u203A", "0123456789abcdef"},
	{"a redacted port that is there", "redacted: entry.port is there", 5, "\"address\":\"\u2039redacted:peers\u203A\"", "\"address\":\"\u2039redacted:peers\u203A\",\"port\":443"},
	{"a member of another kind of line", "is not a member that can be", 7, `"member":"detail"`, `"member":"image"`},
	{"a refusal of a container that nothing is required of", "refused: only with failPolicyEnforced", 2, `"failPolicyEnforced":true,`, ``},
	{"redactions not in order", "not in order", 7, `[{"member":"path","rule":"home"},{"member":"detail","rule":"home"}]`, `[{"member":"detail","rule":"home"},{"member":"path","rule":"home"}]`},
}

func TestInvalidLines(t *testing.T) {
	var made []invalidLine
	for i, list := range [][]change{changes, changes2, changes3} {
		lines := vectors[i].fileLines(t)
		for _, c := range list {
			line := lines[c.line-1]
			if !strings.Contains(line, c.old) {
				t.Fatalf("%s: line %d has no %s\n%s", c.why, c.line, c.old, line)
			}
			made = append(made, invalidLine{c.why, c.err, strings.Replace(line, c.old, c.new, 1)})
		}
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

// A list that has to be there is [] if it is empty. It once was null, which is a second
// spelling of the same line, and in another language no list.
func TestRequiredListsAreNeverNull(t *testing.T) {
	line := vectors[1].fileLines(t)[2]
	o, err := evidence.Decode(line)
	if err != nil {
		t.Fatal(err)
	}
	hit := o.(*evidence.Observation)
	hit.Stack = &evidence.Stack{Reason: "unreadable"}
	hit.Duration = &evidence.Duration{Unit: evidence.UnitNs, Unmatched: 1}
	b, err := evidence.Encode(hit)
	if err == nil {
		err = evidence.Validate(hit)
	}
	if err != nil || bytes.Contains(b, []byte("null")) || !bytes.Contains(b, []byte(`"frames":[]`)) || !bytes.Contains(b, []byte(`"counts":[]`)) {
		t.Fatalf("%s, %v", b, err)
	}
	if _, err := evidence.Decode(string(b)); err != nil {
		t.Error(err)
	}
	for _, list := range []string{`"frames":[]`, `"counts":[]`} {
		if _, err := evidence.Decode(strings.Replace(string(b), list, strings.Replace(list, "[]", "null", 1), 1)); err == nil {
			t.Errorf("%s as null is taken", list)
		}
	}
}

func TestHeader(t *testing.T) {
	line := vectorFileLines(t)[0]
	for _, c := range []struct{ why, old, new, err string }{
		{"newer", `"format":"probity-chunk/1"`, `"format":"probity-chunk/4"`, `made by a newer version: format "probity-chunk/4" is not known to this verifier`},
		{"newer", `"format":"probity-chunk/1"`, `"format":"probity-chunk/99999999999999999999"`, `made by a newer version`},
		{"of no version", `"format":"probity-chunk/1"`, `"format":"probity-chunk/0"`, "is not one of"},
		{"another spelling of a version", `"format":"probity-chunk/1"`, `"format":"probity-chunk/03"`, "is not one of"},
		{"another format", `"format":"probity-chunk/1"`, `"format":"other"`, "is not one of"},
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
	h := vectors[0].header("SHA256:x")
	h.Node = strings.Repeat("n", 2000)
	if _, err := evidence.EncodeHeader(h); err == nil {
		t.Error("a header whose facts do not fit is encoded")
	}
}

// Text that is not UTF-8 gets one spelling, which survives being read.
func TestNotUTF8(t *testing.T) {
	for _, path := range []string{"/\xff\xfe", "/\\ufffd\xff", "/\\\\\xff\"\\", "/�\xc3("} {
		g := &evidence.Gap{GapID: "g", Scope: evidence.ScopeNode, Reason: evidence.GapSuspended, From: evidence.TimeOf(vectors[0].header("").Clock.Wall.Std()), Path: path}
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
