package export_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/export"
	"probity/evidence/sign"
	"probity/evidence/verify"
	"probity/tests/stellaops"
)

const (
	run   = "0123456789abcdef0123456789abcdef"
	id    = "1111111111111111111111111111111111111111111111111111111111111111"
	image = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
)

var clock = evidence.Clock{BootNs: 1e12, Wall: evidence.TimeOf(time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC))}

// hit is a site that was hit 5 ns after boot time 1 s, in a process.
func hit(change ...func(*evidence.Observation)) *evidence.Observation {
	o := &evidence.Observation{
		State: evidence.Hit, ProbeType: evidence.Uprobe, RunID: run, ContainerID: id, Runtime: "podman", ImageDigest: image, ProbeID: "p",
		Symbol: "f", Path: "/lib/l.so", FirstAt: clock.Time(1e9 + 5), LastAt: clock.Time(2e9), Process: &evidence.Process{Pid: 42, Comm: "caller"},
	}
	for _, c := range change {
		c(o)
	}
	return o
}

func chunkOf(seq int, lines ...evidence.Line) *verify.Chunk {
	return &verify.Chunk{Header: evidence.Header{Node: "node-a", BootID: "boot", Seq: evidence.Uint64(seq), Clock: clock}, Lines: lines}
}

func cover() *evidence.Coverage { return &evidence.Coverage{RunID: run, CgroupID: 77} }

// written exports chunks, holds the files to the published rules, and returns all lines.
func written(t *testing.T, chunks ...*verify.Chunk) (lines []string, rep export.Report) {
	t.Helper()
	var s export.StellaOps
	for _, c := range chunks {
		s.Add(c)
	}
	dir := filepath.Join(t.TempDir(), "out")
	rep, err := s.Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	seen, err := stellaops.Check(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(seen, rep.Types) {
		t.Errorf("written %v, reported %v", seen, rep.Types)
	}
	for _, f := range rep.Files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name))
		if err != nil {
			t.Fatal(err)
		}
		if len(b) != f.Bytes || strings.Count(string(b), "\n") != f.Records {
			t.Errorf("%+v: %d bytes", f, len(b))
		}
		lines = append(lines, strings.SplitAfter(strings.TrimSuffix(string(b), "\n"), "\n")...)
	}
	return lines, rep
}

