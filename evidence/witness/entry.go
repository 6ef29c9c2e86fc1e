package witness

import (
	"encoding/binary"
	"slices"
	"strings"
	"sync"

	"probity/bpf"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/evidence/redact"
)

// Bounds on the entries of sets (FORMAT.md, "Sets"). The node's protects the
// agent from many containers that all fill their sets.
const (
	MaxEntries           = 4096     // of one run and set
	maxEntryText         = 2 << 20  // bytes of their texts
	DefaultMaxEntryBytes = 64 << 20 // bytes of all entries of all runs
	entryCost            = 512      // of one entry without its texts
	keyCost              = 80       // of one of the kernel's that looks like it
)

// Key is which entry it is to the kernel, that may tell more of them apart than
// the evidence does.
type Key [32]byte

// Entry is one thing that a set saw: an executable that was run, a file that was
// mapped or opened, a connection. It may be told any number of times, also by
// several at once. Two are one in the evidence if all but Key, At, Last, Count,
// Process (its Session apart), Parent and Detail are equal: their counts are
// added up.
type Entry struct {
	Set     string // one of evidence.Sets, but not syscalls
	Key     Key
	At      int64  // boot time of the first time
	Last    int64  // of the last; At if 0
	Count   uint64 // how often so far, as the kernel counted under Key; 0 is once
	Process evidence.Process

	// Path in the container, and what is known of the file: whoever computes a
	// digest does so before.
	Path, FileDigest, BuildID, Origin, LayerDiffID string
	Detail                                         string // why there is no digest, for a person

	evidence.Entry

	// PathCut and ArgumentCut say that a part of the one and the other is missing.
	PathCut, ArgumentCut bool

	cleared redact.Cleared
	first   *evidence.Process // Process as it was; nil if that is as it was

	said uint64 // the count that its last line says
}

// SystemCalls are the system calls that a container has used so far.
type SystemCalls struct {
	First, Last int64 // boot times of the first and the last new number
	Calls       []evidence.SystemCalls
	IOUring     bool
}

// set is one set of a run.
type set struct {
	sites   []int // the lines about the set itself: one for each probe that wants it
	entries map[string]*Entry
	told    map[Key]told // what was taken of the kernel's entries
	order   []*Entry
	bytes   int64       // counted against the bounds
	past    uint64      // seen and not kept here
	full    uint64      // and not kept in the kernel
	lost    uint64      // seen by the kernel, which could not read what it was
	around  uint64      // not seen by the set's hooks
	counter bpf.Counter // of all entries together
	calls   SystemCalls
	before  evidence.Uint64 // entries that an earlier agent's lines have
}

// told is what was taken of an entry of the kernel's.
type told struct {
	as    *Entry
	count uint64
}

// findSets finds the sets among the sites from a place on.
func (r *run) findSets(from int) {
	for i := from; i < len(r.sites); i++ {
		s := &r.sites[i]
		if s.Set == "" || !s.Armed {
			continue
		}
		if r.sets == nil {
			r.sets = map[string]*set{}
		}
		if r.sets[s.Set] == nil {
			r.sets[s.Set] = &set{entries: map[string]*Entry{}, told: map[Key]told{}}
		}
		r.sets[s.Set].sites = append(r.sets[s.Set].sites, i)
	}
}

// appendKey appends what tells an entry from others: its texts, each after its
// length, so that a NUL in one does not make two alike.
func (e *Entry) appendKey(b []byte) []byte {
	for _, s := range [...]string{e.Path, e.FileDigest, e.BuildID, e.Origin, e.LayerDiffID, e.Argument, e.Process.Session, e.Device, e.Mapped, e.Operation, e.Protocol, e.Family, e.Address, e.Access} {
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	// What looks redacted is not what was.
	for _, x := range e.cleared.Redacted() {
		if x.Member == "path" || strings.HasPrefix(x.Member, "entry.") && !strings.HasPrefix(x.Member, "entry.parent.") {
			b = append(append(append(b, x.Member...), ' '), x.Rule...)
			b = append(b, '\n')
		}
	}
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(e.Inode)), uint64(e.Port))
}

// redact takes out of an entry what is kept out of evidence, before it is looked for
// among those that are known: entries that read alike then are one.
func (e *Entry) redact(r *redact.Redactor) {
	if e.cleared.Done() {
		return
	}
	first := e.Process
	e.cleared = r.Entry(redact.Entry{Path: &e.Path, Detail: &e.Detail, Process: &e.Process, Entry: &e.Entry, PathCut: e.PathCut, ArgumentCut: e.ArgumentCut})
	if first != e.Process {
		e.first = &first
	}
}

