package probe

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/bpf/symbol"
	"probity/evidence"
	"probity/runtime/image"
)

// A root file system that nothing may be executed from cannot be proven: its
// sites say so, and the health check that comes later finds nothing to check.
func TestAttachFailedOnNoexecRoot(t *testing.T) {
	b := newBox(t, newLower(t))
	must(t, unix.Mount("", b.merged, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOEXEC, ""))
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, symbols("hello", "goodbye"))
	for _, s := range h.Sites {
		if s.Armed || s.Reason != evidence.AttachFailed || s.Detail == "" {
			t.Errorf("%s: armed %v, %s %s", s.Symbol, s.Armed, s.Reason, s.Detail)
		}
	}
	if tr := h.Check(); len(tr) != 0 {
		t.Errorf("troubles of what was never armed: %v", tr)
	}
	if _, err := e.obj.Slot(b.id, 1); err == nil {
		t.Error("its counters are still there")
	}
	// The same inode through a root that may be executed from is armed.
	other := newBox(t, b.lower)
	h = other.arm(e, symbols("hello"))
	other.run(nil, "hello")
	if c := counts(t, h); c["hello"] != 1 {
		t.Errorf("the other container: %v, %+v", c, h.Sites)
	}
}

// links is a tree in which one inode has two names.
type links struct{ tree }

func (f links) Glob(string) ([]image.Match, bool, string) {
	at := func(rel string) image.Match {
		return image.Match{Path: "/" + rel, Layer: image.Layer{Dir: f.lower}, Rel: rel, Kind: "regular", Origin: "imageLayer"}
	}
	return []image.Match{at("bin/other"), at("bin/target")}, true, ""
}

// Two names of one inode are both armed, by one set of links, and what happens
// to the links happens to both names.
func TestHardLinks(t *testing.T) {
	for name, o := range rungs {
		t.Run(name, func(t *testing.T) {
			lower := newLower(t)
			must(t, os.Link(lower+"/bin/target", lower+"/bin/other"))
			b := newBox(t, lower)
			e := newEngine(t, o, Config{})
			h, err := e.Arm(context.Background(), b.target(), MakePlan([]policy.Probe{symbols("hello")}, links{tree{lower, &Inspector{}}}, Host()))
			must(t, err)
			defer h.Close()
			b.run(nil, "hello")
			for _, s := range h.Sites {
				if !s.Armed {
					t.Fatalf("%s: %s %s", s.File.Match.Path, s.Reason, s.Detail)
				}
				if c, err := h.Counter(s); err != nil || c.Count != 1 {
					t.Errorf("%s: %+v, %v", s.File.Match.Path, c, err)
				}
			}
			if st := e.Stats(); st.Files != 1 {
				t.Errorf("%d attachments for one inode", st.Files)
			}
			must(t, h.held[0].file.att.close())
			tr := h.Check()
			if len(tr) != 2 || tr[0].Path == tr[1].Path || tr[0].Reason != evidence.GapLinkLost || tr[1].Reason != evidence.GapLinkLost {
				t.Errorf("with the links gone: %v", tr)
			}
			must(t, h.Close())
			e.reap(math.MaxInt64)
			if e.Stats().Files != 0 {
				t.Error("references are left")
			}
		})
	}
}

// upper is a tree whose file was copied up by an earlier life of the container.
type upper struct {
	dir string
	*Inspector
}

func (f upper) Glob(string) ([]image.Match, bool, string) {
	return []image.Match{{Path: "/bin/target", Layer: image.Layer{Dir: f.dir}, Rel: "bin/target", Kind: "regular", Origin: image.FromUpper}}, true, ""
}

// The container's own file is armed where it is, and it is the container's to
// change: whatever it does to it is found.
func TestUpperFileChanges(t *testing.T) {
	for name, do := range map[string]func(string) error{
		"write in place": func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte{0}, 8)
			return errors.Join(err, f.Close())
		},
		"replace": func(p string) error {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			return errors.Join(os.WriteFile(p+".new", b, 0o755), os.Rename(p+".new", p))
		},
		"remove": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, newLower(t))
			p := filepath.Join(b.merged, "bin/target")
			must(t, os.Chmod(p, 0o700)) // copies it up
			e := newEngine(t, bpf.Options{}, Config{})
			h, err := e.Arm(context.Background(), b.target(), MakePlan([]policy.Probe{symbols("hello")}, upper{b.upper, &Inspector{}}, Host()))
			must(t, err)
			defer h.Close()
			if tr := h.Check(); !h.Sites[0].Armed || len(tr) != 0 {
				t.Fatalf("before: %+v, %v", h.Sites[0], tr)
			}
			// Nobody guards here: what the kernel does after lease-break-time (45 s)
			// is done at once.
			must(t, e.leases.drop(h.held[0].lease))
			must(t, do(p))
			if tr := h.Check(); len(tr) != 1 || tr[0].Reason != evidence.GapFileChanged || tr[0].Path != "/bin/target" {
				t.Fatalf("after: %v", tr)
			}
		})
	}
}

