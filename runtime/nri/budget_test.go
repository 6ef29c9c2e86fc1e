package nri

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"

	"probity/runtime/cgroup"
	"probity/runtime/container"
)

func TestBudget(t *testing.T) {
	var b budget
	at := time.Now()
	if got := b.allowance(at); got != budgetHeld {
		t.Errorf("unspent: %v", got)
	}
	b.spend(at, at.Add(1500*time.Millisecond))
	at = at.Add(1500 * time.Millisecond)
	if got := b.allowance(at); got != 500*time.Millisecond {
		t.Errorf("after 1.5 s: %v", got)
	}
	b.spend(at, at.Add(500*time.Millisecond))
	at = at.Add(500 * time.Millisecond)
	if got := b.allowance(at); got != 0 {
		t.Errorf("spent: %v", got)
	}
	// It comes back as it went.
	if got := b.allowance(at.Add(9 * time.Second)); got != time.Second {
		t.Errorf("9 s later: %v", got)
	}
	if got := b.allowance(at.Add(budgetWindow)); got != budgetHeld {
		t.Errorf("a window later: %v", got)
	}
}

// The lock is held while a call is on its way, too: calls that cost nothing here take
// from what is left for starts.
func TestBudgetOfTheWay(t *testing.T) {
	socket := socketPath(t)
	n := start(t, socket, nil, nil)
	h, s := listen(t, Config{Socket: socket})
	n.connected(t)
	const calls = 40
	for i := range calls {
		if err := n.RemoveContainer(context.Background(), &api.RemoveContainerRequest{Pod: pod, Container: running(fmt.Sprint("c", i), 7)}); err != nil {
			t.Fatal(err)
		}
	}
	for range calls {
		receive(t, h.notices)
	}
	if got := s.shared.allowance(time.Now()); got > budgetHeld-calls*underway {
		t.Errorf("after %d calls there are %v left", calls, got)
	}
}

// Whatever starts come, at most a fifth of any ten seconds is held.
func TestBudgetProperty(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		var b budget
		now := time.Unix(0, 0)
		var all []spell
		for range 400 {
			now = now.Add(time.Duration(r.IntN(int(time.Second >> r.IntN(10)))))
			take := min(b.allowance(now), time.Duration(r.IntN(int(2*time.Second>>r.IntN(10)))))
			b.spend(now, now.Add(take))
			all = append(all, spell{now, now.Add(take)})
			now = now.Add(take)
			if len(b.spent) > 600 {
				t.Fatalf("%d spells are kept", len(b.spent))
			}
			var held time.Duration
			for _, s := range all {
				if from := now.Add(-budgetWindow); s.from.Before(from) {
					s.from = from
				}
				held += max(0, s.to.Sub(s.from))
			}
			if slack := budgetWindow / 500; held > budgetHeld+slack {
				t.Fatalf("seed %d: %v of the last %v", seed, held, budgetWindow)
			}
		}
	}
}

// Many starts that hang: the runtime gets its lock back.
func TestBudgetIsKept(t *testing.T) {
	socket := socketPath(t)
	n := start(t, socket, nil, nil)
	release := make(chan struct{})
	h, s := listen(t, Config{Socket: socket, Barrier: 100 * time.Millisecond, Notify: func(context.Context, container.Notice) error {
		<-release
		return nil
	}})
	t.Cleanup(func() { close(release) })
	n.connected(t)
	receive(t, h.synced)
	s.shared.spend(time.Now().Add(-1850*time.Millisecond), time.Now())
	begin := time.Now()
	for i := range 30 {
		if err := n.startContainer(running(fmt.Sprint("c", i), 7)); err != nil {
			t.Fatal(err)
		}
	}
	held := time.Since(begin)
	t.Logf("30 starts that hang held the lock for %v more", held)
	if held > 2500*time.Millisecond { // 150 ms were left, and the machine may be slow; without a budget it is 3 s at least
		t.Errorf("held for %v", held)
	}
	for range 30 {
		receive(t, h.late)
	}
	if got := s.shared.allowance(time.Now()); got > 100*time.Millisecond {
		t.Errorf("%v are left", got)
	}
}

// Starts that hang for ever do not pile up.
func TestHangingStartsAreBounded(t *testing.T) {
	release := make(chan struct{})
	finished := make(chan struct{}, maxStarts+1)
	late := make(chan container.Notice, maxStarts+1)
	var notified atomic.Int32
	s := New(Config{
		Notify: func(context.Context, container.Notice) error {
			if int(notified.Add(1)) > len(late) {
				t.Error("who could not wait was let go after it was notified of")
			}
			<-release
			finished <- struct{}{}
			return nil
		},
		Late: func(n container.Notice, _ bool) error { late <- n; return nil },
	})
	for i := range maxStarts + 1 {
		s.barrier(context.Background(), container.Notice{}, 0)
		if len(late) != i+1 {
			t.Fatal("a start was let go before Late was told")
		}
	}
	if len(s.started) != maxStarts || len(s.queue.waiting) != 1 {
		t.Errorf("%d run, %d are queued", len(s.started), len(s.queue.waiting))
	}
	close(release)
	for range maxStarts {
		receive(t, finished)
	}
}

// A source that ends lets go of what it holds, and says so first.
func TestEndLetsGo(t *testing.T) {
	release, finished := make(chan struct{}), make(chan struct{})
	late := make(chan container.Notice, 1)
	s := New(Config{
		Notify: func(context.Context, container.Notice) error { <-release; close(finished); return nil },
		Late:   func(n container.Notice, _ bool) error { late <- n; return nil },
	})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.barrier(ctx, container.Notice{}, time.Hour)
	if len(late) != 1 {
		t.Error("let go before Late was told")
	}
	close(release)
	receive(t, finished)
}

func TestQueue(t *testing.T) {
	windows := make(chan [2]int64, 1)
	q := newQueue(func(from, to int64) { windows <- [2]int64{from, to} })
	ran := 0
	for range maxQueue + 10 {
		q.put(func() { ran++ })
	}
	full := cgroup.BootTime()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); q.drain(ctx) }()
	w := receive(t, windows)
	if w[0] > full || w[1] < full {
		t.Errorf("window %v, full at %d", w, full)
	}
	last := make(chan struct{})
	q.put(func() { close(last) })
	receive(t, last)
	cancel()
	receive(t, done)
	if ran != maxQueue {
		t.Errorf("%d ran", ran)
	}
}
