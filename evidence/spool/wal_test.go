package spool_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"probity/evidence"
	"probity/evidence/spool"
)

const otherBoot = "99999999-3c0d-4e2a-9b8c-7d6e5f4a3b2c"

// image is the node as the disk has it now: what a process that is killed at this
// moment leaves.
func (n *node) image(t testing.TB) *node {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	must(t, errors.Join(os.CopyFS(dir, os.DirFS(n.dir)), os.Chmod(filepath.Join(dir, "node.key"), 0o600)))
	after := nodeIn(t, dir)
	after.cfg.Quota, after.cfg.MaxPending = n.cfg.Quota, n.cfg.MaxPending
	return after
}

// wals lists the write-ahead files.
func (n *node) wals(t testing.TB) (names []string) {
	t.Helper()
	list, err := os.ReadDir(filepath.Join(n.cfg.State, "wal"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// runs returns the runs of the coverage lines, in the order of the chunks.
func (n *node) runs(t testing.TB) (ids []string) {
	t.Helper()
	for _, name := range n.ready(t) {
		b, err := os.ReadFile(filepath.Join(n.cfg.Dir, spool.ReadyDir, filepath.FromSlash(evidence.ChunkPath(name))))
		must(t, err)
		lines := strings.Split(string(b), "\n")
		for _, line := range lines[1 : len(lines)-2] {
			l, err := evidence.Decode(line)
			must(t, err)
			if c, ok := l.(*evidence.Coverage); ok {
				ids = append(ids, c.RunID)
			}
		}
	}
	return ids
}

func (n *node) has(t testing.TB, runs ...int) {
	t.Helper()
	var want []string
	for _, r := range runs {
		want = append(want, runID(r))
	}
	if got := n.runs(t); !slices.Equal(got, want) {
		t.Errorf("the chunks have the runs %v, want %v", got, want)
	}
}

// What was synced is published by the next start, under the next number, once.
func TestWAL(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	n.publish(t, s, 1, true)
	for i := range 3 {
		must(t, errors.Join(s.Append(runID(i+2), coverage(i+2, false)), s.Sync()))
	}
	must(t, s.Append(runID(9), coverage(9, false))) // not synced
	if got := n.wals(t); len(got) != 1 {
		t.Fatalf("write-ahead files %v", got)
	}
	after := n.image(t)
	for range 2 {
		again := after.open(t)
		if _, lost := again.PowerLoss(); lost {
			t.Error("a process that was killed is not a loss of power")
		}
		after.has(t, 1, 2, 3, 4)
		must(t, again.Close())
	}
	if rep := after.verify(t); len(rep.Holes) != 0 || rep.Chunks != 2 || len(after.wals(t)) != 0 {
		t.Errorf("%d chunks, holes %v, write-ahead files %v", rep.Chunks, rep.Holes, after.wals(t))
	}
	found, err := spool.Recover(t.Context(), after.cfg.Dir, after.signer.Public(), nil)
	if err != nil || len(found.Runs) != 3 {
		t.Errorf("runs left open: %+v, %v", found.Runs, err)
	}
	// The process that was not killed goes on and leaves no file.
	must(t, errors.Join(s.Flush(t.Context()), s.Close()))
	if got := n.wals(t); len(got) != 0 {
		t.Errorf("write-ahead files of published chunks: %v", got)
	}
	n.has(t, 1, 2, 3, 4, 9)
	n.verify(t)
}

// A write-ahead file that comes back after its chunk was published, since nobody
// waits for its removal, is not said again: nor at the start after the next.
func TestWALComesBack(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	must(t, errors.Join(s.Append(runID(1), coverage(1, false)), s.Sync()))
	wal := filepath.Join(n.cfg.State, "wal")
	kept := filepath.Join(n.dir, "kept")
	must(t, os.CopyFS(kept, os.DirFS(wal)))
	back := func(n *node) {
		t.Helper()
		must(t, os.RemoveAll(filepath.Join(n.cfg.State, "wal")))
		must(t, os.CopyFS(filepath.Join(n.cfg.State, "wal"), os.DirFS(kept)))
	}
	must(t, s.Flush(t.Context()))
	back(n)
	after := n.image(t)
	must(t, after.open(t).Close())
	after.has(t, 1)

	// The log is lost as well: the chunk in the spool says that it was published.
	back(n)
	after = n.image(t)
	must(t, os.RemoveAll(filepath.Join(after.cfg.Dir, spool.LogDir)))
	must(t, after.open(t).Close())
	after.lost = true
	after.has(t, 1)
	if len(after.wals(t)) != 0 {
		t.Errorf("write-ahead files %v", after.wals(t))
	}
	// Only if it is sound.
	back(n)
	after = n.image(t)
	must(t, os.RemoveAll(filepath.Join(after.cfg.Dir, spool.LogDir)))
	spoilFile(t, filepath.Join(after.cfg.Dir, spool.ReadyDir, filepath.FromSlash(evidence.ChunkPath(n.ready(t)[0]))), func(b []byte) []byte { b[1100] ^= 1; return b })
	must(t, after.open(t).Close())
	if got := after.ready(t); len(got) != 2 {
		t.Errorf("chunks %v", got)
	}
}

// The node goes on under other numbers, or another log, with files of several
// processes: their lines stay in order.
func TestWALInOrder(t *testing.T) {
	for why, spoil := range map[string]func(t *testing.T, n *node){
		"":                  func(*testing.T, *node) {},
		"another boot":      func(_ *testing.T, n *node) { n.cfg.BootID = otherBoot },
		"the log is lost":   func(t *testing.T, n *node) { must(t, os.RemoveAll(filepath.Join(n.cfg.Dir, spool.LogDir))) },
		"the spool is lost": func(t *testing.T, n *node) { must(t, os.RemoveAll(n.cfg.Dir)) },
		"the numbers go down": func(t *testing.T, n *node) {
			must(t, os.WriteFile(filepath.Join(n.cfg.State, "seq"), []byte("2\n"), 0o600))
		},
	} {
		t.Run(why, func(t *testing.T) {
			n := newNode(t)
			tmp := filepath.Join(n.cfg.Dir, "tmp")
			s := n.open(t)
			n.publish(t, s, 1, true)
			must(t, errors.Join(os.Remove(tmp), os.WriteFile(tmp, nil, 0o600))) // nothing can be published
			for i := range 3 {
				must(t, s.Append(runID(i+2), coverage(i+2, true)))
				s.Seal()
			}
			must(t, s.Sync())
			if got := len(n.wals(t)); got != 3 {
				t.Fatalf("%d write-ahead files", got)
			}
			after := n.image(t)
			// The start after that cannot publish either, and has more to say.
			s = after.open(t)
			must(t, errors.Join(s.Append(runID(5), coverage(5, true)), s.Sync()))
			after = after.image(t)
			must(t, os.Remove(filepath.Join(after.cfg.Dir, "tmp")))
			spoil(t, after)
			s = after.open(t)
			must(t, errors.Join(s.Append(runID(6), coverage(6, true)), s.Flush(t.Context()), s.Close()))
			want := []int{1, 2, 3, 4, 5, 6}
			if why == "the spool is lost" {
				want = want[1:]
			}
			after.has(t, want...)
			after.lost = strings.Contains(why, "lost")
			if why != "the log is lost" { // then a chunk names one that is not here
				after.verify(t)
			}
			if got := after.wals(t); len(got) != 0 {
				t.Errorf("write-ahead files %v", got)
			}
		})
	}
}

// After loss of power the next start says since when, by the last thing that it
// found.
func TestPowerLoss(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	n.publish(t, s, 1, false)
	first := func(n *node) evidence.Time {
		t.Helper()
		n.cfg.BootID = otherBoot
		from, lost := n.open(t).PowerLoss()
		if !lost {
			t.Fatal("no loss of power")
		}
		return from
	}
	leaves := n.logs(t)[0].leaves
	_, last := evidence.PlaceOf(leaves[len(leaves)-1])
	if got := first(n.image(t)); got != last {
		t.Errorf("since %v, and the last leaf is of %v", got, last)
	}
	must(t, errors.Join(s.Append(runID(1), coverage(1, false)), s.Sync()))
	after := n.image(t)
	if got := first(after); !got.Std().After(last.Std()) {
		t.Errorf("since %v, and a line was kept after %v", got, last)
	}
	after.has(t, 1, 1)
	must(t, s.Close())
	n.cfg.BootID = otherBoot
	if from, lost := n.open(t).PowerLoss(); lost {
		t.Errorf("after a stop in order: since %v", from)
	}
}

// A spool that cannot be written at the start: what is found waits, and comes
// before what is new.
func TestWALWaits(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	must(t, errors.Join(s.Append(runID(1), coverage(1, true)), s.Sync()))
	after := n.image(t)
	tmp := filepath.Join(after.cfg.Dir, "tmp")
	must(t, errors.Join(os.Remove(tmp), os.WriteFile(tmp, nil, 0o600)))
	s = after.open(t)
	if got := after.wals(t); len(got) != 1 {
		t.Fatalf("write-ahead files %v", got)
	}
	must(t, s.Append(runID(2), coverage(2, true)))
	ctx, cancel := contextThatEnds(t)
	defer cancel()
	if s.Flush(ctx) == nil {
		t.Fatal("flushed")
	}
	must(t, errors.Join(s.Sync(), os.Remove(tmp), s.Flush(t.Context()), s.Close()))
	after.has(t, 1, 2)
	after.verify(t)
}

// A file that cannot be written is not written again: the lines go into another.
func TestWALFails(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	wal := filepath.Join(n.cfg.State, "wal")
	must(t, os.WriteFile(wal, nil, 0o600))
	must(t, s.Append(runID(1), coverage(1, true)))
	if s.Sync() == nil {
		t.Fatal("synced into a file that is no directory")
	}
	must(t, errors.Join(os.Remove(wal), s.Append(runID(2), coverage(2, true)), s.Sync()))
	after := n.image(t)
	must(t, after.open(t).Close())
	after.has(t, 1, 2)
	after.verify(t)
}

// Lines of a format that this version does not write are not signed, and that is
// signed.
func TestWALOfAnotherVersion(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	must(t, errors.Join(s.Append(runID(1), coverage(1, true)), s.Sync()))
	after := n.image(t)
	must(t, errors.Join(os.Mkdir(filepath.Join(after.cfg.State, "wal", "x"), 0o700)))
	name := filepath.Join(after.cfg.State, "wal", n.wals(t)[0])
	must(t, os.WriteFile(filepath.Join(after.cfg.State, "wal", evidence.ChunkName(8, "0123456789abcdef")+".wal"), spool.ForeignWAL(t, name), 0o600))
	s = after.open(t)
	must(t, errors.Join(s.Append(runID(2), coverage(2, true)), s.Flush(t.Context()), s.Close()))
	after.has(t, 1, 2)
	rep := after.verify(t)
	if len(rep.Gaps) != 1 || rep.Gaps[0].Reason != evidence.GapSpoolDropped || rep.Gaps[0].Count.N != 1 {
		t.Errorf("gaps %+v", rep.Gaps)
	}
}

// A file whose head no header can be made of, or none that this version knows, is put
// aside: all else is published, and what it held is signed as lost.
func TestWALOfNoHeader(t *testing.T) {
	for why, head := range map[string]func(string) string{
		"no node":     func(s string) string { return strings.Replace(s, `"node":"node-a"`, `"node":""`, 1) },
		"a long node": func(s string) string { return strings.Replace(s, "node-a", strings.Repeat("n", 4000), 1) },
		"no boot":     func(s string) string { return strings.Replace(s, bootID, "", 1) },
		"no time": func(s string) string {
			return regexp.MustCompile(`"clock":\{[^}]*\}`).ReplaceAllString(s, `"clock":{}`)
		},
		"another format": func(s string) string { return strings.Replace(s, "probity-wal/1", "probity-wal/9", 1) },
	} {
		t.Run(why, func(t *testing.T) {
			n := newNode(t)
			s := n.open(t)
			must(t, errors.Join(s.Append(runID(1), coverage(1, true)), s.Sync()))
			after := n.image(t)
			name := filepath.Join(after.cfg.State, "wal", n.wals(t)[0])
			bad := filepath.Join(after.cfg.State, "wal", evidence.ChunkName(8, "0123456789abcdef")+".wal")
			must(t, os.WriteFile(bad, spool.WALWithHead(t, name, head), 0o600))
			s = after.open(t)
			must(t, errors.Join(s.Append(runID(2), coverage(2, true)), s.Flush(t.Context()), s.Close()))
			after.has(t, 1, 2)
			rep := after.verify(t)
			if len(rep.Gaps) != 1 || rep.Gaps[0].Reason != evidence.GapSpoolDropped || rep.Gaps[0].Count.N != 1 {
				t.Errorf("gaps %+v", rep.Gaps)
			}
			if _, err := os.Stat(bad + ".unreadable"); err != nil {
				t.Error(err)
			}
			must(t, after.open(t).Close()) // it is in nobody's way, nor said again
			if again := after.verify(t); len(again.Gaps) != 1 {
				t.Errorf("gaps %+v", again.Gaps)
			}
		})
	}
}

// Run keeps lines that wait, at most ten times in a second.
func TestKeepUp(t *testing.T) {
	n := newNode(t)
	synctest.Test(t, func(t *testing.T) {
		s := n.open(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		must(t, s.Append(runID(1), coverage(1, false)))
		time.Sleep(101 * time.Millisecond) // of the bubble's clock
		synctest.Wait()
		if got := len(n.wals(t)); got != 1 || len(n.ready(t)) != 0 {
			t.Errorf("%d write-ahead files, chunks %v", got, n.ready(t))
		}
		writes, size := 0, int64(0)
		for range 390 { // until the chunk closes
			must(t, s.Append(runID(1), coverage(1, false)))
			time.Sleep(time.Millisecond)
			synctest.Wait()
			for _, name := range n.wals(t) {
				if st, err := os.Stat(filepath.Join(n.cfg.State, "wal", name)); err == nil && st.Size() != size {
					writes, size = writes+1, st.Size()
				}
			}
		}
		if writes < 2 || writes > 5 {
			t.Errorf("%d writes in 390 ms", writes)
		}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if got := n.wals(t); len(got) != 0 {
			t.Errorf("write-ahead files after the chunk was published: %v", got)
		}
		cancel()
		must(t, errors.Join(<-done, s.Close()))
	})
	n.verify(t)
}

// A disk that takes nothing: what waits in memory is kept all the same, and the
// agent that is stopped then leaves it to the next one.
func TestStopWithFullDisk(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	tmp := filepath.Join(n.cfg.Dir, "tmp")
	must(t, errors.Join(os.Remove(tmp), os.WriteFile(tmp, nil, 0o600)))
	for i := range 3 {
		must(t, s.Append(runID(i+1), coverage(i+1, true)))
		s.Seal()
	}
	if s.Close() == nil {
		t.Fatal("closed, and nothing is published")
	}
	must(t, os.Remove(tmp))
	must(t, n.open(t).Close())
	n.has(t, 1, 2, 3)
	if rep := n.verify(t); len(rep.Holes)+len(rep.Gaps) != 0 {
		t.Errorf("holes %v, gaps %v", rep.Holes, rep.Gaps)
	}
}

// After an error the log is not read again: what it was before is known.
func TestLogIsReadOnce(t *testing.T) {
	n := newNode(t)
	s := n.open(t)
	for i := range 300 { // more than one bundle
		must(t, s.Append(runID(i+1), coverage(i+1, true)))
		s.Seal()
	}
	must(t, s.Flush(t.Context()))
	full := filepath.Join(n.cfg.Dir, spool.LogDir, "tile", "entries", "000")
	b, err := os.ReadFile(full)
	must(t, errors.Join(err, os.Remove(full)))
	obstacle := filepath.Join(n.cfg.Dir, spool.LogDir, "checkpoint.new")
	must(t, os.MkdirAll(filepath.Join(obstacle, "x"), 0o700))
	ctx, cancel := contextThatEnds(t)
	defer cancel()
	for i := range 3 {
		if err := errors.Join(s.Append(runID(i+500), coverage(i+500, true)), s.Flush(ctx)); err == nil {
			t.Fatal("flushed without a checkpoint")
		}
	}
	must(t, errors.Join(os.RemoveAll(obstacle), s.Flush(t.Context()), s.Close(), os.WriteFile(full, b, 0o640)))
	if k := n.logs(t); len(k) != 1 || len(k[0].chunks) != 303 || len(k[0].epochs()) != 1 {
		t.Errorf("%d logs, %d chunks", len(k), len(k[0].chunks))
	}
	n.logged(t, true)
}
