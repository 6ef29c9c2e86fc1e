package probe

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"probity/bpf/kernel"
	"probity/bpf/policy"
	"probity/bpf/symbol"
	"probity/evidence"
	"probity/runtime/container"
	"probity/runtime/image"
	"probity/tests/need"
)

// library compiles a shared library of one function into a layer.
func library(t testing.TB, layer, rel, soname, buildID, function string) {
	t.Helper()
	need.Command(t, "gcc")
	out := filepath.Join(layer, rel)
	must(t, os.MkdirAll(filepath.Dir(out), 0o755))
	cmd := exec.Command("gcc", "-x", "c", "-O1", "-shared", "-fPIC", "-nostdlib", "-o", out, "-Wl,-soname,"+soname, "-Wl,--build-id=0x"+buildID, "-")
	cmd.Stdin = strings.NewReader("int " + function + "(int x) { return x + 42; }\n")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
}

// file writes a file of a layer.
func file(t testing.TB, layer, rel, text string, mode os.FileMode) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(filepath.Join(layer, rel)), 0o755))
	must(t, os.WriteFile(filepath.Join(layer, rel), []byte(text), 0o600))
	must(t, os.Chmod(filepath.Join(layer, rel), mode))
}

// merged is the tree of a container with these layers, top first.
func merged(t testing.TB, r image.Rootfs, in *Inspector, layers ...string) Tree {
	t.Helper()
	for _, l := range layers {
		r.Layers = append(r.Layers, image.Layer{Dir: l})
	}
	r.Driver = "overlay"
	v, err := new(image.Cache).View(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return Tree{View: v, Inspector: in}
}

// told is what a site says, for comparing.
func told(sites []Site) (out []string) {
	for _, s := range sites {
		var words []string
		if s.File != nil {
			words = append(words, s.File.Match.Path)
		}
		words = append(words, s.Symbol+s.Marker, string(s.Reason))
		if s.Copies > 1 {
			words = append(words, fmt.Sprint("x", s.Copies))
		}
		words = slices.DeleteFunc(words, func(w string) bool { return w == "" })
		out = append(out, strings.Join(words, " "))
	}
	return out
}

func same(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q\nwant %q", what, got, want)
	}
}

