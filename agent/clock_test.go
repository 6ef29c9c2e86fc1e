package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/evidence"
	"probity/evidence/sign"
	"probity/evidence/verify"
	"probity/runtime/cgroup"
	"probity/tests/need"
)

// hands move a machine's clocks.
type hands struct {
	real  bool
	step  func(t *testing.T, by time.Duration) // sets the wall clock
	sleep func(t *testing.T, d time.Duration)  // at least
}

// The clocks of this machine are others', too: here they are moved where they are read.
func TestClocks(t *testing.T) {
	n := newNode(t, bpf.Options{})
	var wall, slept atomic.Int64
	n.clocks.mu.Lock()
	n.clocks.read = func() cgroup.Clocks {
		c := cgroup.ReadClocks()
		c.Wall += wall.Load()
		c.Mono -= slept.Load()
		return c
	}
	n.clocks.mu.Unlock()
	testClocks(t, n, hands{
		step: func(_ *testing.T, by time.Duration) {
			wall.Add(int64(by))
			n.clocks.look() // as the kernel tells of it
		},
		sleep: func(_ *testing.T, d time.Duration) { slept.Add(int64(d)); n.clocks.look() },
	})
}

// In a machine that is there for it they are moved for real: tests/kernels boots one.
func TestClocksOfAMachine(t *testing.T) {
	need.Clock(t)
	// From now on all clocks run a tenth too fast: that is no step.
	slewed := unix.Timex{Modes: unix.ADJ_TICK, Tick: 11_000}
	if _, err := unix.Adjtimex(&slewed); err != nil {
		t.Fatal(err)
	}
	set, err := clockSet(t.Context())
	must(t, err)
	settime(t, time.Minute)
	select { // the kernel tells of it
	case <-set:
	case <-time.After(failsafe):
		t.Fatal("nobody says that the clock was set")
	}
	testClocks(t, newNode(t, bpf.Options{}), hands{
		real: true,
		step: settime,
		sleep: func(t *testing.T, d time.Duration) {
			const alarm = "/sys/class/rtc/rtc0/wakealarm"
			must(t, os.WriteFile(alarm, []byte("0"), 0))
			must(t, os.WriteFile(alarm, fmt.Appendf(nil, "+%d", int(d.Seconds())+1), 0)) // of a clock that has seconds
			must(t, os.WriteFile("/sys/power/state", []byte("mem"), 0))
		},
	})
}

// Who may set the clock can give a file the change time that it had, with other bytes in
// it, on a kernel whose change times are the clock's own: docs/blind-spots.md says what
// that means. From Linux 6.13 on they never go back.
func TestChangeTimeForged(t *testing.T) {
	need.Clock(t)
	var name unix.Utsname
	must(t, unix.Uname(&name))
	var major, minor int
	_, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor)
	must(t, err)
	path := filepath.Join(t.TempDir(), "f") // in memory, whose file system takes the times as they are
	must(t, os.WriteFile(path, []byte("good"), 0o600))
	var was, is unix.Stat_t
	must(t, unix.Stat(path, &was))
	forged := false
	for range 1000 { // a tick may come between
		to := unix.Timespec{Sec: was.Ctim.Sec, Nsec: was.Ctim.Nsec}
		must(t, unix.ClockSettime(unix.CLOCK_REALTIME, &to))
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteAt([]byte("evil"), 0)
		must(t, err)
		must(t, f.Close())
		must(t, unix.Stat(path, &is))
		if forged = is == was; forged {
			break
		}
	}
	if old := major < 6 || major == 6 && minor < 13; forged != old {
		t.Errorf("Linux %d.%d: forged: %v: %+v, %+v", major, minor, forged, was.Ctim, is.Ctim)
	}
}

func settime(t *testing.T, by time.Duration) {
	t.Helper()
	to := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
	must(t, unix.ClockSettime(unix.CLOCK_REALTIME, &to))
}

