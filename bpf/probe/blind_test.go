package probe

import (
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/tests/need"
)

var waysBinary = sync.OnceValues(func() (string, error) { return compile("ways", "-pthread") })

// ways are the ways of testdata/ways.c to run a function of a file, and whether
// a probe there sees it. docs/blind-spots.md explains each one that does not.
var ways = []struct {
	name string
	seen uint64
}{
	{"nothing", 0},
	{"call", 1},
	{"thread", 1},
	{"fork", 1},
	{"vfork", 1},
	{"private", 1},
	{"mprotect", 1},
	{"mremap", 1},

	{"shared", 0},
	{"rwx", 0},
	{"rw-rx", 0},
	{"rw-rx-written", 0},
	{"copy", 0},
	{"memfd", 0},
	{"dontneed", 0},
	{"dontneed-text", 0},
	{"self-mem", 0},
	{"ptrace", 0},
	{"middle", 0},
}

// What the kernel shows of each way is a fact that the documentation leans on.
// A kernel on which one of these differs must be looked at: its evidence says
// less, or more, than we swear to.
func TestWaysToRunCode(t *testing.T) {
	for name, o := range rungs {
		t.Run(name, func(t *testing.T) {
			b := newWays(t)
			e := newEngine(t, o, Config{})
			for _, w := range ways {
				t.Run(w.name, func(t *testing.T) {
					h := b.arm(e, symbols("leaf"))
					b.run(nil, w.name)
					if got := counts(t, h)["leaf"]; got != w.seen {
						t.Errorf("seen %d times, want %d", got, w.seen)
					}
					must(t, h.Close())
				})
			}
			t.Run("sees the breakpoint", func(t *testing.T) {
				b.arm(e, symbols("leaf"))
				b.run(nil, "sees-it") // it fails if the byte is the file's own
			})
		})
	}
}

// Two files with the same bytes are two files.
func TestCopyOfTheFile(t *testing.T) {
	need.Command(t, "gcc", "cp")
	lower := newLower(t)
	b := newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, policy.Probe{ID: "p", Type: "uprobe", File: "/bin/target", Symbols: []string{"hello"}})
	out, err := exec.Command("cp", filepath.Join(b.merged, "bin/target"), filepath.Join(b.merged, "bin/copy")).CombinedOutput()
	if err != nil {
		t.Fatal(string(out))
	}
	b.runAt("bin/copy", nil, "hello")
	if c := counts(t, h); c["hello"] != 0 {
		t.Errorf("%v", c)
	}
}
