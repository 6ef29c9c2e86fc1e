package verify

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"probity/evidence"
)

// Row is the latest that is known of one site of one run, or of one probe where
// it has no site.
type Row struct {
	RunID         string                  `json:"runId"`
	ContainerID   string                  `json:"containerId"`
	ContainerName string                  `json:"containerName,omitempty"`
	Pod           string                  `json:"pod,omitempty"` // NAMESPACE/NAME
	Runtime       string                  `json:"runtime"`
	Image         string                  `json:"image,omitempty"`
	ImageDigest   string                  `json:"imageDigest,omitempty"`
	ProbeID       string                  `json:"probeId"`
	ProbeType     evidence.ProbeType      `json:"probeType"`
	Requested     evidence.ProbeType      `json:"requestedProbeType"`
	Symbol        string                  `json:"symbol,omitempty"`
	SymbolKind    string                  `json:"symbolKind,omitempty"`
	Inline        string                  `json:"inline,omitempty"`
	Demangled     string                  `json:"demangled,omitempty"`
	Wanted        string                  `json:"wanted,omitempty"`
	InlinedIn     string                  `json:"inlinedIn,omitempty"`
	InlinedAt     []evidence.Instance     `json:"inlinedAt,omitempty"`
	InlinedAtMore evidence.Uint64         `json:"inlinedAtMore,omitempty"`
	Implements    string                  `json:"implements,omitempty"`
	Function      string                  `json:"function,omitempty"` // of the kernel
	Duration      *evidence.Duration      `json:"duration,omitempty"`
	Stack         *evidence.Stack         `json:"stack,omitempty"`
	Set           string                  `json:"set,omitempty"`
	Entry         *evidence.Entry         `json:"entry,omitempty"`   // of the set; absent on the set's own row
	Entries       evidence.Uint64         `json:"entries,omitempty"` // that the set has
	SystemCalls   []evidence.SystemCalls  `json:"systemCalls,omitempty"`
	IOUring       bool                    `json:"ioUring,omitempty"`
	Event         string                  `json:"event,omitempty"`
	Path          string                  `json:"path,omitempty"`
	Origin        string                  `json:"origin,omitempty"`
	FileDigest    string                  `json:"fileDigest,omitempty"`
	BuildID       string                  `json:"buildId,omitempty"`
	Offset        *evidence.Uint64        `json:"offset,omitempty"`
	State         evidence.State          `json:"state"`
	Reason        evidence.NotArmedReason `json:"reason,omitempty"`
	Detail        string                  `json:"detail,omitempty"`
	Count         *evidence.Uint64        `json:"count,omitempty"`
	Complete      bool                    `json:"complete"`
	Gaps          []evidence.GapReason    `json:"gaps,omitempty"` // of the line, and of later gap lines about the site
	Confidence    float64                 `json:"confidence"`
	Final         bool                    `json:"final"`
	FirstAt       evidence.Time           `json:"firstAt,omitzero"`
	LastAt        evidence.Time           `json:"lastAt,omitzero"`
	Process       *evidence.Process       `json:"process,omitempty"` // of the first hit
	From          evidence.Time           `json:"from"`
	// ProbeState is the state of the row's probe as a whole: the fold of the run's
	// latest coverage line and of all rows of the probe. SearchReason says why not all files were searched for the
	// probe's sites; then nothing is claimed of the container, only of this site.
	ProbeState   evidence.State `json:"probeState,omitempty"`
	SearchReason string         `json:"searchReason,omitempty"`
	To           evidence.Time  `json:"to"` // of the line, or of a later coverage line of the run
}

// GapRow is the latest that is known of one gap.
type GapRow struct {
	GapID       string             `json:"gapId"`
	Scope       string             `json:"scope"`
	Reason      evidence.GapReason `json:"reason"`
	Source      string             `json:"source,omitempty"`
	RunID       string             `json:"runId,omitempty"`
	ContainerID string             `json:"containerId,omitempty"`
	Path        string             `json:"path,omitempty"`
	ProbeID     string             `json:"probeId,omitempty"`
	Symbol      string             `json:"symbol,omitempty"` // or kernel function
	Offset      *evidence.Uint64   `json:"offset,omitempty"`
	ProbeType   evidence.ProbeType `json:"probeType,omitempty"`
	Count       evidence.Loss      `json:"count"`
	From        evidence.Time      `json:"from"`
	To          evidence.Time      `json:"to,omitzero"` // absent while open
	Detail      string             `json:"detail,omitempty"`
}

