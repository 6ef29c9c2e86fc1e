package agent

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/runtime/events"
)

// What containerd's events tell of is adopted like what a state directory shows, but
// for a task that was only made: that is armed at once, and has no gap if it is certain
// after that that nothing of it had run.

// nriHas is how long NRI has to tell of a container that CRI made, before it is taken
// from the events: it comes with more that policies can ask for.
const nriHas = 5 * time.Second

// maxMaking bounds the tasks that are armed while they are made.
const maxMaking = 64

// toldByNRI remembers of which containers' processes NRI has told.
type toldByNRI struct {
	mu   sync.Mutex
	pids map[string]int // by container id
}

func (t *toldByNRI) hear(n container.Notice) {
	if n.Pid == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pids == nil || len(t.pids) >= maxTold {
		t.pids = map[string]int{}
	}
	t.pids[n.Identity.ID] = n.Pid
}

func (t *toldByNRI) has(id string, pid int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return pid != 0 && t.pids[id] == pid
}

// events is one containerd's.
func (a *Agent) events(ctx context.Context, socket string) error {
	name := events.Name(socket)
	a.source(name, "no socket yet")
	making := make(chan struct{}, maxMaking)
	src := events.New(events.Config{
		Socket: socket, Log: a.log.With("in", "events", "socket", socket),
		Notify: func(_ context.Context, t events.Task) { a.task(ctx, t, making) },
		Known:  a.byNRI.has,
		Lost:   func(at int64) { a.sourceLost(name, at, "the connection to containerd is gone, or was not made yet") },
		Synced: func() {
			a.sourceBack(name, cgroup.BootTime())
			a.heard(name)
		},
	})
	return src.Run(ctx)
}

// task takes what is told of a task, and does not wait for what comes of it.
func (a *Agent) task(ctx context.Context, t events.Task, making chan struct{}) {
	switch {
	case t.Kind == container.Stopped || t.Kind == container.Removed:
		a.begin()
		a.work.Go(func() {
			defer a.end()
			a.notify(ctx, t.Notice, nil)
		})
	case t.CRI && len(a.cfg.NRISockets) > 0 && (t.Kind == container.Existing || a.hearsNRI()):
		time.AfterFunc(nriHas, func() {
			if ctx.Err() == nil && !a.byNRI.has(t.Identity.ID, t.Pid) {
				a.notify(ctx, t.Notice, nil)
			}
		})
	case t.Created != nil:
		select {
		case making <- struct{}{}:
			a.begin()
			a.work.Go(func() {
				defer a.end()
				defer func() { <-making }()
				t.Identity.BootID = a.bootID
				a.adoptOne(ctx, t.Notice, t.Created)
			})
		default:
			a.notify(ctx, t.Notice, nil)
		}
	case t.Unknown:
		a.unknownTask(t)
		a.notify(ctx, t.Notice, nil) // it may run still, and a policy be for everybody
	default:
		a.notify(ctx, t.Notice, nil)
	}
}

// unknownTask signs that a task has run of which nobody can say whether a policy would
// have been for it.
func (a *Agent) unknownTask(t events.Task) {
	a.log.Warn("a container that nobody knows any more", "container", t.Identity.ID)
	a.witness.SourceMissed(t.Source, cmp.Or(t.Made, t.At), cgroup.BootTime(), fmt.Sprintf("container %s, which ran already, is not known to containerd any more", t.Identity.ID))
}

// hearsNRI reports whether some NRI socket is connected. Whose it is, nobody says.
func (a *Agent) hearsNRI() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, state := range a.sources {
		if strings.HasPrefix(name, "nri:") && state == connected {
			return true
		}
	}
	return false
}
