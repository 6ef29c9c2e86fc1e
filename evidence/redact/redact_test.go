package redact

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"probity/bpf/policy"
	"probity/evidence"
)

func rules(t testing.TB, yaml string) []policy.Rule {
	t.Helper()
	p, err := policy.Parse("f", []byte("name: a\nredact:\n"+yaml))
	if err != nil {
		t.Fatal(err)
	}
	return p.Redact
}

const all = `
  - {id: home, paths: [/home/<*>/**, /srv/<**>, "/**/.ssh/<*>", /etc/secret]}
  - {id: peers, addresses: [10.0.0.0/8], ports: true}
  - {id: customers, images: ["registry.example/customers/**"]}
`

var key = []byte("0123456789abcdef0123456789abcdef")

func newRedactor(t testing.TB) *Redactor {
	return New(rules(t, all), key, "registry.example/customers/acme:1.2")
}

func mark(rule string) string { return evidence.Mark(rule, "") }

func TestPaths(t *testing.T) {
	r := newRedactor(t)
	for _, c := range []struct{ path, want string }{
		{"/home/alice/x", "/home/" + mark("home") + "/x"},
		{"/home/alice", "/home/" + mark("home")},
		{"/homes/alice", "/homes/alice"},
		{"/srv/a/b", "/srv/" + mark("home")},
		{"/home/alice/.ssh/id", "/home/" + mark("home") + "/.ssh/" + mark("home")},
		{"/etc/secret", mark("home")},
		{"/home//alice/x", mark("home")},
		{"/tmp/../home/alice/x", mark("home")},
		{"/home/alice/x (deleted)", mark("home")},
		{"/etc/secret (deleted)", mark("home")},
		{"/tmp/../x", "/tmp/../x"},
		{"alice/x", mark("home")}, // below what?
		{"./x", mark("home")},
		{"memfd:x", "memfd:x"},
		{"memfd:/../home/alice/x", mark("home")},                // a directory may be called so
		{"/home/alice/\u2039redacted:home\u203A", mark("home")}, // what is kept must not look like a mark
		{"/tmp/\u2039redacted:home\u203A", "/tmp/\u2039redacted:home\u203A"},
		{"/home/alice/x\uFFFD\uFFFD0123456789abcdef0123456789abcdef", mark("home")}, // the digest is of the whole
		{"/etc/secret\uFFFD", mark("home")},
		{"/x/.ssh/\uFFFD", mark("home")},
		{"/tmp/\uFFFD", "/tmp/\uFFFD"},
		{evidence.Spell("/x/" + strings.Repeat("a/", 2100) + ".ssh/id_alice"), mark("home")}, // what was cut may be the rule's, and the digest is of the whole
		{evidence.Spell("/" + strings.Repeat("\x01", 1500) + "/.ssh/id_alice"), mark("home")},
		{evidence.Spell("/tmp/\xff"), evidence.Spell("/tmp/\xff")}, // nothing was cut
		{"/home/" + strings.Repeat("a/", 2040), mark("home")},
		{"", ""},
	} {
		l := list{kind: evidence.KindGap}
		got := c.path
		changed := r.path(&l, &got, of{member: "path", most: evidence.MaxPath})
		if got != c.want || changed != (got != c.path) || changed != (len(l.all) == 1) {
			t.Errorf("%s: %s %v, want %s", c.path, got, l.all, c.want)
		}
	}
	cut := "/x"
	if l := (list{}); !r.path(&l, &cut, of{member: "path", most: evidence.MaxPath, cut: true}) || cut != mark("home") {
		t.Errorf("of a path without its beginning: %s", cut)
	}
}

// A relative path that a process passed to execve is not a memfd's name for
// beginning like one.
func TestArgumentLikeMemfd(t *testing.T) {
	for _, arg := range []string{"memfd:/../home/alice/x", "memfd:x"} {
		path, detail, process := "/tmp/x", "", evidence.Process{Path: arg}
		e := evidence.Entry{Argument: arg, Parent: &evidence.Process{Path: arg}}
		newRedactor(t).Entry(Entry{Path: &path, Detail: &detail, Process: &process, Entry: &e})
		for _, got := range []string{e.Argument, e.Parent.Path, process.Path} {
			if got != mark("home") {
				t.Errorf("%s: %s", arg, got)
			}
		}
	}
}

