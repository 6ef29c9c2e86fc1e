package probe

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"probity/bpf"
	"probity/evidence"
	"probity/runtime/process"
	"probity/tests/need"
)

// hold starts a process that runs leaf in one of the ways, and waits.
func (b *box) hold(way string, args ...string) *process.Process {
	b.t.Helper()
	cmd, entered := b.command("bin/target", []string{"HOLD=1"}, append([]string{way}, args...)...)
	defer entered.Close()
	return b.held(cmd)
}

// held starts a process that says "held" and waits.
func (b *box) held(cmd *exec.Cmd) *process.Process {
	b.t.Helper()
	in, err := cmd.StdinPipe()
	must(b.t, err)
	out, err := cmd.StdoutPipe()
	must(b.t, err)
	cmd.Stderr = os.Stderr
	must(b.t, cmd.Start())
	b.t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "held\n" {
		b.t.Fatalf("%v: %q, %v", cmd.Args, line, err)
	}
	p, err := process.Open(cmd.Process.Pid)
	must(b.t, err)
	b.t.Cleanup(func() { p.Close() })
	return p
}

// newWays is a box whose target is testdata/ways.c.
func newWays(t *testing.T) *box {
	t.Helper()
	need.Command(t, "gcc")
	bin, err := waysBinary()
	must(t, err)
	data, err := os.ReadFile(bin)
	must(t, err)
	lower := newLower(t)
	must(t, os.WriteFile(filepath.Join(lower, "bin/target"), data, 0o755))
	return newBox(t, lower)
}

// A look at a process finds each way of staying unseen that leaves the file
// mapped, and nothing in a process that hides nothing.
func TestLook(t *testing.T) {
	e := newEngine(t, bpf.Options{}, Config{})
	for way, want := range map[string]string{
		"call":     "",
		"thread":   "",
		"fork":     "",
		"private":  "",
		"mprotect": "",
		"mremap":   "",

		"shared":        "shared and executable",
		"rwx":           "writable and executable",
		"rw-rx":         "1 of 1 sites taken out",
		"rw-rx-written": "1 of 1 sites taken out",
		"dontneed":      "1 of 1 sites taken out",
		"dontneed-text": "1 of 1 sites taken out",
		"self-mem":      "1 of 1 sites taken out",
	} {
		t.Run(way, func(t *testing.T) {
			b := newWays(t)
			h := b.arm(e, symbols("leaf"))
			got, err := h.Look(b.hold(way))
			must(t, err)
			if len(got.Other) != 0 {
				t.Errorf("other files: %+v", got.Other)
			}
			if want == "" {
				if len(got.Troubles) != 0 {
					t.Errorf("%+v", got.Troubles)
				}
				return
			}
			if len(got.Troubles) != 1 || got.Troubles[0].Reason != evidence.GapUnarmedMapping || got.Troubles[0].Path != "/bin/target" || !strings.Contains(got.Troubles[0].Detail, want) {
				t.Errorf("%+v, want %q", got.Troubles, want)
			}
		})
	}
}

// A copy is another file, and shows as one in which nothing is armed.
func TestLookAtOtherFiles(t *testing.T) {
	b := newWays(t)
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, symbols("leaf"))
	got, err := h.Look(b.hold("memfd"))
	must(t, err)
	if len(got.Troubles) != 0 || len(got.Other) != 1 || got.Other[0].Path != "/memfd:copy" || !got.Other[0].Deleted {
		t.Errorf("%+v", got)
	}
}

// A process with a mount namespace of its own has another file under the name of
// the armed one: a copy that has breakpoints where the armed one has them, so
// that it looks armed.
func TestLookAtTheSameName(t *testing.T) {
	b := newWays(t)
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, symbols("after_leaf")) // which it does not call
	data, err := os.ReadFile(filepath.Join(b.lower, "bin/target"))
	must(t, err)
	copy(data[h.Sites[0].Offset:], Host().breakpoint)
	forged := filepath.Join(t.TempDir(), "target")
	must(t, os.WriteFile(forged, data, 0o755))
	for path, others := range map[string]int{forged: 1, filepath.Join(b.lower, "bin/target"): 0} {
		p := b.holdBehind(path)
		// It is called there as it is in the container.
		maps, err := p.Executable()
		must(t, err)
		held := &h.held[0]
		before := held.match.Path
		held.match.Path = maps[0].Path
		got, err := h.Look(p)
		held.match.Path = before
		must(t, err)
		if len(got.Troubles) != 0 || len(got.Other) != others {
			t.Errorf("%s: %+v, %d mappings of other files, want %d", path, got.Troubles, len(got.Other), others)
		}
	}
}

// holdBehind starts the target in a mount namespace in which another file is
// mounted over it.
func (b *box) holdBehind(path string) *process.Process {
	b.t.Helper()
	need.Command(b.t, "unshare")
	bin := filepath.Join(b.merged, "bin/target")
	cmd := exec.Command("unshare", "-m", "sh", "-c", `mount --bind "$0" "$1" && exec "$1" call`, path, bin)
	cmd.Env = []string{"HOLD=1", "PATH=" + os.Getenv("PATH")}
	return b.held(cmd)
}

func TestLookAtTheDead(t *testing.T) {
	b := newWays(t)
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, symbols("leaf"))
	cmd, entered := b.command("bin/target", nil, "call")
	defer entered.Close()
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	p, err := process.Open(cmd.Process.Pid)
	must(t, err)
	defer p.Close()
	in.Close()
	must(t, cmd.Wait())
	if got, err := h.Look(p); !errors.Is(err, process.ErrGone) {
		t.Errorf("%+v, %v", got, err)
	}
}

// Between what a process has mapped and what is there it may call execve: what
// is read at the old addresses is another program's, and nothing was taken out.
func TestLookAtWhoExecutes(t *testing.T) {
	lower := newLower(t)
	for _, name := range []string{"target", "other"} {
		compiled(t, lower, name, `#include <unistd.h>
__attribute__((noinline, noclone, used)) int leaf(int x) { return x * 3 + 1; }
int main(int argc, char **argv) {
	char *next[] = { argv[1], argv[0], 0 };
	execv(next[0], next);
	return leaf(argc);
}
`, "gcc", "-O2", "-static")
	}
	b := newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, symbols("leaf"))
	cmd, entered := b.command("bin/target", nil, filepath.Join(b.merged, "bin/other"))
	defer entered.Close()
	must(t, cmd.Start())
	defer func() {
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
	}()
	p, err := process.Open(cmd.Process.Pid)
	must(t, err)
	defer p.Close()
	for range 1500 {
		switch got, err := h.Look(p); {
		case err != nil && !errors.Is(err, process.ErrGone): // while it calls execve it has nothing mapped
			t.Fatal(err)
		case len(got.Troubles) > 0:
			t.Fatalf("%+v", got.Troubles)
		}
	}
}
