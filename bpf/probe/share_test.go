package probe

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"probity/bpf/policy"
	"probity/runtime/image"
	"probity/tests/need"
)

// copiesOf is a tree in which a glob finds one file as often as is asked for.
type copiesOf struct {
	dir, origin string
	n           int
	*Inspector
}

func (c copiesOf) Glob(p string) (ms []image.Match, _ bool, _ string) {
	for range c.n {
		ms = append(ms, image.Match{Path: p, Layer: image.Layer{Dir: c.dir}, Rel: strings.TrimPrefix(p, "/"), Kind: "regular", Origin: c.origin})
	}
	return ms, true, ""
}

// What is planned for a file is planned once for all containers that have it,
// and kept as long as one of them is there.
func TestPlanShared(t *testing.T) {
	need.Command(t, "gcc")
	bin, err := target()
	must(t, err)
	data, err := os.ReadFile(bin)
	must(t, err)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "target"), data, 0o755))
	in := &Inspector{}
	probes := func() []policy.Probe { // another container's, of the same policy
		return []policy.Probe{{ID: "p", Type: policy.Uprobe, File: "/target", Symbols: []string{"hello", "gone"}}}
	}
	plan := func(probes []policy.Probe, c copiesOf, m Machine) []Site {
		c.dir, c.Inspector = dir, in
		return MakePlan(probes, c, m).Sites
	}
	layer := copiesOf{origin: image.FromLayer, n: 1}
	first := plan(probes(), layer, Host())
	if len(first) != 2 || first[0].Symbol != "hello" || first[1].Reason == "" {
		t.Fatalf("%+v", first)
	}
	first[0].Armed, first[0].ID, first[1].Detail = true, 7, "changed by its container"
	second := plan(probes(), layer, Host())
	for i := range second {
		if second[i].Planned != first[i].Planned {
			t.Errorf("site %d is planned twice", i)
		}
	}
	if second[0].Armed || second[0].ID != 0 || second[1].Detail == first[1].Detail {
		t.Errorf("what arming found out is shared too: %+v", second)
	}

	other := probes()
	other[0].StopAfter = 1
	shorter := probes()
	shorter[0].Symbols = shorter[0].Symbols[:1]
	for what, sites := range map[string][]Site{
		"another rule":    plan(other, layer, Host()),
		"fewer symbols":   plan(shorter, layer, Host()),
		"another number":  plan(probes(), copiesOf{origin: image.FromLayer, n: 2}, Host()),
		"another machine": plan(probes(), layer, Host().WithoutUretprobes("they break")),
	} {
		if sites[0].Planned == first[0].Planned {
			t.Errorf("%s: shared", what)
		}
	}
	if a, b := plan(probes(), copiesOf{origin: image.FromUpper, n: 1}, Host()), plan(probes(), copiesOf{origin: image.FromUpper, n: 1}, Host()); a[0].Planned == b[0].Planned {
		t.Error("the plan of a container's own file is shared")
	}

	var plans *filePlans
	for el := in.order.Front(); el != nil; el = el.Next() {
		if f := el.Value.(*inspected).facts.plans; f != nil && slices.ContainsFunc(f.known, func(w weakPlan) bool { return w.Value() == first[0].File.plan }) {
			plans = f
		}
	}
	if plans == nil {
		t.Fatal("the plan is not known")
	}
	runtime.KeepAlive(first)
	runtime.KeepAlive(second)
	first, second = nil, nil
	runtime.GC()
	for _, w := range plans.known {
		if k := w.Value(); k != nil {
			t.Errorf("a plan that nobody uses is kept: %d sites of %s", len(k.sites), k.match.Path)
		}
	}
}

// A search that one file makes incomplete is incomplete for the next container
// too, whose plan is not made again.
func TestPlanSharedSearch(t *testing.T) {
	p := planner{pr: policy.Probe{ID: "p"}, most: maxSites, search: Search{Complete: true}}
	one := begin(p.pr)
	one.File = &File{Match: image.Match{Path: "/x", Origin: image.FromLayer}}
	known := &filePlan{probe: one.Probe, machine: p.machine, match: one.File.Match, whole: true, why: "because", sites: sitesOf([]draft{one})}
	facts := Facts{plans: &filePlans{}}
	facts.plans.put(known)
	p.file(one, facts)
	if p.search.Complete || p.search.Why != "because" || len(p.sites) != 1 || p.sites[0].Planned != known.sites[0].Planned {
		t.Errorf("%+v, %+v", p.search, p.sites)
	}
}

// There is one for each place and container: 100,000 are 6 MiB.
func TestSiteSize(t *testing.T) {
	if n := unsafe.Sizeof(Site{}); n > 64 {
		t.Errorf("a site takes %d bytes", n)
	}
}
