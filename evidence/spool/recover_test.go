package spool_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/redact"
	"probity/evidence/spool"
)

func agentDown(run int, id string, from evidence.Time, to evidence.Time) func(evidence.Clock) []redact.Line {
	return func(evidence.Clock) []redact.Line {
		return noRules.Lines(&evidence.Gap{GapID: id, Scope: evidence.ScopeRun, Reason: evidence.GapAgentDown, From: from, To: to, RunID: runID(run), ContainerID: "c"})
	}
}

func TestRecover(t *testing.T) {
	n := newNode(t)
	if f, err := spool.Recover(t.Context(), n.cfg.Dir, n.signer.Public(), nil); err != nil || len(f.Runs) != 0 || !f.Until.IsZero() {
		t.Fatalf("a spool that is not there: %+v, %v", f, err)
	}
	s := n.open(t)
	add := func(run int, build func(evidence.Clock) []redact.Line) {
		t.Helper()
		if err := errors.Join(s.Append(runID(run), build), s.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	recovered := func() map[string]spool.OpenRun {
		t.Helper()
		found, err := spool.Recover(t.Context(), n.cfg.Dir, n.signer.Public(), nil)
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]spool.OpenRun{}
		for _, r := range found.Runs {
			m[r.Coverage.RunID] = r
		}
		return m
	}
	add(1, coverage(1, false)) // left open
	add(2, coverage(2, false)) // ends
	add(2, coverage(2, true))
	add(3, coverage(3, false)) // has later lines
	add(3, sites(3, 1, 10))
	got := recovered()
	if len(got) != 2 || got[runID(2)].Chunk != "" {
		t.Fatalf("%v", got)
	}
	one, three := got[runID(1)], got[runID(3)]
	if one.Coverage.ContainerID != "container-1" || one.To != one.Coverage.To || one.ToBootNs == 0 {
		t.Fatalf("%+v", one)
	}
	if !three.To.Std().After(three.Coverage.To.Std()) || three.ToBootNs <= one.ToBootNs {
		t.Fatalf("a later observation line does not count: %+v", three)
	}

	// What the next agent signs settles a run, whether the gap is left open or not.
	add(1, agentDown(1, "g1", one.To, evidence.Time{}))
	add(3, agentDown(3, "g3", three.To, evidence.TimeOf(three.To.Std().Add(5e6))))
	// One that is open is still somebody's to take up, or to seal.
	if got := recovered(); len(got) != 1 || got[runID(1)].GapID != "g1" || got[runID(1)].To != one.To || one.GapID != "" {
		t.Fatalf("settled runs are recovered: %v", got)
	}
	add(1, agentDown(1, "g1", one.To, evidence.TimeOf(one.To.Std().Add(5e6))))
	if got := recovered(); len(got) != 0 {
		t.Fatalf("settled runs are recovered: %v", got)
	}
	// A run that went on afterwards is open again.
	for range 10 {
		add(3, coverage(3, false))
	}
	if got := recovered(); len(got) != 1 || got[runID(3)].Chunk == "" {
		t.Fatalf("%v", got)
	}
}

// Unsound chunks are named and do not count; the others do.
func TestRecoverUnsound(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	for i := range 3 {
		if err := errors.Join(s.Append(runID(i+1), coverage(i+1, false)), s.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(n.cfg.Dir, spool.ReadyDir, evidence.ChunkPath(n.ready(t)[1]))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[1100] ^= 1
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	found, err := spool.Recover(t.Context(), n.cfg.Dir, n.signer.Public(), nil)
	if !errors.Is(err, spool.ErrUnsound) || len(found.Runs) != 2 {
		t.Fatalf("%+v, %v", found, err)
	}
}

// A chunk that is copied to a later name does not open a run again that has
// ended.
func TestRecoverNames(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	for _, final := range []bool{false, true} {
		if err := errors.Join(s.Append(runID(1), coverage(1, final)), s.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.Append(runID(2), coverage(2, false)), s.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	place := func(name string) string {
		return filepath.Join(n.cfg.Dir, spool.ReadyDir, filepath.FromSlash(evidence.ChunkPath(name)))
	}
	names := n.ready(t)
	_, instance, _ := evidence.ParseChunkName(names[0])
	b, err := os.ReadFile(place(names[0]))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(place(evidence.ChunkName(99, instance)), b, 0o644); err != nil {
		t.Fatal(err)
	}
	found, err := spool.Recover(t.Context(), n.cfg.Dir, n.signer.Public(), nil)
	if !errors.Is(err, spool.ErrUnsound) || len(found.Runs) != 1 || found.Runs[0].Coverage.RunID != runID(2) {
		t.Fatalf("%+v, %v", found, err)
	}
}

// An agent that stops in order leaves an open gap of the node, which the next
// one closes; one that is killed leaves the last moment that it spoke of.
func TestRecoverNode(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	at := evidence.TimeOf(time.Unix(1_800_000_000, 0))
	node := func(id string, from, to evidence.Time) {
		t.Helper()
		err := s.Append("", func(evidence.Clock) []redact.Line {
			return noRules.Lines(&evidence.Gap{GapID: id, Scope: evidence.ScopeNode, Reason: evidence.GapAgentDown, From: from, To: to})
		})
		if err := errors.Join(err, s.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	found := func() spool.Found {
		t.Helper()
		f, err := spool.Recover(t.Context(), n.cfg.Dir, n.signer.Public(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	node("a", at, evidence.Time{})
	if f := found(); f.Stopped == nil || f.Stopped.GapID != "a" || f.Stopped.From != at || f.Until.Time != at {
		t.Fatalf("after a stop: %+v", f)
	}
	later := evidence.TimeOf(at.Std().Add(time.Hour))
	node("a", at, later)
	if f := found(); f.Stopped != nil || f.Until.Time != later {
		t.Fatalf("after the next start: %+v", f)
	}
}

// Of a run that is open, the latest line of each site is kept that says more than
// that it is armed: who takes the run up goes on from there.
func TestRecoverSites(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	add := func(run int, change func(*evidence.Observation, evidence.Clock)) {
		t.Helper()
		err := s.Append(runID(run), func(c evidence.Clock) []redact.Line {
			lines := append(coverage(run, false)(c), sites(run, 3, 10)(c)...)
			if change != nil {
				change(lines[2].Evidence().(*evidence.Observation), c)
			}
			return lines
		})
		if err := errors.Join(err, s.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	hit := func(count evidence.Uint64) func(*evidence.Observation, evidence.Clock) {
		return func(o *evidence.Observation, c evidence.Clock) {
			o.State, o.Count, o.FirstAt, o.LastAt = evidence.Hit, &count, o.From, o.To
			o.Gaps, o.Complete = []evidence.SiteGap{{Reason: evidence.GapLateAttach, From: o.From, To: o.To, DurationNs: 100, Count: evidence.Loss{N: 1}}}, false
		}
	}
	add(1, nil)
	add(1, hit(3))
	add(1, hit(5))
	add(2, hit(7)) // ends
	if err := errors.Join(s.Append(runID(2), coverage(2, true)), s.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	found, err := spool.Recover(t.Context(), n.cfg.Dir, n.signer.Public(), nil)
	if err != nil || len(found.Runs) != 1 {
		t.Fatalf("%+v, %v", found, err)
	}
	r := found.Runs[0]
	if len(r.Sites) != 1 || r.Cut || r.Sites[0].Line.State != evidence.Hit || *r.Sites[0].Line.Count != 5 || *r.Sites[0].Line.Offset != 1 {
		t.Fatalf("%+v", r.Sites)
	}
	if c := r.Sites[0].Clock; c.Time(c.Boot(r.Sites[0].Line.FirstAt)) != r.Sites[0].Line.FirstAt || c.BootNs == 0 {
		t.Errorf("clock %+v", c)
	}
	if r.FromBootNs == 0 || r.FromBootNs > r.ToBootNs || r.FirstExecBootNs != 0 {
		t.Errorf("from %d to %d, first exec %d", r.FromBootNs, r.ToBootNs, r.FirstExecBootNs)
	}
}

// The last line about each site of the runs that are asked for, and of no others.
func TestLastLines(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	must(t, errors.Join(s.Append(runID(1), sites(1, 3, 10)), s.Flush(t.Context()), s.Append(runID(2), sites(2, 2, 10)), s.Append(runID(1), sites(1, 2, 10)), s.Flush(t.Context()), s.Close()))
	got, err := spool.LastLines(t.Context(), n.cfg.Dir, n.cfg.Signer, map[string]bool{runID(1): true, runID(7): true}, nil)
	if err != nil || len(got) != 1 || len(got[runID(1)]) != 3 {
		t.Fatalf("%d runs, %d sites, %v", len(got), len(got[runID(1)]), err)
	}
	second := 0
	for _, l := range got[runID(1)] {
		if l.Line.RunID != runID(1) || l.Clock.BootNs == 0 {
			t.Errorf("%+v", l)
		}
		if l.Line.To.Std().After(got[runID(1)][2].Line.To.Std()) {
			second++
		}
	}
	if second != 2 { // of the later chunk
		t.Errorf("%d lines are the later ones", second)
	}
}

// A gap that a whole run has because it was taken up is kept once, and not with each of
// its sites: those have what is their own.
func TestRecoverGapsOfTheRun(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	gap := func(id string, reason evidence.GapReason, from, to int64) func(evidence.Clock) []redact.Line {
		return func(c evidence.Clock) []redact.Line {
			at := func(n int64) evidence.Time { return c.Time(int64(c.BootNs) - 100 + n) }
			g := &evidence.Gap{GapID: id, Scope: evidence.ScopeRun, Reason: reason, From: at(from), To: at(to), Count: evidence.Loss{N: 1}, RunID: runID(1), ContainerID: "container-1"}
			return noRules.Lines(g)
		}
	}
	var first int64 // the first moment of the run, as the first chunk's clock has it
	observe := func(gaps ...[]evidence.SiteGap) func(evidence.Clock) []redact.Line {
		return func(c evidence.Clock) []redact.Line {
			lines := sites(1, len(gaps), 10)(c)
			for i, l := range lines {
				o := l.Evidence().(*evidence.Observation)
				if o.Gaps = gaps[i]; len(o.Gaps) > 0 {
					o.State, o.Complete = evidence.Partial, false
				}
			}
			return lines
		}
	}
	all := func(build ...func(evidence.Clock) []redact.Line) func(evidence.Clock) []redact.Line {
		return func(c evidence.Clock) (lines []redact.Line) {
			first = int64(c.BootNs) - 100
			for _, b := range build {
				lines = append(lines, b(c)...)
			}
			return lines
		}
	}
	var clock evidence.Clock
	entry := func(reason evidence.GapReason, from, to, duration int64, count uint64) evidence.SiteGap {
		return evidence.SiteGap{Reason: reason, From: clock.Time(first + from), To: clock.Time(first + to), DurationNs: evidence.Uint64(duration), Count: evidence.Loss{N: count}}
	}
	must(t, s.Append(runID(1), all(func(c evidence.Clock) []redact.Line {
		clock, first = c, int64(c.BootNs)-100
		adopted, down := entry(evidence.GapAdopted, 0, 10, 10, 1), entry(evidence.GapAgentDown, 20, 60, 20, 2)
		own := entry(evidence.GapAgentDown, 20, 70, 25, 3)
		unarmed := entry(evidence.GapUnarmedMapping, 30, 31, 1, 1)
		return all(coverage(1, false), gap("a", evidence.GapAdopted, 0, 10), gap("d1", evidence.GapAgentDown, 20, 30), gap("d2", evidence.GapAgentDown, 50, 60), gap("d2", evidence.GapAgentDown, 50, 60),
			observe(nil, []evidence.SiteGap{adopted, down}, []evidence.SiteGap{adopted, own}, []evidence.SiteGap{adopted, down, unarmed}))(c)
	})))
	must(t, errors.Join(s.Flush(t.Context()), s.Close()))
	found, err := spool.Recover(t.Context(), n.cfg.Dir, n.signer.Public(), nil)
	if err != nil || len(found.Runs) != 1 {
		t.Fatalf("%d runs, %v", len(found.Runs), err)
	}
	want := []spool.RunGap{
		{Reason: evidence.GapAdopted, From: first, To: first + 10, DurationNs: 10, Count: 1},
		{Reason: evidence.GapAgentDown, From: first + 20, To: first + 60, DurationNs: 20, Count: 2},
	}
	if got := found.Runs[0].Gaps; !slices.Equal(got, want) {
		t.Errorf("of the run: %+v, want %+v", got, want)
	}
	left := found.Runs[0].Sites
	if len(left) != 2 {
		t.Fatalf("%d sites", len(left))
	}
	if g := left[0].Line.Gaps; len(g) != 1 || g[0].Reason != evidence.GapAgentDown || g[0].Count.N != 1 || g[0].DurationNs != 5 {
		t.Errorf("what is its own: %+v", g)
	}
	if g := left[1].Line.Gaps; len(g) != 1 || g[0].Reason != evidence.GapUnarmedMapping {
		t.Errorf("what is its own: %+v", g)
	}
}

// A chunk under another name than its own says nothing, for LastLines as for Recover:
// it may say again what is long over.
func TestLastLinesOfOthersNames(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	must(t, errors.Join(s.Append(runID(1), sites(1, 3, 10)), s.Flush(t.Context()), s.Close()))
	chunks, err := filepath.Glob(n.cfg.Dir + "/ready/*/*.ndjson")
	if err != nil || len(chunks) != 1 {
		t.Fatalf("%q, %v", chunks, err)
	}
	elsewhere := n.cfg.Dir + "/ready/0000000009"
	must(t, errors.Join(os.Mkdir(elsewhere, 0o755), os.Rename(chunks[0], filepath.Join(elsewhere, filepath.Base(chunks[0])))))
	got, err := spool.LastLines(t.Context(), n.cfg.Dir, n.cfg.Signer, map[string]bool{runID(1): true}, nil)
	if err != nil || len(got) != 0 {
		t.Errorf("%d runs, %v", len(got), err)
	}
	if found, err := spool.Recover(t.Context(), n.cfg.Dir, n.signer.Public(), nil); !errors.Is(err, spool.ErrUnsound) || !found.Until.IsZero() {
		t.Errorf("%+v, %v", found, err)
	}
}

// Reading a spool ends with ctx, between two chunks, and what was read until then is
// not taken for all.
func TestRecoverEndsWithContext(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	for run := range 3 {
		must(t, errors.Join(s.Append(runID(run), coverage(run, false)), s.Append(runID(run), sites(run, 1, 10)), s.Flush(t.Context())))
	}
	must(t, s.Close())
	for name, read := range map[string]func(context.Context, func()) (int, error){
		"Recover": func(ctx context.Context, progress func()) (int, error) {
			found, err := spool.Recover(ctx, n.cfg.Dir, n.signer.Public(), progress)
			return len(found.Runs), err
		},
		"LastLines": func(ctx context.Context, progress func()) (int, error) {
			lines, err := spool.LastLines(ctx, n.cfg.Dir, n.cfg.Signer, map[string]bool{runID(0): true, runID(1): true, runID(2): true}, progress)
			return len(lines), err
		},
	} {
		for _, after := range []int{1, 2, 4} {
			ctx, cancel := context.WithCancel(t.Context())
			chunks := 0
			got, err := read(ctx, func() {
				if chunks++; chunks == after {
					cancel()
				}
			})
			if ended := after < 3; ended && (!errors.Is(err, context.Canceled) || got != 0 || chunks != after) || !ended && (err != nil || got != 3 || chunks != 3) {
				t.Errorf("%s, ended after %d chunks: %d runs, %d chunks, %v", name, after, got, chunks, err)
			}
			cancel()
		}
	}
}

// Who makes more lines about sites than are kept, be it many or long ones, does not
// cost the others theirs.
func TestRecoverGreedy(t *testing.T) {
	for name, greedy := range map[string]struct{ lines, size int }{
		"many": {spool.MaxCarried + 1, 1},
		"long": {spool.MaxCarriedBytes/4_000 + 1, 4_000},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			s := n.open(t)
			hit := func(run, lines, size int) {
				t.Helper()
				if err := s.Append(runID(run), coverage(run, false)); err != nil {
					t.Fatal(err)
				}
				for from := 0; from < lines; from += 256 {
					err := s.Append(runID(run), func(c evidence.Clock) []redact.Line {
						all := sites(run, min(256, lines-from), size)(c)
						for _, l := range all {
							o := l.Evidence().(*evidence.Observation)
							*o.Offset += evidence.Uint64(from)
							count := evidence.Uint64(3)
							o.State, o.Count, o.FirstAt, o.LastAt = evidence.Hit, &count, o.From, o.To
						}
						return all
					})
					if err := errors.Join(err, s.Flush(t.Context())); err != nil {
						t.Fatal(err)
					}
				}
			}
			hit(1, 3, 10)
			hit(2, greedy.lines, greedy.size)
			hit(3, 3, 10)
			found, err := spool.Recover(t.Context(), n.cfg.Dir, n.signer.Public(), nil)
			if err != nil || len(found.Runs) != 3 {
				t.Fatalf("%d runs, %v", len(found.Runs), err)
			}
			for i, r := range found.Runs {
				if want := i == 1; r.Cut != want || len(r.Sites) != 3 && !want || len(r.Sites) != 0 && want {
					t.Errorf("%s: cut %v, %d sites", r.Coverage.ContainerID, r.Cut, len(r.Sites))
				}
			}
		})
	}
}