// Files are found by soname and build-id, whatever their names, in all layers
// and the writable one, and only where the container sees them.
func TestPlanObjects(t *testing.T) {
	dir := t.TempDir()
	base, top, upper := dir+"/base", dir+"/top", dir+"/upper"
	library(t, base, "usr/lib/libx.so.3.0.1", "libx.so.3", "aa01", "x_read")
	library(t, base, "opt/vendor/x-bundled", "libx.so.3", "aa02", "x_read") // another name
	library(t, base, "usr/lib/liby.so.1", "liby.so.1", "bb01", "y_read")
	library(t, base, "srv/hidden.so", "libx.so.3", "aa03", "x_read")
	library(t, top, "srv/hidden.so", "libz.so.1", "cc01", "z_read") // hides it
	library(t, upper, "tmp/libx.so.2", "libx.so.2", "aa04", "x_read")
	file(t, base, "usr/lib/libx.so", "INPUT(libx.so.3)", 0o644)
	must(t, os.Symlink("libx.so.3.0.1", base+"/usr/lib/libx.so.3"))
	in := &Inspector{}
	tree := merged(t, image.Rootfs{Upper: upper}, in, top, base)
	plan := func(pr policy.Probe) Plan {
		t.Helper()
		pr.ID, pr.Type = "p", policy.Uprobe
		return MakePlan([]policy.Probe{pr}, tree, Host())
	}
	p := plan(policy.Probe{Library: "libx.so.*", Symbols: []string{"x_read"}})
	same(t, "libx", told(p.Sites), "/opt/vendor/x-bundled x_read x3", "/tmp/libx.so.2 x_read x3", "/usr/lib/libx.so.3.0.1 x_read x3")
	if s := p.Searches[0]; !s.Complete || s.Why != "" {
		t.Errorf("%+v", s)
	}
	same(t, "build-id", told(plan(policy.Probe{BuildID: "aa02", Symbols: []string{"x_read", "none"}}).Sites), "/opt/vendor/x-bundled x_read", "/opt/vendor/x-bundled none symbolNotFound")
	for _, pr := range []policy.Probe{{BuildID: "aa03", Symbols: []string{"x_read"}}, {Library: "libx.so", Symbols: []string{"x_read"}}, {Library: "*.bundled", Symbols: []string{"x"}}} {
		p := plan(pr)
		same(t, "none", told(p.Sites), "fileNotFound")
		if s := p.Searches[0]; !s.Complete || p.Sites[0].Detail == "" {
			t.Errorf("%+v, %+v", s, p.Sites)
		}
	}
	// A mount may hold another copy.
	tree = merged(t, image.Rootfs{Mounts: []container.Mount{{Destination: "/data"}}}, in, top, base)
	p = plan(policy.Probe{Library: "liby.so.1", Symbols: []string{"y_read"}})
	same(t, "with a mount", told(p.Sites), "/usr/lib/liby.so.1 y_read")
	if s := p.Searches[0]; s.Complete || !strings.Contains(s.Why, "/data") {
		t.Errorf("%+v", s)
	}
	// What cannot be read may be what was looked for.
	b, err := os.ReadFile(base + "/usr/lib/liby.so.1")
	must(t, err)
	file(t, upper, "tmp/half", string(b[:len(b)/2]), 0o644)
	tree = merged(t, image.Rootfs{Upper: upper}, in, top, base)
	if s := plan(policy.Probe{Library: "liby*", Symbols: []string{"y_read"}}).Searches[0]; s.Complete || !strings.Contains(s.Why, "/tmp/half") {
		t.Errorf("%+v", s)
	}
	file(t, base, "half", string(b[:len(b)/2]), 0o644)
	tree = merged(t, image.Rootfs{}, &Inspector{}, base)
	if s := plan(policy.Probe{Library: "liby*", Symbols: []string{"y_read"}}).Searches[0]; s.Complete || !strings.Contains(s.Why, "/half") {
		t.Errorf("%+v", s)
	}
}

// A search is not finished past its time, says so, and goes on from there the
// next time.
func TestObjectsInTime(t *testing.T) {
	layer := t.TempDir()
	for i := range 50 {
		file(t, layer, fmt.Sprintf("f%02d", i), "text", 0o644)
	}
	library(t, layer, "z.so", "libz.so.1", "cc01", "z_read")
	in := &Inspector{}
	tree := merged(t, image.Rootfs{}, in, layer)
	tree.Until = time.Now().Add(-time.Second)
	found, complete, why := tree.Objects(bySoname("*"))
	if len(found) != 0 || complete || why == "" {
		t.Errorf("past its time: %v, complete %v, %q", found, complete, why)
	}
	f := tree.LayerFiles()[0]
	sc := in.scan(f.Key())
	// Somebody else reads the layer: nobody waits for that past their time.
	sc.busy <- struct{}{}
	tree.Until = time.Now().Add(time.Millisecond)
	if _, complete, why := tree.Objects(bySoname("*")); complete || !strings.Contains(why, "within the time") {
		t.Errorf("while another reads: complete %v, %q", complete, why)
	}
	<-sc.busy
	sc.next = [2]int{51, 40} // as if it had been left there, with the library found
	sc.found = []elfFile{{"z.so", symbol.Identity{Soname: "libz.so.1", BuildID: "cc01"}}}
	tree.Until = time.Time{}
	if found, complete, why := tree.Objects(bySoname("*")); len(found) != 1 || !complete {
		t.Errorf("%v, complete %v, %q", found, complete, why)
	}
	if !sc.done || sc.next != [2]int{51, 51} {
		t.Errorf("done %v after %d files", sc.done, sc.next)
	}
	// Libraries and programs are read before anything else.
	for rel, want := range map[string]bool{"usr/lib/libz.so.1": true, "opt/x/bin/tool": true, "sbin/init": true, "usr/share/doc/bin.txt": false, "app/main.py": false, "cabin/x": true} {
		if likely(rel) != want {
			t.Errorf("%s: likely %v", rel, !want)
		}
	}
	// Known now: no file is opened any more.
	must(t, os.Remove(filepath.Join(layer, "f00")))
	tree.Until = time.Now().Add(-time.Second)
	if found, complete, why := tree.Objects(byBuildID("cc01")); len(found) != 1 || !complete {
		t.Errorf("%v, complete %v, %q", found, complete, why)
	}
}

