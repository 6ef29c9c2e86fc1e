package spool

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"probity/evidence"
	"probity/evidence/sign"
	"probity/evidence/verify"
)

// OpenRun is a run whose last coverage line is not final: the agent that wrote it
// ended without saying how the run went on.
type OpenRun struct {
	// Coverage is the run's last coverage line, with all its ids.
	Coverage evidence.Coverage
	// To is the end of what is covered: of that line, or of the run's latest
	// observation line if that is later.
	To evidence.Time
	// ToBootNs is To in the boot time of Coverage.BootID, by the clock of the
	// chunk that the line is in.
	ToBootNs int64
	// Chunk is that chunk's name.
	Chunk string
	// FromBootNs, StartedBootNs and FirstExecBootNs are those of Coverage, in the
	// same boot time; 0 where it has none.
	FromBootNs, StartedBootNs, FirstExecBootNs int64
	// GapID is that of the run's agentDown gap, from To on, which an agent signed that
	// did not take the run up either; "" if nobody has.
	GapID string
	// Gaps are what earlier agents' gaps of the whole run come to: those that each taking
	// up leaves (adopted, agentDown). In boot time, one for each reason.
	Gaps []RunGap
	// Sites are the latest lines about sites that have a hit or gaps of their own, without
	// Gaps: who takes the run up goes on from them. Cut says that there are none because all runs together had
	// more than MaxCarried or MaxCarriedBytes, and this one the most.
	Sites []evidence.SiteLine
	Cut   bool
}

// RunGap is several gaps of a whole run that have one reason.
type RunGap struct {
	Reason     evidence.GapReason
	From, To   int64 // boot time: of the first and the last
	DurationNs int64 // together
	Count      uint64
}

// MaxCarried and MaxCarriedBytes bound the lines of sites that Recover keeps, and
// their bytes as they are written, of all runs together. Past them the run that has
// most is cut: who makes many does not cost the others theirs.
const (
	MaxCarried      = 1 << 16
	MaxCarriedBytes = 64 << 20
)

// Found is what an earlier agent left in the spool.
type Found struct {
	// Runs were left open, in order of their last line: by the last agent, or by one
	// before that and not taken up since.
	Runs []OpenRun
	// Until is the latest moment that any chunk speaks of; zero if there is none.
	Until Moment
	held  map[string]map[string]int64 // bytes of each container's lines, and under "" of the node's, by chunk
	// Stopped is the open agentDown gap of scope node that an agent signs when it
	// stops in order, or nil, and StoppedAt its beginning.
	Stopped   *evidence.Gap
	StoppedAt Moment
}

// Moment is a time of a line, and what it was in the boot time of the chunk: the wall
// clock may have been set since.
type Moment struct {
	evidence.Time
	BootID string // "" if it is not known
	BootNs int64
}

func momentOf(h evidence.Header, t evidence.Time) Moment {
	if t.IsZero() {
		return Moment{}
	}
	return Moment{t, h.BootID, h.Clock.Boot(t)}
}

// By writes it by a clock of a boot. Of another boot's there is only the time.
func (m Moment) By(c evidence.Clock, bootID string) evidence.Time {
	if m.BootID == bootID {
		return c.Time(m.BootNs)
	}
	return m.Time
}

// before reports whether it comes before another one. None comes before all.
func (m Moment) before(n Moment) bool {
	if m.BootID == n.BootID {
		return m.BootNs < n.BootNs
	}
	return m.Std().Before(n.Std())
}

// Recover reads the spool at start and returns what an earlier agent left. The
// agent then signs an agentDown gap of scope run for each that has none, open or up
// to now, and a coverage line with final: false. A run whose gap was closed since its
// last coverage began is not returned again.
//
// Only sound chunks under their own names count: an old one under another name
// would say again what is long over. An error that wraps ErrUnsound lists those
// that do not, or that could not be read, and leaves the rest of the result valid;
// with any other error the spool could not be listed. A spool that is not there
// yet has nothing.
//
// It reads the whole spool, which may take long: progress is called for each chunk, if
// it is not nil. If ctx ends before, nothing is found, and the error is ctx's.
func Recover(ctx context.Context, dir string, keys sign.Keys, progress func()) (Found, error) {
	r := newRecovery()
	var bad []error
	err := eachChunk(ctx, dir, keys, progress, func(c *verify.Chunk) error {
		c.Header.BootID = strings.Clone(c.Header.BootID) // it is kept, and the chunk is not
		if at := momentOf(c.Header, c.Header.Clock.Wall); r.until.BootID != at.BootID || r.until.before(at) {
			r.until = at // of a later boot, be its clock behind
		}
		r.hold(c)
		for _, l := range c.Lines {
			r.see(c.Header, l)
		}
		r.letGo()
		return nil
	}, func(err error) { bad = append(bad, fmt.Errorf("%w: %w", ErrUnsound, err)) })
	if err != nil {
		return Found{}, fmt.Errorf("recover spool: %w", err)
	}
	return Found{Runs: r.open(), Until: r.until, Stopped: r.stopped, StoppedAt: r.stoppedAt, held: r.held}, errors.Join(bad...)
}

