package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"

	"probity/tests/need"
	"probity/tests/ociarchive"
	"probity/tests/runtimes"
)

// nothing is an NRI plugin that subscribes to what the agent subscribes to and
// does nothing.
type nothing struct{}

func (nothing) StartContainer(context.Context, *api.PodSandbox, *api.Container) error { return nil }
func (nothing) StopContainer(context.Context, *api.PodSandbox, *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, nil
}
func (nothing) PostCreateContainer(context.Context, *api.PodSandbox, *api.Container) error {
	return nil
}
func (nothing) RemoveContainer(context.Context, *api.PodSandbox, *api.Container) error { return nil }

func plugNothing(b *testing.B, socket string) (unplug func()) {
	b.Helper()
	s, err := stub.New(nothing{}, stub.WithPluginName("nothing"), stub.WithPluginIdx("10"), stub.WithSocketPath(socket))
	must(b, err)
	must(b, s.Start(b.Context()))
	return s.Stop
}

// start creates a container, and times its start alone.
func start(b *testing.B, c *runtimes.Containerd, image, name string) float64 {
	b.Helper()
	x := c.Create(b, runtimes.Spec{Image: image, Name: name})
	begin := time.Now()
	x.Start(b)
	ms := float64(time.Since(begin).Microseconds()) / 1000
	x.Wait(b)
	x.Remove(b)
	return ms
}

const (
	coldFiles   = 5
	coldSymbols = 20
)

// fileWithSymbols builds a shared object with some functions.
func fileWithSymbols(b *testing.B, dir string, n int) (path string, symbols []string) {
	b.Helper()
	var src strings.Builder
	for i := range coldSymbols {
		s := fmt.Sprintf("f%d_%d", n, i)
		symbols = append(symbols, s)
		fmt.Fprintf(&src, "int %s(int a) { return a * %d + 1; }\n", s, i+n+1)
	}
	c := filepath.Join(dir, fmt.Sprintf("lib%d.c", n))
	must(b, os.WriteFile(c, []byte(src.String()), 0o644))
	path = filepath.Join(dir, fmt.Sprintf("lib%d.so", n))
	if out, err := exec.Command("gcc", "-shared", "-fPIC", "-O1", "-o", path, c).CombinedOutput(); err != nil {
		b.Fatalf("gcc: %v\n%s", err, out)
	}
	return path, symbols
}

// BenchmarkStart measures what the agent adds to a container's start, against a
// plugin that does nothing: with an image that it knows, and with images that
// it has never seen, 100 symbols in 5 files each.
func BenchmarkStart(b *testing.B) {
	need.Command(b, "gcc")
	c := runtimes.StartContainerd(b)
	dir := b.TempDir()
	bin := filepath.Join(dir, "loop")
	compile(b, "loop.c", bin)
	var files []ociarchive.File
	policy := "name: bench\nselect: {images: [\"localhost/bench*\"]}\nprobes:\n"
	for i := range coldFiles {
		path, symbols := fileWithSymbols(b, dir, i)
		files = append(files, runtimes.HostFile(b, path, fmt.Sprintf("/usr/lib/lib%d.so", i)))
		policy += fmt.Sprintf("  - {id: lib%d, type: uprobe, file: /usr/lib/lib%d.so, symbols: [%s]}\n", i, i, strings.Join(symbols, ", "))
	}
	const rounds = 12
	load := func(tag string) string {
		name := "localhost/bench:" + tag
		// A file of its own makes the layer one that nobody has seen.
		own := append([]ociarchive.File{runtimes.HostFile(b, bin, "/bin/loop"), {Path: "/tag", Data: []byte(tag)}}, files...)
		archive, _ := runtimes.WriteImage(b, c.Scratch, tag+".tar", ociarchive.Image{Name: name, Layers: [][]ociarchive.File{own}, Entrypoint: []string{"/bin/loop"}})
		c.Load(b, archive)
		return name
	}
	warm := load("warm")
	cold := make([]string, rounds)
	for i := range cold {
		cold[i] = load(fmt.Sprintf("cold%d", i))
	}

	agent := runtimes.StartAgent(b, runtimes.AgentOptions{Policies: []string{policy}}.For(c))
	agent.WaitSources(b)
	start(b, c, warm, "first")
	agent.Stop(b)

	// In turn, so that drift hits all alike. A restarted agent knows no image:
	// its first start of the warm one is not counted.
	var base, hot, fresh []float64
	for i := range rounds {
		unplug := plugNothing(b, c.NRISocket)
		base = append(base, start(b, c, warm, fmt.Sprintf("base%d", i)))
		base = append(base, start(b, c, warm, fmt.Sprintf("base%d-again", i)))
		unplug()
		agent.Start(b)
		agent.WaitSources(b)
		fresh = append(fresh, start(b, c, cold[i], fmt.Sprintf("cold%d", i)))
		start(b, c, warm, fmt.Sprintf("warming%d", i))
		hot = append(hot, start(b, c, warm, fmt.Sprintf("warm%d", i)))
		hot = append(hot, start(b, c, warm, fmt.Sprintf("warm%d-again", i)))
		agent.WaitIdle(b)
		agent.Stop(b)
	}
	judged(b, median(hot)-median(base) <= 2, "container start added, warm image, p50", "<= 2 ms", "%+.1f ms (on %.1f ms)", median(hot)-median(base), median(base))
	judged(b, median(fresh)-median(base) <= 60, "container start added, cold image, 100 symbols, p50", "<= 60 ms", "%+.1f ms (on %.1f ms)", median(fresh)-median(base), median(base))
	b.ReportMetric(median(hot)-median(base), "ms-warm")
	b.ReportMetric(median(fresh)-median(base), "ms-cold")
}
