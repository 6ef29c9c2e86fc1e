package witness

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/evidence"
)

// forFile is an armed site of a probe with a target of its own.
func forFile(id uint32, p policy.Probe, path string) probe.Site {
	s := late(id, p.ID, path)
	s.Probe = &p
	return s
}

// A gap of a file of which no site is armed is one of each probe that may be for
// it: what was executed there is not what was armed.
func TestGapOfAFileWithoutASite(t *testing.T) {
	none := armed(0, "none")
	none.Planned = &probe.Planned{Probe: &policy.Probe{ID: "none", Type: "uprobe", File: "/opt/*"}, Requested: evidence.Uprobe}
	none.Armed, none.Reason = false, evidence.FileNotFound
	for _, c := range []struct {
		path string
		want map[string]evidence.State
	}{
		{"/opt/tool", map[string]evidence.State{"copies": evidence.Partial, "glob": evidence.ArmedNoHit, "none": evidence.NotArmed}},
		{"/usr/lib/y/libx.so", map[string]evidence.State{"copies": evidence.Partial, "glob": evidence.Partial, "none": evidence.NotArmed}},
		{"/lib/libx.so", map[string]evidence.State{"copies": evidence.Partial, "glob": evidence.Partial, "none": evidence.NotArmed}},
		{"", map[string]evidence.State{"copies": evidence.Partial, "glob": evidence.Partial, "none": evidence.NotArmed}},
	} {
		st := newStage(t, forFile(1, policy.Probe{ID: "copies", BuildID: "00"}, "/bin/target"), forFile(2, policy.Probe{ID: "glob", File: "/lib/libx.so"}, "/lib/libx.so"), none)
		st.Publish(st.id, 0)
		for range 3 {
			st.UnarmedMapping(st.id, c.path, 6000, 0, "there was no time to look at it")
		}
		_, cov := st.final(t, 9000)
		for _, p := range cov.Probes {
			if p.State != c.want[p.ProbeID] {
				t.Errorf("%q: %s is %s, want %s", c.path, p.ProbeID, p.State, c.want[p.ProbeID])
			}
		}
		for _, g := range take[*evidence.Gap](st.out) {
			if g.Count.N != 3 {
				t.Errorf("%q: %+v", c.path, g)
			}
		}
	}
	// None of the probes may be for it, and whoever says so knows better.
	st := newStage(t, forFile(1, policy.Probe{ID: "glob", File: "/lib/libx.so"}, "/lib/libx.so"))
	st.Publish(st.id, 0)
	st.UnarmedMapping(st.id, "/opt/tool", 6000, 0, "there was no time to look at it")
	if _, cov := st.final(t, 9000); cov.Probes[0].State != evidence.Partial {
		t.Errorf("%+v", cov.Probes)
	}
}

// Whatever happens to a run: a reason for which something was not covered never
// stands beside probes of which all were, and no probe that may be for a file
// that was run unarmed swears that nothing was executed.
func TestGapsAreSomebodys(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	targets := []policy.Probe{{BuildID: "00"}, {Library: "libx.so"}, {Program: "tool"}, {File: "/opt/*"}, {File: "/lib/libx.so"}, {File: "/{bin,opt}/tool"}, {}}
	paths := []string{"/lib/libx.so", "/usr/lib/libx.so", "/opt/tool", "/bin/tool", "tool", "/data/other"}
	reasons := []evidence.GapReason{evidence.GapFileChanged, evidence.GapLinkLost, evidence.GapUnarmedMapping}
	affected, armedNoHit := 0, 0
	for range 2000 {
		var sites []probe.Site
		for i := range 1 + r.IntN(4) {
			p := targets[r.IntN(len(targets))]
			p.ID = fmt.Sprint("p", i)
			for range 1 + r.IntN(2) {
				sites = append(sites, forFile(uint32(len(sites)+1), p, paths[r.IntN(len(paths))]))
			}
		}
		st := newStage(t, sites...)
		st.Publish(st.id, int64(r.IntN(8)/7)*4000)
		var unarmed []string
		for range r.IntN(3) {
			st.now += int64(r.IntN(1000))
			s := sites[r.IntN(len(sites))]
			path := paths[r.IntN(len(paths))]
			switch r.IntN(8) {
			case 0, 1, 2:
				unarmed = append(unarmed, path)
				st.UnarmedMapping(st.id, path, st.now-10, int64(r.IntN(2))*st.now, "")
			case 3:
				st.Checked(st.id, st.now, []probe.Trouble{{Path: s.File.Match.Path, Reason: reasons[r.IntN(len(reasons))]}})
				st.Checked(st.id, st.now, nil)
			case 4:
				st.Add(st.id, []probe.Site{forFile(uint32(100+r.IntN(100)), *s.Probe, path)}, nil, st.now-10, reasons[r.IntN(len(reasons))])
			case 5:
				st.AttributionLost(st.id, 1, st.now, "")
			case 6:
				st.Stood(st.id, evidence.GapStoodDown, st.now, "", s.ID)
			case 7: // which costs detail only
				st.kern.run.RingFull++
				st.Sweep()
			}
		}
		_, cov := st.final(t, st.now+1000)
		all := !slices.ContainsFunc(cov.Probes, func(p evidence.ProbeFold) bool { return p.State != evidence.ArmedNoHit })
		for _, reason := range cov.GapReasons {
			if all && !reason.DetailOnly() {
				t.Fatalf("gap %s, and %+v", reason, cov.Probes)
			}
		}
		for i := range sites {
			p := sites[i].Probe
			for _, path := range unarmed {
				j := slices.IndexFunc(cov.Probes, func(f evidence.ProbeFold) bool { return f.ProbeID == p.ID })
				if p.MayBe(path) && cov.Probes[j].State == evidence.ArmedNoHit {
					t.Fatalf("%s ran unarmed, and of %+v it is said that nothing was executed: %+v", path, p, cov)
				}
			}
		}
		if all {
			armedNoHit++
		} else {
			affected++
		}
	}
	if armedNoHit < 100 || affected < 100 {
		t.Errorf("%d runs without a gap, %d with one: the generator is no good", armedNoHit, affected)
	}
}

