package nri

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/nri/pkg/api"

	"probity/runtime/cgroup"
	"probity/runtime/container"
)

// The events we ask for. CreateContainer only where a hook is to be added: each event
// takes the runtime's lock.
func events(hooks bool) (m api.EventMask) {
	m.Set(api.Event_POST_CREATE_CONTAINER, api.Event_START_CONTAINER, api.Event_STOP_CONTAINER, api.Event_REMOVE_CONTAINER)
	if hooks {
		m.Set(api.Event_CREATE_CONTAINER)
	}
	return m
}

// Configure is the runtime saying who it is.
func (a *attempt) Configure(_ context.Context, _, name, version string) (api.EventMask, error) {
	if a.aborted.Load() {
		return 0, errors.New("given up")
	}
	r, ok := runtimeNamed(name)
	if !ok {
		return 0, fmt.Errorf("runtime %.64q is not known", name)
	}
	// Here and not when Start has returned: a start can come before that. A
	// quarter of the runtime's timeout is left for the way back.
	if t := a.timeout() * 3 / 4; t > 0 && t < a.s.cfg.Barrier {
		a.barrier.Store(int64(t))
	}
	a.runtime.Store(&r)
	a.s.cfg.Log.Debug("configured", "runtime", name, "version", version)
	return events(a.s.cfg.Hook != nil && r == container.CRIO), nil
}

// Synchronize is the runtime's list of what there is. It is only queued: on a
// big node it would take longer than the runtime's timeout to look at it.
func (a *attempt) Synchronize(_ context.Context, pods []*api.PodSandbox, list []*api.Container) ([]*api.ContainerUpdate, error) {
	at := cgroup.BootTime()
	a.s.synced(at)
	byID := make(map[string]*api.PodSandbox, len(pods))
	for _, p := range pods {
		byID[p.GetId()] = p
	}
	for _, c := range list {
		switch c.GetState() {
		case api.ContainerState_CONTAINER_RUNNING, api.ContainerState_CONTAINER_PAUSED:
			a.enqueue(container.Existing, byID[c.GetPodSandboxId()], c, at)
		case api.ContainerState_CONTAINER_CREATED:
			a.enqueue(container.Created, byID[c.GetPodSandboxId()], c, at)
		}
	}
	a.s.queue.put(a.s.callSynced)
	return nil, nil
}

// CreateContainer: CRI-O is about to make a container, and does with it what it is told.
func (a *attempt) CreateContainer(_ context.Context, p *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	begin := time.Now()
	defer func() { a.s.shared.call(begin, time.Now()) }()
	n, ok := a.notice(container.Created, p, c, cgroup.BootTime())
	if !ok || n.Identity.Runtime != container.CRIO {
		return nil, nil, nil
	}
	h := a.s.callHook(n)
	if h == nil {
		return nil, nil, nil
	}
	adjust := &api.ContainerAdjustment{}
	adjust.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: h.Path, Args: h.Args, Timeout: api.Int(int(h.Timeout / time.Second))}}})
	return adjust, nil, nil
}

// PostCreateContainer: there is a container, without a process that counts.
func (a *attempt) PostCreateContainer(_ context.Context, p *api.PodSandbox, c *api.Container) error {
	a.enqueue(container.Created, p, c, cgroup.BootTime())
	return nil
}

// StopContainer comes after the end, or, on an explicit stop, about it.
func (a *attempt) StopContainer(_ context.Context, p *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	a.enqueue(container.Stopped, p, c, cgroup.BootTime())
	return nil, nil
}

// RemoveContainer: the runtime forgets it.
func (a *attempt) RemoveContainer(_ context.Context, p *api.PodSandbox, c *api.Container) error {
	a.enqueue(container.Removed, p, c, cgroup.BootTime())
	return nil
}

// enqueue leaves even the reading of the message to the queue's goroutine.
func (a *attempt) enqueue(k container.Kind, p *api.PodSandbox, c *api.Container, at int64) {
	now := time.Now()
	a.s.shared.call(now, now)
	a.s.queue.put(func() {
		if n, ok := a.notice(k, p, c, at); ok {
			a.s.notify(a.ctx, n)
		}
	})
}

