package cgroup

import (
	"slices"
	"testing"
)

func TestProcs(t *testing.T) {
	fs, top := realFS(t)
	for _, dir := range []string{top + "/a", top + "/a/b", top + "/empty"} {
		mkCgroup(t, fs, dir)
	}
	want := []int{}
	for _, dir := range []string{top, top + "/a", top + "/a/b"} {
		want = append(want, inCgroup(t, fs, dir).cmd.Process.Pid)
	}
	id, err := fs.ID(top)
	if err != nil {
		t.Fatal(err)
	}
	pids, whole, err := fs.Procs(top, id)
	slices.Sort(pids)
	slices.Sort(want)
	if err != nil || !whole || !slices.Equal(pids, want) {
		t.Errorf("%v, whole %v, %v; want %v", pids, whole, err, want)
	}
	// The id of what was there before, or nothing at all: nobody.
	for _, c := range []struct {
		path string
		id   uint64
	}{{top, id + 1}, {top + "/gone", 0}} {
		if pids, whole, err := fs.Procs(c.path, c.id); err != nil || !whole || len(pids) != 0 {
			t.Errorf("%s %d: %v, %v, %v", c.path, c.id, pids, whole, err)
		}
	}
}

// A container may nest cgroups as deep as it likes; a look at them ends.
func TestProcsTooDeep(t *testing.T) {
	fs, base := realFS(t)
	path := base + "/d"
	for range maxDepth + 3 {
		mkCgroup(t, fs, path)
		path += "/d"
	}
	if _, whole, err := fs.Procs(base, 0); err != nil || whole {
		t.Errorf("whole %v, %v", whole, err)
	}
}