// What is remembered of layers is bounded, the oldest go.
func TestScansAreBounded(t *testing.T) {
	in := &Inspector{}
	in.scan("a").found = make([]elfFile, maxObjects/2)
	b := in.scan("b")
	b.found = make([]elfFile, maxObjects/2)
	if in.scan("b") != b || len(in.layers.known) != 2 {
		t.Fatalf("%d layers", len(in.layers.known))
	}
	in.scan("c")
	if len(in.layers.known) != 2 || in.layers.known["a"] != nil {
		t.Errorf("%d layers are remembered", len(in.layers.known))
	}
}

// Programs are found as execvp(3) finds them.
func TestPlanProgram(t *testing.T) {
	layer := t.TempDir()
	need.Command(t, "gcc")
	bin, err := target()
	must(t, err)
	b, err := os.ReadFile(bin)
	must(t, err)
	file(t, layer, "usr/local/bin/app", "not executable", 0o644)
	file(t, layer, "usr/bin/app", string(b), 0o755)
	file(t, layer, "srv/app", string(b), 0o755)
	must(t, os.Symlink("../../srv/app", layer+"/usr/bin/linked"))
	file(t, layer, "usr/bin/script", "#!/usr/bin/env -S FOO=1 python3 -u\n", 0o755)
	file(t, layer, "usr/bin/wrapper", "#!/bin/sh -e\nexec app\n", 0o755)
	file(t, layer, "usr/bin/python3.11", string(b), 0o755)
	usual := Command{Path: "/usr/local/bin:/usr/bin", Dir: "/srv"}
	mount := []container.Mount{{Destination: "/vol"}}
	for _, c := range []struct {
		name, program string
		arg0          string
		runs          Command
		mounts        []container.Mount
		want, why     string
	}{
		{name: "by name", program: "app", runs: usual, want: "/usr/bin/app hello"},
		{name: "a symlink", program: "linked", runs: usual, want: "/srv/app hello"},
		{name: "the working directory in $PATH", program: "app", runs: Command{Path: ":/usr/bin", Dir: "/srv"}, want: "/srv/app hello"},
		{name: "not there", program: "nothing", runs: usual, want: "fileNotFound"},
		{name: "no $PATH", program: "app", runs: Command{}, want: "/usr/bin/app hello", why: "$PATH is not known"},
		{name: "$PATH too long", program: "app", runs: Command{Path: strings.Repeat("/:", maxPathDirs)}, want: "fileNotFound", why: "more than"},
		{name: "a directory of $PATH is a mount", program: "app", runs: Command{Path: "/vol/bin:/usr/bin"}, mounts: mount, want: "/usr/bin/app hello", why: "/vol"},
		{name: "a mount behind it", program: "app", runs: Command{Path: "/usr/bin:/vol/bin"}, mounts: mount, want: "/usr/bin/app hello"},
		{name: "entrypoint", program: "entrypoint", runs: Command{Arg0: "app", Path: "/usr/bin"}, want: "/usr/bin/app hello"},
		{name: "entrypoint's path", program: "entrypoint", runs: Command{Arg0: "/usr/bin/../bin/app"}, want: "/usr/bin/app hello"},
		{name: "entrypoint from the working directory", program: "entrypoint", runs: Command{Arg0: "./app", Dir: "/srv"}, want: "/srv/app hello"},
		{name: "working directory not known", program: "entrypoint", runs: Command{Arg0: "./app"}, want: "fileNotFound", why: "working directory"},
		{name: "entrypoint not known", program: "entrypoint", want: "fileNotFound", why: "not known what the container starts"},
		{name: "a script", program: "script", runs: usual, want: "/usr/bin/script managedCode"},
		{name: "a shell script", program: "wrapper", runs: usual, want: "/usr/bin/wrapper managedCode"},
		{name: "an interpreter", program: "python3.11", runs: usual, want: "/usr/bin/python3.11 hello"},
	} {
		tree := merged(t, image.Rootfs{Mounts: c.mounts, Dirs: []string{"/vol"}}, &Inspector{}, layer)
		tree.Runs = c.runs
		p := MakePlan([]policy.Probe{{ID: "p", Type: policy.Uprobe, Program: c.program, Symbols: []string{"hello"}}}, tree, Host())
		same(t, c.name, told(p.Sites), c.want)
		if s := p.Searches[0]; s.Complete != (c.why == "") || !strings.Contains(s.Why, c.why) {
			t.Errorf("%s: %+v", c.name, s)
		}
	}
}

