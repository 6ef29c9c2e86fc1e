package probe

import (
	"reflect"
	"slices"
	"sync"
	"weak"

	"probity/bpf/policy"
	"probity/runtime/image"
)

// filePlan is what one probe plans of one file of an image. All containers that
// have the file at this place share the sites' planned part, and nobody else
// keeps it: with the last of them it goes.
type filePlan struct {
	// What it was planned from, besides the file.
	probe   *policy.Probe
	machine Machine
	copies  int
	match   image.Match

	sites []Site // none is armed
	why   string // why the search in this file is not complete
	whole bool   // no bound on sites was reached
}

// filePlans are the plans of one file that are in use.
type filePlans struct {
	mu    sync.Mutex
	known []weakPlan
}

type weakPlan = weak.Pointer[filePlan]

// maxFilePlans bounds how many are told apart: a file can have as many as there
// are probes and places at which images have it.
const maxFilePlans = 64

// find returns the plan that p would make for the file, if it is in use.
func (f *filePlans) find(p *planner, one draft) *filePlan {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.known {
		k := w.Value()
		if k != nil && k.match == one.File.Match && k.copies == one.Copies &&
			reflect.DeepEqual(k.probe, one.Probe) && reflect.DeepEqual(k.machine, p.machine) {
			return k
		}
	}
	return nil
}

// put remembers a plan for as long as one of its sites is in use.
func (f *filePlans) put(k *filePlan) {
	if f == nil || !k.whole || k.match.Origin != image.FromLayer || len(k.sites) == 0 {
		return
	}
	k.sites[0].File.plan = k // its own, as all its sites have
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known = slices.DeleteFunc(f.known, func(w weakPlan) bool { return w.Value() == nil })
	if len(f.known) == maxFilePlans {
		f.known = slices.Delete(f.known, 0, 1)
	}
	f.known = append(f.known, weak.Make(k))
}
