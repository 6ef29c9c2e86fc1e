// Package export writes verified evidence in other people's formats.
//
// In: sound chunks, as evidence/verify hands them over. Out: files of StellaOps'
// runtime evidence (NDJSON, runtime-evidence version 1), and a [Report] that says what
// is in them and what was left out, by reason. Nothing is ever made up to please a
// format: what it wants and the evidence does not have leaves the observation out.
//
// The package trusts that the chunks were verified, and the caller to write only if
// all of them were sound. When Write returns without an error, the files are whole
// under their names. It is not a control: what it writes is not signed, and a format
// without coverage cannot say that something was not executed. Who needs to prove
// something keeps the chunks.
package export

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"probity/evidence"
	"probity/evidence/verify"
)

// Format is the name of the format on the command line, Schema the $id of the JSON
// Schema that its publisher names it by.
const (
	Format = "stellaops-runtime-evidence"
	Schema = "https://stella-ops.io/schemas/runtime-evidence/v1.json"
	// Mapping is the version of what docs/export.md says becomes what.
	Mapping = "1"
)

// Bounds of one file: its publisher signs chunks of at most 10 MiB and begins a new
// file after an hour.
const (
	MaxFileBytes = 10 << 20
	MaxFileSpan  = time.Hour
)

// Why a hit is in no file.
const (
	NoProcess    = "the process of the first hit is not known" // its detail was lost, or nobody saw it
	NoComm       = "the name of the process is not known"      // the format requires it
	RedactedComm = "the policy keeps the process's name out of evidence"
	NoTracepoint = "the format has no event for tracepoints and markers"
	NoLibrary    = "the format has no event for mapped libraries"
	NoSyscall    = "the format has no event for system calls"
	NoRules      = "the fields of net_connect and tcp_state are not known" // see docs/export.md
	NoSymbol     = "the site has no symbol"                                // a site that was named by its offset
	NoPath       = "the path of the file is not known"                     // only its inode is
	RedactedPath = "the policy keeps the path out of evidence"             // a mark is no path
	NoPid        = "the process id is not one that the format allows"      // 0, the idle task
	NoRun        = "no coverage line says in which cgroup the run was"     // the format requires it
	NoTime       = "the first hit was before the boot"                     // the format counts from there
)

// record is one line. Members are in order of their names: the format wants them so.
type record struct {
	CgroupID    uint64 `json:"cgroup_id"`
	Comm        string `json:"comm"`
	ContainerID string `json:"container_id,omitempty"`
	Event       event  `json:"event"`
	ImageDigest string `json:"image_digest,omitempty"`
	Pid         int    `json:"pid"`
	Src         string `json:"src"`
	TsNs        int64  `json:"ts_ns"`
}

// event is what is particular to a type of event, its members in order too.
type event struct {
	Filename string `json:"filename,omitempty"` // process_exec
	Library  string `json:"library,omitempty"`  // function_call
	Path     string `json:"path,omitempty"`     // file_open
	Ppid     int    `json:"ppid,omitempty"`     // process_exec
	Symbol   string `json:"symbol,omitempty"`   // function_call
	Type     string `json:"type"`
}

// The types of event that are written.
const (
	FileOpen     = "file_open"
	ProcessExec  = "process_exec"
	FunctionCall = "function_call"
)

// StellaOps collects what becomes StellaOps' runtime evidence. The zero value is ready.
type StellaOps struct {
	cgroups map[runKey]cgroupOf
	sites   map[string]site
}

// cgroupOf is a run's cgroup, as the latest chunk says it: they were added in
// whatever order.
type cgroupOf struct{ seq, id uint64 }

// runKey is a run of a node. A run id is a hash over what only its node knows.
type runKey struct{ node, run string }

// site is the latest that is known of one site, or of one entry of a set.
type site struct {
	seq  uint64 // of the chunk that says it
	boot string
	runKey
	record
	left string // why there is no record
}

// Add takes a sound chunk. It keeps nothing of it. Chunks may come in any order.
func (s *StellaOps) Add(c *verify.Chunk) {
	if s.cgroups == nil {
		s.cgroups, s.sites = map[runKey]cgroupOf{}, map[string]site{}
	}
	h := &c.Header
	for _, l := range c.Lines {
		switch v := l.(type) {
		case *evidence.Coverage:
			run := runKey{strings.Clone(h.Node), strings.Clone(v.RunID)}
			if have, ok := s.cgroups[run]; !ok || uint64(h.Seq) > have.seq {
				s.cgroups[run] = cgroupOf{uint64(h.Seq), uint64(v.CgroupID)}
			}
		case *evidence.Observation:
			if v.State == evidence.Hit && !sumsUp(v.Set, v.Entry) {
				s.observed(h, v)
			}
		}
	}
}

// sumsUp reports whether a line only sums up a set's entries, which have lines of their
// own. System calls have none.
func sumsUp(set string, e *evidence.Entry) bool {
	return set != "" && e == nil && set != evidence.SetSyscalls
}

