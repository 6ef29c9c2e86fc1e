package lifecycle

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"probity/runtime/container"
)

func notice(kind container.Kind, id string, cgroup uint64) container.Notice {
	return container.Notice{
		Source: "nri", Kind: kind, Pid: 7,
		Identity: container.Identity{Runtime: container.Containerd, ID: id, BootID: "boot", CgroupID: cgroup},
	}
}

func runID(id string, cgroup uint64) string {
	return notice(container.Starting, id, cgroup).Identity.RunID()
}

// words spells actions as "arm a/1", so that a table of steps can be read.
func words(actions []Action) string {
	name := func(r Run) string {
		if r.ID == "" {
			return r.Notice.Identity.ID
		}
		return fmt.Sprintf("%s/%d", r.Notice.Identity.ID, r.Notice.Identity.CgroupID)
	}
	var ws []string
	for _, a := range actions {
		switch a := a.(type) {
		case Prefetch:
			ws = append(ws, "prefetch "+a.Notice.Identity.ID)
		case Arm:
			ws = append(ws, "arm "+name(a.Run))
		case Await:
			ws = append(ws, "await "+name(a.Run))
		case LookNow:
			ws = append(ws, "look "+name(a.Run))
		case Seal:
			ws = append(ws, fmt.Sprintf("seal %s final=%v at=%d", name(a.Run), a.Final, a.At))
		case Forget:
			ws = append(ws, "forget "+name(a.Run))
		case SourceGap:
			ws = append(ws, fmt.Sprintf("gap %s %d-%d", a.Source, a.From, a.To))
		}
	}
	return strings.Join(ws, ", ")
}

type step struct {
	do   func(*Table) []Action
	want string
}

func apply(kind container.Kind, id string, cgroup uint64) func(*Table) []Action {
	return func(t *Table) []Action { return t.Apply(notice(kind, id, cgroup)) }
}
func armed(id string, cgroup uint64) func(*Table) []Action {
	return func(t *Table) []Action { return t.Armed(runID(id, cgroup), true) }
}
func empty(id string, cgroup uint64, at int64) func(*Table) []Action {
	return func(t *Table) []Action { return t.CgroupEmpty(runID(id, cgroup), at) }
}

