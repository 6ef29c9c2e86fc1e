package spool

import (
	"fmt"
	"maps"
	"slices"

	"probity/evidence"
)

// maxDropRuns bounds the memory of drops; further runs are only in the node's
// count.
const maxDropRuns = 1 << 10

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

func (d *drops) empty() bool { return d.chunks == 0 }

// add counts a chunk. What the chunk itself said was dropped counts again
// instead of its own lines.
func (d *drops) add(c *chunk, why error) {
	if why != nil {
		d.why = why.Error()
	}
	if !c.carries.empty() {
		d.merge(c.carries)
		return
	}
	d.merge(drops{
		lines: c.tally.Lines(), chunks: 1, firstSeq: uint64(c.header.Seq), lastSeq: uint64(c.header.Seq),
		fromNs: int64(c.header.Clock.BootNs), toNs: c.closedNs, perRun: c.perRun,
	})
}

func (d *drops) merge(o drops) {
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
		d.perRun[id] = have
	}
}

func (d *drops) runIDs() []string { return slices.Sorted(maps.Keys(d.perRun)) }

// gaps returns one gap of the node with the count of all lost lines, and one of
// each run with its own, at most as many as one chunk holds: what they say can
// only be carried back together (see signDrops).
func (d *drops) gaps(clock evidence.Clock, instance string) []evidence.Line {
	from, to := clock.Time(d.fromNs), clock.Time(d.toNs)
	detail := []rune(fmt.Sprintf("%d chunks, sequence %d to %d: %s", d.chunks, d.firstSeq, d.lastSeq, d.why))
	id := "spoolDropped-" + evidence.ChunkName(d.firstSeq, instance)
	lines := []evidence.Line{&evidence.Gap{
		GapID: id, Scope: evidence.ScopeNode, Reason: evidence.GapSpoolDropped, From: from, To: to,
		Count: evidence.Loss{N: d.lines}, Detail: string(detail[:min(len(detail), evidence.MaxText)]),
	}}
	for i, run := range d.runIDs() {
		if i == evidence.MaxChunkRuns {
			break
		}
		lines = append(lines, &evidence.Gap{
			GapID: id + "-" + run, Scope: evidence.ScopeRun, Reason: evidence.GapSpoolDropped, From: from, To: to,
			Count: evidence.Loss{N: d.perRun[run].lines}, RunID: run, ContainerID: d.perRun[run].containerID,
		})
	}
	return lines
}
