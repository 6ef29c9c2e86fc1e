package nri

import (
	"sync"
	"time"
)

// What all starts together may hold of the runtime's lock.
const (
	budgetWindow = 10 * time.Second
	budgetHeld   = budgetWindow / 5
	// underway is what a call costs the runtime besides what is spent in its handler: its
	// way to us and back, and the waiting for a processor at both ends, while the lock is
	// held. With 200 starts at once on two processors it was 2 to 4 ms for each call.
	underway = 2500 * time.Microsecond
)

// budget bounds how much of any ten seconds is spent in handlers: whatever
// moment one looks back from, at most two of the last ten. The zero value is
// unspent.
type budget struct {
	mu    sync.Mutex
	spent []spell // in order of time, none of them older than the window
}

type spell struct{ from, to time.Time }

// allowance returns how long a handler that begins now may take.
func (b *budget) allowance(now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	since := now.Add(-budgetWindow)
	for len(b.spent) > 0 && !b.spent[0].to.After(since) {
		b.spent = b.spent[1:]
	}
	left := budgetHeld
	for _, s := range b.spent {
		if s.from.Before(since) {
			s.from = since
		}
		left -= s.to.Sub(s.from)
	}
	return max(0, left)
}

// call takes down a call whose handler ran from one moment to the other.
func (b *budget) call(from, to time.Time) { b.spend(from.Add(-underway), to) }

// spend takes down a spell that has ended. Short ones are joined, so that a
// window holds some hundreds at most.
func (b *budget) spend(from, to time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.spent); n > 0 {
		last := &b.spent[n-1]
		// As if the later one had followed the earlier at once: the sum is
		// the same, and it leaves the window a little early by at most this.
		if from.Sub(last.to) < budgetWindow/500 {
			last.to = last.to.Add(to.Sub(from))
			return
		}
	}
	b.spent = append(b.spent, spell{from, to})
}
