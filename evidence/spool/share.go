package spool

import (
	"crypto/rand"
	"encoding/hex"
	"maps"
	"slices"
	"strings"

	"probity/evidence"
)

// A container chooses how many entries of sets it makes: they are what it can fill
// the spool with. So each has a share. Chunks hold lines of many containers; what
// counts is the bytes of a container's own lines in chunks that wait or are
// published and still there, and of a published chunk's header and envelope an equal
// part.
//
// From half its share on a container is told of thriftily ([Spool.Thrifty]): who
// makes the lines leaves out those that a later one replaces. At its share, further
// lines about entries are refused, and signed as lost; lines about sites, gaps and
// the run as a whole are always taken, because they say what is true of all of it.
// They count as well: where the spool's quota is full, a container with more than its
// share gives up what it wrote before anybody else does. So what a neighbour wrote
// stays where it is.

// memoryShare is which part of what may wait in memory one container may take
// while the disk cannot be written.
const memoryShare = 8

// holding is what the spool holds of one container, in bytes.
type holding struct {
	containerID string
	waiting     int64 // in memory
	stored      int64 // in chunks that are published
}

// part is what one published chunk holds of a container.
type part struct {
	of    *holding
	bytes int64
}

// kept is a published chunk and whose it is.
type kept struct {
	Item
	parts []part // of a chunk that an earlier agent wrote only after Account
	node  int64  // bytes of lines of no container, likewise
}

func containerOf(l evidence.Line) string {
	switch v := l.(type) {
	case *evidence.Coverage:
		return v.ContainerID
	case *evidence.Observation:
		return v.ContainerID
	case *evidence.Gap:
		return v.ContainerID
	}
	return ""
}

// holding returns a container's, with mu held.
func (s *Spool) holding(containerID string) *holding {
	h := s.held[containerID]
	if h == nil {
		h = &holding{containerID: strings.Clone(containerID)}
		s.held[h.containerID] = h
	}
	return h
}

// let forgets a container of which nothing is held, with mu held.
func (s *Spool) let(h *holding) {
	if h.waiting <= 0 && h.stored <= 0 {
		delete(s.held, h.containerID)
	}
}

// wait counts the lines of a chunk that waits: 1 or, when it no longer does, -1;
// with mu held.
func (s *Spool) wait(c *chunk, sign int64) {
	for _, r := range c.perRun {
		if r.containerID != "" {
			h := s.holding(r.containerID)
			h.waiting += sign * r.bytes
			s.let(h)
		}
	}
}

// attribute says whose a chunk is, by the bytes of each container's lines, and under ""
// of the node's; with mu held.
func (s *Spool) attribute(it *kept, by map[string]int64) {
	over, containers := int64(it.Bytes), int64(len(by))
	for id, n := range by {
		over -= n
		if id == "" {
			it.node = n
			containers--
		}
	}
	it.parts = make([]part, 0, containers)
	for id, n := range by {
		if id == "" {
			continue
		}
		p := part{s.holding(id), n + max(0, over)/containers}
		p.of.stored += p.bytes
		it.parts = append(it.parts, p)
	}
}

// keepItem notes a chunk that was published, with writing held.
func (s *Spool) keepItem(c *chunk) {
	it := kept{Item: s.itemOf(c)}
	by := map[string]int64{"": c.size() - int64(c.head)}
	for _, r := range c.perRun {
		if r.containerID != "" {
			by[r.containerID] += r.bytes
			by[""] -= r.bytes
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attribute(&it, by)
	s.have.add(it)
	s.stored = s.have.bytes
}

// letGo notes that published chunks are there no more, with writing held.
func (s *Spool) letGo(list []kept) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, it := range list {
		for _, p := range it.parts {
			p.of.stored -= p.bytes
			s.let(p.of)
		}
	}
	s.stored = s.have.bytes
}

// Account counts what [Recover] found as the containers'. Without it the chunks of
// an earlier agent are nobody's.
func (s *Spool) Account(f Found) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.have.items {
		it := &s.have.items[i]
		if by := f.held[it.Chunk]; it.parts == nil && len(by) > 0 {
			s.attribute(it, by)
		}
	}
}

// tight reports whether lines that later ones replace had better not be written,
// whoever's they are; with mu held.
func (s *Spool) tight() bool {
	return s.cfg.Quota > 0 && s.stored >= s.cfg.Quota/8*7 || s.bytes > s.cfg.MaxPending/2 || s.failing != nil
}

