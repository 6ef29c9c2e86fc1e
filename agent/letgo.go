package agent

import (
	"cmp"
	"maps"
	"time"

	"probity/runtime/cgroup"
	"probity/runtime/container"
)

// releaseLocked notes that a run's container is let go now. It does so before the
// source answers, so a run that is armed later is known to be late. With mu held.
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

// startKey is a start as its source names it. Others may have the id: of another source,
// in another state directory, of an earlier life.
type startKey struct {
	source, id string
	pid        int // of init, 0 where the source did not come to say it
}

func keyOfStart(n container.Notice) startKey { return startKey{n.Source, n.Identity.ID, n.Pid} }

// of reports whether both are the same start, as far as is known. What a user says is of
// nobody's but his own.
func (k startKey) of(x startKey) bool {
	if (ofUsers(k.source) || ofUsers(x.source)) && k.source != x.source {
		return false
	}
	if k.pid != 0 && x.pid != 0 {
		return k.id == x.id && k.pid == x.pid
	}
	return k.id == x.id && k.source == x.source
}

// letGo is what a source was told of a container whose notice was not looked at yet.
type letGo struct {
	at      int64  // boot time
	refused string // why it was refused; "" says that it was let go
}

// late is told by a source that a start does not wait any more for what becomes of
// its notice. It returns what to tell the container: why it is refused, or "". If it
// does not wait for that either, it may run, whatever it was told.
func (a *Agent) late(n container.Notice, waits bool) (refused string) {
	a.mu.Lock()
	start, known := keyOfStart(n), false
	var unheard []*live
	for _, l := range a.live {
		switch {
		case !l.start.of(start) || time.Since(l.since) > recentStart: // an earlier life
		case waits:
			known, refused = true, cmp.Or(a.answerLocked(l), refused)
		default:
			known = true
			if a.unheardLocked(l) {
				unheard = append(unheard, l)
			}
		}
	}
	if !known && waits && obeys(n) {
		refused = a.mayRefuse(n.Identity, notInTime)
	}
	a.rememberLocked(start, letGo{cgroup.BootTime(), refused})
	a.mu.Unlock()
	for _, l := range unheard {
		a.witness.FailPolicy(l.id, false, "")
	}
	return refused
}

// rememberLocked keeps what was told until the notice comes, which may still be on
// its way. With mu held.
func (a *Agent) rememberLocked(of startKey, g letGo) {
	forgetOld(a.letGo, maxLetGo, func(g letGo) int64 { return g.at }) // it has come, or never will
	a.letGo[of] = g
}

// forgetOld takes out of a map that has so many entries those that are older than a
// minute.
func forgetOld[K comparable, V any](m map[K]V, most int, at func(V) int64) {
	if len(m) < most {
		return
	}
	before := cgroup.BootTime() - int64(time.Minute)
	maps.DeleteFunc(m, func(_ K, v V) bool { return at(v) < before })
}

// maxLetGo is how many are remembered before old ones are forgotten.
const maxLetGo = 1024

// takeLetGo returns what the container was told, if that was before this notice of
// it was looked at, and nothing if it still waits. With mu held.
func (a *Agent) takeLetGo(n container.Notice) letGo {
	of := keyOfStart(n)
	g, told := a.letGo[of]
	if !told { // by who did not know the pid
		of.pid = 0
		g = a.letGo[of]
	}
	delete(a.letGo, of)
	if g.at < n.At { // an earlier life of it
		return letGo{}
	}
	return g
}