// position orders lines by age: the chunk's seq, then the instance (two that
// share a number are of different state directories, and either order is a
// guess), then the line.
type position struct {
	seq      uint64
	instance string
	line     int
}

func (p position) after(q position) bool {
	return cmp.Or(cmp.Compare(p.seq, q.seq), cmp.Compare(p.instance, q.instance), cmp.Compare(p.line, q.line)) > 0
}

type siteKey struct {
	run, probe, path, origin, file, build, symbol, event, function string
	offset                                                         uint64
	hasOffset                                                      bool
	entry                                                          string // what tells an entry of a set from others; "" for all else
}

type latestSite struct {
	at position
	Row
}

type latestRun struct {
	probes []evidence.ProbeFold
	at     position
	name   string
	pod    string
	image  string
	to     evidence.Time
	final  bool
}

type latestGap struct {
	at    position
	first position // of its first line: a site's later lines know of it
	GapRow
}

func (g *latestGap) began(at position) {
	if g.first.after(at) {
		g.first = at
	}
}

// about reports whether the gap is one of the row's site. An empty member of a
// gap leaves open which one is meant.
func (g *latestGap) about(r *Row) bool {
	is := func(of, site string) bool { return of == "" || of == site }
	name := r.Symbol
	if r.Function != "" {
		name = r.Function
	}
	return g.RunID == r.RunID && is(g.Path, r.Path) && is(g.ProbeID, r.ProbeID) && is(g.Symbol, name) && is(string(g.ProbeType), string(r.ProbeType)) &&
		(g.Offset == nil || r.Offset != nil && *g.Offset == *r.Offset)
}

// fold keeps the latest line of everything. It copies what it keeps.
type fold struct {
	chunks map[string][]string // name -> files
	spools map[string]bool     // chunks, sound or not, that lie in a spool
	lines  int
	sites  map[siteKey]*latestSite
	runs   map[string]*latestRun
	gaps   map[string]*latestGap
	runIDs map[string]bool
	texts  map[string]string           // one copy of every text that is kept
	inLog  map[string]map[string]inLog // of a spool: its sound chunks
}

func newFold() *fold {
	return &fold{
		chunks: map[string][]string{}, spools: map[string]bool{}, sites: map[siteKey]*latestSite{}, runs: map[string]*latestRun{},
		gaps: map[string]*latestGap{}, runIDs: map[string]bool{}, texts: map[string]string{}, inLog: map[string]map[string]inLog{},
	}
}

// keep returns s without the chunk that it is a part of. Ids, paths and digests
// are shared by many rows.
func (f *fold) keep(s string) string {
	if s == "" {
		return ""
	}
	if have, ok := f.texts[s]; ok {
		return have
	}
	s = strings.Clone(s)
	f.texts[s] = s
	return s
}

// add folds a sound chunk in.
func (f *fold) add(c *Chunk) {
	seq, instance, _ := evidence.ParseChunkName(c.Header.Chunk)
	name := f.keep(c.Header.Chunk)
	f.chunks[name] = append(f.chunks[name], c.File)
	f.lines += len(c.Lines)
	at := position{seq: seq, instance: f.keep(instance)}
	for i, l := range c.Lines {
		at.line = i + 2
		if run := evidence.RunOf(l); run != "" && !f.runIDs[run] {
			f.runIDs[f.keep(run)] = true
		}
		switch v := l.(type) {
		case *evidence.Observation:
			f.site(at, v)
		case *evidence.Coverage:
			f.run(at, v)
		case *evidence.Gap:
			f.gap(at, v)
		}
	}
}

