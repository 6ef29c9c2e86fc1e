package nri

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"

	"probity/runtime/container"
)

// What the runtime is told of a start, over a real socket: only a refusal, whoever
// it comes from, and its reason.
func TestRefused(t *testing.T) {
	refused := fmt.Errorf("probity: %w: policy p", ErrRefused)
	hang := make(chan struct{})
	late := func(err error) func(container.Notice, bool) error {
		return func(_ container.Notice, waits bool) error {
			if !waits {
				t.Error("it waits for the answer")
			}
			return err
		}
	}
	for _, c := range []struct {
		name    string
		notify  func() error
		late    func(container.Notice, bool) error
		barrier time.Duration
		want    string
	}{
		{"Notify refuses", func() error { return refused }, nil, time.Minute, "refused: policy p"},
		{"Notify lets it go", func() error { return nil }, late(refused), time.Minute, ""},
		{"another error", func() error { return errors.New("broken") }, late(refused), time.Minute, ""},
		{"Notify panics, closed", func() error { panic("broken") }, late(refused), time.Minute, "refused: policy p"},
		{"Notify panics, open", func() error { panic("broken") }, late(nil), time.Minute, ""},
		{"late, closed", func() error { <-hang; return nil }, late(refused), 30 * time.Millisecond, "refused: policy p"},
		{"late, another error", func() error { <-hang; return nil }, late(errors.New("broken")), 30 * time.Millisecond, ""},
		{"late, which panics", func() error { <-hang; return nil }, func(container.Notice, bool) error { panic("broken") }, 30 * time.Millisecond, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			socket := socketPath(t)
			n := start(t, socket, nil, nil)
			cfg := Config{Socket: socket, Barrier: c.barrier, Notify: func(_ context.Context, n container.Notice) error {
				if n.Kind != container.Starting {
					return nil
				}
				return c.notify()
			}}
			h, s := listen(t, cfg)
			n.connected(t)
			receive(t, h.synced)
			s.cfg.Late = c.late
			err := n.startContainer(running("c1", 7))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if err := n.startContainer(running("c2", 8)); (err != nil) != (c.want != "") { // we were not cut off
				t.Errorf("the next: %v", err)
			}
		})
	}
	close(hang)
}

// A start of which no notice can be made is not let by.
func TestRefusedWithoutNotice(t *testing.T) {
	socket := socketPath(t)
	n := start(t, socket, nil, nil)
	h, s := listen(t, Config{Socket: socket, Notify: func(context.Context, container.Notice) error { return nil }})
	n.connected(t)
	receive(t, h.synced)
	s.cfg.Late = func(n container.Notice, waits bool) error {
		if n.Identity.Runtime != container.Containerd || !waits {
			t.Errorf("%+v, waits: %v", n, waits)
		}
		return ErrRefused
	}
	if err := n.startContainer(running(strings.Repeat("c", container.MaxID+1), 7)); err == nil {
		t.Error("it starts")
	}
}

// What others have spent is no reason to refuse: who insists has all his time. Nor
// does he pay with it for more than he takes.
func TestInsist(t *testing.T) {
	s := New(Config{
		Notify: func(context.Context, container.Notice) error { return nil },
		Late:   func(container.Notice, bool) error { return ErrRefused },
		Insist: func(n container.Notice) bool { return n.Identity.ID == "closed" },
	})
	now := time.Now()
	s.shared.spend(now.Add(-3*time.Second), now) // more than all of it
	if got := s.shared.allowance(now); got != 0 {
		t.Fatalf("%v are left", got)
	}
	a := &attempt{s: s, ctx: context.Background()}
	a.barrier.Store(int64(time.Minute))
	r := container.Containerd
	a.runtime.Store(&r)
	for range 20 {
		if err := a.StartContainer(context.Background(), pod, running("closed", 7)); err != nil {
			t.Error(err)
		}
	}
}

// A source that ends cannot know whether its answer arrives.
func TestEndRefuses(t *testing.T) {
	release := make(chan struct{})
	finished := make(chan struct{}, 2)
	waited := make(chan bool, 2)
	s := New(Config{
		Notify: func(context.Context, container.Notice) error { <-release; finished <- struct{}{}; return nil },
		Late:   func(_ container.Notice, waits bool) error { waited <- waits; return nil },
		Insist: func(n container.Notice) bool { return n.Identity.ID == "closed" },
	})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, id := range []string{"closed", "open"} {
		err := s.barrier(ctx, container.Notice{Identity: container.Identity{ID: id}}, time.Hour)
		if errors.Is(err, ErrRefused) != (id == "closed") || receive(t, waited) {
			t.Errorf("%s: %v", id, err)
		}
	}
	close(release)
	receive(t, finished)
	receive(t, finished)
}

// CRI-O's containers get the hook that they are to have; containerd is not even asked to
// tell of them.
func TestHook(t *testing.T) {
	for name, want := range map[string]bool{"cri-o": true, "containerd": false} {
		socket := socketPath(t)
		n, err := newNode(t.TempDir(), socket, name, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { bounded(t, "stop the runtime", n.Stop) })
		asked := make(chan container.Notice, 8)
		listen(t, Config{Socket: socket, Hook: func(c container.Notice) *Hook {
			asked <- c
			if c.Identity.Name != "web" {
				return nil
			}
			return &Hook{Path: "/hook", Args: []string{"hook", "createRuntime"}, Timeout: 5 * time.Second}
		}})
		n.connected(t)
		for _, c := range []string{"web", "db"} {
			r, err := n.CreateContainer(context.Background(), &api.CreateContainerRequest{Pod: pod, Container: &api.Container{Id: "c-" + c, PodSandboxId: pod.Id, Name: c}})
			if err != nil {
				t.Fatal(err)
			}
			hooks := r.GetAdjust().GetHooks().GetCreateRuntime()
			if !want || c == "db" {
				if len(hooks) > 0 {
					t.Errorf("%s, %s: %v", name, c, hooks)
				}
				continue
			}
			if len(hooks) != 1 || hooks[0].GetPath() != "/hook" || len(hooks[0].GetArgs()) != 2 || hooks[0].GetTimeout().GetValue() != 5 {
				t.Errorf("%s: %v", name, hooks)
			}
		}
		if want {
			if got := receive(t, asked); got.Kind != container.Created || got.Identity.ID != "c-web" || got.Identity.Pod.Namespace != "shop" {
				t.Errorf("asked about %+v", got)
			}
			receive(t, asked)
		}
		silent(t, asked)
	}
}
