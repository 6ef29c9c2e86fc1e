package redact

import (
	"testing"

	"probity/evidence"
)

// Only what a redactor has seen can be given to the spool, and it has seen all of it:
// the line of an entry is begun by who redacted the entry, and a list of processes that
// nobody has redacted yet is.
func TestNothingPassesUnseen(t *testing.T) {
	var no *Redactor
	for _, r := range []*Redactor{no, newRedactor(t)} {
		if l := r.Line(&evidence.Observation{Path: "/x", Entry: &evidence.Entry{}}); l.Evidence() != nil {
			t.Errorf("an entry that nobody has redacted becomes a line: %+v", l)
		}
		alike := r.Line(&evidence.Observation{ProbeID: "p"})
		var o evidence.Observation
		if l := (Cleared{}).Line(alike, &o); l.Evidence() != nil || o.ProbeID != "" {
			t.Errorf("and so: %+v", l)
		}
		if l := r.Entry(Entry{Path: new(string), Detail: new(string), Process: &evidence.Process{}, Entry: &evidence.Entry{}}).Line(Line{}, &o); l.Evidence() != nil {
			t.Errorf("as a copy of what nobody has redacted: %+v", l)
		}
		if l := r.Entry(Entry{Path: new(string), Detail: new(string), Process: &evidence.Process{}, Entry: &evidence.Entry{}}).Line(alike, &o); l.Evidence() != &o || o.ProbeID != "p" {
			t.Errorf("%+v", l)
		}
	}
	of := []evidence.Process{{Path: "/home/alice/x", Comm: "x"}, {Path: "/bin/sh", Comm: "sh"}, {Path: "/home/bob/y", Comm: "y"}}
	o := &evidence.Observation{Processes: of}
	newRedactor(t).Line(o)
	if o.Processes[0].Path != "/home/"+mark("home")+"/x" || o.Processes[1] != of[1] || o.Processes[2].Path != "/home/"+mark("home")+"/y" || of[0].Path != "/home/alice/x" {
		t.Errorf("%+v", o.Processes)
	}
	if want := []evidence.Redaction{{Member: "processes.path", Rule: "home"}}; len(o.Redacted) != 1 || o.Redacted[0] != want[0] {
		t.Errorf("%v", o.Redacted)
	}
	// What is done is not done again: the mark's own text stays.
	before := o.Processes[0].Path
	newRedactor(t).Line(o)
	if o.Processes[0].Path != before || len(o.Redacted) != 1 {
		t.Errorf("twice: %+v %v", o.Processes, o.Redacted)
	}
}