// StartContainer is the barrier. It holds the runtime's lock.
func (a *attempt) StartContainer(_ context.Context, p *api.PodSandbox, c *api.Container) error {
	begin := time.Now()
	defer func() { a.s.shared.call(begin, time.Now()) }()
	defer a.s.recovered("start")
	n, ok := a.notice(container.Starting, p, c, cgroup.BootTime())
	if !ok {
		return a.s.callLate(n, true)
	}
	limit := time.Duration(a.barrier.Load())
	if !a.s.callInsist(n) {
		limit = min(limit, a.s.shared.allowance(begin))
	}
	return a.s.barrier(a.ctx, n, limit)
}

// barrier notifies of a start and waits, but not longer than limit. When it
// returns, either Notify has returned or Late has: the container is let go then,
// unless that is an error, and whoever signs that it was must know it first.
func (s *Source) barrier(ctx context.Context, n container.Notice, limit time.Duration) error {
	select {
	case s.started <- struct{}{}:
	default: // too many hang already
		err := s.callLate(n, true)
		s.queue.put(func() { s.notify(ctx, n) })
		return err
	}
	done := make(chan error, 1)
	failed := make(chan struct{}) // Notify panicked
	notify := func() {
		defer func() { <-s.started }()
		err, ok := s.notify(ctx, n)
		if ok {
			done <- err
		} else {
			close(failed)
		}
	}
	if limit <= 0 { // it is let go whatever comes: who arms it is to know that it need not hurry
		err := s.callLate(n, true)
		go notify()
		return err
	}
	go notify()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-failed:
	case <-timer.C:
	case <-ctx.Done(): // the agent stops: the container does not wait for that
		return cmp.Or(s.callLate(n, false), s.stopping(n))
	}
	select {
	case err := <-done: // at the last moment
		return err
	default:
		s.cfg.Log.Warn("a start was not answered", "container", n.Identity.ID, "after", limit)
		return s.callLate(n, true)
	}
}

// stopping refuses what would have been waited for, if the runtime still hears it.
func (s *Source) stopping(n container.Notice) error {
	if s.callInsist(n) {
		return fmt.Errorf("probity: %w: the agent stops", ErrRefused)
	}
	return nil
}

// notify calls Notify and returns what the runtime is told of what comes of it. It
// is not ok if there is no answer.
func (s *Source) notify(ctx context.Context, n container.Notice) (err error, ok bool) {
	defer s.recovered("notify")
	err = s.cfg.Notify(ctx, n)
	if ctx.Err() == nil || errors.Is(err, ErrRefused) {
		err = s.refused(n, err)
	} else {
		err = nil
	}
	return err, true
}

// notice makes the notice, or says in the log why there is none.
func (a *attempt) notice(k container.Kind, p *api.PodSandbox, c *api.Container, at int64) (container.Notice, bool) {
	r := a.runtime.Load()
	if r == nil {
		a.s.cfg.Log.Warn("an event before Configure", "kind", k)
		return container.Notice{}, false
	}
	id, cut := identify(*r, p, c)
	n := container.Notice{Source: a.s.name, Kind: k, Identity: id, At: at, Command: container.CommandOf(c.GetArgs(), c.GetEnv(), "")}
	if k != container.Created && c.GetPid() <= maxPid {
		n.Pid = int(c.GetPid())
	}
	if k == container.Existing { // its pid was true a moment ago
		n.CgroupName = cgroupName(c.GetLinux().GetCgroupsPath())
	}
	if cut > 0 {
		a.s.cfg.Log.Warn("labels or annotations past the bounds are left out", "container", id.ID, "count", cut)
	}
	if err := n.Validate(); err != nil {
		a.s.cfg.Log.Error("a notice that cannot be used", "error", err)
		return n, false
	}
	return n, true
}
