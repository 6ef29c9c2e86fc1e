package agent

import (
	"context"
	"testing"
	"time"
)

// Who ends the agent is told that it ends, and again whenever it got further: each run is
// progress. While it does not get further he is told nothing, so that he can end it.
func TestStopping(t *testing.T) {
	told := make(chan struct{}, 1000)
	n := newNodeWith(t, Config{Stopping: func() { told <- struct{}{} }}, wanted)
	for _, id := range []string{"c1", "c2", "c3"} {
		n.notify(context.Background(), newBox(t, 1).notice(id), yes)
	}
	if len(told) > 0 {
		t.Errorf("told %d times of an agent that runs", len(told))
	}
	n.mu.Lock()
	ended := make(chan struct{})
	go func() {
		n.stop()
		close(ended)
	}()
	select {
	case <-told:
	case <-time.After(failsafe):
		t.Error("not told that it ends")
	}
	select {
	case <-told:
		t.Error("told that it gets further while it hangs")
	case <-time.After(time.Second):
	}
	n.mu.Unlock()
	<-ended
	if got := len(told); got < 2*3 { // for each the last look, and the last lines
		t.Errorf("told %d times for 3 runs", got)
	}
}
