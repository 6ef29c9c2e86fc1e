package lifecycle

import (
	"maps"
	"slices"
	"strings"

	"probity/runtime/container"
)

// Table is the table of live containers. The zero value is empty and ready.
type Table struct {
	runs    map[string]*entry // left, armed, running and stopped, by run id
	byKey   map[key]*entry    // the same
	byID    map[string][]*key // the same, by container id, oldest first
	created map[string]*Run   // only created, by container id
	order   []string          // ids in created, oldest first
	sealed  recent[key]       // runs that have ended
	removed recent[string]    // containers removed that have no run
	ended   recent[process]   // of runs that have ended
	lost    map[string]int64  // sources that are away, since when
	stopped bool
}

type entry struct {
	Run
	key key
}

// key tells runs apart. A cgroup id is never used again while the machine
// runs, so it needs no runtime beside it, and two sources that call the
// runtime by two names speak of one run. Without a cgroup of its own the
// run's id must do, which has when init started; init's pid if that is not known.
type key struct {
	boot, id string
	cgroup   uint64
	run      string
	pid      int
}

func keyOf(run string, n container.Notice) key {
	id := n.Identity
	k := key{boot: id.BootID, id: id.ID, cgroup: id.CgroupID}
	if k.cgroup == 0 {
		k.run = run
		if id.InitStart == 0 {
			k.pid = n.Pid
		}
	}
	return k
}

// process is a container's first process, of any life; 0 where it is not known.
type process struct {
	id  string
	pid int
}

// Apply takes a notice.
func (t *Table) Apply(n container.Notice) []Action {
	if t.stopped {
		return nil
	}
	switch n.Kind {
	case container.Created:
		return t.create(n)
	case container.Starting, container.Started, container.Existing:
		return t.start(n)
	case container.Stopped:
		return t.look(n.Identity.ID)
	case container.Removed:
		return t.remove(n.Identity.ID)
	}
	return nil
}

func (t *Table) create(n container.Notice) []Action {
	id := n.Identity.ID
	// With a process, the creation is old news; so it is after the removal.
	if t.created[id] != nil || len(t.byID[id]) > 0 || t.removed.has(id) {
		return nil
	}
	r := &Run{State: Created, Notice: n}
	if t.created == nil {
		t.created = map[string]*Run{}
	}
	t.created[id] = r
	t.order = append(t.order, id)
	actions := []Action{Prefetch{Notice: n}}
	if len(t.order) > MaxCreated {
		oldest := t.order[0]
		actions = append(actions, Forget{Run: *t.uncreate(oldest)})
	}
	return actions
}

func (t *Table) uncreate(id string) *Run {
	r := t.created[id]
	if r != nil {
		delete(t.created, id)
		i := slices.Index(t.order, id)
		t.order = slices.Delete(t.order, i, i+1)
	}
	return r
}

func (t *Table) start(n container.Notice) []Action {
	id, k := n.Identity.ID, keyOf(n.Identity.RunID(), n)
	e := t.of(n)
	if e != nil && e.State == Left {
		// It runs on. From here on it is like any other, under the name that its
		// evidence has.
		n.Identity.Runtime = e.Notice.Identity.Runtime
		e.State, e.Notice = Armed, n
		return append(t.lookAtOthers(e), Arm{Run: e.Run})
	}
	if e != nil {
		if n.Kind == container.Starting {
			return []Action{Await{Run: e.Run}}
		}
		return nil
	}
	if t.sealed.has(k) {
		return nil
	}
	t.uncreate(id)
	t.removed.drop(id) // the id is used again
	// An older run of this container: whoever starts it again has seen the end.
	actions := t.look(id)

	e = &entry{Run: Run{ID: n.Identity.RunID(), State: Armed, Notice: n}, key: k}
	t.put(e)
	return append(actions, Arm{Run: e.Run})
}

// of returns what a notice with a process is about, or nil.
func (t *Table) of(n container.Notice) *entry {
	if e := t.byKey[keyOf(n.Identity.RunID(), n)]; e != nil {
		return e
	}
	// The same without a cgroup: it has no name of its own as a run.
	return t.runs[n.Identity.RunID()]
}

func (t *Table) put(e *entry) {
	if t.runs == nil {
		t.runs, t.byKey, t.byID = map[string]*entry{}, map[key]*entry{}, map[string][]*key{}
	}
	t.runs[e.ID], t.byKey[e.key] = e, e
	t.byID[e.key.id] = append(t.byID[e.key.id], &e.key)
}

// Left takes a run that an earlier agent armed and did not see the end of, under the
// id that it has in the evidence. Sources may tell of it, or it has ended; who is
// asked to look finds out.
func (t *Table) Left(runID string, id container.Identity, source string) []Action {
	e := &entry{Run: Run{ID: runID, State: Left, Left: true, Notice: container.Notice{Source: source, Kind: container.Existing, Identity: id}}}
	e.key = keyOf(runID, e.Notice)
	if t.stopped || t.runs[runID] != nil || t.byKey[e.key] != nil || t.sealed.has(e.key) {
		return nil
	}
	t.uncreate(id.ID)
	t.put(e)
	return []Action{LookNow{Run: e.Run}}
}

// lookAtOthers is look for all runs of the container but this one.
func (t *Table) lookAtOthers(e *entry) []Action {
	return slices.DeleteFunc(t.look(e.key.id), func(a Action) bool { return a.(LookNow).Run.ID == e.ID })
}

