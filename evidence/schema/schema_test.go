package schema_test

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"probity/evidence"
	"probity/evidence/schema"
	"probity/evidence/sign"
)

// types are the Go structs of the schemas' top levels and of their $defs.
var types = map[string]reflect.Type{
	"header": reflect.TypeFor[evidence.Header](), "coverage": reflect.TypeFor[evidence.Coverage](), "observation": reflect.TypeFor[evidence.Observation](),
	"gap": reflect.TypeFor[evidence.Gap](), "statement": reflect.TypeFor[evidence.Statement](), "envelope": reflect.TypeFor[sign.Envelope](),
	"clock": reflect.TypeFor[evidence.Clock](), "pod": reflect.TypeFor[evidence.Pod](), "losses": reflect.TypeFor[evidence.Losses](),
	"probeFold": reflect.TypeFor[evidence.ProbeFold](), "process": reflect.TypeFor[evidence.Process](), "confidence": reflect.TypeFor[evidence.Confidence](),
	"inputs": reflect.TypeFor[evidence.Inputs](), "siteGap": reflect.TypeFor[evidence.SiteGap](), "subject": reflect.TypeFor[evidence.Subject](),
	"digestSet": reflect.TypeFor[evidence.Digest](), "predicate": reflect.TypeFor[evidence.Predicate](), "monitor": reflect.TypeFor[evidence.Monitor](),
	"monitoredProcess": reflect.TypeFor[evidence.MonitoredProcess](), "monitorLog": reflect.TypeFor[evidence.MonitorLog](), "logItem": reflect.TypeFor[evidence.LogItem](),
	"metadata": reflect.TypeFor[evidence.Metadata](), "extension": reflect.TypeFor[evidence.Extension](), "stateCount": reflect.TypeFor[evidence.StateCount](),
	"gapTotal": reflect.TypeFor[evidence.GapTotal](), "signature": reflect.TypeFor[sign.Signature](), "typeLoss": reflect.TypeFor[evidence.TypeLoss](),
	"redaction": reflect.TypeFor[evidence.Redaction](), "instance": reflect.TypeFor[evidence.Instance](), "duration": reflect.TypeFor[evidence.Duration](), "stack": reflect.TypeFor[evidence.Stack](),
	"frame": reflect.TypeFor[evidence.Frame](), "entry": reflect.TypeFor[evidence.Entry](), "systemCalls": reflect.TypeFor[evidence.SystemCalls](),
}

type object struct {
	Description          string                     `json:"description"`
	AdditionalProperties *bool                      `json:"additionalProperties"`
	Required             []string                   `json:"required"`
	Properties           map[string]json.RawMessage `json:"properties"`
	Defs                 map[string]object          `json:"$defs"`
}

func load(t testing.TB, name string) (object, []byte) {
	t.Helper()
	b, err := schema.FS.ReadFile(name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var o object
	if err := json.Unmarshal(b, &o); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return o, b
}

// property is what the tests read of a member's schema.
type property struct {
	Description string   `json:"description"`
	Type        string   `json:"type"`
	Ref         string   `json:"$ref"`
	Enum        []string `json:"enum"`
	Const       any      `json:"const"`
	Items       struct {
		Enum []string `json:"enum"`
	} `json:"items"`
}

// Every member of every struct is in its schema, required exactly if it is
// always written, described, of the right JSON type; and nothing else is in there.
func TestSchemasAreTheStructs(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range schema.Names {
		top, _ := load(t, name)
		all := map[string]object{name: top}
		for def, o := range top.Defs {
			all[def] = o
		}
		for n, o := range all {
			typ, ok := types[n]
			if !ok {
				t.Errorf("%s: no struct belongs to it", n)
				continue
			}
			seen[n] = true
			compare(t, n, o, typ)
		}
	}
	for n := range types {
		if !seen[n] {
			t.Errorf("%s: no schema has it", n)
		}
	}
}

func compare(t *testing.T, name string, o object, typ reflect.Type) {
	t.Helper()
	if o.AdditionalProperties == nil || *o.AdditionalProperties || o.Description == "" {
		t.Errorf("%s: additionalProperties is not false, or there is no description", name)
	}
	var members, required []string
	for f := range fields(typ) {
		m, opt, _ := strings.Cut(f.Tag.Get("json"), ",")
		members = append(members, m)
		if opt == "" {
			required = append(required, m)
		}
		var p property
		raw, ok := o.Properties[m]
		if !ok {
			t.Errorf("%s.%s: not in the schema", name, m)
			continue
		}
		if err := json.Unmarshal(raw, &p); err != nil {
			t.Errorf("%s.%s: %v", name, m, err)
		}
		if len(p.Description) < 8 {
			t.Errorf("%s.%s: described as %q", name, m, p.Description)
		}
		if want, got := jsonType(f.Type), p.jsonType(); want != got {
			t.Errorf("%s.%s: the schema has %q, the struct %q", name, m, got, want)
		}
	}
	if !slices.Equal(required, o.Required) {
		t.Errorf("%s: required %v, want %v", name, o.Required, required)
	}
	for m := range o.Properties {
		if !slices.Contains(members, m) {
			t.Errorf("%s.%s: not in the struct", name, m)
		}
	}
}

func fields(typ reflect.Type) func(func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range typ.NumField() {
			if !yield(typ.Field(i)) {
				return
			}
		}
	}
}