// Managed code is recognised by the program, the file's name or its first
// bytes, and the detail says what can be had instead.
func TestManagedCode(t *testing.T) {
	layer := t.TempDir()
	need.Command(t, "gcc")
	bin, err := target()
	must(t, err)
	b, err := os.ReadFile(bin)
	must(t, err)
	for rel, text := range map[string]string{
		"app/main.py": "import os\n", "app/server.js": "", "app/app.jar": "PK\x03\x04", "app/A": "\xca\xfe\xba\xbe\x00\x00\x00\x41", "app/m.wasm": "\x00asm", "app/lib.dll": "MZ", "app/x.rb": "", "app/i.php": "<?php",
		"app/tool": "#!/usr/bin/ruby3.1 -w\n", "app/odd": "#!\n", "app/data": "text",
	} {
		file(t, layer, rel, text, 0o755)
	}
	for _, rel := range []string{"usr/bin/python3.11", "usr/bin/node", "opt/jdk/bin/java", "usr/sbin/php-fpm8.2", "usr/bin/plain", "usr/lib/libpython3.11.so.1.0"} {
		file(t, layer, rel, string(b), 0o755)
	}
	tree := merged(t, image.Rootfs{}, &Inspector{}, layer)
	for _, c := range []struct {
		file, program string
		reason        evidence.NotArmedReason
		detail        string
	}{
		{"/app/main.py", "", evidence.ManagedCode, "provider python"},
		{"/app/server.js", "", evidence.ManagedCode, "--perf-basic-prof"},
		{"/app/app.jar", "", evidence.ManagedCode, "provider hotspot"},
		{"/app/A", "", evidence.ManagedCode, "Java"},
		{"/app/m.wasm", "", evidence.ManagedCode, "WebAssembly"},
		{"/app/lib.dll", "", evidence.ManagedCode, "DOTNET_PerfMapEnabled"},
		{"/app/x.rb", "", evidence.ManagedCode, "provider ruby"},
		{"/app/i.php", "", evidence.ManagedCode, "provider php"},
		{"/app/tool", "", evidence.ManagedCode, "/usr/bin/ruby3.1 runs, Ruby"},
		{"/app/odd", "", evidence.FileUnreadable, "ELF"},
		{"/app/data", "", evidence.FileUnreadable, "ELF"},
		{"", "/usr/bin/python3.11", evidence.ManagedCode, "runs Python"},
		{"", "/usr/bin/node", evidence.ManagedCode, "runs JavaScript"},
		{"", "/opt/jdk/bin/java", evidence.ManagedCode, "runs Java"},
		{"", "/usr/sbin/php-fpm8.2", evidence.ManagedCode, "runs PHP"},
		{"", "/usr/bin/plain", evidence.SymbolNotFound, ""},
		// Who names the interpreter's own file may mean its own functions.
		{"/usr/bin/node", "", evidence.SymbolNotFound, "runs JavaScript"},
		{"/usr/lib/libpython3*", "", evidence.SymbolNotFound, "runs Python"},
	} {
		tree.Runs = Command{Arg0: c.program}
		pr := policy.Probe{ID: "p", Type: policy.Uprobe, File: c.file, Symbols: []string{"handle_request"}}
		if c.program != "" {
			pr.Program = policy.Entrypoint
		}
		p := MakePlan([]policy.Probe{pr}, tree, Host())
		if s := p.Sites[0]; len(p.Sites) != 1 || s.Reason != c.reason || !strings.Contains(s.Detail, c.detail) || s.File == nil {
			t.Errorf("%s%s: %+v", c.file, c.program, told(p.Sites))
		}
		if s := p.Searches[0]; s.Complete != (c.reason != evidence.FileUnreadable) {
			t.Errorf("%s%s: %+v", c.file, c.program, s)
		}
	}
}

