package verify_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/verify"
)

// What a file of the greatest size can cost: every line of it wrong.
func TestFindingsAreBounded(t *testing.T) {
	header, _, _ := strings.Cut(string(vectorBytes(t)), "\n")
	for _, filler := range []string{"\n", "{}\n", "{\"kind\":\"observation\"\n"} {
		data := []byte(header + "\n" + strings.Repeat(filler, (evidence.MaxChunkBytes-2<<10)/len(filler)))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		c, findings := verify.Bytes("f", data, signer(t).Public())
		runtime.ReadMemStats(&after)
		if c != nil || len(findings) == 0 || len(findings) > 32 {
			t.Fatalf("%q: %d findings", filler, len(findings))
		}
		if used := (after.TotalAlloc - before.TotalAlloc) >> 20; used > 32 {
			t.Errorf("%q: %d MiB for 8 MiB", filler, used)
		}
	}
}

// shortRun is one of the vector's runs with its idle site.
type shortRun struct {
	cover *evidence.Coverage
	site  *evidence.Observation
}

func newShortRun(t *testing.T) shortRun {
	_, lines := vectorLines(t)
	return shortRun{lines[4].(*evidence.Coverage), lines[5].(*evidence.Observation)}
}

func (r shortRun) at(d time.Duration) evidence.Time {
	return evidence.TimeOf(r.site.To.Std().Add(d))
}

// covered is a coverage line up to d after the site's line.
func (r shortRun) covered(d time.Duration) *evidence.Coverage {
	c := *r.cover
	c.To = r.at(d)
	return &c
}

func (r shortRun) gap(id string, reason evidence.GapReason, from, to time.Duration) *evidence.Gap {
	g := &evidence.Gap{GapID: id, Scope: evidence.ScopeRun, Reason: reason, From: r.at(from), RunID: r.site.RunID, ContainerID: r.site.ContainerID}
	if to != 0 {
		g.To = r.at(to)
	}
	return g
}

