package verify

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"probity/evidence"
)

// This file keeps the latest line of each site. There may be millions, so a site is
// kept without pointers: the garbage collector has nothing to look at, and texts,
// which repeat, are kept once.

// texts gives each text a number, by which texts can be compared. 0 is "".
type texts struct {
	list []string
	ids  map[string]uint32
}

func newTexts() texts { return texts{list: []string{""}, ids: map[string]uint32{"": 0}} }

func (t *texts) id(s string) uint32 {
	if id, ok := t.ids[s]; ok {
		return id
	}
	s = strings.Clone(s)
	id := uint32(len(t.list))
	t.list = append(t.list, s)
	t.ids[s] = id
	return id
}

// ranks says where each text is in their order.
func (t *texts) ranks() []uint32 {
	order := make([]uint32, len(t.list))
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(a, b uint32) int { return strings.Compare(t.list[a], t.list[b]) })
	ranks := make([]uint32, len(order))
	for rank, id := range order {
		ranks[id] = uint32(rank)
	}
	return ranks
}

// The texts of a site.
const (
	textRun = iota
	textContainer
	textRuntime
	textImage
	textProbe
	textProbeType
	textRequested
	textSymbol
	textSymbolKind
	textInline
	textDemangled
	textWanted
	textInlinedIn
	textImplements
	textFunction
	textSet
	textEvent
	textPath
	textOrigin
	textFile
	textBuild
	textState
	textReason
	textDetail
	textEntry    // its entryKey
	textRedacted // its redactedKey
	textCount
)

func textsOf(o *evidence.Observation) [textCount]string {
	entry := ""
	if o.Entry != nil {
		entry = entryKey(o)
	}
	return [textCount]string{
		textRun: o.RunID, textContainer: o.ContainerID, textRuntime: o.Runtime, textImage: o.ImageDigest, textProbe: o.ProbeID,
		textProbeType: string(o.ProbeType), textRequested: string(o.RequestedProbeType), textSymbol: o.Symbol, textSymbolKind: o.SymbolKind,
		textInline: o.Inline, textDemangled: o.Demangled, textWanted: o.Wanted, textInlinedIn: o.InlinedIn, textImplements: o.Implements,
		textFunction: o.Function, textSet: o.Set, textEvent: o.Event, textPath: o.Path, textOrigin: o.Origin, textFile: o.FileDigest,
		textBuild: o.BuildID, textState: string(o.State), textReason: string(o.Reason), textDetail: o.Detail, textEntry: entry, textRedacted: redactedKey(o),
	}
}

// stamp is a time of the format, all of them: nanoseconds since 1970 would not do.
type stamp struct {
	sec  int64
	nsec int32
	set  bool
}

func stampOf(t evidence.Time) stamp {
	if t.IsZero() {
		return stamp{}
	}
	return stamp{t.Std().Unix(), int32(t.Std().Nanosecond()), true}
}

func (s stamp) time() evidence.Time {
	if !s.set {
		return evidence.Time{}
	}
	return evidence.TimeOf(time.Unix(s.sec, int64(s.nsec)))
}

// site is the latest line of a site.
type site struct {
	text                      [textCount]uint32
	line                      uint32
	chunk                     uint32 // of sites.chunks
	node                      uint32 // a text
	offset, count             uint64
	from, to, firstAt, lastAt stamp
	confidence                float64
	hasOffset, hasCount       bool
	complete, final           bool
}

// siteKey is what tells a site from others, texts by their numbers.
type siteKey struct {
	node, run, probe, path, origin, file, build, symbol, event, function, entry, redacted uint32
	hasOffset                                                                             bool
	offset                                                                                uint64
}

func (s *site) key() siteKey {
	k := siteKey{
		run: s.text[textRun], probe: s.text[textProbe], path: s.text[textPath], file: s.text[textFile], symbol: s.text[textSymbol],
		event: s.text[textEvent], function: s.text[textFunction], entry: s.text[textEntry], offset: s.offset, hasOffset: s.hasOffset,
		redacted: s.text[textRedacted],
	}
	if k.entry != 0 {
		k.build = s.text[textBuild]
	} else {
		k.origin = s.text[textOrigin]
	}
	return k
}

// details are what few sites have. Sites share them, so they are never changed.
type details struct {
	inlinedAt     []evidence.Instance
	inlinedAtMore evidence.Uint64
	duration      *evidence.Duration
	stack         *evidence.Stack
	entry         *evidence.Entry
	entries       evidence.Uint64
	systemCalls   []evidence.SystemCalls
	ioUring       bool
	process       *evidence.Process
	gaps          []evidence.GapReason
	redacted      []evidence.Redaction
}

// pages is a list that grows without being copied, and whose elements stay where
// they are.
type pages[T any] struct {
	list [][]T
	n    int
}

// perPage is how many elements a page has: a quarter of a megabyte of sites.
const perPage = 1 << 10

