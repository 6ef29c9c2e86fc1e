package witness

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/evidence/redact"
)

func setSite(set string) probe.Site {
	return probe.Site{Type: evidence.RawTracepoint, Armed: true, Planned: &probe.Planned{Probe: &policy.Probe{ID: "set-" + set, Set: set}, Set: set, Requested: evidence.UnknownProbe}}
}

func key(of ...any) Key { return Key([]byte(fmt.Sprintf("%-32.32s", fmt.Sprint(of...)))) }

func connect(addr string, port int, at int64) *Entry {
	return &Entry{
		Key: key(addr, port), Set: evidence.SetNetwork, At: at, Process: evidence.Process{Pid: 7, Comm: "curl"},
		Entry: evidence.Entry{Operation: "connect", Protocol: "tcp", Family: "ipv4", Address: addr, Port: port},
	}
}

// split tells a set's own lines from those of its entries.
func split(lines []*evidence.Observation) (own, entries []*evidence.Observation) {
	for _, o := range lines {
		if o.Entry == nil {
			own = append(own, o)
		} else {
			entries = append(entries, o)
		}
	}
	return own, entries
}

func TestEntries(t *testing.T) {
	st := newStage(t, setSite(evidence.SetNetwork), setSite(evidence.SetExec), armed(1, "hello"))
	st.Publish(st.id, 0)
	own, entries := split(take[*evidence.Observation](st.out))
	if len(own) != 3 || len(entries) != 0 || own[0].State != evidence.ArmedNoHit || own[0].Set != evidence.SetNetwork {
		t.Fatalf("%+v", own)
	}
	st.out.lines = nil
	st.Entries(42, connect("192.0.2.1", 443, 6000))
	again := connect("192.0.2.1", 443, 6000)
	again.Last, again.Count = 6001, 2
	st.Entries(42, again, connect("192.0.2.1", 80, 6002))
	st.Entries(42, &Entry{Set: evidence.SetFiles, At: 6003, Path: "/etc/passwd"}) // no probe wants it
	st.Entries(43, connect("192.0.2.1", 81, 6002))                                // another container
	own, entries = split(take[*evidence.Observation](st.out))
	if len(own) != 1 || own[0].State != evidence.Hit || own[0].Entries != 1 || *own[0].Count != 1 || own[0].Process == nil {
		t.Fatalf("the set's lines: %+v", own)
	}
	if len(entries) != 2 || entries[1].Entry.Port != 80 || entries[1].State != evidence.Hit || *entries[1].Count != 1 || entries[1].FirstAt != clock.Time(6002) {
		t.Fatalf("%+v", entries)
	}
	st.now = 7000
	st.out.lines = nil
	st.Hourly()
	own, entries = split(take[*evidence.Observation](st.out))
	if len(own) != 1 || *own[0].Count != 3 || own[0].Entries != 2 || len(entries) != 1 || *entries[0].Count != 2 || entries[0].LastAt != clock.Time(6001) {
		t.Fatalf("hourly: %+v %+v", own, entries)
	}
	st.Restate([]string{st.id})
	if _, entries = split(take[*evidence.Observation](st.out)); len(entries) != 2 {
		t.Fatalf("said again: %+v", entries)
	}
	e := connect("192.0.2.1", 443, 8000)
	e.Count = 50 // what the kernel counted
	st.Entries(42, e)
	e.Count = 49 // an older reading
	st.Entries(42, e)
	st.out.lines = nil
	st.End(st.id, 9000, true)
	own, entries = split(take[*evidence.Observation](st.out))
	if len(entries) != 1 || *entries[0].Count != 50 || !entries[0].Final {
		t.Errorf("at the end: %+v", entries)
	}
	cov := take[*evidence.Coverage](st.out)
	if p := cov[0].Probes; p[0].State != evidence.Hit || p[0].Sites != 1 || p[0].Entries != 2 || p[1].State != evidence.ArmedNoHit || p[1].Entries != 0 {
		t.Errorf("%+v", p)
	}
	for _, o := range own {
		if o.Set == evidence.SetNetwork && (*o.Count != 51 || o.Entries != 2 || !o.Final || !o.Complete) {
			t.Errorf("%+v", o)
		}
	}
	if n := st.entries.Load(); n != 0 {
		t.Errorf("%d bytes of entries are still counted", n)
	}
}

