package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/runtime/image"
)

// many are copies of the target in a writable layer.
type many struct {
	dir string
	n   int
	*Inspector
}

func (f many) Glob(string) (out []image.Match, complete bool, why string) {
	for i := range f.n {
		rel := fmt.Sprintf("bin/copy%d", i)
		out = append(out, image.Match{Path: "/" + rel, Layer: image.Layer{Dir: f.dir}, Rel: rel, Kind: "regular", Origin: image.FromUpper})
	}
	return out, true, ""
}

// withOwn arms a container with so many files of its own.
func withOwn(t *testing.T, e *Engine, n int) (*box, *Handle) {
	t.Helper()
	b := newWays(t)
	data, err := os.ReadFile(filepath.Join(b.lower, "bin/target"))
	must(t, err)
	for i := range n {
		must(t, os.WriteFile(filepath.Join(b.merged, fmt.Sprintf("bin/copy%d", i)), data, 0o755))
	}
	h, err := e.Arm(context.Background(), b.target(), MakePlan([]policy.Probe{symbols("leaf")}, many{b.upper, n, &Inspector{}}, Host()))
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	for _, s := range h.Sites {
		if !s.Armed {
			t.Fatalf("%+v", s)
		}
	}
	return b, h
}

// A container that has many files of its own written at once does not make another
// wait: past /proc/sys/fs/lease-break-time the kernel would let that one write a file
// that is still probed.
func TestGuardIsNobodysAlone(t *testing.T) {
	e := newEngine(t, bpf.Options{}, Config{})
	a, ofA := withOwn(t, e, 12)
	b, _ := withOwn(t, e, 1)
	ctx, stop := context.WithCancel(context.Background())
	guarded := make(chan error, 1)
	go func() { guarded <- e.Guard(ctx) }()
	defer func() {
		stop()
		must(t, <-guarded)
	}()
	slow := ofA.held[3].file // it takes as long as detaching from it may
	slow.mu.Lock()
	defer slow.mu.Unlock()
	for i := range ofA.held {
		f, err := os.OpenFile(filepath.Join(a.merged, fmt.Sprintf("bin/copy%d", i)), os.O_WRONLY|unix.O_NONBLOCK, 0)
		if err == nil {
			must(t, f.Close())
		} else if !errors.Is(err, unix.EWOULDBLOCK) {
			t.Fatal(err)
		}
	}
	waitFor(t, "probe.(*sharedFile).detach(")
	opened := make(chan error, 1)
	go func() {
		f, err := os.OpenFile(filepath.Join(b.merged, "bin/copy0"), os.O_WRONLY, 0)
		opened <- errors.Join(err, f.Close())
	}()
	select {
	case err := <-opened:
		must(t, err)
	case <-time.After(20 * time.Second): // less than the kernel waits
		t.Error("it waits for the other container's files")
	}
}

// A container makes as many files that are refused as it likes.
func TestRefusedAreForgotten(t *testing.T) {
	site := func(i int, armed bool) Site {
		return Site{Armed: armed, ID: uint32(i), Planned: &Planned{Probe: &policy.Probe{ID: "p"}}}
	}
	start := []Site{site(0, true), site(1, false)}
	h := &Handle{Sites: start}
	for i := range 5 * maxRefused {
		h.remember([]Site{site(i, i%1000 == 0), site(i, false)})
	}
	armed := 0
	for i := range h.Sites {
		if h.Sites[i].Armed {
			armed++
		}
	}
	if len(h.Sites) > maxRefused+armed+len(start) || armed != 1+(5*maxRefused+999)/1000 {
		t.Errorf("%d sites, %d of them armed", len(h.Sites), armed)
	}
	if last := h.Sites[len(h.Sites)-1]; last.ID != 5*maxRefused-1 || &start[0] == &h.Sites[0] || h.Sites[1].ID != 1 || !start[0].Armed {
		t.Errorf("the last is %d", last.ID)
	}
}
