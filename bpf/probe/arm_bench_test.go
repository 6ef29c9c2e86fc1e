package probe

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/runtime/image"
)

// libs is a tree of shared objects: five files of twenty functions.
type libs struct {
	lower string
	*Inspector
}

func (l libs) Glob(p string) ([]image.Match, bool, string) {
	return []image.Match{{Path: p, Layer: image.Layer{Dir: l.lower}, Rel: strings.TrimPrefix(p, "/"), Kind: "regular", Origin: "imageLayer"}}, true, ""
}

// BenchmarkArm arms a container of an image that is armed already: what a warm
// start pays for 100 sites in 5 files.
func BenchmarkArm(b *testing.B) {
	lower := newLower(b)
	var probes []policy.Probe
	for i := range 5 {
		var src strings.Builder
		p := policy.Probe{ID: fmt.Sprint("p", i), Type: "uprobe", File: fmt.Sprintf("/lib%d.so", i)}
		for j := range 20 {
			name := fmt.Sprintf("f%d_%d", i, j)
			p.Symbols = append(p.Symbols, name)
			fmt.Fprintf(&src, "int %s(int a) { return a * %d + 1; }\n", name, i+j+1)
		}
		c := filepath.Join(b.TempDir(), "lib.c")
		must(b, os.WriteFile(c, []byte(src.String()), 0o644))
		if out, err := exec.Command("gcc", "-shared", "-fPIC", "-O1", "-o", filepath.Join(lower, p.File), c).CombinedOutput(); err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
		probes = append(probes, p)
	}
	first, again := newBox(b, lower), newBox(b, lower)
	e := newEngine(b, bpf.Options{}, Config{})
	tree := libs{lower, &Inspector{}}
	h, err := e.Arm(context.Background(), first.target(), MakePlan(probes, tree, Host()))
	must(b, err)
	b.Cleanup(func() { must(b, h.Close()) })

	b.Run("plan", func(b *testing.B) {
		for b.Loop() {
			MakePlan(probes, tree, Host())
		}
	})
	b.Run("arm", func(b *testing.B) {
		for b.Loop() {
			h, err := e.Arm(context.Background(), again.target(), MakePlan(probes, tree, Host()))
			must(b, err)
			b.StopTimer()
			for _, s := range h.Sites {
				if !s.Armed {
					b.Fatalf("%+v", s)
				}
			}
			must(b, h.Close())
			b.StartTimer()
		}
	})
	b.Run("check", func(b *testing.B) {
		for b.Loop() {
			h.Check()
		}
	})
}
