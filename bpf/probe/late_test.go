package probe

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/evidence"
	"probity/runtime/image"
	"probity/tests/need"
)

// copied is the tree of a box whose target is in its writable layer by now.
func (b *box) copied() upper { return upper{b.upper, &Inspector{}} }

func (b *box) add(e *Engine, h *Handle, files Files) []Site {
	b.t.Helper()
	return e.Add(context.Background(), h, b.root(), MakePlan([]policy.Probe{symbols("leaf")}, files, Host()))
}

func count(t *testing.T, h *Handle, s Site) uint64 {
	t.Helper()
	c, err := h.Counter(s)
	must(t, err)
	return c.Count
}

// A file that was copied up is armed again where it is now, and is well then.
func TestArmAgainAfterCopyUp(t *testing.T) {
	b := newWays(t)
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, symbols("leaf"))
	must(t, os.Chtimes(filepath.Join(b.merged, "bin/target"), time.Now(), time.Now()))
	b.run(nil, "call") // unseen: this is the gap
	if tr := h.Check(); len(tr) != 1 || tr[0].Reason != evidence.GapFileChanged {
		t.Fatalf("before: %+v", tr)
	}
	more := b.add(e, h, b.copied())
	if len(more) != 1 || !more[0].Armed || more[0].File.Match.Origin != image.FromUpper {
		t.Fatalf("added %+v", more)
	}
	if again := b.add(e, h, b.copied()); len(again) != 0 {
		t.Errorf("added twice: %+v", again)
	}
	if tr := h.Check(); len(tr) != 0 {
		t.Errorf("after: %+v", tr)
	}
	b.run(nil, "call")
	if got := count(t, h, more[0]); got != 1 {
		t.Errorf("the second execution: counted %d", got)
	}
	if got := count(t, h, h.Sites[0]); got != 0 {
		t.Errorf("the image's file: counted %d", got)
	}
	must(t, os.Remove(filepath.Join(b.merged, "bin/target")))
	if tr := h.Check(); len(tr) != 1 || tr[0].Reason != evidence.GapFileChanged {
		t.Errorf("removed: %+v", tr)
	}
}

// otherLeaf is the program with another leaf, that does the same by another
// instruction at the same place.
func otherLeaf(t *testing.T) []byte {
	t.Helper()
	bin, err := waysBinary()
	must(t, err)
	data, err := os.ReadFile(bin)
	must(t, err)
	at := fileOffset(t, bin, "leaf")
	now := []byte{0xb8, 0x10, 0x00, 0x00, 0x00, 0xc3} // mov $16, %eax; ret
	if runtime.GOARCH == "arm64" {
		now = []byte{0x00, 0x02, 0x80, 0x52, 0xc0, 0x03, 0x5f, 0xd6} // mov w0, #16; ret
	}
	if bytes.HasPrefix(data[at:], now[:4]) {
		t.Fatal("the compiler made the same leaf of testdata/ways.c")
	}
	copy(data[at:], now)
	return data
}

// A file that is written in place, where the container may do so, must not run
// with the instruction that was there before: the kernel would do that.
func TestWrittenInPlace(t *testing.T) {
	b := newWays(t)
	e := newEngine(t, bpf.Options{}, Config{})
	path := filepath.Join(b.merged, "bin/target")
	must(t, os.Chtimes(path, time.Now(), time.Now()))
	h, err := e.Arm(context.Background(), b.target(), MakePlan([]policy.Probe{symbols("leaf")}, b.copied(), Host()))
	must(t, err)
	defer h.Close()
	b.run(nil, "call")
	ctx, stop := context.WithCancel(context.Background())
	guarded := make(chan error, 1)
	go func() { guarded <- e.Guard(ctx) }()
	defer func() {
		stop()
		must(t, <-guarded)
	}()
	// Who opens it for writing waits until it is detached.
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	if tr := h.Check(); len(tr) != 1 || tr[0].Reason != evidence.GapLinkLost || !strings.Contains(tr[0].Detail, errWritten.Error()) {
		t.Errorf("while it is open for writing: %+v", tr)
	}
	if more := b.add(e, h, b.copied()); len(more) != 1 || more[0].Reason != evidence.AttachFailed {
		t.Errorf("while it is open for writing: %+v", more)
	}
	_, err = f.WriteAt(otherLeaf(t), 0)
	must(t, err)
	must(t, f.Close())
	b.run(nil, "call") // it fails if the old instruction is run
	more := b.add(e, h, b.copied())
	if len(more) != 1 || !more[0].Armed {
		t.Fatalf("added %+v", more)
	}
	b.run(nil, "call")
	if got := count(t, h, more[0]); got != 1 {
		t.Errorf("the new file: counted %d", got)
	}
	if got := count(t, h, h.Sites[0]); got != 1 {
		t.Errorf("the old one: counted %d", got)
	}
	if tr := h.Check(); len(tr) != 0 {
		t.Errorf("troubles: %+v", tr)
	}
}