func (p property) jsonType() string {
	switch {
	case p.Ref != "":
		return "object"
	case p.Const == true:
		return "boolean"
	case p.Enum != nil, p.Const != nil:
		return "string"
	}
	return p.Type
}

func jsonType(t reflect.Type) string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t {
	case reflect.TypeFor[evidence.Uint64](), reflect.TypeFor[evidence.Loss](), reflect.TypeFor[evidence.Time]():
		return "string"
	}
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Int:
		return "integer"
	case reflect.Float64:
		return "number"
	case reflect.Bool:
		return "boolean"
	case reflect.Slice:
		return "array"
	}
	return "object"
}

// FORMAT.md has a table for every struct with every member in order, with the
// schema's description; and names every value of every closed list.
func TestFormatIsTheStructs(t *testing.T) {
	b, err := os.ReadFile("../FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	heading := regexp.MustCompile(`(?m)^##+ (.+)$`)
	at := heading.FindAllStringSubmatchIndex(string(b), -1)
	for i, m := range at {
		end := len(b)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		sections[string(b[m[2]:m[3]])] = string(b[m[1]:end])
	}
	row := regexp.MustCompile("(?m)^\\| `([A-Za-z_0-9]+)` \\| [^|]+ \\| (required|optional) \\| (.+) \\|$")
	descriptions := map[string]map[string]string{}
	for _, name := range schema.Names {
		top, _ := load(t, name)
		top.Defs = mergeSelf(top, name)
		for def, o := range top.Defs {
			descriptions[def] = map[string]string{}
			for m, raw := range o.Properties {
				var p property
				if err := json.Unmarshal(raw, &p); err != nil {
					t.Fatal(err)
				}
				descriptions[def][m] = p.Description
			}
		}
	}
	for name, typ := range types {
		text, ok := sections[name]
		if !ok {
			t.Errorf("FORMAT.md has no section %q", name)
			continue
		}
		var got, want [][2]string
		for _, m := range row.FindAllStringSubmatch(text, -1) {
			got = append(got, [2]string{m[1], m[2]})
			if m[3] != descriptions[name][m[1]] {
				t.Errorf("FORMAT.md, %s.%s says %q, the schema %q", name, m[1], m[3], descriptions[name][m[1]])
			}
		}
		for f := range fields(typ) {
			m, opt, _ := strings.Cut(f.Tag.Get("json"), ",")
			when := "required"
			if opt != "" {
				when = "optional"
			}
			want = append(want, [2]string{m, when})
		}
		if !slices.Equal(got, want) {
			t.Errorf("FORMAT.md, %s has\n%v\nwant\n%v", name, got, want)
		}
	}
	inTable := func(section string) (names []string) {
		for _, m := range regexp.MustCompile("(?m)^\\| `([A-Za-z]+)` \\|").FindAllStringSubmatch(sections[section], -1) {
			names = append(names, m[1])
		}
		return names
	}
	var reasons []string
	for _, r := range evidence.GapReasons {
		reasons = append(reasons, string(r))
	}
	for _, r := range evidence.NotArmedReasons {
		reasons = append(reasons, string(r))
	}
	if got := inTable("Reasons"); !slices.Equal(got, reasons) {
		t.Errorf("FORMAT.md lists the reasons %v, want %v", got, reasons)
	}
	var states []string
	for _, s := range evidence.States {
		states = append(states, string(s))
	}
	if got := inTable("States"); !slices.Equal(got, states) {
		t.Errorf("FORMAT.md lists the states %v, want %v", got, states)
	}
	for _, p := range evidence.ProbeTypes {
		if !strings.Contains(sections["States"], "`"+string(p)+"`") {
			t.Errorf("FORMAT.md does not name the probe type %s", p)
		}
	}
	for r := range map[evidence.GapReason]bool{evidence.GapRingFull: true, evidence.GapSetFull: true, evidence.GapDecodeError: true, evidence.GapSpoolDropped: true, evidence.GapClockStep: true, evidence.GapCoalesced: true} {
		if !r.DetailOnly() || !strings.Contains(descriptions["observation"]["complete"], "`"+string(r)+"`") {
			t.Errorf("%s: FORMAT.md and DetailOnly differ", r)
		}
	}
}

func mergeSelf(top object, name string) map[string]object {
	all := map[string]object{name: top}
	for def, o := range top.Defs {
		all[def] = o
	}
	return all
}

// The closed lists in the schemas are the program's.
func TestClosedLists(t *testing.T) {
	lists := map[string]any{
		"coverage.runtime": evidence.Runtimes, "observation.runtime": evidence.Runtimes, "observation.origin": evidence.Origins,
		"observation.symbolKind": evidence.SymbolKinds, "observation.inline": evidence.Inlines, "observation.state": evidence.States,
		"observation.probeType": evidence.ProbeTypes, "observation.requestedProbeType": evidence.ProbeTypes, "observation.reason": evidence.NotArmedReasons,
		"siteGap.reason": evidence.GapReasons, "gap.reason": evidence.GapReasons, "gap.scope": evidence.Scopes, "probeFold.state": evidence.States,
		"coverage.gapReasons": evidence.GapReasons, "stateCount.state": evidence.States, "stateCount.probeType": evidence.ProbeTypes, "gapTotal.reason": evidence.GapReasons,
		"header.format": evidence.Formats, "extension.format": evidence.Formats, "typeLoss.probeType": evidence.ProbeTypes, "gap.probeType": evidence.ProbeTypes, "observation.set": evidence.Sets,
		"frame.reason": evidence.FrameReasons, "entry.mapped": evidence.Mappings, "entry.operation": evidence.Operations, "entry.protocol": evidence.Protocols,
		"entry.family": evidence.Families, "redaction.member": redactable(), "entry.access": evidence.Accesses, "systemCalls.arch": evidence.Arches,
	}
	found := map[string]bool{}
	for _, name := range schema.Names {
		top, _ := load(t, name)
		for def, o := range mergeSelf(top, name) {
			for m, raw := range o.Properties {
				var p property
				if err := json.Unmarshal(raw, &p); err != nil {
					t.Fatal(err)
				}
				if p.Enum == nil {
					p.Enum = p.Items.Enum
				}
				if p.Enum == nil {
					continue
				}
				found[def+"."+m] = true
				want, err := json.Marshal(lists[def+"."+m])
				if err != nil {
					t.Fatal(err)
				}
				got, err := json.Marshal(p.Enum)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%s.%s: %s, want %s", def, m, got, want)
				}
			}
		}
	}
	if len(found) != len(lists) {
		t.Errorf("%d closed lists in the schemas, want %d", len(found), len(lists))
	}
}

