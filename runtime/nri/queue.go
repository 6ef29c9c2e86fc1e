package nri

import (
	"context"
	"sync"

	"probity/runtime/cgroup"
)

// maxQueue bounds what waits. A node's Synchronize is a few thousand.
const maxQueue = 1 << 16

// queue hands functions from the runtime's handlers, which must not wait, to
// one goroutine that may, in order. What does not fit is dropped and the window
// in which that happened is told when there is room again.
type queue struct {
	overflow func(from, to int64)
	wake     chan struct{} // holds one

	mu      sync.Mutex
	waiting []func()
	from    int64 // boot time since when things are dropped, or 0
}

func newQueue(overflow func(from, to int64)) *queue {
	return &queue{overflow: overflow, wake: make(chan struct{}, 1)}
}

// put never blocks.
func (q *queue) put(f func()) {
	q.mu.Lock()
	switch {
	case len(q.waiting) < maxQueue:
		q.waiting = append(q.waiting, f)
	case q.from == 0:
		q.from = cgroup.BootTime()
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// drain runs what is put until ctx ends. What waits then is not run.
func (q *queue) drain(ctx context.Context) {
	for {
		q.mu.Lock()
		batch, from := q.waiting, q.from
		q.waiting, q.from = nil, 0
		q.mu.Unlock()
		for _, f := range batch {
			if ctx.Err() != nil {
				return
			}
			f()
		}
		if from != 0 { // the batch was full, so everything dropped came after it
			q.overflow(from, cgroup.BootTime())
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
			return
		}
	}
}