// What a process has mapped from a tmpfs is armed, also for those that had it
// mapped before; and a memfd is told from other files without a name.
func TestArmMapped(t *testing.T) {
	need.Command(t, "gcc")
	bin, err := waysBinary()
	must(t, err)
	data, err := os.ReadFile(bin)
	must(t, err)
	for _, c := range []struct{ where, origin string }{{"tmpfs", image.FromTmpfs}, {"memfd", image.FromMemfd}} {
		t.Run(c.where, func(t *testing.T) {
			b := newWays(t)
			e := newEngine(t, bpf.Options{}, Config{})
			h := b.arm(e)
			file := filepath.Join(t.TempDir(), "copy")
			if c.where == "tmpfs" {
				dir := filepath.Dir(file)
				must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
				t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) }) // nothing holds it any more
				must(t, os.WriteFile(file, data, 0o755))
			}
			way := map[string]string{"tmpfs": "private", "memfd": "memfd"}[c.where]
			var args []string
			if c.where == "tmpfs" {
				args = []string{file}
			}
			p := b.hold(way, args...)
			got, err := h.Look(p)
			must(t, err)
			at := -1
			for i, m := range got.Other {
				if filepath.Base(m.Path) == "copy" || m.Path == "/memfd:copy" {
					at = i
				}
			}
			if at < 0 {
				t.Fatalf("not seen among %+v", got.Other)
			}
			m := got.Other[at]
			f, err := image.OpenMapped(p.Pid, p.Link(m), m.Path, m.File.Dev)
			must(t, err)
			defer func() { must(t, f.Close()) }()
			if f.Origin != c.origin {
				t.Errorf("origin %s, want %s", f.Origin, c.origin)
			}
			if c.where == "memfd" {
				return // one page of code is no ELF file
			}
			more := b.add(e, h, single{f.Match, &Inspector{}})
			if len(more) != 1 || !more[0].Armed {
				t.Fatalf("added %+v", more)
			}
			b.run(nil, "private", file)
			if got := count(t, h, more[0]); got != 1 {
				t.Errorf("the second execution: counted %d", got)
			}
			if tr := h.Check(); len(tr) != 0 {
				t.Errorf("%+v", tr)
			}
			if got, err := h.Look(p); err != nil || len(got.Troubles) != 0 {
				t.Errorf("the process that was there before: %+v, %v", got.Troubles, err)
			}
			must(t, h.Close())
		})
	}
}

// Who had a file mapped may be gone before it is armed, and the next one runs it.
func TestArmMappedOfWhoIsGone(t *testing.T) {
	b := newWays(t)
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e)
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	bin, err := waysBinary()
	must(t, err)
	data, err := os.ReadFile(bin)
	must(t, err)
	file := filepath.Join(dir, "copy")
	must(t, os.WriteFile(file, data, 0o755))
	held, err := os.OpenFile(file, unix.O_PATH, 0)
	must(t, err)
	defer held.Close()
	dev, err := image.DeviceOf(os.Getpid(), held)
	must(t, err)
	f, err := image.HoldMapped(os.Getpid(), held, file, dev)
	must(t, err)
	defer f.Close()
	more := e.Add(t.Context(), h, nil, MakePlan([]policy.Probe{symbols("leaf")}, single{f.Match, &Inspector{}}, Host()))
	if len(more) != 1 || !more[0].Armed {
		t.Fatalf("%+v", more)
	}
	b.run(nil, "private", file)
	if got := count(t, h, more[0]); got != 1 {
		t.Errorf("counted %d", got)
	}
	if sum, err := more[0].File.Digest(); err != nil || sum == "" {
		t.Errorf("its digest: %s, %v", sum, err)
	}
	must(t, errors.Join(h.Close(), f.Close()))
	// A file of the root can't be armed without the root.
	again := b.arm(e)
	defer again.Close()
	must(t, os.Chtimes(filepath.Join(b.merged, "bin/target"), time.Now(), time.Now()))
	more = e.Add(t.Context(), again, nil, MakePlan([]policy.Probe{symbols("leaf")}, b.copied(), Host()))
	if len(more) != 1 || more[0].Armed || more[0].Reason != evidence.FileUnreadable {
		t.Errorf("without a root: %+v", more)
	}
}

