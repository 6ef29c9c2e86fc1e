package spool_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"probity/evidence"
	"probity/evidence/verify"
	"probity/tests/schemas"
)

// tombs returns the reasons of the tombstones in the current log, by chunk.
func (n *node) tombs(t testing.TB) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, l := range n.logs(t)[0].leaves {
		if v, ok := l.(*evidence.TombstoneLeaf); ok {
			out[v.Chunk] = v.Reason
		}
	}
	return out
}

func (n *node) report(t testing.TB) verify.Report {
	t.Helper()
	rep, err := verify.Path(t.Context(), []string{n.cfg.Dir}, n.signer.Public(), verify.Options{})
	if err != nil || !rep.Sound() || rep.Log != verify.LogSound {
		t.Fatalf("log %s: %v %v", rep.Log, rep.Findings, err)
	}
	schemas.Spool(t, n.cfg.Dir)
	return rep
}

// Past the quota the oldest chunks go: with a tombstone, and a gap for each run and
// probe type. What is left verifies, and says what is not there.
func TestQuota(t *testing.T) {
	n := newNode(t)
	n.cfg.Quota = 200_000
	s := n.open(t)
	for i := range 40 {
		must(t, errors.Join(s.Append(runID(i+1), sites(i+1, 10, 1000)), s.Flush(t.Context())))
	}
	if u := s.Usage(); u.Bytes > n.cfg.Quota || u.Chunks != len(n.ready(t)) {
		t.Errorf("used: %+v, %d chunks are there", u, len(n.ready(t)))
	}
	must(t, s.Close())
	rep := n.report(t)
	tombs := n.tombs(t)
	if len(tombs) == 0 || rep.Logs[0].Removed != len(tombs) || rep.Logs[0].Chunks != len(tombs)+len(n.ready(t)) {
		t.Errorf("%d tombstones, the report has %+v", len(tombs), rep.Logs[0])
	}
	// Behind each removal the log says at once how much went with it.
	removed, said := 0, uint64(0)
	leaves := n.logs(t)[0].leaves
	for i, l := range leaves {
		if _, ok := l.(*evidence.TombstoneLeaf); !ok {
			continue
		}
		removed++
		switch next := leaves[i+1].(type) {
		case *evidence.TombstoneLeaf:
		case *evidence.GapLeaf:
			if next.Reason != evidence.GapSpoolDropped || next.Count.N < 10 || !strings.Contains(next.Detail, "quota") {
				t.Errorf("gap leaf %+v", next)
			}
			said += next.Count.N
		default:
			t.Errorf("a tombstone, and then %T", next)
		}
	}
	if removed != len(tombs) || said == 0 {
		t.Errorf("%d tombstones, the log says that %d lines are lost", removed, said)
	}
	lost := map[string]uint64{}
	for _, g := range rep.Gaps {
		if g.Reason == evidence.GapSpoolDropped && g.Scope == evidence.ScopeRun && g.ProbeType == evidence.Uprobe {
			lost[g.RunID] += g.Count.N
		}
	}
	present := map[string]bool{}
	for _, r := range rep.Rows {
		present[r.RunID] = true
	}
	for i := range 40 {
		if id := runID(i + 1); present[id] == (lost[id] != 0) || lost[id] != 0 && lost[id] != 10 {
			t.Errorf("run %d: present %v, %d lines signed as lost", i+1, present[id], lost[id])
		}
	}
	var nodes uint64
	for _, g := range rep.Gaps {
		if g.Reason == evidence.GapSpoolDropped && g.Scope == evidence.ScopeNode {
			nodes += g.Count.N
		}
	}
	if said < nodes {
		t.Errorf("the log says that %d lines are lost, the chunks %d", said, nodes)
	}
	if want := uint64(10 * len(lost)); nodes != want {
		t.Errorf("%d lines are signed as lost of the node, %d of its runs", nodes, want)
	}
	// The next start counts the same.
	s = n.open(t)
	if u := s.Usage(); u.Chunks != len(n.ready(t)) || u.Bytes == 0 {
		t.Errorf("after a start: %+v", u)
	}
}