func testClocks(t *testing.T, n *node, h hands) {
	const sleep = 3 * time.Second
	told := func(moves *moves) {
		t.Helper()
		until(t, func() bool {
			n.clocks.mu.Lock()
			defer n.clocks.mu.Unlock()
			return moves.told != 0 && moves.times == 0
		})
	}
	before := newBox(t, 1, "hello")
	n.notify(t.Context(), before.notice("before"), yes)
	until(t, func() bool { return len(n.published("before")) > 0 }) // in a chunk with the clock as it was
	h.step(t, time.Hour)
	told(&n.clocks.step)
	between := newBox(t, 1)
	n.notify(t.Context(), between.notice("between"), yes)
	h.sleep(t, sleep)
	told(&n.clocks.sleep)
	after := newBox(t, 1, "hello")
	n.notify(t.Context(), after.notice("after"), yes)
	for _, b := range []*box{before, between, after} {
		b.run()
		b.end()
	}
	must(t, n.waitIdle(t.Context()))
	h.step(t, -2*time.Hour) // not told at once, but when the agent stops
	n.clocks.look()
	h.step(t, time.Hour)
	obs, _ := n.lines("before")
	if o := obs["hello"]; o.State != evidence.Hit || *o.Count != 1 || !o.Complete || !o.Final {
		t.Errorf("hello: %+v", o)
	}
	for _, id := range []string{"before", "between", "after"} {
		obs, _ := n.lines(id)
		if o := obs["never"]; o.State != evidence.ArmedNoHit || !o.Complete || !o.Final || len(o.Gaps) > 0 {
			t.Errorf("never of %s: %+v", id, o)
		}
	}
	chunks := n.chunks()
	least := time.Duration(0)
	if h.real {
		least = sleep
	}
	wantGaps(t, chunks, least)
	wantReasons(t, chunks)
	wantRows(t, n)
	// Boot times go on, whatever the wall clock says.
	last := int64(0)
	for _, c := range chunks {
		if b := int64(c.Header.Clock.BootNs); b < last {
			t.Errorf("%s begins at %d, after %d", c.Header.Chunk, b, last)
		} else {
			last = b
		}
	}
}

// chunks are those of the spool, in order.
func (n *node) chunks() (out []*verify.Chunk) {
	n.t.Helper()
	key, err := os.ReadFile(filepath.Join(n.cfg.State, "node.pub"))
	must(n.t, err)
	pub, err := sign.LoadPublic(key)
	must(n.t, err)
	files, err := filepath.Glob(n.cfg.Spool + "/ready/*/*.ndjson")
	must(n.t, err)
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(n.t, err)
		c, findings := verify.Bytes(f, b, pub)
		if c == nil {
			n.t.Fatal(findings)
		}
		out = append(out, c)
	}
	return out
}

func wantGaps(t *testing.T, chunks []*verify.Chunk, slept time.Duration) {
	t.Helper()
	type line struct {
		reason evidence.GapReason
		count  uint64
		says   string
	}
	var got []line
	offset := func(c *verify.Chunk) time.Duration { // of the wall clock
		return time.Duration(c.Header.Clock.Wall.Std().UnixNano() - int64(c.Header.Clock.BootNs))
	}
	var was time.Duration
	for i, c := range chunks {
		if i == 0 {
			was = offset(c)
		}
		for _, l := range c.Lines {
			g, ok := l.(*evidence.Gap)
			if !ok || g.Reason != evidence.GapSuspended && g.Reason != evidence.GapClockStep {
				if ok && g.Reason == evidence.GapRuntimeDisconnected {
					t.Errorf("%+v", g)
				}
				continue
			}
			if g.Scope != evidence.ScopeNode || g.To.IsZero() {
				t.Errorf("%+v", g)
			}
			length := g.To.Std().Sub(g.From.Std())
			if g.Reason == evidence.GapSuspended && length < slept {
				t.Errorf("slept for %v: %+v", length, g)
			}
			if g.Reason == evidence.GapClockStep {
				// Its chunk has the clock as it was set, so the headers say by how much.
				if by := (offset(c) - was).Round(time.Second); by != time.Hour && by != -time.Hour {
					t.Errorf("%s: the clock was set by %v: %+v", c.Header.Chunk, by, g)
				}
				was = offset(c)
			}
			got = append(got, line{g.Reason, g.Count.N, g.Detail})
		}
	}
	want := []line{
		{evidence.GapClockStep, 1, "the wall clock was set forward by 1h0m0"},
		{evidence.GapSuspended, 1, "the machine slept for "},
		{evidence.GapClockStep, 2, "the wall clock was set back by 1h0m0"},
	}
	if !slices.EqualFunc(got, want, func(g, w line) bool {
		return g.reason == w.reason && g.count == w.count && strings.HasPrefix(g.says, w.says)
	}) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
}

