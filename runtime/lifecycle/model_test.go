package lifecycle

import (
	"math/rand/v2"
	"testing"

	"probity/runtime/container"
)

// model is the specification, said the long way: what is known of each run
// that ever was, without regard to memory.
type model struct {
	t       *testing.T
	table   Table
	runs    map[string]*life
	created map[string]bool
}

type life struct {
	id                      string // container id
	cgroup                  uint64
	left                    bool // an earlier agent left it open
	armed, reported, empty  bool
	finals, interim, forgot int
}

func (l *life) live() bool { return (l.armed || l.left) && l.finals == 0 }

func newModel(t *testing.T) *model {
	return &model{t: t, runs: map[string]*life{}, created: map[string]bool{}}
}

// do takes the actions of one step into the model and checks each of them.
func (m *model) do(actions []Action) {
	m.t.Helper()
	for _, a := range actions {
		switch a := a.(type) {
		case Prefetch:
			id := a.Notice.Identity.ID
			if m.created[id] {
				m.t.Fatalf("prefetch %s twice", id)
			}
			m.created[id] = true
		case Arm:
			id := a.Run.Notice.Identity
			if a.Run.ID != id.RunID() {
				m.t.Fatalf("arm %s, whose identity is another's", a.Run.ID)
			}
			l := m.runs[a.Run.ID]
			switch {
			case l == nil:
				m.runs[a.Run.ID] = &life{id: id.ID, cgroup: id.CgroupID, armed: true}
				delete(m.created, id.ID)
			case l.armed || !l.live():
				m.t.Fatalf("arm %s twice, or after its end", a.Run.ID)
			default:
				l.armed = true
			}
			if a.Run.Left != (l != nil) {
				m.t.Fatalf("arm %s: left %v", a.Run.ID, a.Run.Left)
			}
		case Await:
			m.known(a.Run, "await")
		case LookNow:
			if l := m.known(a.Run, "look"); l.empty {
				m.t.Fatalf("look at %s, which is known to be empty", a.Run.ID)
			}
		case Seal:
			l := m.known(a.Run, "seal")
			if !a.Final {
				l.interim++
				break
			}
			if l.finals++; !l.empty {
				m.t.Fatalf("seal %s final, which is not empty", a.Run.ID)
			}
		case Forget:
			if a.Run.ID == "" {
				delete(m.created, a.Run.Notice.Identity.ID)
				break
			}
			l := m.runs[a.Run.ID]
			if l == nil || l.finals+l.interim == 0 {
				m.t.Fatalf("forget %s before its seal", a.Run.ID)
			}
			l.forgot++
		}
	}
}

func (m *model) known(r Run, what string) *life {
	m.t.Helper()
	l := m.runs[r.ID]
	if l == nil || !l.live() {
		m.t.Fatalf("%s %s, which is not live", what, r.ID)
	}
	return l
}

// check compares the table with the model.
func (m *model) check() {
	m.t.Helper()
	live := 0
	for id, l := range m.runs {
		r, ok := m.table.Run(id)
		if ok != l.live() {
			m.t.Fatalf("run %s: in the table %v, live %v", id, ok, l.live())
		}
		if l.finals > 1 || l.interim > 1 || l.forgot > 1 || l.finals != l.forgot {
			m.t.Fatalf("run %s: %+v", id, *l)
		}
		// Sealed as soon as both are known, and not before.
		if want := (l.reported || !l.armed) && l.empty; (l.finals == 1) != want {
			m.t.Fatalf("run %s: sealed %d times, reported %v, empty %v", id, l.finals, l.reported, l.empty)
		}
		if !ok {
			continue
		}
		live++
		want := Armed
		switch {
		case !l.armed:
			want = Left
		case l.reported:
			want = Running
		case l.empty:
			want = Stopped
		}
		if r.State != want {
			m.t.Fatalf("run %s is %v, want %v", id, r.State, want)
		}
	}
	if n := len(m.table.Runs()); n != live+len(m.created) {
		m.t.Fatalf("%d in the table, want %d runs and %d created", n, live, len(m.created))
	}
}

func (m *model) notice(kind container.Kind, id string, cgroup uint64) {
	m.t.Helper()
	m.do(m.table.Apply(notice(kind, id, cgroup)))
	m.check()
}

func (m *model) armed(run string) {
	m.t.Helper()
	if l := m.runs[run]; l != nil && l.armed {
		l.reported = true
	}
	m.do(m.table.Armed(run, true))
	m.check()
}

func (m *model) empty(run string) {
	m.t.Helper()
	if l := m.runs[run]; l != nil {
		l.empty = true
	}
	m.do(m.table.CgroupEmpty(run, 1))
	m.check()
}