func (p *pages[T]) at(i int) *T { return &p.list[i/perPage][i%perPage] }

func (p *pages[T]) add(v T) {
	if p.n%perPage == 0 {
		p.list = append(p.list, make([]T, perPage))
	}
	*p.at(p.n) = v
	p.n++
}

// sites are all of them, by their keys.
type sites struct {
	at      map[siteKey]uint32
	list    pages[site]
	details pages[*details] // of each; nil where there are none
	chunks  []*placed       // that they are in

	// Of a site whose line is a hit, the latest line that comes after it and is none.
	unhit map[uint32]unhit

	// Of the chunk that is folded in: the line before, in each state. Most of its
	// texts are the next one's.
	before [4]struct {
		line    *evidence.Observation
		texts   [textCount]string
		ids     [textCount]uint32
		details *details
	}
}

// unhit is a line about a site that was hit, and that does not say so.
type unhit struct {
	position
	state evidence.State
}

// forget lets go of the chunk.
func (s *sites) forget() { clear(s.before[:]) }

// site takes an observation. The chunk is at's, by its number, and the node is a text.
// The latest line counts; but a hit stays: what was executed was executed, whatever a
// later line says.
func (f *fold) site(at position, chunk, node uint32, o *evidence.Observation) {
	before := &f.sites.before[max(0, slices.Index(evidence.States, o.State))]
	new := site{
		line: uint32(at.line), chunk: chunk, node: node, confidence: o.Confidence.Value, complete: o.Complete, final: o.Final,
		from: stampOf(o.From), to: stampOf(o.To), firstAt: stampOf(o.FirstAt), lastAt: stampOf(o.LastAt),
	}
	if o.Offset != nil {
		new.offset, new.hasOffset = uint64(*o.Offset), true
	}
	if o.Count != nil {
		new.count, new.hasCount = uint64(*o.Count), true
	}
	for i, s := range textsOf(o) {
		if s != before.texts[i] {
			before.texts[i], before.ids[i] = s, f.texts.id(s)
		}
		new.text[i] = before.ids[i]
	}
	k := new.key()
	k.node = f.keyed(node)
	i, ok := f.sites.at[k]
	if ok {
		have := f.sites.position(i)
		state := evidence.State(f.texts.list[f.sites.list.at(int(i)).text[textState]])
		was, is := state == evidence.Hit, o.State == evidence.Hit
		switch newer := at.after(have); {
		case was && !is:
			if newer {
				f.sites.notHit(i, unhit{at, o.State})
			}
			return
		case is && !was && !newer:
			f.sites.notHit(i, unhit{have, state})
		case !newer:
			return
		default:
			if u, ok := f.sites.unhit[i]; ok && !u.after(at) {
				delete(f.sites.unhit, i)
			}
		}
	}
	if before.line == nil || !sameDetails(before.line, o) {
		before.line, before.details = o, f.detailsOf(o)
	}
	if ok {
		*f.sites.list.at(int(i)), *f.sites.details.at(int(i)) = new, before.details
		return
	}
	f.sites.at[k] = uint32(f.sites.list.n)
	f.sites.list.add(new)
	f.sites.details.add(before.details)
}

func (s *sites) notHit(i uint32, u unhit) {
	if before, ok := s.unhit[i]; !ok || u.after(before.position) {
		s.unhit[i] = u
	}
}

func (s *sites) position(i uint32) position {
	x := s.list.at(int(i))
	return position{s.chunks[x.chunk], int(x.line)}
}

// sameDetails reports whether two lines have the very same details, in memory.
func sameDetails(a, b *evidence.Observation) bool {
	return a.Process == b.Process && same(a.Gaps, b.Gaps) && a.Entry == b.Entry && a.Entries == b.Entries && a.Duration == b.Duration && a.Stack == b.Stack &&
		same(a.InlinedAt, b.InlinedAt) && a.InlinedAtMore == b.InlinedAtMore && same(a.SystemCalls, b.SystemCalls) && a.IOUring == b.IOUring && same(a.Redacted, b.Redacted)
}

func same[T any](a, b []T) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

func (f *fold) detailsOf(o *evidence.Observation) *details {
	if sameDetails(o, &evidence.Observation{}) {
		return nil
	}
	d := &details{
		inlinedAt: f.instances(o.InlinedAt), inlinedAtMore: o.InlinedAtMore, duration: f.duration(o.Duration), stack: f.stack(o.Stack),
		entry: f.entry(o.Entry), entries: o.Entries, systemCalls: f.calls(o.SystemCalls), ioUring: o.IOUring, process: f.process(o.Process), redacted: f.redactions(o.Redacted),
	}
	for _, g := range o.Gaps {
		d.gaps = append(d.gaps, evidence.GapReason(f.keep(string(g.Reason))))
	}
	return d
}

