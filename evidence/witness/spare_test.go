package witness

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"probity/bpf"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/runtime/image"
)

// little is a sink that may have little room.
type little struct {
	*sink
	room bool
}

func (l *little) Thrifty(containerID string) bool { return !l.room && containerID != "" }

func newSparingStage(t *testing.T, sites ...probe.Site) (*stage, *little) {
	st := newStage(t, sites...)
	l := &little{sink: st.out, room: true}
	st.cfg.Sink = l
	st.Publish(st.id, 0)
	st.out.lines = nil
	return st, l
}

// Where there is little room, counts wait for later lines, and that is signed. What is
// new is told as ever: a first hit, a new entry, a state. When there is room again,
// and at the end, all is told that was left out.
func TestCountsWait(t *testing.T) {
	for _, then := range []string{"the next hour", "something new", "the end"} {
		st, little := newSparingStage(t, armed(1, "hello"), armed(2, "more"), setSite(evidence.SetNetwork))
		st.hit(1, 1, 6000)
		st.Entries(42, connect("192.0.2.1", 443, 6000))
		st.now = 7000
		st.Hourly()
		st.out.lines = nil
		little.room = false
		for hour := range int64(3) {
			st.hit(1, 10, 8000+hour)
			e := connect("192.0.2.1", 443, 6000)
			e.Count, e.Last = uint64(5*(hour+1)), 8000+hour
			st.Entries(42, e)
			st.now = 8000 + hour
			st.Hourly()
			obs := take[*evidence.Observation](st.out)
			obs = slices.DeleteFunc(obs, func(o *evidence.Observation) bool { return o.Set != "" && o.Entry == nil })
			if len(obs) != 0 {
				t.Fatalf("hour %d: %+v", hour, obs)
			}
			gaps := take[*evidence.Gap](st.out)
			if len(gaps) != 1 || gaps[0].Reason != evidence.GapCoalesced || gaps[0].Scope != evidence.ScopeRun || !gaps[0].To.IsZero() || gaps[0].Count.N != uint64(2*(hour+1)) {
				t.Fatalf("hour %d: gaps %+v", hour, gaps)
			}
			if cov := take[*evidence.Coverage](st.out); len(cov) != 1 || !slices.Contains(cov[0].GapReasons, evidence.GapCoalesced) {
				t.Fatalf("hour %d: %+v", hour, cov)
			}
		}
		if st.Coalesced() != 6 {
			t.Errorf("%d lines left out", st.Coalesced())
		}
		// Something new is told at once.
		st.hit(2, 1, 9000)
		st.now = 9000
		st.Event(bpf.Event{Kind: bpf.EventHit, Site: 2, Cgroup: 42, Ns: 9000, Pid: 7})
		st.Entries(42, connect("192.0.2.2", 443, 9000))
		obs := take[*evidence.Observation](st.out)
		if !slices.ContainsFunc(obs, func(o *evidence.Observation) bool { return o.Symbol == "more" && o.State == evidence.Hit }) ||
			!slices.ContainsFunc(obs, func(o *evidence.Observation) bool { return o.Entry != nil && o.Entry.Address == "192.0.2.2" }) {
			t.Errorf("new things: %+v", obs)
		}
		st.out.lines = nil
		st.now = 10000
		switch then {
		case "the next hour":
			little.room = true
			st.Hourly()
		case "something new":
			little.room = true
			st.Entries(42, connect("192.0.2.3", 443, 9500))
		case "the end":
			st.End(st.id, 10000, true)
		}
		counts := map[string]evidence.Uint64{}
		for _, o := range take[*evidence.Observation](st.out) {
			if o.Symbol != "" {
				counts[o.Symbol] = *o.Count
			} else if o.Entry != nil {
				counts[o.Entry.Address] = *o.Count
			}
			if !o.Complete {
				t.Errorf("%+v", o)
			}
		}
		if counts["hello"] != 31 || counts["192.0.2.1"] != 15 {
			t.Errorf("%s: counts at last: %v", then, counts)
		}
		gaps := take[*evidence.Gap](st.out)
		i := slices.IndexFunc(gaps, func(g *evidence.Gap) bool { return g.Reason == evidence.GapCoalesced })
		if i < 0 || gaps[i].To.IsZero() || gaps[i].Count.N != 6 {
			t.Errorf("gaps %+v", gaps)
		}
	}
}

// A container that has gaps without end costs a line in ten seconds at most, and none of them is lost.
func TestGapsAreToldTogether(t *testing.T) {
	count := func(room bool) (lines int, events uint64, o *evidence.Observation) {
		st, little := newSparingStage(t, armed(1, "hello"))
		st.hit(1, 1, 6000)
		little.room = room
		last := map[string]*evidence.Gap{}
		look := func() {
			for _, g := range take[*evidence.Gap](st.out) {
				if g.Reason == evidence.GapUnarmedMapping {
					lines++
					last[g.GapID] = g
				}
			}
		}
		st.Sweep()
		for i := range int64(1000) {
			st.now = 7000 + i*1e8 // 100 seconds
			st.UnarmedMapping(st.id, libPath, st.now-10, st.now, "by a test")
			look()
		}
		st.now += 1e9
		st.End(st.id, st.now, true)
		for _, l := range take[*evidence.Observation](st.out) {
			o = l
		}
		look()
		for id, g := range last {
			if g.To.IsZero() {
				t.Errorf("gap %s is open", id)
			}
			events += g.Count.N
		}
		return lines, events, o
	}
	many, events, free := count(true)
	few, sameEvents, spared := count(false)
	t.Logf("%d lines, and %d where there is little room", many, few)
	if many < 200 || few > many/20 || events != 1000 || sameEvents != 1000 {
		t.Errorf("%d lines about %d gaps; with little room %d about %d", many, events, few, sameEvents)
	}
	if spared.State != evidence.Hit || spared.Complete || len(spared.Gaps) != 1 || spared.Gaps[0].Count != free.Gaps[0].Count || spared.Gaps[0].DurationNs != free.Gaps[0].DurationNs || spared.Gaps[0].From != free.Gaps[0].From {
		t.Errorf("at the end %+v\nand with room %+v", spared, free)
	}
}