// changed is a tree whose files are said to be something else.
type changed struct {
	Files
	change func(*Facts)
}

func (c changed) Inspect(m image.Match, q symbol.Query) (Facts, error) {
	f, err := c.Files.Inspect(m, q)
	if err == nil {
		elf := *f.ELF
		f.ELF, f.Symbols = &elf, slices.Clone(f.Symbols)
		c.change(&f)
	}
	return f, err
}

// planned is the plan of one probe on the target, of which something else is said.
func planned(t *testing.T, pr policy.Probe, m Machine, change func(*Facts)) Plan {
	t.Helper()
	need.Command(t, "gcc")
	bin, err := target()
	must(t, err)
	layer := t.TempDir()
	b, err := os.ReadFile(bin)
	must(t, err)
	file(t, layer, "bin/target", string(b), 0o755)
	pr.ID, pr.File = "p", "/bin/target"
	return MakePlan([]policy.Probe{pr}, changed{one{layer, &Inspector{}}, change}, m)
}

// A uretprobe becomes return instructions where the kernel's would break the
// program, and is refused where these are not known.
func TestPlanReturns(t *testing.T) {
	pr := policy.Probe{Type: policy.Uretprobe, Symbols: []string{"hello"}}
	var entry uint64
	goProgram := func(more func(*symbol.Symbol)) func(*Facts) {
		return func(f *Facts) {
			f.ELF.Go = true
			entry = f.Symbols[0].Offset
			f.Symbols[0].Returns, f.Symbols[0].ReturnsErr = []uint64{entry + 1, entry + 2}, nil
			more(&f.Symbols[0])
		}
	}
	nothing := func(*symbol.Symbol) {}

	p := planned(t, pr, Host(), func(f *Facts) { entry = f.Symbols[0].Offset })
	if s := p.Sites; len(s) != 1 || s[0].Offset != entry || s[0].Return || s[0].Reason != "" || s[0].Requested != evidence.Uretprobe {
		t.Errorf("C: %+v", s)
	}
	for name, p := range map[string]Plan{
		"Go":      planned(t, pr, Host(), goProgram(nothing)),
		"seccomp": planned(t, pr, On(kernel.Facts{UretprobeSyscall: kernel.SyscallKilled}), func(f *Facts) { goProgram(nothing)(f); f.ELF.Go = false }),
	} {
		if s := p.Sites; len(s) != 2 || s[0].Offset != entry+1 || s[1].Offset != entry+2 || !s[0].Return || !s[1].Return || s[0].Reason != "" || s[0].Requested != evidence.Uretprobe {
			t.Errorf("%s: %+v", name, s)
		}
	}
	for _, c := range []struct {
		name   string
		change func(*symbol.Symbol)
		reason evidence.NotArmedReason
		detail string
	}{
		{"not known", func(s *symbol.Symbol) { s.Returns, s.ReturnsErr = nil, errors.New("jumps out") }, evidence.WouldBreakTarget, "jumps out"},
		{"never returns", func(s *symbol.Symbol) { s.Returns = nil }, evidence.UnprobeableInstruction, "no return instruction"},
		{"inlined", func(s *symbol.Symbol) { s.Kind, s.InlinedIn = symbol.KindInlined, "main" }, evidence.UnprobeableInstruction, "inlined in main"},
		{"not in the text", func(s *symbol.Symbol) { s.Returns = []uint64{1 << 40} }, evidence.UnprobeableInstruction, "executable segment"},
	} {
		p := planned(t, pr, Host(), goProgram(c.change))
		if s := p.Sites; len(s) != 1 || s[0].Reason != c.reason || !strings.Contains(s[0].Detail, c.detail) {
			t.Errorf("%s: %+v", c.name, s)
		}
	}
	// Durations are by return instructions where those are known, else by the
	// kernel's return probe if that does not break the program.
	pr = policy.Probe{Type: policy.Uprobe, Symbols: []string{"hello"}, Duration: true}
	if s := planned(t, pr, Host(), func(*Facts) {}).Sites[0]; !s.Duration || s.Detail != "" {
		t.Errorf("%+v", s)
	}
	if s := planned(t, pr, Host(), goProgram(nothing)).Sites[0]; !s.Duration || !s.Go || !slices.Equal(s.Returns, []uint64{entry + 1, entry + 2}) {
		t.Errorf("%+v", s)
	}
	unknown := goProgram(func(s *symbol.Symbol) { s.Returns, s.ReturnsErr = nil, errors.New("jumps out") })
	if s := planned(t, pr, Host(), unknown).Sites[0]; s.Duration || s.Reason != "" || !strings.Contains(s.Detail, "no duration") || !strings.Contains(s.Detail, "jumps out") {
		t.Errorf("%+v", s)
	}
}

