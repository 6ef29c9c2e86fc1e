package witness

import (
	"strings"
	"testing"

	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/evidence/redact"
	"probity/runtime/image"
)

// redactingStage is a stage whose run has these rules.
func redactingStage(t *testing.T, yaml string, sites ...probe.Site) *stage {
	t.Helper()
	p, err := policy.Parse("f", []byte("name: a\nredact:\n"+yaml))
	if err != nil {
		t.Fatal(err)
	}
	st := newStage(t, sites...)
	st.runs[st.id].redact = redact.New(p.Redact, []byte("k"), "")
	own := st.runs[st.id].redact
	st.cfg.Redact = func() *redact.Redactor { return own }
	return st
}

const homes = "  - {id: home, paths: [/home/<*>/**]}\n  - {id: peers, addresses: [192.0.2.0/24]}\n"

// Entries that read alike once they are redacted are one, with all that was counted
// of each; the set's own line says so, and nothing is full or incomplete by it.
func TestRedactedEntriesAreOne(t *testing.T) {
	st := redactingStage(t, homes, setSite(evidence.SetNetwork), setSite(evidence.SetFiles))
	st.Publish(st.id, 0)
	for i, a := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "198.51.100.1"} {
		e := connect(a, 443, 6000+int64(i))
		e.Count, e.Last = uint64(10*(i+1)), 7000+int64(i)
		st.Entries(42, e)
	}
	file := func(key byte, path string, inode, count uint64, at int64) *Entry {
		return &Entry{Set: evidence.SetFiles, Key: Key{key}, At: at, Last: at + 5, Count: count, Path: path, Entry: evidence.Entry{Access: "read", Device: "0:1", Inode: evidence.Uint64(inode)}}
	}
	alice := file(1, "/home/alice/x", 7, 3, 6100)
	st.Entries(42, alice, alice, file(2, "/home/bob/x", 8, 2, 6050), file(3, "/home/"+evidence.Mark("home", "")+"/x", 0, 1, 6060), file(4, "/etc/x", 9, 1, 6070))
	if !st.Again(42, evidence.SetFiles, Key{2}, 4, 6050, 6500) { // the kernel's own are told apart still
		t.Error("an entry of the kernel's is not known any more")
	}
	st.End(st.id, 9000, true)
	peers, home := evidence.Mark("peers", ""), "/home/"+evidence.Mark("home", "")+"/x"
	of := func(set string) *evidence.Observation {
		return last(st.out.lines, func(o *evidence.Observation) bool { return o.Set == set && o.Entry == nil })
	}
	if o := of(evidence.SetNetwork); *o.Count != 100 || o.Entries != 2 || !o.Complete || len(o.Gaps) != 0 {
		t.Errorf("%+v", o)
	}
	if o := of(evidence.SetFiles); *o.Count != 3+4+1+1 || o.Entries != 3 || !o.Complete || len(o.Gaps) != 0 {
		t.Errorf("%+v", o)
	}
	r := last(st.out.lines, func(o *evidence.Observation) bool { return o.Entry != nil && o.Entry.Address == peers })
	if r == nil || *r.Count != 60 || r.FirstAt != clock.Time(6000) || r.LastAt != clock.Time(7002) || r.Confidence != of(evidence.SetNetwork).Confidence || !evidence.IsRedacted(r.Redacted, "entry.address") || r.Entry.Port != 443 {
		t.Errorf("peers: %+v", r)
	}
	r = last(st.out.lines, func(o *evidence.Observation) bool { return o.Path == home && evidence.IsRedacted(o.Redacted, "path") })
	// What looks redacted is redacted, too: it is in the directory. It had no inode.
	if r == nil || *r.Count != 7 || r.FirstAt != clock.Time(6050) || r.LastAt != clock.Time(6500) || r.Entry.Inode != 0 || r.Entry.Device != "" {
		t.Errorf("home: %+v", r)
	}
}

func last(lines []evidence.Line, is func(*evidence.Observation) bool) (found *evidence.Observation) {
	for _, l := range lines {
		if o, ok := l.(*evidence.Observation); ok && is(o) {
			found = o
		}
	}
	return found
}