// Two sites are never one: their paths have tokens, which are another run's own, or
// the node's where the rule is keyed.
func TestTokens(t *testing.T) {
	path := func(r *Redactor, p string) string {
		g := &evidence.Gap{Scope: evidence.ScopeFile, Path: p}
		r.Line(g)
		return g.Path
	}
	one, other := newRedactor(t), newRedactor(t)
	a, b := path(one, "/home/alice/x"), path(one, "/home/bob/x")
	if a == b || a != path(one, "/home/alice/x") || a == path(other, "/home/alice/x") || evidence.WithoutTokens(a) != "/home/"+mark("home")+"/x" {
		t.Errorf("%s %s %s", a, b, path(other, "/home/alice/x"))
	}
	keyed := rules(t, "  - {id: home, paths: [/home/<*>/**], keyed: true}\n  - {id: peers, addresses: [all], keyed: true}\n")
	one, other = New(keyed, key, ""), New(keyed, key, "")
	third := New(keyed, []byte("another key"), "")
	if a = path(one, "/home/alice/x"); a != path(other, "/home/alice/x") || a == path(third, "/home/alice/x") || a == path(one, "/home/bob/x") {
		t.Errorf("keyed: %s %s %s", a, path(other, "/home/alice/x"), path(third, "/home/alice/x"))
	}
	// HMAC-SHA256(key, "home" NUL "alice"), by another program.
	if want := "/home/\u2039redacted:home:34aa79d55cb58796\u203A/x"; a != want {
		t.Errorf("%s, want %s", a, want)
	}
	e := &evidence.Entry{Operation: "connect", Protocol: "tcp", Family: "ipv4", Address: "192.0.2.1", Port: 443}
	none := ""
	got := one.Entry(Entry{Path: &none, Detail: &none, Process: &evidence.Process{}, Entry: e}).Redacted()
	if !strings.HasPrefix(e.Address, "\u2039redacted:peers:") || e.Port != 443 || len(got) != 1 {
		t.Errorf("%+v %v", e, got)
	}
}