// What becomes what, to the byte, and what is left out with its reason.
func TestMapping(t *testing.T) {
	const (
		head = `{"cgroup_id":77,"comm":"caller","container_id":"podman://` + id + `","event":`
		tail = `,"image_digest":"` + image + `","pid":42,"src":`
	)
	set := func(name string, e evidence.Entry, path string) func(*evidence.Observation) {
		return func(o *evidence.Observation) {
			o.Set, o.Entry, o.Symbol, o.Path, o.ProbeType = name, &e, "", path, evidence.RawTracepoint
		}
	}
	for name, c := range map[string]struct {
		o    *evidence.Observation
		want string // or
		left string
	}{
		"function": {o: hit(), want: head + `{"library":"/lib/l.so","symbol":"f","type":"function_call"}` + tail + `"uprobe:f","ts_ns":1000000005}`},
		"return": {o: hit(func(o *evidence.Observation) { o.ProbeType = evidence.Uretprobe }),
			want: head + `{"library":"/lib/l.so","symbol":"f","type":"function_call"}` + tail + `"uretprobe:f","ts_ns":1000000005}`},
		"function of the kernel": {o: hit(func(o *evidence.Observation) {
			o.Symbol, o.Path, o.Function, o.ProbeType = "", "", "tcp_connect", evidence.Fentry
		}),
			want: head + `{"symbol":"tcp_connect","type":"function_call"}` + tail + `"fentry:tcp_connect","ts_ns":1000000005}`},
		"exec": {o: hit(set("exec", evidence.Entry{Parent: &evidence.Process{Pid: 41}}, "/bin/<p>")),
			want: head + `{"filename":"/bin/<p>","ppid":41,"type":"process_exec"}` + tail + `"rawTracepoint:exec","ts_ns":1000000005}`},
		"file": {o: hit(set("files", evidence.Entry{Access: "read"}, "/etc/p")),
			want: head + `{"path":"/etc/p","type":"file_open"}` + tail + `"rawTracepoint:open","ts_ns":1000000005}`},
		"a runtime that the format does not know": {o: hit(func(o *evidence.Observation) { o.Runtime, o.ImageDigest = "runc", "" }),
			want: `{"cgroup_id":77,"comm":"caller","event":{"library":"/lib/l.so","symbol":"f","type":"function_call"},"pid":42,"src":"uprobe:f","ts_ns":1000000005}`},
		"a container id of another form": {o: hit(func(o *evidence.Observation) { o.ContainerID = "web" }),
			want: `{"cgroup_id":77,"comm":"caller","event":{"library":"/lib/l.so","symbol":"f","type":"function_call"}` + tail + `"uprobe:f","ts_ns":1000000005}`},

		"a library's path redacted": {o: hit(func(o *evidence.Observation) {
			o.Path, o.Redacted = "‹redacted:home:0123456789abcdef›", []evidence.Redaction{{Member: "path", Rule: "home"}}
		}), want: head + `{"symbol":"f","type":"function_call"}` + tail + `"uprobe:f","ts_ns":1000000005}`},

		"a file's path redacted": {o: hit(set("files", evidence.Entry{Access: "read"}, "‹redacted:home:0123456789abcdef›"), func(o *evidence.Observation) {
			o.Redacted = []evidence.Redaction{{Member: "path", Rule: "home"}}
		}), left: export.RedactedPath},
		"no process": {o: hit(func(o *evidence.Observation) { o.Process = nil }), left: export.NoProcess},
		"pid 0":      {o: hit(func(o *evidence.Observation) { o.Process = &evidence.Process{Comm: "swapper/0"} }), left: export.NoPid},
		"no comm":    {o: hit(func(o *evidence.Observation) { o.Process = &evidence.Process{Pid: 1} }), left: export.NoComm},
		"comm redacted": {o: hit(func(o *evidence.Observation) {
			o.Process, o.Redacted = &evidence.Process{Pid: 1}, []evidence.Redaction{{Member: "process.comm", Rule: "tasks"}}
		}), left: export.RedactedComm},
		"comm of 17":        {o: hit(func(o *evidence.Observation) { o.Process = &evidence.Process{Pid: 1, Comm: strings.Repeat("ä", 17)} }), left: export.NoComm},
		"another run":       {o: hit(func(o *evidence.Observation) { o.RunID = strings.Repeat("f", 32) }), left: export.NoRun},
		"before the boot":   {o: hit(func(o *evidence.Observation) { o.FirstAt = clock.Time(-1) }), left: export.NoTime},
		"an offset only":    {o: hit(func(o *evidence.Observation) { o.Symbol = "" }), left: export.NoSymbol},
		"a tracepoint":      {o: hit(func(o *evidence.Observation) { o.Symbol, o.Path, o.Event = "", "", "sched:sched_switch" }), left: export.NoTracepoint},
		"a marker":          {o: hit(func(o *evidence.Observation) { o.Symbol, o.Event = "", "libc:setjmp" }), left: export.NoTracepoint},
		"a mapped library":  {o: hit(set("libraries", evidence.Entry{Mapped: "private"}, "/lib/l.so")), left: export.NoLibrary},
		"a connection":      {o: hit(set("network", evidence.Entry{Operation: "connect", Port: 443}, "")), left: export.NoRules},
		"a program's inode": {o: hit(set("exec", evidence.Entry{Inode: 5}, "")), left: export.NoPath},
		"a file's inode":    {o: hit(set("files", evidence.Entry{Inode: 5}, "")), left: export.NoPath},
		"system calls": {o: hit(func(o *evidence.Observation) {
			o.Set, o.Symbol, o.Path, o.SystemCalls = "syscalls", "", "", []evidence.SystemCalls{{Arch: "x86_64", Numbers: []int{1}}}
		}), left: export.NoSyscall},
	} {
		t.Run(name, func(t *testing.T) {
			lines, rep := written(t, chunkOf(1, cover(), c.o))
			switch {
			case c.left != "":
				if len(lines) != 0 || rep.LeftOut[c.left] != 1 || len(rep.LeftOut) != 1 {
					t.Errorf("%q, left out %v, want %q", lines, rep.LeftOut, c.left)
				}
			case len(lines) != 1 || lines[0] != c.want || len(rep.LeftOut) != 0:
				t.Errorf("%q, left out %v, want\n%s", lines, rep.LeftOut, c.want)
			}
		})
	}
	for name, o := range map[string]*evidence.Observation{
		"not hit":          hit(func(o *evidence.Observation) { o.State, o.Process = evidence.ArmedNoHit, nil }),
		"a set's own line": hit(func(o *evidence.Observation) { o.Set, o.Symbol, o.Path = "exec", "", "" }),
	} {
		if lines, rep := written(t, chunkOf(1, cover(), o)); len(lines)+len(rep.LeftOut) != 0 {
			t.Errorf("%s: %q, %v", name, lines, rep.LeftOut)
		}
	}
}

