package witness

import (
	"slices"
	"strings"
	"testing"

	"probity/bpf"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/evidence/tlog"
)

// newEarlier is newStage for a run that ran before it was armed.
func newEarlier(t *testing.T, e *Earlier, sites ...probe.Site) *stage {
	st := newStage(t)
	var searches []probe.Search
	for _, s := range sites {
		searches = append(searches, probe.Search{ProbeID: s.Probe.ID, Complete: true})
	}
	st.out.lines = nil
	st.Armed(Start{Identity: st.identity, Source: "state:/run/runc", Sites: sites, Searches: searches, Arm: st.kern, Notified: 1000, ArmedAt: armedAt, Earlier: e})
	return st
}

// A run that nobody saw start: nothing of it is armedNoHit, and what is hit is no
// whole number.
func TestAdopted(t *testing.T) {
	st := newEarlier(t, &Earlier{From: 1000, Since: 1000, Reason: evidence.GapAdopted, Detail: "it ran before the agent did"}, armed(1, "hello"), armed(2, "bye"))
	st.Publish(st.id, 0)
	gaps := take[*evidence.Gap](st.out)
	if len(gaps) != 1 || gaps[0].Reason != evidence.GapAdopted || gaps[0].Scope != evidence.ScopeRun || gaps[0].From != clock.Time(1000) || gaps[0].To != clock.Time(armedAt) {
		t.Fatalf("gaps %+v", gaps)
	}
	for _, o := range take[*evidence.Observation](st.out) {
		if o.State != evidence.Partial || o.From != clock.Time(1000) {
			t.Errorf("first line: %+v", o)
		}
	}
	st.Event(bpf.Event{Kind: bpf.EventExec, Cgroup: 42, Ns: 5100, Pid: 7, Comm: "app", Path: "/bin/app"})
	st.hit(1, 3, 5200)
	obs, cov := st.final(t, 9000)
	if o := obs["hello"]; o.State != evidence.Hit || *o.Count != 3 || o.Complete || len(o.Gaps) != 1 || o.Gaps[0].Reason != evidence.GapAdopted || o.Gaps[0].DurationNs != armedAt-1000 {
		t.Errorf("hit: %+v", o)
	}
	if o := obs["bye"]; o.State != evidence.Partial || o.Complete || !o.Final {
		t.Errorf("not hit: %+v", o)
	}
	if !cov.FirstExec.IsZero() || cov.Started != clock.Time(1000) || cov.From != clock.Time(1000) || !slices.Equal(cov.GapReasons, []evidence.GapReason{evidence.GapAdopted}) {
		t.Errorf("coverage: %+v", cov)
	}
}