// A run's last coverage line names what lies in its window, and nothing else.
func wantReasons(t *testing.T, chunks []*verify.Chunk) {
	t.Helper()
	got := map[string][]evidence.GapReason{}
	for _, c := range chunks {
		for _, l := range c.Lines {
			if v, ok := l.(*evidence.Coverage); ok && v.Final {
				got[v.ContainerID] = slices.Sorted(slices.Values(v.GapReasons))
			}
		}
	}
	for id, want := range map[string][]evidence.GapReason{"before": {evidence.GapClockStep, evidence.GapSuspended}, "between": {evidence.GapSuspended}, "after": nil} {
		if !slices.Equal(got[id], want) {
			t.Errorf("%s: %v, want %v", id, got[id], want)
		}
	}
}

// What is verified says the same of rows, and counts it against none.
func wantRows(t *testing.T, n *node) {
	t.Helper()
	key, err := os.ReadFile(filepath.Join(n.cfg.State, "node.pub"))
	must(t, err)
	pub, err := sign.LoadPublic(key)
	must(t, err)
	rep, err := verify.Path(t.Context(), []string{n.cfg.Spool}, pub, verify.Options{})
	must(t, err)
	for _, r := range rep.Rows {
		want := map[string][]evidence.GapReason{"before": {evidence.GapSuspended, evidence.GapClockStep}, "between": {evidence.GapSuspended}, "after": nil}[r.ContainerID]
		if r.State != evidence.NotArmed && !slices.Equal(r.NodeGaps, want) {
			t.Errorf("%s of %s: %v, want %v", r.ProbeID, r.ContainerID, r.NodeGaps, want)
		}
		if length := r.To.Std().Sub(r.From.Std()); length < 0 || length > failsafe {
			t.Errorf("%s of %s: for %v, from %v to %v", r.ProbeID, r.ContainerID, length, r.From, r.To)
		}
	}
}