// redactable are the members that can be redacted, in any kind of line.
func redactable() (members []string) {
	for _, kind := range []string{evidence.KindCoverage, evidence.KindObservation, evidence.KindGap} {
		for _, m := range evidence.RedactedIn[kind] {
			if !slices.Contains(members, m) {
				members = append(members, m)
			}
		}
	}
	return members
}

func compiled(t testing.TB) map[string]*jsonschema.Schema {
	t.Helper()
	out := map[string]*jsonschema.Schema{}
	for _, name := range schema.Names {
		_, b := load(t, name)
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		c := jsonschema.NewCompiler()
		c.DefaultDraft(jsonschema.Draft2020)
		url := "urn:probity:schema:" + name + ":3"
		if err := c.AddResource(url, doc); err != nil {
			t.Fatal(err)
		}
		if out[name], err = c.Compile(url); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	return out
}

func validate(s *jsonschema.Schema, text string) error {
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return err
	}
	return s.Validate(v)
}

// The vectors obey the schemas.
func TestVectors(t *testing.T) {
	for chunk, statement := range map[string]string{"0000000000000007": "statement.json", "0000000000000008": "statement-2.json", "0000000000000009": "statement-3.json"} {
		t.Run(chunk, func(t *testing.T) { checkVector(t, chunk+"-00112233445566ff.ndjson", statement) })
	}
}