// What a symbol is goes into its site; the resolver of an IFUNC is not its
// function; what may not be all makes the search incomplete; a place that a
// pattern matches twice is one site.
func TestPlanKinds(t *testing.T) {
	pr := policy.Probe{Type: policy.Uprobe, Symbols: []string{"hello", "gone"}, SymbolGlobs: []string{"hel*"}, SymbolRegexps: []string{"^none$"}}
	at := func(f *Facts) symbol.Symbol {
		i := slices.IndexFunc(f.Symbols, func(s symbol.Symbol) bool { return s.Wanted == "hello" })
		return f.Symbols[i]
	}
	p := planned(t, policy.Probe{Type: policy.Uprobe, Symbols: pr.Symbols}, Host(), func(f *Facts) {
		hello := at(f)
		resolver, impl, inlined, again := hello, hello, hello, hello
		resolver.Kind, resolver.Doubt = symbol.KindIFunc, "who knows"
		impl.Kind, impl.Implements, impl.Offset = symbol.KindIFunc, "hello", hello.Offset+1 // a name that was stripped
		inlined.Kind, inlined.InlinedIn, inlined.Offset = symbol.KindInlined, "main", hello.Offset+2
		inlined.Inline = symbol.InlineKnown{State: symbol.InlineAt, Instances: []symbol.Instance{{Function: "main", Offset: hello.Offset + 2}}}
		f.Symbols = []symbol.Symbol{inlined, resolver, impl, again}
	})
	got := p.Sites
	// The resolver is not armed. The second has the same name in another unit.
	if len(got) != 5 || got[0].Reason != evidence.UnprobeableInstruction || !strings.Contains(got[0].Detail, "who knows") ||
		got[1].Kind != symbol.KindFunc || got[2].Implements != "hello" || got[2].Reason != "" || got[3].InlinedIn != "main" || len(got[3].InlinedAt) != 1 || got[3].Inline != symbol.InlineAt ||
		got[4].Symbol != "gone" || got[4].Reason != evidence.SymbolNotFound || got[4].HasOffset {
		t.Errorf("%+v", told(got))
	}
	if s := p.Searches[0]; s.Complete || !strings.Contains(s.Why, "who knows") {
		t.Errorf("%+v", s)
	}
	q := (&planner{pr: pr}).query()
	if !slices.Equal(q.Globs, pr.SymbolGlobs) || !slices.Equal(q.Regexps, pr.SymbolRegexps) || !q.Inlined || q.Returns {
		t.Errorf("%+v", q)
	}
	// What was matched by name already.
	fake := planner{pr: pr, most: maxSites, search: Search{Complete: true}}
	need.Command(t, "gcc")
	bin, err := target()
	must(t, err)
	f, err := os.Open(bin)
	must(t, err)
	defer f.Close()
	st, err := f.Stat()
	must(t, err)
	elf, syms, err := symbol.Read(f, st.Size(), symbol.Query{Names: []string{"hello"}}, symbol.Limits{})
	must(t, err)
	glob, other := syms[0], syms[0]
	glob.Wanted, other.Wanted, other.Name, other.Offset = "hel*", "hel*", "help", syms[0].Offset+1
	fake.functions(draft{Planned: Planned{File: &File{}}}, Facts{ELF: elf, Symbols: append(syms, glob, other, other)})
	same(t, "patterns", told(sitesOf(fake.drafts)), "hello", "gone symbolNotFound", "help", "^none$ symbolNotFound")
}