// What every consumer has acknowledged goes first, and nothing is lost by it.
func TestQuotaTakesAcknowledged(t *testing.T) {
	n := newNode(t)
	n.cfg.Quota = 300_000
	s := n.open(t)
	one := reader(t, n, "one")
	for i := range 60 {
		must(t, errors.Join(s.Append(runID(i+1), sites(i+1, 10, 1000)), s.Flush(t.Context())))
		items := pending(t, one)
		_, err := one.Ack(t.Context(), items[len(items)-1])
		must(t, err)
	}
	must(t, s.Close())
	rep := n.report(t)
	for chunk, why := range n.tombs(t) {
		if why != evidence.TombstoneAcknowledged {
			t.Errorf("%s was removed: %s", chunk, why)
		}
	}
	if len(n.tombs(t)) == 0 || len(rep.Gaps) != 0 {
		t.Errorf("%d tombstones, gaps %+v", len(n.tombs(t)), rep.Gaps)
	}
}

// Only what all consumers have is collected; and an acknowledgement that the log
// does not bear out counts for nothing.
func TestCollect(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	for i := range 5 {
		n.publish(t, s, i+1, true)
	}
	collect := func(want int) {
		t.Helper()
		if got, err := s.Collect(t.Context()); err != nil || got != want {
			t.Errorf("collected %d, %v; want %d", got, err, want)
		}
	}
	collect(0) // nobody has anything
	one, two := reader(t, n, "one"), reader(t, n, "two")
	items := pending(t, one)
	_, err := one.Ack(t.Context(), items[3])
	must(t, err)
	_, err = two.Ack(t.Context(), items[1])
	must(t, err)
	collect(2)
	if left := pending(t, two); len(left) != 3 || len(n.ready(t)) != 3 {
		t.Errorf("left: %+v", left)
	}
	_, err = two.Ack(t.Context(), items[3])
	must(t, err)
	bad := filepath.Join(n.cfg.Dir, verify.AckDir, "bad.json")
	for _, text := range []string{"x", fmt.Sprintf(`{"consumer":"bad","origin":%q,"size":"99","root":%q,"at":"2026-01-02T03:04:05.000000000Z"}`, items[0].Origin, n.logs(t)[0].tree.Root)} {
		must(t, os.WriteFile(bad, []byte(text), 0o600))
		collect(0)
	}
	must(t, os.Remove(bad))
	collect(2)
	must(t, s.Close())
	if rep := n.report(t); rep.Logs[0].Removed != 4 || rep.Chunks != 1 || len(rep.Gaps) != 0 {
		t.Errorf("%+v", rep.Logs[0])
	}
}

// A chunk of an earlier log that the quota takes has its tombstone in this one.
func TestQuotaAcrossLogs(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	for i := range 4 {
		must(t, errors.Join(s.Append(runID(i+1), sites(i+1, 10, 1000)), s.Flush(t.Context())))
	}
	must(t, errors.Join(s.Close(), os.RemoveAll(n.cfg.State)))
	n.cfg.Quota = 30_000
	s = n.open(t)
	must(t, errors.Join(s.Append(runID(9), sites(9, 10, 1000)), s.Flush(t.Context()), s.Close()))
	rep := n.report(t)
	if len(rep.Logs) != 2 || rep.Logs[0].Removed+rep.Logs[1].Removed != 4 {
		t.Errorf("%+v", rep.Logs)
	}
}

// A disk without room: the room that was kept is enough to sign what was lost.
func TestFullDiskLoses(t *testing.T) {
	n := newNode(t)
	must(t, os.MkdirAll(n.cfg.Dir, 0o755))
	mountTmpfs(t, n.cfg.Dir, "size=8m")
	n.cfg.MaxPending = 1 << 20
	s := n.open(t)
	for i := range 200 {
		_ = s.Append(runID(i+1), sites(i+1, 20, 3000))
		s.Seal()
		if i%5 == 4 {
			ctx, cancel := contextThatEnds(t)
			_ = s.Flush(ctx)
			cancel()
		}
	}
	must(t, s.Flush(t.Context()))
	must(t, s.Close())
	if len(n.logs(t)) != 1 {
		t.Errorf("%d logs: the full disk cost the log", len(n.logs(t)))
	}
	if e := n.logs(t)[0].epochs(); len(e) != 1 {
		t.Errorf("epochs %v", e)
	}
	rep := n.report(t)
	var quota int
	for _, why := range n.tombs(t) {
		if why == evidence.TombstoneQuota {
			quota++
		}
	}
	if quota == 0 || !strings.Contains(fmt.Sprint(rep.Gaps), "the disk is full") {
		t.Errorf("%d tombstones, gaps %+v", quota, rep.Gaps)
	}
	if rep.Rows[len(rep.Rows)-1].RunID != runID(200) {
		t.Error("the newest is not there")
	}
}
