package lifecycle

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"probity/runtime/container"
)

var seeds = flag.Uint64("seeds", 1000, "how many interleavings TestSources makes; TestAnyOrder makes a tenth")

// chooser makes the choices of one interleaving: a number below n.
type chooser func(n int) int

func seeded(seed uint64) chooser { return rand.New(rand.NewPCG(seed, 5)).IntN }

// node is a machine on which runtimes start containers and an agent is told of them
// by all its sources at once: NRI with its barrier, OCI hooks, containerd's task events,
// the state directories that are looked at every 5 s, and the list that a runtime gives
// when it is connected. What truly happens is told late, twice, out of order or never;
// the kernel's word comes late, and once. The agent ends and begins again. It completes
// notices as the agent does: by the process that has the pid then.
type node struct {
	*testing.T
	choose chooser
	table  *Table
	clock  int64

	containers []*owned
	lives      []*fact
	mail       []letter
	runs       map[who]*tracked
	byName     map[string]*tracked
	created    map[string]bool  // as the table must have it
	away       map[string]int64 // sources that are, since when
	cgroups    uint64           // the last one that was made
	journal    []string
	told       []container.Notice // all that reached the table of this agent
}

// owned is a container of a runtime; another runtime may have one of the same id.
type owned struct {
	id       string
	runtime  container.Runtime
	byNRI    bool
	made     bool
	life     *fact // the present one, or nil
	mayShare bool  // some of its lives have no cgroup of their own
}

// fact is one life of a container, as it truly is.
type fact struct {
	of            *owned
	pid           int
	cgroup, start uint64 // start is set where there is no cgroup of its own
	initEnded     bool
	empty         bool
	told          bool // an agent was told of it while its first process lived
}

type letter struct {
	n container.Notice
	f *fact // nil: it is of no life
}

// who is what tells runs apart: a life, or a start of which was told after its end, of
// which nobody knows more than the pid.
type who struct {
	id            string
	cgroup, start uint64
	ghost         int    // its pid
	name          string // the run's, and only of such a one
}

func whoOf(n container.Notice) who {
	id := n.Identity
	w := who{id: id.ID, cgroup: id.CgroupID, start: id.InitStart}
	if w.cgroup == 0 && w.start == 0 {
		w.ghost, w.name = n.Pid, id.RunID()
	}
	return w
}

type tracked struct {
	who
	name                        string
	f                           *fact // nil of a ghost
	left, armed, reported, over bool  // as this agent has it
	at                          int64
	arms, finals                int // arms of this agent, final seals of all
}

func (r *tracked) live() bool { return (r.armed || r.left) && r.finals == 0 }

func newNode(t *testing.T, choose chooser) *node {
	return &node{
		T: t, choose: choose, table: &Table{}, clock: 1,
		containers: []*owned{
			{id: "a", runtime: container.Containerd, byNRI: true},
			{id: "b", runtime: container.Containerd, byNRI: true},
			{id: "a", runtime: container.Podman, mayShare: true},
			{id: "c", runtime: container.Runc, mayShare: true},
		},
		runs: map[who]*tracked{}, byName: map[string]*tracked{}, created: map[string]bool{}, away: map[string]int64{},
	}
}

func (m *node) fail(format string, args ...any) {
	m.Helper()
	m.Fatalf("%s\n%s", fmt.Sprintf(format, args...), strings.Join(m.journal, "\n"))
}

func (m *node) say(format string, args ...any) {
	m.journal = append(m.journal, fmt.Sprintf(format, args...))
}

const fromNRI, fromHook, fromEvents, fromScan = "nri", "hook", "events", "runc:/run/runc"

// post has a source tell of something: never, once, or twice.
func (m *node) post(source string, kind container.Kind, c *owned, f *fact) {
	if _, away := m.away[source]; away {
		return
	}
	n := container.Notice{Source: source, Kind: kind, Identity: container.Identity{Runtime: c.runtime, ID: c.id, BootID: "boot"}}
	if f != nil {
		n.Pid = f.pid
	}
	if source == fromEvents && (f == nil || f.start == 0) {
		n.Identity.Runtime = container.Docker // one runtime, two names
	}
	for range []int{0, 1, 1, 1, 2}[m.choose(5)] {
		m.mail = append(m.mail, letter{n, f})
	}
}