func TestEntries(t *testing.T) {
	r := newRedactor(t)
	type entry struct {
		path, detail string
		process      evidence.Process
		evidence.Entry
		cut bool
	}
	for _, c := range []struct {
		what     string
		in, want entry
		list     string
	}{
		{"nothing", entry{path: "/bin/sh", process: evidence.Process{Pid: 1, Comm: "sh"}, Entry: evidence.Entry{Device: "0:1", Inode: 7}},
			entry{path: "/bin/sh", process: evidence.Process{Pid: 1, Comm: "sh"}, Entry: evidence.Entry{Device: "0:1", Inode: 7}}, "[]"},
		{"a program and its name", entry{path: "/srv/acme-payroll", process: evidence.Process{Pid: 1, Comm: "acme-payroll"}, Entry: evidence.Entry{Device: "0:1", Inode: 7, Parent: &evidence.Process{Pid: 2, Comm: "sh"}}},
			entry{path: "/srv/" + mark("home"), process: evidence.Process{Pid: 1}, Entry: evidence.Entry{Parent: &evidence.Process{Pid: 2, Comm: "sh"}}}, "[path entry.device entry.inode process.comm]"},
		{"a script and its name, cut", entry{path: "/bin/sh", process: evidence.Process{Pid: 1, Comm: "a-very-long-nam"}, Entry: evidence.Entry{Argument: "/srv/a-very-long-name.sh", Parent: &evidence.Process{Pid: 2, Comm: "a-very-long-nam", Path: "/srv/a-very-long-name.sh"}}},
			entry{path: "/bin/sh", process: evidence.Process{Pid: 1}, Entry: evidence.Entry{Argument: "/srv/" + mark("home"), Parent: &evidence.Process{Pid: 2, Path: "/srv/" + mark("home")}}}, "[entry.parent.comm entry.parent.path entry.argument process.comm]"},
		{"a relative argument", entry{path: "/home/alice/x", Entry: evidence.Entry{Argument: "alice/x"}}, entry{path: "/home/" + mark("home") + "/x", Entry: evidence.Entry{Argument: mark("home")}}, "[path entry.argument]"},
		{"a detail", entry{path: "/tmp/x", detail: "open /var/lib/layers/1/diff/home/alice/y: permission denied"}, entry{path: "/tmp/x", detail: mark("home")}, "[detail]"},
		{"a detail with a part of it", entry{path: "/srv/acme/tool", detail: "acme: no such file"}, entry{path: "/srv/" + mark("home"), detail: mark("home")}, "[path detail]"},
		{"a detail with an address", entry{path: "/bin/x", detail: "dial 10.0.0.7:80: refused"}, entry{path: "/bin/x", detail: mark("peers")}, "[detail]"},
		{"a detail with another address", entry{path: "/bin/x", detail: "at 12:34:56 dial 192.0.2.1:80: refused."}, entry{path: "/bin/x", detail: "at 12:34:56 dial 192.0.2.1:80: refused."}, "[]"},
		{"a detail with the image", entry{path: "/bin/x", detail: "no manifest of registry.example/customers/acme here"}, entry{path: "/bin/x", detail: mark("customers")}, "[detail]"},
		{"an address", entry{Entry: evidence.Entry{Operation: "connect", Protocol: "tcp", Family: "ipv4", Address: "10.1.2.3", Port: 443}},
			entry{Entry: evidence.Entry{Operation: "connect", Protocol: "tcp", Family: "ipv4", Address: mark("peers")}}, "[entry.address entry.port]"},
		{"a mapped address", entry{Entry: evidence.Entry{Family: "ipv6", Address: "::ffff:10.1.2.3"}}, entry{Entry: evidence.Entry{Family: "ipv6", Address: mark("peers")}}, "[entry.address]"},
		{"another address", entry{Entry: evidence.Entry{Family: "ipv4", Address: "192.0.2.1", Port: 1}}, entry{Entry: evidence.Entry{Family: "ipv4", Address: "192.0.2.1", Port: 1}}, "[]"},
		{"a socket's path", entry{Entry: evidence.Entry{Family: "unix", Address: "/home/alice/s"}}, entry{Entry: evidence.Entry{Family: "unix", Address: "/home/" + mark("home") + "/s"}}, "[entry.address]"},
		{"an abstract socket", entry{Entry: evidence.Entry{Family: "unix", Address: "@/home/alice/s"}}, entry{Entry: evidence.Entry{Family: "unix", Address: mark("home")}}, "[entry.address]"},
		{"another abstract socket", entry{Entry: evidence.Entry{Family: "unix", Address: "@/tmp/.X11-unix/X0"}}, entry{Entry: evidence.Entry{Family: "unix", Address: "@/tmp/.X11-unix/X0"}}, "[]"},
		{"a detail that quotes a name", entry{path: "/tmp/x", detail: `read directory "home" of the layer: stat "alice": input/output error`}, entry{path: "/tmp/x", detail: mark("home")}, "[detail]"},
		{"a detail that quotes a path", entry{path: "/tmp/x", detail: `open "/tmp/x": no such file`}, entry{path: "/tmp/x", detail: `open "/tmp/x": no such file`}, "[]"},
		{"the rest of a path", entry{path: "/deep/down", cut: true}, entry{path: mark("home")}, "[path]"},
	} {
		in := c.in
		got := r.Entry(Entry{Path: &in.path, Detail: &in.detail, Process: &in.process, Entry: &in.Entry, PathCut: in.cut}).Redacted()
		in.cut = false
		var members []string
		for _, x := range got {
			members = append(members, x.Member)
		}
		if !reflect.DeepEqual(in, c.want) || fmt.Sprint(members) != c.list {
			t.Errorf("%s:\n%+v %v\nwant\n%+v %s", c.what, in, members, c.want, c.list)
		}
	}
	tasks := New(rules(t, "  - {id: tasks, comms: true}\n"), nil, "")
	path, detail, p := "alice/x", "", evidence.Process{Pid: 1, Comm: "alice"}
	if got := tasks.Entry(Entry{Path: &path, Detail: &detail, Process: &p, Entry: &evidence.Entry{}}).Redacted(); p.Comm != "" || path != "alice/x" || len(got) != 1 || got[0].Member != "process.comm" {
		t.Errorf("%+v %s %v", p, path, got)
	}
}