func TestTable(t *testing.T) {
	const (
		created, starting, started = container.Created, container.Starting, container.Started
		stopped, removed, existing = container.Stopped, container.Removed, container.Existing
	)
	lost := func(at int64) func(*Table) []Action {
		return func(t *Table) []Action { return t.SourceLost("nri", at) }
	}
	back := func(at int64) func(*Table) []Action {
		return func(t *Table) []Action { return t.SourceBack("nri", at) }
	}
	stopping := func(at int64) func(*Table) []Action { return func(t *Table) []Action { return t.Stopping(at) } }
	leave := func(id string, cgroup uint64) func(*Table) []Action {
		return func(t *Table) []Action {
			return t.Left(runID(id, cgroup), notice(existing, id, cgroup).Identity, "nri")
		}
	}
	for _, test := range []struct {
		name  string
		steps []step
		left  int
	}{
		{"a life", []step{
			{apply(created, "a", 0), "prefetch a"},
			{apply(starting, "a", 1), "arm a/1"},
			{armed("a", 1), ""},
			{apply(started, "a", 1), ""},
			{apply(stopped, "a", 0), "look a/1"},
			{empty("a", 1, 9), "seal a/1 final=true at=9, forget a/1"},
			{apply(removed, "a", 0), ""},
		}, 0},
		{"everything twice", []step{
			{apply(created, "a", 0), "prefetch a"},
			{apply(created, "a", 0), ""},
			{apply(starting, "a", 1), "arm a/1"},
			{apply(starting, "a", 1), "await a/1"},
			{armed("a", 1), ""},
			{armed("a", 1), ""},
			{apply(starting, "a", 1), "await a/1"},
			{empty("a", 1, 9), "seal a/1 final=true at=9, forget a/1"},
			{empty("a", 1, 10), ""},
			{armed("a", 1), ""},
			{apply(starting, "a", 1), ""},
			{apply(existing, "a", 1), ""},
			{apply(created, "a", 0), ""},
		}, 0},
		{"ends before it is armed", []step{
			{apply(starting, "a", 1), "arm a/1"},
			{empty("a", 1, 9), ""},
			{apply(stopped, "a", 0), ""},
			{empty("a", 1, 10), ""},
			{armed("a", 1), "seal a/1 final=true at=9, forget a/1"},
		}, 0},
		{"the end comes before the start", []step{
			{apply(removed, "a", 0), ""},
			{apply(stopped, "a", 0), ""},
			{apply(created, "a", 0), ""},
			{apply(starting, "a", 1), "arm a/1"},
			{armed("a", 1), ""},
			{empty("a", 1, 9), "seal a/1 final=true at=9, forget a/1"},
		}, 0},
		{"left by an earlier agent, and runs on", []step{
			{leave("a", 1), "look a/1"},
			{leave("a", 1), ""},
			{apply(created, "a", 0), ""},
			{armed("a", 1), ""},
			{apply(stopped, "a", 0), "look a/1"},
			{apply(existing, "a", 1), "arm a/1"},
			{apply(existing, "a", 1), ""},
			{apply(starting, "a", 1), "await a/1"},
			{leave("a", 1), ""},
			{armed("a", 1), ""},
			{empty("a", 1, 9), "seal a/1 final=true at=9, forget a/1"},
			{leave("a", 1), ""},
		}, 0},
		{"left, and has ended", []step{
			{leave("a", 1), "look a/1"},
			{empty("a", 1, 9), "seal a/1 final=true at=9, forget a/1"},
			{empty("a", 1, 10), ""},
			{apply(existing, "a", 1), ""},
			{leave("a", 1), ""},
		}, 0},
		{"left, and started again since", []step{
			{leave("a", 1), "look a/1"},
			{apply(existing, "a", 2), "look a/1, arm a/2"},
			{empty("a", 1, 9), "seal a/1 final=true at=9, forget a/1"},
			{armed("a", 2), ""},
		}, 1},
		{"left, and the agent stops", []step{
			{leave("a", 1), "look a/1"},
			{leave("b", 2), "look b/2"},
			{apply(existing, "b", 2), "arm b/2"},
			{armed("b", 2), ""},
			{stopping(9), "seal b/2 final=false at=9, forget b/2, forget a/1"},
			{leave("c", 3), ""},
		}, 0},
		{"what an earlier agent armed adopts no new name", []step{
			{leave("a", 1), "look a/1"},
			{func(t *Table) []Action {
				n := notice(existing, "a", 1)
				n.Identity.Runtime = container.Docker
				return t.Apply(n)
			}, "arm a/1"},
			{armed("a", 1), ""}, // under the id that the evidence has
			{empty("a", 1, 9), "seal a/1 final=true at=9, forget a/1"},
		}, 0},
		{"never started", []step{
			{apply(created, "a", 0), "prefetch a"},
			{apply(stopped, "a", 0), ""},
			{apply(removed, "a", 0), "forget a"},
			{apply(removed, "a", 0), ""},
		}, 0},
		{"its creation is told of again after its removal", []step{
			{apply(created, "a", 0), "prefetch a"},
			{apply(removed, "a", 0), "forget a"},
			{apply(created, "a", 0), ""},
		}, 0},
		{"no notice of the start but a late one", []step{
			{apply(started, "a", 1), "arm a/1"},
			{apply(existing, "a", 1), ""},
			{armed("a", 1), ""},
		}, 1},
		{"started again", []step{
			{apply(starting, "a", 1), "arm a/1"},
			{armed("a", 1), ""},
			{apply(starting, "a", 2), "look a/1, arm a/2"},
			{apply(stopped, "a", 0), "look a/1, look a/2"},
			{empty("a", 1, 9), "seal a/1 final=true at=9, forget a/1"},
			{armed("a", 2), ""},
			{apply(stopped, "a", 0), "look a/2"},
			{empty("a", 2, 10), "seal a/2 final=true at=10, forget a/2"},
		}, 0},
		{"the id is used again after its removal", []step{
			{apply(starting, "a", 1), "arm a/1"},
			{armed("a", 1), ""},
			{empty("a", 1, 9), "seal a/1 final=true at=9, forget a/1"},
			{apply(removed, "a", 0), ""},
			{apply(starting, "a", 2), "arm a/2"},
			{armed("a", 2), ""},
			{empty("a", 2, 10), "seal a/2 final=true at=10, forget a/2"},
		}, 0},
		{"children outlive init", []step{
			{apply(starting, "a", 1), "arm a/1"},
			{armed("a", 1), ""},
			{apply(stopped, "a", 0), "look a/1"},
			{apply(removed, "a", 0), "look a/1"},
			{empty("a", 1, 20), "seal a/1 final=true at=20, forget a/1"},
		}, 0},
		{"a source is away", []step{
			{apply(starting, "a", 1), "arm a/1"},
			{armed("a", 1), ""},
			{apply(created, "b", 0), "prefetch b"},
			{back(1), ""},
			{lost(5), "gap nri 5-0"},
			{lost(6), ""},
			{back(9), "gap nri 5-9, look a/1"},
			{back(10), ""},
		}, 2},
		{"the agent stops", []step{
			{apply(created, "c", 0), "prefetch c"},
			{apply(starting, "a", 1), "arm a/1"},
			{empty("a", 1, 4), ""},
			{stopping(7), "seal a/1 final=true at=4, forget a/1, forget c"},
			{stopping(8), ""},
			{apply(starting, "b", 2), ""},
			{lost(9), ""},
		}, 0},
		{"the agent stops while one runs", []step{
			{apply(starting, "a", 1), "arm a/1"},
			{armed("a", 1), ""},
			{stopping(7), "seal a/1 final=false at=7, forget a/1"},
		}, 0},
		{"no cgroup of its own", []step{
			{apply(starting, "a", 0), "arm a/0"},
			{apply(starting, "a", 0), "await a/0"},
			{armed("a", 0), ""},
			{empty("a", 0, 9), "seal a/0 final=true at=9, forget a/0"},
			{apply(starting, "a", 0), ""},
			{func(t *Table) []Action {
				n := notice(starting, "a", 0)
				n.Pid = 8
				return t.Apply(n)
			}, "arm a/0"},
			{func(t *Table) []Action {
				n := notice(starting, "a", 0)
				n.Pid = 9
				return t.Apply(n)
			}, "await a/0"},
		}, 1},
		{"two sources, two names for the runtime", []step{
			{apply(starting, "a", 1), "arm a/1"},
			{func(t *Table) []Action {
				n := notice(starting, "a", 1)
				n.Source, n.Identity.Runtime = "hook", container.Runc
				return t.Apply(n)
			}, "await a/1"},
		}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			var table Table
			for i, s := range test.steps {
				if got := words(s.do(&table)); got != s.want {
					t.Fatalf("step %d: %q, want %q", i, got, s.want)
				}
			}
			if got := table.Runs(); len(got) != test.left {
				t.Errorf("left: %+v, want %d", got, test.left)
			}
		})
	}
}

