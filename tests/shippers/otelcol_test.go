package shippers

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"probity/evidence/delivery"
	"probity/tests/need"
)

// farSide takes OTLP/HTTP in JSON: each batch becomes a line of a file, and is
// acknowledged then. It can be away, and it can lose the acknowledgement, which has
// the batch sent twice.
type farSide struct {
	path string

	mu   sync.Mutex
	seen map[place]bool
	away int // so many requests are refused
	mute int // so many batches are written and not acknowledged
}

type place struct {
	chunk  string
	offset int64
}

func (f *farSide) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(io.LimitReader(r.Body, delivery.MaxRecordBytes))
	var line bytes.Buffer
	if err == nil {
		err = json.Compact(&line, b)
	}
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away > 0 {
		f.away--
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	records, _, err := delivery.Parse(line.Bytes())
	if err == nil {
		err = appendLine(f.path, line.Bytes())
	}
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	for _, r := range records {
		f.seen[place{r.Chunk, r.Offset}] = true
	}
	if f.mute > 0 {
		f.mute--
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, "{}")
}

func appendLine(path string, line []byte) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.Write(append(line, '\n'))
	return err
}

func (f *farSide) lines() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.seen)
}

func (f *farSide) trouble() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away, f.mute = 2, 1
}

// The OpenTelemetry Collector, as packaging/shippers configures it: killed at random
// moments, with a far side that is away at times. Nothing is lost.
func TestCollector(t *testing.T) {
	otelcol := need.Collector(t)
	total, kills := chunks(t, 240), 6
	if total > 1000 {
		kills = 30
	}
	n, work := newNode(t), t.TempDir()
	far := &farSide{path: filepath.Join(work, "batches.ndjson"), seen: map[place]bool{}}
	server := httptest.NewServer(far)
	defer server.Close()
	p := newProgram(t, "otelcol", otelcol, "--feature-gates", "stanza.synchronousLogEmitter", "--config",
		configuration(t, "otelcol.yaml", map[string]string{"/var/lib/probity-otelcol": filepath.Join(work, "state"), "/var/lib/probity/spool": n.dir, "https://collector.example:4318": server.URL}))
	began := time.Now()
	n.grow(t, total/10)
	p.start(t)
	for k := range kills {
		n.grow(t, (total-n.made)/(kills-k))
		from, more := far.lines(), rand.IntN(total*linesPerChunk/kills)
		until(t, "more is delivered", 3*time.Minute, p, func() bool { return far.lines() > min(from+more, n.made*linesPerChunk-1) })
		p.kill(t)
		if k%2 == 1 {
			far.trouble()
		}
		p.start(t)
	}
	until(t, "all lines have arrived", 10*time.Minute, p, func() bool { return far.lines() == n.made*linesPerChunk })
	took := time.Since(began)
	p.kill(t)
	must(t, n.s.Close())
	together := filepath.Join(work, "joined")
	r := joined(t, together, far.path)
	t.Logf("%d chunks, %d kills, %.1f s: %d lines arrived, %d of them twice", total, kills, took.Seconds(), r.Lines, r.Duplicates)
	if len(r.Partial) != 0 || len(r.Findings) != 0 {
		t.Errorf("partial: %v, findings: %v", r.Partial, r.Findings)
	}
	n.arrived(t, together)
}
