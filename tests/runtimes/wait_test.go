package runtimes

import (
	"testing"
	"time"
)

// WaitLine reads the spool again and again until it says what is wanted.
func (a *Agent) WaitLine(t *testing.T, done func(Evidence) bool) Evidence {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if e := a.Evidence(t); done(e) {
			return e
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the spool does not say it within %v", Patience)
		case <-tick.C:
		}
	}
}
