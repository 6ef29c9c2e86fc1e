package agent

import "time"

// pace keeps what is done for one container again and again within a share of
// the time: how long each piece takes is the container's to choose, and the
// others wait for their turns.
type pace struct {
	next  time.Time
	taken time.Duration
}

// due reports whether it is the container's turn.
func (p *pace) due(now time.Time) bool { return !now.Before(p.next) }

// took notes a piece that took so long, up to now: the next one comes when so
// many times as long have passed.
func (p *pace) took(d time.Duration, now time.Time, rest int) {
	p.taken += d
	p.next = now.Add(time.Duration(rest) * d)
}

// waitFor puts the next piece off.
func (p *pace) waitFor(d time.Duration, now time.Time) { p.next = now.Add(d) }

// patience is how long others wait for a piece that is done for one container,
// before they go on beside it.
const patience = 100 * time.Millisecond