// Whoever slews the clock moves nothing, and what moves too little adds up. However
// often it is set, there are few lines, and none of it is left out.
func TestClockMoves(t *testing.T) {
	c := cgroup.Clocks{Boot: 1e12, Mono: 1e12, Wall: 1.7e18}
	k := newClocks(func() cgroup.Clocks { return c })
	after := func(d time.Duration) { c.Boot, c.Mono, c.Wall = c.Boot+int64(d), c.Mono+int64(d), c.Wall+int64(d) }
	look := func() (sleep, step moves, slept, stepped bool) {
		k.look()
		return k.untold(false)
	}
	want := func(what string, wantSlept, wantStepped time.Duration) {
		t.Helper()
		sleep, step, slept, stepped := look()
		if slept != (wantSlept != 0) || stepped != (wantStepped != 0) || time.Duration(sleep.by) != wantSlept || time.Duration(step.by) != wantStepped {
			t.Errorf("%s: %+v %+v", what, sleep, step)
		}
		if from := c.Boot - int64(time.Minute); slept && (sleep.from != from-int64(wantSlept) || sleep.to != c.Boot) || stepped && (step.from != from-int64(wantSlept) || step.to != c.Boot) {
			t.Errorf("%s: now %d, %+v %+v", what, c.Boot, sleep, step)
		}
		after(time.Minute)
	}
	want("nothing", 0, 0)
	c.Wall += int64(time.Second)
	want("forward", 0, time.Second)
	c.Wall -= int64(time.Hour)
	want("back", 0, -time.Hour)
	c.Boot, c.Wall = c.Boot+int64(time.Hour), c.Wall+int64(time.Hour)
	want("slept", time.Hour, 0)
	c.Boot, c.Wall = c.Boot+int64(time.Hour), c.Wall+int64(time.Hour+time.Second)
	want("slept, and the clock was set as it woke", time.Hour, time.Second)
	c.Within = int64(time.Second)
	c.Wall += int64(time.Second)
	want("as far as it was read", 0, 0)
	c.Within = 0
	want("read again", 0, time.Second)
	for range 9 {
		c.Wall += int64(time.Millisecond)
		want("too little", 0, 0)
	}
	c.Wall += int64(2 * time.Millisecond)
	want("together enough", 0, 11*time.Millisecond)

	lines, times, net := 0, uint64(0), int64(0)
	for i := range 60_000 { // for a minute, by turns
		c.Wall += int64(time.Minute) - int64(i%2)*2*int64(time.Minute)
		if _, step, _, stepped := look(); stepped {
			lines, times, net = lines+1, times+step.times, net+step.by
		}
		after(time.Millisecond)
	}
	_, step, _, stepped := k.untold(true)
	if stepped {
		lines, times, net = lines+1, times+step.times, net+step.by
	}
	if lines != 7 || times != 60_000 || net != 0 {
		t.Errorf("%d lines of %d times, %v together", lines, times, time.Duration(net))
	}
}

// What is given a minute to come back in, or to be done once, has none of it while the
// machine sleeps: else every container would be partial in the morning.
func TestStuckIsAwake(t *testing.T) {
	n := newNodeWith(t, Config{Health: time.Hour}, wanted)
	var slept atomic.Int64
	n.clocks.mu.Lock()
	n.clocks.read = func() cgroup.Clocks {
		c := cgroup.ReadClocks()
		c.Mono -= slept.Load()
		return c
	}
	n.clocks.mu.Unlock()
	b := newBox(t, 1, "never")
	n.notify(t.Context(), b.notice("c1"), yes)
	b.run()
	l := n.onlyRun()
	until(t, l.isArmed)
	slept.Store(int64(2 * stuckAfter))
	ago := cgroup.BootTime() - int64(2*stuckAfter)
	l.checked.Store(ago)
	l.checking.Lock()
	l.checking.since.Store(ago)
	n.check(l, 0, patience)
	l.checking.Unlock()
	b.end()
	must(t, n.waitIdle(t.Context()))
	obs, gaps := n.lines("c1")
	if o := obs["hello"]; o.State != evidence.ArmedNoHit || len(gaps) > 0 {
		t.Errorf("%+v, %+v", o, gaps)
	}
}