// A run that an earlier agent had armed: its gap, which is open, is closed, and what
// was counted stays counted.
func TestTakenUp(t *testing.T) {
	before := newStage(t, armed(1, "hello"), armed(2, "bye"), armed(3, "never"), armed(4, "other"), armed(5, "away"))
	before.Publish(before.id, 0)
	before.hit(1, 3, 5100)
	before.Event(bpf.Event{Kind: bpf.EventHit, Cgroup: 42, Site: 1, Ns: 5100, Pid: 7, Comm: "app"})
	before.hit(4, 1, 5150)
	before.Event(bpf.Event{Kind: bpf.EventHit, Cgroup: 42, Site: 4, Ns: 5150, Pid: 7, Comm: "app"})
	before.hit(5, 1, 5160)
	before.Event(bpf.Event{Kind: bpf.EventHit, Cgroup: 42, Site: 5, Ns: 5160, Pid: 7, Comm: "app"})
	before.Stood(before.id, evidence.GapStoodDown, 5200, "it had enough", 2)
	latest := map[string]*evidence.Observation{}
	for _, o := range take[*evidence.Observation](before.out) {
		latest[o.Symbol] = o
	}
	e := &Earlier{From: armedAt - 4000, Since: armedAt - 2000, Reason: evidence.GapAgentDown, GapID: "0123456789abcdef", FirstExec: armedAt - 3900, Reasons: []evidence.GapReason{evidence.GapLateAttach}}
	// The same lines by the clock of another chunk.
	shifted := evidence.Clock{BootNs: clock.BootNs - 3000, Wall: clock.Wall}
	for _, o := range latest {
		e.Sites = append(e.Sites, evidence.SiteLine{Line: o, Clock: shifted})
	}
	lost := armed(14, "other") // cannot be armed this time
	lost.Armed, lost.Reason, lost.Planned.Offset = false, evidence.AttachFailed, 0x1004
	numbered := func(id, was uint32, symbol string) probe.Site { // the kernel's numbers are other ones
		s := armed(id, symbol)
		s.Planned.Offset = 0x1000 + uint64(was)
		return s
	}
	st := newEarlier(t, e, numbered(11, 1, "hello"), numbered(12, 2, "bye"), numbered(13, 3, "never"), lost)
	st.hit(11, 2, 5300) // before anything is written
	st.Publish(st.id, 0)
	var live tlog.Live
	for _, l := range st.out.lines {
		b, err := evidence.Encode(l)
		if err != nil {
			t.Fatal(err)
		}
		if g, ok := l.(*evidence.Gap); ok && (g.GapID != e.GapID || g.From != clock.Time(e.Since) || g.To != clock.Time(armedAt)) {
			t.Errorf("gap %+v", g)
		}
		live.See(l, b)
	}
	if n, _ := live.Root(); n != 1 {
		t.Error("the run is not among those that heartbeats are over")
	}
	first := map[string]*evidence.Observation{}
	for _, o := range take[*evidence.Observation](st.out) {
		first[o.Symbol] = o
	}
	if o := first["hello"]; o == nil || o.State != evidence.Hit || *o.Count != 5 || o.Process == nil || o.Process.Pid != 7 || o.FirstAt != clock.Time(5100-3000) || o.Complete {
		t.Errorf("the hit is not carried on: %+v", o)
	}
	if first["other"] != nil || first["away"] != nil {
		t.Error("what was seen is taken back")
	}
	st.hit(11, 1, 5400)
	obs, cov := st.final(t, 9000)
	if o := obs["hello"]; *o.Count != 6 || o.LastAt != clock.Time(5400) {
		t.Errorf("at the end: %+v", o)
	}
	if o := obs["never"]; o.State != evidence.Partial || len(o.Gaps) != 1 || o.Gaps[0].Reason != evidence.GapAgentDown {
		t.Errorf("never hit: %+v", o)
	}
	o := obs["bye"]
	i := slices.IndexFunc(o.Gaps, func(g evidence.SiteGap) bool { return g.Reason == evidence.GapStoodDown })
	if o.State != evidence.Partial || i < 0 || o.Gaps[i].From != clock.Time(5200-3000) || o.Gaps[i].To != clock.Time(e.Since) {
		t.Errorf("its earlier gap: %+v", o)
	}
	if cov.FirstExec != clock.Time(armedAt-3900) || cov.From != clock.Time(armedAt-4000) || !slices.Contains(cov.GapReasons, evidence.GapLateAttach) || !slices.Contains(cov.GapReasons, evidence.GapStoodDown) {
		t.Errorf("coverage %+v", cov)
	}
	for _, p := range cov.Probes {
		want := map[string]evidence.State{"p-hello": evidence.Hit, "p-bye": evidence.Partial, "p-never": evidence.Partial, "p-other": evidence.Hit}[p.ProbeID]
		if p.State != want {
			t.Errorf("probe %s is %s, want %s", p.ProbeID, p.State, want)
		}
	}
}

// Earlier gaps of the whole run are every site's, as often as they were, and have no
// lines again.
func TestTakenUpTwice(t *testing.T) {
	e := &Earlier{
		From: armedAt - 4000, Since: armedAt - 1000, Reason: evidence.GapAgentDown, GapID: "0123456789abcdef",
		Gaps: []EarlierGap{
			{Reason: evidence.GapAdopted, From: armedAt - 4000, To: armedAt - 3500, DurationNs: 500, Count: 1},
			{Reason: evidence.GapAgentDown, From: armedAt - 3000, To: armedAt - 2000, DurationNs: 300, Count: 2},
		},
	}
	st := newEarlier(t, e, armed(1, "hello"), armed(2, "bye"))
	st.Publish(st.id, 0)
	for _, g := range take[*evidence.Gap](st.out) {
		if g.GapID != e.GapID {
			t.Errorf("a line again: %+v", g)
		}
	}
	obs, cov := st.final(t, 9000)
	for name, o := range obs {
		if o.State != evidence.Partial || len(o.Gaps) != 2 {
			t.Fatalf("%s: %+v", name, o)
		}
		a, d := o.Gaps[0], o.Gaps[1]
		if a.Reason != evidence.GapAdopted || a.From != clock.Time(armedAt-4000) || a.To != clock.Time(armedAt-3500) || a.DurationNs != 500 || a.Count.N != 1 {
			t.Errorf("%s: %+v", name, a)
		}
		if d.Reason != evidence.GapAgentDown || d.From != clock.Time(armedAt-3000) || d.To != clock.Time(armedAt) || d.DurationNs != 1300 || d.Count.N != 3 {
			t.Errorf("%s: %+v", name, d)
		}
	}
	if len(obs) != 2 || !slices.Contains(cov.GapReasons, evidence.GapAdopted) {
		t.Errorf("%d sites, coverage %+v", len(obs), cov)
	}
}