// process is the process as it was: the line about the set itself redacts its own.
func (e *Entry) process() *evidence.Process {
	if e.first != nil {
		return e.first
	}
	return &e.Process
}

// enter notes an entry. It reports whether there is something to write: a new
// entry, or that the set is past its bound. room says whether the node has room
// for so many bytes.
func (r *run) enter(e *Entry, room func(int64) bool) bool {
	set := r.sets[e.Set]
	if set == nil || e.Set == evidence.SetSyscalls {
		return false // no probe wants it
	}
	e.redact(r.redact)
	last, count := max(e.Last, e.At), max(1, e.Count)
	var buf [512]byte
	key := e.appendKey(buf[:0])
	have := set.entries[string(key)]
	before, known := set.told[e.Key]
	if known && before.as == have {
		r.again(set, e.Key, before, count, e.At, last)
		return false
	}
	// Known as another one: there is more to say of it now, such as its digest.
	size := int64(0)
	if !known {
		size = keyCost
	}
	if have == nil {
		size += int64(entryCost + 2*len(key) + len(e.Detail) + len(e.Process.Path))
	}
	if have == nil && len(set.order) >= MaxEntries || set.bytes+size > maxEntryText+MaxEntries*(entryCost+keyCost) || !room(size) {
		set.past++
		r.saw(set, e.process(), e.At, last, count)
		r.setGap(set, evidence.GapSetFull, e.At, set.past+set.full, whySetFull)
		return set.past+set.full == 1
	}
	set.bytes += size
	if have != nil {
		set.told[e.Key] = told{as: have}
		r.again(set, e.Key, told{as: have}, count, e.At, last)
		return false
	}
	e.Last, e.Count, e.said = last, count, 0
	set.entries[string(key)], set.told[e.Key] = e, told{e, count}
	set.order = append(set.order, e)
	r.fresh = append(r.fresh, e)
	r.saw(set, e.process(), e.At, last, count-min(count, before.count))
	return true
}

// again takes a further reading of an entry of the kernel's. Readings may come
// late: the highest count is the latest.
func (r *run) again(set *set, k Key, before told, count uint64, at, last int64) {
	if count <= before.count {
		return
	}
	have, more := before.as, count-before.count
	have.Count += more
	have.At, have.Last = min(have.At, at), max(have.Last, last)
	set.told[k] = told{have, count}
	r.saw(set, have.process(), at, last, more)
}

const whySetFull = "distinct entries past the bound of the set: they have no lines"

// setGap keeps a gap of the lines about the set itself, whose count is a total.
func (r *run) setGap(set *set, reason evidence.GapReason, from int64, total uint64, detail string) {
	for _, i := range set.sites {
		if g := r.standing(&r.sites[i], reason); g != nil {
			r.grow(g, total)
		} else {
			r.addSiteGap(i, &gap{reason: reason, from: max(from, r.first), count: total, detail: detail})
		}
	}
}

// setCounts takes what the kernel counts of a set besides its entries.
func (r *run) setCounts(name string, full, lost, around uint64, now int64) {
	set := r.sets[name]
	if set == nil {
		return
	}
	if more := max(full, set.full) - set.full + max(lost, set.lost) - set.lost; more > 0 {
		if set.counter.FirstNs == 0 {
			set.counter.FirstNs = now // at the latest
		}
		set.counter.Count += more
		set.counter.LastNs = max(set.counter.LastNs, now)
		r.last = max(r.last, now)
		r.spread(set, nil)
	}
	if full > set.full {
		set.full = full
		r.setGap(set, evidence.GapSetFull, r.armedAt, set.past+full, whySetFull)
	}
	if lost > set.lost {
		set.lost = lost
		r.setGap(set, evidence.GapDecodeError, r.armedAt, lost, "seen, but the kernel could not read what it was: it has no line")
	}
	if around > set.around {
		set.around = around
		r.setGap(set, evidence.GapKernelMissed, r.armedAt, around, "asked for through io_uring, where the set's hooks do not see it")
	}
}

