package probe

import (
	"context"
	"testing"
	"time"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/evidence"
	"probity/runtime/cgroup"
)

func stopping(p policy.Probe, after uint64) policy.Probe {
	p.StopAfter = after
	return p
}

// patchedNow reports whether a new mapping of the box's file has a breakpoint
// at the site: whether who runs it pays for a trap.
func (b *box) patchedNow(s Site) bool {
	b.t.Helper()
	f, err := s.File.Match.Open()
	must(b.t, err)
	defer f.Close()
	c, err := newCanary(f, []uint64{s.Offset}, len(Host().breakpoint))
	must(b.t, err)
	defer c.close()
	ok, err := c.patched([]uint64{s.Offset}, Host().breakpoint)
	must(b.t, err)
	return ok[0]
}

func stoodOf(t *testing.T, h *Handle, want int) []Standing {
	t.Helper()
	got := h.Stood()
	if len(got) != want {
		t.Fatalf("stood: %+v, want %d", got, want)
	}
	return got
}

// Two containers on one inode: the answer of one saves its work, of both the
// trap; who comes anew has the trap again.
func TestStopAfter(t *testing.T) {
	for rung, o := range rungs {
		t.Run(rung, func(t *testing.T) {
			lower := newLower(t)
			one, other, third := newBox(t, lower), newBox(t, lower), newBox(t, lower)
			e := newEngine(t, o, Config{})
			wanted := stopping(symbols("hello"), 3)
			h1, h2 := one.arm(e, wanted), other.arm(e, wanted)
			s := h1.Sites[0]
			keep := func() { e.keep(cgroup.BootTime()) }
			count := func(h *Handle, want uint64) {
				t.Helper()
				if c, err := h.Counter(s); err != nil || c.Count != want {
					t.Errorf("counted %d, %v; want %d", c.Count, err, want)
				}
			}

			one.run(nil, "hello", "hello")
			stoodOf(t, h1, 0)
			before := cgroup.BootTime()
			one.run(nil, "hello", "hello", "hello")
			count(h1, 3)
			st := stoodOf(t, h1, 1)[0]
			if c, _ := h1.Counter(s); st.Reason != evidence.GapStoodDown || st.To != 0 || st.From < before || st.From != c.LastNs || st.Site != s.ID {
				t.Errorf("%+v, counter %+v", st, c)
			}
			stoodOf(t, h1, 0) // it is told once
			keep()
			if !one.patchedNow(s) || e.Stats().Resting != 0 {
				t.Fatal("the trap is gone while another container waits")
			}
			other.run(nil, "hello")
			count(h2, 1)
			other.run(nil, "hello", "hello")
			keep()
			if one.patchedNow(s) || e.Stats().Resting != 1 {
				t.Fatal("the trap is still there, and nobody waits")
			}
			for _, h := range []*Handle{h1, h2} {
				if tr := h.Check(); len(tr) != 0 {
					t.Errorf("to stand down is no trouble: %v", tr)
				}
			}
			keep() // nothing more to do

			h3 := third.arm(e, wanted)
			if !one.patchedNow(s) || !h3.Sites[0].Armed || h3.Sites[0].ID != s.ID {
				t.Fatalf("not armed for a new container: %+v", h3.Sites[0])
			}
			third.run(nil, "hello")
			one.run(nil, "hello")
			count(h3, 1)
			count(h1, 3)
			// The last one who waits may also leave without an answer.
			must(t, h3.Close())
			keep()
			if one.patchedNow(s) {
				t.Error("the trap is still there after who waited has gone")
			}
			e.reap(cgroup.BootTime())
			if e.Stats().Files != 1 {
				t.Error("what two containers hold was forgotten")
			}
		})
	}
}

// A site counts again when its time has come, also if its link was taken away
// meanwhile.
func TestRearm(t *testing.T) {
	for _, rearm := range []time.Duration{time.Second, minDetach + time.Second} {
		t.Run(rearm.String(), func(t *testing.T) {
			for !rearms(t, rearm) { // the machine was slower than that
			}
		})
	}
}

