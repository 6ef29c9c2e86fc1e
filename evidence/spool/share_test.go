package spool_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"probity/evidence"
	"probity/evidence/redact"
	"probity/evidence/spool"
	"probity/evidence/verify"
)

// entries returns a builder of n lines about entries of a set, from the i-th on.
func entries(run, from, n int) func(evidence.Clock) []redact.Line {
	return func(c evidence.Clock) []redact.Line {
		var lines []redact.Line
		for i := range n {
			one := evidence.Uint64(1)
			entry := &evidence.Entry{Device: "0:1", Inode: evidence.Uint64(from + i + 1), Access: "read"}
			o := &evidence.Observation{
				State: evidence.Hit, ProbeType: evidence.RawTracepoint, RequestedProbeType: evidence.UnknownProbe, RunID: runID(run), ContainerID: fmt.Sprintf("container-%d", run),
				Runtime: "podman", ImageDigestReason: "no image", ProbeID: "files", Set: evidence.SetFiles, Path: fmt.Sprintf("/tmp/%d/%s", from+i, strings.Repeat("x", 200)),
				Count: &one, FirstAt: c.Time(int64(c.BootNs) - 10), LastAt: c.Time(int64(c.BootNs) - 10),
				Confidence: evidence.Confidence{Version: "test", Inputs: evidence.Inputs{ProbeType: "rawTracepoint", Attribution: "cgroup", Symbol: "event", Losses: "none"}},
				Complete:   true, From: c.Time(int64(c.BootNs) - 100), To: c.Time(int64(c.BootNs)),
			}
			l := noRules.Entry(redact.Entry{Entry: entry}).Line(noRules.Line(o), o)
			o.Entry = entry
			lines = append(lines, l)
		}
		return lines
	}
}

// setLine returns a builder of the line about the set itself, which counts all
// entries.
func setLine(run, count int, final bool) func(evidence.Clock) []redact.Line {
	return func(c evidence.Clock) []redact.Line {
		o := entries(run, 0, 1)(c)[0].Evidence().(*evidence.Observation)
		n := evidence.Uint64(count)
		o.Path, o.Entry, o.Count, o.Entries, o.Final = "", nil, &n, n, final
		return []redact.Line{noRules.Line(o), coverage(run, final)(c)[0]}
	}
}

// hit returns a builder of a run's last lines: its site was executed.
func hit(run int) func(evidence.Clock) []redact.Line {
	return func(c evidence.Clock) []redact.Line {
		o := sites(run, 1, 10)(c)[0].Evidence().(*evidence.Observation)
		n := evidence.Uint64(3)
		o.State, o.Count, o.Final, o.FirstAt, o.LastAt = evidence.Hit, &n, true, c.Time(int64(c.BootNs)-50), c.Time(int64(c.BootNs)-40)
		return []redact.Line{noRules.Line(o), coverage(run, true)(c)[0]}
	}
}

func row(rep verify.Report, run int, is func(verify.Row) bool) *verify.Row {
	i := slices.IndexFunc(rep.Rows, func(r verify.Row) bool { return r.RunID == runID(run) && is(r) })
	if i < 0 {
		return nil
	}
	return &rep.Rows[i]
}

func anyRow(verify.Row) bool { return true }

