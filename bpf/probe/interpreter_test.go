package probe

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/evidence"
	"probity/tests/need"
)

// The real interpreter of Python: a function of a program that it runs is
// managed code, with the markers that it has, which are passed. Its own functions
// of C are probed like any others.
func TestRealPython(t *testing.T) {
	need.Command(t, "/usr/bin/python3")
	path, err := filepath.EvalSymlinks("/usr/bin/python3")
	must(t, err)
	interpreter, err := os.ReadFile(path)
	must(t, err)
	lower := newLower(t)
	must(t, os.MkdirAll(filepath.Join(lower, "usr/bin"), 0o755))
	must(t, os.WriteFile(filepath.Join(lower, path), interpreter, 0o755))
	must(t, os.MkdirAll(filepath.Join(lower, "app"), 0o755))
	file(t, lower, "app/main.py", "def handle_request(n):\n    return n\nfor i in range(7):\n    handle_request(i)\n", 0o644)
	b := newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{})
	tree := merged(t, rootfs(b), &Inspector{})
	tree.Runs = Command{Arg0: path}
	h, err := e.Arm(t.Context(), b.target(), MakePlan([]policy.Probe{
		{ID: "function", Type: policy.Uprobe, Program: policy.Entrypoint, Symbols: []string{"handle_request"}},
		{ID: "script", Type: policy.Uprobe, File: "/app/main.py", Symbols: []string{"handle_request"}},
		{ID: "main", Type: policy.Uprobe, Program: policy.Entrypoint, Symbols: []string{"Py_BytesMain"}},
		{ID: "entered", Type: policy.USDT, Program: policy.Entrypoint, Markers: []string{"python:function__entry"}},
		{ID: "audit", Type: policy.USDT, Program: policy.Entrypoint, Markers: []string{"python:audit"}},
	}, tree, Host()))
	must(t, err)
	defer h.Close()
	run := func(program string) {
		t.Helper()
		b.runAt(path, []string{"PYTHONHOME=/usr"}, "-S", "-E", "-c", program)
	}
	passed := func(id string) (n uint64) {
		for _, s := range h.Sites {
			if s.Probe.ID == id && s.Armed {
				c, err := h.Counter(s)
				must(t, err)
				n += c.Count
			}
		}
		return n
	}
	const define = "def handle_request(n):\n    return n\n"
	run(define)
	without, heard := passed("entered"), passed("audit")
	run(define + "for i in range(7):\n    handle_request(i)\nopen('/proc/self/stat').close()\n")
	with, more := passed("entered")-2*without, passed("audit")-2*heard
	t.Logf("7 calls: %d entries; a file opened: %d audited", with, more)
	for _, s := range h.Sites {
		t.Logf("%s: %s at %#x: %s %s", s.Probe.ID, s.Symbol+s.Marker, s.Offset, s.Reason, s.Detail)
		switch s.Probe.ID {
		case "function", "script":
			if s.Reason != evidence.ManagedCode || !strings.Contains(s.Detail, "provider python") {
				t.Errorf("%+v", s)
			}
		case "main":
			if c, err := h.Counter(s); err != nil || c.Count != 2 {
				t.Errorf("its own function: %+v, %v", c, err)
			}
		case "entered":
			has, err := exec.Command("readelf", "-n", path).Output()
			must(t, err)
			if built := strings.Contains(string(has), "function__entry"); built != s.Armed || !built && s.Reason != evidence.SymbolNotFound {
				t.Errorf("built with markers %v: %+v", built, s)
			} else if built && (heard == 0 || more == 0 || with != 0 && with != 7) { // 3.11 does not pass it, see docs/probes.md
				t.Errorf("%d functions were entered by 7 calls; %d audited, then %d more", with, heard, more)
			}
		}
	}
}

// runInterpreter runs a program of the box to its end, and returns what it says
// of its functions in the file for other tools: their names, or nothing.
func (b *box) runInterpreter(path string, args ...string) string {
	b.t.Helper()
	cmd, entered := b.command(path, []string{"HOME=/"}, args...)
	defer entered.Close()
	var out bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = b.t.TempDir(), &out, &out // Node.js leaves a log of its own
	must(b.t, cmd.Start())
	err := cmd.Wait()
	names := fmt.Sprintf("/tmp/perf-%d.map", cmd.Process.Pid)
	defer os.Remove(names)
	if err != nil {
		b.t.Fatalf("run %s %v: %v\n%s", path, args, err, out.Bytes())
	}
	said, err := os.ReadFile(names)
	if err != nil && !os.IsNotExist(err) {
		b.t.Fatal(err)
	}
	return string(said)
}

