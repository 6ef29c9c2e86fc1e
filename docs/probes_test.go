// Package docs_test holds the documentation to what the code does.
package docs_test

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"probity/bpf/policy"
	"probity/evidence"
)

// block is one fenced block of a Markdown file.
type block struct {
	info string // behind the fence
	line int
	text string
}

func blocks(t *testing.T, file string) (all []block) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var open *block
	for i, line := range strings.SplitAfter(string(b), "\n") {
		info, fence := strings.CutPrefix(strings.TrimRight(line, "\n"), "```")
		switch {
		case fence && open == nil:
			open = &block{info: info, line: i + 2}
		case fence:
			all = append(all, *open)
			open = nil
		case open != nil:
			open.text += line
		}
	}
	if open != nil {
		t.Fatalf("%s:%d: a block that does not end", file, open.line)
	}
	return all
}

// Each example is a policy; together they show every type, set and key.
func TestExamples(t *testing.T) {
	shown := reflect.New(reflect.TypeFor[policy.Probe]()).Elem() // the fields that some example sets
	types, n := map[string]bool{}, 0
	for _, file := range []string{"probes.md", "fail-policy.md", "../README.md"} {
		for _, b := range blocks(t, file) {
			if b.info != "yaml" {
				continue
			}
			p, err := policy.Parse(fmt.Sprintf("%s, example at line %d", file, b.line), []byte(b.text))
			if err != nil {
				t.Error(err)
			}
			for _, pr := range p.Probes {
				n++
				types[pr.Type], types[pr.Set] = true, true
				v := reflect.ValueOf(pr)
				for i := range v.NumField() {
					if !v.Field(i).IsZero() {
						shown.Field(i).Set(v.Field(i))
					}
				}
			}
		}
	}
	for _, want := range slices.Concat(policy.Types, policy.Sets) {
		if !types[want] {
			t.Errorf("no example of %s", want)
		}
	}
	for i := range shown.NumField() {
		if shown.Field(i).IsZero() {
			t.Errorf("no example of %s", shown.Type().Field(i).Name)
		}
	}
	if n < 20 {
		t.Errorf("%d probes: the examples were not found", n)
	}
}

// What the parser says of the policy with mistakes is what stands below it.
func TestMistakes(t *testing.T) {
	var data, want string
	for _, b := range blocks(t, "probes.md") {
		switch b.info {
		case "yaml mistakes":
			data = b.text
		case "text mistakes":
			want = b.text
		}
	}
	_, err := policy.Parse("mistakes.yaml", []byte(data))
	if err == nil || err.Error()+"\n" != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

// The tables name every key, type, set and reason, and the bounds as they are.
func TestTables(t *testing.T) {
	b, err := os.ReadFile("probes.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	rows := func(heading string) map[string]string {
		_, section, ok := strings.Cut(text, "\n"+heading+"\n")
		if !ok {
			t.Fatalf("no section %s", heading)
		}
		section, _, _ = strings.Cut(section, "\n#")
		out := map[string]string{}
		for _, m := range regexp.MustCompile("(?m)^\\| `(\\w+)[^|`]*` \\|(.*)$").FindAllStringSubmatch(section, -1) {
			out[m[1]] = m[2]
		}
		return out
	}
	// The parser lists what it knows when it does not know a key.
	_, err = policy.Parse("f", []byte("name: n\nprobes: [{zzz: 1}]\n"))
	if err == nil {
		t.Fatal("an unknown key is taken")
	}
	_, list, ok := strings.Cut(strings.SplitN(err.Error(), "\n", 3)[len(strings.SplitN(err.Error(), "\n", 3))-1], "there are ")
	if !ok {
		t.Fatalf("no list of keys in %v", err)
	}
	list, _, _ = strings.Cut(list, "\n")
	keys := rows("## All keys")
	for key := range strings.SplitSeq(list, ", ") {
		if keys[key] == "" {
			t.Errorf("the key %s is not in the table", key)
		}
		delete(keys, key)
	}
	for key := range keys {
		t.Errorf("there is no key %s", key)
	}
	keys = rows("## All keys")
	for key, bound := range map[string]int64{"stopAfter": policy.MaxStopAfter, "maxRate": policy.MaxMaxRate} {
		if !strings.Contains(keys[key], "1 to "+grouped(bound)) {
			t.Errorf("%s: %s; the bound is %d", key, keys[key], bound)
		}
	}
	if want := fmt.Sprintf("%v to %vh", policy.MinRearmAfter, policy.MaxRearmAfter.Hours()); !strings.Contains(keys["rearmAfter"], want) {
		t.Errorf("rearmAfter: %s; want %s", keys["rearmAfter"], want)
	}
	for _, typ := range policy.Types {
		if !strings.Contains(keys["type"], typ) {
			t.Errorf("type: no %s", typ)
		}
	}
	sets := rows("## Sets")
	for _, set := range policy.Sets {
		if !strings.Contains(keys["set"], set) || sets[set] == "" {
			t.Errorf("set: no %s", set)
		}
	}
	said := rows("## What the evidence says, and what to do")
	for _, r := range evidence.NotArmedReasons {
		if said[string(r)] == "" {
			t.Errorf("the reason %s is not in the table", r)
		}
	}
	for _, s := range evidence.States {
		if said[string(s)] == "" {
			t.Errorf("the state %s is not in the table", s)
		}
	}
	if len(said) != len(evidence.NotArmedReasons)+len(evidence.States) {
		t.Errorf("%d states and reasons are told", len(said))
	}
}

// grouped writes 1000000 as 1,000,000.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