// A row says what later lines say of its site: a window is not extended over a
// gap, and a gap within it is one.
func TestLaterGaps(t *testing.T) {
	r := newShortRun(t)
	otherFile := r.gap("g", evidence.GapFileChanged, time.Second, 0)
	otherFile.Scope, otherFile.Path = evidence.ScopeFile, "/another"
	thisFile := r.gap("g", evidence.GapFileChanged, time.Second, 0)
	thisFile.Scope, thisFile.Path = evidence.ScopeFile, r.site.Path
	otherRun := r.gap("g", evidence.GapAgentDown, time.Second, 0)
	otherRun.RunID = strings.Repeat("0", 32)
	for _, c := range []struct {
		why   string
		later []evidence.Line
		state evidence.State
		to    time.Duration
		gaps  []evidence.GapReason
	}{
		{"no gap", []evidence.Line{r.covered(9 * time.Second)}, evidence.ArmedNoHit, 9 * time.Second, nil},
		{"the agent was killed", []evidence.Line{r.covered(0), r.gap("g", evidence.GapAgentDown, 0, 0)}, evidence.ArmedNoHit, 0, []evidence.GapReason{evidence.GapAgentDown}},
		{"covered over an open gap", []evidence.Line{r.gap("g", evidence.GapAgentDown, time.Second, 0), r.covered(9 * time.Second)}, evidence.ArmedNoHit, time.Second, []evidence.GapReason{evidence.GapAgentDown}},
		{"covered over a closed gap", []evidence.Line{r.covered(9 * time.Second), r.gap("g", evidence.GapSuspended, 2*time.Second, 3*time.Second)}, evidence.ArmedNoHit, 2 * time.Second, []evidence.GapReason{evidence.GapSuspended}},
		{"a gap found out later", []evidence.Line{r.gap("g", evidence.GapKernelMissed, -time.Nanosecond, time.Second)}, evidence.Partial, 0, []evidence.GapReason{evidence.GapKernelMissed}},
		{"lines dropped", []evidence.Line{r.gap("g", evidence.GapSpoolDropped, -time.Nanosecond, time.Second), r.covered(9 * time.Second)}, evidence.Partial, 0, []evidence.GapReason{evidence.GapSpoolDropped}},
		{"lines dropped, perhaps the one with the hit", []evidence.Line{r.covered(9 * time.Second), r.gap("g", evidence.GapSpoolDropped, 2*time.Second, 3*time.Second)}, evidence.Partial, 2 * time.Second, []evidence.GapReason{evidence.GapSpoolDropped}},
		{"lines dropped that this one superseded", []evidence.Line{r.gap("g", evidence.GapSpoolDropped, -time.Second, -time.Nanosecond), r.covered(9 * time.Second)}, evidence.ArmedNoHit, 9 * time.Second, []evidence.GapReason{evidence.GapSpoolDropped}},
		{"lines left out", []evidence.Line{r.gap("g", evidence.GapCoalesced, time.Second, 0), r.covered(9 * time.Second)}, evidence.ArmedNoHit, 9 * time.Second, []evidence.GapReason{evidence.GapCoalesced}},
		{"lines left out, and told", []evidence.Line{r.gap("g", evidence.GapCoalesced, time.Second, 3*time.Second), r.covered(9 * time.Second)}, evidence.ArmedNoHit, 9 * time.Second, nil},
		{"of this file", []evidence.Line{thisFile, r.covered(9 * time.Second)}, evidence.ArmedNoHit, time.Second, []evidence.GapReason{evidence.GapFileChanged}},
		{"of another file", []evidence.Line{otherFile, r.covered(9 * time.Second)}, evidence.ArmedNoHit, 9 * time.Second, nil},
		{"of another run", []evidence.Line{otherRun, r.covered(9 * time.Second)}, evidence.ArmedNoHit, 9 * time.Second, nil},
	} {
		// Whatever somebody sets the wall clock by between the two chunks.
		for _, step := range []time.Duration{0, time.Hour, -time.Hour} {
			t.Run(fmt.Sprint(c.why, " ", step), func(t *testing.T) {
				s, spool := signer(t), t.TempDir()
				name, data := chunk(t, s, 1, []evidence.Line{r.covered(0), r.site}, nil)
				put(t, spool, name, data)
				name, data = stepped(t, 2, step, c.later)
				put(t, spool, name, data)
				rep, err := check(t, s.Public(), spool)
				if err != nil || !rep.Sound() || len(rep.Rows) != 1 {
					t.Fatal(rep.Findings, err, len(rep.Rows))
				}
				row := rep.Rows[0]
				if row.State != c.state || row.To != r.at(c.to) || !slices.Equal(row.Gaps, c.gaps) || row.Complete != (c.state == evidence.ArmedNoHit) {
					t.Errorf("%s, complete %v, to %v, gaps %v; want %s, %v, %v", row.State, row.Complete, row.To, row.Gaps, c.state, r.at(c.to), c.gaps)
				}
				var table bytes.Buffer
				if err := rep.WriteTable(&table); err != nil {
					t.Fatal(err)
				}
				for _, g := range c.gaps {
					if !strings.Contains(table.String(), "(gaps: "+string(g)+")") {
						t.Errorf("the row does not show %s:\n%s", g, table.String())
					}
				}
			})
		}
	}
}

// stepped is chunk3 of lines by a wall clock that was set since.
func stepped(t testing.TB, seq uint64, step time.Duration, lines []evidence.Line) (name string, data []byte) {
	t.Helper()
	h, _ := vectorLines(t)
	h.Format = evidence.Format3
	by := func(times ...*evidence.Time) {
		for _, x := range times {
			if !x.IsZero() {
				*x = evidence.TimeOf(x.Std().Add(step))
			}
		}
	}
	by(&h.Clock.Wall)
	lines = slices.Clone(lines)
	for i, l := range lines {
		switch v := l.(type) {
		case *evidence.Coverage:
			c := *v
			by(&c.From, &c.To, &c.Started, &c.FirstExec, &c.Ended)
			lines[i] = &c
		case *evidence.Gap:
			g := *v
			by(&g.From, &g.To)
			lines[i] = &g
		}
	}
	return sealed(t, h, signer(t), seq, lines, nil)
}