// Sleeps count for what was begun before them, and for nothing else.
func TestAwake(t *testing.T) {
	c := cgroup.Clocks{Boot: 1e12, Mono: 1e12, Wall: 1.7e18}
	k := newClocks(func() cgroup.Clocks { return c })
	after := func(d time.Duration) { c.Boot, c.Mono = c.Boot+int64(d), c.Mono+int64(d) }
	sleep := func(d time.Duration) { c.Boot += int64(d) }
	var before, woken []int64
	for range maxSlumbers {
		after(time.Second)
		before = append(before, c.Boot)
		after(100 * time.Millisecond)
		sleep(time.Hour)
		after(100 * time.Millisecond) // until it is found
		woken = append(woken, c.Boot)
		after(100 * time.Millisecond)
		k.look()
	}
	for i := range maxSlumbers {
		left := time.Duration(maxSlumbers - i - 1)
		if got, want := k.awake(before[i]), 300*time.Millisecond+left*1300*time.Millisecond; got != want {
			t.Errorf("since before sleep %d: %v, want %v", i, got, want)
		}
		if got, want := k.awake(woken[i]), 100*time.Millisecond+left*1300*time.Millisecond; got != want {
			t.Errorf("since after sleep %d: %v, want %v", i, got, want)
		}
	}
	after(time.Second)
	sleep(time.Hour)
	if got := k.awake(c.Boot - int64(time.Hour) - int64(time.Second)); got != time.Second { // nobody has looked yet
		t.Errorf("as it wakes: %v", got)
	}
	if len(k.slumbers) != maxSlumbers {
		t.Errorf("%d are kept", len(k.slumbers))
	}
}

// Somebody set the clock while there was no agent: what the next one makes of the lines
// of the one before is where it was in boot time, of a run that it takes up and of one
// that has ended.
func TestClockSetBetweenAgents(t *testing.T) {
	for _, step := range []time.Duration{time.Hour, -time.Hour} {
		t.Run(step.String(), func(t *testing.T) { testClockSetBetween(t, step) })
	}
}

func testClockSetBetween(t *testing.T, step time.Duration) {
	n := newNode(t, bpf.Options{})
	n.clocks.mu.Lock()
	n.clocks.read = func() cgroup.Clocks {
		c := cgroup.ReadClocks()
		c.Wall -= int64(step)
		return c
	}
	n.clocks.mu.Unlock()
	n.clocks.look()
	n.tellClocks(true)
	lives, ended := newBox(t, 1, "hello"), newBox(t, 1)
	n.notify(t.Context(), lives.notice("lives"), yes)
	n.notify(t.Context(), ended.notice("ended"), yes)
	for _, l := range n.runs() {
		<-l.armed
	}
	armed := cgroup.BootTime()
	n.stop()
	stopped := cgroup.BootTime()
	ended.end()
	n = newNodeIn(t, filepath.Dir(n.cfg.State), Config{})
	n.notify(t.Context(), lives.existing("lives"), nil)
	must(t, n.waitAdopted())
	again := cgroup.BootTime()
	lives.run()
	lives.end()
	must(t, n.waitIdle(t.Context()))
	n.stop()

	down := map[string]int{} // closed gaps, by what they are of
	began := map[string]int64{}
	for _, c := range n.chunks() {
		boot := c.Header.Clock.Boot
		for _, l := range c.Lines {
			switch v := l.(type) {
			case *evidence.Gap:
				if v.Reason != evidence.GapAgentDown || v.To.IsZero() {
					continue
				}
				down[v.Scope+v.ContainerID]++
				if from, to := boot(v.From), boot(v.To); from < armed || from > stopped || to < stopped || to > again {
					t.Errorf("from %v to %v, which is %d to %d; the agent went between %d and %d, and the next came until %d: %+v", v.From, v.To, from, to, armed, stopped, again, v)
				}
			case *evidence.Coverage:
				if b, ok := began[v.ContainerID]; ok && b != boot(v.From) {
					t.Errorf("%s began at %d, and now at %d: %+v", v.ContainerID, b, boot(v.From), v)
				}
				began[v.ContainerID] = boot(v.From)
				if to := boot(v.To); to > cgroup.BootTime() {
					t.Errorf("%s reaches to %d, which is not yet: %+v", v.ContainerID, to, v)
				}
			}
		}
	}
	if down["node"] == 0 || down["runlives"] != 1 || down["runended"] != 1 {
		t.Errorf("agentDown: %v", down)
	}
	if _, gaps := n.allLines("ended"); len(gaps) == 0 {
		t.Error("no gap")
	}
}