// Of an execve whose news was dropped nobody knows what file it was: that is no
// loss of detail only, but for probes on the kernel.
func TestExecsLost(t *testing.T) {
	kernel := kernelSite(2, "do_exit", evidence.Kprobe, evidence.Kprobe)
	st := newStage(t, forFile(1, policy.Probe{ID: "glob", File: "/lib/libx.so"}, "/lib/libx.so"), kernel)
	st.Publish(st.id, 0)
	st.out.lines = nil
	for range 2 {
		st.kern.run.RingFull += 3
		st.kern.run.ExecsLost += 2
		st.now += 1000
		st.Sweep()
	}
	_, cov := st.final(t, 90000)
	for _, p := range cov.Probes {
		if want := map[bool]evidence.State{true: evidence.Partial, false: evidence.ArmedNoHit}[p.ProbeID == "glob"]; p.State != want {
			t.Errorf("%s: %s", p.ProbeID, p.State)
		}
	}
	last := map[evidence.GapReason]uint64{}
	for _, g := range take[*evidence.Gap](st.out) {
		last[g.Reason] = g.Count.N
	}
	if last[evidence.GapUnarmedMapping] != 4 || last[evidence.GapRingFull] != 6 {
		t.Errorf("%+v", last)
	}
}

// Of what could not be read nobody knows whether it was executed.
func TestUnreadable(t *testing.T) {
	gone := errors.New("no such element")
	for name, c := range map[string]struct {
		bad         func(*fakeKernel)
		again       bool // it can be read later
		hello, more evidence.State
	}{
		"a counter":                         {func(k *fakeKernel) { k.bad = map[uint32]error{1: gone} }, false, evidence.Partial, evidence.ArmedNoHit},
		"a counter that can be read later":  {func(k *fakeKernel) { k.bad = map[uint32]error{1: gone} }, true, evidence.Hit, evidence.ArmedNoHit},
		"the run":                           {func(k *fakeKernel) { k.runBad = gone }, false, evidence.Hit, evidence.Partial},
		"the run, which can be read later":  {func(k *fakeKernel) { k.runBad = gone }, true, evidence.Hit, evidence.Partial},
		"nothing that could not be counted": {func(*fakeKernel) {}, false, evidence.Hit, evidence.ArmedNoHit},
	} {
		st := newStage(t, armed(1, "hello"), armed(2, "more"))
		st.Publish(st.id, 0)
		c.bad(st.kern)
		for range 3 {
			st.now += 1000
			st.Hourly()
		}
		if c.again {
			st.kern.bad, st.kern.runBad = nil, nil
		}
		st.hit(1, 3, st.now)
		obs, cov := st.final(t, 90000)
		if obs["hello"].State != c.hello || obs["more"].State != c.more {
			t.Errorf("%s: %s, %s", name, obs["hello"].State, obs["more"].State)
		}
		if got := slices.Contains(cov.GapReasons, evidence.GapLinkLost); got != (c.hello == evidence.Partial || c.again || c.more == evidence.Partial) {
			t.Errorf("%s: %v", name, cov.GapReasons)
		}
	}
	var many []probe.Site
	for i := range uint32(100) {
		many = append(many, armed(i+1, fmt.Sprint("f", i)))
	}
	st := newStage(t, many...)
	st.Publish(st.id, 0)
	st.kern.bad = map[uint32]error{}
	for i := range uint32(100) {
		st.kern.bad[i+1] = gone
	}
	st.out.lines = nil
	st.Hourly()
	if n := len(take[*evidence.Gap](st.out)); n == 0 || n > 2*maxUnread {
		t.Errorf("%d gaps", n)
	}
	if obs, _ := st.final(t, 90000); obs["f99"].State != evidence.Partial {
		t.Errorf("%+v", obs["f99"])
	}
}

// A set that could not be read is not complete.
func TestUnreadSet(t *testing.T) {
	st := newStage(t, setSite(evidence.SetNetwork))
	st.Publish(st.id, 0)
	st.Unread(42, errors.New("no such element"))
	st.out.lines = nil
	st.End(st.id, 9000, true)
	for _, o := range take[*evidence.Observation](st.out) {
		if o.Complete || o.State == evidence.ArmedNoHit {
			t.Errorf("%+v", o)
		}
	}
}
