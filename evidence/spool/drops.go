package spool

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"probity/evidence"
)

// maxDropRuns bounds the memory of drops; further runs are only in the node's
// count. It is more than live on a node, so that who starts containers for that
// hides nobody's loss behind theirs.
const maxDropRuns = 1 << 14

// drops is what was given up and has not been signed yet. The zero value is
// nothing.
type drops struct {
	lines    uint64
	chunks   uint64
	firstSeq uint64
	lastSeq  uint64
	fromNs   int64 // boot time: the first dropped chunk's first line
	toNs     int64 // boot time: the last dropped chunk's closing
	why      string
	perRun   map[string]runLines
}

func (d *drops) empty() bool { return d.chunks == 0 && d.lines == 0 }

// add counts a chunk, whose clock here is the chunk's in this boot's time. What the
// chunk itself said was dropped counts again instead of its own lines.
func (d *drops) add(c *chunk, here evidence.Clock, why error) {
	if why != nil {
		d.why = why.Error()
	}
	shift := int64(here.BootNs) - int64(c.header.Clock.BootNs)
	if !c.carries.empty() {
		o := c.carries
		o.fromNs, o.toNs = o.fromNs+shift, o.toNs+shift
		d.merge(o)
		return
	}
	one := drops{
		lines: c.tally.Lines(), chunks: 1, firstSeq: uint64(c.header.Seq), lastSeq: uint64(c.header.Seq),
		fromNs: int64(here.BootNs), toNs: c.closedNs + shift, perRun: c.perRun,
	}
	for _, g := range c.tells { // what they say counts, and not that there was a line
		one.lines--
		r := one.perRun[g.RunID]
		r.lines--
		one.perRun[g.RunID] = r
		one.carry(g, here)
	}
	d.merge(one)
}

// carryOn notes what a chunk whose lines were found again says was dropped.
func (d *drops) carryOn(g *evidence.Gap, h evidence.Header) {
	if d.empty() {
		*d = drops{
			chunks: 1, firstSeq: uint64(h.Seq), lastSeq: uint64(h.Seq), fromNs: int64(h.Clock.BootNs), toNs: int64(h.Clock.BootNs),
			why: "dropped before", perRun: map[string]runLines{},
		}
	}
	d.carry(g, h.Clock)
}

// addFile counts a chunk that was published and is to be removed, as far as its
// file can be read. here gives a chunk's clock in this boot's time.
func (d *drops) addFile(it Item, here func(evidence.Header) evidence.Clock, why error) {
	seq, _, _ := evidence.ParseChunkName(it.Chunk)
	one := drops{chunks: 1, firstSeq: seq, lastSeq: seq, why: why.Error(), perRun: map[string]runLines{}}
	b, err := readBounded(it.Path)
	if err != nil {
		one.why += "; " + err.Error()
	}
	rows := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	h, err := evidence.DecodeHeader(rows[0])
	if err != nil {
		d.merge(one)
		return
	}
	clock := here(h)
	one.fromNs, one.toNs = int64(clock.BootNs), int64(clock.BootNs)
	for _, row := range rows[1:max(1, len(rows)-1)] {
		l, err := evidence.Decode(row)
		if err != nil {
			continue
		}
		if g, ok := l.(*evidence.Gap); ok && g.Reason == evidence.GapSpoolDropped {
			one.carry(g, clock)
			continue
		}
		one.lines++
		countLine(one.perRun, l, 0)
	}
	d.merge(one)
}

// carry takes over what a gap line that is to be removed says was lost before: a
// loss stays signed.
func (d *drops) carry(g *evidence.Gap, c evidence.Clock) {
	d.fromNs = min(d.fromNs, c.Boot(g.From))
	if g.Scope != evidence.ScopeRun {
		d.lines += g.Count.N // of all runs together, or of what was refused of one
	}
	if g.RunID == "" {
		return
	}
	r := d.perRun[g.RunID]
	r.containerID = strings.Clone(g.ContainerID)
	r.lines += g.Count.N
	if g.ProbeType != "" {
		if r.types == nil {
			r.types = map[evidence.ProbeType]uint64{}
		}
		r.types[g.ProbeType] += g.Count.N
	}
	d.perRun[strings.Clone(g.RunID)] = r
}