// rearms reports whether what must be seen while the site rests was seen in time.
func rearms(t *testing.T, rearm time.Duration) bool {
	t.Helper()
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	wanted := stopping(symbols("hello"), 2)
	wanted.RearmAfter = rearm
	h := b.arm(e, wanted)
	s := h.Sites[0]
	b.run(nil, "hello", "hello", "hello")
	c, err := h.Counter(s)
	must(t, err)
	stood := int64(c.StoodNs)
	e.keep(cgroup.BootTime())
	rests, kept := !b.patchedNow(s), cgroup.BootTime()
	b.run(nil, "hello")
	if stood == 0 {
		t.Fatalf("it does not rest: %+v", c)
	}
	if cgroup.BootTime() >= stood+int64(rearm) || rearm > minDetach && kept >= stood+int64(rearm-minDetach) {
		return false
	}
	first := stoodOf(t, h, 1)[0]
	if rests != (rearm > minDetach) {
		t.Errorf("the trap is away: %v", rests)
	}
	until(t, func() bool {
		e.keep(cgroup.BootTime())
		return b.patchedNow(s) && cgroup.BootTime() >= first.From+int64(rearm)
	})
	e.keep(cgroup.BootTime())
	again := stoodOf(t, h, 1)[0]
	if again.From != first.From || again.To < first.From+int64(rearm) || again.To > cgroup.BootTime() {
		t.Errorf("armed again: %+v, stood %+v", again, first)
	}
	b.run(nil, "hello", "hello", "hello")
	if c, err := h.Counter(s); err != nil || c.Count != 4 || c.Stood != 2 {
		t.Errorf("%+v, %v; want two and two again", c, err)
	}
	if second := stoodOf(t, h, 1)[0]; second.From <= again.To || cgroup.BootTime() < second.From+int64(rearm) && second.To != 0 {
		t.Errorf("the second time: %+v", second)
	}
	return true
}

// What comes too often stands down, in this container only and with all that
// had come by then.
func TestMaxRate(t *testing.T) {
	lower := newLower(t)
	hot, quiet := newBox(t, lower), newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{MaxRate: 5000})
	strict := symbols("hello")
	strict.MaxRate = 100
	h1, h2 := hot.arm(e, symbols("hello")), quiet.arm(e, strict)
	hot.run(nil, "hello*4000")
	if c, err := h1.Counter(h1.Sites[0]); err != nil || c.Count != 4000 || c.StoodNs != 0 {
		t.Errorf("below the bound: %+v, %v", c, err)
	}
	hot.run(nil, "hello*40000")
	c, err := h1.Counter(h1.Sites[0])
	if err != nil || c.Count < 5000 || c.Count >= 44000 || c.Standing != bpf.StandingTooOften {
		t.Errorf("above the bound: %+v, %v", c, err)
	}
	if st := stoodOf(t, h1, 1)[0]; st.Reason != evidence.GapBudgetDisarm || st.From != c.StoodNs || st.Detail == "" {
		t.Errorf("%+v", st)
	}
	quiet.run(nil, "hello*99")
	if c, err := h2.Counter(h2.Sites[0]); err != nil || c.Count != 99 {
		t.Errorf("its neighbour: %+v, %v", c, err)
	}
	stoodOf(t, h2, 0)
}

// Places in the kernel stand down as those in files do.
func TestHookStandsDown(t *testing.T) {
	for !hookRests(t) { // the machine was slower than that
	}
}

// hookRests reports whether what must be seen while the place rests was seen in
// time.
func hookRests(t *testing.T) bool {
	t.Helper()
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.armPlan(e, kernelPlan(policy.Probe{ID: "p", Type: "kprobe", Syscalls: []string{"getppid"}, StopAfter: 2, RearmAfter: minDetach + time.Second}))
	b.run(nil, "getppid", "getppid", "getppid")
	e.keep(cgroup.BootTime())
	rests, kept := e.Stats().Resting, cgroup.BootTime()
	st := stoodOf(t, h, 1)[0]
	if kept >= st.From+int64(time.Second) {
		return false
	}
	if rests != 1 {
		t.Error("its link is still there, and nobody waits")
	}
	until(t, func() bool {
		e.keep(cgroup.BootTime())
		return e.Stats().Resting == 0 && cgroup.BootTime() >= st.From+int64(minDetach+time.Second)
	})
	b.run(nil, "getppid")
	if c, err := h.Counter(h.Sites[0]); err != nil || c.Count != 3 {
		t.Errorf("%+v, %v", c, err)
	}
	return true
}