// A container whose many files change and are well again, all the time, writes no more
// than one that has few: while there is little room the lines about it wait, and past a
// number of files that are told apart one gap of the run stands for all others.
func TestManyFilesThatChange(t *testing.T) {
	const files, rounds = 3 * maxGapFiles, 20
	var sites []probe.Site
	var troubles []probe.Trouble
	for i := range files {
		path := fmt.Sprintf("/usr/lib/lib%d.so", i)
		s := armed(uint32(i+1), "hello")
		f, p := *s.File, *s.Planned
		f.Match = image.Match{Path: path, Origin: image.FromLayer}
		p.File = &f
		s.Planned = &p
		sites = append(sites, s)
		troubles = append(troubles, probe.Trouble{Path: path, Reason: evidence.GapFileChanged, Detail: "changed"})
	}
	st := newStage(t, sites...)
	st.runs[st.id].searches = st.runs[st.id].searches[:1]
	st.cfg.Sink = &little{sink: st.out}
	st.Publish(st.id, 0)
	st.out.lines = nil
	round := func() {
		st.now += 5e9
		st.Checked(st.id, st.now, troubles)
		st.now += 5e9
		st.Checked(st.id, st.now, nil)
	}
	round()
	if gaps := take[*evidence.Gap](st.out); len(gaps) > 2*(maxGapFiles+2) {
		t.Errorf("%d gap lines of %d files", len(gaps), files)
	}
	partial := map[string]bool{} // all are
	for _, o := range take[*evidence.Observation](st.out) {
		if o.State == evidence.Partial {
			partial[o.Path] = true
		}
	}
	if len(partial) != files {
		t.Errorf("%d of %d sites are partial", len(partial), files)
	}
	for range rounds {
		round()
	}
	if n := len(st.out.lines); n > 4*rounds {
		t.Errorf("%d lines in %d rounds", n, rounds)
	}
	st.out.lines = nil
	// A hit is told at once, and of a site that has been looked at and found to have
	// nothing new to say.
	st.hit(files, 1, st.now)
	st.Event(bpf.Event{Kind: bpf.EventHit, Site: files, Cgroup: 42, Ns: st.now, Pid: 7})
	if obs := take[*evidence.Observation](st.out); !slices.ContainsFunc(obs, func(o *evidence.Observation) bool { return o.State == evidence.Hit && o.Path == troubles[files-1].Path }) {
		t.Errorf("the hit is not told: %d lines", len(obs))
	}
	st.Checked(st.id, st.now, troubles)
	st.now++
	st.End(st.id, st.now, true)
	obs := 0
	for _, o := range take[*evidence.Observation](st.out) {
		if o.Final {
			obs++
		}
	}
	for _, g := range take[*evidence.Gap](st.out) {
		if g.Scope == evidence.ScopeRun && g.Reason == evidence.GapFileChanged && g.To.IsZero() {
			t.Errorf("the gap that stands for all is open at the end: %+v", g)
		}
	}
	if obs != files {
		t.Errorf("%d last lines of %d sites", obs, files)
	}
}

// A container whose late sites have names as long as they like has no more of them
// than the bound on all names lets it, and its search says so. A site that is known is
// followed past the bound.
func TestLongNamesAreBounded(t *testing.T) {
	st := newStage(t, armed(1, "hello"))
	st.Publish(st.id, 0)
	r := st.runs[st.id]
	probeID := r.sites[0].Probe.ID
	long := strings.Repeat("x", 4000)
	var late []probe.Site
	for i := range 2 * maxNameBytes / len(long) {
		s := armed(uint32(i+2), "hello")
		p := *s.Planned
		p.Symbol, p.Offset = long, uint64(i+100)
		s.Planned, s.Armed, s.Reason = &p, false, evidence.AttachFailed
		late = append(late, s)
	}
	st.Add(st.id, late, nil, st.now, evidence.GapUnarmedMapping)
	if r.names > maxNameBytes || len(r.sites) < len(late)/3 || len(r.sites) > len(late)*2/3 {
		t.Errorf("%d of %d sites are kept, with %d bytes of names", len(r.sites), len(late), r.names)
	}
	i := slices.IndexFunc(r.searches, func(s probe.Search) bool { return s.ProbeID == probeID })
	if i < 0 || r.searches[i].Complete {
		t.Errorf("%+v", r.searches)
	}
	again := late[0]
	again.Armed, again.Reason = true, ""
	st.Add(st.id, []probe.Site{again}, nil, st.now, evidence.GapUnarmedMapping)
	if !slices.ContainsFunc(r.sites, func(s site) bool { return s.Armed && s.ID == again.ID }) {
		t.Error("a site that is known is not followed any more")
	}
}
