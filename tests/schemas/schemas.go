// Package schemas holds what tests made of evidence to the JSON Schemas that we publish:
// every line of every chunk, its envelope and its statement, by a library that is not
// ours. It remembers what kinds of line it saw, so that a package can want that its
// tests have shown what [Shown] says.
//
// In: spools, or lines. Out: failures of the test, and of the package's run as a whole.
// A schema sees neither the order of members nor a signature: probity verify does.
package schemas

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"probity/evidence/schema"
	"probity/tests/need"
)

// compiled are the schemas by their names.
var compiled = sync.OnceValues(func() (map[string]*jsonschema.Schema, error) {
	out := map[string]*jsonschema.Schema{}
	for _, name := range schema.Names {
		b, err := schema.FS.ReadFile(name + ".json")
		if err != nil {
			return nil, err
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		c := jsonschema.NewCompiler()
		c.DefaultDraft(jsonschema.Draft2020)
		if err := c.AddResource("urn:"+name, doc); err != nil {
			return nil, err
		}
		if out[name], err = c.Compile("urn:" + name); err != nil {
			return nil, err
		}
	}
	return out, nil
})

var (
	mu   sync.Mutex
	seen = map[string]bool{}
	// shapes counts the lines that Line was given, by what they have.
	shapes = map[uint64]int{}
)

const fewLines = 5

// Spool holds every line of every published chunk of a spool to the schemas.
func Spool(t testing.TB, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "ready", "*", "*.ndjson"))
	if err != nil || len(files) == 0 {
		t.Fatalf("schemas: spool %s: %d chunks, %v", dir, len(files), err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatalf("schemas: %v", err)
		}
		if err := chunk(b); err != nil {
			t.Errorf("schemas: %s: %v", f, err)
		}
	}
}

// Line holds one line between header and envelope to its schema, the first few of each
// shape: a property test makes a hundred thousand that differ in their numbers.
func Line(t testing.TB, line []byte) {
	t.Helper()
	shape := shapeOf(line)
	mu.Lock()
	shapes[shape]++
	often := shapes[shape] > fewLines
	mu.Unlock()
	if often {
		return
	}
	if err := check("", line); err != nil {
		t.Errorf("schemas: %v", err)
	}
}

// shapeOf is the same for two lines that differ in their values only, those aside that
// tell kinds of line apart. It only has to be quick.
func shapeOf(line []byte) uint64 {
	h := fnv.New64a()
	var member []byte
	for i := 0; i < len(line); i++ {
		if line[i] != '"' {
			continue
		}
		start := i + 1
		for i++; i < len(line) && line[i] != '"'; i++ {
			if line[i] == '\\' {
				i++
			}
		}
		text := line[start:min(i, len(line))]
		switch isMember := i+1 < len(line) && line[i+1] == ':'; {
		case isMember:
			member = text
			h.Write(text)
		case slices.Contains([]string{"state", "probeType", "reason", "scope", "set"}, string(member)):
			h.Write(text)
		}
	}
	return h.Sum64()
}

func chunk(b []byte) error {
	lines := bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
	for i, l := range lines {
		name := ""
		switch i {
		case 0:
			name = "header"
		case len(lines) - 1:
			name = "envelope"
		}
		if err := check(name, l); err != nil {
			return fmt.Errorf("line %d: %w", i+1, err)
		}
	}
	var envelope struct{ Payload string }
	if err := json.Unmarshal(lines[len(lines)-1], &envelope); err != nil {
		return err
	}
	payload, err := base64.StdEncoding.DecodeString(envelope.Payload)
	if err != nil {
		return err
	}
	return check("statement", payload)
}

// check validates JSON by the schema of a name, or by that of its own kind.
func check(name string, text []byte) error {
	all, err := compiled()
	if err != nil {
		return err
	}
	var says says
	if err := json.Unmarshal(text, &says); err != nil {
		return err
	}
	if name == "" {
		if name = says.Kind; name != "coverage" && name != "observation" && name != "gap" {
			return fmt.Errorf("kind %q", name)
		}
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return err
	}
	if err := all[name].Validate(v); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, text)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, what := range says.is(name) {
		seen[what] = true
	}
	return nil
}

// says is what of a line tells its kinds apart.
type says struct {
	Kind, State, ProbeType, Reason, Scope, Set string
	Entry                                      json.RawMessage
	Gaps                                       []struct{ Reason string }
}

// is lists what a line is, as [Shown] names it.
func (s says) is(name string) (list []string) {
	switch name {
	case "observation":
		list = []string{"state " + s.State}
		if s.State != "notArmed" {
			list = append(list, "probe type "+s.ProbeType)
		} else {
			list = append(list, "not armed "+s.Reason)
		}
		if s.Set != "" {
			list = append(list, "set "+s.Set)
		}
		if s.Entry != nil {
			list = append(list, "entry of "+s.Set)
		}
		for _, g := range s.Gaps {
			list = append(list, "gap of a site "+g.Reason)
		}
	case "gap":
		list = []string{"gap " + s.Reason, "scope " + s.Scope}
	}
	return append(list, "line "+name)
}

// Done is called with a package's exit code when all its tests have run, and returns the
// one to end with: 1 if they passed and did not show what Shown says of the package. It
// looks only if nothing was left out: no test by a flag, and none because of a need,
// where the package has needs. What was seen is added to the file that PROBITY_SEEN names,
// if it does: who changes Shown wants to know.
func Done(pkg string, needs bool, exit int) int {
	mu.Lock()
	defer mu.Unlock()
	if path := os.Getenv("PROBITY_SEEN"); path != "" {
		note(path, pkg)
	}
	if exit != 0 || filtered() || needs && !slices.Contains(strings.Split(os.Getenv(need.Require), ","), "all") {
		return exit
	}
	for _, what := range slices.Sorted(maps.Keys(Shown)) {
		if slices.Contains(Shown[what], pkg) && !seen[what] {
			fmt.Fprintf(os.Stderr, "schemas: no test of %s has shown %q any more: see tests/schemas\n", pkg, what)
			exit = 1
		}
	}
	return exit
}

func note(path, pkg string) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		fmt.Fprintln(os.Stderr, "schemas:", err)
		return
	}
	defer f.Close()
	for _, what := range slices.Sorted(maps.Keys(seen)) {
		fmt.Fprintf(f, "%s: %s\n", pkg, what)
	}
}

// filtered reports whether only some of the tests were to run.
func filtered() bool {
	for _, name := range []string{"test.run", "test.skip", "test.list", "test.fuzz", "test.bench"} {
		if f := flag.Lookup(name); f != nil && f.Value.String() != "" {
			return true
		}
	}
	f := flag.Lookup("test.short")
	return f != nil && f.Value.String() == "true"
}