// A container that makes entries without end does not push out what its neighbour
// left: not off the disk, whose quota is a fifth of what it would write, and not out
// of memory while the disk is full. What of its own is refused is signed by
// container, probe and type, with the number of lines; what it did as a whole is
// still told, and that its list is not whole.
func TestNeighbourKeepsItsEvidence(t *testing.T) {
	const victim, hostile = 1, 2
	check := func(t *testing.T, n *node, made int) {
		t.Helper()
		rep := n.report(t)
		if r := row(rep, victim, anyRow); r == nil || r.State != evidence.Hit || !r.Final || r.Count == nil || *r.Count != 3 || len(r.Gaps) != 0 {
			t.Errorf("the neighbour's evidence: %+v", r)
		}
		told, lost := 0, uint64(0)
		for _, r := range rep.Rows {
			if r.RunID == runID(hostile) && r.Entry != nil {
				told++
			}
		}
		for _, g := range rep.Gaps {
			if g.Reason != evidence.GapSpoolDropped {
				continue
			}
			if g.Scope != evidence.ScopeSite || g.RunID != runID(hostile) || g.ContainerID != "container-2" || g.ProbeID != "files" || g.ProbeType != evidence.RawTracepoint || g.To.IsZero() || g.Detail == "" {
				t.Errorf("gap %+v", g)
			}
			lost += g.Count.N
		}
		if told == 0 || lost == 0 || told+int(lost) != made {
			t.Errorf("%d entries made, %d have lines, %d are signed as lost", made, told, lost)
		}
		set := row(rep, hostile, func(r verify.Row) bool { return r.Entry == nil })
		if set == nil || set.State != evidence.Hit || *set.Count != evidence.Uint64(made) || set.Complete || !set.Final || !slices.Contains(set.Gaps, evidence.GapSpoolDropped) {
			t.Errorf("the line about the hostile container's set: %+v", set)
		}
	}
	t.Run("on the disk", func(t *testing.T) {
		n := newNode(t)
		n.cfg.Quota, n.cfg.ContainerQuota = 400_000, 100_000
		s := n.open(t)
		must(t, errors.Join(s.Append(runID(victim), hit(victim)), s.Flush(t.Context())))
		const made = 2000
		for i := range 40 {
			must(t, errors.Join(s.Append(runID(hostile), entries(hostile, 50*i, 50)), s.Flush(t.Context())))
		}
		must(t, s.Append(runID(hostile), setLine(hostile, made, true)))
		u := s.Usage()
		if len(u.Most) != 2 || u.Most[0].ContainerID != "container-2" || u.Most[0].Bytes > n.cfg.ContainerQuota*6/5 || !u.Most[0].Refused || u.Most[1].Refused || u.Dropped[spool.DroppedContainerQuota] == 0 {
			t.Errorf("%+v", u)
		}
		must(t, s.Close())
		check(t, n, made)
		if len(n.tombs(t)) != 0 {
			t.Errorf("removed: %v", n.tombs(t))
		}
		// The next agent counts what is there, and refuses what goes past it.
		s = n.open(t)
		found, err := spool.Recover(t.Context(), n.cfg.Dir, n.signer.Public(), nil)
		must(t, err)
		s.Account(found)
		s.Account(found)
		again := s.Usage()
		if len(again.Most) != 2 || again.Most[0].Bytes < n.cfg.ContainerQuota || again.Most[0].Bytes > u.Most[0].Bytes*11/10 {
			t.Errorf("after a start: %+v, before %+v", again.Most, u.Most)
		}
		must(t, errors.Join(s.Append(runID(hostile), entries(hostile, made, 1)), s.Close()))
		if g := n.report(t).Gaps; g[len(g)-1].Reason != evidence.GapSpoolDropped || g[len(g)-1].Count.N != 1 {
			t.Errorf("%+v", g)
		}
	})
	t.Run("in memory", func(t *testing.T) {
		n := newNode(t)
		n.cfg.MaxPending = 200_000
		var again []string
		n.cfg.Dropped = func(runs []string) { again = append(again, runs...) }
		s := n.open(t)
		must(t, errors.Join(s.Append(runID(9), coverage(9, true)), s.Flush(t.Context())))
		tmp := filepath.Join(n.cfg.Dir, "tmp")
		must(t, errors.Join(os.Remove(tmp), os.WriteFile(tmp, nil, 0o600))) // nothing can be written there
		must(t, s.Append(runID(victim), hit(victim)))
		ctx, cancel := contextThatEnds(t)
		defer cancel()
		if s.Flush(ctx) == nil {
			t.Fatal("the spool can still be written")
		}
		const made = 2000
		for i := range 100 {
			must(t, s.Append(runID(hostile), entries(hostile, 20*i, 20)))
			s.Seal()
		}
		must(t, s.Append(runID(hostile), setLine(hostile, made, true)))
		must(t, os.Remove(tmp))
		must(t, os.Mkdir(tmp, 0o750))
		must(t, s.Flush(t.Context()))
		if !slices.Equal(again, []string{runID(hostile)}) {
			t.Errorf("told again: %v", again)
		}
		if u := s.Usage(); u.Dropped[spool.DroppedMemory] == 0 || u.Most[0].Refused {
			t.Errorf("%+v", u)
		}
		must(t, s.Close())
		check(t, n, made)
	})
}

// However many runs a loss is of, each is named: no coverage line that came through
// stands for a hit whose line did not.
func TestLossNamesEveryRun(t *testing.T) {
	const runs = 70 // more than two chunks' worth
	n := newNode(t)
	n.cfg.MaxPending = 100_000
	s := n.open(t)
	each := func(lines func(run int) func(evidence.Clock) []redact.Line) {
		for run := 1; run <= runs; run++ {
			must(t, s.Append(runID(run), lines(run)))
		}
		s.Seal()
	}
	each(func(run int) func(evidence.Clock) []redact.Line { return sites(run, 1, 10) })
	must(t, s.Flush(t.Context()))
	tmp := filepath.Join(n.cfg.Dir, "tmp")
	must(t, errors.Join(os.Remove(tmp), os.WriteFile(tmp, nil, 0o600)))
	each(func(run int) func(evidence.Clock) []redact.Line {
		return func(c evidence.Clock) []redact.Line { return hit(run)(c)[:1] }
	})
	for i := range 30 { // push them out: many, none of which has more than its part
		must(t, s.Append(runID(200+i), sites(200+i, 3, 1000)))
		s.Seal()
	}
	must(t, errors.Join(os.Remove(tmp), os.Mkdir(tmp, 0o750)))
	each(func(run int) func(evidence.Clock) []redact.Line { return coverage(run, false) })
	must(t, errors.Join(s.Flush(t.Context()), s.Close()))
	rep := n.report(t)
	lost, all := map[string]uint64{}, uint64(0)
	for _, g := range rep.Gaps {
		switch {
		case g.Reason != evidence.GapSpoolDropped:
		case g.Scope == evidence.ScopeRun:
			lost[g.RunID] += g.Count.N
		case g.Scope == evidence.ScopeNode:
			all += g.Count.N
		}
	}
	sum := uint64(0)
	for _, c := range lost {
		sum += c
	}
	if sum != all || all < runs {
		t.Errorf("%d lines of runs are signed as lost, %d of the node", sum, all)
	}
	for run := 1; run <= runs; run++ {
		if r := row(rep, run, anyRow); lost[runID(run)] != 1 || r == nil || r.State != evidence.Partial || r.Complete || !slices.Contains(r.Gaps, evidence.GapSpoolDropped) {
			t.Fatalf("run %d: %d lines lost, and the row says %+v", run, lost[runID(run)], r)
		}
	}
}

