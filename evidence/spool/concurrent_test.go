package spool_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/redact"
	"probity/evidence/spool"
)

// Several append at once while somebody closes chunks all the time, and the wall
// clock steps between any two of them: each line's time is by the clock of its own
// chunk, no line is missing or doubled, and a run's lines are in order.
func TestAppendAtOnce(t *testing.T) {
	const runs, each, at = 8, 300, int64(5e11)
	n := newNode(t)
	var mu sync.Mutex
	boot := int64(1e12)
	n.cfg.Clock = func() evidence.Clock {
		mu.Lock()
		defer mu.Unlock()
		boot += 1e6
		return evidence.Clock{BootNs: evidence.Uint64(boot), Wall: evidence.TimeOf(time.Unix(1_700_000_000+boot%7919, 0))}
	}
	s := n.open(t)
	var appends, seals sync.WaitGroup
	done := make(chan struct{})
	seals.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				s.Seal()
			}
		}
	})
	for run := range runs {
		appends.Go(func() {
			for i := range each {
				err := s.Append(runID(run), func(c evidence.Clock) []redact.Line {
					return noRules.Lines(&evidence.Gap{
						GapID: fmt.Sprint(i), Scope: evidence.ScopeRun, Reason: evidence.GapSuspended, From: c.Time(at), RunID: runID(run), ContainerID: "c",
					})
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	appends.Wait()
	close(done)
	seals.Wait()
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.verify(t)
	next, began := map[string]int{}, evidence.Uint64(0)
	for _, name := range n.ready(t) {
		b, err := os.ReadFile(filepath.Join(n.cfg.Dir, spool.ReadyDir, evidence.ChunkPath(name)))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
		h, err := evidence.DecodeHeader(lines[0])
		if err != nil {
			t.Fatal(err)
		}
		if h.Clock.BootNs <= began {
			t.Fatalf("%s has the clock of %d, and the chunk before it that of %d", h.Chunk, h.Clock.BootNs, began)
		}
		began = h.Clock.BootNs
		for _, line := range lines[1 : len(lines)-1] {
			l, err := evidence.Decode(line)
			if err != nil {
				t.Fatal(err)
			}
			g := l.(*evidence.Gap)
			if got := h.Clock.Boot(g.From); got != at {
				t.Fatalf("%s: a line's time is by another clock than its chunk's: boot time %d", name, got)
			}
			if g.GapID != fmt.Sprint(next[g.RunID]) {
				t.Fatalf("%s: line %s of run %s, want %d", name, g.GapID, g.RunID, next[g.RunID])
			}
			next[g.RunID]++
		}
	}
	for run, got := range next {
		if got != each {
			t.Errorf("run %s has %d lines, want %d", run, got, each)
		}
	}
	if len(next) != runs {
		t.Errorf("%d runs", len(next))
	}
}