// single is a tree of one file.
type single struct {
	match image.Match
	*Inspector
}

func (o single) Glob(string) ([]image.Match, bool, string) { return []image.Match{o.match}, true, "" }

// A file is known as it was when it was planned, by whatever path; once it is
// changed, it is another one.
func TestKnows(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, symbols("leaf"))
	path := filepath.Join(b.merged, "bin/target")
	now := func() bpf.File {
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		return bpf.File{Device: uint64(st.Dev), Inode: st.Ino, Ctime: st.Ctim.Nano(), Size: st.Size}
	}
	if f := now(); !h.Knows(f) || h.Knows(bpf.File{}) || h.Knows(bpf.File{Inode: f.Inode, Size: f.Size}) {
		t.Errorf("%+v", f)
	}
	must(t, os.Chtimes(path, time.Now(), time.Now()))
	if f := now(); h.Knows(f) {
		t.Errorf("touched: %+v", f)
	}
}

// How many files of their own are armed is the containers' choice, and each costs
// descriptors of the agent's.
func TestOwnFilesAreBounded(t *testing.T) {
	b := newWays(t)
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, symbols("leaf"))
	path := filepath.Join(b.merged, "bin/target")
	add := func(want bool) {
		t.Helper()
		must(t, os.Chtimes(path, time.Now(), time.Now())) // another file by its time
		more := b.add(e, h, b.copied())
		if len(more) != 1 || more[0].Armed != want || !want && (more[0].Reason != evidence.OverBudget || !strings.Contains(more[0].Detail, errOwn.Error())) {
			t.Fatalf("%+v, want armed: %v", more, want)
		}
	}
	add(true)
	var others []*os.File
	for range maxOwnAll - len(e.leases.held) {
		others = append(others, new(os.File))
		e.leases.held[others[len(others)-1]] = lease{}
	}
	add(false)
	for _, f := range others {
		delete(e.leases.held, f)
	}
	add(true)
	mine := h.held
	for len(h.held) < len(mine)+maxOwn {
		h.held = append(h.held, mine[len(mine)-1])
	}
	add(false)
	h.held = mine
}

// As the last container of a volume's file ends, another may begin to use it: it
// joins what stays, or begins anew.
func TestLastEndsAsAnotherJoins(t *testing.T) {
	var dropping atomic.Bool
	e := &Engine{cfg: Config{Log: slog.New(slog.DiscardHandler)}, files: map[fileKey]*sharedFile{}}
	e.cfg.BootTime = func() int64 { // asked when the last one has gone, and nobody else can come
		dropping.Store(true)
		for range 300 {
			_ = dropping.Load()
		}
		return 1
	}
	b := &batch{file: &File{Match: image.Match{Path: "/data/lib"}}, probe: "p", sites: []*Site{{Planned: &Planned{Offset: 1, HasOffset: true}}}}
	// Where one processor does the work of two, each turn takes what the scheduler
	// gives to one of them.
	began, turn := time.Now(), 0
	for ; turn < 20000 && (turn < 100 || time.Since(began) < 20*time.Second); turn++ {
		last, err := e.take(stamp{ino: 1}, b)
		must(t, err)
		dropping.Store(false)
		var wg sync.WaitGroup
		var next *sharedFile
		wg.Go(func() {
			for !dropping.Load() {
			}
			next, err = e.take(stamp{ino: 1}, b)
		})
		e.dropMapped(last)
		wg.Wait()
		must(t, err)
		if why := next.gone(); why != nil {
			t.Fatalf("it joined what was being detached: %v", why)
		}
		e.dropMapped(next)
		if len(e.files) != 0 {
			t.Fatal("nobody has it, and it is kept")
		}
	}
	t.Logf("%d turns in %v", turn, time.Since(began))
}