func TestRunCarriesWhatArmedSaid(t *testing.T) {
	var table Table
	table.Apply(notice(container.Starting, "a", 1))
	table.Armed(runID("a", 1), true)
	if r, ok := table.Run(runID("a", 1)); !ok || !r.OK || r.State != Running {
		t.Errorf("run %+v, %v", r, ok)
	}
	if _, ok := table.Run("nobody"); ok {
		t.Error("a run that is not there")
	}
}

// Of runs without a cgroup of their own an earlier agent may have left several of one
// container: each is told apart, and has its own end.
func TestLeftInASharedCgroup(t *testing.T) {
	life := func(start uint64) container.Notice {
		n := notice(container.Existing, "a", 0)
		n.Identity.InitStart = start
		return n
	}
	var table Table
	for start := range uint64(3) {
		id := life(start + 1).Identity
		run := id.RunID()
		id.InitStart = 0 // lines do not say it
		if got := words(table.Left(run, id, "nri")); got != "look a/0" {
			t.Errorf("life %d: %q", start+1, got)
		}
	}
	if got := words(table.CgroupEmpty(life(1).Identity.RunID(), 9)); got != "seal a/0 final=true at=9, forget a/0" {
		t.Errorf("the end of the first: %q", got)
	}
	if got := words(table.Apply(life(1))); got != "" {
		t.Errorf("told of after its end: %q", got)
	}
	if got := words(table.Apply(life(2))); got != "look a/0, arm a/0" {
		t.Errorf("the second runs on: %q", got)
	}
	if n := len(table.Runs()); n != 2 {
		t.Errorf("%d in the table", n)
	}
}

