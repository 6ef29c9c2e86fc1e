package probe

import (
	"context"
	"sync"
	"testing"

	"github.com/cilium/ebpf/link"

	"probity/bpf"
)

// slowLink is a link that the kernel takes long to take away.
type slowLink struct {
	link.Link
	asked chan<- struct{}
	done  <-chan struct{}
}

func (l slowLink) Info() (*link.Info, error) { return nil, link.ErrNotSupported }
func (l slowLink) Close() error {
	l.asked <- struct{}{}
	<-l.done
	return nil
}

// What is due does not wait for what is being detached, and Run does.
func TestDetachInBackground(t *testing.T) {
	e := newEngine(t, bpf.Options{}, Config{Linger: 1})
	asked, done := make(chan struct{}, 1), make(chan struct{})
	k := hookKey{name: "slow"}
	e.mu.Lock()
	e.hooks[k] = &sharedHook{key: k, links: []link.Link{slowLink{asked: asked, done: done}}}
	e.mu.Unlock()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	<-asked
	turn := func() uint64 {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.turn
	}
	before := turn()
	until(t, func() bool { return turn() > before+2 })
	stop()
	select {
	case <-ended:
		t.Error("it ended while it was detaching")
	default:
	}
	close(done)
	must(t, <-ended)
}

// Many links are closed by few threads, and all of them are.
func TestCloseMany(t *testing.T) {
	asked, done := make(chan struct{}, 1000), make(chan struct{})
	var a attachment
	for range 300 {
		a.links = append(a.links, slowLink{asked: asked, done: done})
	}
	var wg sync.WaitGroup
	wg.Go(func() { must(t, a.close()) })
	for range closers {
		<-asked
	}
	if n := len(asked); n != 0 {
		t.Errorf("%d more than %d are closed at once", n, closers)
	}
	close(done)
	wg.Wait()
	if n := len(asked) + closers; n != 300 || len(a.links) != 0 {
		t.Errorf("%d were closed, want 300", n)
	}
}