// happen lets something happen to a container, of which its sources tell.
func (m *node) happen(c *owned) {
	switch f := c.life; {
	case !c.made:
		c.made = true
		if c.byNRI {
			m.post(fromNRI, container.Created, c, nil)
		}
	case f == nil && m.choose(4) == 0:
		c.made = false
		for _, s := range []string{fromNRI, fromEvents} {
			if c.byNRI {
				m.post(s, container.Removed, c, nil)
			}
		}
	case f == nil:
		m.begin(c)
	case !f.initEnded:
		f.initEnded = true
		m.say("%s: pid %d ends", c.id, f.pid)
		f.empty = f.cgroup == 0 || m.choose(3) > 0 // else its children go on
		m.ended(f)
	default:
		f.empty = true
		m.ended(f)
	}
}

func (m *node) begin(c *owned) {
	f := &fact{of: c, pid: 7}
	for taken := true; taken; { // the first that is free: pids are used again at once
		f.pid++
		taken = slices.ContainsFunc(m.lives, func(o *fact) bool { return o.pid == f.pid && !o.initEnded })
	}
	if m.cgroups++; c.mayShare && m.choose(3) == 0 {
		f.start = m.cgroups
	} else {
		f.cgroup = m.cgroups
	}
	c.life = f
	m.lives = append(m.lives, f)
	m.say("%s of %s: a life with pid %d, cgroup %d, start %d", c.id, c.runtime, f.pid, f.cgroup, f.start)
	if c.byNRI {
		m.post(fromNRI, container.Starting, c, f)
		m.post(fromEvents, container.Started, c, f)
	} else {
		m.post(fromHook, container.Starting, c, f)
	}
}

func (m *node) ended(f *fact) {
	c := f.of
	if f.empty {
		c.life = nil
	}
	if c.byNRI {
		m.post(fromNRI, container.Stopped, c, f)
		m.post(fromEvents, container.Stopped, c, f)
	} else {
		m.post(fromHook, container.Stopped, c, f)
	}
}

// list has a source tell of what it has.
func (m *node) list(source string) {
	for _, c := range m.containers {
		switch {
		case c.byNRI != (source == fromNRI):
		case c.life != nil:
			m.post(source, container.Existing, c, c.life)
		case c.made && source == fromNRI:
			m.post(source, container.Created, c, nil)
		}
	}
}

// deliver gives the agent one letter, which completes it.
func (m *node) deliver(i int) {
	x := m.mail[i]
	m.mail = slices.Delete(m.mail, i, i+1)
	n := x.n
	switch n.Kind {
	case container.Starting, container.Started, container.Existing:
		switch {
		case !x.f.initEnded:
			n.Identity.CgroupID, n.Identity.InitStart = x.f.cgroup, x.f.start
			x.f.told = true
		case n.Kind != container.Starting:
			return // it is not believed that it runs
		}
	}
	m.apply(n)
}

func (m *node) apply(n container.Notice) {
	m.told = append(m.told, n)
	id := n.Identity.ID
	any := slices.ContainsFunc(slices.Collect(maps.Values(m.runs)), func(r *tracked) bool { return r.id == id && r.live() })
	actions := m.table.Apply(n)
	m.say("%s tells %v %s/%d/%d pid %d: %s", n.Source, n.Kind, id, n.Identity.CgroupID, n.Identity.InitStart, n.Pid, words(actions))
	if n.Kind == container.Removed && !any && len(actions) > 0 != m.created[id] {
		m.fail("created %v", m.created[id])
	}
	before := m.looks(id, "")
	m.take(actions)
	switch n.Kind {
	case container.Stopped, container.Removed:
		m.looked(actions, before)
	}
	if n.Pid != 0 && n.Kind != container.Stopped && !m.table.Known(id, n.Pid) && m.ghostOf(n) == nil {
		m.fail("it is not known")
	}
	m.check()
}