// kept are the texts of lines that no rule is for, and why.
var kept = map[string]string{
	"Kind": "ours", "RunID": "an id", "ContainerID": "the runtime's id, which says which container it is", "ContainerName": "whose evidence it is", "Runtime": "a closed list", "Pod.Name": "whose evidence it is",
	"Pod.Namespace": "the same", "Pod.UID": "an id", "ImageDigest": "a digest", "ImageIndexDigest": "a digest", "ImageConfigDigest": "a digest", "BootID": "an id", "CgroupPath": "the runtime's own naming",
	"Attribution": "ours", "Source": "the node's own configuration", "Policies": "a digest", "Refused": "ours, with the policy's names and closed lists", "Losses.Reason": "ours", "Losses.ByType.ProbeType": "a closed list", "Probes.ProbeID": "the policy's",
	"Probes.State": "a closed list", "GapReasons": "a closed list", "Redacted.Member": "ours", "Redacted.Rule": "the policy's", "State": "a closed list", "ProbeType": "a closed list", "ProbeID": "the policy's",
	"RequestedProbeType": "a closed list", "Symbol": "a name in a file's code", "FileDigest": "a digest", "BuildID": "an id", "Origin": "a closed list", "LayerDiffID": "a digest", "SymbolKind": "a closed list",
	"Inline": "a closed list", "Demangled": "a name in code", "Wanted": "the policy's", "InlinedIn": "a name in code", "InlinedAt.In": "a name in code", "Implements": "a name in code", "Function": "the kernel's",
	"Duration.Unit": "ours", "Stack.Frames.BuildID": "an id", "Stack.Frames.Symbol": "a name in code", "Stack.Frames.Reason": "a closed list", "Set": "a closed list", "SystemCalls.Arch": "a closed list",
	"Event": "a name in code", "Reason": "a closed list", "Process.Session": "a closed list", "Processes.Session": "a closed list", "Confidence.Version": "ours", "Confidence.Inputs.ProbeType": "ours",
	"Confidence.Inputs.Attribution": "ours", "Confidence.Inputs.Symbol": "ours", "Confidence.Inputs.Losses": "ours", "Gaps.Reason": "a closed list", "GapID": "an id", "Scope": "a closed list",
	"Entry.Mapped": "a closed list", "Entry.Operation": "a closed list", "Entry.Protocol": "a closed list", "Entry.Family": "a closed list", "Entry.Access": "a closed list", "Entry.Parent.Session": "a closed list",
}

// Every text of every kind of line is redacted, or is one of which it is said why
// not: a member that somebody adds is in neither.
func TestEveryText(t *testing.T) {
	const secret = "/srv/secret-thing"
	r := New(rules(t, "  - {id: home, paths: [/srv/<**>]}\n  - {id: peers, addresses: [all]}\n  - {id: tasks, comms: true}\n  - {id: img, images: [/srv/**]}\n"), nil, secret)
	missed := map[string]bool{}
	var fill func(v reflect.Value)
	fill = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.String:
			v.SetString(secret)
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem())
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			fill(v.Index(0))
		case reflect.Struct:
			for i := range v.NumField() {
				if v.Field(i).CanSet() {
					fill(v.Field(i))
				}
			}
		}
	}
	var find func(name string, v reflect.Value)
	find = func(name string, v reflect.Value) {
		switch v.Kind() {
		case reflect.String:
			if strings.Contains(v.String(), "secret") {
				missed[name] = true
			}
		case reflect.Pointer:
			if !v.IsNil() {
				find(name, v.Elem())
			}
		case reflect.Slice:
			for i := range v.Len() {
				find(name, v.Index(i))
			}
		case reflect.Struct:
			for i := range v.NumField() {
				if v.Type().Field(i).IsExported() {
					find(strings.TrimPrefix(name+"."+v.Type().Field(i).Name, "."), v.Field(i))
				}
			}
		}
	}
	for _, l := range []evidence.Line{&evidence.Coverage{}, &evidence.Observation{}, &evidence.Gap{}} {
		fill(reflect.ValueOf(l).Elem())
		switch v := l.(type) {
		case *evidence.Coverage:
			v.Redacted = nil
		case *evidence.Gap:
			v.Redacted = nil
		case *evidence.Observation:
			v.Redacted = r.Process(&v.Processes[0])
			entry := v.Entry
			c := r.Entry(Entry{Path: &v.Path, Detail: &v.Detail, Process: v.Process, Entry: entry})
			v.Redacted, v.Entry = append(v.Redacted, c.Redacted()...), nil
			r.Line(v)
			v.Entry = entry
			find("", reflect.ValueOf(l).Elem())
			continue
		}
		r.Line(l)
		find("", reflect.ValueOf(l).Elem())
	}
	for name := range missed {
		if kept[name] == "" {
			t.Errorf("%s is not redacted, and nobody says why", name)
		}
	}
	for name := range kept {
		if !missed[name] && !strings.HasPrefix(name, "Redacted.") {
			t.Errorf("%s is redacted, or is no text of a line", name)
		}
	}
}

