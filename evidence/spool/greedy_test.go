package spool_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"probity/evidence"
	"probity/evidence/redact"
	"probity/evidence/spool"
	"probity/evidence/verify"
)

// opensAndCloses returns a builder of what n sites of a run say when a gap of each
// opens and closes again: lines that are never refused.
func opensAndCloses(run, round, n int) func(evidence.Clock) []redact.Line {
	return func(c evidence.Clock) []redact.Line {
		lines := sites(run, n, 200)(c)
		for i := range n {
			lines = append(lines, noRules.Lines(&evidence.Gap{
				GapID: fmt.Sprintf("fileChanged-%d-%d", round, i), Scope: evidence.ScopeSite, Reason: evidence.GapFileChanged, From: c.Time(int64(c.BootNs) - 50), To: c.Time(int64(c.BootNs) - 40),
				RunID: runID(run), ContainerID: fmt.Sprintf("container-%d", run), ProbeID: "p", ProbeType: evidence.Uprobe, Detail: strings.Repeat("x", 100),
			})...)
		}
		return lines
	}
}

// nodeGap builds a gap of the node's, which concerns all of its containers.
func nodeGap(c evidence.Clock) []redact.Line {
	return noRules.Lines(&evidence.Gap{GapID: "agentDown-1", Scope: evidence.ScopeNode, Reason: evidence.GapAgentDown, From: c.Time(int64(c.BootNs) - 50), To: c.Time(int64(c.BootNs) - 40)})
}

// A container whose sites and gaps alone, which are never refused, come to more than
// the whole quota: what goes for it is its own, and not what its neighbours left
// before, nor what they say meanwhile. Its newest lines stay, and what went is signed.
func TestGreedyGoesFirst(t *testing.T) {
	const hostile, rounds, each = 2, 40, 20
	for name, restart := range map[string]bool{"in one life": false, "after a start": true} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.cfg.Quota, n.cfg.ContainerQuota = 400_000, 100_000
			s := n.open(t)
			must(t, errors.Join(s.Append(runID(100), hit(100)), s.Flush(t.Context())))
			for i := range rounds {
				if restart && i == rounds/2 {
					must(t, s.Close())
					s = n.open(t)
					found, err := spool.Recover(t.Context(), n.cfg.Dir, n.signer.Public(), nil)
					must(t, err)
					s.Account(found)
				}
				must(t, errors.Join(s.Append(runID(hostile), opensAndCloses(hostile, i, each)), s.Flush(t.Context())))
				if i == 15 { // the node's, in the middle of it
					must(t, errors.Join(s.Append(runID(hostile), opensAndCloses(hostile, 2000, 5)), s.Append("", nodeGap), s.Flush(t.Context())))
				}
				if i%10 == 5 { // a neighbour's in a chunk of its own, and one in the middle of the flood
					must(t, errors.Join(s.Append(runID(101+i), hit(101+i)), s.Flush(t.Context())))
					must(t, errors.Join(s.Append(runID(201+i), hit(201+i)), s.Append(runID(hostile), opensAndCloses(hostile, 1000+i, 2)), s.Flush(t.Context())))
				}
			}
			if u := s.Usage(); u.Bytes > n.cfg.Quota {
				t.Errorf("%+v", u)
			}
			must(t, s.Close())
			rep := n.report(t)
			neighbours := []int{100}
			for i := 5; i < rounds; i += 10 {
				neighbours = append(neighbours, 101+i, 201+i)
			}
			for _, run := range neighbours {
				if r := row(rep, run, anyRow); r == nil || r.State != evidence.Hit || !r.Final || r.Count == nil || *r.Count != 3 || len(r.Gaps) != 0 {
					t.Errorf("the neighbour %d: %+v", run, r)
				}
			}
			lost := map[string]uint64{}
			for _, g := range rep.Gaps {
				if g.Reason == evidence.GapSpoolDropped && g.Scope == evidence.ScopeRun {
					lost[g.RunID] += g.Count.N
				}
			}
			if !slices.ContainsFunc(rep.Gaps, func(g verify.GapRow) bool { return g.GapID == "agentDown-1" }) {
				t.Error("the node's gap is not there")
			}
			if len(lost) != 1 || lost[runID(hostile)] == 0 {
				t.Errorf("lines lost: %v", lost)
			}
			if row(rep, hostile, anyRow) == nil {
				t.Error("the container's newest lines are not there")
			}
		})
	}
}
