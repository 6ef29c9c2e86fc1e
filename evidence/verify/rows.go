package verify

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"probity/evidence"
)

// Row is the latest that is known of one site of one run, or of one probe where
// it has no site.
type Row struct {
	Node          string                  `json:"node"`
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
	Gaps          []evidence.GapReason    `json:"gaps,omitempty"`     // of the line, and of later gap lines about the site
	NodeGaps      []evidence.GapReason    `json:"nodeGaps,omitempty"` // what the node's clocks did in the window, which takes nothing from it
	Confidence    float64                 `json:"confidence"`
	Final         bool                    `json:"final"`
	FirstAt       evidence.Time           `json:"firstAt,omitzero"`
	LastAt        evidence.Time           `json:"lastAt,omitzero"`
	Process       *evidence.Process       `json:"process,omitempty"` // of the first hit
	From          evidence.Time           `json:"from"`
	// Redacted lists what the node's policy took out of the row, and by which rule.
	Redacted []evidence.Redaction `json:"redacted,omitempty"`
	// ProbeState is the state of the row's probe as a whole: the fold of the run's
	// latest coverage line and of all rows of the probe. SearchReason says why not all files were searched for the
	// probe's sites; then nothing is claimed of the container, only of this site.
	ProbeState   evidence.State `json:"probeState,omitempty"`
	SearchReason string         `json:"searchReason,omitempty"`
	To           evidence.Time  `json:"to"` // of the line, or of a later coverage line of the run

	run ownID
}

// ownID tells runs apart, and gaps. A trusted node's lines are about its own, whatever
// ids it writes: where several nodes are trusted, its name is in it, so that no
// node's lines take another's place.
type ownID struct {
	node string // "" where one key is trusted: a node may be renamed
	id   string
}

// GapRow is the latest that is known of one gap.
type GapRow struct {
	Node        string             `json:"node"`
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

	Redacted []evidence.Redaction `json:"redacted,omitempty"`

	run ownID // none if its id is ""
}

// position orders lines by age: a chunk's seq, then the line. Chunks of two instances are
// of two state directories, each of which begins with 1: there the headers' clocks
// count, boot time within one boot, else wall time.
type position struct {
	in   *placed
	line int
}

// placed is what a chunk's header says of its age.
type placed struct {
	seq            uint64
	instance, boot string
	clock          evidence.Clock
}

func (p position) after(q position) bool {
	a, b := p.in, q.in
	switch {
	case a.instance == b.instance:
		return cmp.Or(cmp.Compare(a.seq, b.seq), cmp.Compare(p.line, q.line)) > 0
	case a.boot == b.boot:
		return cmp.Or(cmp.Compare(a.clock.BootNs, b.clock.BootNs), cmp.Compare(a.instance, b.instance)) > 0
	}
	return cmp.Or(a.clock.Wall.Std().Compare(b.clock.Wall.Std()), cmp.Compare(a.instance, b.instance)) > 0
}

type latestRun struct {
	probes []evidence.ProbeFold
	at     position
	name   string
	pod    string
	image  string
	digest string
	to     evidence.Time
	final  bool

	redacted []evidence.Redaction
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
	return g.run == r.run && samePath(&g.GapRow, r) && is(g.ProbeID, r.ProbeID) && is(g.Symbol, name) && is(string(g.ProbeType), string(r.ProbeType)) &&
		(g.Offset == nil || r.Offset != nil && *g.Offset == *r.Offset)
}

// fold keeps the latest line of everything. It copies what it keeps. Workers may
// add to it at the same time, in any order.
type fold struct {
	byNode bool // several nodes are trusted
	mu     sync.Mutex
	chunks map[string][]string // name -> files
	spools map[string]bool     // chunks, sound or not, that lie in a spool
	lines  int
	loose  int // sound chunks that are in no log, or whose log is not looked at
	sites  sites
	runs   map[ownID]*latestRun
	gaps   map[ownID]*latestGap
	takes  map[ownID][]position // of a run: lines that say that another agent took it up
	runIDs map[ownID]bool
	texts  texts
	inLog  map[string]map[string]inLog // of a spool, or of alone: its sound chunks
	clocks nodeClocks                  // made of the gaps, when all are there
}