// eachChunk reads the chunks of a spool, oldest first, and hands over those that are
// sound and under their own names; unsound is told why another is not, or could not be
// read. A spool that is not there has none, nor has it those that a shipper removes
// meanwhile. An error is ctx's, of the listing, or sound's.
func eachChunk(ctx context.Context, dir string, keys sign.Keys, progress func(), sound func(*verify.Chunk) error, unsound func(error)) error {
	ready := filepath.Join(dir, ReadyDir)
	var names []string
	err := filepath.WalkDir(ready, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case e.Type().IsRegular():
			names = append(names, path)
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(filepath.Base(a), filepath.Base(b)) })
	for _, path := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if progress != nil {
			progress()
		}
		data, err := readBounded(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a shipper removed it
		}
		if err != nil {
			unsound(err)
			continue
		}
		c, findings := verify.Bytes(path, data, keys)
		if c == nil {
			unsound(fmt.Errorf("%s", findings[0]))
			continue
		}
		if path != filepath.Join(ready, filepath.FromSlash(evidence.ChunkPath(c.Header.Chunk))) {
			unsound(fmt.Errorf("%s: not the name of its chunk, %s", path, c.Header.Chunk))
			continue
		}
		if err := sound(c); err != nil {
			return err
		}
	}
	return nil
}

// ErrUnsound is wrapped for each chunk in the spool that does not count.
var ErrUnsound = errors.New("recover spool: unsound chunk")

type openRun struct {
	OpenRun
	order   int
	final   bool
	at      Moment // To
	settled Moment // an agentDown gap says so up to here
	forGood bool   // an agentDown gap is open
	gapID   string
	whole   map[evidence.GapReason]*runGaps
	sites   map[evidence.SiteID]carriedLine
	bytes   int // of sites
}

// runGaps is a RunGap, and what it was without the gap that was added last: a line may
// be there twice.
type runGaps struct {
	RunGap
	before RunGap
	last   string // its gapId
}

// note takes a gap of the whole run that is over.
func (o *openRun) note(h evidence.Header, v *evidence.Gap) {
	if v.Reason != evidence.GapAdopted && v.Reason != evidence.GapAgentDown || v.ProbeType != "" || v.Count.Unknowable {
		return
	}
	g := o.whole[v.Reason]
	switch {
	case g == nil:
		if o.whole == nil {
			o.whole = map[evidence.GapReason]*runGaps{}
		}
		g = &runGaps{}
		o.whole[v.Reason] = g
	case g.last != v.GapID:
		g.before = g.RunGap
	}
	g.last = strings.Clone(v.GapID)
	from, to := h.Clock.Boot(v.From), h.Clock.Boot(v.To)
	g.RunGap = RunGap{Reason: v.Reason, From: from, To: to, DurationNs: to - from, Count: v.Count.N}
	if b := g.before; b.Count > 0 {
		g.From, g.To, g.DurationNs, g.Count = min(b.From, from), max(b.To, to), b.DurationNs+to-from, b.Count+v.Count.N
	}
}

// ownGaps is a site's gaps without those of the whole run, which each of its sites has.
func (o *openRun) ownGaps(h evidence.Header, gaps []evidence.SiteGap) (own []evidence.SiteGap) {
	for _, g := range gaps {
		run := o.whole[g.Reason]
		if run != nil && !g.To.IsZero() && !g.Count.Unknowable {
			duration := int64(g.DurationNs) - run.DurationNs
			if g.Count.N == run.Count && duration == 0 && h.Clock.Boot(g.From) == run.From && h.Clock.Boot(g.To) == run.To {
				continue
			}
			if g.Count.N > run.Count && duration >= 0 { // some are its own; nobody knows where
				g.Count.N, g.DurationNs = g.Count.N-run.Count, evidence.Uint64(duration)
			}
		}
		own = append(own, g)
	}
	return own
}