// left has an earlier agent's run taken over: whatever is known of it already
// stays as it is.
func (m *model) left(id string, cgroup uint64) {
	m.t.Helper()
	run := runID(id, cgroup)
	actions := m.table.Left(run, notice(container.Existing, id, cgroup).Identity, "nri")
	if (m.runs[run] == nil) != (len(actions) == 1) {
		m.t.Fatalf("left %s: %v", run, actions)
	}
	if m.runs[run] == nil {
		m.runs[run] = &life{id: id, cgroup: cgroup, left: true}
		delete(m.created, id)
	}
	m.do(actions)
	m.check()
}

// end lets the kernel and the arming have their say about everything, and the
// runtime remove everything. Nothing may be left.
func (m *model) end(ids []string) {
	m.t.Helper()
	for run := range m.runs {
		m.empty(run)
		m.armed(run)
	}
	// Of what has ended nothing comes back.
	for _, l := range m.runs {
		m.notice(container.Existing, l.id, l.cgroup)
		m.left(l.id, l.cgroup)
	}
	for _, id := range ids {
		m.notice(container.Removed, id, 0)
	}
	for run, l := range m.runs {
		if l.finals != 1 || l.forgot != 1 {
			m.t.Fatalf("run %s in the end: %+v", run, *l)
		}
	}
	t := &m.table
	if n := len(t.runs) + len(t.byKey) + len(t.byID) + len(t.created) + len(t.order); n != 0 {
		m.t.Fatalf("%d entries left in the end: %+v", n, t.Runs())
	}
}

var ids = []string{"a", "b", "c"}

// FuzzTable: whatever comes in whatever order, the table keeps to the model.
func FuzzTable(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 0, 2, 0, 7, 0, 8, 0})
	f.Add([]byte{5, 0, 1, 0, 2, 4, 8, 4, 7, 4, 2, 4})
	f.Add([]byte{2, 4, 9, 4, 7, 4, 9, 4, 10, 0, 11, 0, 3, 8, 5, 0})
	f.Add([]byte{12, 0, 0, 0, 2, 0, 7, 0, 8, 0, 12, 4, 8, 4, 0, 4})
	f.Fuzz(func(t *testing.T, ops []byte) {
		m := newModel(t)
		for len(ops) >= 2 {
			op, arg := ops[0]%13, ops[1]
			ops = ops[2:]
			id, cgroup := ids[int(arg)%len(ids)], uint64(arg>>2)%4+1
			run := runID(id, cgroup)
			switch op {
			case 0, 6:
				m.notice(container.Existing, id, cgroup)
			case 1:
				m.notice(container.Created, id, 0)
			case 2:
				m.notice(container.Starting, id, cgroup)
			case 3:
				m.notice(container.Started, id, cgroup)
			case 4:
				m.notice(container.Stopped, id, 0)
			case 5:
				m.notice(container.Removed, id, 0)
			case 7:
				m.armed(run)
			case 8:
				m.empty(run)
			case 10:
				m.do(m.table.SourceLost("nri", 1))
				m.check()
			case 11:
				m.do(m.table.SourceBack("nri", 2))
				m.check()
			case 12:
				m.left(id, cgroup)
			}
		}
		m.end(ids)
	})
}

// TestHistories takes true histories of containers, of which some are started
// twice, and loses, doubles and reorders their notices; some began under an earlier
// agent. Whatever was announced once with a process is armed once and sealed once; what the kernel says is
// never lost, and comes at any time after the arming was asked for.
func TestHistories(t *testing.T) {
	type event struct {
		kind   container.Kind
		id     string
		cgroup uint64
	}
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 0))
		var events []event
		announced, all := map[string]bool{}, map[string]event{}
		for i, id := range ids {
			one := []event{{container.Created, id, 0}}
			for life := range uint64(1 + r.IntN(2)) {
				cg := uint64(i)*10 + life + 1
				all[runID(id, cg)] = event{container.Existing, id, cg}
				one = append(one, event{container.Starting, id, cg}, event{container.Started, id, cg}, event{container.Existing, id, cg}, event{container.Stopped, id, 0})
			}
			one = append(one, event{container.Removed, id, 0})
			for _, e := range one {
				for range r.IntN(4) { // lost, once, twice, three times
					events = append(events, e)
					if e.cgroup != 0 {
						announced[runID(e.id, e.cgroup)] = true
					}
				}
			}
		}
		// Reordered by up to everything.
		for i := range events {
			j := min(len(events)-1, i+r.IntN(1+int(seed%uint64(len(events)+1))))
			events[i], events[j] = events[j], events[i]
		}
		m := newModel(t)
		if seed%2 == 1 { // some of them began under an earlier agent, which knew them
			for run, l := range all {
				if r.IntN(2) == 0 {
					announced[run] = true
					m.left(l.id, l.cgroup)
				}
			}
		}
		for _, e := range events {
			m.notice(e.kind, e.id, e.cgroup)
			for run := range m.runs {
				switch r.IntN(6) {
				case 0:
					m.armed(run)
				case 1:
					m.empty(run)
				}
			}
		}
		if len(m.runs) != len(announced) {
			t.Fatalf("seed %d: %d runs, %d were announced", seed, len(m.runs), len(announced))
		}
		m.end(ids)
	}
}