func (f *fold) site(at position, o *evidence.Observation) {
	k := siteKey{run: o.RunID, probe: o.ProbeID, path: o.Path, file: o.FileDigest, symbol: o.Symbol, event: o.Event, function: o.Function}
	if o.Entry != nil {
		k.build, k.entry = o.BuildID, entryKey(o)
	} else {
		k.origin = o.Origin
	}
	if o.Offset != nil {
		k.offset, k.hasOffset = uint64(*o.Offset), true
	}
	have := f.sites[k]
	if have != nil && !at.after(have.at) {
		return
	}
	r := Row{
		RunID: f.keep(o.RunID), ContainerID: f.keep(o.ContainerID), Runtime: f.keep(o.Runtime),
		ImageDigest: f.keep(o.ImageDigest), ProbeID: f.keep(o.ProbeID), ProbeType: evidence.ProbeType(f.keep(string(o.ProbeType))),
		Symbol: f.keep(o.Symbol), Event: f.keep(o.Event), Path: f.keep(o.Path), Origin: f.keep(o.Origin), FileDigest: f.keep(o.FileDigest),
		Offset: o.Offset, State: evidence.State(f.keep(string(o.State))), Reason: evidence.NotArmedReason(f.keep(string(o.Reason))),
		Detail: f.keep(o.Detail), Count: o.Count, Complete: o.Complete, Confidence: o.Confidence.Value, Final: o.Final,
		FirstAt: o.FirstAt, LastAt: o.LastAt, From: o.From, To: o.To,
		Requested: evidence.ProbeType(f.keep(string(o.RequestedProbeType))), SymbolKind: f.keep(o.SymbolKind), Inline: f.keep(o.Inline),
		Demangled: f.keep(o.Demangled), Wanted: f.keep(o.Wanted), InlinedIn: f.keep(o.InlinedIn), InlinedAtMore: o.InlinedAtMore,
		Implements: f.keep(o.Implements), Function: f.keep(o.Function), Duration: f.duration(o.Duration), Set: f.keep(o.Set), Entries: o.Entries, IOUring: o.IOUring,
		BuildID: f.keep(o.BuildID), Process: f.process(o.Process), InlinedAt: f.instances(o.InlinedAt), Stack: f.stack(o.Stack),
		Entry: f.entry(o.Entry), SystemCalls: f.calls(o.SystemCalls),
	}
	for _, g := range o.Gaps {
		r.Gaps = append(r.Gaps, evidence.GapReason(f.keep(string(g.Reason))))
	}
	if have != nil {
		have.at, have.Row = at, r
		return
	}
	k.run, k.probe, k.path, k.file, k.symbol, k.event, k.function = r.RunID, r.ProbeID, r.Path, r.FileDigest, r.Symbol, r.Event, r.Function
	if r.Entry != nil {
		k.build = r.BuildID
	} else {
		k.origin = r.Origin
	}
	f.sites[k] = &latestSite{at, r}
}

func (f *fold) run(at position, c *evidence.Coverage) {
	have := f.runs[c.RunID]
	if have == nil {
		have = &latestRun{}
		f.runs[f.keep(c.RunID)] = have
	} else if !at.after(have.at) {
		return
	}
	have.at, have.to, have.final = at, c.To, c.Final
	have.name, have.image, have.pod = f.keep(c.ContainerName), f.keep(c.Image), ""
	have.probes = have.probes[:0]
	for _, p := range c.Probes {
		p.ProbeID, p.State, p.SearchReason = f.keep(p.ProbeID), evidence.State(f.keep(string(p.State))), f.keep(p.SearchReason)
		have.probes = append(have.probes, p)
	}
	if c.Pod != nil {
		have.pod = c.Pod.Namespace + "/" + c.Pod.Name
	}
}

func (f *fold) gap(at position, g *evidence.Gap) {
	have := f.gaps[g.GapID]
	if have == nil {
		have = &latestGap{first: at}
		f.gaps[f.keep(g.GapID)] = have
	} else if !at.after(have.at) {
		have.began(at)
		return
	}
	have.at = at
	have.GapRow = GapRow{
		ProbeID: f.keep(g.ProbeID), Symbol: f.keep(g.Symbol), Offset: g.Offset, ProbeType: evidence.ProbeType(f.keep(string(g.ProbeType))),
		GapID: f.keep(g.GapID), Scope: f.keep(g.Scope), Reason: evidence.GapReason(f.keep(string(g.Reason))),
		Source: f.keep(g.Source), RunID: f.keep(g.RunID), ContainerID: f.keep(g.ContainerID), Path: f.keep(g.Path),
		Count: g.Count, From: g.From, To: g.To, Detail: f.keep(g.Detail),
	}
}