func (t *Table) look(id string) []Action {
	var actions []Action
	for _, k := range t.byID[id] {
		if e := t.byKey[*k]; e.State != Stopped {
			actions = append(actions, LookNow{Run: e.Run})
		}
	}
	return actions
}

func (t *Table) remove(id string) []Action {
	r := t.uncreate(id)
	if len(t.byID[id]) == 0 {
		// Its creation may be on its way still, or again, and would never leave.
		t.removed.add(id, MaxSealed)
	}
	if r != nil {
		return []Action{Forget{Run: *r}}
	}
	return t.look(id)
}

// Armed reports that the arming of a run is over, and whether anything is
// armed. Why not is for the evidence; the table goes on either way.
func (t *Table) Armed(runID string, ok bool) []Action {
	e := t.runs[runID]
	if e == nil || e.State == Left {
		return nil
	}
	e.OK = e.OK || ok
	switch e.State {
	case Armed:
		e.State = Running
	case Stopped:
		return t.seal(e)
	}
	return nil
}

// CgroupEmpty reports that nothing runs in the run's cgroup any more, as found
// at boot time at.
func (t *Table) CgroupEmpty(runID string, at int64) []Action {
	e := t.runs[runID]
	if e == nil || e.State == Stopped {
		return nil
	}
	e.Ended = at
	if e.State == Armed {
		e.State = Stopped
		return nil
	}
	return t.seal(e)
}

func (t *Table) seal(e *entry) []Action {
	t.drop(e)
	t.sealed.add(e.key, MaxSealed)
	t.removed.add(e.key.id, MaxSealed) // what still comes about it is late
	t.ended.add(process{e.key.id, e.Notice.Pid}, MaxSealed)
	e.State = Sealed
	return []Action{Seal{Run: e.Run, Final: true, At: e.Ended}, Forget{Run: e.Run}}
}

func (t *Table) drop(e *entry) {
	delete(t.runs, e.ID)
	delete(t.byKey, e.key)
	id := e.key.id
	t.byID[id] = slices.DeleteFunc(t.byID[id], func(k *key) bool { return *k == e.key })
	if len(t.byID[id]) == 0 {
		delete(t.byID, id)
	}
}

// SourceLost reports that a source can tell nothing from boot time at on.
func (t *Table) SourceLost(source string, at int64) []Action {
	if _, away := t.lost[source]; away || t.stopped {
		return nil
	}
	if t.lost == nil {
		t.lost = map[string]int64{}
	}
	t.lost[source] = at
	return []Action{SourceGap{Source: source, From: at}}
}

// SourceBack reports that a source tells again and has listed what runs. What
// it had announced and what ended meanwhile it does not mention, so all its
// runs are looked at.
func (t *Table) SourceBack(source string, at int64) []Action {
	from, away := t.lost[source]
	if !away || t.stopped {
		return nil
	}
	delete(t.lost, source)
	actions := []Action{SourceGap{Source: source, From: from, To: at}}
	for _, e := range t.sorted() {
		if e.Notice.Source == source && e.State != Stopped {
			actions = append(actions, LookNow{Run: e.Run})
		}
	}
	return actions
}

// Stopping reports that the agent stops: every run's evidence ends here, not
// final. The table is empty afterwards and stays so.
func (t *Table) Stopping(at int64) []Action {
	if t.stopped {
		return nil
	}
	var actions []Action
	for _, e := range t.sorted() {
		if e.State == Left { // its evidence says all that is known of it
			actions = append(actions, Forget{Run: e.Run})
			continue
		}
		seal := Seal{Run: e.Run, At: at}
		if e.State == Stopped { // it did end, while it was being armed
			seal.Final, seal.At = true, e.Ended
		}
		actions = append(actions, seal, Forget{Run: e.Run})
	}
	for _, id := range t.order {
		actions = append(actions, Forget{Run: *t.created[id]})
	}
	*t = Table{stopped: true}
	return actions
}

// Known reports whether the table has a run of the container with that first process,
// or had one not long ago. The id alone does not say so: others may have it, in another
// namespace of containerd's or another state directory, and earlier lives had it.
func (t *Table) Known(id string, pid int) bool {
	for _, k := range t.byID[id] {
		if p := t.byKey[*k].Notice.Pid; p == pid || p == 0 { // 0: an earlier agent's
			return true
		}
	}
	return t.ended.has(process{id, pid}) || t.ended.has(process{id, 0})
}

// Of returns the run that a notice with a process is about, whatever its source calls
// the runtime, if it is in the table.
func (t *Table) Of(n container.Notice) (Run, bool) {
	if e := t.of(n); e != nil {
		return e.Run, true
	}
	return Run{}, false
}

// Run returns the run with that id, if it is in the table.
func (t *Table) Run(runID string) (Run, bool) {
	if e := t.runs[runID]; e != nil {
		return e.Run, true
	}
	return Run{}, false
}

// Runs returns the runs in the table, sorted by id, then what is only created,
// oldest first.
func (t *Table) Runs() []Run {
	var rs []Run
	for _, e := range t.sorted() {
		rs = append(rs, e.Run)
	}
	for _, id := range t.order {
		rs = append(rs, *t.created[id])
	}
	return rs
}

// sorted makes the order of actions a function of the table, not of a map.
func (t *Table) sorted() []*entry {
	return slices.SortedFunc(maps.Values(t.runs), func(a, b *entry) int { return strings.Compare(a.ID, b.ID) })
}
