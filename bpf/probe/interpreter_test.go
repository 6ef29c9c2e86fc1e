package probe

import (
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