// merge takes over what another worker folded.
func (f *fold) merge(o *fold) {
	if f.chunks == nil {
		*f = *o
		return
	}
	f.lines += o.lines
	maps.Copy(f.spools, o.spools)
	for spool, chunks := range o.inLog {
		if f.inLog[spool] == nil {
			f.inLog[spool] = chunks
			continue
		}
		maps.Copy(f.inLog[spool], chunks)
	}
	for name, files := range o.chunks {
		f.chunks[name] = append(f.chunks[name], files...)
	}
	maps.Copy(f.runIDs, o.runIDs)
	mergeLatest(f.sites, o.sites, func(s *latestSite) position { return s.at })
	mergeLatest(f.runs, o.runs, func(s *latestRun) position { return s.at })
	for id, g := range o.gaps { // before one of the two is dropped
		if have := f.gaps[id]; have != nil {
			have.began(g.first)
			g.began(have.first)
		}
	}
	mergeLatest(f.gaps, o.gaps, func(s *latestGap) position { return s.at })
}

func mergeLatest[K comparable, V any](into, from map[K]*V, at func(*V) position) {
	for k, v := range from {
		if have := into[k]; have == nil || at(v).after(at(have)) {
			into[k] = v
		}
	}
}

// repeated returns a finding for each further file of a chunk.
func (f *fold) repeated() (out []Finding) {
	for name, files := range f.chunks {
		slices.Sort(files)
		for _, file := range files[1:] {
			out = append(out, Finding{Kind: Duplicated, File: file, Line: 1, Reason: fmt.Sprintf("the same sequence number as %s: chunk %s is there twice", files[0], name)})
		}
	}
	return out
}

// fill writes the fold into a report.
func (f *fold) fill(rep *Report) {
	rep.Chunks, rep.Lines, rep.Runs = len(f.chunks), f.lines, len(f.runIDs)
	rep.Rows, rep.Gaps, rep.Holes = make([]Row, 0, len(f.sites)), make([]GapRow, 0, len(f.gaps)), f.holes()
	byRun := map[string][]*latestGap{}
	for _, g := range f.gaps {
		if g.RunID != "" {
			byRun[g.RunID] = append(byRun[g.RunID], g)
		}
	}
	for _, gaps := range byRun {
		slices.SortFunc(gaps, func(a, b *latestGap) int {
			return cmp.Or(a.From.Std().Compare(b.From.Std()), cmp.Compare(a.GapID, b.GapID))
		})
	}
	for _, s := range f.inOrder() {
		rep.Rows = append(rep.Rows, f.row(s, byRun[s.RunID]))
	}
	foldProbes(rep.Rows)
	for _, g := range f.gaps {
		rep.Gaps = append(rep.Gaps, g.GapRow)
	}
	slices.SortFunc(rep.Gaps, func(a, b GapRow) int {
		return cmp.Or(a.From.Std().Compare(b.From.Std()), cmp.Compare(a.GapID, b.GapID))
	})
}

// row is a site's latest line and what later lines of its run make of it: a
// coverage line extends its window, and a gap line that it does not know of, such
// as agentDown, ends it, or is a gap in it.
func (f *fold) row(s *latestSite, gaps []*latestGap) Row {
	r := s.Row
	run := f.runs[r.RunID]
	if run != nil {
		r.ContainerName, r.Pod, r.Image = run.name, run.pod, run.image
		for _, p := range run.probes {
			if p.ProbeID == r.ProbeID {
				r.ProbeState, r.SearchReason = p.State, p.SearchReason
			}
		}
	}
	r.Gaps = slices.Clone(r.Gaps)
	end, extended := r.To, false
	if run != nil && run.at.after(s.at) && run.to.Std().After(r.To.Std()) {
		end, extended = run.to, true
	}
	for _, g := range gaps { // by their beginning
		if !g.first.after(s.at) || !g.about(&r) {
			continue
		}
		if !slices.Contains(r.Gaps, g.Reason) {
			r.Gaps = append(r.Gaps, g.Reason)
		}
		if g.Reason.DetailOnly() || r.State == evidence.NotArmed {
			continue
		}
		switch {
		case g.From.Std().Before(r.To.Std()):
			r.Complete = false
			if r.State == evidence.ArmedNoHit {
				r.State = evidence.Partial
			}
		case extended && g.From.Std().Before(end.Std()):
			end = g.From
		}
	}
	r.To = end
	if r.Entry != nil && run != nil && run.final && run.at.after(s.at) {
		r.Final = true // an entry that was not seen again has no last line of its own
	}
	return r
}

