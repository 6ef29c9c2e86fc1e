package probe

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"probity/bpf"
	"probity/evidence"
	"probity/runtime/cgroup"
)

// Of what containers share, a round believes one proof. What happened behind it is
// found by the next round at the latest, and begins with the proof and not with the
// check that believed it.
func TestRound(t *testing.T) {
	lost := func(t *testing.T, h *Handle, _ string) {
		for _, l := range h.held[0].file.att.links {
			must(t, l.Close())
		}
	}
	for name, c := range map[string]struct {
		harm func(t *testing.T, h *Handle, lower string)
		want evidence.GapReason
	}{
		"links lost": {lost, evidence.GapLinkLost},
		"file written": {func(t *testing.T, _ *Handle, lower string) {
			must(t, os.Chtimes(filepath.Join(lower, "bin/target"), time.Now(), time.Now()))
		}, evidence.GapFileChanged},
	} {
		t.Run(name, func(t *testing.T) {
			lower := newLower(t)
			e := newEngine(t, bpf.Options{}, Config{})
			var all []*Handle
			for range 3 {
				all = append(all, newBox(t, lower).arm(e, symbols("hello")))
			}
			first := cgroup.BootTime()
			for _, h := range all[:2] {
				if tr := h.CheckAsOf(first); len(tr) != 0 {
					t.Fatalf("before: %+v", tr)
				}
			}
			c.harm(t, all[0], lower)
			harmed := cgroup.BootTime()
			if tr := all[2].CheckAsOf(first); len(tr) != 0 {
				t.Fatalf("the proof of this round was not believed: %+v", tr)
			}
			next := cgroup.BootTime() // until then it was not known, and nobody was told
			for i, h := range all {
				tr := h.CheckAsOf(next)
				if len(tr) != 1 || tr[0].Reason != c.want || tr[0].Path != "/bin/target" {
					t.Fatalf("container %d in the next round: %+v", i, tr)
				}
				if s := tr[0].Since; s == 0 || s > harmed {
					t.Errorf("container %d: the gap begins at %d, the harm was done by %d", i, s, harmed)
				}
			}
		})
	}
}

// Who is not believed is asked: Check takes no proof of before.
func TestCheckProvesNow(t *testing.T) {
	lower := newLower(t)
	e := newEngine(t, bpf.Options{}, Config{})
	h, other := newBox(t, lower).arm(e, symbols("hello")), newBox(t, lower).arm(e, symbols("hello"))
	if tr := other.Check(); len(tr) != 0 {
		t.Fatalf("before: %+v", tr)
	}
	for _, l := range h.held[0].file.att.links {
		must(t, l.Close())
	}
	if tr := h.Check(); len(tr) != 1 || tr[0].Reason != evidence.GapLinkLost {
		t.Errorf("troubles %+v", tr)
	}
}

// A proof is of what was attached then: links that were made since are proven
// themselves.
func TestProofEndsWithTheLinks(t *testing.T) {
	for name, attach := range map[string]func(t *testing.T, e *Engine, h *Handle){
		"made again": func(t *testing.T, e *Engine, h *Handle) {
			f := h.held[0].file
			f.rest(e, []*Handle{h})
			must(t, f.attachAgain(e, &h.held[0]))
		},
		"one more": func(t *testing.T, e *Engine, h *Handle) {
			f := h.held[0].file
			f.mu.Lock()
			defer f.mu.Unlock()
			f.att.refused[f.points[1].place] = refusal{evidence.AttachFailed, "no memory"}
			f.again(e.obj, openFile(t, h.Sites[0]))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, newLower(t))
			e := newEngine(t, bpf.Options{}, Config{})
			h := b.arm(e, symbols("hello", "goodbye"))
			round := cgroup.BootTime()
			if tr := h.CheckAsOf(round); len(tr) != 0 {
				t.Fatalf("before: %+v", tr)
			}
			attach(t, e, h)
			for _, l := range h.held[0].file.att.links {
				must(t, l.Close())
			}
			if tr := h.CheckAsOf(round); len(tr) != 1 || tr[0].Reason != evidence.GapLinkLost {
				t.Errorf("troubles %+v", tr)
			}
		})
	}
}

// A file that several probes and sites have is looked for once in the upper
// directory, and found there all the same.
func TestCopyUpOfManySites(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, symbols("hello", "goodbye"), symbols("goodbye"))
	must(t, os.Chmod(filepath.Join(b.merged, "bin/target"), 0o700))
	if tr := h.Check(); len(tr) != 1 || tr[0].Reason != evidence.GapFileChanged {
		t.Errorf("troubles %+v", tr)
	}
}