// looks are the runs to be looked at when a container may have ended, or when a source
// is back: of all that it told of nobody knows what has become.
func (m *node) looks(id, source string) []string {
	var runs []string
	for _, r := range m.table.Runs() {
		if x := m.byName[r.ID]; x != nil && x.live() && !x.over && (r.Notice.Identity.ID == id || r.Notice.Source == source) {
			runs = append(runs, r.ID)
		}
	}
	return runs
}

func (m *node) looked(actions []Action, want []string) {
	m.Helper()
	var got []string
	for _, a := range actions {
		if a, ok := a.(LookNow); ok {
			got = append(got, a.Run.ID)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		m.fail("looks at %v, want %v", got, want)
	}
}

// ghostOf returns the run of another start of the same container that is told of after
// its end, as long as that is in the table: the two have one name.
func (m *node) ghostOf(n container.Notice) *tracked {
	if r := m.byName[whoOf(n).name]; r != nil && r.live() {
		return r
	}
	return nil
}

func (m *node) of(r Run) *tracked {
	if x := m.byName[r.ID]; x != nil && (x.ghost == 0 || x.ghost == r.Notice.Pid) {
		return x
	}
	return m.runs[whoOf(r.Notice)]
}

// take checks each action, in order.
func (m *node) take(actions []Action) {
	m.Helper()
	for _, a := range actions {
		switch a := a.(type) {
		case Prefetch:
			if id := a.Notice.Identity.ID; m.created[id] {
				m.fail("prefetch %s twice", id)
			} else {
				m.created[id] = true
			}
		case Arm:
			m.arm(a.Run)
		case Await:
			if r := m.of(a.Run); r == nil || !r.live() || !r.armed {
				m.fail("await %s, which is not armed", a.Run.ID)
			}
		case LookNow:
			if r := m.of(a.Run); r == nil || !r.live() || r.over {
				m.fail("look at %s, which is not live", a.Run.ID)
			}
		case Seal:
			m.seal(a)
		case Forget:
			r := m.of(a.Run)
			switch {
			case a.Run.ID == "":
				delete(m.created, a.Run.Notice.Identity.ID)
			case r == nil || r.live():
				m.fail("forget %s, which goes on", a.Run.ID)
			}
		}
	}
}

func (m *node) arm(run Run) {
	m.Helper()
	w := whoOf(run.Notice)
	r := m.runs[w]
	if r == nil {
		r = &tracked{who: w, name: run.ID}
		m.runs[w] = r
		for _, f := range m.lives {
			if w.ghost == 0 && f.of.id == w.id && f.cgroup == w.cgroup && f.start == w.start {
				r.f = f
			}
		}
		if w.ghost == 0 && r.f == nil {
			m.fail("arm %+v, which never lived", w)
		}
	}
	delete(m.created, w.id)
	if r.arms++; r.arms > 1 || r.finals > 0 {
		m.fail("arm %+v for the %d. time, sealed %d times", w, r.arms, r.finals)
	}
	if run.Left != r.left || run.ID != r.name {
		m.fail("arm %+v as %s, left %v; its name is %s", w, run.ID, run.Left, r.name)
	}
	r.armed = true
	m.byName[run.ID] = r
}

func (m *node) seal(a Seal) {
	m.Helper()
	r := m.of(a.Run)
	switch {
	case r == nil || !r.live():
		m.fail("seal %s, which is not live", a.Run.ID)
	case !a.Final:
		m.fail("seal %s, not final: nobody asked for that", a.Run.ID)
	case !r.over || r.armed && !r.reported || a.At != r.at:
		m.fail("seal %+v at %d", *r, a.At)
	}
	r.finals++
}

// armed and empty are the agent's own hands and the kernel, of a run.
func (m *node) armed(r *tracked) {
	r.reported = r.reported || r.armed
	actions := m.table.Armed(r.name, m.choose(2) == 0)
	m.say("armed %s/%d/%d: %s", r.id, r.cgroup, r.start, words(actions))
	m.take(actions)
	m.check()
}

func (m *node) empty(r *tracked) {
	m.clock++
	if !r.over {
		r.over, r.at = true, m.clock
	}
	actions := m.table.CgroupEmpty(r.name, m.clock)
	m.say("empty %s/%d/%d: %s", r.id, r.cgroup, r.start, words(actions))
	m.take(actions)
	m.check()
}

// ended reports whether the kernel may say that nothing of a run executes any more.
func (r *tracked) ended() bool { return r.f == nil || r.f.empty }

func (m *node) sorted() []*tracked {
	return slices.SortedFunc(maps.Values(m.runs), func(a, b *tracked) int {
		return strings.Compare(fmt.Sprint(a.who), fmt.Sprint(b.who))
	})
}

func (m *node) livingRuns() []*tracked {
	return slices.DeleteFunc(m.sorted(), func(r *tracked) bool { return !r.live() })
}

// restart has the agent end, in order or by a crash, and another one go on.
func (m *node) restart(inOrder bool) {
	for _, r := range m.livingRuns() {
		if r.f == nil { // of these nobody has anything to go on with
			m.armed(r)
			m.empty(r)
		}
	}
	m.say("the agent ends, in order %v", inOrder)
	if inOrder {
		m.stop()
	}
	m.table, m.told, m.mail = &Table{}, nil, nil // who waited for an answer does not ask the next one
	clear(m.created)
	clear(m.away)
	for _, r := range m.sorted() {
		if r.f == nil {
			delete(m.runs, r.who)
			delete(m.byName, r.name)
		}
		if r.finals > 0 {
			continue
		}
		id := container.Identity{Runtime: r.f.of.runtime, ID: r.id, BootID: "boot", CgroupID: r.cgroup}
		r.left, r.armed, r.reported, r.over, r.arms = true, false, false, false, 0
		actions := m.table.Left(r.name, id, fromNRI)
		m.say("left %s/%d/%d: %s", r.id, r.cgroup, r.start, words(actions))
		if len(actions) != 1 {
			m.fail("it is not taken over")
		}
		m.take(actions)
	}
	for _, s := range []string{fromNRI, fromScan} { // adoption at start
		m.list(s)
	}
	m.check()
}

// stop checks that each run has a last line, and that nothing is kept.
func (m *node) stop() {
	m.clock++
	interim, final := map[string]bool{}, map[string]bool{}
	actions := m.table.Stopping(m.clock)
	m.say("stopping: %s", words(actions))
	for _, a := range actions {
		if s, ok := a.(Seal); ok && !s.Final {
			interim[s.Run.ID] = true
		} else if ok {
			final[s.Run.ID] = true
		}
	}
	for _, r := range m.livingRuns() {
		if want := r.armed && !r.over; interim[r.name] != want {
			m.fail("%+v has a last line of this agent: %v", *r, interim[r.name])
		}
		if want := r.armed && r.over; final[r.name] != want {
			m.fail("%+v is sealed: %v", *r, final[r.name])
		} else if want {
			r.finals++
		}
	}
	if len(m.table.Runs()) != 0 || m.table.Apply(container.Notice{Kind: container.Created}) != nil {
		m.fail("it goes on")
	}
}

// check compares the table with what it must have: nothing is forgotten.
func (m *node) check() {
	m.Helper()
	live := 0
	for _, r := range m.runs {
		got, ok := m.table.Run(r.name)
		if ok && m.of(got) != r {
			ok = false // another start has the name now
		}
		if ok != r.live() {
			m.fail("%+v: in the table %v", *r, ok)
		}
		if !ok {
			continue
		}
		live++
		want := map[bool]State{true: Left, false: Armed}[!r.armed]
		if r.armed && r.reported {
			want = Running
		} else if r.armed && r.over {
			want = Stopped
		}
		if got.State != want {
			m.fail("%+v is %v, want %v", *r, got.State, want)
		}
	}
	if n := len(m.table.Runs()); n != live+len(m.created) {
		m.fail("%d in the table, want %d runs and %d created", n, live, len(m.created))
	}
}

// source loses a source, or has it back with the list of what it has.
func (m *node) source() {
	m.clock++
	since, away := m.away[fromNRI]
	var actions []Action
	var looks []string
	want := SourceGap{Source: fromNRI, From: m.clock}
	if away {
		delete(m.away, fromNRI)
		looks = m.looks("", fromNRI)
		actions, want = m.table.SourceBack(fromNRI, m.clock), SourceGap{fromNRI, since, m.clock}
		m.list(fromNRI)
	} else {
		m.away[fromNRI] = m.clock
		actions = m.table.SourceLost(fromNRI, m.clock)
	}
	m.say("the runtime is away %v: %s", !away, words(actions))
	if len(actions) == 0 || actions[0] != want {
		m.fail("want the gap %+v", want)
	}
	m.take(actions)
	m.looked(actions, looks)
	if !away && m.table.SourceLost(fromNRI, m.clock+1) != nil {
		m.fail("it is lost twice")
	}
}

// step lets something happen, anywhere.
func (m *node) step() {
	switch what := m.choose(24); {
	case what < 8:
		m.happen(m.containers[m.choose(len(m.containers))])
	case what < 16:
		if len(m.mail) > 0 {
			m.deliver(m.choose(len(m.mail)))
		}
	case what < 20:
		live := m.livingRuns()
		if len(live) == 0 {
			return
		}
		if r := live[m.choose(len(live))]; what < 18 || !r.ended() {
			m.armed(r)
		} else {
			m.empty(r)
		}
	case what == 20:
		m.list(fromScan)
	case what == 21:
		m.source()
	case what == 22 && len(m.runs) > 0: // the kernel says again what it has said
		all := m.sorted()
		if r := all[m.choose(len(all))]; r.over && (r.f != nil || r.live()) {
			m.empty(r)
		}
	case what == 23 && m.choose(6) == 0:
		m.restart(m.choose(2) == 0)
	}
}

// finish ends everything, and has all letters arrive. Then nothing may be left, nor come back.
func (m *node) finish() {
	for _, c := range m.containers {
		for c.life != nil {
			m.happen(c)
		}
	}
	for len(m.mail) > 0 {
		m.deliver(m.choose(len(m.mail)))
	}
	for _, r := range m.livingRuns() {
		if m.choose(2) == 0 {
			m.armed(r)
			m.empty(r)
		} else {
			m.empty(r)
			m.armed(r)
		}
	}
	for _, f := range m.lives {
		r := m.runs[who{id: f.of.id, cgroup: f.cgroup, start: f.start}]
		if (r != nil) != f.told || r != nil && r.finals != 1 {
			m.fail("life %+v, told %v: %+v", *f, f.told, r)
		}
	}
	m.nothingLeft()
}

// nothingLeft: the table is empty but for what its runtime did not say that it was removed,
// and all that was told, said again, changes nothing.
func (m *node) nothingLeft() {
	t := m.table
	if n := len(t.runs) + len(t.byKey) + len(t.byID); n != 0 {
		m.fail("%d entries are left: %+v", n, t.Runs())
	}
	if len(t.created) != len(t.order) {
		m.fail("%d created, %d in order", len(t.created), len(t.order))
	}
	gone := map[string]bool{}
	for _, n := range m.told {
		gone[n.Identity.ID] = gone[n.Identity.ID] || n.Kind == container.Removed || n.Kind == container.Starting
	}
	for id := range t.created {
		if gone[id] {
			m.fail("%s is only created, for ever", id)
		}
	}
	before := len(t.created)
	for _, n := range m.told {
		if whoOf(n).ghost != 0 {
			continue // of several of one container only the first has a run, as long as that lasts
		}
		if actions := t.Apply(n); n.Kind != container.Removed && len(actions) > 0 {
			m.fail("%v %s/%d said again: %s", n.Kind, n.Identity.ID, n.Identity.CgroupID, words(actions))
		}
	}
	if len(t.created) > before {
		m.fail("%d are created, %d were", len(t.created), before)
	}
}

// Whatever the sources of a node say, and when, each life of which an agent was told is
// armed at most once by each agent, is sealed exactly once, and nothing of it is left.
func TestSources(t *testing.T) {
	for seed := range *seeds {
		m := newNode(t, seeded(seed))
		m.say("seed %d", seed)
		for range 20 + m.choose(150) {
			m.step()
		}
		m.finish()
	}
}

// FuzzSources is TestSources with the choices in a fuzzer's hands.
func FuzzSources(f *testing.F) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 6))
		b := make([]byte, 16<<(seed%6))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[:min(len(b), 1<<12)]
		m := newNode(t, func(n int) int {
			if len(b) == 0 {
				return 0
			}
			v := int(b[0]) % n
			b = b[1:]
			return v
		})
		for len(b) > 0 {
			m.step()
		}
		m.finish()
	})
}

