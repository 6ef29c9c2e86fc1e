package witness

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/evidence/redact"
	"probity/runtime/container"
	"probity/runtime/image"
	"probity/tests/schemas"
)

// sink keeps lines, and insists that each one can be encoded.
type sink struct {
	t       *testing.T
	lines   []evidence.Line
	appends int
	seals   int
}

func TestMain(m *testing.M) { os.Exit(schemas.Done("evidence/witness", false, m.Run())) }

var clock = evidence.Clock{BootNs: 1000, Wall: evidence.TimeOf(time.Unix(1700000000, 0))}

func (s *sink) Append(_ string, build func(evidence.Clock) []redact.Line) error {
	s.appends++
	for _, line := range build(clock) {
		l := line.Evidence()
		b, err := evidence.Encode(l)
		if err == nil {
			err = evidence.Validate(l)
		}
		if err != nil {
			s.t.Errorf("the spool would not take this line: %v\n%s", err, b)
		}
		schemas.Line(s.t, b)
		s.lines = append(s.lines, kept(l))
	}
	return nil
}

// kept is a line that stays as it is.
func kept(l evidence.Line) evidence.Line {
	o, ok := l.(*evidence.Observation)
	if !ok {
		return l
	}
	c := *o
	if o.Count != nil {
		n := *o.Count
		c.Count = &n
	}
	return &c
}

func (s *sink) Seal() { s.seals++ }

// take returns the lines of one type since the last take.
func take[L evidence.Line](s *sink) (out []L) {
	var rest []evidence.Line
	for _, l := range s.lines {
		if v, ok := l.(L); ok {
			out = append(out, v)
		} else {
			rest = append(rest, l)
		}
	}
	s.lines = rest
	return out
}

// kernel stands in for the maps: counters that the test sets.
type fakeKernel struct {
	slots  map[uint32]bpf.Counter
	run    bpf.Run
	misses evidence.Loss

	bad    map[uint32]error // sites whose counter cannot be read
	runBad error            // nor can run
}

func (k *fakeKernel) Counter(s probe.Site) (bpf.Counter, error) {
	if err := k.bad[s.ID]; err != nil {
		return bpf.Counter{}, err
	}
	if s.ID == 0 {
		return bpf.Counter{Count: k.run.Execs, FirstNs: k.run.FirstExecNs, LastNs: k.run.LastExecNs}, nil
	}
	return k.slots[s.ID], nil
}
func (k *fakeKernel) Run() (bpf.Run, error) { return k.run, k.runBad }
func (k *fakeKernel) Misses() evidence.Loss { return k.misses }

type stage struct {
	*Witness
	out  *sink
	kern *fakeKernel
	now  int64
	id   string

	identity container.Identity
}

const (
	libPath = "/usr/lib/libgreet.so"
	armedAt = 5000
)

func armed(id uint32, symbol string) probe.Site {
	return probe.Site{Type: evidence.Uprobe, Armed: true, ID: id, Planned: &probe.Planned{
		Probe: &policy.Probe{ID: "p-" + symbol, Type: "uprobe"}, Requested: evidence.Uprobe,
		Symbol: symbol, Kind: "func", Inline: "unknown", Copies: 1, Offset: 0x1000 + uint64(id), HasOffset: true,
		File: &probe.File{Match: image.Match{Path: libPath, Origin: "imageLayer"}, Digest: func() (string, error) {
			return "sha256:" + strings.Repeat("ab", 32), nil
		}},
	}}
}

func newStage(t *testing.T, sites ...probe.Site) *stage {
	st := &stage{out: &sink{t: t}, kern: &fakeKernel{slots: map[uint32]bpf.Counter{}}, now: armedAt + 10}
	st.Witness = New(Config{Sink: st.out, BootTime: func() int64 { return st.now }})
	id := container.Identity{
		Runtime: container.Podman, ID: strings.Repeat("c0", 32), BootID: "b", CgroupID: 42, CgroupPath: "/x",
		Image: container.Image{DigestReason: "none in this test"},
	}
	st.id, st.identity = id.RunID(), id
	var searches []probe.Search
	for _, s := range sites {
		searches = append(searches, probe.Search{ProbeID: s.Probe.ID, Complete: true})
	}
	st.Armed(Start{Identity: id, Source: "hook", Sites: sites, Searches: searches, Arm: st.kern, Notified: armedAt - 100, ArmedAt: armedAt})
	return st
}