// alone is where chunks that were named themselves are, which no spool is called.
const alone = ""

func newFold(byNode bool) *fold {
	return &fold{
		byNode: byNode, chunks: map[string][]string{}, spools: map[string]bool{}, sites: sites{at: map[siteKey]uint32{}, unhit: map[uint32]unhit{}}, runs: map[ownID]*latestRun{},
		gaps: map[ownID]*latestGap{}, takes: map[ownID][]position{}, runIDs: map[ownID]bool{}, texts: newTexts(), inLog: map[string]map[string]inLog{},
	}
}

// keep returns s without the chunk that it is a part of. Ids, paths and digests
// are shared by many rows.
func (f *fold) keep(s string) string { return f.texts.list[f.texts.id(s)] }

// found takes a chunk file that was looked at; c is nil if it is not sound.
func (f *fold) found(file file, c *Chunk) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if file.rel != "" {
		f.spools[strings.TrimSuffix(filepath.Base(file.rel), ".ndjson")] = true
	}
	if c == nil {
		return
	}
	if file.rel == "" || c.Header.Log == "" {
		f.loose++
	}
	in, spool := f.inLogOf(c), alone
	if file.rel != "" {
		spool = filepath.Clean(file.spool)
	} else {
		in.changes = nil // of its log nobody follows the heartbeats
	}
	if f.inLog[spool] == nil {
		f.inLog[spool] = map[string]inLog{}
	}
	f.inLog[spool][f.keep(c.Header.Chunk)] = in
	f.add(c)
}

// add folds a sound chunk in.
func (f *fold) add(c *Chunk) {
	seq, instance, _ := evidence.ParseChunkName(c.Header.Chunk)
	name := f.keep(c.Header.Chunk)
	f.chunks[name] = append(f.chunks[name], c.File)
	f.lines += len(c.Lines)
	in := &placed{seq: seq, instance: f.keep(instance), boot: f.keep(c.Header.BootID), clock: c.Header.Clock}
	chunk := uint32(len(f.sites.chunks))
	f.sites.chunks = append(f.sites.chunks, in)
	at := position{in: in}
	node := f.texts.id(c.Header.Node)
	last := ""
	for i, l := range c.Lines {
		at.line = i + 2
		if run := evidence.RunOf(l); run != last {
			if last = run; run != "" {
				f.runIDs[f.keyOf(node, run)] = true
			}
		}
		switch v := l.(type) {
		case *evidence.Observation:
			f.site(at, chunk, node, v)
		case *evidence.Coverage:
			f.run(at, node, v)
		case *evidence.Gap:
			f.gap(at, node, v)
		}
	}
	f.sites.forget()
}

// keyOf is the key of a run or a gap in a chunk of the node, a text.
func (f *fold) keyOf(node uint32, id string) ownID {
	return ownID{f.texts.list[f.keyed(node)], f.keep(id)}
}

// keyed is the node as keys have it.
func (f *fold) keyed(node uint32) uint32 {
	if f.byNode {
		return node
	}
	return 0
}

func (f *fold) run(at position, node uint32, c *evidence.Coverage) {
	id := f.keyOf(node, c.RunID)
	have := f.runs[id]
	if have == nil {
		have = &latestRun{}
		f.runs[id] = have
	} else if !at.after(have.at) {
		return
	}
	have.at, have.to, have.final = at, c.To, c.Final
	have.name, have.image, have.digest, have.pod = f.keep(c.ContainerName), f.keep(c.Image), f.keep(c.ImageDigest), ""
	have.redacted = f.redactions(c.Redacted)
	have.probes = have.probes[:0]
	for _, p := range c.Probes {
		p.ProbeID, p.State, p.SearchReason = f.keep(p.ProbeID), evidence.State(f.keep(string(p.State))), f.keep(p.SearchReason)
		have.probes = append(have.probes, p)
	}
	if c.Pod != nil {
		have.pod = c.Pod.Namespace + "/" + c.Pod.Name
	}
}

