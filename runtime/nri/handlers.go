package nri

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/nri/pkg/api"

	"probity/runtime/cgroup"
	"probity/runtime/container"
)

// The events we ask for. Not CreateContainer: we change no container, and each
// event takes the runtime's lock.
func events() (m api.EventMask) {
	m.Set(api.Event_POST_CREATE_CONTAINER, api.Event_START_CONTAINER, api.Event_STOP_CONTAINER, api.Event_REMOVE_CONTAINER)
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
	return events(), nil
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
	a.s.queue.put(func() {
		if n, ok := a.notice(k, p, c, at); ok {
			a.s.notify(a.ctx, n)
		}
	})
}

// StartContainer is the barrier. It holds the runtime's lock.
func (a *attempt) StartContainer(_ context.Context, p *api.PodSandbox, c *api.Container) error {
	begin := time.Now()
	defer func() { a.s.shared.spend(begin, time.Now()) }()
	defer a.s.recovered("start")
	n, ok := a.notice(container.Starting, p, c, cgroup.BootTime())
	if !ok {
		return nil
	}
	a.s.barrier(a.ctx, n, min(time.Duration(a.barrier.Load()), a.s.shared.allowance(begin)))
	return nil
}

// barrier notifies of a start and waits, but not longer than limit. When it
// returns, either Notify has returned or Late has: the container is let go then,
// and whoever signs that it was must know it first.
func (s *Source) barrier(ctx context.Context, n container.Notice, limit time.Duration) {
	select {
	case s.started <- struct{}{}:
	default: // too many hang already
		s.callLate(n)
		s.queue.put(func() { s.notify(ctx, n) })
		return
	}
	done := make(chan struct{})
	go func() {
		defer func() { <-s.started }()
		defer close(done)
		s.notify(ctx, n)
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return
	case <-timer.C:
	case <-ctx.Done(): // the agent stops: the container does not wait for that
	}
	select {
	case <-done: // at the last moment
	default:
		s.cfg.Log.Warn("a start was let go before it was answered", "container", n.Identity.ID, "after", limit)
		s.callLate(n)
	}
}

// notify calls Notify. What comes of it is the agent's: the runtime is not
// told.
func (s *Source) notify(ctx context.Context, n container.Notice) {
	defer s.recovered("notify")
	if err := s.cfg.Notify(ctx, n); err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("notice", "kind", n.Kind, "container", n.Identity.ID, "error", err)
	}
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
