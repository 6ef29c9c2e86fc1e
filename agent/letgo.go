package agent

import (
	"time"

	"probity/runtime/cgroup"
	"probity/runtime/container"
)

// release notes that a run's container is let go now. It does so before the
// source answers, so a run that is armed later is known to be late.
func (a *Agent) release(l *live) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.releaseLocked(l)
}

func (a *Agent) releaseLocked(l *live) {
	select {
	case <-l.armed: // at the last moment, and before it was let go
		return
	default:
	}
	if l.released == 0 {
		l.released = cgroup.BootTime()
		a.log.Warn("a container was let go before it was armed", "run", l.id, "container", l.container)
	}
}

// late is told by a source that it let a container go for reasons of its own.
func (a *Agent) late(n container.Notice) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.live {
		if l.container == n.Identity.ID {
			a.releaseLocked(l)
		}
	}
	// The notice itself may still be on its way.
	if len(a.letGo) >= maxLetGo {
		for id, at := range a.letGo {
			if at < cgroup.BootTime()-int64(time.Minute) { // it has come, or never will
				delete(a.letGo, id)
			}
		}
	}
	a.letGo[n.Identity.ID] = cgroup.BootTime()
}

// maxLetGo is how many are remembered before old ones are forgotten.
const maxLetGo = 1024

// takeLetGo returns when the container was let go, if that was before this
// notice of it was looked at, and 0 if it still waits. With mu held.
func (a *Agent) takeLetGo(n container.Notice) int64 {
	at := a.letGo[n.Identity.ID]
	delete(a.letGo, n.Identity.ID)
	if at < n.At { // an earlier life of it
		return 0
	}
	return at
}
