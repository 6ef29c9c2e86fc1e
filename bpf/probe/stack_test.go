package probe

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/evidence"
	"probity/tests/need"
)

// start starts a program of the box that waits for its input, and returns what
// ends it.
func (b *box) start(program string, args ...string) (end func()) {
	b.t.Helper()
	cg, err := os.Open(b.cgroup)
	must(b.t, err)
	defer cg.Close()
	cmd := exec.Command(filepath.Join(b.merged, program), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd())}
	in, err := cmd.StdinPipe()
	must(b.t, err)
	must(b.t, cmd.Start())
	return func() { in.Close(); _ = cmd.Wait() }
}

// event reads until an event of the kind comes.
func event(t *testing.T, r *ringbuf.Reader, kind bpf.EventKind) bpf.Event {
	t.Helper()
	r.SetDeadline(time.Now().Add(3 * time.Minute))
	for {
		rec, err := r.Read()
		must(t, err)
		e, err := bpf.Decode(rec.RawSample)
		must(t, err)
		if e.Kind == kind {
			return e
		}
	}
}

func names(s *evidence.Stack) string {
	var out []string
	for _, f := range s.Frames {
		out = append(out, f.Symbol)
	}
	return strings.Join(out, " ")
}

// A program that keeps frame pointers comes out whole, with the caller of a
// function that has not made its frame yet.
func TestStack(t *testing.T) {
	need.Command(t, "go")
	lower := newLower(t)
	src := filepath.Join(t.TempDir(), "main.go")
	data, err := os.ReadFile("testdata/gostack.go.txt")
	must(t, err)
	must(t, os.WriteFile(src, data, 0o644))
	build := exec.Command("go", "build", "-o", filepath.Join(lower, "bin/gostack"), src)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, c := range []struct {
		name, file, symbol, arg string
		want                    string // innermost first
	}{
		{"C", "/bin/target", "inner", "wait", "inner middle outer main __libc_start_call_main"},
		{"Go", "/bin/gostack", "main.inner", "", "main.inner main.middle main.outer main.main.func2 runtime.goexit.abi0"},
	} {
		for rung, o := range rungs {
			t.Run(c.name+"/"+rung, func(t *testing.T) {
				b := newBox(t, lower)
				e := newEngine(t, o, Config{})
				probe := policy.Probe{ID: "p", Type: "uprobe", File: c.file, Symbols: []string{c.symbol}, Stack: true}
				h := b.armPlan(e, MakePlan([]policy.Probe{probe}, libs{lower, &Inspector{}}, Host()))
				if !h.Sites[0].Armed {
					t.Fatalf("%+v", h.Sites[0])
				}
				r, err := e.obj.Reader()
				must(t, err)
				defer r.Close()
				end := b.start(c.file, c.arg)
				defer end()
				ev := event(t, r, bpf.EventStack)
				if ev.Site != h.Sites[0].ID || ev.Cgroup != b.id {
					t.Errorf("%+v", ev)
				}
				st := h.Stack(ev)
				got := names(st)
				if got != c.want || st.Truncated || st.Reason != "" {
					t.Errorf("%s (truncated %v: %s)\nraw %+v", got, st.Truncated, st.Reason, ev.Stack)
				}
				for i, f := range st.Frames {
					if !strings.HasSuffix(f.Path, c.file) || f.Offset == nil || f.BuildID == "" && f.Reason != "noBuildId" || f.BuildID != h.Sites[0].File.BuildID {
						t.Errorf("frame %d: %+v", i, f)
					}
				}
				end()
				// Of a process that is gone the ids stay, and it says what is missing.
				after := h.Stack(ev)
				if len(after.Frames) < len(st.Frames) || !after.Truncated || !strings.Contains(after.Reason, "ended") || after.Frames[0].Symbol != c.symbol {
					t.Errorf("afterwards: %+v", after)
				}
			})
		}
	}
}

// A stack that cannot be followed says so, and where none was asked for none
// comes.
func TestStackMissing(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, symbols("inner"))
	r, err := e.obj.Reader()
	must(t, err)
	defer r.Close()
	b.run(nil, "deep")
	ev := event(t, r, bpf.EventHit)
	r.SetDeadline(time.Unix(1, 0))
	for {
		rec, err := r.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		must(t, err)
		if e, err := bpf.Decode(rec.RawSample); err != nil || e.Kind == bpf.EventStack {
			t.Errorf("%+v, %v", e, err)
		}
	}
	ev.Kind = bpf.EventStack
	for name, s := range map[string]*bpf.Stack{
		"none":          {Err: unix.EFAULT},
		"cut":           {Frames: make([]bpf.Frame, bpf.MaxFrames), Cut: true},
		"not the start": {Frames: []bpf.Frame{{Address: 1}}},
	} {
		ev.Stack, ev.Pid = s, os.Getpid()
		if st := h.Stack(ev); !st.Truncated || st.Reason == "" {
			t.Errorf("%s: %+v", name, st)
		}
	}
}

// A goroutine's call is timed over moves of its stack and between threads.
func TestGoDuration(t *testing.T) {
	need.Command(t, "go")
	lower := newLower(t)
	data, err := os.ReadFile("testdata/gostack.go.txt")
	must(t, err)
	src := filepath.Join(t.TempDir(), "main.go")
	must(t, os.WriteFile(src, data, 0o644))
	build := exec.Command("go", "build", "-o", filepath.Join(lower, "bin/gostack"), src)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b := newBox(t, lower)
	e := newEngine(t, bpf.Options{}, Config{})
	probe := policy.Probe{ID: "p", Type: "uprobe", File: "/bin/gostack", Symbols: []string{"main.timed"}, Duration: true}
	h := b.armPlan(e, MakePlan([]policy.Probe{probe}, libs{lower, &Inspector{}}, Host()))
	if s := h.Sites[0]; !s.Armed || !s.Go || len(s.Returns) == 0 {
		t.Fatalf("%+v", s)
	}
	cg, err := os.Open(b.cgroup)
	must(t, err)
	defer cg.Close()
	cmd := exec.Command(filepath.Join(b.merged, "bin/gostack"), "timed")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd())}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if d := duration(t, h); d.Count != 20 || d.Unmatched != 0 || d.SumNs < 20e6 {
		t.Errorf("%+v", d)
	}
}
