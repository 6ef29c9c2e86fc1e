package spool_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"probity/evidence"
	"probity/evidence/redact"
	"probity/evidence/sign"
	"probity/evidence/spool"
	"probity/evidence/verify"
	"probity/tests/need"
	"probity/tests/schemas"
)

const bootID = "5b1a7f9e-3c0d-4e2a-9b8c-7d6e5f4a3b2c"

func TestMain(m *testing.M) {
	if dir := os.Getenv("SPOOL_TEST_PUBLISH"); dir != "" {
		publishForEver(dir)
	}
	if dir := os.Getenv("SPOOL_TEST_KEEP"); dir != "" {
		from, err := strconv.Atoi(os.Getenv("SPOOL_TEST_FROM"))
		if err != nil {
			panic(err)
		}
		keepForEver(dir, from)
	}
	if dir := os.Getenv("SPOOL_TEST_SCRIPT"); dir != "" {
		script(dir)
		return
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(exit int) { os.Exit(schemas.Done("evidence/spool", false, exit)) }))
}

// bootClock counts up by itself: nothing here depends on how fast time goes.
func bootClock() func() evidence.Clock {
	var mu sync.Mutex
	boot := int64(1e12)
	return func() evidence.Clock {
		mu.Lock()
		defer mu.Unlock()
		boot += 1e6
		return evidence.Clock{BootNs: evidence.Uint64(boot), Wall: evidence.TimeOf(time.Unix(1_700_000_000, boot))}
	}
}

type node struct {
	dir    string
	signer *sign.Signer
	cfg    spool.Config
	lost   bool // its log, on purpose
}

func newNode(t testing.TB) *node {
	t.Helper()
	return nodeIn(t, t.TempDir())
}

func nodeIn(t testing.TB, dir string) *node {
	t.Helper()
	s, err := sign.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	return &node{dir: dir, signer: s, cfg: spool.Config{
		Dir: filepath.Join(dir, "spool"), State: filepath.Join(dir, "state"), Node: "node-a", BootID: bootID, Agent: "probity test", Signer: s, Clock: bootClock(),
	}}
}

