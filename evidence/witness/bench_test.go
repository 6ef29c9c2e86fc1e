package witness

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"probity/bpf"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/evidence/sign"
	"probity/evidence/spool"
	"probity/runtime/container"
)

// benchRuns is over how many containers the entries are spread.
const benchRuns = 100

// BenchmarkEntries is the way of distinct entries to signed chunks on disk: the
// budget is 100,000 a second on two cores (DESIGN.md, section 7). An operation is
// one entry, an exec, network or files one in turn; 0 must be lost.
func BenchmarkEntries(b *testing.B) {
	signer, err := sign.LoadOrCreate(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	begun := time.Now()
	clock := func() evidence.Clock {
		return evidence.Clock{BootNs: evidence.Uint64(1e12 + time.Since(begun)), Wall: evidence.TimeOf(time.Now())}
	}
	var lost int
	out, err := spool.Open(spool.Config{
		Dir: b.TempDir(), State: b.TempDir(), Node: "bench", BootID: "b", Signer: signer, Clock: clock,
		Dropped: func(runs []string) { lost += len(runs) },
	})
	if err != nil {
		b.Fatal(err)
	}
	defer out.Close()
	w := New(Config{Sink: out, BootTime: func() int64 { return int64(clock().BootNs) }})
	kern := &fakeKernel{slots: map[uint32]bpf.Counter{}}
	sets := []string{evidence.SetExec, evidence.SetNetwork, evidence.SetFiles}
	begin := func(cgroup uint64) string {
		id := container.Identity{
			Runtime: container.Containerd, ID: fmt.Sprintf("%064x", cgroup), BootID: "b", CgroupID: cgroup, CgroupPath: "/kubepods.slice/x",
			Image: container.Image{Name: "registry.example/app:1", Digest: fmt.Sprintf("sha256:%064x", cgroup%10)},
		}
		s := Start{Identity: id, Source: "hook", Arm: kern, ArmedAt: 1e12}
		for _, set := range sets {
			s.Sites = append(s.Sites, setSite(set))
			s.Searches = append(s.Searches, probe.Search{ProbeID: "set-" + set, Complete: true})
		}
		w.Armed(s)
		w.Publish(id.RunID(), 0)
		return id.RunID()
	}
	const workers = 2
	digest := fmt.Sprintf("sha256:%064x", 7)
	cpu := func() time.Duration {
		var u syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := cpu()
	b.ResetTimer()
	var wg sync.WaitGroup
	for worker := range uint64(workers) {
		wg.Go(func() {
			var ids [benchRuns / workers]string
			next := worker << 32 // cgroup ids
			var first uint64
			for n := range b.N / workers {
				if n%(len(ids)*3*MaxEntries) == 0 { // the sets are full: others start
					for i, id := range ids {
						if id != "" {
							w.End(id, 2e12, true)
						}
						next++
						ids[i] = begin(next)
					}
					first = next - uint64(len(ids)) + 1
				}
				e := &Entry{At: 1e12 + int64(n), Process: evidence.Process{Pid: 4711, Comm: "app", Path: "/usr/bin/app"}}
				binary.NativeEndian.PutUint64(e.Key[:], uint64(n))
				at := "/usr/lib/" + strconv.Itoa(n) + "/file.so"
				switch e.Set = sets[n%3]; e.Set {
				case evidence.SetExec:
					e.Path, e.FileDigest, e.Origin, e.Parent = at, digest, "imageLayer", &evidence.Process{Pid: 1, Comm: "sh", Path: "/bin/sh"}
				case evidence.SetNetwork:
					e.Operation, e.Protocol, e.Family, e.Address, e.Port = "connect", "tcp", "ipv4", "10."+strconv.Itoa(n>>16&255)+"."+strconv.Itoa(n>>8&255)+"."+strconv.Itoa(n&255), 1+n>>24
				case evidence.SetFiles:
					e.Path, e.Access = at, "read"
				}
				w.Entries(first+uint64(n/3%len(ids)), e)
				if n%4096 == 4095 { // what would wait in memory past its bound is dropped
					if err := out.Flush(b.Context()); err != nil {
						b.Error(err)
					}
				}
			}
			for _, id := range ids {
				w.End(id, 2e12, true)
			}
		})
	}
	wg.Wait()
	if err := out.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/entry") // on a host that others use too
	if lost > 0 {
		b.Errorf("lines of %d runs were dropped", lost)
	}
}
