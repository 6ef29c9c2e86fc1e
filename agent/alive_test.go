package agent

import (
	"testing"
	"time"
)

// beating is an agent that says that it lives every few milliseconds, and what it says.
func beating(t *testing.T, health time.Duration) (*node, <-chan struct{}) {
	alive := make(chan struct{}, 1)
	return newNodeWith(t, Config{Health: health, AliveEvery: 5 * time.Millisecond, Alive: func() {
		select {
		case alive <- struct{}{}:
		default:
		}
	}}, wanted), alive
}

// It says so however seldom it proves that probes are armed.
func TestAlive(t *testing.T) {
	_, alive := beating(t, time.Hour)
	for range 20 {
		<-alive
	}
}

// A loop that hangs has it say nothing, until it goes on: here the one that proves that
// probes are armed, which waits for the agent's lock.
func TestHangs(t *testing.T) {
	n, alive := beating(t, 5*time.Millisecond)
	<-alive
	n.mu.Lock()
	for quiet := false; !quiet; {
		select {
		case <-alive:
		case <-time.After(time.Second):
			quiet = true
		}
	}
	n.mu.Unlock()
	<-alive
}

// A loop hangs if it is at the same thing for longer than it may be, and not if it
// waits or gets further.
func TestLoop(t *testing.T) {
	var turns turns
	l := &loop{turns: &turns}
	at := time.Now()
	look := func(seconds int, want bool) {
		t.Helper()
		if got := l.hangs(at.Add(time.Duration(seconds)*time.Second), 30*time.Second); got != want {
			t.Errorf("at %d s: %v", seconds, got)
		}
	}
	look(0, false)
	look(100, false) // it waits
	turns.begin()
	look(101, false)
	look(131, false)
	look(132, true)
	turns.further()
	look(133, false)
	look(163, false)
	look(164, true)
	turns.end()
	look(300, false)
	turns.begin()
	look(301, false)
}