type carriedLine struct {
	evidence.SiteLine
	bytes int
}

type recovery struct {
	runs    map[string]*openRun
	told    []*openRun // whose Coverage is a part of the chunk that is read
	lines   int
	until   Moment
	stopped *evidence.Gap

	stoppedAt Moment
	held      map[string]map[string]int64
	ids       map[string]string // containers', without the chunks that they are parts of

	carrying map[*openRun]bool // those with sites
	carried  int               // lines of sites that are kept
	bytes    int               // of them
}

func newRecovery() *recovery {
	return &recovery{runs: map[string]*openRun{}, held: map[string]map[string]int64{}, ids: map[string]string{}, carrying: map[*openRun]bool{}}
}

// hold counts whose a chunk's lines are.
func (r *recovery) hold(c *verify.Chunk) {
	by := map[string]int64{}
	rows := bytes.SplitAfter(c.Body, []byte("\n"))[1:]
	for i, l := range c.Lines {
		id := containerOf(l)
		if _, ok := r.ids[id]; !ok {
			id = strings.Clone(id)
			r.ids[id] = id
		}
		by[r.ids[id]] += int64(len(rows[i]))
	}
	r.held[strings.Clone(c.Header.Chunk)] = by
}

// reach takes the time of a line of a run, or of none. Who writes of an earlier boot's run
// that it has ended has another clock.
func (r *recovery) reach(h evidence.Header, runID string, t evidence.Time) {
	run := r.runs[runID]
	if run != nil && run.Coverage.BootID != "" && run.Coverage.BootID != h.BootID {
		return
	}
	if m := momentOf(h, t); r.until.before(m) {
		r.until = m
	}
}

// see takes lines in order of age.
func (r *recovery) see(h evidence.Header, l evidence.Line) {
	r.lines++
	switch v := l.(type) {
	case *evidence.Coverage:
		run := r.run(v.RunID)
		if run.order == 0 || run.Coverage.From != v.From { // else who wrote it again has another clock
			run.FromBootNs, run.StartedBootNs, run.FirstExecBootNs = bootOf(h, v.From), bootOf(h, v.Started), bootOf(h, v.FirstExec)
		}
		run.Coverage, run.final, run.order = *v, v.Final, r.lines
		run.until(h, v.To)
		r.told = append(r.told, run)
		if v.Final {
			r.drop(run)
		}
		r.reach(h, v.RunID, v.To)
	case *evidence.Observation:
		run := r.run(v.RunID)
		run.until(h, v.To)
		r.carry(run, h, v)
		r.reach(h, v.RunID, v.To)
	case *evidence.Gap:
		if v.To.IsZero() {
			r.reach(h, v.RunID, v.From)
		}
		r.reach(h, v.RunID, v.To)
		if v.Scope == evidence.ScopeNode && v.Reason == evidence.GapAgentDown {
			r.stopped, r.stoppedAt = nil, Moment{}
			if v.To.IsZero() {
				r.stoppedAt = momentOf(h, v.From)
				r.stopped = &evidence.Gap{GapID: strings.Clone(v.GapID), Scope: evidence.ScopeNode, Reason: evidence.GapAgentDown, From: v.From, Count: v.Count}
			}
			return
		}
		if v.Scope == evidence.ScopeRun && v.Reason == evidence.GapAdopted && !v.To.IsZero() {
			r.run(v.RunID).note(h, v)
		}
		if v.Scope != evidence.ScopeRun || v.Reason != evidence.GapAgentDown {
			return
		}
		run := r.run(v.RunID)
		switch {
		case v.To.IsZero():
			run.forGood, run.gapID = true, strings.Clone(v.GapID)
		default:
			run.note(h, v)
			if v.GapID == run.gapID {
				run.forGood = false // closed: an agent took the run over
			}
			if to := momentOf(h, v.To); run.settled.before(to) {
				run.settled = to
			}
		}
	}
}

// letGo copies what is kept of coverage lines: their texts are parts of the whole
// chunk. Of a run that has ended only the beginning is asked for.
func (r *recovery) letGo() {
	for _, run := range r.told {
		if run.final {
			run.Coverage = evidence.Coverage{From: run.Coverage.From}
		} else {
			c, _ := detached(&run.Coverage)
			run.Coverage = *c
		}
	}
	clear(r.told)
	r.told = r.told[:0]
}

