package policy

import (
	"errors"
	"fmt"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

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

// One probe of each type and set, with all that it takes.
func TestParseTypes(t *testing.T) {
	for lines, want := range map[string]Probe{
		"type: uprobe\nprogram: entrypoint\nsymbols: ['std::vec::Vec<T>::push']\nsymbolGlobs: ['crypto/*', '*{closure#0}']\nsymbolRegexps: ['^SSL_(read|write)$']\nduration: true\nstack: true\nstopAfter: 1\nmaxRate: 1000\nrearmAfter: 1h30m": {
			Type: Uprobe, Program: Entrypoint, Symbols: []string{"std::vec::Vec<T>::push"}, SymbolGlobs: []string{"crypto/*", "*{closure#0}"}, SymbolRegexps: []string{"^SSL_(read|write)$"},
			Duration: true, Stack: true, StopAfter: 1, MaxRate: 1000, RearmAfter: 90 * time.Minute},
		"type: uretprobe\nlibrary: 'libssl.so.*'\nsymbols: [SSL_read]\nstack: false":        {Type: Uretprobe, Library: "libssl.so.*", Symbols: []string{"SSL_read"}},
		"type: uprobe\nbuildId: 'DEADbeef'\noffsets: [entry]\nduration: false":              {Type: Uprobe, BuildID: "deadbeef", Offsets: []Offset{{Entry: true}}},
		"type: usdt\nfile: /usr/bin/python3*\nmarkers: ['python:gc__*', 'python:audit']":    {Type: USDT, File: "/usr/bin/python3*", Markers: []string{"python:gc__*", "python:audit"}},
		"type: kprobe\nfunctions: [do_unlinkat]\nsyscalls: [openat]\nduration: true":        {Type: Kprobe, Functions: []string{"do_unlinkat"}, Syscalls: []string{"openat"}, Duration: true},
		"type: kretprobe\nsyscalls: [openat]":                                               {Type: Kretprobe, Syscalls: []string{"openat"}},
		"type: fentry\nfunctions: [foo.isra.0]\nstopAfter: 1000000000000\nrearmAfter: 168h": {Type: Fentry, Functions: []string{"foo.isra.0"}, StopAfter: MaxStopAfter, RearmAfter: MaxRearmAfter},
		"type: fexit\nfunctions: [vfs_write]":                                               {Type: Fexit, Functions: []string{"vfs_write"}},
		"type: tracepoint\nevent: 9p:9p_client_req":                                         {Type: Tracepoint, Event: "9p:9p_client_req"},
		"type: rawTracepoint\nevent: sys_enter\nstack: true":                                {Type: RawTracepoint, Event: "sys_enter", Stack: true},
		"set: exec": {Set: SetExec}, "set: libraries": {Set: SetLibraries}, "set: syscalls": {Set: SetSyscalls}, "set: network": {Set: SetNetwork}, "set: files": {Set: SetFiles},
		"set: files\nquota: 131072": {Set: SetFiles, Quota: MaxQuota}, "quota: 1\nset: exec": {Set: SetExec, Quota: 1},
	} {
		want.ID = "b"
		p, err := Parse("f", []byte(probe("id: b\n"+lines)))
		if err != nil || !reflect.DeepEqual(p.Probes[1], want) {
			t.Errorf("%s:\n%+v, %v", lines, p.Probes, err)
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
		{"empty mapping", "{}\n", []string{"1:1: policy: no name", "1:1: policy: no probes, and nothing to redact"}},
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
		{"unknown key", "nmae: n\n" + demo, []string{"1:1: policy: unknown key \"nmae\"; there are failPolicy, name, probes, redact, select"}},
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
		{"unknown selector", sel("image: [a]"), []string{"3:3: select: unknown key \"image\": did you mean images?"}},
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
		{"probe without all", probe("{}"), []string{"7:5: probe: no id", "7:5: probe: neither type nor set: want one of them"}},
		{"unknown probe key", probe("id: b\ntype: tracepoint\nevent: sched:sched_process_exec\nsymbol: x"), []string{"10:5: probe: unknown key \"symbol\""}},
		{"a key in other letters", uprobe("file: /a\nsymbols: [a]\nbuildid: abcd\nrearm: 5m\nid2: x"), []string{"11:5: probe: unknown key \"buildid\": did you mean buildId?", "12:5: probe: unknown key \"rearm\": did you mean rearmAfter?", "13:5: probe: unknown key \"id2\": did you mean id?"}},
		{"unknown selector, nothing near", sel("pods: [a]"), []string{"3:3: select: unknown key \"pods\"; there are annotations, containers, images, namespaces, podLabels, runtimes"}},
		{"unknown type", probe("id: b\ntype: uprobes"), []string{"8:11: type: unknown value \"uprobes\": want uprobe, uretprobe, usdt, kprobe, kretprobe, fentry, fexit, tracepoint or rawTracepoint"}},
		{"type is a set", probe("id: b\ntype: exec"), []string{"8:11: type: exec is a set: write set: exec"}},
		{"unknown set", probe("id: b\nset: sockets"), []string{"8:10: set: unknown value \"sockets\": want exec, libraries, syscalls, network or files"}},
		{"set is a type", probe("id: b\nset: kprobe"), []string{"8:10: set: kprobe is a type: write type: kprobe"}},
		{"type and set", probe("id: b\ntype: uprobe\nset: exec"), []string{"9:10: set: this probe has a type"}},
		{"a set takes nothing", probe("id: b\nset: exec\nfile: /a\nstack: true\nevent: x"), []string{"9:11: file: a set has none", "10:12: stack: a set has none", "11:12: event: a set has none"}},
		{"quota of syscalls", probe("id: b\nset: syscalls\nquota: 5"), []string{"9:12: quota: the set syscalls has none: it cannot be full"}},
		{"quota past the bounds", probe("id: b\nset: exec\nquota: 131073"), []string{"9:12: quota: 131073: want a decimal number from 1 to 131072"}},
		{"no quota", probe("id: b\nset: exec\nquota: 0"), []string{"9:12: quota: 0: want"}},
		{"quota is text", probe("id: b\nset: exec\nquota: many"), []string{"9:12: quota: want a decimal number"}},
		{"quota of a type", uprobe("file: /a\nsymbols: [a]\nquota: 5"), []string{"11:12: quota: a uprobe has none: only sets have entries; stopAfter bounds hits"}},
		{"id twice", probe("type: tracepoint\nid: a\nevent: sched:sched_process_exec"), []string{"8:9: id \"a\" is taken by the probe at line 3"}},
		{"id with a space", probe("id: a b\ntype: tracepoint\nevent: sched:sched_process_exec"), []string{"7:9: id \"a b\": want letters"}},
		{"event without its group", probe("id: b\ntype: tracepoint\nevent: sched_switch"), []string{"9:12: event: \"sched_switch\": want group:name"}},
		{"event is a path", probe("id: b\ntype: tracepoint\nevent: ../sched:sched_switch"), []string{"9:12: event: \"../sched:sched_switch\": want group:name"}},
		{"event of a raw tracepoint with its group", probe("id: b\ntype: rawTracepoint\nevent: sched:sched_switch"), []string{"9:12: event: \"sched:sched_switch\": a rawTracepoint is named without its group: want sched_switch"}},
		{"event of a raw tracepoint is a glob", probe("id: b\ntype: rawTracepoint\nevent: sys_*"), []string{"9:12: event: \"sys_*\": want the name of a raw tracepoint"}},
		{"tracepoint without event", probe("id: b\ntype: tracepoint"), []string{"7:5: tracepoint: nothing to probe: want event"}},
		{"tracepoint with a file", probe("id: b\ntype: tracepoint\nevent: sched:sched_process_exec\nfile: /a\nsymbols: [a]\noffsets: [1]"), []string{"10:11: file: a tracepoint has none", "11:14: symbols: a tracepoint", "12:14: offsets: a tracepoint"}},
		{"uprobe with nothing", probe("id: b\ntype: uprobe"), []string{"7:5: uprobe: no target: want one of file, library, buildId or program", "7:5: uprobe: nothing to probe: want symbols, symbolGlobs, symbolRegexps or offsets"}},
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

		{"two targets", uprobe("program: nginx\nsymbols: [a]\nlibrary: libc.so.6\nbuildId: abcd"), []string{"11:14: library: there is a target already, program at line 9", "12:14: buildId: there is a target already, program at line 9"}},
		{"library is a path", uprobe("library: /usr/lib/libc.so.6\nsymbols: [a]"), []string{"9:14: library: \"/usr/lib/libc.so.6\" is a path"}},
		{"library is no glob", uprobe("library: 'libc['\nsymbols: [a]"), []string{"9:14: library: \"libc[\" is not a glob"}},
		{"build-id of a number", uprobe("buildId: 1234567890123456\nsymbols: [a]"), []string{"9:14: buildId: want text in quotes, not a number"}},
		{"build-id with 0x", uprobe("buildId: '0xabcd'\nsymbols: [a]"), []string{"9:14: buildId: \"0xabcd\": want 2 to 128 hexadecimal digits"}},
		{"half a byte", uprobe("buildId: abc\nsymbols: [a]"), []string{"9:14: buildId: \"abc\": want 2 to 128"}},
		{"build-id too long", uprobe("buildId: " + strings.Repeat("ab", 65) + "\nsymbols: [a]"), []string{"9:14: buildId: "}},
		{"program is a path", uprobe("program: bin/sh\nsymbols: [a]"), []string{"9:14: program: \"bin/sh\" is a path"}},
		{"program is a glob", uprobe("program: python*\nsymbols: [a]"), []string{"9:14: program: \"python*\" is a glob"}},
		{"program is a directory", uprobe("program: ..\nsymbols: [a]"), []string{"9:14: program: \"..\" is a directory"}},
		{"program too long", uprobe("program: " + strings.Repeat("p", 256) + "\nsymbols: [a]"), []string{"9:14: program: 256 bytes, at most 255"}},
		{"symbol globs", uprobe("file: /a\nsymbolGlobs: ['ok*', 'a[', 'b\\', 7]"), []string{"10:26: symbolGlobs: \"a[\" is not a glob", "10:32: symbolGlobs: \"b\\\\\" is not a glob", "10:38: symbolGlobs: want text in quotes"}},
		{"too many globs", uprobe("file: /a\nsymbolGlobs: [" + strings.Repeat("a,", maxGlobs+1) + "]"), []string{"10:18: symbolGlobs: 257 of them, at most 256 are taken"}},
		{"regular expressions", uprobe("file: /a\nsymbolRegexps: ['^ok$', 'a(', 'a{1001}', '((a{10}){10}){10}.{900}', '(?=x)']"), []string{
			"10:29: symbolRegexps: \"a(\": missing closing )", "10:35: symbolRegexps: \"a{1001}\": invalid repeat count", "10:46: symbolRegexps: \"((a{10}){10}){10}.{900}\": ", "10:73: symbolRegexps: \"(?=x)\": invalid or unsupported Perl syntax"}},
		{"regular expression too large", uprobe("file: /a\nsymbolRegexps: ['(abcdefghij){250}']"), []string{"10:21: symbolRegexps: \"(abcdefghij){250}\": its repetitions make it too large"}},
		{"regular expression too long", uprobe("file: /a\nsymbolRegexps: [" + strings.Repeat("a", 513) + "]"), []string{"10:21: symbolRegexps: 513 bytes, at most 512"}},
		{"duration at an offset", uprobe("file: /a\noffsets: [entry]\nduration: true"), []string{"11:15: duration: only functions return"}},
		{"duration in other words", uprobe("file: /a\nsymbols: [a]\nduration: yes\nstack: 1"), []string{"11:15: duration: \"yes\": want true or false", "12:12: stack: \"1\": want true or false"}},
		{"stopAfter", uprobe("file: /a\nsymbols: [a]\nstopAfter: 0\nmaxRate: many"), []string{"11:16: stopAfter: 0: want a decimal number from 1 to 1000000000000", "12:14: maxRate: want a decimal number from 1 to 100000000, not text"}},
		{"maxRate", uprobe("file: /a\nsymbols: [a]\nstopAfter: 0x10\nmaxRate: 100000001"), []string{"11:16: stopAfter: 0x10: want", "12:14: maxRate: 100000001: want"}},
		{"rearmAfter alone", uprobe("file: /a\nsymbols: [a]\nrearmAfter: 5m"), []string{"11:17: rearmAfter: nothing makes this probe stand down"}},
		{"rearmAfter without a unit", uprobe("file: /a\nsymbols: [a]\nstopAfter: 1\nrearmAfter: 30"), []string{"12:17: rearmAfter: 30: no unit"}},
		{"rearmAfter too soon", uprobe("file: /a\nsymbols: [a]\nstopAfter: 1\nrearmAfter: 10ms"), []string{"12:17: rearmAfter: \"10ms\": want a time from 1s to 168h0m0s"}},
		{"rearmAfter too late", uprobe("file: /a\nsymbols: [a]\nstopAfter: 1\nrearmAfter: 169h"), []string{"12:17: rearmAfter: \"169h\": want a time"}},
		{"rearmAfter negative", uprobe("file: /a\nsymbols: [a]\nstopAfter: 1\nrearmAfter: -5m"), []string{"12:17: rearmAfter: "}},
		{"uretprobe at an offset", probe("id: b\ntype: uretprobe\nfile: /a\nsymbols: [a]\noffsets: [1]\nduration: true"), []string{"11:14: offsets: a uretprobe has none: only functions return", "12:15: duration: a uretprobe has none: a uprobe, kprobe or fentry with duration"}},
		{"uretprobe with nothing", probe("id: b\ntype: uretprobe\nlibrary: a"), []string{"7:5: uretprobe: nothing to probe: want symbols, symbolGlobs or symbolRegexps"}},
		{"usdt", probe("id: b\ntype: usdt\nfile: /a\nsymbols: [a]\nduration: true"), []string{"7:5: usdt: nothing to probe: want markers", "10:14: symbols: a usdt has none", "11:15: duration: a usdt has none"}},
		{"markers", probe("id: b\ntype: usdt\nfile: /a\nmarkers: ['libc:setjmp', 'libc:*', setjmp, ':a', 'a:', '*:a', 'a:b:c', 'a:[']"), []string{
			"10:40: markers: \"setjmp\": want provider:name", "10:48: markers: \":a\"", "10:54: markers: \"a:\"", "10:60: markers: \"*:a\"", "10:67: markers: \"a:b:c\"", "10:76: markers: \"a:[\" is not a glob"}},
		{"markers of a uprobe", uprobe("file: /a\nsymbols: [a]\nmarkers: ['a:b']\nfunctions: [x]"), []string{"11:14: markers: a uprobe has none: markers are of type usdt", "12:16: functions: a uprobe has none: it names functions of the kernel"}},
		{"kprobe with a file", probe("id: b\ntype: kprobe\nfile: /a\nsymbols: [a]"), []string{"7:5: kprobe: nothing to probe: want functions or syscalls", "9:11: file: a kprobe has none: it is in the kernel", "10:14: symbols: a kprobe has none: functions of the kernel"}},
		{"fexit with duration", probe("id: b\ntype: fexit\nfunctions: [x]\nduration: false"), []string{"10:15: duration: a fexit has none"}},
		{"functions", probe("id: b\ntype: fentry\nfunctions: [do_exit, foo.isra.0, 'tcp_*', 'a+0x10', '', 'a b']"), []string{"9:38: functions: \"tcp_*\": want the name of a kernel function", "9:47: functions: \"a+0x10\"", "9:57: functions: empty", "9:61: functions: \"a b\""}},
		{"system calls", probe("id: b\ntype: kretprobe\nsyscalls: [openat, __x64_sys_openat, sys_read, Open, '*']"), []string{"9:24: syscalls: \"__x64_sys_openat\": want the name of the call alone, openat", "9:42: syscalls: \"sys_read\": want the name of the call alone, read", "9:52: syscalls: \"Open\"", "9:58: syscalls: \"*\""}},
		{"too many functions", probe("id: b\ntype: kprobe\nfunctions: [" + strings.Repeat("a,", maxKernelNames+1) + "]"), []string{"9:16: functions: 513 of them, at most 512"}},
		{"offset is entry, quoted, and fine", strings.Replace(demo, "entry", "'entry'", 1), nil},
		{"the largest offset", strings.Replace(demo, "0x1234", "0x7fffffffffffffff", 1), nil},
		{"several at once", "nam: n\nselect: {image: a}\nprobes:\n  - id: a\n    type: uprobe\n    file: a\n", []string{"1:1: policy: no name", "1:1: policy: unknown key", "2:10: select: unknown key", "4:5: uprobe: nothing to probe", "6:11: file: \"a\" is not absolute"}},
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
	for _, seed := range []string{demo, probe("id: b\ntype: uprobe\nfile: /a/{b,c}/[d-e]*\noffsets: [entry]"), sel("images: ['**']"), probe("id: b\ntype: usdt\nlibrary: 'lib*'\nmarkers: ['a:b*']\nstopAfter: 1\nrearmAfter: 5m"), probe("id: b\ntype: kprobe\nsyscalls: [read]\nduration: true"), probe("id: b\nset: files"), redacting, "name: n\nfailPolicy: closed\nprobes: [{id: a, set: exec, requires: armedIfPresent}]\n", "a: &a [*a]\n", "---\n---\n", "? {a: b}\n: c\n", "\xff"} {
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
		if p.Name == "" || len(p.Probes)+len(p.Redact) == 0 {
			t.Errorf("%+v", p)
		}
		for _, r := range p.Redact {
			if why := wrongRule(r); why != "" {
				t.Errorf("%s: %+v", why, r)
			}
		}
		for _, pr := range p.Probes {
			if why := wrong(pr); why != "" {
				t.Errorf("%s: %+v", why, pr)
			}
		}
		p.Select.Match(id)
	})
}

// wrong says what Parse should not have taken.
func wrong(p Probe) string {
	targets := 0
	for _, s := range []string{p.File, p.Library, p.BuildID, p.Program} {
		if s != "" {
			targets++
		}
	}
	names := len(p.Symbols) + len(p.SymbolGlobs) + len(p.SymbolRegexps)
	inKernel := len(p.Functions) + len(p.Syscalls)
	user := p.Type == Uprobe || p.Type == Uretprobe || p.Type == USDT
	pairs := p.Type == Uprobe || p.Type == Kprobe || p.Type == Fentry
	for _, s := range p.SymbolRegexps {
		if _, err := regexp.Compile(s); err != nil {
			return err.Error()
		}
	}
	for _, s := range slices.Concat(p.SymbolGlobs, p.Markers, []string{p.Library}) {
		if _, err := path.Match(s, ""); err != nil {
			return err.Error()
		}
	}
	switch {
	case p.ID == "":
		return "no id"
	case p.Set != "":
		if !reflect.DeepEqual(p, Probe{ID: p.ID, Set: p.Set, Quota: p.Quota, Requires: p.Requires}) || !slices.Contains(Sets, p.Set) {
			return "a set with more than its name"
		}
		return ""
	case !slices.Contains(Types, p.Type):
		return "no type"
	case user != (targets == 1) || targets > 1:
		return "targets"
	case p.File != "" && p.File[0] != '/':
		return "file"
	case (names > 0) && p.Type != Uprobe && p.Type != Uretprobe, len(p.Offsets) > 0 && p.Type != Uprobe, len(p.Markers) > 0 != (p.Type == USDT):
		return "what in the target"
	case (p.Type == Uprobe || p.Type == Uretprobe) && names+len(p.Offsets) == 0:
		return "nothing in the target"
	case inKernel > 0 != slices.Contains([]string{Kprobe, Kretprobe, Fentry, Fexit}, p.Type):
		return "kernel functions"
	case p.Event != "" != (p.Type == Tracepoint || p.Type == RawTracepoint):
		return "event"
	case p.Duration && (!pairs || len(p.Offsets) > 0):
		return "duration"
	case p.StopAfter > MaxStopAfter, p.MaxRate > MaxMaxRate, p.RearmAfter != 0 && (p.RearmAfter < MinRearmAfter || p.RearmAfter > MaxRearmAfter || p.StopAfter+p.MaxRate == 0):
		return "standing down"
	}
	return ""
}