// Thrifty reports whether lines of this container that a later one replaces had
// better not be made: it has more than half of its share, or the spool is nearly
// full, or cannot be written. It may be asked at any time.
func (s *Spool) Thrifty(containerID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tight() {
		return true
	}
	h := s.held[containerID]
	return h != nil && s.cfg.ContainerQuota > 0 && h.waiting+h.stored >= s.cfg.ContainerQuota/2
}

// past says why no further entries of a container are taken, "" if they are; with
// mu held.
func (s *Spool) past(h *holding) string {
	switch {
	case s.cfg.ContainerQuota > 0 && h.waiting+h.stored >= s.cfg.ContainerQuota:
		return DroppedContainerQuota
	case (s.failing != nil || s.stuck) && h.waiting >= s.cfg.MaxPending/memoryShare:
		return DroppedMemory
	}
	return ""
}

// greedy says how many bytes of a chunk that waits are of containers which have more
// than their part of the memory, and how many its lines have; with mu held.
func (s *Spool) greedy(c *chunk) (theirs, all int64) {
	for _, r := range c.perRun {
		if h := s.held[r.containerID]; h != nil && h.waiting >= s.cfg.MaxPending/memoryShare {
			theirs += r.bytes
		}
	}
	return theirs, c.size() - int64(c.head)
}

// greedyStored is the same of a published chunk and of containers that have more than
// their share of the spool even without what is going of theirs; with writing held.
func (s *Spool) greedyStored(it kept, going map[*holding]int64) (theirs, all int64) {
	all = it.node
	for _, p := range it.parts {
		all += p.bytes
		if s.cfg.ContainerQuota > 0 && p.of.stored-going[p.of] > s.cfg.ContainerQuota {
			theirs += p.bytes
		}
	}
	return theirs, all
}

// What goes first: chunks that are of the greedy alone, then those that are mostly
// theirs, then any.
var sacrifices = []func(theirs, all int64) bool{
	func(theirs, all int64) bool { return theirs > 0 && theirs == all },
	func(theirs, all int64) bool { return theirs > all/2 },
	func(theirs, all int64) bool { return true },
}

// refusedKey is what one gap is about: entries of one probe's set.
type refusedKey struct {
	runID, probeID string
	probeType      evidence.ProbeType
}

// refusal counts lines that were not taken and are not signed yet.
type refusal struct {
	containerID  string
	why          string
	lines        uint64
	fromNs, toNs int64 // boot time: when the first was seen, and the last told
	wait         int   // heartbeats until the next line
	pause        int   // how many that are: twice as many after each line
}

// maxPause bounds them: so many heartbeats' refusals a crash leaves uncounted.
const maxPause = 16

// refuse does not take a line about an entry, with mu held. The first of its kind
// is to be told at once.
func (s *Spool) refuse(clock evidence.Clock, o *evidence.Observation, why string) (tell bool) {
	k := refusedKey{o.RunID, o.ProbeID, o.ProbeType}
	r := s.refused[k]
	if r == nil {
		k = refusedKey{strings.Clone(o.RunID), strings.Clone(o.ProbeID), o.ProbeType}
		r, tell = &refusal{containerID: strings.Clone(o.ContainerID)}, true
		s.refused[k] = r
	}
	from, to := clock.Boot(o.FirstAt), clock.Boot(o.To)
	if r.lines == 0 {
		r.fromNs, r.toNs = from, to
	}
	r.lines++
	r.why, r.fromNs, r.toNs = why, min(r.fromNs, from), max(r.toNs, to)
	s.dropped[why]++
	if why == DroppedMemory {
		s.again[k.runID] = true
	}
	return tell
}

