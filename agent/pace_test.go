package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"probity/bpf/probe"
	"probity/evidence"
)

// fakeRun is a run that is armed, as far as whose turn it is.
func fakeRun(name string) *live {
	l := &live{id: name, armed: make(chan struct{}), handle: &probe.Handle{}, ctx: context.Background()}
	close(l.armed)
	return l
}

// Of containers with tens of thousands of processes, with processes that are slow
// to look at, or that nobody comes back from, each costs its own rounds and nobody
// else's; what was not looked at is signed, of these and of no other.
func TestPatrolIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		many, slow, hung := fakeRun("many"), fakeRun("slow"), fakeRun("hung")
		runs := []*live{many, slow, hung}
		for i := range 20 {
			runs = append(runs, fakeRun(fmt.Sprint("other", i)))
		}
		var took time.Duration // by looks
		rounds, late := map[*live]int{}, map[*live][]string{}
		p := &patrol{
			health: 5 * time.Second,
			runs:   func() []*live { return slices.Clone(runs) },
			list: func(l *live) ([]int, bool, error) {
				return make([]int, map[*live]int{many: 50_000, slow: 100, hung: 2}[l]+3), true, nil
			},
			look: func(l *live, pid int) (<-chan look, bool) {
				d := 100 * time.Microsecond
				switch l {
				case slow: // 65,000 mappings
					d = 80 * time.Millisecond
				case hung:
					return make(chan look), true
				}
				out := make(chan look, 1)
				go func() {
					time.Sleep(d)
					took += d
					out <- look{took: d}
				}()
				return out, true
			},
			found: func(l *live, troubles []probe.Trouble, began int64) bool {
				for _, tr := range troubles {
					late[l] = append(late[l], tr.Detail)
					if tr.Reason != evidence.GapUnarmedMapping || tr.Path != "" || began != 0 {
						t.Errorf("%s: %+v, and all is well since %d", l.id, tr, began)
					}
				}
				if began != 0 {
					rounds[l]++
				}
				return true
			},
		}
		ctx, stop := context.WithTimeout(t.Context(), 2*roundWithin)
		defer stop()
		began := time.Now()
		if err := p.run(ctx); err != nil {
			t.Fatal(err)
		}
		all := time.Since(began)
		for _, l := range runs {
			bad := l == many || l == slow || l == hung
			if !bad && (rounds[l] < int(all/(10*time.Second)) || len(late[l]) > 0) {
				t.Errorf("%s: %d rounds in %v, %q", l.id, rounds[l], all, late[l])
			}
			if bad && (len(late[l]) != 1 || !strings.Contains(late[l][0], "not looked at within")) {
				t.Errorf("%s: %q", l.id, late[l])
			}
		}
		if part := float64(took) / float64(all); part > 0.006 {
			t.Errorf("looking took %.3f of the time", part)
		}
	})
}

// A run that ends is forgotten, and one in whose turn somebody else is comes later.
func TestPatrolForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := fakeRun("one")
		runs, busy, looks, rounds := []*live{l}, true, 0, 0
		p := &patrol{
			health: time.Second,
			runs:   func() []*live { return runs },
			list:   func(*live) ([]int, bool, error) { return []int{1}, true, nil },
			look: func(*live, int) (<-chan look, bool) {
				looks++
				out := make(chan look, 1)
				out <- look{}
				return out, !busy
			},
			found: func(*live, []probe.Trouble, int64) bool { rounds++; return true },
		}
		p.rounds = map[*live]*round{}
		turns := func(n int) {
			for range n {
				time.Sleep(max(p.turn(t.Context()), time.Millisecond))
			}
		}
		if turns(10); looks < 2 || rounds != 0 {
			t.Errorf("busy: %d looks, %d rounds", looks, rounds)
		}
		busy, looks = false, 0
		if turns(4); looks == 0 || rounds == 0 {
			t.Errorf("%d looks, %d rounds", looks, rounds)
		}
		runs = nil
		if turns(1); len(p.rounds) != 0 {
			t.Error("what has ended is kept")
		}
	})
}

// Searching a container again and again, for each of its new programs, takes its
// own share of the time, and who comes after it does not wait.
func TestSearchesAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		loud, other := fakeRun("loud"), fakeRun("other")
		a := &Agent{catchUp: make(chan struct{}, 1), live: map[string]*live{"loud": loud, "other": other}}
		for _, l := range a.live {
			l.checking = newTurn()
		}
		var searching, waited time.Duration
		done, since := map[*live]int{}, time.Now()
		c := &catching{runs: a.runs, waits: a.waits, take: a.takeLater, back: a.putBack, looked: a.lookedFor, do: func(x appeared) {
			done[x.l]++
			if x.l == loud {
				time.Sleep(3 * time.Second)
				searching += 3 * time.Second
				return
			}
			waited = max(waited, time.Since(since))
		}}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.run(ctx, a.catchUp) }()
		for i := range maxLater {
			a.soon(appeared{l: loud, pid: 1, path: fmt.Sprint("/", i), why: evidence.GapFileChanged})
		}
		const minutes = 10
		for range minutes {
			synctest.Wait()
			since = time.Now()
			a.soon(appeared{l: other, pid: 1, path: "/x", why: evidence.GapFileChanged})
			time.Sleep(time.Minute)
		}
		stop()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // what is searched at the end is not waited for
		synctest.Wait()
		if done[other] != minutes || waited > time.Second {
			t.Errorf("%d of %d were looked at, the slowest after %v", done[other], minutes, waited)
		}
		if part := searching.Seconds() / (minutes * 60); part > 0.12 || part < 0.05 {
			t.Errorf("searching one container took %.2f of the time", part)
		}
		loud.checking.Lock() // whatever is under way
	})
}

// The rest after a piece is as long as the share wants.
func TestPace(t *testing.T) {
	now := time.Now()
	var p pace
	if !p.due(now) {
		t.Error("the first turn is not due")
	}
	p.took(time.Second, now, 19)
	if p.due(now.Add(18*time.Second)) || !p.due(now.Add(19*time.Second)) {
		t.Errorf("%+v", p)
	}
}