func checkVector(t *testing.T, chunk, statement string) {
	schemas := compiled(t)
	b, err := os.ReadFile("../testdata/" + chunk)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	for i, l := range lines {
		var claim struct{ Kind string }
		if err := json.Unmarshal([]byte(l), &claim); err != nil {
			t.Fatal(err)
		}
		if i == len(lines)-1 {
			claim.Kind = "envelope"
		}
		if err := validate(schemas[claim.Kind], l); err != nil {
			t.Errorf("line %d: %v", i+1, err)
		}
		if err := validate(schemas[claim.Kind], strings.TrimSuffix(l, "}")+`,"extra":1}`); err == nil {
			t.Errorf("line %d: a member that is not known is taken", i+1)
		}
	}
	st, err := os.ReadFile("../testdata/" + statement)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate(schemas["statement"], string(st)); err != nil {
		t.Error(err)
	}
}

// What a schema cannot see: the order and the spelling of JSON, and rules that
// compare two values.
var unseen = []string{
	"a space after a colon", "two members exchanged", "a member doubled",
	"a character escaped without need", "a character not escaped that must be", "a byte that is not UTF-8, as its escape", "half of a surrogate pair",
	"a fraction in another spelling", "a day that does not exist", "an end before the start", "a number in another spelling", "a number past 64 bits",
	"notArmed with another probe type than asked for", "complete, with a gap in coverage", "an IPv6 address in another spelling",
	"system calls that do not rise", "a duration whose counts are not its count", "a duration that ends in a bucket of 0",
	"a redacted member without a mark", "a mark of a rule that is not listed", "a mark that does not end", "a redacted port that is there", "a member of another kind of line", "redactions not in order",
}

// The lines that must be refused are refused by the schemas too, but for what a
// schema cannot see.
func TestInvalid(t *testing.T) {
	schemas := compiled(t)
	seen := 0
	b, err := os.ReadFile("../testdata/invalid.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct{ Why, Line string }
	if err := json.Unmarshal(b, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		kind := "gap"
		switch {
		case strings.Contains(c.Line, `"observation"`):
			kind = "observation"
		case strings.Contains(c.Line, `"coverage"`):
			kind = "coverage"
		}
		if slices.Contains(unseen, c.Why) {
			seen++
		}
		err := validate(schemas[kind], c.Line)
		if taken := err == nil; taken && !slices.Contains(unseen, c.Why) {
			t.Errorf("%s: the schema takes it\n%s", c.Why, c.Line)
		} else if !taken && slices.Contains(unseen, c.Why) {
			t.Errorf("%s: the schema does see it: %v", c.Why, err)
		}
	}
	if seen != len(unseen) {
		t.Errorf("%d of %d cases that a schema cannot see are in the vectors", seen, len(unseen))
	}
}