func (st *stage) hit(id uint32, n uint64, at int64) {
	c := st.kern.slots[id]
	if c.FirstNs == 0 {
		c.FirstNs = at
	}
	c.Count, c.LastNs = c.Count+n, at
	st.kern.slots[id] = c
}

// final ends the run and returns its observations by symbol and its coverage.
func (st *stage) final(t *testing.T, at int64) (map[string]*evidence.Observation, *evidence.Coverage) {
	t.Helper()
	st.out.lines = nil
	st.now = at
	st.End(st.id, at, true)
	if st.out.seals == 0 {
		t.Error("the end of a run did not close its chunk")
	}
	obs := map[string]*evidence.Observation{}
	for _, o := range take[*evidence.Observation](st.out) {
		obs[o.Symbol] = o
	}
	cov := take[*evidence.Coverage](st.out)
	if len(cov) != 1 || !cov[0].Final {
		t.Fatalf("coverage at the end: %+v", cov)
	}
	return obs, cov[0]
}

func TestQuietRun(t *testing.T) {
	st := newStage(t, armed(1, "hello"))
	if len(st.out.lines) != 0 {
		t.Fatalf("%d lines before Publish", len(st.out.lines))
	}
	st.Publish(st.id, 0)
	if n := len(st.out.lines); n != 2 {
		t.Fatalf("%d lines at the start, want coverage and one observation", n)
	}
	obs, cov := st.final(t, 9000)
	o := obs["hello"]
	if o.State != evidence.ArmedNoHit || !o.Complete || !o.Final || *o.Count != 0 || o.Reason != "" {
		t.Errorf("observation %+v", o)
	}
	if o.From != clock.Time(armedAt) || o.To != clock.Time(9000) {
		t.Errorf("window %v to %v", o.From, o.To)
	}
	if cov.Probes[0].State != evidence.ArmedNoHit {
		t.Errorf("probe fold %+v", cov.Probes)
	}
	if len(st.Live()) != 0 {
		t.Error("the run is still live")
	}
}

func TestHitWithDetail(t *testing.T) {
	st := newStage(t, armed(1, "hello"), armed(2, "bye"))
	st.Publish(st.id, 0)
	st.out.lines = nil
	st.Event(bpf.Event{Kind: bpf.EventExec, Cgroup: 42, Ns: 5100, Pid: 7, Comm: "app", Path: "/bin/app"})
	st.hit(1, 3, 5200)
	st.Event(bpf.Event{Kind: bpf.EventHit, Cgroup: 42, Site: 1, Ns: 5200, Pid: 7, Tid: 8, Comm: "app"})
	got := take[*evidence.Observation](st.out)
	if len(got) != 1 || got[0].State != evidence.Hit || *got[0].Count != 3 || got[0].Process == nil || got[0].Process.Path != "/bin/app" || got[0].Final {
		t.Fatalf("line of the first hit: %+v", got)
	}
	st.hit(1, 4, 5300)
	obs, cov := st.final(t, 9000)
	if o := obs["hello"]; *o.Count != 7 || o.FirstAt != clock.Time(5200) || o.LastAt != clock.Time(5300) || !o.Complete {
		t.Errorf("final: %+v", o)
	}
	if obs["bye"].State != evidence.ArmedNoHit {
		t.Errorf("the neighbour: %+v", obs["bye"])
	}
	if cov.FirstExec != clock.Time(5100) {
		t.Errorf("first exec %v", cov.FirstExec)
	}
}

// A hit before the first lines are written must not be lost, nor one whose
// container is sealed before its event is read.
func TestHitBeforePublish(t *testing.T) {
	st := newStage(t, armed(1, "hello"))
	st.hit(1, 1, 5001)
	st.Event(bpf.Event{Kind: bpf.EventHit, Cgroup: 42, Site: 1, Ns: 5001, Pid: 7, Comm: "app"})
	if len(st.out.lines) != 0 {
		t.Fatal("a line before Publish")
	}
	st.Publish(st.id, 0)
	if got := take[*evidence.Observation](st.out); got[0].State != evidence.Hit || got[0].Process == nil {
		t.Fatalf("first line: %+v", got[0])
	}
	obs, _ := st.final(t, 5002)
	if obs["hello"].State != evidence.Hit {
		t.Errorf("final: %+v", obs["hello"])
	}
	st.Event(bpf.Event{Kind: bpf.EventHit, Cgroup: 42, Site: 1, Ns: 5003}) // late: ignored
}