// The same notices, in whatever order, with the kernel's word at whatever time after
// that, end in the same runs, each sealed once, and in a table that answers the same.
func TestAnyOrder(t *testing.T) {
	for seed := range *seeds / 10 {
		m := newNode(t, seeded(seed))
		for range 20 + m.choose(60) {
			if m.choose(3) > 0 { // no restarts and no lost source: all in one table
				m.happen(m.containers[m.choose(len(m.containers))])
			} else if len(m.mail) > 0 {
				m.deliver(m.choose(len(m.mail)))
			}
		}
		m.finish()
		// Who was told of after his end has nothing that tells him apart.
		notices := slices.DeleteFunc(m.told, func(n container.Notice) bool {
			return n.Kind == container.Starting && whoOf(n).ghost != 0
		})
		first := ""
		for order := range 6 {
			end := inOrder(t, seeded(seed<<8|uint64(order)), notices)
			if order == 0 {
				first = end
			} else if end != first {
				t.Fatalf("seed %d, order %d: %s\nin another order: %s", seed, order, end, first)
			}
		}
	}
}

// inOrder applies notices in an order of choose's, and returns how it ends.
func inOrder(t *testing.T, choose chooser, notices []container.Notice) string {
	t.Helper()
	var table Table
	armed, over := map[string]bool{}, map[string]bool{}
	sealed := map[string]int{}
	take := func(actions []Action) {
		for _, a := range actions {
			switch a := a.(type) {
			case Arm:
				armed[a.Run.ID] = true
			case Seal:
				id := a.Run.Notice.Identity
				sealed[fmt.Sprintf("%s/%d/%d", id.ID, id.CgroupID, id.InitStart)]++
			}
		}
	}
	reports := func(all bool) {
		for _, r := range table.Runs() {
			if r.ID == "" || !all && choose(4) > 0 {
				continue
			}
			if over[r.ID] != (choose(2) == 0) || all {
				over[r.ID] = true
				take(table.CgroupEmpty(r.ID, 1))
			}
			if !all && choose(2) == 0 {
				continue
			}
			take(table.Armed(r.ID, true))
		}
	}
	notices = slices.Clone(notices)
	for len(notices) > 0 {
		i := choose(len(notices))
		take(table.Apply(notices[i]))
		notices = slices.Delete(notices, i, i+1)
		reports(false)
	}
	reports(true)
	var created []string
	for _, r := range table.Runs() {
		created = append(created, r.Notice.Identity.ID)
	}
	for run, n := range sealed {
		if n != 1 {
			t.Fatalf("%s is sealed %d times", run, n)
		}
	}
	slices.Sort(created)
	return fmt.Sprintf("%v sealed, %v created", slices.Sorted(maps.Keys(sealed)), created)
}
