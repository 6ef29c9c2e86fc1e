package spool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"probity/evidence"
	"probity/evidence/redact"
	"probity/evidence/spool"
)

// written is how many bytes this process has given to write calls.
func written(t testing.TB) (n int64) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/io")
	must(t, err)
	_, rest, ok := bytes.Cut(b, []byte("wchar: "))
	if _, err := fmt.Sscan(string(rest), &n); !ok || err != nil {
		t.Fatalf("%q: %v", b, err)
	}
	return n
}

// A day of a node with 1,000 containers in which nothing happens: an hourly
// coverage line of each, of the largest size, and a heartbeat each minute. All that
// is written counts: chunks, the log and its tiles, write-ahead files, and the
// state.
func TestIdleDay(t *testing.T) {
	const runs = 1000
	hours := 3 // the day is one of the long tests
	if os.Getenv("PROBITY_CRASHES") != "" {
		hours = 24
	}
	budget := int64(hours) * 50e6 / 24
	n := nodeIn(t, memoryDir(t))
	long := strings.Repeat("x", 300)
	before := written(t)
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		n.cfg.Clock = func() evidence.Clock {
			return evidence.Clock{BootNs: evidence.Uint64(1e12 + time.Since(begun).Nanoseconds()), Wall: evidence.TimeOf(time.Now())}
		}
		s, err := spool.Open(n.cfg)
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		for range hours {
			for run := range runs {
				must(t, s.Append(runID(run), func(c evidence.Clock) []redact.Line {
					lines := coverage(run, false)(c)
					lines[0].Evidence().(*evidence.Coverage).Image = long
					return lines
				}))
			}
			time.Sleep(time.Hour) // of the bubble's clock
			synctest.Wait()
		}
		cancel()
		must(t, errors.Join(<-done, s.Close()))
	})
	total := written(t) - before
	rep := n.verify(t)
	s := n.open(t)
	chunks := s.Usage().Bytes
	t.Logf("in %d hours %.1f MB were written, the budget is %.1f; %d chunks with %.1f MB, %d leaves", hours, float64(total)/1e6, float64(budget)/1e6, rep.Chunks, float64(chunks)/1e6, rep.Logs[0].Leaves)
	if rep.Lines != hours*runs || rep.Logs[0].Heartbeats < 60*hours-1 {
		t.Errorf("%d lines, %d heartbeats", rep.Lines, rep.Logs[0].Heartbeats)
	}
	if total > budget {
		t.Errorf("%d bytes were written in %d idle hours, the budget is %d", total, hours, budget)
	}
}