// What could not be armed again has its gap until its end, and takes nothing back.
func TestTakenUpAndNotArmed(t *testing.T) {
	st := newEarlier(t, nil)
	s := armed(1, "hello")
	s.Armed, s.Reason = false, evidence.KernelUnsupported
	st.Armed(Start{Identity: st.identity, Source: "hook", Sites: []probe.Site{s}, Searches: []probe.Search{{ProbeID: s.Probe.ID, Complete: true}}, ArmedAt: armedAt,
		Earlier: &Earlier{From: 1000, Since: 2000, Reason: evidence.GapAgentDown, GapID: "0123456789abcdef"}})
	st.Publish(st.id, 0)
	if g := take[*evidence.Gap](st.out); len(g) != 1 || !g[0].To.IsZero() {
		t.Errorf("gap %+v", g)
	}
	_, cov := st.final(t, 9000)
	if g := take[*evidence.Gap](st.out); len(g) != 1 || g[0].To != clock.Time(9000) || g[0].GapID != "0123456789abcdef" {
		t.Errorf("gap at the end %+v", g)
	}
	if cov.Probes[0].State != evidence.NotArmed {
		t.Errorf("coverage %+v", cov)
	}
}

// Of the set of system calls, those that were used before stay.
func TestTakenUpSystemCalls(t *testing.T) {
	at := clock.Time(4000)
	count := evidence.Uint64(3)
	set := probe.Site{Type: evidence.RawTracepoint, Armed: true, Planned: &probe.Planned{Set: evidence.SetSyscalls, Requested: evidence.UnknownProbe, Probe: armed(1, "calls").Probe}}
	st := newEarlier(t, &Earlier{From: 1000, Since: 4500, Reason: evidence.GapAgentDown, Sites: []evidence.SiteLine{{Clock: clock, Line: &evidence.Observation{
		ProbeID: set.Probe.ID, Set: evidence.SetSyscalls, State: evidence.Hit, Count: &count, FirstAt: at, LastAt: at,
		SystemCalls: []evidence.SystemCalls{{Arch: "x86_64", Numbers: []int{0, 1, 59}}},
	}}}}, set)
	st.Publish(st.id, 0)
	st.SystemCalls(42, SystemCalls{First: 5100, Last: 5200, Calls: []evidence.SystemCalls{{Arch: "i386", Numbers: []int{5}}, {Arch: "x86_64", Numbers: []int{1, 2}}}})
	obs, _ := st.final(t, 9000)
	o := obs[""]
	if o.State != evidence.Hit || *o.Count != 5 || o.FirstAt != at || len(o.SystemCalls) != 2 || !slices.Equal(o.SystemCalls[0].Numbers, []int{0, 1, 2, 59}) {
		t.Errorf("%+v", o)
	}
}

// Another policy was in force: a probe that has no earlier lines was not there, for all
// that is known, and does not swear to that time.
func TestTakenUpUnderAnotherPolicy(t *testing.T) {
	e := &Earlier{From: 1000, Since: 4500, Reason: evidence.GapAgentDown, GapID: "0123456789abcdef", Changed: true}
	st := newEarlier(t, e, armed(1, "hello"))
	st.Publish(st.id, 0)
	obs, cov := st.final(t, 9000)
	o := obs["hello"]
	at := slices.IndexFunc(o.Gaps, func(g evidence.SiteGap) bool { return g.Reason == evidence.GapPolicyChanged })
	if at < 0 || o.Gaps[at].From != clock.Time(1000) || o.Gaps[at].DurationNs != armedAt-1000 || o.State != evidence.Partial || !slices.Contains(cov.GapReasons, evidence.GapPolicyChanged) {
		t.Errorf("%+v, %v", o, cov.GapReasons)
	}
}