// observed keeps the record of the site's first hit. Later lines of the site say the
// same of it, and may know more.
func (s *StellaOps) observed(h *evidence.Header, o *evidence.Observation) {
	next := site{seq: uint64(h.Seq), boot: strings.Clone(h.BootID), runKey: runKey{strings.Clone(h.Node), strings.Clone(o.RunID)}}
	next.record, next.left = recordOf(h.Clock, o)
	key := siteOf(h.Node, o)
	if have, ok := s.sites[key]; ok {
		if better := (have.left != "") != (next.left != ""); better && have.left == "" || !better && have.seq >= next.seq {
			return
		}
	}
	s.sites[key] = next
}

// siteOf tells sites and entries apart as FORMAT.md ("Chunk") does.
func siteOf(node string, o *evidence.Observation) string {
	type site struct {
		Node, Run, Probe, Path, Origin, File, Build, Symbol, Function, Event, Set, Session string
		Offset                                                                             *evidence.Uint64
		Entry                                                                              evidence.Entry
		Redacted                                                                           []evidence.Redaction
	}
	k := site{Node: node, Run: o.RunID, Probe: o.ProbeID, Path: o.Path, File: o.FileDigest, Symbol: o.Symbol, Function: o.Function, Event: o.Event, Set: o.Set, Offset: o.Offset}
	if o.Entry == nil {
		k.Origin = o.Origin
	} else {
		k.Entry, k.Build = *o.Entry, o.BuildID
		k.Entry.Parent = nil
		if o.Set == evidence.SetExec && o.Process != nil {
			k.Session = o.Process.Session
		}
	}
	for _, r := range o.Redacted {
		if r.Member == "path" || strings.HasPrefix(r.Member, "entry.") && !strings.HasPrefix(r.Member, "entry.parent.") {
			k.Redacted = append(k.Redacted, r)
		}
	}
	b, err := json.Marshal(k)
	if err != nil { // texts and numbers only
		panic(err)
	}
	return string(b)
}

// The format's own patterns. Where a value does not fit one that is optional, it is
// left out.
var (
	containerID = regexp.MustCompile(`^(containerd|docker|cri-o|podman)://[a-f0-9]{64}$`)
	imageDigest = regexp.MustCompile(`^sha256:[a-f0-9]{64}$`)
)

const maxComm = 16 // characters

// recordOf makes the record of an observation's first hit, or says why there is none.
func recordOf(c evidence.Clock, o *evidence.Observation) (r record, left string) {
	if r.Event, r.Src, left = eventOf(o); left != "" {
		return record{}, left
	}
	p := o.Process
	switch {
	case p == nil:
		return record{}, NoProcess
	case p.Pid < 1:
		return record{}, NoPid
	case evidence.IsRedacted(o.Redacted, "process.comm"):
		return record{}, RedactedComm
	case p.Comm == "" || utf8.RuneCountInString(p.Comm) > maxComm:
		return record{}, NoComm
	}
	if r.TsNs = c.Boot(o.FirstAt); r.TsNs < 0 {
		return record{}, NoTime
	}
	r.Pid, r.Comm = p.Pid, strings.Clone(p.Comm)
	if id := o.Runtime + "://" + o.ContainerID; containerID.MatchString(id) {
		r.ContainerID = id
	}
	if imageDigest.MatchString(o.ImageDigest) {
		r.ImageDigest = strings.Clone(o.ImageDigest)
	}
	return r, ""
}

// eventOf says which event of the format an observation is, and what saw it.
func eventOf(o *evidence.Observation) (e event, src, left string) {
	clone := strings.Clone
	switch o.Set {
	case evidence.SetExec:
		if left := pathless(o); left != "" {
			return e, "", left
		}
		e = event{Type: ProcessExec, Filename: clone(o.Path)}
		if o.Entry.Parent != nil && o.Entry.Parent.Pid > 0 {
			e.Ppid = o.Entry.Parent.Pid
		}
		return e, source(o, "exec"), ""
	case evidence.SetFiles:
		if left := pathless(o); left != "" {
			return e, "", left
		}
		return event{Type: FileOpen, Path: clone(o.Path)}, source(o, "open"), ""
	case evidence.SetNetwork:
		return e, "", NoRules
	case evidence.SetLibraries:
		return e, "", NoLibrary
	case evidence.SetSyscalls:
		return e, "", NoSyscall
	}
	switch {
	case o.Event != "": // a tracepoint or a marker: not a function
		return e, "", NoTracepoint
	case o.Function != "":
		return event{Type: FunctionCall, Symbol: clone(o.Function)}, source(o, o.Function), ""
	case o.Symbol != "":
		e = event{Type: FunctionCall, Symbol: clone(o.Symbol)}
		if pathless(o) == "" {
			e.Library = clone(o.Path)
		}
		return e, source(o, o.Symbol), ""
	}
	return e, "", NoSymbol
}

// pathless says why an observation has no path that could be written.
func pathless(o *evidence.Observation) string {
	switch {
	case evidence.IsRedacted(o.Redacted, "path"):
		return RedactedPath
	case o.Path == "":
		return NoPath
	}
	return ""
}

