package delivery_test

import (
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"probity/evidence/delivery"
)

// A chunk whose last line was written, and that was not published because there was a
// crash or the disk failed, is whole with the next line of it that comes, which can
// only be one that is there.
func TestWholeWithoutANewLine(t *testing.T) {
	dir, all := t.TempDir(), lines(t, "flat", vectors[0])
	partial := filepath.Join(dir, vectors[0][17:], "partial")
	if err := os.MkdirAll(partial, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(partial, vectors[0]+".ndjson"), chunk(t, vectors[0]), 0o640); err != nil {
		t.Fatal(err)
	}
	r := deliver(t, dir, all...)
	if len(r.Chunks) != 1 || len(r.Partial) != 0 || len(r.Findings) != 0 || r.Duplicates != len(all) {
		t.Errorf("%+v", r)
	}
	whole(t, dir, vectors[0])
}

// took is the memory that something takes, in bytes.
func took(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// What a line of a delivery costs is a small multiple of its length, whatever is in it.
func TestHostileLinesAreCheap(t *testing.T) {
	const size = 4 << 20
	fill := func(before, each, after string) string {
		return before + strings.Repeat(each+",", (size-len(before)-len(after))/(len(each)+1)) + each + after
	}
	bad := `{"attributes":[{"key":"log.file.path","value":{"stringValue":"` + vectors[0] + `.ndjson"}}]}`
	for what, line := range map[string]string{
		"a good batch":         fill(`{"resourceLogs":[{"scopeLogs":[{"logRecords":[`, `{"body":{"stringValue":"x"},"attributes":[{"key":"log.file.path","value":{"stringValue":"/a"}},{"key":"log.file.record_offset","value":{"intValue":"1"}}]}`, `]}]}]}`),
		"empty resources":      fill(`{"resourceLogs":[`, `{}`, `]}`),
		"empty scopes":         fill(`{"resourceLogs":[{"scopeLogs":[`, `{}`, `]}]}`),
		"empty records":        fill(`{"resourceLogs":[{"scopeLogs":[{"logRecords":[`, `{}`, `]}]}]}`),
		"empty attributes":     fill(`{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"attributes":[`, `{}`, `]}]}]}]}`),
		"records that are bad": fill(`{"resourceLogs":[{"scopeLogs":[{"logRecords":[`, bad, `]}]}]}`),
		"members":              fill(`{`, `"":1`, `}`),
		"a long text":          `{"file":"` + strings.Repeat("x", size) + `"}`,
		"nested":               `{"resourceLogs":` + strings.Repeat("[", size/2) + strings.Repeat("]", size/2) + `}`,
	} {
		j, err := delivery.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		n := took(func() {
			if err := j.Read(t.Context(), "delivery", strings.NewReader(line+"\n")); err != nil {
				t.Fatal(what, err)
			}
		})
		t.Logf("%s: %.1f bytes for each", what, float64(n)/float64(len(line)))
		if n > 12*uint64(len(line)) {
			t.Errorf("%s: %d bytes for a line of %d", what, n, len(line))
		}
		r, err := j.Report()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range r.Findings {
			if len(f.Reason) > 1024 {
				t.Errorf("%s: a reason of %d bytes: %.80s", what, len(f.Reason), f.Reason)
			}
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A line that is too long is a finding, and those after it are read.
func TestLongLine(t *testing.T) {
	dir, all := t.TempDir(), lines(t, "flat", vectors[0])
	j, err := delivery.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	long := io.MultiReader(strings.NewReader(all[0]+"\n{"), io.LimitReader(endless('x'), delivery.MaxRecordBytes+1), strings.NewReader("}\n"+strings.Join(all[1:], "\n")))
	if err := j.Read(t.Context(), "delivery", long); err != nil {
		t.Fatal(err)
	}
	r, err := j.Report()
	if err != nil || len(r.Chunks) != 1 || len(r.Findings) != 1 || r.Findings[0].Line != 2 || !strings.Contains(r.Findings[0].Reason, "more than") {
		t.Errorf("%v, %+v", err, r)
	}
	whole(t, dir, vectors[0])
}

// endless reads as one byte again and again.
type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}
