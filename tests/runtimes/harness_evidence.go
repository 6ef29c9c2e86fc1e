package runtimes

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"

	"probity/evidence"
)

// Evidence is what a spool says, in the order of its chunks and lines.
type Evidence struct {
	Chunks       []string // paths
	Headers      []evidence.Header
	Coverage     []*evidence.Coverage
	Observations []*evidence.Observation
	Gaps         []*evidence.Gap

	clocks map[*evidence.Gap]evidence.Clock
}

// Evidence reads the agent's spool.
func (a *Agent) Evidence(t T) Evidence {
	t.Helper()
	return ReadSpool(t, a.Spool)
}

// ReadSpool reads every published chunk of a spool. It checks no signature:
// that is what Verify is for.
func ReadSpool(t T, spool string) Evidence {
	t.Helper()
	var e Evidence
	files, err := filepath.Glob(filepath.Join(spool, "ready", "*", "*.ndjson"))
	if err != nil {
		t.Fatalf("read the spool: %v", err)
	}
	slices.Sort(files) // names sort by age
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatalf("read the spool: %v", err)
		}
		lines := bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
		if len(lines) < 2 {
			t.Fatalf("%s: %d lines", file, len(lines))
		}
		h, err := evidence.DecodeHeader(string(lines[0]))
		if err != nil {
			t.Fatalf("%s: header: %v", file, err)
		}
		e.Chunks, e.Headers = append(e.Chunks, file), append(e.Headers, h)
		for i, line := range lines[1 : len(lines)-1] {
			l, err := evidence.Decode(string(line))
			if err != nil {
				t.Fatalf("%s:%d: %v", file, i+2, err)
			}
			e.add(h, l)
		}
	}
	return e
}

func (e *Evidence) add(h evidence.Header, l evidence.Line) {
	switch v := l.(type) {
	case *evidence.Coverage:
		e.Coverage = append(e.Coverage, v)
	case *evidence.Observation:
		e.Observations = append(e.Observations, v)
	case *evidence.Gap:
		if e.clocks == nil {
			e.clocks = map[*evidence.Gap]evidence.Clock{}
		}
		e.Gaps, e.clocks[v] = append(e.Gaps, v), h.Clock
	}
}

// Boot returns when a gap began and ended in boot time, by which those of two chunks are
// compared: each chunk has a clock of its own.
func (e Evidence) Boot(g *evidence.Gap) (from, to int64) {
	return e.clocks[g].Boot(g.From), e.clocks[g].Boot(g.To)
}

// Latest returns the last observation of one probe and symbol in one
// container's last run, or nil. An empty symbol matches any.
func (e Evidence) Latest(container, probe, symbol string) *evidence.Observation {
	for _, o := range slices.Backward(e.Observations) {
		if o.ContainerID == container && o.ProbeID == probe && (symbol == "" || o.Symbol == symbol) {
			return o
		}
	}
	return nil
}

// Cover returns the last coverage line of a container, or nil.
func (e Evidence) Cover(container string) *evidence.Coverage {
	for _, c := range slices.Backward(e.Coverage) {
		if c.ContainerID == container {
			return c
		}
	}
	return nil
}

// GapsOf returns the gap lines of one reason that name the container, or
// nobody (those of the node and of a source).
func (e Evidence) GapsOf(container string, reason evidence.GapReason) []*evidence.Gap {
	var gaps []*evidence.Gap
	for _, g := range e.Gaps {
		if g.Reason == reason && (g.ContainerID == container || g.ContainerID == "") {
			gaps = append(gaps, g)
		}
	}
	return gaps
}

// Mentions reports whether any line names the container.
func (e Evidence) Mentions(container string) bool {
	return e.Cover(container) != nil ||
		slices.ContainsFunc(e.Observations, func(o *evidence.Observation) bool { return o.ContainerID == container }) ||
		slices.ContainsFunc(e.Gaps, func(g *evidence.Gap) bool { return g.ContainerID == container })
}