// The ring's reader and who reads the kernel's map tell of the same entries, in any
// order, and the kernel may have several that look alike.
func TestEntriesAreCountedOnce(t *testing.T) {
	st := newStage(t, setSite(evidence.SetFiles))
	st.Publish(st.id, 0)
	st.out.lines = nil
	read := func(key byte, count uint64) *Entry {
		return &Entry{Set: evidence.SetFiles, Key: Key{key}, At: 6000, Last: 6000 + int64(count), Count: count, Path: "/x", Entry: evidence.Entry{Access: "read"}}
	}
	again := func(key byte, count uint64) bool {
		return st.Again(42, evidence.SetFiles, Key{key}, count, 5999, 6000+int64(count))
	}
	if again(1, 3) || st.Again(42, evidence.SetExec, Key{1}, 3, 1, 1) || st.Again(43, evidence.SetFiles, Key{1}, 3, 1, 1) {
		t.Fatal("known before it was told")
	}
	st.Entries(42, read(1, 3)) // swept
	st.Entries(42, read(1, 1)) // what had waited in the ring
	st.Entries(42, read(2, 1)) // another one of the kernel's
	if !again(1, 4) || !again(1, 2) || !again(2, 5) {
		t.Error("not known after it was told")
	}
	_, entries := split(take[*evidence.Observation](st.out))
	if len(entries) != 1 || *entries[0].Count != 3 {
		t.Fatalf("%+v", entries)
	}
	more := read(2, 6) // what it is, is found out
	more.FileDigest = "sha256:" + strings.Repeat("ab", 32)
	st.Entries(42, more, more)
	st.out.lines = nil
	st.End(st.id, 9000, true)
	own, entries := split(take[*evidence.Observation](st.out))
	if len(entries) != 1 || *entries[0].Count != 9 || entries[0].FirstAt != clock.Time(5999) || entries[0].LastAt != clock.Time(6005) || entries[0].FileDigest != "" {
		t.Errorf("%+v", entries) // the other one's line says all there is
	}
	if *own[0].Count != 10 || own[0].Entries != 2 {
		t.Errorf("%+v", own[0])
	}
	if n := st.entries.Load(); n != 0 {
		t.Errorf("%d bytes of entries are still counted", n)
	}
}

// Many at once are one append, and each has a line, with all that they have alike.
func TestEntriesTogether(t *testing.T) {
	st := newStage(t, setSite(evidence.SetNetwork), setSite(evidence.SetFiles))
	st.Publish(st.id, 0)
	st.out.lines = nil
	var all []*Entry
	for i := range 300 {
		all = append(all, connect("192.0.2.1", i+1, 6000+int64(i)))
	}
	appends := st.out.appends
	st.Entries(42, append(all, connect("192.0.2.1", 7, 6000), &Entry{Set: evidence.SetFiles, At: 6500, Path: "/x", Entry: evidence.Entry{Access: "read"}})...)
	own, entries := split(take[*evidence.Observation](st.out))
	if len(own) != 2 || len(entries) != 301 || st.out.appends != appends+1 {
		t.Fatalf("%d and %d lines by %d appends", len(own), len(entries), st.out.appends-appends)
	}
	for i, o := range entries[:300] {
		if o.Entry.Port != i+1 || o.FirstAt != clock.Time(6000+int64(i)) || o.To != clock.Time(6500) || *o.Count != 1 || o.Process.Comm != "curl" || o.ProbeID != "set-network" || !o.Complete {
			t.Fatalf("%d: %+v", i, o)
		}
	}
	if o := entries[300]; o.ProbeID != "set-files" || o.Path != "/x" || o.Process != nil {
		t.Errorf("%+v", o)
	}
}

// Who found the run before it ended and comes after that is too late: it must not
// take from what the node has for entries.
func TestEntryAfterTheEnd(t *testing.T) {
	st := newStage(t, setSite(evidence.SetNetwork))
	st.Publish(st.id, 0)
	r := st.runs[st.id]
	st.End(st.id, 9000, true)
	st.byCgroup[42] = r // as if it had been found before
	st.out.lines = nil
	st.Entries(42, connect("192.0.2.1", 443, 6000))
	if n := st.entries.Load(); n != 0 || len(st.out.lines) != 0 {
		t.Errorf("%d bytes are taken, %d lines written", n, len(st.out.lines))
	}
}

// What was seen before the first lines are written is among them.
func TestEntryBeforePublish(t *testing.T) {
	st := newStage(t, setSite(evidence.SetNetwork))
	st.Entries(42, connect("192.0.2.1", 443, 6000))
	st.Publish(st.id, 0)
	own, entries := split(take[*evidence.Observation](st.out))
	if len(own) != 1 || own[0].State != evidence.Hit || len(entries) != 1 {
		t.Fatalf("%+v %+v", own, entries)
	}
}

