package agent

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// beating is an agent that says that it lives every few milliseconds, and what it says.
func beating(t *testing.T, health time.Duration) (*node, <-chan struct{}) {
	alive := make(chan struct{}, 1)
	return newNodeWith(t, Config{Health: health, AliveEvery: 5 * time.Millisecond, Alive: func() {
		select {
		case alive <- struct{}{}:
		default:
		}
	}}, wanted), alive
}

// It says so however seldom it proves that probes are armed.
func TestAlive(t *testing.T) {
	_, alive := beating(t, time.Hour)
	for range 20 {
		<-alive
	}
}

// watchdog is what a watchdog hears, and what the agent's log says of hanging loops: ""
// for a beat, or a loop's name.
type watchdog struct{ heard chan string }

func (w watchdog) hear(s string) {
	select {
	case w.heard <- s:
	default: // nobody listens now
	}
}

// Enabled, Handle, WithAttrs and WithGroup implement slog.Handler.
func (w watchdog) Enabled(context.Context, slog.Level) bool { return true }
func (w watchdog) WithAttrs([]slog.Attr) slog.Handler       { return w }
func (w watchdog) WithGroup(string) slog.Handler            { return w }
func (w watchdog) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "loop" {
			w.hear(a.Value.String())
		}
		return true
	})
	return nil
}

// A loop that hangs has the agent say nothing, until it goes on. Each of the loops waits
// for the agent's lock here, when it has something to do, and only one has.
func TestHangs(t *testing.T) {
	const stands = "name: test\nprobes:\n  - {id: hello, type: uprobe, file: /bin/target, symbols: [hello], stopAfter: 1}\n"
	for loop, c := range map[string]struct {
		health   time.Duration
		policies string
		work     func(*testing.T, *box)
	}{
		"health": {5 * time.Millisecond, wanted, func(*testing.T, *box) {}},
		// A probe stands down.
		"sweep": {time.Hour, stands, func(_ *testing.T, b *box) { b.run() }},
		// A program is executed.
		"ring": {time.Hour, wanted, func(t *testing.T, b *box) {
			cg, err := os.Open(b.cgroup)
			must(t, err)
			defer cg.Close()
			cmd := exec.Command("/bin/true")
			cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd())}
			must(t, cmd.Run())
		}},
	} {
		t.Run(loop, func(t *testing.T) {
			w := watchdog{make(chan string, 1000)}
			n := newNodeWith(t, Config{Health: c.health, AliveEvery: 5 * time.Millisecond, Alive: func() { w.hear("") }, Log: slog.New(w)}, c.policies)
			b := newBox(t, 1, "hello")
			n.notify(context.Background(), b.notice("c1"), yes)
			late := time.NewTimer(failsafe)
			defer late.Stop()
			// next is what is heard next, or "-" if nothing is for so long.
			next := func(most time.Duration) string {
				quiet := time.NewTimer(most)
				defer quiet.Stop()
				select {
				case s := <-w.heard:
					return s
				case <-quiet.C:
					return "-"
				case <-late.C:
					t.Fatal("the watchdog goes on being told that the agent lives")
				}
				return ""
			}
			n.mu.Lock()
			unlock := n.mu.Unlock
			defer func() { unlock() }()
			c.work(t, b)
			for said := ""; said != "-"; {
				if said = next(failsafe); said == loop {
					said = next(time.Second) // another may have hung on this machine, for a moment
				}
			}
			n.mu.Unlock()
			unlock = func() {}
			for next(failsafe) != "" {
			}
		})
	}
}

// A loop hangs if it is at the same thing for longer than it may be, and not if it
// waits or gets further.
func TestLoop(t *testing.T) {
	var turns turns
	l := &loop{turns: &turns}
	at := time.Now()
	look := func(seconds int, want bool) {
		t.Helper()
		if got := l.hangs(at.Add(time.Duration(seconds)*time.Second), 30*time.Second); got != want {
			t.Errorf("at %d s: %v", seconds, got)
		}
	}
	look(0, false)
	look(100, false) // it waits
	turns.begin()
	look(101, false)
	look(131, false)
	look(132, true)
	turns.further()
	look(133, false)
	look(163, false)
	look(164, true)
	turns.end()
	look(300, false)
	turns.begin()
	look(301, false)
}
