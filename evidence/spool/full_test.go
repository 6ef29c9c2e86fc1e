package spool_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"probity/evidence"
)

// fill takes all room of a file system but so many pages.
func fill(t *testing.T, dir string, pages uint64) (release func()) {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	if st.Bavail > pages {
		must(t, unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail-pages)*int64(st.Bsize)))
	}
	return func() { must(t, os.Remove(path)) }
}

// A disk that is full from one write on, whichever that is: of a chunk, of the log, of
// a write-ahead file, of the sequence. After it every line that was appended is there,
// or it is signed that it is not, by run and in number; and the log goes on.
//
// Where room was reserved the loss is signed while the disk is still full.
func TestFullAtEachWrite(t *testing.T) {
	for _, c := range []struct {
		name    string
		size    string
		pages   uint64 // up to so many are left
		chunks  int
		lines   int // in each of them
		pending int64
		signed  bool // while the disk is full
	}{
		{"nothing is reserved", "size=1m", 24, 16, 10, 40_000, false},
		{"with the reserve", "size=6m", 3, 60, 20, 1 << 20, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			lost := 0
			for pages := range c.pages {
				dir := filepath.Join(t.TempDir(), "disk")
				mountTmpfs(t, dir, c.size)
				n := nodeIn(t, t.TempDir())
				n.cfg.Dir, n.cfg.State, n.cfg.MaxPending = filepath.Join(dir, "spool"), filepath.Join(dir, "state"), c.pending
				s := n.open(t)
				appended := map[string]uint64{}
				add := func(run, lines, size int) {
					t.Helper()
					must(t, s.Append(runID(run), sites(run, lines, size)))
					appended[runID(run)] += uint64(lines)
				}
				add(1, 10, 100)
				add(2, 10, 100)
				must(t, s.Flush(t.Context()))
				release := fill(t, dir, pages)
				var err error
				for i := range c.chunks {
					add(3+i, c.lines, 3000)
					s.Seal()
					_ = s.Sync()
					if i%4 == 3 {
						ctx, cancel := contextThatEnds(t)
						err = s.Flush(ctx)
						cancel()
					}
				}
				if c.signed {
					if err != nil {
						t.Errorf("%d pages left: the reserve does not help: %v", pages, err)
					}
					n.report(t)
				}
				release()
				must(t, errors.Join(s.Flush(t.Context()), s.Close()))
				rep := n.report(t)
				there, signed, ofNode := map[string]uint64{}, map[string]uint64{}, uint64(0)
				for _, r := range rep.Rows {
					there[r.RunID]++
				}
				for _, g := range rep.Gaps {
					switch {
					case g.Reason != evidence.GapSpoolDropped:
						t.Errorf("gap %+v", g)
					case g.Scope == evidence.ScopeNode:
						ofNode += g.Count.N
					default:
						signed[g.RunID] += g.Count.N
					}
				}
				sum := uint64(0)
				for run, want := range appended {
					if got := there[run] + signed[run]; got != want {
						t.Errorf("%d pages left, run %s: %d lines, %d are there and %d signed as lost", pages, run, want, there[run], signed[run])
					}
					sum += signed[run]
				}
				if sum != ofNode {
					t.Errorf("%d pages left: %d lines of runs are signed as lost, %d of the node", pages, sum, ofNode)
				}
				if len(n.logs(t)) != 1 {
					t.Errorf("%d pages left: %d logs", pages, len(n.logs(t)))
				}
				if sum > 0 {
					lost++
				}
			}
			if lost == 0 {
				t.Error("nothing was lost: the disk was not full")
			}
			t.Logf("%d disks, of which %d cost lines", c.pages, lost)
		})
	}
}