func TestLateAttach(t *testing.T) {
	for _, hit := range []bool{false, true} {
		t.Run(fmt.Sprint("hit ", hit), func(t *testing.T) {
			st := newStage(t, armed(1, "hello"))
			if hit {
				st.hit(1, 1, 6000)
			}
			st.Publish(st.id, 4000)
			gaps := take[*evidence.Gap](st.out)
			if len(gaps) != 1 || gaps[0].Reason != evidence.GapLateAttach || gaps[0].From != clock.Time(4000) || gaps[0].To != clock.Time(armedAt) || gaps[0].RunID != st.id {
				t.Fatalf("gap lines: %+v", gaps)
			}
			obs, cov := st.final(t, 9000)
			want := evidence.Partial
			if hit {
				want = evidence.Hit
			}
			o := obs["hello"]
			if o.State != want || o.Complete || len(o.Gaps) != 1 || o.Gaps[0].DurationNs != 1000 || cov.Probes[0].State != want {
				t.Errorf("%+v, probe %+v", o, cov.Probes)
			}
		})
	}
}

func TestFileChanged(t *testing.T) {
	other := armed(2, "other")
	other.File = &probe.File{Match: image.Match{Path: "/bin/app", Origin: "imageLayer"}, Digest: other.File.Digest}
	st := newStage(t, armed(1, "hello"), other)
	st.Publish(st.id, 0)
	st.Checked(st.id, 6000, nil)
	st.out.lines = nil
	tr := []probe.Trouble{{Path: libPath, Reason: evidence.GapFileChanged, Detail: "copied up"}}
	st.Checked(st.id, 7000, tr)
	st.Checked(st.id, 7500, tr) // still so: no second gap
	gaps := take[*evidence.Gap](st.out)
	if len(gaps) != 1 || gaps[0].From != clock.Time(6000) || !gaps[0].To.IsZero() || gaps[0].Scope != evidence.ScopeFile || gaps[0].Path != libPath {
		t.Fatalf("gap: %+v", gaps)
	}
	obs := take[*evidence.Observation](st.out)
	if len(obs) != 1 || obs[0].State != evidence.Partial {
		t.Fatalf("lines: %+v", obs)
	}
	end, _ := st.final(t, 9000)
	if o := end["hello"]; o.State != evidence.Partial || o.Gaps[0].DurationNs != 3000 || o.Gaps[0].To != clock.Time(9000) {
		t.Errorf("final %+v", o)
	}
	if end["other"].State != evidence.ArmedNoHit {
		t.Errorf("another file of the run: %+v", end["other"])
	}
}

// A trouble that was mended by who found it is over when that was proven, and not
// with the next check: one gap line says both, and one that is open ends so too.
func TestMended(t *testing.T) {
	lost := func(since, until int64) []probe.Trouble {
		return []probe.Trouble{{Path: libPath, Reason: evidence.GapLinkLost, Detail: "killed", Since: since, Until: until}}
	}
	for name, c := range map[string]struct {
		before   []probe.Trouble // at 7000
		lost     []probe.Trouble // at 8000
		from, to int64
		lines    int
	}{
		"at once":                  {nil, lost(6500, 8100), 6500, 8100, 1},
		"after a failed attempt":   {lost(6500, 0), lost(6500, 7400), 6500, 7400, 2},
		"since the last check":     {nil, lost(0, 8100), 7000, 8100, 1},
		"before the run was armed": {nil, lost(100, 4000), 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			st := newStage(t, armed(1, "hello"))
			st.Publish(st.id, 0)
			st.out.lines = nil
			st.Checked(st.id, 7000, c.before)
			st.now = 8200
			st.Checked(st.id, 8000, c.lost)
			gaps := take[*evidence.Gap](st.out)
			if len(gaps) != c.lines {
				t.Fatalf("%d lines: %+v", len(gaps), gaps)
			}
			for _, o := range take[*evidence.Observation](st.out) {
				for _, g := range o.Gaps {
					if g.To.Std().After(o.To.Std()) {
						t.Errorf("a line up to %v tells of a gap to %v", o.To, g.To)
					}
				}
			}
			st.Checked(st.id, 9000, nil)
			if gaps := take[*evidence.Gap](st.out); len(gaps) != 0 {
				t.Errorf("the next check has something to say: %+v", gaps)
			}
			end, _ := st.final(t, 9500)
			o := end["hello"]
			if c.lines == 0 {
				if o.State != evidence.ArmedNoHit {
					t.Errorf("final %+v", o)
				}
				return
			}
			if g := gaps[len(gaps)-1]; g.From != clock.Time(c.from) || g.To != clock.Time(c.to) {
				t.Errorf("%+v", g)
			}
			if o.State != evidence.Partial || len(o.Gaps) != 1 || o.Gaps[0].DurationNs != evidence.Uint64(c.to-c.from) {
				t.Errorf("final %+v", o)
			}
		})
	}
}