// A file of which not all is known has its sites, and its search says so to
// whom it concerns.
func TestPlanUnjudged(t *testing.T) {
	for _, c := range []struct {
		pr       policy.Probe
		unjudged symbol.Unjudged
		why      string
	}{
		{policy.Probe{Type: policy.Uprobe, Symbols: []string{"hello"}}, symbol.Unjudged{}, ""},
		{policy.Probe{Type: policy.Uprobe, Symbols: []string{"hello"}}, symbol.Unjudged{Names: 3, Example: "_Z1f", Why: "because"}, "/bin/target: 3 mangled names may stand for more, _Z1f for one: because"},
		{policy.Probe{Type: policy.Uprobe, SymbolGlobs: []string{"hello"}}, symbol.Unjudged{Debugdata: ".gnu_debugdata: broken"}, "/bin/target: .gnu_debugdata: broken"},
		{policy.Probe{Type: policy.Uprobe, SymbolRegexps: []string{"^hello$"}}, symbol.Unjudged{Names: 1, Debugdata: "broken"}, "; broken"},
		{policy.Probe{Type: policy.Uprobe, Offsets: []policy.Offset{{Entry: true}}}, symbol.Unjudged{Names: 3, Debugdata: "broken"}, ""},
	} {
		p := planned(t, c.pr, Host(), func(f *Facts) { f.ELF.Unjudged = c.unjudged })
		if s := p.Searches[0]; s.Complete != (c.why == "") || !strings.Contains(s.Why, c.why) {
			t.Errorf("%+v, %+v: %+v", c.pr, c.unjudged, s)
		}
		if len(p.Sites) != 1 || p.Sites[0].Reason != "" {
			t.Errorf("%+v: %q", c.pr, told(p.Sites))
		}
	}
}

// One site for each place of a marker, and what is not there by its item.
func TestPlanMarkers(t *testing.T) {
	pr := policy.Probe{Type: policy.USDT, Markers: []string{"app:start", "app:re*", "lib:start", "app:stop"}}
	p := planned(t, pr, Host(), func(f *Facts) {
		e := f.ELF.Entry
		f.ELF.Markers = []symbol.Marker{
			{Provider: "app", Name: "start", Offset: e, Semaphore: 64}, {Provider: "app", Name: "start", Offset: e + 1},
			{Provider: "app", Name: "request", Offset: e + 2}, {Provider: "app", Name: "reply", Offset: 1 << 40},
		}
	})
	same(t, "markers", told(p.Sites), "/bin/target app:start", "/bin/target app:start", "/bin/target app:request", "/bin/target app:reply unprobeableInstruction",
		"/bin/target lib:start symbolNotFound", "/bin/target app:stop symbolNotFound")
	if s := p.Sites; s[0].Semaphore != 64 || s[1].Semaphore != 0 || s[2].Wanted != "app:re*" || s[0].Requested != evidence.USDT || !s[0].HasOffset {
		t.Errorf("%+v", s)
	}
}