// What the clocks of the node did in a row's window is said beside it, and takes nothing
// from it: of other windows, of other boots and of other nodes nothing is said.
func TestNodeClocks(t *testing.T) {
	r := newShortRun(t)
	at := func(reason evidence.GapReason, from, to time.Duration) *evidence.Gap {
		return &evidence.Gap{GapID: fmt.Sprint(reason, from), Scope: evidence.ScopeNode, Reason: reason, From: r.at(from), To: r.at(to), Count: evidence.Loss{N: 1}}
	}
	before := -r.site.To.Std().Sub(r.site.From.Std())
	for _, c := range []struct {
		why   string
		later []evidence.Line
		want  []evidence.GapReason
	}{
		{"in the window", []evidence.Line{at(evidence.GapSuspended, before/2, before/4)}, []evidence.GapReason{evidence.GapSuspended}},
		{"over its beginning", []evidence.Line{at(evidence.GapClockStep, 2*before, before+1)}, []evidence.GapReason{evidence.GapClockStep}},
		{"over its end", []evidence.Line{at(evidence.GapSuspended, -1, time.Hour)}, []evidence.GapReason{evidence.GapSuspended}},
		{"over all of it, and in it", []evidence.Line{at(evidence.GapSuspended, 3*before, time.Hour), at(evidence.GapSuspended, before/2, before/4)}, []evidence.GapReason{evidence.GapSuspended}},
		{"before it", []evidence.Line{at(evidence.GapSuspended, 2*before, before)}, nil},
		{"after it", []evidence.Line{at(evidence.GapSuspended, 0, time.Hour), at(evidence.GapClockStep, time.Hour, 2*time.Hour)}, nil},
		{"in what a coverage line extends it by", []evidence.Line{at(evidence.GapClockStep, 5*time.Second, 6*time.Second), at(evidence.GapSuspended, time.Second, 2*time.Second), r.covered(9 * time.Second)}, []evidence.GapReason{evidence.GapSuspended, evidence.GapClockStep}},
		{"another reason", []evidence.Line{at(evidence.GapPowerLoss, before, -1)}, nil},
	} {
		for _, step := range []time.Duration{0, 24 * time.Hour, -24 * time.Hour} {
			t.Run(fmt.Sprint(c.why, " ", step), func(t *testing.T) {
				spool := t.TempDir()
				name, data := chunk3(t, 1, []evidence.Line{r.covered(0), r.site})
				put(t, spool, name, data)
				name, data = stepped(t, 2, step, c.later)
				put(t, spool, name, data)
				rep, err := check(t, signer(t).Public(), spool)
				if err != nil || !rep.Sound() || len(rep.Rows) != 1 {
					t.Fatal(rep.Findings, err, len(rep.Rows))
				}
				row := rep.Rows[0]
				if row.State != evidence.ArmedNoHit || !row.Complete || len(row.Gaps) > 0 || !slices.Equal(row.NodeGaps, c.want) {
					t.Errorf("%s, complete %v, gaps %v, of the node %v; want %v", row.State, row.Complete, row.Gaps, row.NodeGaps, c.want)
				}
				var table bytes.Buffer
				if err := rep.WriteTable(&table); err != nil {
					t.Fatal(err)
				}
				if strings.Contains(table.String(), "nothing is claimed") != (c.why == "another reason") {
					t.Errorf("%s", table.String())
				}
				for _, g := range c.want {
					if !strings.Contains(table.String(), "(in this time: ") || !strings.Contains(table.String(), string(g)) {
						t.Errorf("the row does not show %s:\n%s", g, table.String())
					}
				}
			})
		}
	}
}