func TestRingFull(t *testing.T) {
	st := newStage(t, armed(1, "hello"))
	st.Publish(st.id, 0)
	st.out.lines = nil
	st.hit(1, 9, 6000)
	st.kern.run.RingFull = 2
	st.Sweep()
	if o := take[*evidence.Observation](st.out); len(o) != 1 || o[0].State != evidence.Hit || *o[0].Count != 9 || o[0].Process != nil {
		t.Fatalf("lines: %+v", o)
	}
	if g := take[*evidence.Gap](st.out); len(g) != 1 || g[0].Reason != evidence.GapRingFull || g[0].Count.N != 2 {
		t.Fatalf("gap: %+v", g)
	}
	obs, cov := st.final(t, 9000)
	if !obs["hello"].Complete || cov.Losses.RingFull.N != 2 {
		t.Errorf("detail was lost, not a count: %+v, %+v", obs["hello"], cov.Losses)
	}
}

func TestKernelMissed(t *testing.T) {
	st := newStage(t, armed(1, "hello"))
	st.Publish(st.id, 0)
	st.kern.misses = evidence.Loss{N: 5}
	obs, cov := st.final(t, 9000)
	if obs["hello"].State != evidence.Partial || obs["hello"].Gaps[0].Reason != evidence.GapKernelMissed || cov.Losses.KernelMissed.N != 5 {
		t.Errorf("%+v %+v", obs["hello"], cov.Losses)
	}
}

func TestMissesUnknowable(t *testing.T) {
	st := newStage(t, armed(1, "hello"))
	st.kern.misses = evidence.Loss{Unknowable: true}
	st.Publish(st.id, 0)
	obs, cov := st.final(t, 9000)
	if !cov.Losses.KernelMissed.Unknowable || cov.Losses.Reason == "" || obs["hello"].Confidence.Inputs.Losses != "unknowable" {
		t.Errorf("%+v %+v", cov.Losses, obs["hello"].Confidence)
	}
}

func TestNotArmed(t *testing.T) {
	s := armed(0, "gone")
	s.Armed, s.Type, s.HasOffset, s.Reason = false, "", false, evidence.SymbolNotFound
	st := newStage(t, s)
	st.Publish(st.id, 0)
	obs, cov := st.final(t, 9000)
	o := obs["gone"]
	if o.State != evidence.NotArmed || o.Reason != evidence.SymbolNotFound || o.ProbeType != evidence.Uprobe || o.Confidence.Value != 0 || o.Count != nil || o.Offset != nil || o.Complete {
		t.Errorf("%+v", o)
	}
	if cov.Probes[0].State != evidence.NotArmed {
		t.Errorf("probe %+v", cov.Probes)
	}
}

// A hostile container runs a new path with each exec; it can fill its own set
// and nothing else, and no line grows past its bound (sink checks that).
func TestSetFull(t *testing.T) {
	s := probe.Site{Type: evidence.RawTracepoint, Armed: true, Planned: &probe.Planned{Probe: &policy.Probe{ID: "exec", Type: "tracepoint", Event: "sched:sched_process_exec"}, Requested: evidence.Tracepoint}}
	st := newStage(t, s)
	st.Publish(st.id, 0)
	for i := range 500 {
		st.kern.run.Execs++
		st.kern.run.FirstExecNs, st.kern.run.LastExecNs = 5100, 5100+int64(i)
		st.Event(bpf.Event{Kind: bpf.EventExec, Cgroup: 42, Ns: 5100 + int64(i), Pid: i, Comm: "x", Path: fmt.Sprintf("/%d/%s", i, strings.Repeat("\x01", 240))})
	}
	obs, cov := st.final(t, 9000)
	o := obs[""]
	if *o.Count != 500 || o.State != evidence.Hit || !o.Complete || o.ProbeType != evidence.RawTracepoint {
		t.Errorf("count %d state %s complete %v type %s", *o.Count, o.State, o.Complete, o.ProbeType)
	}
	if len(cov.GapReasons) != 1 || cov.GapReasons[0] != evidence.GapSetFull {
		t.Errorf("gaps %v", cov.GapReasons)
	}
}

