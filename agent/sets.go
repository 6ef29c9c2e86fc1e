package agent

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/evidence/witness"
)

// callsEvery is how soon system calls that a container has not used before are
// told, all of that time together.
const callsEvery = 200 * time.Millisecond

// setWork is an entry whose file is to be identified, or whoever waits for all
// those before.
type setWork struct {
	l     *live
	entry bpf.SetEntry
	done  chan struct{}
}

// gathered are the new entries that the ring's reader has read and not told.
// Nobody else has them.
type gathered struct {
	entries []*witness.Entry
	cgroups []uint64         // of each; 0 once it is told
	one     []*witness.Entry // those of one container
}

// maxGathered is how many entries are gathered before they are told, if the ring
// has as many.
const maxGathered = 512

// entry takes a new entry of a set. What file it is about is found out by
// whoever has time; if there is too much of that, it is not said.
func (a *Agent) entry(e *bpf.SetEntry) {
	a.mu.Lock()
	l := a.armedIn[e.Cgroup]
	a.mu.Unlock()
	if l == nil {
		return // its entries are read when it is
	}
	id := probe.Identified{}
	if e.Set == bpf.SetExec || e.Set == bpf.SetLibraries {
		select {
		case a.identifying <- setWork{l: l, entry: *e}:
			return
		default:
			id.Why = "there was no time to read the file"
		}
	}
	g := &a.gathered
	g.entries, g.cgroups = append(g.entries, entryOf(e, id, l.mountNS)), append(g.cgroups, e.Cgroup)
	if len(g.entries) == maxGathered {
		a.tellGathered()
	}
}

// tellGathered tells the entries that were gathered, those of a container
// together.
func (a *Agent) tellGathered() {
	g := &a.gathered
	for i, cgroup := range g.cgroups {
		if cgroup == 0 {
			continue
		}
		g.one = g.one[:0]
		for j := i; j < len(g.cgroups); j++ {
			if g.cgroups[j] == cgroup {
				g.one, g.cgroups[j] = append(g.one, g.entries[j]), 0
			}
		}
		a.tell(cgroup, g.one...)
	}
	clear(g.entries)
	clear(g.one[:cap(g.one)])
	g.entries, g.cgroups = g.entries[:0], g.cgroups[:0]
}

// tell tells entries. It waits while the disk is behind: entries are in the
// kernel's maps, and what the ring has no room for meanwhile is read from there.
func (a *Agent) tell(cgroup uint64, entries ...*witness.Entry) {
	if len(entries) > 0 {
		a.spool.Wait(a.closing)
		a.witness.Entries(cgroup, entries...)
	}
}

// identifyAll identifies the files of entries. It ends when the agent is closed.
func (a *Agent) identifyAll() {
	for {
		select {
		case <-a.closing:
			return
		case w := <-a.identifying:
			if w.done != nil {
				close(w.done)
				continue
			}
			id := probe.Identified{Why: "reading this container's files takes more than its share of the time"}
			began := time.Now()
			if w.l.share(w.l.reading, began) {
				id = w.l.handle.Identify(&w.entry)
				w.l.reading += time.Since(began)
			}
			a.tell(w.entry.Cgroup, entryOf(&w.entry, id, w.l.mountNS))
		}
	}
}

// share reports whether a run may have more than it has spent of a goroutine that
// reads all containers' files: some at the start, and a tenth of its life. A
// container makes files faster than they can be read, and the others wait.
func (l *live) share(spent time.Duration, now time.Time) bool {
	return spent < readFor+now.Sub(l.since)/10
}

// identifyFor bounds the wait for entries to be identified. What they are is in
// the kernel and not lost; only what their files are may be.
const identifyFor = 5 * time.Second

// identified returns when all entries so far are identified, or when that takes
// too long.
func (a *Agent) identified() {
	late := time.NewTimer(identifyFor)
	defer late.Stop()
	done := make(chan struct{})
	select {
	case a.identifying <- setWork{done: done}:
	case <-late.C:
		return
	case <-a.closing:
		return
	}
	select {
	case <-done:
	case <-late.C:
	case <-a.closing: // and nobody identifies any more
	}
}

// entryOf is an entry as the evidence has it.
func entryOf(e *bpf.SetEntry, id probe.Identified, mountNS uint32) *witness.Entry {
	w := &witness.Entry{
		Set: e.Set.String(), Key: e.Bytes(), At: e.FirstNs, Last: e.LastNs, Count: e.Count, Process: evidence.Process{Pid: e.Pid, Comm: e.Comm()},
		FileDigest: id.Digest, BuildID: id.BuildID, Origin: id.Origin, LayerDiffID: id.LayerDiffID,
	}
	w.PathCut, w.ArgumentCut = e.PathCut(), e.ArgumentCut()
	if e.Session == bpf.SessionExec {
		w.Process.Session = evidence.SessionExec
	}
	if e.Set == bpf.SetNetwork {
		w.Entry = evidence.Entry{Operation: e.Operation(), Protocol: e.Protocol(), Family: e.Family(), Address: e.Address(), Port: e.Port()}
		if e.Given() {
			w.Detail = "the address is what the process's memory held: the kernel's own copy was not seen"
		}
		return w
	}
	w.Path = e.Path()
	if !e.Given() {
		major, minor := e.Device()
		w.Device, w.Inode = strconv.FormatUint(uint64(major), 10)+":"+strconv.FormatUint(uint64(minor), 10), evidence.Uint64(e.Inode())
	}
	w.Detail = doubts(e, id, mountNS)
	switch e.Set {
	case bpf.SetExec:
		if e.Parent != 0 {
			w.Parent = &evidence.Process{Pid: e.Parent, Comm: e.ParentComm()}
		}
		if w.Path == "" {
			w.Path, w.PathCut = e.Argument(), e.ArgumentCut()
		} else if arg := e.Argument(); arg != w.Path {
			w.Argument = arg
		}
	case bpf.SetLibraries:
		w.Mapped = e.Mapping()
	case bpf.SetFiles:
		w.Access = e.Access()
	}
	if w.Path == "" && w.Detail == "" {
		w.Detail = "the path is not known"
	}
	if w.Origin == "" && strings.HasPrefix(w.Path, "memfd:") && !e.PathKnown() {
		w.Origin = "memfd"
	}
	return w
}