func (n *node) open(t testing.TB) *spool.Spool {
	t.Helper()
	s, err := spool.Open(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func (n *node) verify(t testing.TB) verify.Report {
	t.Helper()
	rep, err := verify.Path(t.Context(), []string{n.cfg.Dir}, n.signer.Public(), verify.Options{})
	if err != nil || !rep.Sound() {
		t.Fatalf("%v %v", rep.Findings, err)
	}
	n.logged(t, false)
	return rep
}

func (n *node) ready(t testing.TB) (names []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(n.cfg.Dir, spool.ReadyDir), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			names = append(names, strings.TrimSuffix(e.Name(), ".ndjson"))
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

func runID(i int) string { return fmt.Sprintf("%032x", i) }

// noRules redacts nothing.
var noRules *redact.Redactor

// coverage returns a builder of one coverage line.
func coverage(run int, final bool) func(evidence.Clock) []redact.Line {
	return func(c evidence.Clock) []redact.Line {
		return noRules.Lines(&evidence.Coverage{
			RunID: runID(run), ContainerID: fmt.Sprintf("container-%d", run), Runtime: "podman", ImageDigestReason: "no image", BootID: bootID,
			CgroupID: 7, Attribution: "cgroup", Source: "hook", From: c.Time(int64(c.BootNs) - 100), To: c.Time(int64(c.BootNs)), Final: final,
		})
	}
}

// sites returns a builder of n observation lines with a text of size bytes each.
func sites(run, n, size int) func(evidence.Clock) []redact.Line {
	return func(c evidence.Clock) []redact.Line {
		var lines []redact.Line
		for i := range n {
			off, zero := evidence.Uint64(i), evidence.Uint64(0)
			lines = append(lines, noRules.Line(&evidence.Observation{
				State: evidence.ArmedNoHit, ProbeType: evidence.Uprobe, RequestedProbeType: evidence.Uprobe, RunID: runID(run), ContainerID: fmt.Sprintf("container-%d", run),
				Runtime: "podman", ImageDigestReason: "no image", ProbeID: "p", Offset: &off, Path: "/" + strings.Repeat("x", size), Detail: "no digest in this test", Count: &zero,
				Confidence: evidence.Confidence{Version: "test", Inputs: evidence.Inputs{ProbeType: "uprobe", Attribution: "cgroup", Symbol: "offset", Losses: "none"}},
				Complete:   true, From: c.Time(int64(c.BootNs) - 100), To: c.Time(int64(c.BootNs)),
			}))
		}
		return lines
	}
}

func TestFlush(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	for i := range 3 {
		if err := s.Append(runID(1), coverage(1, i == 2)); err != nil {
			t.Fatal(err)
		}
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if rep := n.verify(t); rep.Chunks != 3 || rep.Lines != 3 || rep.Runs != 1 || len(rep.Holes) != 0 {
		t.Fatalf("%+v", rep)
	}
	if err := s.Flush(t.Context()); err != nil || len(n.ready(t)) != 3 {
		t.Fatalf("flushing nothing: %v, %v", err, n.ready(t))
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if err := s.Append("", coverage(1, false)); !errors.Is(err, spool.ErrClosed) {
		t.Fatal(err)
	}
	// The numbers go on without a hole after a clean end, also when the
	// shipper has taken everything away.
	if err := os.RemoveAll(filepath.Join(n.cfg.Dir, spool.ReadyDir)); err != nil {
		t.Fatal(err)
	}
	s = n.open(t)
	if err := errors.Join(s.Append(runID(1), coverage(1, false)), s.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	if names := n.ready(t); len(names) != 1 || !strings.HasPrefix(names[0], "0000000000000004-") {
		t.Fatal(names)
	}
}

// A chunk closes 500 ms after its first line, and at once at the end of a run.
func TestCloses(t *testing.T) {
	n := newNode(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := spool.Open(n.cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		if err := s.Append(runID(1), coverage(1, false)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		<-time.After(evidence.MaxWaitNs - time.Millisecond) // the bubble's clock, which no machine slows down
		synctest.Wait()
		if names := n.ready(t); len(names) != 0 {
			t.Fatalf("published early: %v", names)
		}
		<-time.After(2 * time.Millisecond)
		synctest.Wait()
		if names := n.ready(t); len(names) != 1 {
			t.Fatalf("not published after 500 ms: %v", names)
		}
		if err := s.Append(runID(1), coverage(1, true)); err != nil {
			t.Fatal(err)
		}
		s.Seal()
		synctest.Wait()
		if names := n.ready(t); len(names) != 2 {
			t.Fatalf("not published at the end of a run: %v", names)
		}
		if err := s.Append(runID(2), coverage(2, false)); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := errors.Join(<-done, s.Close()); err != nil {
			t.Fatal(err)
		}
	})
	if rep := n.verify(t); rep.Chunks != 3 {
		t.Fatalf("%+v", rep)
	}
}

func TestBounds(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	for i := range 40 { // more runs than a chunk has
		if err := s.Append(runID(i+1), coverage(i+1, false)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Append(runID(1), sites(1, 2500, 4000)); err != nil { // more than 8 MiB in one call
		t.Fatal(err)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	rep := n.verify(t)
	if rep.Lines != 2540 || rep.Runs != 40 || len(rep.Rows) != 2500 || rep.Chunks < 3 {
		t.Fatalf("%d lines, %d runs, %d rows in %d chunks", rep.Lines, rep.Runs, len(rep.Rows), rep.Chunks)
	}
}

// 32 runs of 32 images with names of the greatest length: the envelope line
// would be too long, so the chunk closes earlier.
func TestLongImageNames(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	for i := range 32 {
		err := s.Append(runID(i+1), func(c evidence.Clock) []redact.Line {
			l := coverage(i+1, false)(c)
			v := l[0].Evidence().(*evidence.Coverage)
			v.Image, v.ImageDigest, v.ImageDigestReason = strings.Repeat("\x01", 1024), fmt.Sprintf("sha256:%064x", i), ""
			return l
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rep := n.verify(t); rep.Lines != 32 || rep.Chunks < 2 {
		t.Fatalf("%+v", rep)
	}
}

// All of a call's lines are taken, or none.
func TestAppendRefuses(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	for why, build := range map[string]func(evidence.Clock) []redact.Line{
		"the line of another run": coverage(2, false),
		"a line that breaks a rule": func(c evidence.Clock) []redact.Line {
			l := append(coverage(1, false)(c), coverage(1, false)(c)...)
			l[1].Evidence().(*evidence.Coverage).Runtime = "lxc"
			return l
		},
		"a line that no redactor has seen": func(c evidence.Clock) []redact.Line { return []redact.Line{{}} },
		"an entry that none has seen":      func(c evidence.Clock) []redact.Line { return noRules.Lines(entries(1, 0, 1)(c)[0].Evidence()) },
		"a line that is too long": func(c evidence.Clock) []redact.Line {
			l := append(coverage(1, false)(c), sites(1, 1, 40_000)(c)...)
			return l
		},
	} {
		if err := s.Append(runID(1), build); err == nil {
			t.Errorf("%s is taken", why)
		}
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if names := n.ready(t); len(names) != 0 {
		t.Fatalf("something was published: %v", names)
	}
}

// A builder may note what it handed out: it is called once, also when its lines
// are spread over chunks, and their times fit every header they are under.
func TestBuildIsCalledOnce(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	if err := s.Append(runID(1), coverage(1, false)); err != nil {
		t.Fatal(err)
	}
	calls := 0
	err := s.Append(runID(1), func(c evidence.Clock) []redact.Line { calls++; return sites(1, 2500, 4000)(c) })
	if err != nil || calls != 1 {
		t.Fatalf("%d calls, %v", calls, err)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	rep := n.verify(t)
	if rep.Chunks != 2 || len(rep.Rows) != 2500 {
		t.Fatalf("%d chunks, %d rows", rep.Chunks, len(rep.Rows))
	}
	for _, r := range rep.Rows {
		if r.To != rep.Rows[0].To {
			t.Fatal("one instant has two times")
		}
	}
}

func TestOneAgentAtATime(t *testing.T) {
	n := newNode(t)
	n.open(t)
	if _, err := spool.Open(n.cfg); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Fatal(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct{ why, file, content, err string }{
		{"seq is no number", "seq", "seven\n", "not a sequence number"},
		{"seq was cut off", "seq", "7", "want one line"},
		{"instance is no name", "instance", "x\n", "not 16 hex digits"},
		{"instance is empty", "instance", "", "want one line"},
	} {
		n := newNode(t)
		if err := errors.Join(os.MkdirAll(n.cfg.State, 0o755), os.WriteFile(filepath.Join(n.cfg.State, c.file), []byte(c.content), 0o644)); err != nil {
			t.Fatal(err)
		}
		if _, err := spool.Open(n.cfg); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v", c.why, err)
		}
	}
	n := newNode(t)
	n.cfg.Node = strings.Repeat("n", 2000)
	if _, err := spool.Open(n.cfg); err == nil {
		t.Error("a node's name that fits no header is taken")
	}
}

// A lost state directory begins a new instance above the old numbers.
func TestStateLost(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	if err := errors.Join(s.Append(runID(1), coverage(1, true)), s.Close(), os.RemoveAll(n.cfg.State)); err != nil {
		t.Fatal(err)
	}
	s = n.open(t)
	if err := errors.Join(s.Append(runID(1), coverage(1, true)), s.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	names := n.ready(t)
	if len(names) != 2 || names[1][:16] != "0000000000000002" || names[0][17:] == names[1][17:] {
		t.Fatal(names)
	}
	n.verify(t)
}

// A state directory that lost only the numbers cannot go on with the instance:
// the shipper may have its chunks.
func TestSeqLost(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	if err := errors.Join(s.Append(runID(1), coverage(1, true)), s.Close()); err != nil {
		t.Fatal(err)
	}
	before := n.ready(t)
	if err := errors.Join(os.Remove(filepath.Join(n.cfg.State, "seq")), os.RemoveAll(filepath.Join(n.cfg.Dir, spool.ReadyDir))); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the new instance is kept
		s = n.open(t)
		if err := errors.Join(s.Append(runID(1), coverage(1, true)), s.Close()); err != nil {
			t.Fatal(err)
		}
	}
	after := n.ready(t)
	if len(after) != 2 || after[0][17:] == before[0][17:] || after[0][17:] != after[1][17:] {
		t.Fatalf("%v, then %v", before, after)
	}
}

// Something that is no file, or not ours, stands under the chunk's name: that chunk
// is given up and signed for, and those behind it are written.
func TestNameIsTaken(t *testing.T) {
	for why, make := range map[string]func(string) error{
		"a directory": func(p string) error { return os.Mkdir(p, 0o755) },
		"a link":      func(p string) error { return os.Symlink("/nowhere", p) },
		"a FIFO":      func(p string) error { return unix.Mkfifo(p, 0o644) },
		"a file":      func(p string) error { return os.WriteFile(p, []byte("x"), 0o644) },
	} {
		t.Run(why, func(t *testing.T) {
			n := newNode(t)
			s := n.open(t)
			if err := errors.Join(s.Append(runID(1), coverage(1, true)), s.Flush(t.Context())); err != nil {
				t.Fatal(err)
			}
			_, instance, _ := evidence.ParseChunkName(n.ready(t)[0])
			taken := filepath.Join(n.cfg.Dir, spool.ReadyDir, filepath.FromSlash(evidence.ChunkPath(evidence.ChunkName(2, instance))))
			if err := make(taken); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // one attempt each
			for i := range 2 {
				if err := s.Append(runID(i+2), coverage(i+2, true)); err != nil {
					t.Fatal(err)
				}
				if err := s.Flush(ctx); err != nil {
					t.Error(err)
				}
			}
			if err := os.RemoveAll(taken); err != nil {
				t.Fatal(err)
			}
			rep := n.verify(t)
			if rep.Runs != 3 || len(rep.Gaps) != 2 || rep.Gaps[0].Reason != evidence.GapSpoolDropped {
				t.Fatalf("%d runs, gaps %+v", rep.Runs, rep.Gaps)
			}
		})
	}
}

// A spool that cannot be written keeps what fits in memory, drops the oldest
// whole chunks past the bound, and signs how much that was.
func TestDrops(t *testing.T) {
	n := newNode(t)
	n.cfg.MaxPending = 100_000
	var lost []string
	n.cfg.Dropped = func(runs []string) { lost = append(lost, runs...) }
	s := n.open(t)
	tmp := filepath.Join(n.cfg.Dir, "tmp")
	if err := errors.Join(os.Remove(tmp), os.WriteFile(tmp, nil, 0o644)); err != nil { // no directory: every write fails, for root too
		t.Fatal(err)
	}
	const chunks, perChunk = 30, 10
	for i := range chunks {
		if err := s.Append(runID(i+1), sites(i+1, perChunk, 1000)); err != nil {
			t.Fatal(err)
		}
		s.Seal()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Flush(ctx); err == nil {
			t.Fatal("a spool that cannot be written is flushed")
		}
	}
	if names := n.ready(t); len(names) != 0 {
		t.Fatal(names)
	}
	if err := errors.Join(os.Remove(tmp), s.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	rep := n.verify(t)
	kept := len(rep.Rows)
	var node, runs uint64
	for _, g := range rep.Gaps {
		if g.Reason != evidence.GapSpoolDropped || g.To.IsZero() {
			t.Fatalf("%+v", g)
		}
		switch g.Scope {
		case evidence.ScopeNode:
			node += g.Count.N
		case evidence.ScopeRun:
			runs += g.Count.N
		}
	}
	if kept == 0 || node == 0 || int(node)+kept != chunks*perChunk || runs != node {
		t.Fatalf("%d lines kept, %d dropped by the node's gap, %d by the runs', of %d", kept, node, runs, chunks*perChunk)
	}
	if len(lost)*perChunk != int(node) {
		t.Fatalf("told of %d runs", len(lost))
	}
}

// The gap itself can be dropped; its facts come back.
func TestDropOfDrops(t *testing.T) {
	n := newNode(t)
	n.cfg.MaxPending = 40_000
	s := n.open(t)
	tmp := filepath.Join(n.cfg.Dir, "tmp")
	flush := func() error {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		return s.Flush(ctx)
	}
	total := 0
	for round := range 6 {
		if err := errors.Join(os.RemoveAll(tmp), os.WriteFile(tmp, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			run := round*10 + i + 1
			if err := s.Append(runID(run), sites(run, 10, 1000)); err != nil {
				t.Fatal(err)
			}
			total += 10
			if flush() == nil {
				t.Fatal("flushed")
			}
		}
		if round%2 == 0 {
			continue // still broken in the next round
		}
		if err := errors.Join(os.Remove(tmp), flush()); err != nil {
			t.Fatal(err)
		}
	}
	rep := n.verify(t)
	dropped := 0
	for _, g := range rep.Gaps {
		if g.Scope == evidence.ScopeNode {
			dropped += int(g.Count.N)
		}
	}
	if dropped+len(rep.Rows) != total {
		t.Fatalf("%d dropped and %d kept of %d lines", dropped, len(rep.Rows), total)
	}
}

// mountTmpfs mounts a small file system, for a test that runs as root.
func mountTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	need.Root(t)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatalf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

func TestFullDisk(t *testing.T) {
	n := newNode(t)
	mountTmpfs(t, n.cfg.Dir, "size=256k")
	n.cfg.MaxPending = 400_000
	s := n.open(t)
	var err error
	written := 0
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for written = 1; err == nil && written < 1000; written++ {
		if err := s.Append(runID(written), sites(written, 10, 2000)); err != nil {
			t.Fatal(err)
		}
		err = s.Flush(ctx)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("want a full disk, got %v", err)
	}
	full := n.ready(t)
	if rep := n.verify(t); rep.Chunks != len(full) {
		t.Fatal("something half-written is visible")
	}
	if err := s.Append(runID(5000), coverage(5000, true)); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(ctx); err == nil {
		t.Fatal("flushed to a full disk")
	}
	if err := unix.Mount("tmpfs", n.cfg.Dir, "tmpfs", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rep := n.verify(t); rep.Runs != written || len(rep.Gaps) != 0 {
		t.Fatalf("%d of %d runs, gaps %v", rep.Runs, written, rep.Gaps)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestReadOnlyDisk(t *testing.T) {
	n := newNode(t)
	mountTmpfs(t, n.cfg.Dir, "size=8m")
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("tmpfs", n.cfg.Dir, "tmpfs", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	s := n.open(t) // opens all the same
	if err := s.Append(runID(1), coverage(1, true)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Flush(ctx); !errors.Is(err, unix.EROFS) {
		t.Fatalf("want a read-only file system, got %v", err)
	}
	remount(0)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rep := n.verify(t); rep.Runs != 1 || len(rep.Gaps) != 0 {
		t.Fatalf("%+v", rep)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// publishForEver is the child of TestKill: it appends and publishes until it is
// killed, and says which sequence number is durable.
func publishForEver(dir string) {
	s, err := sign.LoadOrCreate(dir)
	if err != nil {
		panic(err)
	}
	sp, err := spool.Open(spool.Config{Dir: filepath.Join(dir, "spool"), State: filepath.Join(dir, "state"), Node: "node-a", BootID: bootID, Signer: s, Clock: bootClock()})
	if err != nil {
		panic(err)
	}
	for i := 1; ; i++ {
		if err := errors.Join(sp.Append(runID(i), sites(i, 20, 3000)), sp.Flush(context.Background())); err != nil {
			panic(err)
		}
		fmt.Println(i)
	}
}

// kill -9 at any moment: at every moment everything that is visible is whole,
// what was said to be durable is there, and no number is used again.
func TestKill(t *testing.T) {
	n := newNode(t)
	durable := 0
	for round := range 8 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "SPOOL_TEST_PUBLISH="+n.dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for range 3 + round { // it is in the middle of the next one then
			if !lines.Scan() {
				t.Fatal("the child ended")
			}
			durable++
			if round%3 == 0 {
				n.verify(t) // while it writes
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			durable++
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the child was not killed")
		}
		rep := n.verify(t)
		if rep.Chunks < durable || rep.Chunks > durable+round+1 {
			t.Fatalf("round %d: %d chunks, %d were durable", round, rep.Chunks, durable)
		}
	}
	before := n.ready(t)
	s := n.open(t)
	if left, err := os.ReadDir(filepath.Join(n.cfg.Dir, "tmp")); err != nil || len(left) > 0 {
		t.Fatalf("left in tmp: %v, %v", left, err)
	}
	if err := errors.Join(s.Append(runID(1), coverage(1, true)), s.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	if after := n.ready(t); len(after) != len(before)+1 || after[len(after)-1] <= before[len(before)-1] {
		t.Fatalf("a number was used again: %v", after)
	}
	n.verify(t)
	n.logged(t, true)
	starts := n.logs(t)[0].epochs()
	if starts[0] != "first" || len(starts) != 9 || slices.ContainsFunc(starts[1:], func(s string) bool { return s != "unclean" }) {
		t.Errorf("epochs of agents that were killed: %v", starts)
	}
}

func TestConcurrent(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 25 {
				run := w*100 + i + 1
				if err := s.Append(runID(run), coverage(run, true)); err != nil {
					t.Error(err)
				}
				if i%5 == 0 {
					s.Seal()
				}
				if i%11 == 0 {
					if err := s.Flush(ctx); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	cancel()
	if err := errors.Join(<-done, s.Close()); err != nil {
		t.Fatal(err)
	}
	if rep := n.verify(t); rep.Runs != 100 || rep.Lines != 100 {
		t.Fatalf("%+v", rep)
	}
}
