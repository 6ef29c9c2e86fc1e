package delivery_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"probity/evidence"
	"probity/evidence/delivery"
)

var vectors = []string{"0000000000000007-00112233445566ff", "0000000000000008-00112233445566ff"}

func chunk(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("../testdata/" + name + ".ndjson")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The shapes that shippers deliver a line in.
var shapes = map[string]func(file string, offset int, line string) string{
	"flat": func(file string, offset int, line string) string {
		return fmt.Sprintf(`{"file":%s,"host":"a","offset":%d,"message":%s}`, quote(file), offset, quote(line))
	},
	"rsyslog": func(file string, offset int, line string) string {
		return fmt.Sprintf(`{"file":%s,"offset":"%d","message":%s}`, quote(file), offset, quote(line))
	},
	"vector": func(file string, offset int, line string) string {
		return fmt.Sprintf(`{"file":%s,"host":"a","message":%s,"offset":%d,"source_type":"file","timestamp":"2026-01-01T00:00:00Z"}`, quote(file), quote(line), offset)
	},
	"fluent-bit": func(file string, offset int, line string) string {
		return fmt.Sprintf(`{"date":1767225600.5,"file":%s,"offset":%d,"message":%s}`, quote(file), offset, quote(line))
	},
	"filebeat": func(file string, offset int, line string) string {
		return fmt.Sprintf(`{"@timestamp":"x","log":{"offset":%d,"file":{"path":%s}},"message":%s}`, offset, quote(file), quote(line))
	},
	"otlp": func(file string, offset int, line string) string {
		return fmt.Sprintf(`{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":%s},"attributes":[{"key":"log.file.path","value":{"stringValue":%s}},{"key":"log.file.record_offset","value":{"intValue":"%d"}}]}]}]}]}`, quote(line), quote(file), offset)
	},
}

func quote(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// lines are the records of a chunk.
func lines(t testing.TB, shape, name string) (out []string) {
	offset := 0
	for line := range strings.Lines(string(chunk(t, name))) {
		out = append(out, shapes[shape]("/var/lib/probity/spool/ready/"+evidence.ChunkPath(name), offset, strings.TrimSuffix(line, "\n")))
		offset += len(line)
	}
	return out
}

// deliver joins one delivery with a Joiner of its own.
func deliver(t testing.TB, dir string, records ...string) delivery.Report {
	t.Helper()
	j, err := delivery.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if err := j.Read(t.Context(), "delivery", strings.NewReader(strings.Join(records, "\n")+"\n")); err != nil {
		t.Fatal(err)
	}
	r, err := j.Report()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func whole(t testing.TB, dir, name string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(dir, name[17:], "ready", filepath.FromSlash(evidence.ChunkPath(name))))
	if err != nil || !bytes.Equal(got, chunk(t, name)) {
		t.Errorf("%s: %v, %d bytes", name, err, len(got))
	}
}

// In every shape, in any order, cut anywhere into two deliveries, everything twice.
func TestJoin(t *testing.T) {
	for shape := range shapes {
		for seed := range uint64(20) {
			r := rand.New(rand.NewPCG(seed, 1))
			all := append(lines(t, shape, vectors[0]), lines(t, shape, vectors[1])...)
			all = append(all, all...)
			r.Shuffle(len(all), func(i, k int) { all[i], all[k] = all[k], all[i] })
			cut := r.IntN(len(all))
			dir := t.TempDir()
			one, two := deliver(t, dir, all[:cut]...), deliver(t, dir, all[cut:]...)
			if n := len(one.Chunks) + len(two.Chunks); n != 2 || len(one.Findings)+len(two.Findings)+len(two.Partial) != 0 ||
				one.Duplicates+two.Duplicates != len(all)/2 {
				t.Fatalf("%s, seed %d: %+v, %+v", shape, seed, one, two)
			}
			for _, name := range vectors {
				whole(t, dir, name)
			}
		}
	}
}

func TestPartial(t *testing.T) {
	dir, all := t.TempDir(), lines(t, "flat", vectors[0])
	for i := range all {
		rest := append(append([]string{}, all[:i]...), all[i+1:]...)
		dir := filepath.Join(dir, fmt.Sprint(i))
		if r := deliver(t, dir, rest...); len(r.Chunks) != 0 || len(r.Partial) != 1 || r.Partial[0] != vectors[0] || len(r.Findings) != 0 {
			t.Fatalf("without line %d: %+v", i+1, r)
		}
		if r := deliver(t, dir, all[i]); len(r.Chunks) != 1 || len(r.Partial) != 0 {
			t.Fatalf("with line %d: %+v", i+1, r)
		}
		whole(t, dir, vectors[0])
	}
}

// What is wrong is said, and a good delivery heals what a bad one has spoilt.
func TestBad(t *testing.T) {
	all := lines(t, "flat", vectors[0])
	other := strings.Replace(all[1], "node", "nodE", 1)
	if other == all[1] {
		other = strings.Replace(all[1], `\"kind\"`, `\"kinD\"`, 1)
	}
	end := len(chunk(t, vectors[0]))
	name := "/ready/" + evidence.ChunkPath(vectors[0])
	with := func(more ...string) []string { return append(append([]string{}, more...), all[2:]...) }
	for what, c := range map[string]struct {
		records []string
		says    string
	}{
		"a line changed":             {with(all[0], other), "digest"},
		"a line twice, once changed": {with(all[0], all[1], other), "another line"},
		"changed and right":          {[]string{all[0], all[1], other}, "another line"},
		"a header of another":        {with(strings.Replace(all[0], `\"chunk\":\"0000000000000007`, `\"chunk\":\"0000000000000009`, 1), all[1]), "names"},
		"behind the end":             {with(shapes["flat"](name, end, "x"), all[0], all[1]), "behind its envelope"},
		"far behind":                 {[]string{shapes["flat"](name, 9<<20, "x")}, "behind the end of any chunk"},
		"below 0":                    {[]string{shapes["flat"](name, -1, "x")}, "offset"},
		"no offset":                  {[]string{`{"file":"` + name + `","message":"x"}`}, "where a line begins"},
		"no message":                 {[]string{`{"file":"` + name + `","offset":1}`}, "no message"},
		"a control character":        {[]string{shapes["flat"](name, 0, "a\x00b")}, "control character"},
		"two lines in one":           {[]string{shapes["flat"](name, 0, "a\nb")}, "control character"},
		"too long":                   {[]string{shapes["flat"](name, 0, strings.Repeat("x", evidence.MaxLineBytes))}, "a line of"},
		"torn":                       {[]string{all[0][:20]}, "not a JSON object"},
	} {
		dir := t.TempDir()
		r := deliver(t, dir, c.records...)
		if len(r.Findings) == 0 || !strings.Contains(r.Findings[0].Reason, c.says) {
			t.Errorf("%s: %+v", what, r)
		}
		// Once what is partial is complete or dropped; an unfitting rest may take
		// two deliveries.
		deliver(t, dir, all...)
		deliver(t, dir, all...)
		whole(t, dir, vectors[0])
	}
}

func TestOthers(t *testing.T) {
	r := deliver(t, t.TempDir(), `{"file":"/var/log/messages","offset":1,"message":"x"}`, `{"log":"x"}`, `{}`, `{"file":{"path":1}}`,
		`{"file":"../../0000000000000007-00112233445566FF.ndjson","offset":0,"message":"x"}`, `{"resourceLogs":[{"scopeLogs":[{"logRecords":[{}]}]}]}`)
	if r.Others != 6 || r.Lines != 0 || len(r.Findings) != 0 {
		t.Errorf("%+v", r)
	}
}

// What is below ready/ stays.
func TestWholeStays(t *testing.T) {
	dir, all := t.TempDir(), lines(t, "flat", vectors[0])
	deliver(t, dir, all...)
	r := deliver(t, dir, shapes["flat"](evidence.ChunkPath(vectors[0]), 0, "another"))
	if len(r.Findings) != 1 || !strings.Contains(r.Findings[0].Reason, "the chunk that is here") {
		t.Errorf("%+v", r)
	}
	whole(t, dir, vectors[0])
}

func FuzzParse(f *testing.F) {
	for shape := range shapes {
		for _, l := range lines(f, shape, vectors[0]) {
			f.Add([]byte(l))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		records, _, _ := delivery.Parse(b)
		for _, r := range records {
			_, _, ok := evidence.ParseChunkName(r.Chunk)
			if !ok || r.Offset < 0 || r.Line == "" || len(r.Line) >= evidence.MaxLineBytes || r.Offset+int64(len(r.Line)) >= evidence.MaxChunkBytes || strings.ContainsAny(r.Line, "\x00\n") {
				t.Errorf("%+v", r)
			}
		}
	})
}

// Two short lines are an envelope, and something far behind it: what they cost is not
// what the largest chunk costs.
func TestShortLinesAreCheap(t *testing.T) {
	j, err := delivery.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	const pairs = 20
	var in strings.Builder
	for range pairs {
		for _, offset := range []int{evidence.MaxChunkBytes - 100, 0} {
			in.WriteString(shapes["flat"](vectors[0]+".ndjson", offset, `{"payloadType":""}`) + "\n")
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := j.Read(t.Context(), "test", strings.NewReader(in.String())); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	r, err := j.Report()
	if err != nil || len(r.Findings) != pairs {
		t.Errorf("%v, %+v", err, r)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > evidence.MaxChunkBytes {
		t.Errorf("%d bytes were taken for %d lines", n, 2*pairs)
	}
}

// sparse are a line far into each of n chunks, and then short ones, of one chunk
// after the other or by turns.
func sparse(n, each int, byTurns bool) string {
	var b strings.Builder
	add := func(c, offset int) {
		name := evidence.ChunkName(uint64(c+1), "00112233445566ff")
		fmt.Fprintln(&b, shapes["flat"]("/ready/"+evidence.ChunkPath(name), offset, "x"))
	}
	for c := range n {
		add(c, 4<<20)
	}
	for i := range n * each {
		if byTurns {
			add(i%n, 4*(i/n))
		} else {
			add(i/each, 4*(i%each))
		}
	}
	return b.String()
}

// joinSparse joins them, and returns the memory that it took.
func joinSparse(t testing.TB, in string) uint64 {
	t.Helper()
	j, err := delivery.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := j.Read(t.Context(), "delivery", strings.NewReader(in)); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// Lines of more chunks than are held open, by turns, cost what they do one chunk after
// the other: a chunk is not read again to know how far it is.
func TestManyChunksAreCheap(t *testing.T) {
	const chunks, each = 129, 4
	one, turns := joinSparse(t, sparse(chunks, each, false)), joinSparse(t, sparse(chunks, each, true))
	t.Logf("%d chunks, %d lines: %d bytes one after the other, %d by turns", chunks, chunks*(1+each), one, turns)
	if turns > 2*one {
		t.Errorf("by turns it takes %d bytes, %d times as many", turns, turns/one)
	}
}

func BenchmarkJoin(b *testing.B) {
	for _, way := range []string{"one after the other", "by turns"} {
		in := sparse(129, 8, way == "by turns")
		b.Run(way, func(b *testing.B) {
			for b.Loop() {
				joinSparse(b, in)
			}
		})
	}
}

// It writes files and waits for the disk: the parser has a target of its own.
func FuzzJoin(f *testing.F) {
	for shape := range shapes {
		f.Add([]byte(strings.Join(lines(f, shape, vectors[0]), "\n")))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		j, err := delivery.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer j.Close()
		if err := j.Read(t.Context(), "fuzz", bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		r, err := j.Report()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range r.Chunks {
			got, err := os.ReadFile(filepath.Join(dir, c.Chunk[17:], "ready", filepath.FromSlash(evidence.ChunkPath(c.Chunk))))
			if err != nil || len(got) != c.Bytes || bytes.IndexByte(got, 0) >= 0 || got[len(got)-1] != '\n' {
				t.Errorf("%+v: %v, %d bytes", c, err, len(got))
			}
		}
	})
}
