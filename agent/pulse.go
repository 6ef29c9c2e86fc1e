package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// pulseEvery is how often the agent looks at the clock, and stalledAfter how long it
// may not have run before somebody may have given it up: a hook does after 1.5 s, a
// runtime after 2 s.
const (
	pulseEvery   = 250 * time.Millisecond
	stalledAfter = 1200 * time.Millisecond
)

// pulse looks at the clocks, and signs what they did, and the times in which the agent
// did not run, because it was stopped or had no processor: who gave it up meanwhile
// started containers that it was not told of, or that had ended when it was. The time
// for which the machine sleeps is none.
func (a *Agent) pulse(ctx context.Context) error {
	set, err := clockSet(ctx)
	if err != nil { // then it is found a little later
		a.problem("%v", err)
	}
	tick := time.NewTicker(pulseEvery)
	defer tick.Stop()
	last := a.clocks.look()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-set:
		case <-a.clocks.news:
		case <-ctx.Done():
		}
		now := a.clocks.look()
		if d := time.Duration(now.Mono - last.Mono); d > stalledAfter { // by the clock that stands while the machine sleeps
			a.stalled(last.Boot, now.Boot, d)
		}
		last = now
		a.tellClocks(false)
	}
	return nil
}

func (a *Agent) stalled(from, to int64, d time.Duration) {
	a.mu.Lock()
	sources := slices.Sorted(maps.Keys(a.sources))
	a.mu.Unlock()
	a.log.Warn("the agent did not run", "for", d)
	for _, s := range sources {
		a.witness.SourceMissed(s, from, to, fmt.Sprintf("the agent did not run for %v: who did not wait for it went on", d.Round(time.Millisecond)))
	}
}