// While lines are left out, the count of a hit that a coverage line extends is a lower
// bound.
func TestLeftOut(t *testing.T) {
	for to, complete := range map[time.Duration]bool{0: false, 3 * time.Second: true} {
		r, s, spool := newShortRun(t), signer(t), t.TempDir()
		n := evidence.Uint64(3)
		r.site.State, r.site.Count, r.site.FirstAt, r.site.LastAt = evidence.Hit, &n, r.site.From, r.site.To
		for i, lines := range [][]evidence.Line{{r.covered(0), r.site}, {r.gap("g", evidence.GapCoalesced, time.Second, to), r.covered(9 * time.Second)}} {
			name, data := chunk3(t, uint64(i+1), lines)
			put(t, spool, name, data)
		}
		rep, err := check(t, s.Public(), spool)
		if err != nil || !rep.Sound() || len(rep.Rows) != 1 {
			t.Fatal(rep.Findings, err, len(rep.Rows))
		}
		if x := rep.Rows[0]; x.State != evidence.Hit || x.Complete != complete || x.To != r.at(9*time.Second) || (len(x.Gaps) == 0) != complete {
			t.Errorf("closed after %v: %s, complete %v, to %v, gaps %v", to, x.State, x.Complete, x.To, x.Gaps)
		}
	}
}

// A gap that the site's line knows of already does not end its window when it is
// closed; a second one for the same reason does.
func TestKnownGaps(t *testing.T) {
	r, s, spool := newShortRun(t), signer(t), t.TempDir()
	r.site.State, r.site.Complete = evidence.Partial, false
	r.site.Gaps = []evidence.SiteGap{{Reason: evidence.GapSuspended, From: r.at(-time.Nanosecond)}}
	for i, lines := range [][]evidence.Line{
		{r.gap("known", evidence.GapSuspended, -time.Nanosecond, 0), r.site},
		{r.gap("known", evidence.GapSuspended, -time.Nanosecond, time.Second), r.covered(5 * time.Second)},
		{r.gap("new", evidence.GapSuspended, 7*time.Second, 8*time.Second), r.covered(9 * time.Second)},
	} {
		name, data := chunk(t, s, uint64(i+1), lines, nil)
		put(t, spool, name, data)
		rep, err := check(t, s.Public(), spool)
		if err != nil || !rep.Sound() {
			t.Fatal(rep.Findings, err)
		}
		row, want := rep.Rows[0], []time.Duration{0, 5 * time.Second, 7 * time.Second}[i]
		if row.To != r.at(want) || row.State != evidence.Partial || len(row.Gaps) != 1 {
			t.Errorf("%d: %+v, want to %v", i, row, r.at(want))
		}
	}
}

// A line that says that a gap is closed counts if it comes after the one that
// opened it, wherever it was read first.
func TestGapIsNotClosedBefore(t *testing.T) {
	r, s, spool := newShortRun(t), signer(t), t.TempDir()
	for seq, l := range []evidence.Line{r.gap("g", evidence.GapAgentDown, 0, time.Second), r.gap("g", evidence.GapAgentDown, 0, 0)} {
		name, data := chunk(t, s, uint64(seq+1), []evidence.Line{l}, nil)
		put(t, spool, name, data)
	}
	rep, err := check(t, s.Public(), spool)
	if err != nil || len(rep.Gaps) != 1 || !rep.Gaps[0].To.IsZero() {
		t.Fatalf("%+v, %v", rep.Gaps, err)
	}
}

// A path that looks like columns of the table stays in its own.
func TestColumnsAreNotForged(t *testing.T) {
	r, s, spool := newShortRun(t), signer(t), t.TempDir()
	r.site.Path = "/lib/a.so  uprobe  armedNoHit  0"
	name, data := chunk(t, s, 1, []evidence.Line{r.site}, nil)
	put(t, spool, name, data)
	rep, err := check(t, s.Public(), spool)
	if err != nil || !rep.Sound() {
		t.Fatal(rep.Findings, err)
	}
	var table bytes.Buffer
	if err := rep.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(table.String(), "a.so  ") {
		t.Error(table.String())
	}
}

