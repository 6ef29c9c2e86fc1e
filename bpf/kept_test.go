package bpf

import (
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf/features"

	"probity/tests/need"
)

// handed is what a service manager would hand to the next process.
func handed(t *testing.T, list []Descriptors) map[string][]*os.File {
	t.Helper()
	out := map[string][]*os.File{}
	for _, d := range list {
		for _, fd := range d.FDs {
			c, err := Dup(fd)
			must(t, err)
			out[d.Name] = append(out[d.Name], os.NewFile(uintptr(c), d.Name))
		}
	}
	return out
}

// Counters that somebody held go on in the next process's objects, with what follows
// processes; what it makes is counted beside them.
func TestKeptObjects(t *testing.T) {
	need.Feature(t, "uprobe_multi", features.HaveBPFLinkUprobeMulti())
	first := load(t, Options{})
	lineage := first.AttachLineage()
	const cgroup = 1 << 40
	must(t, first.PutRun(cgroup, 0))
	must(t, first.PutSlots(cgroup, []Slot{{Site: 7}, {Site: 9}}))
	must(t, first.PutSlots(cgroup+1, []Slot{{Site: 8}})) // without its run: that was being taken away
	must(t, first.SetLevels(1<<3))
	list := first.Keep(lineage)
	if len(list) != len(shared)+2 {
		t.Fatalf("%+v", list)
	}
	files := handed(t, list)
	must(t, lineage.Close())
	must(t, first.Close())

	kept, err := TakeKept(files)
	must(t, err)
	second := load(t, Options{Kept: kept, Slots: 12345}) // the maps have the size that they have
	state := second.Inherited()
	if state == nil || len(state.Runs[cgroup]) != 2 || len(state.Runs) != 1 || state.Last != 9 || state.Levels != 1<<3 {
		t.Fatalf("%+v", state)
	}
	again := second.AttachLineage()
	if again.Exec != ExecRawTracepoint || again.ExecErr != nil || len(again.links) < 5 {
		t.Errorf("%+v", again)
	}
	had, fresh, err := second.HasSlots(cgroup, []Slot{{Site: 9}, {Site: 10}})
	if err != nil || !had[9] || had[10] || len(fresh) != 1 || fresh[0].Site != 10 {
		t.Errorf("%v, %+v, %v", had, fresh, err)
	}
	must(t, second.PutSlots(cgroup, fresh))
	if used, _ := second.Slots(); used != 3 {
		t.Errorf("%d counters", used)
	}
	if _, err := second.Slot(cgroup, 7); err != nil {
		t.Error(err)
	}
	must(t, second.Forget(cgroup, []uint32{7, 9, 10}))
	if state, err := second.readLeft(); err != nil || len(state.Runs) != 0 || state.Last != 0 {
		t.Errorf("%+v, %v", state, err)
	}
	if len(second.Keep(again)) != len(list) {
		t.Error("what was taken over is not kept for the next")
	}
	must(t, again.Close())
}

// What is not all of it, or something else under a name, is not taken, and is closed.
func TestKeptIsChecked(t *testing.T) {
	need.Feature(t, "uprobe_multi", features.HaveBPFLinkUprobeMulti())
	obj := load(t, Options{})
	lineage := obj.AttachLineage()
	defer lineage.Close()
	list := obj.Keep(lineage)
	null := func() *os.File { f, err := os.Open(os.DevNull); must(t, err); return f }
	for name, c := range map[string]struct {
		change func(map[string][]*os.File)
		say    string
	}{
		"nothing":       {func(m map[string][]*os.File) { clear(m) }, "is not among them"},
		"no map":        {func(m map[string][]*os.File) { m["map-slots"][0].Close(); delete(m, "map-slots") }, "the map slots"},
		"no program":    {func(m map[string][]*os.File) { m["program-uprobe_multi"][0].Close(); delete(m, "program-uprobe_multi") }, "the program"},
		"another file":  {func(m map[string][]*os.File) { m["map-slots"] = append(m["map-slots"], null()) }, "/dev/null"},
		"a map's place": {func(m map[string][]*os.File) { m["map-slots"], m["lineage"] = m["lineage"], m["map-slots"] }, "anon_inode"},
		"half of what follows processes": {func(m map[string][]*os.File) {
			for _, f := range m["lineage"][2:] {
				f.Close()
			}
			m["lineage"] = m["lineage"][:2]
		}, "follow processes"},
	} {
		files := handed(t, list)
		rest := map[string]*os.File{}
		for n, l := range files {
			if len(l) > 0 {
				rest[n] = l[0]
			}
		}
		if name == "nothing" {
			for _, l := range files {
				for _, f := range l {
					f.Close()
				}
			}
		}
		c.change(files)
		k, err := TakeKept(files)
		if k != nil || err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: %v, %v", name, k, err)
		}
		for n, f := range rest {
			if f.Fd() != ^uintptr(0) {
				t.Errorf("%s: %s is still open", name, n)
			}
		}
	}
	// Maps that are no such maps are found when the programs are to use them.
	files := handed(t, list)
	files["map-slots"], files["map-runs"] = files["map-runs"], files["map-slots"]
	kept, err := TakeKept(files)
	must(t, err)
	if o, err := Load(Options{Kept: kept}); err == nil {
		o.Close()
		t.Error("other maps were taken")
	}
	must(t, kept.Close())
}