// That lines were refused stays signed when the chunk that says so goes in its turn:
// with the quota, or out of memory.
func TestRefusedStaysSigned(t *testing.T) {
	const made = 100
	for name, memory := range map[string]bool{"with the quota": false, "out of memory": true} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.cfg.ContainerQuota, n.cfg.MaxPending = 30_000, 60_000
			if !memory {
				n.cfg.Quota = 150_000
			}
			s := n.open(t)
			must(t, errors.Join(s.Append(runID(9), coverage(9, true)), s.Flush(t.Context())))
			tmp := filepath.Join(n.cfg.Dir, "tmp")
			if memory {
				must(t, errors.Join(os.Remove(tmp), os.WriteFile(tmp, nil, 0o600)))
			}
			must(t, s.Append(runID(1), entries(1, 0, made)))
			s.Seal()
			for i := range 20 {
				must(t, s.Append(runID(10+i), sites(10+i, 10, 1000)))
				s.Seal()
				if !memory {
					must(t, s.Flush(t.Context()))
				}
			}
			if memory {
				must(t, errors.Join(os.Remove(tmp), os.Mkdir(tmp, 0o750)))
			}
			must(t, errors.Join(s.Flush(t.Context()), s.Close()))
			rep := n.report(t)
			if r := row(rep, 1, anyRow); r != nil {
				t.Fatalf("still there: %+v", r)
			}
			of, sum, node := uint64(0), uint64(0), uint64(0)
			for _, g := range rep.Gaps {
				switch {
				case g.Reason != evidence.GapSpoolDropped:
				case g.Scope == evidence.ScopeNode:
					node += g.Count.N
				default:
					sum += g.Count.N
					if g.RunID == runID(1) && g.ProbeType == evidence.RawTracepoint {
						of += g.Count.N
					}
				}
			}
			if of != made || sum != node {
				t.Errorf("of %d entries %d are signed as lost; of all runs %d, of the node %d", made, of, sum, node)
			}
		})
	}
}

// Lines that are never refused push nobody else's out of memory either: those of the
// container that has the most go first.
func TestMostGoFirst(t *testing.T) {
	n := newNode(t)
	n.cfg.MaxPending = 200_000
	s := n.open(t)
	must(t, errors.Join(s.Append(runID(9), coverage(9, true)), s.Flush(t.Context())))
	tmp := filepath.Join(n.cfg.Dir, "tmp")
	must(t, errors.Join(os.Remove(tmp), os.WriteFile(tmp, nil, 0o600)))
	must(t, s.Append(runID(1), hit(1)))
	s.Seal()
	for i := range 50 {
		must(t, s.Append(runID(2), sites(2, 10, 1000)))
		if i == 25 {
			must(t, s.Append(runID(3), hit(3))) // in the middle of it
		}
		s.Seal()
	}
	must(t, s.Append(runID(4), hit(4)))
	must(t, errors.Join(os.Remove(tmp), os.Mkdir(tmp, 0o750), s.Flush(t.Context()), s.Close()))
	rep := n.report(t)
	for _, run := range []int{1, 3, 4} {
		if r := row(rep, run, anyRow); r == nil || r.State != evidence.Hit || len(r.Gaps) != 0 {
			t.Errorf("run %d: %+v", run, r)
		}
	}
	lost := map[string]uint64{}
	for _, g := range rep.Gaps {
		if g.Reason == evidence.GapSpoolDropped && g.Scope == evidence.ScopeRun {
			lost[g.RunID] += g.Count.N
		}
	}
	// Its chunk with a neighbour's lines goes after those that are its alone.
	if lost[runID(2)] == 0 || len(lost) != 1 {
		t.Errorf("lost: %v", lost)
	}
}
