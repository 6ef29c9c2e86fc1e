package evidence_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/score"
	"probity/evidence/sign"
)

// The vectors pin the bytes of the format. -update writes those of the current
// version again, with a new signature: do that only when the format changes, and
// say so in FORMAT.md. Those of earlier versions are never written again.
var update = flag.Bool("update", false, "write the vectors in testdata again")

const vectorInstance = "00112233445566ff"

// vector is one chunk in testdata.
type vector struct {
	seq       uint64
	format    string
	statement string // file of the envelope's payload
	lines     func(evidence.Clock) []evidence.Line
}

var vectors = []vector{
	{7, evidence.Format1, "statement.json", vectorLines},
	{8, evidence.Format2, "statement-2.json", vectorLines2},
	{9, evidence.Format3, "statement-3.json", vectorLines3},
	{10, evidence.Format3, "statement-3-coalesced.json", coalescedLines},
}

func (v vector) path() string {
	return filepath.Join("testdata", evidence.ChunkName(v.seq, vectorInstance)+".ndjson")
}

func testSigner(t testing.TB) *sign.Signer {
	t.Helper()
	b, err := os.ReadFile("testdata/test.key")
	if err != nil {
		t.Fatal(err)
	}
	s, err := sign.ParsePrivate(b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (v vector) header(keyID string) evidence.Header {
	h := evidence.Header{
		Kind: evidence.KindHeader, Format: v.format,
		Chunk: evidence.ChunkName(v.seq, vectorInstance), Node: "node-a.example", BootID: "5b1a7f9e-3c0d-4e2a-9b8c-7d6e5f4a3b2c", Seq: evidence.Uint64(v.seq), KeyID: keyID,
		Clock: evidence.Clock{BootNs: 3_600_000_000_000, Wall: evidence.TimeOf(time.Date(2026, 2, 28, 23, 59, 59, 123456789, time.UTC))},
		Agent: "probity 0.1.0",
	}
	if v.format != evidence.Format1 {
		leaf := evidence.Uint64(5)
		h.Log, h.Leaf = evidence.Origin(h.Node, vectorInstance), &leaf
	}
	return h
}

// vectorLines has a line of every kind, every state, and every member of version
// 1 at least once; names hold what JSON escapes and what it must not.
func vectorLines(c evidence.Clock) []evidence.Line {
	const (
		caller   = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
		idle     = "a0b1c2d3e4f5061728394a5b6c7d8e9f"
		callerID = "1111111111111111111111111111111111111111111111111111111111111111"
		idleID   = "2222222222222222222222222222222222222222222222222222222222222222"
		image    = "sha256:3333333333333333333333333333333333333333333333333333333333333333"
		library  = "sha256:4444444444444444444444444444444444444444444444444444444444444444"
		layer    = "sha256:5555555555555555555555555555555555555555555555555555555555555555"
	)
	at := func(ms int64) evidence.Time { return c.Time(int64(c.BootNs) + ms*1e6) }
	num := func(n uint64) *evidence.Uint64 { u := evidence.Uint64(n); return &u }
	version1 := func(c evidence.Confidence) evidence.Confidence { c.Version = "1"; return c }
	armed := func(pt evidence.ProbeType, symbol string, l evidence.Losses) evidence.Confidence {
		return version1(score.Confidence(pt, score.AttributionCgroup, symbol, l))
	}
	unknowable := evidence.Losses{KernelMissed: evidence.Loss{Unknowable: true}, Reason: "kernel 6.1 does not count missed uprobe programs"}
	return []evidence.Line{
		&evidence.Coverage{
			RunID: caller, ContainerID: callerID, ContainerName: "web-\u00fc\"<&>", Runtime: "containerd",
			Pod:   &evidence.Pod{Name: "web-0", Namespace: "shop", UID: "7c9e6679-7425-40de-944b-e07fc1f90ae7"},
			Image: "registry.example/demo:1.2", ImageDigest: image, ImageIndexDigest: strings.Replace(image, "33", "35", 1), ImageConfigDigest: strings.Replace(image, "33", "36", 1),
			BootID: "5b1a7f9e-3c0d-4e2a-9b8c-7d6e5f4a3b2c", CgroupID: 18446744073709551615, CgroupPath: "/kubepods.slice/pod7c9e/cri-1111.scope",
			Attribution: score.AttributionCgroup, Source: "nri:/var/run/nri/nri.sock", FirstExec: at(12), Started: at(10), Ended: at(400),
			From: at(11), To: at(401), Final: true, Policies: layer,
			Losses: evidence.Losses{RingFull: evidence.Loss{N: 2}},
			Probes: []evidence.ProbeFold{
				{ProbeID: "libgreet-hello", State: evidence.Hit, Sites: 1, SearchComplete: true},
				{ProbeID: "libgreet-gone", State: evidence.NotArmed, SearchComplete: true},
				{ProbeID: "data-volume", State: evidence.Partial, Sites: 1, SearchReason: "/data is a volume and was not searched"},
			},
			GapReasons: []evidence.GapReason{evidence.GapRingFull, evidence.GapFileChanged},
		},
		&evidence.Observation{
			State: evidence.Hit, ProbeType: evidence.Uprobe, RunID: caller, ContainerID: callerID, Runtime: "containerd", ImageDigest: image,
			ProbeID: "libgreet-hello", RequestedProbeType: evidence.Fentry, Symbol: "greet_hello", Offset: num(4409), Path: "/usr/lib/libgreet.so.1",
			FileDigest: library, BuildID: "9d5c0ffee9d5c0ffee9d5c0ffee9d5c0ffee9d5c", Origin: "imageLayer", LayerDiffID: layer, SymbolKind: "func", Inline: "unknown", Copies: 2,
			Detail: "fentry was asked for: not supported on user space", Count: num(9007199254740993), FirstAt: at(20), LastAt: at(390),
			Process:    &evidence.Process{Pid: 4711, Comm: "greeter", Path: "/usr/bin/greeter"},
			Confidence: armed(evidence.Uprobe, score.SymbolFunc, evidence.Losses{}),
			Gaps:       []evidence.SiteGap{{Reason: evidence.GapRingFull, From: at(30), To: at(31), DurationNs: 1000000, Count: evidence.Loss{N: 2}}},
			Final:      true, From: at(11), To: at(401),
		},
		&evidence.Observation{
			State: evidence.NotArmed, ProbeType: evidence.Uprobe, RunID: caller, ContainerID: callerID, Runtime: "containerd", ImageDigest: image,
			ProbeID: "libgreet-gone", RequestedProbeType: evidence.Uprobe, Symbol: "greet_gone", Path: "/usr/lib/libgreet.so.1", FileDigest: library,
			Reason: evidence.SymbolNotFound, Detail: "in neither symbol table", Confidence: version1(score.NotArmed(evidence.Uprobe, score.AttributionCgroup, score.SymbolUnknown)),
			Complete: true, Final: true, From: at(11), To: at(401),
		},
		&evidence.Observation{
			State: evidence.Partial, ProbeType: evidence.Uprobe, RunID: caller, ContainerID: callerID, Runtime: "containerd", ImageDigest: image,
			ProbeID: "data-volume", RequestedProbeType: evidence.Uprobe, Offset: num(0), Path: "/opt/\u2028tab\there\\ufffd\u00e4", FileDigest: library,
			Origin: "upper", Count: num(0), Confidence: armed(evidence.Uprobe, score.SymbolOffset, unknowable),
			Gaps: []evidence.SiteGap{{Reason: evidence.GapFileChanged, From: at(50), DurationNs: 351000000, Count: evidence.Loss{Unknowable: true}}},
			From: at(11), To: at(401), Final: true,
		},
		&evidence.Coverage{
			RunID: idle, ContainerID: idleID, ContainerName: "idle", Runtime: "podman", Image: "localhost/demo:latest",
			ImageDigestReason: "the image was removed from the store", BootID: "5b1a7f9e-3c0d-4e2a-9b8c-7d6e5f4a3b2c", CgroupID: 4242,
			Attribution: score.AttributionCgroup, Source: "hook", Started: at(100), From: at(101), To: at(402),
			Losses: unknowable, Probes: []evidence.ProbeFold{},
		},
		&evidence.Observation{
			State: evidence.ArmedNoHit, ProbeType: evidence.Uprobe, RunID: idle, ContainerID: idleID, Runtime: "podman", ImageDigestReason: "the image was removed from the store",
			ProbeID: "libgreet-hello", RequestedProbeType: evidence.Uprobe, Symbol: "greet_hello", Offset: num(4409), Path: "/usr/lib/libgreet.so.1", FileDigest: library,
			SymbolKind: "func", Inline: "none", Count: num(0), Confidence: armed(evidence.Uprobe, score.SymbolFunc, unknowable), Complete: true, From: at(101), To: at(402),
		},
		&evidence.Observation{
			State: evidence.Hit, ProbeType: evidence.Tracepoint, RunID: idle, ContainerID: idleID, Runtime: "podman", ImageDigestReason: "the image was removed from the store",
			ProbeID: "exec", RequestedProbeType: evidence.Tracepoint, Event: "sched:sched_process_exec", Count: num(2), FirstAt: at(102), LastAt: at(110),
			Processes:  []evidence.Process{{Pid: 4801, Comm: "sh", Path: "/bin/sh"}, {Pid: 4802, Comm: "sleep"}},
			Confidence: armed(evidence.Tracepoint, score.SymbolEvent, unknowable), Complete: true, From: at(101), To: at(402),
		},
		&evidence.Gap{GapID: caller + "-1", Scope: evidence.ScopeFile, Reason: evidence.GapFileChanged, From: at(50), Count: evidence.Loss{Unknowable: true},
			RunID: caller, ContainerID: callerID, Path: "/opt/\u2028tab\there\\ufffd\u00e4", ProbeID: "data-volume", Symbol: "x", Detail: "copied up by a write"},
		&evidence.Gap{GapID: "nri-1", Scope: evidence.ScopeSource, Reason: evidence.GapRuntimeDisconnected, From: at(200), To: at(300), Count: evidence.Loss{N: 1},
			Source: "nri:/var/run/nri/nri.sock"},
	}
}

// Encoding the vector's values gives the committed bytes, and the committed
// signature belongs to them.
func TestVectorBytes(t *testing.T) {
	for _, v := range vectors {
		t.Run(v.statement, func(t *testing.T) { v.checkBytes(t) })
	}
}

func (v vector) checkBytes(t *testing.T) {
	signer := testSigner(t)
	header := v.header(signer.KeyID())
	h, err := evidence.EncodeHeader(header)
	if err != nil {
		t.Fatal(err)
	}
	body := append(h, '\n')
	var tally evidence.Tally
	for _, l := range v.lines(header.Clock) {
		b, err := evidence.Encode(l)
		if err != nil {
			t.Fatal(err)
		}
		if err := evidence.Validate(l); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		body = append(append(body, b...), '\n')
		tally.Add(l)
	}
	sum := sha256.Sum256(body)
	payload, err := evidence.EncodeStatement(tally.Statement(header, hex.EncodeToString(sum[:])))
	if err != nil {
		t.Fatal(err)
	}
	if *update && v.format == evidence.Format {
		envelope, err := signer.Envelope(payload)
		if err != nil {
			t.Fatal(err)
		}
		files := map[string][]byte{
			v.path():                               append(append(body[:len(body):len(body)], envelope...), '\n'),
			filepath.Join("testdata", v.statement): payload,
		}
		for name, b := range files {
			if err := os.WriteFile(name, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	file, err := os.ReadFile(v.path())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(file), string(body)) {
		t.Fatalf("the lines encode to other bytes than %s has", v.path())
	}
	want, err := os.ReadFile(filepath.Join("testdata", v.statement))
	if err != nil {
		t.Fatal(err)
	}
	if string(payload) != string(want) {
		t.Fatalf("the statement is\n%s\nwant\n%s", payload, want)
	}
	pub, err := os.ReadFile("testdata/test.pub")
	if err != nil {
		t.Fatal(err)
	}
	key, err := sign.LoadPublic(pub)
	if err != nil {
		t.Fatal(err)
	}
	envelope := strings.TrimSuffix(string(file[len(body):]), "\n")
	got, err := sign.Open([]byte(envelope), key)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Fatal("the committed envelope holds another statement")
	}
}

// What is read back is what was written.
func TestVectorDecodes(t *testing.T) {
	for _, v := range vectors {
		t.Run(v.statement, func(t *testing.T) { v.checkDecodes(t) })
	}
}

func (v vector) checkDecodes(t *testing.T) {
	lines := v.fileLines(t)
	h, err := evidence.DecodeHeader(lines[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Validate(); err != nil {
		t.Fatal(err)
	}
	if len(lines[0])+1 != evidence.MinHeaderBytes {
		t.Fatalf("the header line has %d bytes", len(lines[0])+1)
	}
	own := 0
	for i, want := range v.lines(h.Clock) {
		l, err := evidence.Decode(lines[i+1])
		if err != nil {
			t.Fatalf("line %d: %v", i+2, err)
		}
		if _, err := evidence.Encode(want); err != nil { // fills in kind
			t.Fatal(err)
		}
		g, _ := json.Marshal(l)
		w, _ := json.Marshal(want)
		if string(g) != string(w) {
			t.Errorf("line %d reads as\n%s\nwant\n%s", i+2, g, w)
		}
		if evidence.FormatOf(l) == v.format {
			own++
		}
		if slices.Index(evidence.Formats, evidence.FormatOf(l)) > slices.Index(evidence.Formats, v.format) {
			t.Errorf("line %d needs a later version of the format than its chunk's", i+2)
		}
	}
	if own == 0 {
		t.Error("no line needs this version of the format")
	}
	st, err := os.ReadFile(filepath.Join("testdata", v.statement))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := evidence.DecodeStatement(string(st)); err != nil {
		t.Fatal(err)
	}
}
