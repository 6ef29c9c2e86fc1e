// Package stellaops holds the rules that StellaOps publishes for its runtime evidence,
// one by one, and checks files against them.
//
// The rules were read from two of its public documents and put into words here; no text
// of theirs is copied. [schema] is the JSON Schema docs/schemas/runtime-evidence-v1.json,
// [reference] docs/reachability/evidence-schema.md, [fixtures] the description of the
// frozen outputs in tests/reachability/fixtures/ebpf, all of the repository at
// git.stella-ops.org as of January 2026. Where the first two differ (the reference spells
// some types of event otherwise, and names a container without its runtime), the schema
// is what a reader validates by and is held here, and what only the reference requires
// is held too.
//
// Of the schema's events only file_open could be read whole; of process_exec what the
// reference says; of the others their type and no more.
package stellaops

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Rule is one published rule about a record.
type Rule struct {
	Name   string
	Source string // schema, reference or fixtures
	Holds  func(r Record) bool
}

// Record is one line, as JSON has it. Numbers are json.Number.
type Record struct {
	Line   string // with its newline
	Fields map[string]any
}

func (r Record) text(name string) (s string, ok bool) {
	s, ok = r.Fields[name].(string)
	return s, ok
}

func (r Record) event() map[string]any {
	e, _ := r.Fields["event"].(map[string]any)
	return e
}

// integer reports whether an optional member is absent, or an integer of at least least.
func integer(m map[string]any, name string, least uint64) bool {
	v, there := m[name]
	if !there {
		return true
	}
	n, ok := v.(json.Number)
	if !ok {
		return false
	}
	i, err := strconv.ParseUint(n.String(), 10, 64) // none may be negative
	return err == nil && i >= least
}

// matches reports whether an optional member is absent, or a text of this pattern.
func matches(r Record, name string, pattern *regexp.Regexp) bool {
	if _, there := r.Fields[name]; !there {
		return true
	}
	s, ok := r.text(name)
	return ok && pattern.MatchString(s)
}

var (
	container = regexp.MustCompile(`^(containerd|docker|cri-o|podman)://[a-f0-9]{64}$`)
	image     = regexp.MustCompile(`^sha256:[a-f0-9]{64}$`)
	types     = []string{"file_open", "process_exec", "tcp_state", "net_connect", "ssl_op", "function_call"}
	fields    = []string{"ts_ns", "src", "pid", "tid", "cgroup_id", "container_id", "image_digest", "comm", "event"}
)

func has(name string) func(Record) bool {
	return func(r Record) bool { _, ok := r.Fields[name]; return ok }
}

func isText(m map[string]any, name string) bool {
	_, ok := m[name].(string)
	return ok
}

func ofType(typ string, holds func(map[string]any) bool) func(Record) bool {
	return func(r Record) bool { return r.event()["type"] != typ || holds(r.event()) }
}

// Rules are all of them.
var Rules = []Rule{
	{"ts_ns is required", "schema", has("ts_ns")},
	{"ts_ns is an integer of at least 0", "schema", func(r Record) bool { return integer(r.Fields, "ts_ns", 0) }},
	{"src is required", "schema", has("src")},
	{"src is a text", "schema", func(r Record) bool { return isText(r.Fields, "src") }},
	{"pid is required", "schema", has("pid")},
	{"pid is an integer of at least 1", "schema", func(r Record) bool { return integer(r.Fields, "pid", 1) }},
	{"tid is an integer of at least 1", "schema", func(r Record) bool { return integer(r.Fields, "tid", 1) }},
	{"cgroup_id is required", "reference", has("cgroup_id")},
	{"cgroup_id is an integer of at least 0", "schema", func(r Record) bool { return integer(r.Fields, "cgroup_id", 0) }},
	{"container_id is RUNTIME://64 hex digits", "schema", func(r Record) bool { return matches(r, "container_id", container) }},
	{"image_digest is sha256:64 hex digits", "schema", func(r Record) bool { return matches(r, "image_digest", image) }},
	{"comm is required", "schema", has("comm")},
	{"comm is a text of at most 16 characters", "schema", func(r Record) bool {
		s, ok := r.text("comm")
		return ok && utf8.RuneCountInString(s) <= 16
	}},
	{"event is required", "schema", has("event")},
	{"event is an object", "schema", func(r Record) bool { return r.event() != nil }},
	{"event.type is one of six", "schema", func(r Record) bool {
		s, ok := r.event()["type"].(string)
		return ok && slices.Contains(types, s)
	}},
	{"file_open has a path, a text", "schema", ofType("file_open", func(e map[string]any) bool { return isText(e, "path") })},
	{"process_exec has a filename, a text", "reference", ofType("process_exec", func(e map[string]any) bool { return isText(e, "filename") })},
	{"ppid is an integer", "reference", ofType("process_exec", func(e map[string]any) bool { return integer(e, "ppid", 0) })},
	{"no other members than those of the schema", "schema", func(r Record) bool {
		for f := range r.Fields {
			if !slices.Contains(fields, f) {
				return false
			}
		}
		return true
	}},
	{"members are in alphabetical order, and there is no white space", "fixtures", func(r Record) bool {
		var out bytes.Buffer
		enc := json.NewEncoder(&out)
		enc.SetEscapeHTML(false)
		return enc.Encode(r.Fields) == nil && out.String() == r.Line // a map is written in order
	}},
	{"a record ends in one newline", "fixtures", func(r Record) bool { return strings.HasSuffix(r.Line, "}\n") }},
}

// Parse reads one line.
func Parse(line string) (Record, error) {
	r := Record{Line: line}
	d := json.NewDecoder(strings.NewReader(line))
	d.UseNumber()
	err := d.Decode(&r.Fields)
	return r, err
}

// Broken returns the rules that a line breaks.
func Broken(line string) (names []string) {
	r, err := Parse(line)
	if err != nil {
		return []string{"a line is a JSON object: " + err.Error()}
	}
	for _, rule := range Rules {
		if !rule.Holds(r) {
			names = append(names, rule.Name)
		}
	}
	return names
}

// Bounds of a file: chunks of at most 10 MiB are signed, and a new file begins after an
// hour (docs/reachability/README.md and what belongs to it).
const (
	maxBytes = 10 << 20
	maxSpan  = time.Hour
)

// Check holds every line of every file in dir to all rules, and counts the records by
// their type.
func Check(dir string) (map[string]int, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return nil, err
	}
	seen := map[string]int{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		if len(b) == 0 || len(b) > maxBytes {
			return nil, fmt.Errorf("%s: %d bytes", f, len(b))
		}
		var first, last int64
		for i, line := range strings.SplitAfter(strings.TrimSuffix(string(b), "\n")+"\n", "\n") {
			if line == "" {
				break
			}
			if broken := Broken(line); broken != nil {
				return nil, fmt.Errorf("%s:%d: %q: %s", f, i+1, broken, line)
			}
			r, err := Parse(line)
			if err != nil {
				return nil, err
			}
			at, err := r.Fields["ts_ns"].(json.Number).Int64()
			if err != nil {
				return nil, err
			}
			if i == 0 {
				first, last = at, at
			}
			if at < last || at-first > int64(maxSpan) {
				return nil, fmt.Errorf("%s:%d: at %d, after %d and %d", f, i+1, at, first, last)
			}
			last = at
			seen[r.event()["type"].(string)]++
		}
	}
	return seen, nil
}
