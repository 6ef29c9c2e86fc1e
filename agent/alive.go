package agent

import (
	"context"
	"sync/atomic"
	"time"
)

// aliveEvery is how often the agent says that it lives, where nobody says how often.
const aliveEvery = 5 * time.Second

// turns counts what a loop does: it is odd while the loop is at something, and even
// while it waits for something to do. Who looks twice sees whether it hangs.
type turns struct{ n atomic.Uint64 }

func (t *turns) begin() { t.n.Add(1) }
func (t *turns) end()   { t.n.Add(1) }

// further says that the loop, which is at something, got further.
func (t *turns) further() { t.n.Add(2) }

// loop is one that only another agent can help, if it hangs.
type loop struct {
	name  string
	turns *turns

	seen  uint64
	since time.Time // when that was seen first
}

// hangs reports whether the loop has been at the same thing for so long.
func (l *loop) hangs(now time.Time, most time.Duration) bool {
	if n := l.turns.n.Load(); n != l.seen || n%2 == 0 {
		l.seen, l.since = n, now
	}
	return now.Sub(l.since) > most
}

// living tells a watchdog that the agent lives, as often as it wants to be told three
// times over, unless a loop hangs. The spool's writer is not among them: a disk that
// does not answer is not mended by another agent, and what waits in memory would be
// lost with this one. When the agent ends it says so, and stopRuns goes on to tell: from
// then on who waits for the end has a time of his own.
func (a *Agent) living(ctx context.Context) error {
	tick := time.NewTicker(a.cfg.AliveEvery)
	defer tick.Stop()
	loops := []*loop{{name: "health", turns: &a.healthTurns}, {name: "sweep", turns: &a.sweepTurns}}
	if a.ring != nil {
		loops = append(loops, &loop{name: "ring", turns: &a.ring.turns})
	}
	told := ""
	for {
		hang := ""
		for _, l := range loops {
			if l.hangs(time.Now(), 3*a.cfg.AliveEvery) {
				hang = l.name
			}
		}
		if hang == "" {
			a.cfg.Alive()
		} else if hang != told {
			a.log.Error("a loop hangs: the watchdog is not told any more that the agent lives", "loop", hang)
		}
		told = hang
		select {
		case <-tick.C:
		case <-ctx.Done():
			a.cfg.Stopping()
			return nil
		}
	}
}
