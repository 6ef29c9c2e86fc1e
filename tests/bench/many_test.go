package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"probity/evidence"
	"probity/tests/need"
	"probity/tests/ociarchive"
	"probity/tests/runtimes"
)

// BenchmarkManyStarts measures what 50 containers of one image that are started at once
// wait for the agent, against a plugin that does nothing, in turn.
func BenchmarkManyStarts(b *testing.B) {
	const rounds, many = 4, 50
	c := runtimes.StartContainerd(b)
	bin := filepath.Join(b.TempDir(), "loop")
	compile(b, "loop.c", bin)
	const name = "localhost/bench:many"
	archive, _ := runtimes.WriteImage(b, c.Scratch, "many.tar", ociarchive.Image{Name: name, Layers: [][]ociarchive.File{{runtimes.HostFile(b, bin, "/bin/loop")}}, Entrypoint: []string{"/bin/loop"}})
	c.Load(b, archive)
	policy := "name: bench\nselect: {images: [\"localhost/bench*\"]}\nprobes:\n  - {id: main, type: uprobe, file: /bin/loop, symbols: [main]}\n"
	agent := runtimes.StartAgent(b, runtimes.AgentOptions{Policies: []string{policy}}.For(c))
	agent.WaitSources(b)
	start(b, c, name, "first")
	agent.Stop(b)

	together := func(tag string) (took []float64) {
		took = make([]float64, many)
		list := make([]*runtimes.Container, many)
		for i := range list {
			list[i] = c.Create(b, runtimes.Spec{Image: name, Name: fmt.Sprintf("%s-%d", tag, i)})
		}
		var all sync.WaitGroup
		for i, x := range list {
			all.Go(func() {
				begin := time.Now()
				err := x.TryStart(b)
				if took[i] = ms(time.Since(begin)); err != nil {
					b.Error(err)
				}
			})
		}
		all.Wait()
		for _, x := range list {
			x.Wait(b)
			x.Remove(b)
		}
		return took
	}
	var ratios, with, without, last []float64
	for i := range rounds {
		unplug := plugNothing(b, c.NRISocket)
		none := together(fmt.Sprintf("none%d", i))
		unplug()
		agent.Start(b)
		agent.WaitSources(b)
		start(b, c, name, fmt.Sprintf("warming%d", i))
		some := together(fmt.Sprintf("some%d", i))
		agent.WaitIdle(b)
		agent.Stop(b)
		ratios = append(ratios, median(some)/median(none))
		with, without, last = append(with, some...), append(without, none...), append(last, slices.Max(some)-slices.Max(none))
	}
	row(b, "50 starts at once, one image, against a plugin, p50 of each", "none", "%.2fx (%.2f to %.2f in %d pairs): %.0f ms, without %.0f ms; added to the last one %+.0f ms (median)",
		median(ratios), slices.Min(ratios), slices.Max(ratios), rounds, median(with), median(without), median(last))
}

// BenchmarkContainersInARow starts 1,000 containers of runc's, one after the other: what
// the agent uses of the processors for them, and how long after its end the last line of
// each is published.
func BenchmarkContainersInARow(b *testing.B) {
	const many = 1000
	scratch := runtimes.NewScratch(b)
	o := runtimes.OpenOCI(b, scratch, "runc", need.Runc(b))
	for _, dir := range []string{"bin", "dev", "proc"} {
		must(b, os.MkdirAll(filepath.Join(o.Image, dir), 0o755))
	}
	compile(b, "loop.c", filepath.Join(o.Image, "bin", "loop"))
	policy := "name: bench\nselect: {runtimes: [runc]}\nprobes:\n  - {id: main, type: uprobe, file: /bin/loop, symbols: [main]}\n"
	agent := runtimes.StartAgent(b, runtimes.AgentOptions{Policies: []string{policy}, States: []string{o.States}})
	o.InstallHook(agent.Binaries.Hook, agent.HookSocket)
	once := func(i int) {
		c := o.Make(b, fmt.Sprintf("row-%d", i), runtimes.Bundle{Args: []string{"/bin/loop"}})
		must(b, c.TryStart(b))
		c.Wait(b)
		c.Remove(b)
	}
	once(many)
	agent.WaitIdle(b)
	cpu, begin := processors(b, agent.Pid()), time.Now()
	for i := range many {
		once(i)
	}
	agent.WaitIdle(b)
	took, used := time.Since(begin), processors(b, agent.Pid())-cpu
	row(b, "1,000 containers in a row: the agent's CPU", "none", "%.2f s, %.2f ms for each, %.1f %% of one processor in %.0f s", used.Seconds(), ms(used)/many, 100*used.Seconds()/took.Seconds(), took.Seconds())
	agent.Stop(b)
	sealed := sealedAfter(b, agent.Spool)
	if len(sealed) != many+1 {
		b.Fatalf("%d containers are sealed, %d have run", len(sealed), many+1)
	}
	slices.Sort(sealed)
	row(b, "from a container's end to its last line, published", "none", "p50 %.0f ms, p99 %.0f ms, the slowest %.0f ms of %d", median(sealed), sealed[len(sealed)*99/100], sealed[len(sealed)-1], len(sealed))
}

// processors is what a process has used of them, in ticks of 10 ms.
func processors(b *testing.B, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(b, err)
	_, rest, _ := strings.Cut(string(text), ") ") // behind the program's name
	f := strings.Fields(rest)
	user, err := strconv.Atoi(f[11])
	must(b, err)
	kernel, err := strconv.Atoi(f[12])
	must(b, err)
	return time.Duration(user+kernel) * 10 * time.Millisecond
}

// sealedAfter returns, for each final coverage line, how many milliseconds after the end
// that it names its chunk was published.
func sealedAfter(b *testing.B, spool string) (out []float64) {
	b.Helper()
	files, err := filepath.Glob(filepath.Join(spool, "ready", "*", "*.ndjson"))
	must(b, err)
	for _, file := range files {
		var st syscall.Stat_t
		must(b, syscall.Stat(file, &st)) // the rename into ready/ is the last change of it
		text, err := os.ReadFile(file)
		must(b, err)
		for line := range bytes.Lines(text) {
			l, err := evidence.Decode(string(bytes.TrimSuffix(line, []byte("\n"))))
			if c, ok := l.(*evidence.Coverage); err == nil && ok && c.Final {
				out = append(out, ms(time.Unix(st.Ctim.Unix()).Sub(c.Ended.Std())))
			}
		}
	}
	return out
}
