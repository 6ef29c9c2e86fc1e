package bpf

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"probity/tests/need"
)

// BenchmarkSets is the kernel's time in the programs of a set, for each thing that
// a container does: what is new, and what is there already. It is that of the
// fastest of all operations: neighbours only add to it.
func BenchmarkSets(b *testing.B) {
	need.BPF(b)
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	must(b, err)
	defer stats.Close()
	const n = 1000 // things of one operation
	for _, c := range []struct {
		name, what string
		set        Set
		deep       int // names of the path besides those of the directory for tests
		new        bool
	}{
		{"files again, 3 names more", "open", SetFiles, 3, false},
		{"files again, 9 names more", "open", SetFiles, 9, false},
		{"files new, 3 names more", "open", SetFiles, 3, true},
		{"files new, 9 names more", "open", SetFiles, 9, true},
		{"network again", "send", SetNetwork, 0, false},
		{"network new", "send", SetNetwork, 0, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := newSetRoom(b, Options{RingBytes: 64 << 20}, map[Set]uint32{c.set: 131072})
			s := r.shell(b)
			dir := real(b, b.TempDir())
			for i := range c.deep {
				dir += fmt.Sprint("/directory", i)
			}
			must(b, os.MkdirAll(dir, 0o700))
			do := func(from int) {
				if c.what == "open" {
					act(b, s, "create", dir, strconv.Itoa(n), strconv.Itoa(from))
				} else {
					act(b, s, "flood", strconv.Itoa(n), strconv.Itoa(from))
				}
			}
			spent := func() (ns int64) {
				for _, p := range r.obj.sets.attached[c.set].progs {
					st, err := p.Stats()
					must(b, err)
					ns += int64(st.Runtime)
				}
				return ns
			}
			do(0)
			if links := r.obj.sets.attached[c.set]; links.typ == "tracepoint" { // it does not find paths
				b.Fatalf("seen by %s: %s", links.typ, links.note)
			}
			least := int64(math.MaxInt64)
			for i := range b.N {
				before := spent()
				if c.new {
					do((i + 1) * n)
				} else {
					do(0)
				}
				least = min(least, spent()-before)
			}
			b.ReportMetric(float64(least)/n, "ns/thing")
			if lost := r.counts(b, c.set); lost.Full+lost.Lost > 0 {
				b.Errorf("%+v", lost)
			}
		})
	}
}