// doubts says in what way an entry's path is not that of a file of the image.
// mountNS is the container's own mount namespace, or 0: not known.
func doubts(e *bpf.SetEntry, id probe.Identified, mountNS uint32) string {
	var all []string
	if why := e.PathDoubt(); why != "" {
		all = append(all, why)
	} else if id.Why != "" {
		all = append(all, id.Why)
	}
	if e.Chrooted() {
		all = append(all, "the process had another root directory")
	}
	if mountNS != 0 && e.MountNS != 0 && e.MountNS != mountNS {
		all = append(all, "the process was in another mount namespace than the container's first")
	}
	return strings.Join(all, "; ")
}

// mountNSOf is the mount namespace of a process, or 0.
func mountNSOf(pid int) uint32 {
	var st unix.Stat_t
	if pid <= 0 || unix.Stat(fmt.Sprintf("/proc/%d/ns/mnt", pid), &st) != nil {
		return 0
	}
	return uint32(st.Ino)
}

// sweptAtOnce is how many entries that a sweep finds are told together.
const sweptAtOnce = 256

// sweepSets reads the sets of a run, as the kernel has them, and what they lack.
func (a *Agent) sweepSets(l *live) {
	if !hasSets(l) {
		return
	}
	cg := l.notice.Identity.CgroupID
	var found []*witness.Entry
	err := l.handle.Entries(func(e *bpf.SetEntry) bool {
		if a.witness.Again(cg, e.Set.String(), e.Bytes(), e.Count, e.FirstNs, e.LastNs) {
			return true
		}
		w := entryOf(e, l.handle.Identified(e.SetKey), l.mountNS)
		if found = append(found, w); len(found) == sweptAtOnce {
			a.tell(cg, found...)
			found = found[:0]
		}
		return true
	})
	if err != nil {
		a.log.Warn("read the sets of a container", "run", l.id, "err", err)
		a.witness.Unread(cg, err)
	}
	a.tell(cg, found...)
	a.tellCalls(l)
	a.tellLosses(l)
}

// sweepShare is how much longer than reading all entries of a container's sets,
// because some of its events were dropped, that container then waits: it may have
// tens of thousands, and drop events all the time.
const sweepShare = 19

// sweepDropped reads the sets of the runs whose events were dropped since they
// were last read, and reports whether it is to be called again for some of them.
func (a *Agent) sweepDropped() (behind bool) {
	for _, l := range a.runs() {
		a.sweepTurns.further()
		if !hasSets(l) {
			continue
		}
		run, err := l.handle.Run()
		if err != nil || run.RingFull == l.swept {
			continue
		}
		began := time.Now()
		if !l.sweeping.due(began) {
			behind = true
			continue
		}
		l.swept = run.RingFull
		a.sweepSets(l)
		l.sweeping.took(time.Since(began), time.Now(), sweepShare)
	}
	return behind
}

// hasSets reports whether the run is armed and has sets.
func hasSets(l *live) bool { return l.isArmed() && l.handle.HasSets() }

// tellLosses tells what the sets of a run do not show.
func (a *Agent) tellLosses(l *live) {
	if !hasSets(l) {
		return
	}
	counts, err := l.handle.SetCounts()
	if err != nil {
		a.log.Debug("read the sets of a container", "run", l.id, "err", err)
		a.witness.Unread(l.notice.Identity.CgroupID, err)
		return
	}
	for set, c := range counts {
		a.witness.SetCounts(l.notice.Identity.CgroupID, set.String(), c.Full, c.Lost, c.Around)
	}
}

// tellCalls tells the system calls that a run has used.
func (a *Agent) tellCalls(l *live) {
	calls, err := l.handle.SystemCalls()
	if err != nil {
		a.log.Debug("read the system calls of a container", "run", l.id, "err", err)
		a.witness.Unread(l.notice.Identity.CgroupID, err)
		return
	}
	if len(calls) == 0 {
		return
	}
	var s witness.SystemCalls
	for _, c := range calls {
		s.Calls = append(s.Calls, evidence.SystemCalls{Arch: c.Arch, Numbers: c.Numbers, Beyond: c.Beyond})
		s.IOUring = s.IOUring || c.IOUring()
		if s.First == 0 || c.FirstNs < s.First {
			s.First = c.FirstNs
		}
		s.Last = max(s.Last, c.LastNs)
	}
	a.witness.SystemCalls(l.notice.Identity.CgroupID, s)
}

// called notes that a container has used a system call for the first time.
func (a *Agent) called(cgroup uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l := a.armedIn[cgroup]; l != nil {
		a.newCalls[l] = true
	}
}

// tellAllCalls tells new system calls of all runs, until ctx ends.
func (a *Agent) tellAllCalls(ctx context.Context) error {
	tick := time.NewTicker(callsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		a.mu.Lock()
		now := a.newCalls // from here on nobody else's, even if it is empty
		a.newCalls = map[*live]bool{}
		a.mu.Unlock()
		for l := range now {
			if hasSets(l) {
				a.tellCalls(l)
			}
		}
	}
}