// A container that makes up paths fills its own sets, and the bound is signed
// with what it left out; the sink checks that each line can be written.
func TestEntriesAreBounded(t *testing.T) {
	st := newStage(t, setSite(evidence.SetFiles), setSite(evidence.SetExec))
	st.Publish(st.id, 0)
	st.out.lines = nil
	const n = MaxEntries + 1000
	for i := range n {
		st.Entries(42, &Entry{Key: key(i), Set: evidence.SetFiles, At: 6000 + int64(i), Path: fmt.Sprint("/tmp/", i), Entry: evidence.Entry{Access: "read"}})
	}
	own, entries := split(take[*evidence.Observation](st.out))
	if len(entries) != MaxEntries || len(own) != 2 {
		t.Fatalf("%d entries, %d lines of the set: when it began and when it was full", len(entries), len(own))
	}
	st.Entries(42, &Entry{Set: evidence.SetExec, At: 9000, Path: "/bin/sh", FileDigest: "sha256:" + strings.Repeat("ab", 32)})
	if _, more := split(take[*evidence.Observation](st.out)); len(more) != 1 {
		t.Error("the other set is full too")
	}
	st.out.lines = nil
	st.End(st.id, 20_000, true)
	own, _ = split(take[*evidence.Observation](st.out))
	if o := own[0]; o.Entries != MaxEntries || *o.Count != n || len(o.Gaps) != 1 || o.Gaps[0].Reason != evidence.GapSetFull || o.Gaps[0].Count.N != 1000 || o.State != evidence.Hit || !o.Complete {
		t.Errorf("%+v", o)
	}
	if len(own[1].Gaps) != 0 {
		t.Errorf("the other set: %+v", own[1])
	}
	g := take[*evidence.Gap](st.out)
	if last := g[len(g)-1]; last.ProbeID != "set-files" || last.Count.N != 1000 {
		t.Errorf("%+v", g)
	}
}

func TestEntriesOfTheNodeAreBounded(t *testing.T) {
	st := newStage(t, setSite(evidence.SetFiles))
	st.Witness.cfg.MaxEntryBytes = 10_000
	st.Publish(st.id, 0)
	for i := range 100 {
		st.Entries(42, &Entry{Key: key(i), Set: evidence.SetFiles, At: 6000, Path: fmt.Sprint("/tmp/", i), Entry: evidence.Entry{Access: "read"}})
	}
	st.out.lines = nil
	st.End(st.id, 20_000, true)
	own, _ := split(take[*evidence.Observation](st.out))
	if o := own[0]; o.Entries == 0 || o.Entries > 20 || uint64(o.Entries)+o.Gaps[0].Count.N != 100 {
		t.Errorf("%+v", o)
	}
	if n := st.entries.Load(); n != 0 {
		t.Errorf("%d bytes are still counted", n)
	}
}

// Texts that only differ in where one ends and the next begins are two entries.
func TestEntryKeys(t *testing.T) {
	a := Entry{Path: "/a", FileDigest: "b"}
	b := Entry{Path: "/ab"}
	c := Entry{Path: "/a", Entry: evidence.Entry{Access: "b"}}
	seen := map[string]bool{}
	for _, e := range []Entry{a, b, c, {Entry: evidence.Entry{Inode: 12, Port: 3}}, {Entry: evidence.Entry{Inode: 1, Port: 23}}} {
		seen[string(e.appendKey(nil))] = true
	}
	if len(seen) != 5 {
		t.Errorf("%d of 5 are told apart", len(seen))
	}
	d := a
	d.At, d.Count, d.Process.Pid, d.Parent, d.Detail = 5, 6, 7, &evidence.Process{Pid: 1}, "x"
	if string(d.appendKey(nil)) != string(a.appendKey(nil)) {
		t.Error("an entry is told apart by what is not its own")
	}
}