// removing is a context that takes the spool away once its files are listed, as a
// shipper might.
type removing struct {
	context.Context
	spool string
	once  *sync.Once
}

func (r removing) Err() error {
	r.once.Do(func() { os.RemoveAll(r.spool) })
	return r.Context.Err()
}

// Chunks that vanish are no finding; a spool of which nothing was looked at is not
// sound for that.
func TestAllVanished(t *testing.T) {
	spool := filepath.Join(t.TempDir(), "spool")
	put(t, spool, vector, vectorBytes(t))
	rep, err := verify.Path(removing{t.Context(), spool, new(sync.Once)}, []string{spool}, signer(t).Public(), verify.Options{})
	if verify.ExitCode(rep, err) != 3 || rep.Files != 0 || rep.Log != verify.LogNotChecked {
		t.Fatalf("exit %d, %v, %d files, log %s", verify.ExitCode(rep, err), err, rep.Files, rep.Log)
	}
}

// A chunk that is named beside its spool is the spool's, whichever is named first.
func TestNamedBesideItsSpool(t *testing.T) {
	n := newTheNode(t)
	want, err := check(t, n.signer.Public(), n.dir)
	must(t, err)
	c := n.chunks(t)[4]
	for _, paths := range [][]string{{c, n.dir}, {n.dir, c}} {
		given := 0
		rep, err := verify.Path(t.Context(), paths, n.signer.Public(), verify.Options{RequireComplete: true, Chunk: func(*verify.Chunk) { given++ }})
		if err != nil || given != 9 || !reflect.DeepEqual(rep, want) {
			t.Errorf("%v, %v, %d chunks given, %d lines of %d in %d files", rep.Findings, err, given, rep.Lines, want.Lines, rep.Files)
		}
	}
}

// A chunk that is in the log and not published yet, because its agent was killed or
// is about to, counts as any other: else who moves it there has its lines unsaid.
func TestChunkOnItsWay(t *testing.T) {
	n := newTheNode(t).copied(t)
	before, err := verify.Path(t.Context(), []string{n.dir}, n.signer.Public(), verify.Options{})
	must(t, err)
	for _, i := range []int{0, 4, 8} {
		c := n.chunks(t)[i]
		tmp := filepath.Join(n.dir, "tmp", filepath.Base(c))
		must(t, os.Rename(c, tmp))
		given := 0
		rep, err := verify.Path(t.Context(), []string{n.dir}, n.signer.Public(), verify.Options{Chunk: func(*verify.Chunk) { given++ }})
		if err != nil || !rep.Sound() || rep.Log != verify.LogSound || given != 9 || !reflect.DeepEqual(rep, before) {
			t.Errorf("chunk %d: %v, %v, %d chunks given, %d lines", i, rep.Findings, err, given, rep.Lines)
		}
		// The same in an archive, of which what is in no log is left out likewise.
		list := append(entriesOf(t, n.dir, "s/"), file("s/tmp/0000000000000077-00112233445566ff.ndjson", []byte("{")))
		for range 2 {
			slices.Reverse(list)
			rep, err := check(t, n.signer.Public(), written(t, tarOf(t, list)))
			if err != nil || !rep.Sound() || rep.Log != verify.LogSound || rep.Lines != before.Lines || rep.Chunks != before.Chunks || rep.Files != before.Files {
				t.Errorf("chunk %d in an archive: %v, %v, %d chunks, %d lines", i, rep.Findings, err, rep.Chunks, rep.Lines)
			}
		}
		must(t, os.Rename(tmp, c))
	}
	// A directory may be called so and be no part of a spool.
	rep, err := check(t, n.signer.Public(), written(t, tarOf(t, []entry{file("tmp/"+filepath.Base(n.chunks(t)[0]), read(t, n.chunks(t)[0]))})))
	if err != nil || !rep.Sound() || rep.Chunks != 1 {
		t.Errorf("alone: %v, %v, %d chunks", rep.Findings, err, rep.Chunks)
	}
}