func TestSourceGap(t *testing.T) {
	st := newStage(t)
	st.SourceLost("nri:/x", 100, "gone")
	st.SourceLost("nri:/x", 200, "gone again")
	st.SourceBack("nri:/x", 300)
	st.SourceBack("nri:/x", 400)
	g := take[*evidence.Gap](st.out)
	if len(g) != 2 || g[0].GapID != g[1].GapID || !g[0].To.IsZero() || g[1].To != clock.Time(300) || g[1].From != clock.Time(100) || g[0].Scope != evidence.ScopeSource {
		t.Fatalf("%+v", g)
	}
	st.Undecodable(errors.New("type 9"))
	if g := take[*evidence.Gap](st.out); len(g) != 1 || g[0].Reason != evidence.GapDecodeError || g[0].Scope != evidence.ScopeNode {
		t.Fatalf("%+v", g)
	}
}

func TestStop(t *testing.T) {
	st := newStage(t, armed(1, "hello"))
	st.Publish(st.id, 0)
	st.out.lines = nil
	ended := 0
	st.Stop(func() { ended++ })
	cov := take[*evidence.Coverage](st.out)
	if len(cov) != 1 || cov[0].Final || !cov[0].Ended.IsZero() || len(st.Live()) != 0 || ended != 1 {
		t.Fatalf("%+v, told %d times", cov, ended)
	}
}

// The counters are read after the cgroup was found empty, and an event may be
// handed on in between: the last line still reaches as far as any before it.
func TestLaterLinesReachFurther(t *testing.T) {
	st := newStage(t, armed(1, "hello"))
	st.Publish(st.id, 0)
	st.now = 8000
	st.hit(1, 1, 7000)
	st.Event(bpf.Event{Kind: bpf.EventHit, Cgroup: 42, Site: 1, Ns: 7000, Pid: 1, Comm: "x"})
	obs, cov := st.final(t, 7500)
	if obs["hello"].To != clock.Time(8000) || cov.To != clock.Time(8000) {
		t.Errorf("the first hit's line reached to 8000, the last ones to %v and %v", obs["hello"].To, cov.To)
	}
}

// What came of a fail policy is in the next coverage line, and in one of its own once
// there are lines; that it was not enforced, and why a container was refused, stays.
func TestFailPolicy(t *testing.T) {
	st := newStage(t, armed(1, "hello"))
	st.out.lines = nil
	said := func() string {
		lines := take[*evidence.Coverage](st.out)
		st.out.lines = nil
		if len(lines) != 1 {
			return fmt.Sprint(len(lines), " lines")
		}
		c := lines[0]
		if c.FailPolicyEnforced == nil {
			return "nothing " + c.Refused
		}
		return fmt.Sprint(*c.FailPolicyEnforced, " ", c.Refused)
	}
	st.FailPolicy(st.id, true, "")
	if got := said(); got != "0 lines" {
		t.Errorf("before the first lines: %s", got)
	}
	st.Publish(st.id, 0)
	if got := said(); got != "true " {
		t.Errorf("the first lines: %s", got)
	}
	for _, c := range []struct {
		enforced bool
		refused  string
		want     string
	}{
		{true, "late", "true late"}, {false, "", "false late"}, {true, "again", "false late"},
	} {
		st.FailPolicy(st.id, c.enforced, c.refused)
		if got := said(); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
	if _, cov := st.final(t, 9000); cov.FailPolicyEnforced == nil || *cov.FailPolicyEnforced || cov.Refused != "late" {
		t.Errorf("%+v", cov)
	}
	st.FailPolicy(st.id, true, "over") // it has ended
	st.FailPolicy("nobody", true, "")
}
