package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"probity/evidence"
	"probity/runtime/cgroup"
)

// Times are boot time, which counts while the machine sleeps and which nobody can set.
// What a person makes of them depends on two more things: that nothing ran while the
// machine slept, and what the wall clock said. Both are signed: suspended and clockStep.

// movedBy is what a clock has to move against another to be told of. It is far above
// what reading them takes, and below what a service steps by that otherwise slews.
const movedBy = 10 * time.Millisecond

// tellClocksEvery is how often at most a line tells of either: who may set the clock
// could do so all the time. What happens meanwhile is counted for the next one.
const tellClocksEvery = 10 * time.Second

// setsRead is how often at most the agent wakes up because the clock was set.
const setsRead = 100 * time.Millisecond

// moves are what happened to a clock and is not told.
type moves struct {
	times    uint64 // how often it was found
	from, to int64  // boot time: the look before the first, and the one that found the last
	by       int64  // nanoseconds together
	most     int64  // of those of one look, whatever the direction
	told     int64  // monotonic time of the last line
}

func (m *moves) found(from, to, by int64) {
	if m.times == 0 {
		m.from, m.by, m.most = from, 0, 0
	}
	m.times, m.to, m.by = m.times+1, to, m.by+by
	m.most = max(m.most, by, -by)
}

// take returns what is to be told now, if anything is.
func (m *moves) take(mono int64, all bool) (moves, bool) {
	if m.times == 0 || !all && m.told != 0 && mono-m.told < int64(tellClocksEvery) {
		return moves{}, false
	}
	now := *m
	*m = moves{told: max(1, mono)}
	return now, true
}

// clocks follow what the kernel's clocks do to each other.
type clocks struct {
	read func() cgroup.Clocks
	news chan struct{} // has something when they moved

	mu    sync.Mutex
	last  cgroup.Clocks
	slept int64 // Boot-Mono as it was when it was last found to have moved
	wall  int64 // Wall-Boot
	sleep moves
	step  moves
	// slumbers are the latest sleeps, oldest first.
	slumbers []slumber
}

// slumber is a sleep of which any moment before the given boot time was before it: it
// began at the look before, at the earliest, and lasted so long.
type slumber struct{ before, by int64 }

// maxSlumbers is how many are told apart. What the clocks did longer ago is not asked for.
const maxSlumbers = 64

func newClocks(read func() cgroup.Clocks) *clocks {
	c := read()
	return &clocks{read: read, news: make(chan struct{}, 1), last: c, slept: c.Boot - c.Mono, wall: c.Wall - c.Boot}
}

// look reads the clocks and notes what they did since the look before.
func (k *clocks) look() cgroup.Clocks {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.read()
	// A clock that moves by less is not forgotten: what it moves by adds up.
	least := int64(movedBy) + c.Within
	moved := false
	if by := c.Boot - c.Mono - k.slept; by > least {
		k.sleep.found(k.last.Boot, c.Boot, by)
		k.slept += by
		if len(k.slumbers) == maxSlumbers {
			k.slumbers = slices.Delete(k.slumbers, 0, 1)
		}
		k.slumbers = append(k.slumbers, slumber{k.last.Boot + by, by})
		moved = true
	}
	if by := c.Wall - c.Boot - k.wall; by > least || by < -least {
		k.step.found(k.last.Boot, c.Boot, by)
		k.wall += by
		moved = true
	}
	k.last = c
	if moved {
		select {
		case k.news <- struct{}{}:
		default:
		}
	}
	return c
}

// awake is for how long the machine has been awake since a boot time: what is given a
// time to come back in has none while the machine sleeps.
func (k *clocks) awake(since int64) time.Duration {
	now := k.look().Boot
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range k.slumbers {
		if since < s.before {
			now -= s.by
		}
	}
	return time.Duration(now - since)
}

// chunk is the clock of a chunk: what it says is compared with what was known, so that
// no chunk has a clock of which nothing is signed.
func (k *clocks) chunk() evidence.Clock { return clockOf(k.look()) }

func clockOf(c cgroup.Clocks) evidence.Clock {
	return evidence.Clock{BootNs: evidence.Uint64(c.Boot), Wall: evidence.TimeOf(time.Unix(0, c.Wall))}
}

// now reads the clock of a chunk.
func now() evidence.Clock { return clockOf(cgroup.ReadClocks()) }

// untold takes what is to be told now.
func (k *clocks) untold(all bool) (sleep, step moves, slept, stepped bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	sleep, slept = k.sleep.take(k.last.Mono, all)
	step, stepped = k.step.take(k.last.Mono, all)
	return
}

// tellClocks signs what the clocks did; all of it, or what is due.
func (a *Agent) tellClocks(all bool) {
	sleep, step, slept, stepped := a.clocks.untold(all)
	if slept {
		a.log.Info("the machine slept", "for", time.Duration(sleep.by), "times", sleep.times)
		a.witness.Node(evidence.GapSuspended, sleep.from, sleep.to, sleep.times, sleep.sleepDetail())
	}
	if stepped {
		a.log.Warn("the wall clock was set", "by", time.Duration(step.by), "times", step.times)
		// What comes now is in a chunk whose clock is as it was set.
		a.spool.Seal()
		a.witness.Node(evidence.GapClockStep, step.from, step.to, step.times, step.stepDetail())
	}
}

func (m moves) sleepDetail() string {
	return "the machine slept for " + rounded(m.by) + m.often("") + ": no code ran"
}

func (m moves) stepDetail() string {
	way := "forward by "
	if m.by < 0 {
		way = "back by "
	}
	return "the wall clock was set " + way + rounded(m.by) + m.often(", once by "+rounded(m.most))
}

func (m moves) often(more string) string {
	if m.times == 1 {
		return ""
	}
	return fmt.Sprintf(" in %d times together%s", m.times, more)
}

// rounded is a length without its sign.
func rounded(ns int64) string {
	return time.Duration(max(ns, -ns)).Round(time.Millisecond).String()
}

// clockSet returns a channel that has something whenever the kernel says that the
// clock was set or the machine slept: a timer of the wall clock is cancelled then. The
// goroutine that fills it ends with ctx.
func clockSet(ctx context.Context) (<-chan struct{}, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make a timer of the wall clock: %w", err)
	}
	// It never expires: the latest time that the kernel takes.
	never := unix.ItimerSpec{Value: unix.Timespec{Sec: math.MaxInt64 / int64(time.Second)}}
	if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &never, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("set a timer of the wall clock: %w", err), unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), "timerfd")
	context.AfterFunc(ctx, func() { f.Close() })
	set := make(chan struct{}, 1)
	go func() {
		var b [8]byte
		for ctx.Err() == nil {
			_, err := f.Read(b[:])
			if err != nil && !errors.Is(err, unix.ECANCELED) {
				return // it was closed
			}
			select {
			case set <- struct{}{}:
			default:
			}
			select { // the next ones are one
			case <-time.After(setsRead):
			case <-ctx.Done():
			}
		}
	}()
	return set, nil
}