// A file that changed between being read and being armed has its symbols
// elsewhere now: nothing is claimed of it.
func TestChangedBeforeArm(t *testing.T) {
	b := newBox(t, newLower(t))
	plan := b.plan(symbols("hello"))
	f, err := os.OpenFile(b.lower+"/bin/target", os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString("x")
	must(t, errors.Join(err, f.Close()))
	e := newEngine(t, bpf.Options{}, Config{})
	h, err := e.Arm(context.Background(), b.target(), plan)
	must(t, err)
	defer h.Close()
	if s := h.Sites[0]; s.Armed || s.Reason != evidence.AttachFailed || !strings.Contains(s.Detail, "changed") {
		t.Errorf("armed %v, %s %s", s.Armed, s.Reason, s.Detail)
	}
	if _, err := plan.Sites[0].File.Digest(); err == nil {
		t.Error("a digest of other bytes than were read")
	}
}

// Where the depth below the root is not known, every depth is looked at.
func TestAnyLevel(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	b.level = AnyLevel
	h := b.arm(e, symbols("hello"), policy.Probe{ID: "exec", Type: "tracepoint", Event: policy.ProcessExec})
	b.run(nil, "hello")
	if c := counts(t, h); c["hello"] != 1 || c[""] != 1 {
		t.Errorf("%v", c)
	}
}

// A second container in the same cgroup cannot be told from the first.
func TestOneCgroupTwice(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, symbols("hello"))
	if _, err := e.Arm(context.Background(), b.target(), b.plan(symbols("hello"))); !errors.Is(err, bpf.ErrTaken) {
		t.Fatalf("%v", err)
	}
	b.run(nil, "hello")
	if c := counts(t, h); c["hello"] != 1 {
		t.Errorf("the first: %v", c)
	}
}

// An agent that stops does not go on to attach.
func TestArmWithoutTime(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	h, err := e.Arm(ctx, b.target(), b.plan(symbols("hello")))
	must(t, err)
	defer h.Close()
	if s := h.Sites[0]; s.Armed || s.Reason != evidence.AttachFailed || e.Stats().Files != 0 {
		t.Errorf("armed %v, %s, %d files", s.Armed, s.Reason, e.Stats().Files)
	}
}

// A site number is never given twice: what it counted would be another's.
func TestSiteNumbersEnd(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	e.next = math.MaxUint32 - 1
	h := b.arm(e, symbols("hello", "goodbye"))
	if s := h.Sites[0]; s.Armed || s.Reason != evidence.OverBudget {
		t.Errorf("armed %v as %d, %s", s.Armed, s.ID, s.Reason)
	}
}

func TestExecUnsupported(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{ForceNoExec: true}, Config{})
	h := b.arm(e, symbols("hello"), policy.Probe{ID: "exec", Type: "tracepoint", Event: policy.ProcessExec})
	if s := h.Sites[1]; s.Armed || s.Reason != evidence.KernelUnsupported || s.Detail == "" {
		t.Errorf("armed %v, %s %s", s.Armed, s.Reason, s.Detail)
	}
	b.run(nil, "hello")
	if c := counts(t, h); c["hello"] != 1 {
		t.Errorf("the neighbour: %v", c)
	}
}

// fixed is a tree whose one file has been read already.
type fixed struct {
	one
	facts Facts
}

func (f fixed) Inspect(image.Match, symbol.Query) (Facts, error) { return f.facts, nil }

// One Inspector serves all starts at once: a plan must not touch what it keeps.
func TestPlanLeavesFactsAlone(t *testing.T) {
	elf := &symbol.File{Machine: Host().elf, Class: 2}
	twice := []symbol.Symbol{{Name: "twice", Wanted: "twice", Offset: 2}, {Name: "twice", Wanted: "twice", Offset: 1}}
	facts := Facts{ELF: elf, Symbols: twice}
	plan := MakePlan([]policy.Probe{symbols("twice")}, fixed{facts: facts}, Host())
	if plan.Sites[0].Offset != 1 || plan.Sites[1].Offset != 2 {
		t.Errorf("not in order: %+v", plan.Sites)
	}
	if twice[0].Offset != 2 {
		t.Error("the plan sorted what others are reading")
	}
}

// What could not be attached once, for want of memory say, is tried again for
// the next container of the image.
func TestAttachAgain(t *testing.T) {
	for name, o := range rungs {
		t.Run(name, func(t *testing.T) {
			lower := newLower(t)
			one, other := newBox(t, lower), newBox(t, lower)
			e := newEngine(t, o, Config{})
			h := one.arm(e, symbols("hello"))
			file := h.held[0].file
			must(t, file.att.close())
			file.att.refused[placeOf(&h.Sites[0])] = refusal{evidence.AttachFailed, "out of memory"}
			h = other.arm(e, symbols("hello"))
			other.run(nil, "hello")
			if c := counts(t, h); c["hello"] != 1 {
				t.Errorf("%v, %+v", c, h.Sites)
			}
		})
	}
}