// Past the bound on sites nothing is silent: one site says so, and the search is
// not complete.
func TestPlanIsBounded(t *testing.T) {
	pr := policy.Probe{Type: policy.Uprobe, Symbols: []string{"hello"}}
	p := planned(t, pr, Host(), func(f *Facts) {
		f.Symbols = nil
		for i := range maxSites + 7 {
			f.Symbols = append(f.Symbols, symbol.Symbol{Name: "hello", Wanted: "hello", Kind: symbol.KindFunc, Offset: uint64(i)})
		}
	})
	if n := len(p.Sites); n != maxSites+1 || p.Sites[n-1].Reason != evidence.OverBudget || p.Sites[n-1].HasOffset || p.Sites[n-2].Reason == evidence.OverBudget {
		t.Errorf("%d sites, the last %+v", n, p.Sites[n-1])
	}
	if s := p.Searches[0]; s.Complete || s.Why == "" {
		t.Errorf("%+v", s)
	}
	// Names that are as long as they like take no more room than so many sites.
	long := strings.Repeat("x", 6000)
	p = planned(t, pr, Host(), func(f *Facts) {
		f.Symbols = nil
		for i := range maxSites {
			f.Symbols = append(f.Symbols, symbol.Symbol{Name: long, Wanted: "hello", Kind: symbol.KindFunc, Offset: uint64(i)})
		}
	})
	names := 0
	for i := range p.Sites {
		names += p.Sites[i].NameBytes()
	}
	if last := p.Sites[len(p.Sites)-1]; names > maxNameBytes || names < maxNameBytes*9/10 || last.Reason != evidence.OverBudget || last.HasOffset || last.NameBytes() > 100 || p.Searches[0].Complete {
		t.Errorf("%d sites with %d bytes of names, the last %+v, %+v", len(p.Sites), names, last.Detail, p.Searches)
	}
	var many []policy.Probe
	for i := range 2 {
		one := policy.Probe{ID: fmt.Sprint(i), Type: policy.Kprobe}
		for j := range maxSites {
			one.Functions = append(one.Functions, fmt.Sprint("f", j))
		}
		many = append(many, one)
	}
	many = append(many, policy.Probe{ID: "set", Set: policy.SetExec})
	p = MakePlan(many, nil, Host())
	if n := len(p.Sites); n != maxSites+2 || p.Sites[n-2].Reason != evidence.OverBudget || p.Sites[n-1].Reason != evidence.OverBudget || !p.Searches[0].Complete || p.Searches[1].Complete || p.Searches[2].Complete {
		t.Errorf("%d sites, searches %+v", n, p.Searches)
	}
}

// The first bytes of a file are its author's: whatever they are, what is said of
// them is text of a bounded length.
func FuzzManagedFile(f *testing.F) {
	for _, head := range []string{"#!/bin/sh\n", "#!/usr/bin/env -S A=1 python3\n", "#!", "#! \t\n", "#!\xff\x00", "\xca\xfe\xba\xbe", "PK\x03\x04", "\x7fELF"} {
		f.Add("/a/b.py", head)
		f.Add("/a/b", head)
	}
	f.Fuzz(func(t *testing.T, file, head string) {
		head = head[:min(len(head), headBytes)]
		got := managedFile(file, head)
		if len(got) > 4*headBytes+512 || !utf8.ValidString(got) {
			t.Errorf("%q", got)
		}
		if strings.HasPrefix(head, "#!") && shebang(head) != "" && got == "" {
			t.Error("a script is not managed code")
		}
	})
}

// Past the time for one container, files that nobody knows are not read, and
// those that are known still have their sites.
func TestReadingIsBounded(t *testing.T) {
	layer := t.TempDir()
	library(t, layer, "a.so", "a.so", "aa01", "f")
	library(t, layer, "b.so", "b.so", "aa02", "f")
	in := &Inspector{}
	tree := merged(t, image.Rootfs{}, in, layer)
	plan := func(file string) Plan {
		return MakePlan([]policy.Probe{{ID: "p", Type: policy.Uprobe, File: file, Symbols: []string{"f"}}}, tree, Host())
	}
	same(t, "in time", told(plan("/a.so").Sites), "/a.so f")
	tree.ReadUntil = time.Now().Add(-time.Second)
	p := plan("/*.so")
	same(t, "late", told(p.Sites), "/a.so f x2", "/b.so fileUnreadable x2")
	if s := p.Searches[0]; s.Complete || !strings.Contains(s.Why, "too long") {
		t.Errorf("%+v", s)
	}
	tree.ReadUntil = time.Time{} // it was not remembered as unreadable
	same(t, "later", told(plan("/*.so").Sites), "/a.so f x2", "/b.so f x2")
}