// source names what saw it as the schema's examples do: the kind of probe, as the
// kernel really uses it, and what it is on.
func source(o *evidence.Observation, on string) string { return string(o.ProbeType) + ":" + on }

// File is one file that was written.
type File struct {
	Name    string `json:"file"`
	Node    string `json:"node"`
	BootID  string `json:"bootId"` // ts_ns counts nanoseconds since this boot
	Records int    `json:"records"`
	Bytes   int    `json:"bytes"`
	// The first and the last ts_ns.
	FromNs evidence.Uint64 `json:"fromNs"`
	ToNs   evidence.Uint64 `json:"toNs"`
}

// Report is what Write wrote.
type Report struct {
	Format  string         `json:"format"`
	Schema  string         `json:"schema"`
	Mapping string         `json:"mapping"`
	Records int            `json:"records"`
	Types   map[string]int `json:"types"`   // records by type of event
	LeftOut map[string]int `json:"leftOut"` // hits by why there is no record of them
	Files   []File         `json:"files"`

	// What verify says of the same evidence. States counts the sites and entries of
	// sets by their state: those that were hit are Records and LeftOut, and the format has
	// no word for the others, nor for gaps.
	Log    string                 `json:"log"`
	States map[evidence.State]int `json:"states"`
	Gaps   int                    `json:"gaps"`
	// What chunks that are not there said is in no file either.
	Removed int `json:"removed"` // by the node itself, which signed that it did
	Holes   int `json:"holes"`   // ranges of sequence numbers between those that are there
}

// Verified adds what verify says.
func (r *Report) Verified(v verify.Report) {
	r.Log, r.Gaps, r.Holes, r.States = v.Log, len(v.Gaps), len(v.Holes), map[evidence.State]int{}
	for _, l := range v.Logs {
		r.Removed += l.Removed
	}
	for _, row := range v.Rows {
		if row.State != evidence.Hit || !sumsUp(row.Set, row.Entry) {
			r.States[row.State]++
		}
	}
}

// ErrNotEmpty is wrapped where files would be written beside others.
var ErrNotEmpty = errors.New("the directory is not empty")

// Write writes the records to dir, which it makes, and which must be empty if it is
// there: by node and boot, within them by time; each file with at most MaxFileBytes
// over at most MaxFileSpan.
func (s *StellaOps) Write(dir string) (Report, error) {
	rep := Report{Format: Format, Schema: Schema, Mapping: Mapping, Types: map[string]int{}, LeftOut: map[string]int{}, Files: []File{}}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return rep, err
	}
	there, err := os.ReadDir(dir)
	if err != nil {
		return rep, err
	}
	if len(there) > 0 {
		return rep, fmt.Errorf("%s: %w", dir, ErrNotEmpty)
	}
	type line struct {
		node, boot string
		at         int64
		text       []byte
	}
	var lines []line
	for _, x := range s.sites {
		id, ok := s.cgroups[x.runKey]
		if x.left == "" && !ok {
			x.left = NoRun
		}
		if x.left != "" {
			rep.LeftOut[x.left]++
			continue
		}
		x.CgroupID = id.id
		text, err := encode(x.record)
		if err != nil {
			return rep, err
		}
		rep.Records++
		rep.Types[x.Event.Type]++
		lines = append(lines, line{x.node, x.boot, x.TsNs, text})
	}
	slices.SortFunc(lines, func(a, b line) int {
		return cmp.Or(cmp.Compare(a.node, b.node), cmp.Compare(a.boot, b.boot), cmp.Compare(a.at, b.at), bytes.Compare(a.text, b.text))
	})
	var (
		body []byte
		f    File
		from int64
		last int64
	)
	flush := func() error {
		if len(body) == 0 {
			return nil
		}
		f.Name = fmt.Sprintf("runtime-evidence-%06d.ndjson", len(rep.Files)+1)
		f.Bytes, f.FromNs, f.ToNs = len(body), evidence.Uint64(from), evidence.Uint64(last)
		if err := publish(filepath.Join(dir, f.Name), body); err != nil {
			return err
		}
		rep.Files = append(rep.Files, f)
		body, f = body[:0], File{}
		return nil
	}
	for _, l := range lines {
		if len(body) > 0 && (f.Node != l.node || f.BootID != l.boot || len(body)+len(l.text) > MaxFileBytes || l.at-from > int64(MaxFileSpan)) {
			if err := flush(); err != nil {
				return rep, err
			}
		}
		if len(body) == 0 {
			f.Node, f.BootID, from = l.node, l.boot, l.at
		}
		body, last = append(body, l.text...), l.at
		f.Records++
	}
	return rep, flush()
}

// encode writes a record as the format wants it: compact, members by name, one newline.
func encode(r record) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return nil, fmt.Errorf("write a record: %w", err)
	}
	return out.Bytes(), nil
}

// publish writes a file under another name, syncs it and renames it, so that who
// watches the directory never sees half of one.
func publish(path string, b []byte) error {
	f, err := os.OpenFile(path+".partial", os.O_WRONLY|os.O_CREATE|os.O_EXCL, fs.FileMode(0o644))
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