// The agent before marked a path with a token of its own, and had a hit there: which
// site that was is not known, and none that it may be says that it saw nothing then.
func TestTakenUpRedacted(t *testing.T) {
	before := redactingStage(t, "  - {id: usr, paths: [/usr/<**>]}\n", armed(1, "hello"), armed(2, "bye"))
	before.Publish(before.id, 0)
	before.hit(1, 3, 5100)
	before.Event(bpf.Event{Kind: bpf.EventHit, Cgroup: 42, Site: 1, Ns: 5100, Pid: 7, Comm: "app"})
	e := &Earlier{From: armedAt - 4000, Since: armedAt - 2000, Reason: evidence.GapAgentDown, GapID: "0123456789abcdef"}
	for _, o := range take[*evidence.Observation](before.out) {
		if o.State == evidence.Hit {
			e.Sites = append(e.Sites, evidence.SiteLine{Line: o, Clock: evidence.Clock{BootNs: clock.BootNs - 3000, Wall: clock.Wall}})
		}
	}
	for _, same := range []bool{false, true} { // the redactor, and so the key
		st := newStage(t)
		own := redactingStage(t, "  - {id: usr, paths: [/usr/<**>]}\n").runs[before.id].redact
		if same {
			own = before.runs[before.id].redact
		}
		sites := []probe.Site{armed(11, "hello"), armed(12, "bye")}
		for i := range sites {
			sites[i].Planned.Offset = 0x1001 + uint64(i)
		}
		searches := []probe.Search{{ProbeID: "p-hello", Complete: true}, {ProbeID: "p-bye", Complete: true}}
		st.out.lines = nil
		st.Armed(Start{Identity: st.identity, Source: "state:/run/runc", Sites: sites, Searches: searches, Arm: st.kern, Notified: 1000, ArmedAt: armedAt, Earlier: e, Redact: own})
		st.Publish(st.id, 0)
		obs, _ := st.final(t, 9000)
		gap := func(symbol string) evidence.Uint64 {
			o := obs[symbol]
			return o.Gaps[slices.IndexFunc(o.Gaps, func(g evidence.SiteGap) bool { return g.Reason == evidence.GapAgentDown })].DurationNs
		}
		if (obs["hello"].State == evidence.Hit) != same || (gap("hello") > 2000) == same || gap("bye") != 2000 {
			t.Errorf("same %v: %+v, %d, %d", same, obs["hello"], gap("hello"), gap("bye"))
		}
	}
}

// A run whose counters were kept: a site that went on counts what its counter has, and
// not what earlier lines say once more, and has no gap. One that did not has its own.
func TestKept(t *testing.T) {
	at := func(n int64) evidence.Time { return clock.Time(n) }
	count := evidence.Uint64(5)
	line := func(id uint32, symbol string, state evidence.State) evidence.SiteLine {
		s := armed(id, symbol)
		o := &evidence.Observation{
			RunID: "r", ProbeID: s.Probe.ID, Path: libPath, Origin: "imageLayer", FileDigest: "sha256:" + strings.Repeat("ab", 32), Symbol: symbol, State: state, Count: &count,
			FirstAt: at(2000), LastAt: at(2100), Process: &evidence.Process{Pid: 9, Comm: "first"},
		}
		offset := evidence.Uint64(s.Offset)
		o.Offset = &offset
		return evidence.SiteLine{Line: o, Clock: clock}
	}
	var sites []probe.Site
	for i, symbol := range []string{"kept", "still", "lost", "open"} {
		s := armed(uint32(i+1), symbol)
		s.Kept = symbol != "lost"
		sites = append(sites, s)
	}
	e := &Earlier{From: 1000, Since: 3000, Reason: evidence.GapAgentDown, Kept: true, FirstExec: 1100}
	open := line(4, "open", evidence.Partial) // a gap that had not ended at the kill, and that nobody finds again
	zero := evidence.Uint64(0)
	open.Line.Count, open.Line.FirstAt, open.Line.LastAt = &zero, evidence.Time{}, evidence.Time{}
	open.Line.Gaps = []evidence.SiteGap{{Reason: evidence.GapUnarmedMapping, From: at(2500), DurationNs: 500, Count: evidence.Loss{N: 1}}}
	e.Sites = []evidence.SiteLine{line(1, "kept", evidence.Hit), line(3, "lost", evidence.Hit), open}
	st := newEarlier(t, e, sites...)
	st.hit(1, 7, 3500) // five before, two while there was no agent
	st.Publish(st.id, 0)
	for _, g := range take[*evidence.Gap](st.out) {
		if g.Scope == evidence.ScopeRun || g.Symbol != "lost" || g.From != at(3000) || g.To != at(armedAt) {
			t.Errorf("gap %+v", g)
		}
	}
	st.hit(3, 1, 6000)
	obs, cov := st.final(t, 9000)
	if o := obs["kept"]; *o.Count != 7 || !o.Complete || len(o.Gaps) != 0 || o.Process == nil || o.Process.Pid != 9 {
		t.Errorf("kept: %+v", o)
	}
	if o := obs["still"]; o.State != evidence.ArmedNoHit || !o.Complete || o.From != at(1000) {
		t.Errorf("never hit: %+v", o)
	}
	if o := obs["lost"]; *o.Count != 6 || o.Complete || len(o.Gaps) != 1 || o.Gaps[0].Reason != evidence.GapAgentDown {
		t.Errorf("not kept: %+v", o)
	}
	if o := obs["open"]; o.State != evidence.Partial || len(o.Gaps) != 1 || o.Gaps[0].From != at(2500) || o.Gaps[0].To != at(armedAt) {
		t.Errorf("with an open gap: %+v", o)
	}
	if cov.FirstExec != at(1100) || cov.From != at(1000) {
		t.Errorf("%+v", cov)
	}
}