// The real Node.js: a function of what it runs is managed code, of which is said
// where its name can be had, and it is there. Its own functions are probed.
func TestRealNode(t *testing.T) {
	path := need.Interpreter(t, "node")
	lower := newLower(t)
	copied(t, lower, path)
	file(t, lower, "app/main.js", "function handleRequest(n) { return n; }\nfor (let i = 0; i < 7; i++) handleRequest(i);\n", 0o644)
	b := newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{})
	tree := merged(t, rootfs(b), &Inspector{})
	tree.Runs = Command{Arg0: path}
	h, err := e.Arm(t.Context(), b.target(), MakePlan([]policy.Probe{
		{ID: "function", Type: policy.Uprobe, Program: policy.Entrypoint, Symbols: []string{"handleRequest"}},
		{ID: "script", Type: policy.Uprobe, File: "/app/main.js", Symbols: []string{"handleRequest"}},
		{ID: "main", Type: policy.Uprobe, Program: policy.Entrypoint, Symbols: []string{"node::Start(int, char**)"}},
	}, tree, Host()))
	must(t, err)
	defer h.Close()
	names := b.runInterpreter(path, "--perf-basic-prof", filepath.Join(b.merged, "app/main.js"))
	if !strings.Contains(names, "handleRequest") {
		t.Errorf("what is said to name its functions does not: %.300s", names)
	}
	managed(t, h, "function", "--perf-basic-prof")
	managed(t, h, "script", "--perf-basic-prof")
	own(t, h, "main", 1)
}

// The real Java: the same, and its markers are passed, once for each class that
// it loads.
func TestRealJava(t *testing.T) {
	path := need.Interpreter(t, "java")
	home := filepath.Dir(filepath.Dir(path))
	lower := newLower(t)
	for _, rel := range []string{"bin/java", "lib/libjli.so", "lib/libjava.so", "lib/libjimage.so", "lib/libzip.so", "lib/libnio.so", "lib/libnet.so", "lib/server/libjvm.so"} {
		copied(t, lower, filepath.Join(home, rel))
	}
	for _, rel := range []string{"lib/modules", "lib/jvm.cfg", "lib/tzdb.dat", "conf"} { // no code
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(lower, home, rel)), 0o755))
		must(t, os.Symlink(filepath.Join(home, rel), filepath.Join(lower, home, rel)))
	}
	file(t, lower, "app/Main.class", "\xca\xfe\xba\xbe", 0o644)
	b := newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{})
	tree := merged(t, rootfs(b), &Inspector{})
	tree.Runs = Command{Arg0: path}
	h, err := e.Arm(t.Context(), b.target(), MakePlan([]policy.Probe{
		{ID: "method", Type: policy.Uprobe, Program: policy.Entrypoint, Symbols: []string{"Main.handleRequest"}},
		{ID: "library", Type: policy.Uprobe, Library: "libjvm.so", Symbols: []string{"Main.handleRequest"}},
		{ID: "class", Type: policy.Uprobe, File: "/app/Main.class", Symbols: []string{"handleRequest"}},
		{ID: "create", Type: policy.Uprobe, Library: "libjvm.so", Symbols: []string{"JNI_CreateJavaVM"}},
		{ID: "loaded", Type: policy.USDT, Library: "libjvm.so", Markers: []string{"hotspot:class__loaded"}},
	}, tree, Host()))
	must(t, err)
	defer h.Close()
	names := b.runInterpreter(path, "-Xshare:off", "-XX:+UnlockDiagnosticVMOptions", "-XX:+DumpPerfMapAtExit", "-version")
	if !strings.Contains(names, "java.lang.") {
		t.Errorf("what is said to name its methods does not: %.300s", names)
	}
	const offers = "Compiler.perfmap"
	managed(t, h, "method", offers)
	managed(t, h, "class", offers)
	for _, s := range h.Sites { // a library may have functions of its own that are called so
		if s.Probe.ID == "library" && (s.Reason != evidence.SymbolNotFound || !strings.Contains(s.Detail, offers)) {
			t.Errorf("%+v", s)
		}
	}
	own(t, h, "create", 1)
	for _, s := range h.Sites {
		if s.Probe.ID != "loaded" {
			continue
		}
		has, err := exec.Command("readelf", "-n", filepath.Join(home, "lib/server/libjvm.so")).Output()
		must(t, err)
		if built := strings.Contains(string(has), "class__loaded"); built != s.Armed {
			t.Errorf("built with markers %v: %+v", built, s)
		} else if built && count(t, h, s) < 100 { // an empty program needs some hundred of the library
			t.Errorf("%d classes were loaded", count(t, h, s))
		}
	}
}

// copied puts a file of this machine into a layer, at its own path.
func copied(t *testing.T, lower, path string) {
	t.Helper()
	to := filepath.Join(lower, path)
	must(t, os.MkdirAll(filepath.Dir(to), 0o755))
	if out, err := exec.Command("cp", "-L", "--preserve=mode", path, to).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// managed wants that a probe has nothing but managed code, and that it says what
// the language offers.
func managed(t *testing.T, h *Handle, id, offers string) {
	t.Helper()
	n := 0
	for _, s := range h.Sites {
		if s.Probe.ID != id {
			continue
		}
		n++
		if s.Armed || s.Reason != evidence.ManagedCode || !strings.Contains(s.Detail, offers) {
			t.Errorf("%s: armed %v, %s: %s", id, s.Armed, s.Reason, s.Detail)
		}
	}
	if n == 0 {
		t.Errorf("%s: nothing is said of it", id)
	}
}

// own wants that a probe is armed, and was hit so often.
func own(t *testing.T, h *Handle, id string, times uint64) {
	t.Helper()
	n := uint64(0)
	for _, s := range h.Sites {
		if s.Probe.ID == id && s.Armed {
			n += count(t, h, s)
		}
	}
	if n != times {
		t.Errorf("%s: counted %d, want %d", id, n, times)
	}
}