// foldProbes brings what coverage lines say of probes, at most once an hour, up to
// the rows: it may only get weaker, or a hit.
func foldProbes(rows []Row) {
	states := map[[2]string][]evidence.State{}
	for i := range rows {
		if r := &rows[i]; r.ProbeState != "" {
			k := [2]string{r.RunID, r.ProbeID}
			if states[k] == nil {
				states[k] = append(states[k], r.ProbeState)
			}
			states[k] = append(states[k], r.State)
		}
	}
	folded := map[[2]string]evidence.State{}
	for i := range rows {
		r := &rows[i]
		if r.ProbeState == "" {
			continue
		}
		k := [2]string{r.RunID, r.ProbeID}
		st, ok := folded[k]
		if !ok {
			st = evidence.FoldSites(r.SearchReason == "", states[k])
			folded[k] = st
		}
		r.ProbeState = st
	}
}

// inOrder sorts the sites: runs by their beginning, and a run's by probe and
// place.
func (f *fold) inOrder() []*latestSite {
	type run struct {
		id, container string
		from          evidence.Time
		rank          int
	}
	runs := map[string]*run{}
	for _, s := range f.sites {
		r := runs[s.RunID]
		if r == nil {
			r = &run{id: s.RunID, container: s.ContainerID, from: s.From}
			runs[s.RunID] = r
		}
		if s.From.Std().Before(r.from.Std()) {
			r.from = s.From
		}
	}
	ranked := slices.SortedFunc(maps.Values(runs), func(a, b *run) int {
		return cmp.Or(a.from.Std().Compare(b.from.Std()), cmp.Compare(a.container, b.container), cmp.Compare(a.id, b.id))
	})
	for i, r := range ranked {
		r.rank = i
	}
	type ranking struct {
		rank   int
		offset uint64
		entry  string
		site   *latestSite
	}
	order := make([]ranking, 0, len(f.sites))
	for k, s := range f.sites {
		order = append(order, ranking{runs[s.RunID].rank, k.offset, k.entry, s})
	}
	slices.SortFunc(order, func(x, y ranking) int {
		if x.rank != y.rank {
			return x.rank - y.rank
		}
		a, b := x.site, y.site
		if c := strings.Compare(a.ProbeID, b.ProbeID); c != 0 {
			return c
		}
		if c := strings.Compare(a.Path, b.Path); c != 0 {
			return c
		}
		return cmp.Or(
			cmp.Compare(x.offset, y.offset), strings.Compare(a.Symbol, b.Symbol), strings.Compare(a.FileDigest, b.FileDigest), strings.Compare(a.Event, b.Event),
			strings.Compare(a.Function, b.Function), strings.Compare(x.entry, y.entry), strings.Compare(a.BuildID, b.BuildID),
			strings.Compare(a.Origin, b.Origin),
		)
	})
	out := make([]*latestSite, len(order))
	for i, o := range order {
		out[i] = o.site
	}
	return out
}

func (f *fold) holes() []Hole {
	byInstance := map[string][]uint64{}
	for name := range f.spools {
		if seq, instance, ok := evidence.ParseChunkName(name); ok {
			byInstance[instance] = append(byInstance[instance], seq)
		}
	}
	holes := []Hole{}
	for _, instance := range slices.Sorted(maps.Keys(byInstance)) {
		seqs := byInstance[instance]
		slices.Sort(seqs)
		last := uint64(0) // the first chunk of an instance has 1
		for _, seq := range seqs {
			if seq > last+1 {
				holes = append(holes, Hole{Instance: instance, From: last + 1, To: seq - 1})
			}
			last = seq
		}
	}
	return holes
}