// saw counts for the lines about the set itself.
func (r *run) saw(set *set, p *evidence.Process, at, last int64, n uint64) {
	c := &set.counter
	c.Count += n
	if c.FirstNs == 0 || at < c.FirstNs {
		c.FirstNs = at
	}
	c.LastNs = max(c.LastNs, last)
	r.last = max(r.last, c.LastNs)
	r.spread(set, p)
}

// spread hands the set's counter to its lines.
func (r *run) spread(set *set, p *evidence.Process) {
	for _, i := range set.sites {
		s := &r.sites[i]
		s.merge(set.counter)
		if s.process == nil && p != nil && *p != (evidence.Process{}) {
			first := *p
			s.own().process = &first
		}
		if s.said.state != saidHit {
			r.touch(i)
		}
	}
}

// calls takes the system calls that were used so far, and reports whether there
// are more than before.
func (r *run) calls(now SystemCalls) bool {
	set := r.sets[evidence.SetSyscalls]
	if set == nil {
		return false
	}
	if r.earlier != nil { // numbers that were used before are not new
		now.Calls, now.IOUring = union(set.calls.Calls, now.Calls), set.calls.IOUring || now.IOUring
	}
	n := uint64(0)
	for _, c := range now.Calls {
		n += uint64(len(c.Numbers))
		if c.Beyond {
			n++
		}
	}
	if n == 0 || n <= set.counter.Count && now.IOUring == set.calls.IOUring {
		return false
	}
	set.calls = now
	set.counter = bpf.Counter{Count: max(n, set.counter.Count), FirstNs: now.First, LastNs: max(now.First, now.Last)}
	r.last = max(r.last, set.counter.LastNs)
	r.spread(set, nil)
	for _, i := range set.sites {
		r.touch(i)
	}
	return true
}

// entryLines are lines of entries, in memory that is used again: it is the most of
// what entries cost.
type entryLines struct {
	lines  []evidence.Observation
	counts []evidence.Uint64
}

var entryMemory = sync.Pool{New: func() any { return new(entryLines) }}

// maxKeptLines is for how many lines memory is kept.
const maxKeptLines = 512

func (l *entryLines) put() {
	if l != nil && cap(l.lines) <= maxKeptLines {
		clear(l.lines)
		entryMemory.Put(l)
	}
}

// add makes the lines of entries, one after the other: of each, one for every
// probe that wants its set. What all of a probe's have alike is found out once: a
// container makes entries by the thousand.
func (l *entryLines) add(lines []redact.Line, r *run, c evidence.Clock, entries []*Entry, to int64) []redact.Line {
	n := 0
	for _, e := range entries {
		n += len(r.sets[e.Set].sites)
	}
	l.lines, l.counts = slices.Grow(l.lines[:0], n)[:n], slices.Grow(l.counts[:0], n)[:n]
	lines = slices.Grow(lines, n)
	n = 0
	alike := map[int]redact.Line{} // by site
	for _, e := range entries {
		for _, i := range r.sets[e.Set].sites {
			same, ok := alike[i]
			if !ok {
				same = r.observeEntries(c, &r.sites[i], to)
				alike[i] = same
			}
			o, count := &l.lines[n], &l.counts[n]
			n++
			lines = append(lines, e.cleared.Line(same, o))
			*count = evidence.Uint64(e.Count)
			o.Count, o.FirstAt, o.LastAt = count, c.Time(e.At), c.Time(e.Last)
			o.Path, o.FileDigest, o.BuildID, o.Origin, o.LayerDiffID, o.Detail = e.Path, e.FileDigest, e.BuildID, e.Origin, e.LayerDiffID, e.Detail
			o.Entry = &e.Entry
			if e.Process != (evidence.Process{}) {
				o.Process = &e.Process
			}
		}
	}
	return lines
}

// observeEntries makes what the observations of all entries have alike, for one
// of the probes that want their set.
func (r *run) observeEntries(c evidence.Clock, s *site, to int64) redact.Line {
	o := r.begin(c, s, to)
	o.State = evidence.Hit
	_, o.Complete = r.windows(s, to)
	o.Gaps = r.siteGaps(c, s, to)
	return r.redact.Line(o)
}

// entriesOf counts the entries of the probe's set.
func (r *run) entriesOf(s probe.Search) (n uint64) {
	for _, set := range r.sets {
		for _, i := range set.sites {
			if r.sites[i].Probe.ID == s.ProbeID {
				n = max(n, uint64(set.before), uint64(len(set.order)))
			}
		}
	}
	return n
}