// A site is one record, whatever the order of the chunks and however often its lines
// say it; a detail that came late counts, and is not lost to a line without it.
func TestOneRecordForASite(t *testing.T) {
	without := hit(func(o *evidence.Observation) { o.Process = nil })
	first, second, third := chunkOf(1, without), chunkOf(2, hit(), cover()), chunkOf(3, without)
	other := chunkOf(4, hit(func(o *evidence.Observation) { o.Offset = new(evidence.Uint64) }))
	for _, order := range [][]*verify.Chunk{{first, second, third}, {third, second, first}, {second, first, third}} {
		if lines, rep := written(t, order...); len(lines) != 1 || len(rep.LeftOut) != 0 {
			t.Errorf("%q, %v", lines, rep.LeftOut)
		}
	}
	if lines, _ := written(t, second, other); len(lines) != 2 {
		t.Errorf("another site: %q", lines)
	}
	parent := func(pid int) *evidence.Observation {
		return hit(func(o *evidence.Observation) {
			o.Set, o.Symbol, o.Path, o.Entry = "exec", "", "/bin/p", &evidence.Entry{Parent: &evidence.Process{Pid: pid}}
		})
	}
	if lines, _ := written(t, chunkOf(1, cover(), parent(3)), chunkOf(2, parent(4))); len(lines) != 1 || !strings.Contains(lines[0], `"ppid":4`) {
		t.Errorf("an entry by another parent: %q", lines)
	}
}

// A file is of one node and one boot, of at most an hour and 10 MiB, in order of time.
func TestFiles(t *testing.T) {
	at := func(n int, ns int64) *evidence.Observation {
		return hit(func(o *evidence.Observation) { o.Symbol, o.FirstAt = fmt.Sprintf("f%d", n), clock.Time(ns) })
	}
	hour := int64(time.Hour)
	elsewhere, later := chunkOf(1, cover(), at(9, 1)), chunkOf(1, cover(), at(10, 1))
	elsewhere.Header.Node = "node-b"
	later.Header.BootID, later.Lines = "later", []evidence.Line{&evidence.Coverage{RunID: strings.Repeat("e", 32), CgroupID: 1}, hit(func(o *evidence.Observation) { o.RunID = strings.Repeat("e", 32) })}
	lines, rep := written(t, chunkOf(1, cover(), at(3, hour+2), at(1, 1), at(2, hour+1)), elsewhere, later)
	if len(lines) != 5 || len(rep.Files) != 4 || !strings.Contains(lines[0], `"f1"`) || !strings.Contains(lines[1], `"f2"`) || rep.Files[0].Records != 2 || rep.Files[2].BootID != "later" || rep.Files[3].Node != "node-b" {
		t.Errorf("%q\n%+v", lines, rep.Files)
	}
	many := chunkOf(1, cover())
	for i := range 3000 {
		o := at(i, int64(i))
		o.Path = "/" + strings.Repeat("p", 4000)
		many.Lines = append(many.Lines, o)
	}
	if _, rep := written(t, many); rep.Records != 3000 || len(rep.Files) != 2 || rep.Files[0].Bytes < export.MaxFileBytes-5000 {
		t.Errorf("%+v", rep.Files)
	}
}

// Nothing is written beside or over what is there.
func TestNotEmpty(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var s export.StellaOps
	s.Add(chunkOf(1, cover(), hit()))
	if _, err := s.Write(dir); !errors.Is(err, export.ErrNotEmpty) {
		t.Errorf("%v", err)
	}
}

// The vectors, from bytes to files, with their signatures checked on the way.
func TestVectors(t *testing.T) {
	b, err := os.ReadFile("../testdata/test.pub")
	if err != nil {
		t.Fatal(err)
	}
	key, err := sign.LoadPublic(b)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"0000000000000007": 1, "0000000000000008": 1, "0000000000000009": 0} {
		data, err := os.ReadFile("../testdata/" + name + "-00112233445566ff.ndjson")
		if err != nil {
			t.Fatal(err)
		}
		c, found := verify.Bytes(name, data, key)
		if c == nil {
			t.Fatal(found)
		}
		if lines, rep := written(t, c); len(lines) < want {
			t.Errorf("%s: %d records, left out %v", name, len(lines), rep.LeftOut)
		}
	}
}

// Whatever order chunks come in, as of several that are verified at once, what is
// exported is the same.
func TestOrderOfChunks(t *testing.T) {
	chunks := []*verify.Chunk{
		chunkOf(1, cover(), hit()), chunkOf(2, &evidence.Coverage{RunID: run, CgroupID: 78}, hit(func(o *evidence.Observation) { o.Symbol = "g" })),
		chunkOf(3, &evidence.Coverage{RunID: run, CgroupID: 79}),
	}
	forth, _ := written(t, chunks...)
	slices.Reverse(chunks)
	if back, _ := written(t, chunks...); !slices.Equal(back, forth) || len(forth) != 2 || !strings.Contains(forth[0], `"cgroup_id":79`) {
		t.Errorf("in one order\n%s\nin the other\n%s", forth, back)
	}
}