// A policy's own glob is the policy's.
func TestGlobIsKept(t *testing.T) {
	o := &evidence.Observation{State: evidence.NotArmed, Reason: evidence.FileNotFound, Path: "/home/*/lib.so"}
	newRedactor(t).Line(o)
	if o.Path != "/home/*/lib.so" || o.Redacted != nil {
		t.Errorf("%+v", o)
	}
}

// What lines share is not changed, and what is redacted is not redacted again.
func TestLinesShare(t *testing.T) {
	r := newRedactor(t)
	p, frames := evidence.Process{Pid: 1, Comm: "x", Path: "/home/alice/x"}, []evidence.Frame{{Path: "/home/alice/x", Reason: "noBuildId"}, {Path: "/lib/\u203A", Reason: "noBuildId"}}
	stack := &evidence.Stack{Frames: frames}
	o := &evidence.Observation{Process: &p, Stack: stack, Path: "/home/alice/y", Detail: "no reason"}
	r.Line(o)
	if p.Path != "/home/alice/x" || frames[0].Path != "/home/alice/x" || stack.Reason != "" {
		t.Errorf("%+v %+v", p, frames)
	}
	if o.Process.Path != "/home/"+mark("home")+"/x" || o.Stack.Frames[0].Path != "/home/"+mark("home")+"/x" || o.Stack.Frames[1].Path != mark("home") {
		t.Errorf("%+v %+v", o.Process, o.Stack)
	}
	before, list := o.Path, slices.Clone(o.Redacted)
	r.Line(o)
	if o.Path != before || !slices.Equal(list, o.Redacted) {
		t.Errorf("again: %s %v, before %s %v", o.Path, o.Redacted, before, list)
	}
	var none *Redactor
	none.Line(o)
	none.Process(&p)
	none.Entry(Entry{})
	if New(nil, nil, "x") != nil {
		t.Error("a redactor without a rule")
	}
}