// fillRow writes a site into a row, and returns where its line is.
func (f *fold) fillRow(i uint32, r *Row) position {
	s := f.sites.list.at(int(i))
	text := func(which int) string { return f.texts.list[s.text[which]] }
	r.Node, r.run = f.texts.list[s.node], ownID{f.texts.list[f.keyed(s.node)], text(textRun)}
	r.RunID, r.ContainerID, r.Runtime, r.ImageDigest = text(textRun), text(textContainer), text(textRuntime), text(textImage)
	r.ProbeID, r.ProbeType, r.Requested = text(textProbe), evidence.ProbeType(text(textProbeType)), evidence.ProbeType(text(textRequested))
	r.Symbol, r.SymbolKind, r.Inline, r.Demangled, r.Wanted = text(textSymbol), text(textSymbolKind), text(textInline), text(textDemangled), text(textWanted)
	r.InlinedIn, r.Implements, r.Function, r.Set, r.Event = text(textInlinedIn), text(textImplements), text(textFunction), text(textSet), text(textEvent)
	r.Path, r.Origin, r.FileDigest, r.BuildID = text(textPath), text(textOrigin), text(textFile), text(textBuild)
	r.State, r.Reason, r.Detail = evidence.State(text(textState)), evidence.NotArmedReason(text(textReason)), text(textDetail)
	r.Complete, r.Final, r.Confidence = s.complete, s.final, s.confidence
	r.From, r.To, r.FirstAt, r.LastAt = s.from.time(), s.to.time(), s.firstAt.time(), s.lastAt.time()
	if s.hasOffset {
		r.Offset = (*evidence.Uint64)(&s.offset)
	}
	if s.hasCount {
		r.Count = (*evidence.Uint64)(&s.count)
	}
	if d := *f.sites.details.at(int(i)); d != nil {
		r.InlinedAt, r.InlinedAtMore, r.Duration, r.Stack, r.Entry, r.Entries = d.inlinedAt, d.inlinedAtMore, d.duration, d.stack, d.entry, d.entries
		r.SystemCalls, r.IOUring, r.Process, r.Gaps, r.Redacted = d.systemCalls, d.ioUring, d.process, d.gaps, d.redacted
	}
	return f.sites.position(i)
}

// sameRun reports whether two sites are of one run.
func (f *fold) sameRun(i, j uint32) bool {
	a, b := f.sites.list.at(int(i)), f.sites.list.at(int(j))
	return a.text[textRun] == b.text[textRun] && f.keyed(a.node) == f.keyed(b.node)
}

// inOrder sorts the sites: runs by their beginning, and a run's by probe and
// place.
func (f *fold) inOrder() []uint32 {
	type id struct{ node, run uint32 }
	type run struct {
		id
		container uint32
		from      time.Time
		rank      uint64
	}
	ranks := f.texts.ranks()
	runs := map[id]*run{}
	var r *run
	for i := range f.sites.list.n {
		s := f.sites.list.at(i)
		id, from := id{f.keyed(s.node), s.text[textRun]}, s.from.time().Std()
		if r == nil || r.id != id {
			if r = runs[id]; r == nil {
				r = &run{id: id, container: s.text[textContainer], from: from}
				runs[id] = r
			}
		}
		if from.Before(r.from) {
			r.from = from
		}
	}
	for i, r := range slices.SortedFunc(maps.Values(runs), func(a, b *run) int {
		return cmp.Or(a.from.Compare(b.from), cmp.Compare(ranks[a.container], ranks[b.container]), cmp.Compare(ranks[a.id.run], ranks[b.id.run]), cmp.Compare(ranks[a.node], ranks[b.node]))
	}) {
		r.rank = uint64(i)
	}
	type ranking struct {
		probe  uint64 // and its run, which is the upper half
		offset uint64
		path   uint32
		site   uint32
	}
	order := make([]ranking, f.sites.list.n)
	for i := range f.sites.list.n {
		s := f.sites.list.at(i)
		if of := (id{f.keyed(s.node), s.text[textRun]}); r.id != of {
			r = runs[of]
		}
		order[i] = ranking{r.rank<<32 | uint64(ranks[s.text[textProbe]]), s.offset, ranks[s.text[textPath]], uint32(i)}
	}
	slices.SortFunc(order, func(x, y ranking) int {
		if c := cmp.Compare(x.probe, y.probe); c != 0 {
			return c
		}
		if c := cmp.Or(cmp.Compare(x.path, y.path), cmp.Compare(x.offset, y.offset)); c != 0 {
			return c
		}
		a, b := f.sites.list.at(int(x.site)), f.sites.list.at(int(y.site))
		for _, which := range [...]int{textSymbol, textFile, textEvent, textFunction, textEntry, textBuild, textOrigin} {
			if c := cmp.Compare(ranks[a.text[which]], ranks[b.text[which]]); c != 0 {
				return c
			}
		}
		return 0
	})
	out := make([]uint32, len(order))
	for i, o := range order {
		out[i] = o.site
	}
	return out
}