// Who has a container's id is not that container: another namespace has one too, or
// it is another life of it.
func TestKnown(t *testing.T) {
	var table Table
	known := func(pid int, want bool) {
		t.Helper()
		if table.Known("a", pid) != want || table.Known("b", pid) {
			t.Errorf("pid %d: known %v", pid, !want)
		}
	}
	table.Apply(notice(container.Removed, "a", 0)) // of one that nobody has armed
	known(7, false)
	table.Apply(notice(container.Starting, "a", 1))
	known(7, true)
	known(8, false)
	table.Armed(runID("a", 1), true)
	table.CgroupEmpty(runID("a", 1), 9)
	known(7, true)
	known(8, false)
	table.Left(runID("a", 2), notice(container.Existing, "a", 2).Identity, "nri") // nobody knows its process
	known(8, true)
	table.CgroupEmpty(runID("a", 2), 10)
	known(8, true)
}

func TestCreatedIsBounded(t *testing.T) {
	var table Table
	for i := range 3 * MaxCreated {
		table.Apply(notice(container.Created, fmt.Sprint("c", i), 0))
	}
	runs := table.Runs()
	if len(runs) != MaxCreated || runs[0].Notice.Identity.ID != fmt.Sprint("c", 2*MaxCreated) {
		t.Errorf("%d left, the oldest is %s", len(runs), runs[0].Notice.Identity.ID)
	}
}

func TestMemoryOfTheEndIsBounded(t *testing.T) {
	var table Table
	for i := range uint64(3 * MaxSealed) {
		id := fmt.Sprint("c", i)
		table.Apply(notice(container.Starting, id, i+1))
		table.Armed(runID(id, i+1), true)
		table.CgroupEmpty(runID(id, i+1), 1)
		table.Apply(notice(container.Removed, id, 0))
	}
	if n, m := len(table.sealed.at), len(table.removed.at); n != MaxSealed || m != MaxSealed || len(table.ended.at) != MaxSealed {
		t.Errorf("%d sealed, %d removed, %d ended are remembered", n, m, len(table.ended.at))
	}
	if n := len(table.runs) + len(table.byKey) + len(table.byID) + len(table.created) + len(table.order); n != 0 {
		t.Errorf("%d entries left", n)
	}
}

func TestRecent(t *testing.T) {
	var r recent[int]
	for _, v := range []int{1, 2, 2, 3, 4} { // 1 goes
		r.add(v, 3)
	}
	r.drop(3)
	got := []bool{r.has(1), r.has(2), r.has(3), r.has(4)}
	if want := []bool{false, true, false, true}; !reflect.DeepEqual(got, want) {
		t.Errorf("has %v, want %v", got, want)
	}
	for v := range 100 { // dropped and added again, over and over
		r.add(v%5, 3)
		r.drop(v % 7)
		if len(r.at) > 3 || len(r.ring) > 3 {
			t.Fatalf("%d remembered", len(r.at))
		}
	}
}