func (f *fold) gap(at position, node uint32, g *evidence.Gap) {
	if (g.Reason == evidence.GapAgentDown || g.Reason == evidence.GapAdopted) && g.RunID != "" {
		run := f.keyOf(node, g.RunID)
		f.takes[run] = append(f.takes[run], at)
	}
	id := f.keyOf(node, g.GapID)
	have := f.gaps[id]
	if have == nil {
		have = &latestGap{first: at}
		f.gaps[id] = have
	} else if !at.after(have.at) {
		have.began(at)
		return
	}
	have.at = at
	have.GapRow = GapRow{
		Node: f.texts.list[node], run: f.keyOf(node, g.RunID),
		ProbeID: f.keep(g.ProbeID), Symbol: f.keep(g.Symbol), Offset: g.Offset, ProbeType: evidence.ProbeType(f.keep(string(g.ProbeType))),
		GapID: f.keep(g.GapID), Scope: f.keep(g.Scope), Reason: evidence.GapReason(f.keep(string(g.Reason))),
		Source: f.keep(g.Source), RunID: f.keep(g.RunID), ContainerID: f.keep(g.ContainerID), Path: f.keep(g.Path),
		Count: g.Count, From: g.From, To: g.To, Detail: f.keep(g.Detail), Redacted: f.redactions(g.Redacted),
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

// fill writes the fold into a report, with so many workers.
func (f *fold) fill(rep *Report, workers int) {
	rep.Chunks, rep.Lines, rep.Runs = len(f.chunks), f.lines, len(f.runIDs)
	rep.Rows, rep.Gaps, rep.Holes = make([]Row, f.sites.list.n), make([]GapRow, 0, len(f.gaps)), f.holes()
	byRun := map[ownID][]*latestGap{}
	for _, g := range f.gaps {
		if g.RunID != "" {
			byRun[g.run] = append(byRun[g.run], g)
		}
	}
	for _, gaps := range byRun {
		slices.SortFunc(gaps, func(a, b *latestGap) int {
			return cmp.Or(a.From.Std().Compare(b.From.Std()), cmp.Compare(a.GapID, b.GapID), cmp.Compare(a.Node, b.Node))
		})
	}
	f.clocks = clocksOf(f.gaps)
	order := f.inOrder()
	var wg sync.WaitGroup
	for from, left := 0, max(1, workers); from < len(order); left-- {
		to := from + (len(order)-from)/max(1, left)
		for to < len(order) && (to == from || f.sameRun(order[to-1], order[to])) { // a run is one worker's
			to++
		}
		rows, sites := rep.Rows[from:to], order[from:to]
		wg.Go(func() { f.fillRows(rows, sites, byRun) })
		from = to
	}
	wg.Wait()
	rep.Findings = append(rep.Findings, f.takenBack()...)
	for _, g := range f.gaps {
		rep.Gaps = append(rep.Gaps, g.GapRow)
	}
	slices.SortFunc(rep.Gaps, func(a, b GapRow) int {
		return cmp.Or(a.From.Std().Compare(b.From.Std()), cmp.Compare(a.GapID, b.GapID), cmp.Compare(a.Node, b.Node))
	})
}

// takenBack returns a finding for each site that was hit and of which the same agent
// says later that it was not: what an agent counts only grows. Where another agent took
// the run up in between, which a gap says, it may not have known.
func (f *fold) takenBack() (out []Finding) {
	for i, u := range f.sites.unhit {
		var r Row
		hit := f.fillRow(i, &r)
		if slices.ContainsFunc(f.takes[r.run], func(at position) bool { return at.after(hit) && u.after(at) }) {
			continue
		}
		name := func(p position) string { return evidence.ChunkName(p.in.seq, p.in.instance) }
		where := Finding{Kind: HitTakenBack, Line: u.line, Reason: fmt.Sprintf("%s of a site that line %d of %s says was executed: the hit stays", u.state, hit.line, name(hit))}
		if files := f.chunks[name(u.position)]; len(files) > 0 {
			where.File = slices.Min(files)
		}
		out = append(out, where)
	}
	return out
}

// fillRows writes sites, all that their runs have, into rows.
func (f *fold) fillRows(rows []Row, sites []uint32, byRun map[ownID][]*latestGap) {
	var of []*latestGap
	for n, i := range sites {
		r := &rows[n]
		at := f.fillRow(i, r)
		if _, ok := f.sites.unhit[i]; ok {
			r.Complete = false
		}
		if n == 0 || rows[n-1].run != r.run {
			of = byRun[r.run]
		}
		f.since(r, at, of)
	}
	foldProbes(rows)
}

// since brings a site's latest line up to what later lines of its run make of it: a
// coverage line extends its window, and a gap line that it does not know of, such
// as agentDown, ends it, or is a gap in it.
func (f *fold) since(r *Row, at position, gaps []*latestGap) {
	run := f.runs[r.run]
	if run != nil {
		r.ContainerName, r.Pod, r.Image = run.name, run.pod, run.image
		for _, x := range run.redacted {
			if x.Member == "image" || x.Member == "probes.searchReason" { // of a row they are the run's
				r.Redacted = append(r.Redacted[:len(r.Redacted):len(r.Redacted)], x)
			}
		}
		for _, p := range run.probes {
			if p.ProbeID == r.ProbeID {
				r.ProbeState, r.SearchReason = p.State, p.SearchReason
			}
		}
	}
	own := moment{at.in, r.To}
	end, extended := own, false
	if run != nil && run.at.after(at) {
		if to := (moment{run.at.in, run.to}); own.before(to) {
			end, extended = to, true
		}
	}
	for _, g := range gaps { // by their beginning
		if g.Reason == evidence.GapCoalesced && !g.To.IsZero() {
			continue // all that was left out has been told since
		}
		refused := g.Reason == evidence.GapSpoolDropped && g.Scope == evidence.ScopeSite && r.Set != "" && r.Entry == nil
		if !refused && !g.first.after(at) || !g.about(r) {
			continue
		}
		from := moment{g.at.in, g.From}
		if !slices.Contains(r.Gaps, g.Reason) {
			r.Gaps = append(r.Gaps[:len(r.Gaps):len(r.Gaps)], g.Reason) // the list may be other rows' too
		}
		switch {
		case r.State == evidence.NotArmed:
			continue
		case refused: // entries of the set have no lines, and no later line brings them back
			r.Complete = false
			continue
		case g.Reason == evidence.GapSpoolDropped && !r.Final && (g.To.IsZero() || own.before(moment{g.at.in, g.To})):
			// What was given up came after this line, and may have said that it is no
			// longer so: no coverage line stands for that.
			r.Complete = false
			if r.State == evidence.ArmedNoHit {
				r.State = evidence.Partial
			}
			if extended && from.before(end) {
				end = from
			}
			continue
		case g.Reason == evidence.GapCoalesced:
			if r.State == evidence.Hit && extended {
				r.Complete = false // it may have been hit more often since
			}
			continue
		case g.Reason.DetailOnly():
			continue
		}
		switch {
		case from.before(own):
			r.Complete = false
			if r.State == evidence.ArmedNoHit {
				r.State = evidence.Partial
			}
		case extended && from.before(end):
			end = from
		}
	}
	if own.before(end) {
		r.To = end.by(at.in)
	}
	if r.State != evidence.NotArmed {
		r.NodeGaps = f.clocks.within(ofBoot{r.run.node, at.in.boot}, at.in.clock.Boot(r.From), at.in.clock.Boot(r.To))
	}
	if r.Entry != nil && run != nil && run.final && run.at.after(at) {
		r.Final = true // an entry that was not seen again has no last line of its own
	}
}

// foldProbes brings what coverage lines say of probes, at most once an hour, up to
// the rows: it may only get weaker, or a hit. A probe's rows follow one another.
func foldProbes(rows []Row) {
	var states []evidence.State
	for from := 0; from < len(rows); {
		first := &rows[from]
		states = append(states[:0], first.ProbeState)
		to := from
		for ; to < len(rows) && rows[to].run == first.run && rows[to].ProbeID == first.ProbeID; to++ {
			states = append(states, rows[to].State)
		}
		if first.ProbeState != "" {
			folded := evidence.FoldSites(first.SearchReason == "", states)
			for i := from; i < to; i++ {
				rows[i].ProbeState = folded
			}
		}
		from = to
	}
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
