package policy

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"probity/runtime/container"
)

const demo = `name: demo
select:
  runtimes: [podman, containerd]
  namespaces: ["prod-*"]
  podLabels: {app: web, empty: ""}
  images: ["localhost/demo*"]
  containers: ["web-*"]
  annotations:
    io.example/on: "true"
probes:
  - id: libgreet-hello
    type: uprobe
    file: /usr/lib/**/libgreet.so*
    symbols: [greet_hello, "main.(*T[go.shape.int]).Method"]
    offsets: [entry, 0x1234, 42]
  - id: exec
    type: tracepoint
    event: sched:sched_process_exec
`

func TestParse(t *testing.T) {
	want := Policy{
		Name: "demo", File: "demo.yaml",
		Select: Selector{
			Runtimes:    []container.Runtime{container.Podman, container.Containerd},
			Namespaces:  []string{"prod-*"},
			PodLabels:   map[string]string{"app": "web", "empty": ""},
			Images:      []string{"localhost/demo*"},
			Containers:  []string{"web-*"},
			Annotations: map[string]string{"io.example/on": "true"},
		},
		Probes: []Probe{
			{ID: "libgreet-hello", Type: Uprobe, File: "/usr/lib/**/libgreet.so*", Symbols: []string{"greet_hello", "main.(*T[go.shape.int]).Method"},
				Offsets: []Offset{{Entry: true}, {Value: 0x1234}, {Value: 42}}},
			{ID: "exec", Type: Tracepoint, Event: ProcessExec},
		},
	}
	for name, data := range map[string]string{
		"plain": demo, "byte order mark": "\ufeff" + demo, "carriage returns": strings.ReplaceAll(demo, "\n", "\r\n"), "one document marked": "---\n" + demo + "...\n", "comments": "# a\n" + demo + "# b\n",
	} {
		got, err := Parse("demo.yaml", []byte(data))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// probe is a policy with this as its second probe's first line, at line 7,
// column 5.
func probe(lines string) string {
	return "name: n\nprobes:\n  - id: a\n    type: tracepoint\n    event: sched:sched_process_exec\n\n  - " + strings.ReplaceAll(lines, "\n", "\n    ") + "\n"
}

// sel is a policy with this below select, at line 3, column 3.
func sel(lines string) string {
	return "name: n\nselect:\n  " + strings.ReplaceAll(lines, "\n", "\n  ") + "\nprobes: [{id: a, type: tracepoint, event: \"sched:sched_process_exec\"}]\n"
}

func TestProblems(t *testing.T) {
	uprobe := func(lines string) string { return probe("id: b\ntype: uprobe\n" + lines) } // lines at 9:5
	for _, c := range []struct {
		name, data string
		want       []string // "line:column: part of the message"
	}{
		{"empty", "", []string{"1:1: no policy"}},
		{"only a comment", "# nothing\n", []string{"1:1: no policy"}},
		{"nothing", "~\n", []string{"1:1: policy: want a mapping, not nothing"}},
		{"a list", "- a\n", []string{"1:1: policy: want a mapping, not a list"}},
		{"text", "\n  demo\n", []string{"2:3: policy: want a mapping, not text"}},
		{"empty mapping", "{}\n", []string{"1:1: policy: no name", "1:1: policy: no probes"}},
		{"two documents", demo + "---\n" + demo, []string{"19:1: a second document"}},
		{"an empty second document", demo + "---\n", []string{"19:1: a second document"}},
		{"broken second document", "name: n\n---\n[\n", []string{"4:1: not YAML"}},
		{"not UTF-8", "name: é\xff\n", []string{"1:8: not UTF-8"}},
		{"UTF-16", "\xff\xfen\x00", []string{"1:1: not UTF-8"}},
		{"control character", "name: n\nprobes: \x01\n", []string{"2:9: character U+0001"}},
		{"NUL", "name: n\x00\n", []string{"1:8: character U+0000"}},
		{"right to left", "name: n # \u202e\n", []string{"1:11: character U+202E"}},
		{"byte order mark within", "name: \ufeffn\n", []string{"1:7: character U+FEFF"}},
		{"tab", "name: n\nselect:\n\timages: [a]\n", []string{"3:1: not YAML: "}},
		{"not closed", "name: [\n", []string{"2:1: not YAML: "}},
		{"colon", "name: a: b\n", []string{"1:8: not YAML: "}},
		{"unknown alias", "name: *nowhere\n", []string{"1:7: not YAML: unknown anchor"}},
		{"nested", "name: " + strings.Repeat("[", 100) + "\n", []string{"1:23: not YAML: "}},
		{"too large", "# " + strings.Repeat("x", MaxFile), []string{"1:1: the file is larger than 1048576 bytes"}},
		{"unknown key", "nmae: n\n" + demo, []string{"1:1: policy: unknown key \"nmae\"; there are name, probes, select"}},
		{"key twice", demo + "name: again\n", []string{"19:1: policy: \"name\" is there twice"}},
		{"number as a key", demo + "7: x\n", []string{"19:1: policy: the key 7 is a number"}},
		{"list as a key", demo + "? [a]\n: x\n", []string{"19:3: policy: want text as a key, not a list"}},
		{"merge key", demo + "<<: {name: x}\n", []string{"19:1: merge key"}},
		{"anchor and alias", "name: &n demo\nprobes:\n  - id: *n\n    type: tracepoint\n    event: sched:sched_process_exec\n", []string{"1:7: anchor &n", "3:9: alias *n"}},
		{"cyclic alias", "name: n\nprobes: &p [*p]\n", []string{"2:9: anchor &p", "2:13: alias *p"}},
		{"tag", strings.Replace(demo, "demo", "!!str demo", 1), []string{"1:7: tag !!str"}},
		{"own tag", strings.Replace(demo, "demo", "!x demo", 1), []string{"1:7: tag !x", "1:7: name: want text in quotes, not !x"}},

		{"name is a number", strings.Replace(demo, "demo", "12", 1), []string{"1:7: name: want text in quotes, not a number"}},
		{"name is nothing", strings.Replace(demo, "demo", "", 1), []string{"1:6: name: want text, not nothing"}},
		{"name is empty", strings.Replace(demo, "demo", `""`, 1), []string{"1:7: name: empty"}},
		{"name is a list", strings.Replace(demo, "demo", "[a]", 1), []string{"1:7: name: want text, not a list"}},
		{"name with a slash", strings.Replace(demo, "demo", "../a", 1), []string{"1:7: name \"../a\": want letters"}},
		{"name too long", strings.Replace(demo, "demo", strings.Repeat("n", 129), 1), []string{"1:7: name: 129 bytes, at most 128"}},
		{"name with an escape", strings.Replace(demo, "demo", `"a\e[2J"`, 1), []string{"1:7: name: has a character that can't be seen"}},

		{"select nothing", "name: n\nselect:\nprobes: [{id: a, type: tracepoint, event: \"sched:sched_process_exec\"}]\n", []string{"2:8: select: nothing in it"}},
		{"select a list", "name: n\nselect: [a]\nprobes: [{id: a, type: tracepoint, event: \"sched:sched_process_exec\"}]\n", []string{"2:9: select: want a mapping, not a list"}},
		{"unknown selector", sel("image: [a]"), []string{"3:3: select: unknown key \"image\"; there are annotations, containers, images, namespaces, podLabels, runtimes"}},
		{"unknown runtime", sel("runtimes: [podman, rkt]"), []string{"3:22: runtimes: unknown runtime \"rkt\""}},
		{"runtime twice", sel("runtimes: [podman, podman]"), []string{"3:22: runtimes: \"podman\" is there twice"}},
		{"runtimes as text", sel("runtimes: podman"), []string{"3:13: runtimes: want a list, not text"}},
		{"no images", sel("images: []"), []string{"3:11: images: empty: leave it out"}},
		{"bad globs", sel("images: ['a[', '{b', 'c}', 'd\\']\nnamespaces:\n  - '[z-a'"), []string{"3:12: images: \"a[\" is not a glob", "3:18: ", "3:24: ", "3:30: ", "5:7: namespaces: "}},
		{"glob too wide", sel("images: ['{a,b}{a,b}{a,b}{a,b}{a,b}']"), []string{"3:12: images: \"{a,b}{a,b}{a,b}{a,b}{a,b}\": at most 4 groups"}},
		{"images of numbers", sel("images: [1.5, true, ~]"), []string{"3:12: images: want text in quotes, not a number", "3:17: images: want text in quotes, not a boolean", "3:23: images: want text, not nothing"}},
		{"label is a boolean", sel("podLabels: {on: true}"), []string{"3:19: podLabels: on: want text in quotes, not a boolean"}},
		{"label twice", sel("podLabels: {a: b, a: c}"), []string{"3:21: podLabels: \"a\" is there twice"}},
		{"no labels", sel("podLabels: {}"), []string{"3:14: podLabels: empty"}},
		{"annotations as a list", sel("annotations: [a]"), []string{"3:16: annotations: want a mapping, not a list"}},
		{"columns are characters", sel("images: [é, 7]"), []string{"3:15: images: want text in quotes"}},

		{"probes are a mapping", "name: n\nprobes: {a: b}\n", []string{"2:9: probes: want a list, not a mapping"}},
		{"no probe", "name: n\nprobes: []\n", []string{"2:9: probes: empty"}},
		{"probe is text", probe("text"), []string{"7:5: probe: want a mapping, not text"}},
		{"probe without all", probe("{}"), []string{"7:5: probe: no id", "7:5: probe: no type"}},
		{"unknown probe key", probe("id: b\ntype: tracepoint\nevent: sched:sched_process_exec\nsymbol: x"), []string{"10:5: probe: unknown key \"symbol\""}},
		{"unknown type", probe("id: b\ntype: kprobe"), []string{"8:11: type: unknown value \"kprobe\": want uprobe or tracepoint"}},
		{"id twice", probe("type: tracepoint\nid: a\nevent: sched:sched_process_exec"), []string{"8:9: id \"a\" is taken by the probe at line 3"}},
		{"id with a space", probe("id: a b\ntype: tracepoint\nevent: sched:sched_process_exec"), []string{"7:9: id \"a b\": want letters"}},
		{"unknown event", probe("id: b\ntype: tracepoint\nevent: sched:sched_switch"), []string{"9:12: event: unknown value \"sched:sched_switch\""}},
		{"tracepoint without event", probe("id: b\ntype: tracepoint"), []string{"7:5: tracepoint: no event"}},
		{"tracepoint with a file", probe("id: b\ntype: tracepoint\nevent: sched:sched_process_exec\nfile: /a\nsymbols: [a]\noffsets: [1]"), []string{"10:11: file: a tracepoint has none", "11:14: symbols: a tracepoint", "12:14: offsets: a tracepoint"}},
		{"uprobe with nothing", probe("id: b\ntype: uprobe"), []string{"7:5: uprobe: no file", "7:5: uprobe: neither symbols nor offsets"}},
		{"uprobe with an event", uprobe("file: /a\nsymbols: [a]\nevent: sched:sched_process_exec"), []string{"11:12: event: a uprobe has none"}},
		{"uprobe with empty lists", uprobe("file: /a\nsymbols: []\noffsets: []"), []string{"10:14: symbols: empty", "11:14: offsets: empty"}},
		{"file not absolute", uprobe("file: usr/lib/a\nsymbols: [a]"), []string{"9:11: file: \"usr/lib/a\" is not absolute"}},
		{"file begins with a group", uprobe("file: '{/usr,}/lib/a'\nsymbols: [a]"), []string{"9:11: file: \"{/usr,}/lib/a\" is not absolute"}},
		{"file is a directory", uprobe("file: /usr/lib/\nsymbols: [a]"), []string{"9:11: file: \"/usr/lib/\" ends with '/'"}},
		{"file goes up", uprobe("file: /usr/../a\nsymbols: [a]"), []string{"9:11: file: \"/usr/../a\": want a path without"}},
		{"file goes up in a group", uprobe("file: '/usr/{lib,..}/a'\nsymbols: [a]"), []string{"9:11: file: "}},
		{"file with an empty part", uprobe("file: /usr//a\nsymbols: [a]"), []string{"9:11: file: "}},
		{"file glob", uprobe("file: '/usr/[a'\nsymbols: [a]"), []string{"9:11: file: \"/usr/[a\" is not a glob"}},
		{"files as a list", uprobe("file: [/a]\nsymbols: [a]"), []string{"9:11: file: want text, not a list"}},
		{"symbol with a version", uprobe("file: /a\nsymbols: [memcpy@GLIBC_2.14, a]"), []string{"10:15: symbols: \"memcpy@GLIBC_2.14\": want the name without its version"}},
		{"symbol twice", uprobe("file: /a\nsymbols:\n  - a\n  - a"), []string{"12:9: symbols: \"a\" is there twice"}},
		{"symbol with a line break", uprobe("file: /a\nsymbols: [\"a\\nb\"]"), []string{"10:15: symbols: has a character"}},
		{"offsets", uprobe("file: /a\noffsets: [end, -1, 1.5, 0o17, 010, 1_000, 0x, 0X12, '7', 9223372036854775808, 0x8000000000000000, +1, 0b1]"), []string{
			"10:15: offsets: want entry", "10:20: offsets: -1", "10:24: offsets: want entry", "10:29: offsets: 0o17", "10:35: offsets: 010", "10:40: offsets: 1_000", "10:47: offsets: want entry",
			"10:51: offsets: ", "10:57: offsets: want entry", "10:62: offsets: ", "10:83: offsets: ", "10:103: offsets: +1", "10:107: offsets: 0b1"}},
		{"offset twice", uprobe("file: /a\noffsets: [16, 0x10, entry, entry]"), []string{"10:19: offsets: \"0x10\" is there twice", "10:32: offsets: \"entry\" is there twice"}},
		{"offset is entry, quoted, and fine", strings.Replace(demo, "entry", "'entry'", 1), nil},
		{"the largest offset", strings.Replace(demo, "0x1234", "0x7fffffffffffffff", 1), nil},
		{"several at once", "nam: n\nselect: {image: a}\nprobes:\n  - id: a\n    type: uprobe\n    file: a\n", []string{"1:1: policy: no name", "1:1: policy: unknown key", "2:10: select: unknown key", "4:5: uprobe: neither", "6:11: file: \"a\" is not absolute"}},
	} {
		_, err := Parse("dir/f.yaml", []byte(c.data))
		var ds Diagnostics
		if err != nil && !errors.As(err, &ds) {
			t.Errorf("%s: error of type %T: %v", c.name, err, err)
			continue
		}
		matches := len(ds) == len(c.want)
		got := make([]string, len(ds))
		for i, d := range ds {
			got[i] = fmt.Sprintf("%d:%d: %s", d.Line, d.Column, d.Message)
			if d.Error() != "dir/f.yaml:"+got[i] {
				t.Errorf("%s: %q", c.name, d.Error())
			}
		}
		slices.Sort(got)
		want := slices.Sorted(slices.Values(c.want))
		for i := range want {
			matches = matches && strings.HasPrefix(got[i], want[i])
		}
		if !matches {
			t.Errorf("%s: got\n\t%s\nwant\n\t%s", c.name, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
		}
	}
}

func TestManyProblems(t *testing.T) {
	_, err := Parse("f", []byte("["+strings.Repeat("&a x,", 5000)+"]"))
	var ds Diagnostics
	if !errors.As(err, &ds) || len(ds) != maxDiagnostics+1 || !strings.Contains(err.Error(), "more than 1000 problems") {
		t.Errorf("%d problems", len(ds))
	}
}

// Aliases of aliases: refused without being expanded.
func TestAliasBomb(t *testing.T) {
	var b strings.Builder
	b.WriteString("a0: &a0 [x]\n")
	for i := range 2000 {
		fmt.Fprintf(&b, "a%d: &a%d [*a%d, *a%d, *a%d, *a%d, *a%d, *a%d]\n", i+1, i+1, i, i, i, i, i, i)
	}
	var ds Diagnostics
	if _, err := Parse("bomb", []byte(b.String())); !errors.As(err, &ds) || len(ds) < 1000 {
		t.Errorf("%d problems", len(ds))
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{demo, probe("id: b\ntype: uprobe\nfile: /a/{b,c}/[d-e]*\noffsets: [entry]"), sel("images: ['**']"), "a: &a [*a]\n", "---\n---\n", "? {a: b}\n: c\n", "\xff"} {
		f.Add([]byte(seed))
	}
	id := container.Identity{Runtime: container.Podman, Name: "web-1", Pod: &container.Pod{Namespace: "prod-1"}, Image: container.Image{Name: "localhost/demo:latest"}}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse("f", data)
		var ds Diagnostics
		if err != nil {
			if !errors.As(err, &ds) || len(ds) == 0 || !reflect.DeepEqual(p, Policy{}) {
				t.Fatalf("%T %v, %+v", err, err, p)
			}
			for _, d := range ds {
				if d.Line < 1 || d.Column < 1 || d.File != "f" || d.Message == "" {
					t.Errorf("%+v", d)
				}
			}
			return
		}
		if p.Name == "" || len(p.Probes) == 0 {
			t.Errorf("%+v", p)
		}
		for _, pr := range p.Probes {
			uprobe := pr.Type == Uprobe && pr.File[0] == '/' && len(pr.Symbols)+len(pr.Offsets) > 0 && pr.Event == ""
			tracepoint := pr.Type == Tracepoint && pr.Event == ProcessExec && pr.File == "" && pr.Symbols == nil && pr.Offsets == nil
			if pr.ID == "" || !uprobe && !tracepoint {
				t.Errorf("%+v", pr)
			}
		}
		p.Select.Match(id)
	})
}
