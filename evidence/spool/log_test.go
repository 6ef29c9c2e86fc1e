package spool_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"probity/evidence"
	"probity/evidence/sign"
	"probity/evidence/spool"
	"probity/evidence/tlog"
	"probity/evidence/verify"
)

// kept is a log as its files prove it.
type kept struct {
	tree   tlog.Tree
	leaves []evidence.Leaf
	chunks map[string]*evidence.ChunkLeaf
}

func (k kept) epochs() (starts []string) {
	for _, l := range k.leaves {
		if e, ok := l.(*evidence.EpochLeaf); ok {
			starts = append(starts, e.Start)
		}
	}
	return starts
}

// logs reads all logs of the spool, the current one first.
func (n *node) logs(t testing.TB) []kept {
	t.Helper()
	dirs := []string{filepath.Join(n.cfg.Dir, spool.LogDir)}
	old, err := filepath.Glob(filepath.Join(n.cfg.Dir, "retired", "*"))
	if err != nil {
		t.Fatal(err)
	}
	var out []kept
	for _, dir := range append(dirs, old...) {
		r := tlog.NewReader(os.DirFS(dir))
		note, err := r.Checkpoint()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, n.audit(t, r, note))
	}
	return out
}

func (n *node) audit(t testing.TB, r *tlog.Reader, note []byte) kept {
	t.Helper()
	claim, err := tlog.Claim(note)
	if err != nil {
		t.Fatal(err)
	}
	k := kept{tree: claim, chunks: map[string]*evidence.ChunkLeaf{}}
	e := tlog.Epochs{Origin: claim.Origin, NodeKey: func(l *evidence.EpochLeaf, der, unsigned, sig []byte) error {
		p, err := sign.ParsePublic(der)
		if err != nil || p.KeyID() != n.signer.KeyID() {
			return errors.New("not the node's key")
		}
		return p.Verify(evidence.EpochType, unsigned, sig)
	}}
	if err := r.Scan(context.Background(), claim, func(i uint64, entry []byte) error {
		l, err := e.See(i, entry)
		if err != nil {
			return err
		}
		k.leaves = append(k.leaves, l)
		if c, ok := l.(*evidence.ChunkLeaf); ok {
			if k.chunks[c.Chunk] != nil {
				t.Errorf("%s is in the log twice", c.Chunk)
			}
			k.chunks[c.Chunk] = c
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	key, _ := e.KeyAt(claim.Size)
	if _, err := tlog.OpenCheckpoint(note, []string{key}, nil); err != nil {
		t.Fatal(err)
	}
	return k
}

// logged fails unless every chunk in the spool is in its log as it is. With all,
// every chunk in a log is in the spool too.
func (n *node) logged(t testing.TB, all bool) {
	t.Helper()
	names := n.ready(t) // first: the log of what is visible is there
	logs := n.logs(t)
	byOrigin := map[string]kept{}
	want := map[string]bool{}
	for _, k := range logs {
		byOrigin[k.tree.Origin] = k
		for name := range k.chunks {
			want[name] = true
		}
	}
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(n.cfg.Dir, spool.ReadyDir, filepath.FromSlash(evidence.ChunkPath(name))))
		if err != nil {
			t.Fatal(err)
		}
		first, _, _ := strings.Cut(string(b), "\n")
		h, err := evidence.DecodeHeader(first)
		if err != nil {
			t.Fatal(err)
		}
		if _, there := byOrigin[h.Log]; !there && n.lost {
			continue
		}
		leaf := byOrigin[h.Log].chunks[name]
		sum := sha256.Sum256(b)
		if leaf == nil || h.Leaf == nil || *h.Leaf != leaf.Index || leaf.Digest != "sha256:"+hex.EncodeToString(sum[:]) || int(leaf.Bytes) != len(b) {
			t.Errorf("%s is in the log as %+v, its header says leaf %v of %s", name, leaf, h.Leaf, h.Log)
		}
		delete(want, name)
	}
	if all && len(want) > 0 {
		t.Errorf("in the log and not in the spool: %v", want)
	}
}

func (n *node) publish(t testing.TB, s *spool.Spool, run int, final bool) {
	t.Helper()
	if err := errors.Join(s.Append(runID(run), coverage(run, final)), s.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// The order of leaves of agents that stop, and of one that does not.
func TestLog(t *testing.T) {
	n := newNode(t)
	for i := range 2 {
		s := n.open(t)
		n.publish(t, s, i+1, false)
		n.publish(t, s, i+1, true)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	k := n.logs(t)[0]
	var kinds []string
	for _, l := range k.leaves {
		switch l := l.(type) {
		case *evidence.EpochLeaf:
			kinds = append(kinds, l.Start)
		case *evidence.ChunkLeaf:
			kinds = append(kinds, "chunk")
		case *evidence.CloseLeaf:
			kinds = append(kinds, "close")
		}
	}
	if want := []string{"first", "chunk", "chunk", "close", "clean", "chunk", "chunk", "close"}; !slices.Equal(kinds, want) {
		t.Errorf("leaves %v, want %v", kinds, want)
	}
	n.logged(t, true)
	// An agent that had nothing to say leaves nothing in the log either.
	if err := n.open(t).Close(); err != nil || n.logs(t)[0].tree != k.tree {
		t.Errorf("the log grew by an agent that did nothing: %v", err)
	}
}

// One checkpoint covers all chunks that wait.
func TestBatch(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	for i := range 200 {
		if err := s.Append(runID(i+1), coverage(i+1, true)); err != nil {
			t.Fatal(err)
		}
		s.Seal()
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := len(n.ready(t)); got != 200 {
		t.Errorf("%d chunks", got)
	}
	n.logged(t, true)
}

// Heartbeats come each minute, over the latest coverage lines of what is live.
func TestHeartbeat(t *testing.T) {
	n := newNode(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := spool.Open(n.cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		step := func(run int, final bool) {
			if err := s.Append(runID(run), coverage(run, final)); err != nil {
				t.Fatal(err)
			}
			<-time.After(spool.DefaultHeartbeat)
			synctest.Wait()
		}
		step(1, false)
		step(2, false)
		step(1, false)
		step(1, true)
		step(2, true)
		cancel()
		if err := errors.Join(<-done, s.Close()); err != nil {
			t.Fatal(err)
		}
	})
	var live tlog.Live
	var runs []uint64
	for _, l := range n.logs(t)[0].leaves {
		switch l := l.(type) {
		case *evidence.ChunkLeaf:
			b, err := os.ReadFile(filepath.Join(n.cfg.Dir, spool.ReadyDir, filepath.FromSlash(evidence.ChunkPath(l.Chunk))))
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
			for _, s := range lines[1 : len(lines)-1] {
				line, err := evidence.Decode(s)
				if err != nil {
					t.Fatal(err)
				}
				live.See(line, []byte(s))
			}
		case *evidence.HeartbeatLeaf:
			n, root := live.Root()
			if uint64(l.Runs) != n || l.Root != root.String() {
				t.Errorf("heartbeat at leaf %d over %d runs with root %s; the lines give %d, %s", l.Index, l.Runs, l.Root, n, root)
			}
			runs = append(runs, uint64(l.Runs))
		}
	}
	if want := []uint64{1, 2, 2, 1, 0}; !slices.Equal(runs, want) {
		t.Errorf("heartbeats over %v runs, want %v", runs, want)
	}
}

func first(t testing.TB, k kept) *evidence.EpochLeaf {
	t.Helper()
	l, ok := k.leaves[0].(*evidence.EpochLeaf)
	if !ok {
		t.Fatalf("the log begins with %T", k.leaves[0])
	}
	return l
}

// However the log was lost, the next one says so, has another name, and what is
// left of the old one stays beside it.
func TestLogLost(t *testing.T) {
	for why, c := range map[string]struct {
		spoil  func(t *testing.T, dir string)
		reason string
	}{
		"removed":      {func(t *testing.T, dir string) { must(t, os.RemoveAll(dir)) }, "rolled back or removed"},
		"no more tile": {func(t *testing.T, dir string) { must(t, os.RemoveAll(filepath.Join(dir, "tile"))) }, "log is damaged"},
		"another byte": {func(t *testing.T, dir string) {
			spoilFile(t, filepath.Join(dir, "tile", "entries", "000.p", "5"), func(b []byte) []byte { b[40] ^= 1; return b })
		}, "is not what its tile says"},
		"another checkpoint": {func(t *testing.T, dir string) {
			spoilFile(t, filepath.Join(dir, tlog.CheckpointFile), func(b []byte) []byte { b[len(b)-20] ^= 1; return b })
		}, "checkpoint"},
	} {
		t.Run(why, func(t *testing.T) {
			n := newNode(t)
			s := n.open(t)
			for i := range 3 {
				n.publish(t, s, i+1, true)
			}
			must(t, s.Close())
			before, names := n.logs(t)[0], n.ready(t)
			n.lost = true
			c.spoil(t, filepath.Join(n.cfg.Dir, spool.LogDir))
			s = n.open(t)
			n.publish(t, s, 9, true)
			must(t, s.Close())
			var found []verify.Kind
			rep, err := verify.Path(t.Context(), []string{n.cfg.Dir}, n.signer.Public(), verify.Options{})
			must(t, err)
			for _, f := range rep.Findings {
				found = append(found, f.Kind)
			}
			want := []verify.Kind{verify.LogMissing, verify.LogMissing, verify.LogMissing}
			if why != "removed" {
				want = append(want, verify.LogDamaged)
			}
			if !slices.Equal(found, want) || rep.Log != verify.LogUnsound {
				t.Errorf("the verifier finds %v, want %v", rep.Findings, want)
			}
			must(t, os.RemoveAll(filepath.Join(n.cfg.Dir, "retired"))) // it is kept, and cannot be read
			after := n.logs(t)[0]
			l := first(t, after)
			if after.tree.Origin == before.tree.Origin || !strings.Contains(l.Reason, c.reason) || l.After == nil || *l.After != before.tree.Named() {
				t.Errorf("the new log begins with %+v (after %+v), the old one was %+v", l, l.After, before.tree)
			}
			if got := n.ready(t); len(got) != len(names)+1 || len(after.chunks) != 1 {
				t.Errorf("chunks %v", got)
			}
			n.logged(t, false)
		})
	}
}

// Somebody puts an older state of the spool back.
func TestRolledBack(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	n.publish(t, s, 1, true)
	must(t, s.Close())
	old := filepath.Join(n.dir, "old")
	must(t, os.CopyFS(old, os.DirFS(filepath.Join(n.cfg.Dir, spool.LogDir))))
	s = n.open(t)
	n.publish(t, s, 2, true)
	must(t, s.Close())
	before := n.logs(t)[0]
	must(t, os.RemoveAll(filepath.Join(n.cfg.Dir, spool.LogDir)))
	must(t, os.Rename(old, filepath.Join(n.cfg.Dir, spool.LogDir)))
	s = n.open(t)
	n.publish(t, s, 3, true)
	must(t, s.Close())
	l := first(t, n.logs(t)[0])
	if !strings.Contains(l.Reason, "rolled back") || l.After == nil || *l.After != before.tree.Named() {
		t.Errorf("the new log begins with %+v", l)
	}
	if got := len(n.logs(t)); got != 2 {
		t.Errorf("%d logs are kept", got)
	}
}

// A checkpoint that cannot be written leaves all as it was; then it goes on, in
// the epoch that had begun, and nothing is in the log twice.
func TestCheckpointFails(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	n.publish(t, s, 1, false)
	obstacle := filepath.Join(n.cfg.Dir, spool.LogDir, tlog.CheckpointFile+".new")
	must(t, os.MkdirAll(filepath.Join(obstacle, "x"), 0o700))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 3 {
		if err := errors.Join(s.Append(runID(i+2), coverage(i+2, true)), s.Flush(ctx)); err == nil {
			t.Fatal("flushed without a checkpoint")
		}
	}
	n.logged(t, true)
	must(t, os.RemoveAll(obstacle))
	must(t, s.Flush(t.Context()))
	must(t, s.Close())
	if k := n.logs(t)[0]; !slices.Equal(k.epochs(), []string{"first"}) || len(k.chunks) != 4 {
		t.Errorf("epochs %v, %d chunks", k.epochs(), len(k.chunks))
	}
	n.logged(t, true)
	n.verify(t)
}

// The first checkpoint fails: the epoch that was to begin with it begins with the
// next one, as the first.
func TestFirstCheckpointFails(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	obstacle := filepath.Join(n.cfg.Dir, spool.LogDir, tlog.CheckpointFile+".new")
	must(t, os.MkdirAll(filepath.Join(obstacle, "x"), 0o700))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := errors.Join(s.Append(runID(1), coverage(1, true)), s.Flush(ctx)); err == nil {
		t.Fatal("flushed without a checkpoint")
	}
	must(t, os.RemoveAll(obstacle))
	must(t, s.Flush(t.Context()))
	must(t, s.Close())
	if k := n.logs(t)[0]; !slices.Equal(k.epochs(), []string{"first"}) || len(k.chunks) != 1 {
		t.Errorf("epochs %v, %d chunks", k.epochs(), len(k.chunks))
	}
	n.logged(t, true)
}

// A chunk that is in the log and could not be published: the same process
// publishes the same bytes later, and so does the next one from tmp/.
func TestLoggedNotPublished(t *testing.T) {
	for _, again := range []bool{false, true} {
		n := newNode(t)
		s := n.open(t)
		ready := filepath.Join(n.cfg.Dir, spool.ReadyDir)
		must(t, errors.Join(os.Remove(ready), os.WriteFile(ready, nil, 0o600))) // no directory
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := errors.Join(s.Append(runID(1), coverage(1, false)), s.Flush(ctx)); err == nil {
			t.Fatal("published into a file")
		}
		if again {
			if err := s.Close(); err == nil {
				t.Fatal("closed with a chunk that is not published")
			}
		}
		must(t, os.Remove(ready))
		if again {
			s = n.open(t)
			if got := n.ready(t); len(got) != 1 {
				t.Fatalf("after the start: %v", got)
			}
		}
		n.publish(t, s, 1, true)
		must(t, s.Close())
		if k := n.logs(t)[0]; len(k.chunks) != 2 {
			t.Errorf("again %v: %d chunks in the log", again, len(k.chunks))
		}
		n.logged(t, true)
		n.verify(t)
	}
}

// What an earlier agent left in tmp/ and is not what the log says is no chunk.
func TestForeignInTmp(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	n.publish(t, s, 1, true)
	must(t, s.Close())
	name := n.ready(t)[0]
	tmp := filepath.Join(n.cfg.Dir, "tmp")
	must(t, os.WriteFile(filepath.Join(tmp, name+".ndjson"), []byte("x"), 0o600))
	must(t, os.WriteFile(filepath.Join(tmp, evidence.ChunkName(77, name[17:])+".ndjson"), []byte("x"), 0o600))
	must(t, os.MkdirAll(filepath.Join(tmp, "dir", "in"), 0o700))
	must(t, n.open(t).Close())
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if got := n.ready(t); len(got) != 1 {
		t.Errorf("published: %v", got)
	}
	n.verify(t)
}

// A log that another key opened is not gone on with.
func TestOtherNodesLog(t *testing.T) {
	n, other := newNode(t), newNode(t)
	s := n.open(t)
	n.publish(t, s, 1, true)
	must(t, s.Close())
	n.signer, n.cfg.Signer, n.lost = other.signer, other.signer, true
	s = n.open(t)
	n.publish(t, s, 2, true)
	must(t, s.Close())
	must(t, os.RemoveAll(filepath.Join(n.cfg.Dir, "retired")))
	if l := first(t, n.logs(t)[0]); !strings.Contains(l.Reason, "an epoch opened with key") {
		t.Errorf("the new log begins with %+v", l)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func spoilFile(t testing.TB, path string, how func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, how(b), 0o600))
}

// contextThatEnds is one that has ended: one attempt is made.
func contextThatEnds(t testing.TB) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx, cancel
}

// A log that cannot be read for want of descriptors is not lost: whoever has the
// log's beginning must see it go on.
func TestTooFewDescriptors(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	for i := range 3 {
		n.publish(t, s, i, true)
	}
	must(t, s.Close())
	var was unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	now := was
	now.Cur = 64
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &now))
	// Somebody takes all there are, and lets them go, again and again.
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			var taken []int
			for fd, err := unix.Dup(0); err == nil; fd, err = unix.Dup(0) {
				taken = append(taken, fd)
			}
			for _, fd := range taken {
				_ = unix.Close(fd)
			}
		}
	}()
	refused := 0
	for refused < 50 {
		s, err := spool.Open(n.cfg)
		if err == nil {
			err = s.Close()
		}
		if err != nil {
			refused++
		}
	}
	close(stop)
	<-stopped
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &was))
	s = n.open(t)
	n.publish(t, s, 3, true)
	must(t, s.Close())
	if rep := n.verify(t); rep.Runs != 4 {
		t.Errorf("%d runs of 4", rep.Runs)
	}
	if all := n.logs(t); len(all) != 1 {
		t.Errorf("%d logs, want the one that was there", len(all))
	}
}
