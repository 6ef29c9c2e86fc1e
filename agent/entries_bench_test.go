package agent

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"probity/evidence"
	"probity/tests/need"
)

// BenchmarkEntries is the row of DESIGN.md, section 7, on the entries of sets, with
// the whole of the agent: distinct connections and files of 100 containers, from
// the system call to signed lines on disk. The containers' own programs have the
// same processors, so what those cost without sets is measured beside it.
func BenchmarkEntries(b *testing.B) {
	need.Root(b)
	need.Command(b, "gcc")
	// As many as the agent keeps of all runs (witness.DefaultMaxEntryBytes): past it
	// sets are full.
	const containers, connections, files = 100, 800, 100
	bin := filepath.Join(b.TempDir(), "entries")
	if out, err := exec.Command("gcc", "-O2", "-static", "-o", bin, "testdata/entries.c").CombinedOutput(); err != nil {
		b.Fatalf("gcc: %v\n%s", err, out)
	}
	program, err := os.ReadFile(bin)
	must(b, err)
	start := func(n int) (all []*box) {
		for range n {
			all = append(all, newBoxOf(b, map[string][]byte{"bin/target": program}, 1, fmt.Sprint(connections), fmt.Sprint(files)))
		}
		return all
	}
	// made lets programs go, and returns what they made and their processor time.
	made := func(all []*box) (n int, cpu time.Duration) {
		for _, x := range all {
			x.run()
		}
		for _, x := range all {
			var one int
			var ns int64
			if _, err := fmt.Fscan(x.out, &one, &ns); err != nil {
				b.Fatal(err)
			}
			n, cpu = n+one, cpu+time.Duration(ns)
		}
		return n, cpu
	}
	plainN, plain := made(start(4))

	n := newNodeWith(b, Config{}, fmt.Sprintf(`name: entries
probes:
  - {id: network, set: network, quota: %d}
  - {id: files, set: files, quota: %d}
`, connections+100, files+100))
	boxes := start(containers)
	for i, x := range boxes {
		n.notify(context.Background(), x.notice(fmt.Sprintf("c%d", i)), yes)
	}
	must(b, n.spool.Flush(context.Background()))
	spent := func() time.Duration {
		var u syscall.Rusage
		must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before, began := spent(), time.Now()
	b.ResetTimer()
	want, theirs := made(boxes)
	produced := time.Since(began)
	n.readOut(n.runs()...)
	must(b, n.spool.Flush(context.Background()))
	took, ours := time.Since(began), spent()-before
	b.StopTimer()

	for _, x := range boxes {
		x.end()
	}
	must(b, n.waitIdle(context.Background()))
	n.stop()
	have, bytes, lost := told(b, n.cfg.Spool)
	per := func(d time.Duration, n int) float64 { return float64(d.Microseconds()) / float64(n) }
	row := func(what, budget, format string, args ...any) {
		fmt.Printf("%-58s %-34s budget %s\n", what, fmt.Sprintf(format, args...), budget)
	}
	verdict := "met"
	rate := float64(want) / took.Seconds()
	if rate < 100000 || have < want || lost != "" {
		verdict = "MISSED"
	}
	if have < want {
		lost += fmt.Sprintf("%d of %d have a line", have, want)
	}
	row("entries of 100 containers to sealed lines, their programs beside", ">= 100,000/s, 0 lost: "+verdict, "%.0f/s, %d of %d", rate, min(have, want), want)
	row("  the agent's processor time for one", fmt.Sprintf("20 us are all of %d processors at 100,000/s", runtime.NumCPU()), "%.1f us, %.0f bytes on disk", per(ours, want), float64(bytes)/float64(max(have, 1)))
	row("  the container's own for one, with sets against without", "measured", "%.1f us against %.1f us", per(theirs, want), per(plain, plainN))
	row("  so the most that these processors can do", "measured", "%.0f/s, the agent alone %.0f/s", float64(runtime.NumCPU())*1e6/(per(ours, want)+per(theirs, want)), float64(runtime.NumCPU())*1e6/per(ours, want))
	row("  made in, and on disk after", "measured", "%.1f s and %.1f s", produced.Seconds(), took.Seconds())
	if lost != "" {
		b.Errorf("lost: %s", lost)
	}
	b.ReportMetric(rate, "entries/s")
	b.ReportMetric(per(ours, want)*1000, "cpu-ns/entry")
}

// told counts the distinct entries on lines that the containers' own programs
// made, with the bytes of all of those lines, and says what was lost.
func told(b *testing.B, spool string) (entries int, bytes int64, lost string) {
	seen := map[string]bool{}
	paths, err := filepath.Glob(spool + "/ready/*/*.ndjson")
	must(b, err)
	for _, p := range paths {
		data, err := os.ReadFile(p)
		must(b, err)
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		for _, line := range lines[1 : len(lines)-1] {
			l, err := evidence.Decode(line)
			must(b, err)
			switch l := l.(type) {
			case *evidence.Observation:
				if l.Entry == nil || l.Entry.Port != 1000 && !strings.HasPrefix(l.Path, "/tmp/") {
					continue
				}
				bytes += int64(len(line)) + 1
				seen[l.ContainerID+" "+l.Path+l.Entry.Address] = true
			case *evidence.Gap:
				switch l.Reason {
				case evidence.GapSetFull, evidence.GapSpoolDropped, evidence.GapDecodeError:
					lost = string(l.Reason) + " "
				}
			}
		}
	}
	return len(seen), bytes, lost
}