// tellRefused signs what was refused of a run, or of all where runID is "", with mu
// held. Where that cannot be, it is told later.
func (s *Spool) tellRefused(runID string) {
	for _, k := range slices.SortedFunc(maps.Keys(s.refused), refusedKey.compare) {
		r := s.refused[k]
		if r.lines == 0 || runID != "" && k.runID != runID {
			continue
		}
		e := buffers.Get().(*encoder)
		err := s.append(e, k.runID, own(func(c evidence.Clock) []*evidence.Gap {
			return []*evidence.Gap{{
				GapID: "spoolDropped-" + randomID(), Scope: evidence.ScopeSite, Reason: evidence.GapSpoolDropped, From: c.Time(r.fromNs), To: c.Time(max(r.fromNs, r.toNs)),
				Count: evidence.Loss{N: r.lines}, RunID: k.runID, ContainerID: r.containerID, ProbeID: k.probeID, ProbeType: k.probeType, Detail: whyRefused[r.why],
			}}
		}))
		e.put()
		if err != nil {
			s.cfg.Log.Error("sign the gap of refused evidence", "run", k.runID, "lines", r.lines, "error", err)
			continue
		}
		r.lines, r.pause = 0, min(maxPause, max(1, 2*r.pause))
		r.wait = r.pause
	}
}

// tellDue is tellRefused at a heartbeat: of those that have waited long enough. Of
// whom nothing was refused meanwhile is forgotten.
func (s *Spool) tellDue() {
	s.mu.Lock()
	defer s.mu.Unlock()
	due := map[string]bool{}
	for k, r := range s.refused {
		if r.wait--; r.wait > 0 {
			continue
		}
		if r.lines == 0 {
			delete(s.refused, k)
			continue
		}
		due[k.runID] = true
	}
	for _, run := range slices.Sorted(maps.Keys(due)) {
		s.tellRefused(run)
	}
}

func (k refusedKey) compare(o refusedKey) int {
	return strings.Compare(k.runID+"\x00"+k.probeID+"\x00"+string(k.probeType), o.runID+"\x00"+o.probeID+"\x00"+string(o.probeType))
}

var whyRefused = map[string]string{
	DroppedContainerQuota: "entries of this container's sets: it has its share of the spool",
	DroppedMemory:         "entries of this container's sets: the disk cannot be written, and it has its share of what may wait",
}

func randomID() string {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand, Go 1.24)
	return hex.EncodeToString(b[:])
}

// relieve removes what every consumer has acknowledged where a container has half
// its share, or the spool is nearly full: what others have need not be spared for.
func (s *Spool) relieve() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.Quota > 0 && s.stored >= s.cfg.Quota/8*7 {
		return true
	}
	for _, h := range s.held {
		if s.cfg.ContainerQuota > 0 && h.stored >= s.cfg.ContainerQuota/2 {
			return true
		}
	}
	return false
}

// Why lines were dropped, in Usage.
const (
	DroppedContainerQuota = "containerQuota" // entries of a container that had its share
	DroppedSpoolQuota     = "spoolQuota"     // published, not acknowledged, and in the way of newer ones
	DroppedDiskFull       = "diskFull"       // the same, on a full disk
	DroppedMemory         = "memory"         // never published: the disk could not be written
)

// Usage is how full the spool is, and what was given up since the agent's start.
type Usage struct {
	Bytes          int64             `json:"bytes"` // of published chunks
	Chunks         int               `json:"chunks"`
	Quota          int64             `json:"quota"`          // bytes; 0: none
	ContainerQuota int64             `json:"containerQuota"` // bytes; 0: none
	Waiting        int64             `json:"waiting"`        // bytes in memory, of closed chunks
	Dropped        map[string]uint64 `json:"dropped"`        // lines, by reason
	Most           []ContainerUsage  `json:"most"`           // the containers that hold most, at most 5
}

// ContainerUsage is what one container holds of the spool.
type ContainerUsage struct {
	ContainerID string `json:"containerId"`
	Bytes       int64  `json:"bytes"`
	Refused     bool   `json:"refused"` // its entries are, now
}

const mostShown = 5

// Usage returns how full the spool is.
func (s *Spool) Usage() Usage {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	u := Usage{
		Bytes: s.have.bytes, Chunks: len(s.have.items), Quota: s.cfg.Quota, ContainerQuota: s.cfg.ContainerQuota, Waiting: s.bytes,
		Dropped: maps.Clone(s.dropped), Most: []ContainerUsage{},
	}
	for _, h := range s.held {
		u.Most = append(u.Most, ContainerUsage{h.containerID, h.waiting + h.stored, s.past(h) != ""})
	}
	slices.SortFunc(u.Most, func(a, b ContainerUsage) int {
		if a.Bytes != b.Bytes {
			return int(min(max(b.Bytes-a.Bytes, -1), 1))
		}
		return strings.Compare(a.ContainerID, b.ContainerID)
	})
	u.Most = u.Most[:min(len(u.Most), mostShown)]
	return u
}