func TestSystemCalls(t *testing.T) {
	st := newStage(t, setSite(evidence.SetSyscalls))
	st.Publish(st.id, 0)
	st.out.lines = nil
	calls := SystemCalls{First: 6000, Last: 6100, Calls: []evidence.SystemCalls{{Arch: "x86_64", Numbers: []int{1, 59}}}}
	st.SystemCalls(42, SystemCalls{First: 6000}) // nothing yet
	st.SystemCalls(42, calls)
	st.SystemCalls(42, calls) // the same
	got := take[*evidence.Observation](st.out)
	if len(got) != 1 || got[0].State != evidence.Hit || *got[0].Count != 2 || got[0].IOUring || got[0].SystemCalls[0].Numbers[1] != 59 {
		t.Fatalf("%+v", got)
	}
	calls.Calls = []evidence.SystemCalls{{Arch: "x86_64", Numbers: []int{1, 59, 425}}, {Arch: "i386", Numbers: []int{}, Beyond: true}}
	calls.IOUring, calls.Last = true, 7000
	st.SystemCalls(42, calls)
	if got = take[*evidence.Observation](st.out); len(got) != 1 || *got[0].Count != 4 || !got[0].IOUring {
		t.Fatalf("%+v", got)
	}
	obs, _ := st.final(t, 9000)
	if o := obs[""]; o.LastAt != clock.Time(7000) || o.Set != evidence.SetSyscalls || len(o.SystemCalls) != 2 {
		t.Errorf("%+v", o)
	}
}

// locked is a sink that may be called by several at once.
type locked struct {
	sync.Mutex
	*strict
}

func (l *locked) Append(runID string, build func(evidence.Clock) []redact.Line) error {
	l.Lock()
	defer l.Unlock()
	return l.strict.Append(runID, build)
}

func (l *locked) Seal() {}

// What the kernel counts of a set besides its entries: what it saw and has no
// line for makes the set hit, and what it cannot see makes it partial.
func TestSetCounts(t *testing.T) {
	st := newStage(t, setSite(evidence.SetNetwork), setSite(evidence.SetFiles), setSite(evidence.SetExec))
	st.Publish(st.id, 0)
	st.out.lines = nil
	st.SetCounts(42, evidence.SetNetwork, 0, 0, 0)
	if len(st.out.lines) != 0 {
		t.Fatalf("%d lines of nothing", len(st.out.lines))
	}
	st.SetCounts(42, evidence.SetNetwork, 3, 2, 0)
	st.SetCounts(42, evidence.SetNetwork, 3, 2, 0) // the same
	st.SetCounts(42, evidence.SetFiles, 0, 0, 4)
	st.now = 6000
	st.SetCounts(42, evidence.SetNetwork, 7, 2, 0)
	own, _ := split(take[*evidence.Observation](st.out))
	if len(own) != 2 || own[0].State != evidence.Hit || *own[0].Count != 5 || !own[0].Complete || own[1].State != evidence.Partial || own[1].Gaps[0].Reason != evidence.GapKernelMissed {
		t.Fatalf("%+v", own)
	}
	st.out.lines = nil
	st.End(st.id, 9000, true)
	own, _ = split(take[*evidence.Observation](st.out))
	if o := own[0]; *o.Count != 9 || len(o.Gaps) != 2 || o.Gaps[0].Reason != evidence.GapSetFull || o.Gaps[0].Count.N != 7 || o.Gaps[1].Reason != evidence.GapDecodeError || o.Gaps[1].Count.N != 2 {
		t.Errorf("%+v", o)
	}
	if own[2].State != evidence.ArmedNoHit {
		t.Errorf("the other set: %+v", own[2])
	}
}

// Several containers at once, while others begin, end and are listed: every
// entry has its line.
func TestEntriesAtOnce(t *testing.T) {
	st := newStage(t)
	out := &locked{strict: &strict{sink: sink{t: t}}}
	st.Witness.cfg.Sink = out
	const runs, each = 8, 200
	var wg sync.WaitGroup
	for i := range uint64(runs) {
		wg.Go(func() {
			id := st.identity
			id.ID, id.CgroupID = strings.Repeat(fmt.Sprintf("%02x", i), 32), 100+i
			st.Armed(Start{Identity: id, Source: "hook", Sites: []probe.Site{setSite(evidence.SetFiles)}, Arm: st.kern, ArmedAt: armedAt})
			st.Publish(id.RunID(), 0)
			for n := range each {
				st.Entries(100+i, &Entry{Key: key(n), Set: evidence.SetFiles, At: 6000, Path: fmt.Sprint("/", n), Entry: evidence.Entry{Access: "read"}})
				if n%50 == 0 {
					st.Live()
					st.Sweep()
				}
			}
			st.End(id.RunID(), 9000, true)
		})
	}
	wg.Wait()
	perRun := map[string]int{}
	for _, l := range out.lines {
		if o, ok := l.(*evidence.Observation); ok && o.Entry != nil {
			perRun[o.RunID]++
		}
	}
	if len(perRun) != runs {
		t.Fatalf("%d runs have entries", len(perRun))
	}
	for id, n := range perRun {
		if n != each {
			t.Errorf("run %s has %d lines of entries, want %d", id, n, each)
		}
	}
}