func (d *drops) merge(o drops) {
	if o.empty() {
		return
	}
	if d.empty() {
		d.firstSeq, d.fromNs = o.firstSeq, o.fromNs
	}
	d.firstSeq, d.fromNs = min(d.firstSeq, o.firstSeq), min(d.fromNs, o.fromNs)
	d.lastSeq, d.toNs = max(d.lastSeq, o.lastSeq), max(d.toNs, o.toNs)
	d.lines += o.lines
	d.chunks += o.chunks
	if d.why == "" {
		d.why = o.why
	}
	if d.perRun == nil {
		d.perRun = map[string]runLines{}
	}
	for id, r := range o.perRun {
		have, ok := d.perRun[id]
		if !ok && len(d.perRun) >= maxDropRuns {
			continue
		}
		have.lines += r.lines
		have.containerID = r.containerID
		have.types = maps.Clone(have.types)
		for pt, n := range r.types {
			if have.types == nil {
				have.types = map[evidence.ProbeType]uint64{}
			}
			have.types[pt] += n
		}
		d.perRun[id] = have
	}
}

func (d *drops) runIDs() []string { return slices.Sorted(maps.Keys(d.perRun)) }

// leaf says how much was lost, for the log.
func (d *drops) leaf(clock evidence.Clock) *evidence.GapLeaf {
	return &evidence.GapLeaf{
		Reason: evidence.GapSpoolDropped, From: clock.Time(d.fromNs), To: clock.Time(max(d.fromNs, d.toNs)), Count: evidence.Loss{N: d.lines}, Detail: d.detail(),
	}
}

func (d *drops) detail() string {
	if d.chunks == 0 {
		return clipRunes(fmt.Sprintf("more runs of these chunks, sequence %d to %d: %s", d.firstSeq, d.lastSeq, d.why), evidence.MaxText)
	}
	return clipRunes(fmt.Sprintf("%d chunks, sequence %d to %d: %s", d.chunks, d.firstSeq, d.lastSeq, d.why), evidence.MaxText)
}

// split cuts what was dropped into parts of no more runs than one chunk holds: what
// a chunk says can only be carried back together (see signDrops). The chunks, and the
// lines of no run, are counted in the first.
func (d *drops) split() []drops {
	runs := d.runIDs()
	if len(runs) <= evidence.MaxChunkRuns {
		return []drops{*d}
	}
	rest := *d
	var out []drops
	for some := range slices.Chunk(runs, evidence.MaxChunkRuns) {
		part := *d
		part.chunks, part.lines, part.perRun = 0, 0, map[string]runLines{}
		for _, id := range some {
			part.perRun[id] = d.perRun[id]
			part.lines += d.perRun[id].lines
		}
		rest.lines -= min(rest.lines, part.lines)
		out = append(out, part)
	}
	out[0].chunks, out[0].lines = d.chunks, out[0].lines+rest.lines
	return out
}

// gaps returns one gap of the node with the count of all lost lines, and of each
// run one for each probe type with the count of its observations, and one for the
// rest. part tells the parts of one loss apart.
func (d *drops) gaps(clock evidence.Clock, instance string, part int) []*evidence.Gap {
	from, to := clock.Time(d.fromNs), clock.Time(d.toNs)
	id := "spoolDropped-" + evidence.ChunkName(d.firstSeq, instance)
	if part > 0 {
		id += fmt.Sprint("-", part)
	}
	lines := []*evidence.Gap{{
		GapID: id, Scope: evidence.ScopeNode, Reason: evidence.GapSpoolDropped, From: from, To: to, Count: evidence.Loss{N: d.lines}, Detail: d.detail(),
	}}
	for _, run := range d.runIDs() {
		r := d.perRun[run]
		gap := func(suffix string, pt evidence.ProbeType, n uint64) {
			lines = append(lines, &evidence.Gap{
				GapID: id + "-" + run + suffix, Scope: evidence.ScopeRun, Reason: evidence.GapSpoolDropped, From: from, To: to,
				Count: evidence.Loss{N: n}, RunID: run, ContainerID: r.containerID, ProbeType: pt,
			})
		}
		rest := r.lines
		for _, pt := range slices.Sorted(maps.Keys(r.types)) {
			gap("-"+string(pt), pt, r.types[pt])
			rest -= r.types[pt]
		}
		if rest > 0 {
			gap("", "", rest)
		}
	}
	return lines
}