// carry keeps the latest line of a site that says more than that it is armed, or that
// it is not.
func (r *recovery) carry(run *openRun, h evidence.Header, o *evidence.Observation) {
	if o.Entry != nil || run.final || run.Cut {
		return // an entry's line stays what it is
	}
	id := evidence.SiteOf(o)
	was, known := run.sites[id]
	if known {
		delete(run.sites, id) // its key is a part of that line
		r.weigh(run, -1, -was.bytes)
	}
	own := *o
	own.Gaps = run.ownGaps(h, o.Gaps)
	if o.State == evidence.NotArmed || o.State != evidence.Hit && len(own.Gaps) == 0 {
		return
	}
	line, bytes := detached(&own)
	if run.sites == nil {
		run.sites = map[evidence.SiteID]carriedLine{}
	}
	run.sites[evidence.SiteOf(line)] = carriedLine{evidence.SiteLine{Line: line, Clock: h.Clock}, bytes}
	r.weigh(run, 1, bytes)
	for r.carried > MaxCarried || r.bytes > MaxCarriedBytes {
		r.cutGreediest()
	}
}

// weigh counts lines that are kept, or not any more.
func (r *recovery) weigh(run *openRun, lines, bytes int) {
	r.carried += lines
	r.bytes += bytes
	run.bytes += bytes
	if len(run.sites) > 0 {
		r.carrying[run] = true
	} else {
		delete(r.carrying, run)
	}
}

func (r *recovery) drop(run *openRun) {
	n := len(run.sites)
	run.sites = nil
	r.weigh(run, -n, -run.bytes)
}

// cutGreediest takes all its lines from the run that has most of what there is too
// much of.
func (r *recovery) cutGreediest() {
	has := func(run *openRun) int { return len(run.sites) }
	if r.carried <= MaxCarried {
		has = func(run *openRun) int { return run.bytes }
	}
	var most *openRun
	for run := range r.carrying {
		if most == nil || has(run) > has(most) || has(run) == has(most) && run.order > most.order {
			most = run
		}
	}
	r.drop(most)
	most.Cut = true
}

func bootOf(h evidence.Header, t evidence.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return h.Clock.Boot(t)
}

func (r *recovery) run(id string) *openRun {
	if r.runs[id] == nil {
		r.runs[strings.Clone(id)] = &openRun{}
	}
	return r.runs[id]
}

func (o *openRun) until(h evidence.Header, to evidence.Time) {
	at := momentOf(h, to)
	if !o.at.before(at) {
		return // written again, it has another chunk's clock
	}
	o.at, o.To, o.ToBootNs, o.Chunk = at, to, at.BootNs, strings.Clone(h.Chunk)
}

func (r *recovery) open() []OpenRun {
	var open []*openRun
	for _, run := range r.runs {
		settled := !run.forGood && !run.settled.IsZero() && !run.settled.before(run.at)
		if run.order == 0 || run.final || settled {
			continue // order 0: no coverage line is left to say who it was
		}
		open = append(open, run)
	}
	slices.SortFunc(open, func(a, b *openRun) int { return cmp.Compare(a.order, b.order) })
	out := make([]OpenRun, len(open))
	for i, run := range open {
		out[i] = run.OpenRun
		if run.forGood {
			out[i].GapID = run.gapID
		}
		for _, reason := range slices.Sorted(maps.Keys(run.whole)) {
			out[i].Gaps = append(out[i].Gaps, run.whole[reason].RunGap)
		}
		for _, id := range slices.SortedFunc(maps.Keys(run.sites), evidence.SiteID.Compare) {
			out[i].Sites = append(out[i].Sites, run.sites[id].SiteLine)
		}
	}
	return out
}

// detached copies a line's texts, which are parts of a whole chunk, and returns how
// many bytes the line has.
func detached[L evidence.Line](l L) (L, int) {
	b, err := evidence.Encode(l)
	if err != nil {
		return l, 0
	}
	copied, err := evidence.Decode(string(b))
	if err != nil {
		return l, len(b)
	}
	return copied.(L), len(b)
}

// readBounded reads at most one byte more than a chunk can have: verify.Bytes
// then says that it is too large.
func readBounded(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, min(st.Size(), evidence.MaxChunkBytes+1))
	n, err := f.ReadAt(b, 0)
	if n == len(b) {
		err = nil
	}
	return b[:n], err
}
