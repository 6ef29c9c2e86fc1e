package agent

import (
	"testing"
	"time"
)

// A reader of the ring that has ended does not hang: the agent goes on, deaf, as
// deafToKernel says, and the watchdog is told so.
func TestDeafIsAlive(t *testing.T) {
	n, alive := beating(t, time.Hour)
	<-alive
	if err := n.ring.reader.Close(); err != nil {
		t.Fatal(err)
	}
	n.ring.drain() // returns when the reader has ended, too
	n.ring.mu.Lock()
	for !n.ring.closed {
		n.ring.mu.Unlock()
		n.ring.drain()
		n.ring.mu.Lock()
	}
	n.ring.mu.Unlock()
	if at := n.ring.turns.n.Load(); at%2 != 0 {
		t.Errorf("the reader has ended, and counts as being at something (%d)", at)
	}
	for i := range 20 {
		select {
		case <-alive:
		case <-time.After(time.Minute):
			t.Fatalf("no beat after %d", i)
		}
	}
}