func TestKey(t *testing.T) {
	dir := t.TempDir()
	first, err := Key(dir)
	if err != nil || len(first) != keyBytes {
		t.Fatal(first, err)
	}
	again, err := Key(dir)
	if err != nil || string(again) != string(first) {
		t.Fatal(again, err)
	}
	if st, err := os.Stat(dir + "/" + KeyFile); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatal(st, err)
	}
	for what, f := range map[string]func() error{
		"chmod 600":            func() error { return os.Chmod(dir+"/"+KeyFile, 0o640) },
		"lower-case hex":       func() error { return os.WriteFile(dir+"/"+KeyFile, []byte("short\n"), 0o600) },
		"too many levels":      func() error { return os.Symlink("/dev/zero", dir+"/"+KeyFile) },
		"that only its owner ": func() error { return os.Mkdir(dir+"/"+KeyFile, 0o700) },
	} {
		if what == "too many levels" || strings.HasPrefix(what, "that") {
			if err := os.RemoveAll(dir + "/" + KeyFile); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(dir+"/"+KeyFile, []byte(strings.Repeat("ab", 32)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := f(); err != nil {
			t.Fatal(err)
		}
		if _, err := Key(dir); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
		if err := os.RemoveAll(dir + "/" + KeyFile); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzKey(f *testing.F) {
	f.Add([]byte(strings.Repeat("ab", 32) + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := parseKey(b); err == nil && fmt.Sprintf("%x\n", k) != string(b) {
			t.Errorf("%q is taken", b)
		}
	})
}

// Whatever a container calls its files, the line can be written, obeys the format,
// and has no name that was to be taken out.
func FuzzLine(f *testing.F) {
	f.Add("/home/alice/x", "alice/x", "alice", "open /home/alice/x: gone", "10.0.0.1")
	f.Add("/home/\u2039redacted:home\u203A/\uFFFDx", "/srv//x/../y", "\u2039", "srv/\u203A", "::ffff:10.0.0.1")
	f.Add("/home/"+strings.Repeat("a/", 400), "memfd:x", "", "", "@a")
	f.Add("", "0", "0", "it is not known", "0") // no path: an inode told it apart, and goes as well
	r := New(rules(f, all+"  - {id: socket, paths: [/run/<*>/**], keyed: true}\n"), key, "registry.example/customers/acme:1.2")
	f.Fuzz(func(t *testing.T, path, argument, comm, detail, address string) {
		text := func(s string, most int) string {
			out := []rune(strings.ToValidUTF8(s, "\uFFFD"))
			return string(out[:min(len(out), most)])
		}
		path, argument, comm, detail, address = text(path, 4096), text(argument, 4096), text(comm, 15), text(detail, 512), text(address, 108)
		e := &evidence.Entry{Argument: argument, Device: "0:1", Inode: 7, Parent: &evidence.Process{Comm: comm, Path: argument}}
		p := evidence.Process{Pid: 1, Comm: comm}
		given := path
		list := r.Entry(Entry{Path: &path, Detail: &detail, Process: &p, Entry: e}).Redacted()
		count, at := evidence.Uint64(1), evidence.TimeOf(evidence.Clock{}.Wall.Std().AddDate(2000, 0, 0))
		o := evidence.Observation{
			State: evidence.Hit, ProbeType: evidence.RawTracepoint, RequestedProbeType: evidence.UnknownProbe, RunID: strings.Repeat("0a", 16), ContainerID: "c", Runtime: "crun", ImageDigestReason: "none",
			ProbeID: "s", Set: evidence.SetExec, Path: path, Detail: detail, Entry: e, Process: &p, Redacted: list, Count: &count, FirstAt: at, LastAt: at, From: at, To: at, Complete: true,
			Confidence: evidence.Confidence{Version: "3", Inputs: evidence.Inputs{ProbeType: "x", Attribution: "x", Symbol: "x", Losses: "x"}},
		}
		if o.Path == "" && o.Detail == "" {
			return // no such entry is made
		}
		check := func(l evidence.Line) string {
			if err := evidence.Validate(l); err != nil {
				t.Errorf("%v: %+v", err, l)
			}
			b, err := evidence.Encode(l)
			if err != nil {
				if len(given)+len(argument) < 2000 {
					t.Errorf("%v: %+v", err, l)
				}
				return ""
			}
			if again, err := evidence.Decode(string(b)); err != nil || !reflect.DeepEqual(evidence.Redacted(again), evidence.Redacted(l)) {
				t.Errorf("%v: %s", err, b)
			}
			return string(b)
		}
		line := check(&o)
		name, _, _ := strings.Cut(strings.TrimPrefix(given, "/home/"), "/")
		if strings.HasPrefix(given, "/home/") && len(name) > 8 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz") == "" && !strings.Contains("/redacted:home:socket", name) &&
			argument == "" && !strings.Contains(detail, name) && line != "" && strings.Contains(line, name) {
			t.Errorf("%s is in %s", name, line)
		}
		network := o
		network.Set, network.Path, network.Process = evidence.SetNetwork, "", nil
		network.Entry = &evidence.Entry{Operation: "connect", Protocol: "stream", Family: "unix", Address: address}
		network.Detail, network.Redacted = "", r.Entry(Entry{Path: new(string), Detail: new(string), Process: &evidence.Process{}, Entry: network.Entry}).Redacted()
		check(&network)
		gap := &evidence.Gap{GapID: "g", Scope: evidence.ScopeSite, ProbeID: "p", Reason: evidence.GapFileChanged, RunID: o.RunID, ContainerID: "c", From: at, Path: given, Detail: detail}
		r.Line(gap)
		check(gap)
		named := &evidence.Gap{GapID: "g", Scope: evidence.ScopeRun, Reason: evidence.GapUnarmedMapping, RunID: o.RunID, ContainerID: "c", From: at, Detail: detail}
		short := text(given, 500)
		r.Named(named, short)
		r.Line(named)
		if check(named); !strings.HasPrefix(short, "/") && short != "" && !evidence.IsRedacted(named.Redacted, "detail") {
			t.Errorf("%s is in %s", short, named.Detail)
		}
	})
}