// Run does all of it by itself.
func TestRunKeeps(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	done := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() { done <- e.Run(ctx) }()
	h := b.arm(e, stopping(symbols("hello"), 1))
	b.run(nil, "hello")
	until(t, func() bool { return e.Stats().Resting == 1 })
	stop()
	must(t, <-done)
	stoodOf(t, h, 1)
}

func until(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(3 * time.Minute); !ok(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("it did not come")
		}
	}
}

// Who stood down may end while it is being looked at, and another container of
// the image begin, whose arming takes longer than that: as many use the file as
// stood down, and one of them awaits an answer.
func TestOneGoesAnotherComes(t *testing.T) {
	lower := newLower(t)
	goes, stays, comes := newBox(t, lower), newBox(t, lower), newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{})
	wanted := stopping(symbols("hello"), 1)
	h1, h2 := goes.arm(e, wanted), stays.arm(e, wanted)
	goes.run(nil, "hello")
	stays.run(nil, "hello")
	stoodOf(t, h1, 1)
	stoodOf(t, h2, 1)
	h3 := comes.arm(e, wanted)
	e.leave(h3) // Arm has not returned yet
	standing := []*Handle{h1, h2}
	must(t, h1.Close())
	file := h3.held[0].file
	file.rest(e, standing)
	if !comes.patchedNow(h3.Sites[0]) {
		t.Error("its links are gone before it has begun")
	}
	comes.run(nil, "hello")
	if c, err := h3.Counter(h3.Sites[0]); err != nil || c.Count != 1 {
		t.Errorf("counted %d, %v; want 1", c.Count, err)
	}
	e.mu.Lock()
	e.handles[h3] = true
	e.mu.Unlock()
	stoodOf(t, h3, 1)
	file.rest(e, []*Handle{h2, h3})
	if comes.patchedNow(h3.Sites[0]) {
		t.Error("nobody awaits an answer, and the links are there")
	}
}

// Whoever takes the links away by mistake, a container that awaits an answer
// says so, and has them again.
func TestRestsWhileAwaited(t *testing.T) {
	lower := newLower(t)
	one, other := newBox(t, lower), newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{})
	plan := func(b *box) Plan {
		p := b.plan(stopping(symbols("hello"), 1))
		calls := kernelPlan(policy.Probe{ID: "calls", Type: "kprobe", Syscalls: []string{"getppid"}, StopAfter: 1})
		p.Sites = append(p.Sites, calls.Sites...)
		return p
	}
	h1, h2 := one.armPlan(e, plan(one)), other.armPlan(e, plan(other))
	one.run(nil, "hello", "getppid")
	stoodOf(t, h1, 2)
	file, hook := h1.held[0].file, h1.hooks[0].sharedHook
	for _, s := range []shared{file, hook} {
		u := s.use()
		refs := u.refs
		u.refs = 1
		s.rest(e, []*Handle{h1})
		u.refs = refs
	}
	if tr := h1.Check(); len(tr) != 0 {
		t.Errorf("who has its answer: %+v", tr)
	}
	tr := h2.Check()
	if len(tr) != 2 || tr[0].Reason != evidence.GapLinkLost || tr[0].Path != "/bin/target" || tr[1].Reason != evidence.GapLinkLost || tr[1].Probe != "calls" {
		t.Errorf("who awaits one: %+v", tr)
	}
	if tr := h2.Check(); len(tr) != 0 {
		t.Errorf("armed again, and in trouble: %+v", tr)
	}
	other.run(nil, "hello", "getppid")
	stoodOf(t, h2, 2)
}