// Two files whose names read alike are two sites: the one that was not hit does not
// take back the other's hit. A file's gap names it as its site does.
func TestRedactedSitesAreTwo(t *testing.T) {
	site := func(id uint32, path string) probe.Site {
		s := armed(id, "hello")
		f := *s.File
		f.Match = image.Match{Path: path, Origin: image.FromLayer}
		p := *s.Planned
		p.File, p.Offset = &f, 0x1000
		s.Planned = &p
		return s
	}
	st := redactingStage(t, homes, site(1, "/home/alice/lib.so"), site(2, "/home/bob/lib.so"))
	st.Publish(st.id, 0)
	st.out.lines = nil
	st.hit(1, 3, 6000)
	st.Checked(st.id, 6500, []probe.Trouble{{Path: "/home/bob/lib.so", Reason: evidence.GapFileChanged, Detail: "the file /home/bob/lib.so was changed"}})
	st.now = 9000
	st.End(st.id, 9000, true)
	lines := st.out.lines
	byPath := map[string]*evidence.Observation{}
	for _, o := range take[*evidence.Observation](st.out) {
		if strings.Contains(o.Path, "alice") || strings.Contains(o.Path, "bob") || evidence.WithoutTokens(o.Path) != "/home/"+evidence.Mark("home", "")+"/lib.so" {
			t.Errorf("path %s", o.Path)
		}
		byPath[o.Path] = o
	}
	if len(byPath) != 2 {
		t.Fatalf("%d sites: %+v", len(byPath), byPath)
	}
	gaps, changed := 0, ""
	for _, l := range lines {
		g, ok := l.(*evidence.Gap)
		if !ok {
			continue
		}
		gaps++
		of := byPath[g.Path]
		if of == nil || of.State != evidence.Partial || g.Detail != evidence.Mark("home", "") || len(g.Redacted) != 2 {
			t.Errorf("gap %+v of %+v", g, of)
		}
		changed = g.Path
	}
	delete(byPath, changed)
	if gaps == 0 || len(byPath) != 1 {
		t.Errorf("%d gaps, other sites %+v", gaps, byPath)
	}
	for _, o := range byPath {
		if o.State != evidence.Hit || *o.Count != 3 {
			t.Errorf("%+v", o)
		}
	}
}

// The list of executables is bounded by what is written, and each that reads alike
// is in it once.
func TestRedactedProcesses(t *testing.T) {
	st := redactingStage(t, "  - {id: home, paths: [/home/<*>/**]}\n  - {id: tasks, comms: true}\n", armed(1, "hello"))
	r := st.runs[st.id]
	for range 3 {
		for _, name := range []string{"alice", "bob", strings.Repeat("c", 300)} {
			r.addProcess(evidence.Process{Pid: 7, Comm: name[:3], Path: "/home/" + name + "/tool"})
		}
	}
	r.addProcess(evidence.Process{Pid: 8, Comm: "sh", Path: "/bin/sh"})
	if len(r.processes) != 3 || r.processes[0].Path != "/home/"+evidence.Mark("home", "")+"/tool" || r.processes[1].Path != evidence.Mark("home", "") || r.processes[2].Path != "/bin/sh" {
		t.Errorf("%+v", r.processes)
	}
	if len(r.procGone) != 2 || r.procGone[0].Member != "processes.comm" || r.procGone[1].Member != "processes.path" {
		t.Errorf("%+v", r.procGone)
	}
}

// The line of the set itself says that its process was redacted.
func TestRedactedFirstProcess(t *testing.T) {
	st := redactingStage(t, "  - {id: tasks, comms: true}\n", setSite(evidence.SetNetwork))
	st.Publish(st.id, 0)
	st.Entries(42, connect("192.0.2.1", 443, 6000), connect("192.0.2.1", 443, 6000))
	own, entries := split(take[*evidence.Observation](st.out))
	for _, o := range append(own[1:], entries...) {
		if o.Process == nil || o.Process.Comm != "" || o.Process.Pid != 7 || !evidence.IsRedacted(o.Redacted, "process.comm") {
			t.Errorf("%+v", o)
		}
	}
	if len(entries) != 1 || len(own) != 2 {
		t.Errorf("%+v %+v", own, entries)
	}
}

// What is of no run is redacted by all rules.
func TestRedactedNodeGap(t *testing.T) {
	st := redactingStage(t, homes)
	st.SourceMissed("nri", 1, 2, "container x: open /home/alice/y: no such file")
	gaps := take[*evidence.Gap](st.out)
	if len(gaps) != 1 || gaps[0].Detail != evidence.Mark("home", "") || len(gaps[0].Redacted) != 1 {
		t.Errorf("%+v", gaps)
	}
}
