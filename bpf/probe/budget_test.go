package probe

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/evidence"
	"probity/runtime/process"
	"probity/tests/need"
)

// The more of the node's counters are taken, the fewer one container gets: those
// who take all they can leave something for the next one.
func TestCountersAreShared(t *testing.T) {
	lower := newLower(t)
	e := newEngine(t, bpf.Options{Slots: 16}, Config{})
	wanted := symbols("hello", "goodbye", "never")
	armed := func(h *Handle) (n int) {
		for _, s := range h.Sites {
			switch {
			case s.Armed:
				n++
			case s.Reason != evidence.OverBudget || !strings.Contains(s.Detail, "counters"):
				t.Errorf("%s: %s, %s", s.Symbol, s.Reason, s.Detail)
			}
		}
		return n
	}
	var first *Handle
	for i, want := range []int{3, 3, 3, 1, 1} { // of 16, 13, 10, 7 and 6 that are free
		h := newBox(t, lower).arm(e, wanted)
		if first == nil {
			first = h
		}
		if got := armed(h); got != want {
			t.Errorf("container %d: %d sites are armed, want %d", i, got, want)
		}
	}
	must(t, first.Close())
	if got := armed(newBox(t, lower).arm(e, wanted)); got != 3 {
		t.Errorf("%d sites are armed, and half of the counters are free again", got)
	}
}

// A container that has its files armed again and again has a budget for that, of
// its own, however it takes away those that were armed before.
func TestLateSitesAreBounded(t *testing.T) {
	b := newWays(t)
	e := newEngine(t, bpf.Options{}, Config{MaxSites: 8})
	path := filepath.Join(b.merged, "bin/target")
	must(t, os.Chtimes(path, time.Now(), time.Now()))
	h, err := e.Arm(context.Background(), b.target(), MakePlan([]policy.Probe{symbols("leaf")}, b.copied(), Host()))
	must(t, err)
	defer h.Close()
	ctx, stop := context.WithCancel(context.Background())
	guarded := make(chan error, 1)
	go func() { guarded <- e.Guard(ctx) }()
	defer func() {
		stop()
		must(t, <-guarded)
	}()
	armed, refused := 0, 0
	for range 20 {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		must(t, err)
		_, err = f.WriteString("x")
		must(t, err)
		must(t, f.Close())
		for _, s := range b.add(e, h, b.copied()) {
			switch {
			case s.Armed:
				armed++
			case s.Reason == evidence.OverBudget:
				refused++
			default:
				t.Errorf("%+v", s)
			}
		}
	}
	if armed != 4 || refused != 16 {
		t.Errorf("%d armed, %d refused for want of budget; want 4 and 16", armed, refused)
	}
}

// waitFor waits until a goroutine is in a function of this package.
func waitFor(t *testing.T, function string) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for end := time.Now().Add(3 * time.Minute); ; runtime.Gosched() {
		if strings.Contains(string(buf[:runtime.Stack(buf, true)]), function) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("nobody came to %s", function)
		}
	}
}

// A container writes its file after it was found unchanged and before the agent
// guards it against that.
func TestWrittenBeforeItIsGuarded(t *testing.T) {
	b := newWays(t)
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e)
	path := filepath.Join(b.merged, "bin/target")
	must(t, os.Chtimes(path, time.Now(), time.Now()))
	plan := MakePlan([]policy.Probe{symbols("leaf")}, b.copied(), Host())
	e.leases.mu.Lock() // guarding the file waits for it
	done, root := make(chan []Site), b.root()
	go func() { done <- e.Add(context.Background(), h, root, plan) }()
	waitFor(t, "probe.(*leases).take(")
	written := os.Chtimes(path, time.Now(), time.Now())
	e.leases.mu.Unlock()
	more := <-done
	must(t, written)
	if len(more) != 1 || more[0].Armed || more[0].Reason != evidence.AttachFailed || !strings.Contains(more[0].Detail, "changed") {
		t.Errorf("%+v", more)
	}
	if n := len(e.leases.broken()) + len(e.leases.held); n != 0 {
		t.Errorf("%d leases are left", n)
	}
}

// Somebody on the host writes a file of a layer: whoever runs it runs something
// else by now. When it is searched again it is armed, and well.
func TestLayerIsWritten(t *testing.T) {
	for name, do := range map[string]func(path string) error{
		"in place": func(path string) error { return os.Chtimes(path, time.Now(), time.Now()) },
		"replaced": func(path string) error {
			data, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path+".new", data, 0o755)
			}
			if err == nil {
				err = os.Rename(path+".new", path)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, clock := newWays(t), int64(0)
			e := newEngine(t, bpf.Options{}, Config{})
			now := e.cfg.BootTime
			e.cfg.BootTime = func() int64 { return now() + clock }
			h := b.arm(e, symbols("leaf"))
			if tr := h.Check(); len(tr) != 0 {
				t.Fatalf("before: %+v", tr)
			}
			must(t, do(filepath.Join(b.lower, "bin/target")))
			clock += int64(5 * time.Second) // the next look at it
			for range 2 {
				if tr := h.Check(); len(tr) != 1 || tr[0].Reason != evidence.GapFileChanged || tr[0].Path != "/bin/target" {
					t.Fatalf("after: %+v", tr)
				}
			}
			must(t, unix.Unmount(b.merged, 0)) // an overlay does not take note of what is done below it
			b.mount()
			more := b.add(e, h, tree{b.lower, &Inspector{}})
			if len(more) != 1 || !more[0].Armed {
				t.Fatalf("added %+v", more)
			}
			clock += int64(5 * time.Second)
			if tr := h.Check(); len(tr) != 0 {
				t.Errorf("armed anew: %+v", tr)
			}
			b.run(nil, "call")
			if got := count(t, h, more[0]); got != 1 {
				t.Errorf("counted %d", got)
			}
		})
	}
}

// What a process has mapped in its root need not be a file: a driver would notice
// that it is opened.
func TestStackOpensFilesOnly(t *testing.T) {
	need.Root(t)
	path := filepath.Join(t.TempDir(), "zero")
	must(t, unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))))
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	must(t, err)
	defer unix.Munmap(m)
	p, err := process.Open(os.Getpid())
	must(t, err)
	defer p.Close()
	maps, err := p.Executable()
	must(t, err)
	found := map[string]bool{}
	for i := range maps {
		s := openStackFile(p.Pid, &maps[i])
		if found[maps[i].Path] = s.f != nil; s.f != nil {
			s.close()
		}
	}
	self, err := os.Executable()
	must(t, err)
	if device, seen := found[path]; device || !seen || !found[self] {
		t.Errorf("opened: %v", found)
	}
}
