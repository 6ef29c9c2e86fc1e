package runtimes

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"probity/evidence"
)

// What a container did, each distinct thing once, from its first execve on: of
// what its runtime did in its cgroup before, nothing is there.
func TestSets(t *testing.T) {
	const policy = `
name: sets
select:
  images: ["localhost/probity-demo*"]
probes:
  - {id: exec, set: exec}
  - {id: libraries, set: libraries}
  - {id: syscalls, set: syscalls}
  - {id: network, set: network}
  - {id: files, set: files}
`
	underEach(t, AgentOptions{Policies: []string{policy}}, func(t *testing.T, d driver, a *Agent) {
		archive := d.scratch().Path("image.tar")
		DemoImage(t, d.scratch(), filepath.Join(repository(t), "tests/demo/image"), archive)
		d.load(t, archive)
		c := d.start(t, DemoImageName, "caller", "call")
		c.wait(t)
		e := settled(t, a)

		entries := map[string]map[evidence.Entry]*evidence.Observation{}
		own := map[string]*evidence.Observation{}
		for _, o := range e.Observations {
			if o.ContainerID != c.id() {
				continue
			}
			if o.Entry == nil {
				own[o.Set] = o
				continue
			}
			if entries[o.Set] == nil {
				entries[o.Set] = map[evidence.Entry]*evidence.Observation{}
			}
			key := *o.Entry
			key.Parent = nil
			entries[o.Set][key] = o
			if p := o.Process; p != nil && (strings.HasPrefix(p.Comm, "runc") || strings.HasPrefix(p.Comm, "crun") || strings.HasPrefix(p.Comm, "conmon")) || strings.Contains(o.Path, "runc") {
				t.Errorf("%s of the runtime: %s %+v", o.Set, o.Path, o.Process)
			}
		}
		for set, state := range map[string]evidence.State{"exec": evidence.Hit, "libraries": evidence.Hit, "syscalls": evidence.Hit, "network": evidence.ArmedNoHit, "files": evidence.Hit} {
			if o := own[set]; o == nil || o.State != state || !o.Complete || !o.Final || int(o.Entries) != len(entries[set]) {
				t.Errorf("%s: %+v, %d entries", set, o, len(entries[set]))
			}
		}
		calls := own["syscalls"].SystemCalls
		if len(calls) != 1 || slices.Contains(calls[0].Numbers, unix.SYS_PIVOT_ROOT) || slices.Contains(calls[0].Numbers, unix.SYS_EXECVE) || !slices.Contains(calls[0].Numbers, unix.SYS_EXIT_GROUP) {
			t.Errorf("system calls: %+v", calls)
		}
		if n := len(entries["exec"]); n != 1 {
			t.Errorf("%d programs", n)
		}
		for _, o := range entries["exec"] {
			if !strings.HasSuffix(o.Path, "/caller") || *o.Count != 1 || o.FileDigest == "" || o.Origin != "imageLayer" || o.LayerDiffID == "" || o.Entry.Inode == 0 {
				t.Errorf("program: %+v %+v", o, o.Entry)
			}
		}
		loaded := map[string]*evidence.Observation{}
		for _, o := range entries["libraries"] {
			loaded[filepath.Base(o.Path)] = o
			if o.Entry.Mapped != "private" || o.FileDigest == "" || o.Origin != "imageLayer" {
				t.Errorf("library: %+v %+v", o, o.Entry)
			}
		}
		if o := loaded[filepath.Base(DemoLibrary)+".0"]; o == nil || o.BuildID == "" || loaded["caller"] == nil || len(loaded) != 4 {
			t.Errorf("loaded %+v, want program, loader and two libraries", loaded)
		}
		opened := false
		for _, o := range entries["files"] {
			opened = opened || strings.HasPrefix(o.Path, DemoLibrary) && o.Entry.Access == "read"
		}
		if !opened {
			t.Errorf("the library was not opened: %d files", len(entries["files"]))
		}
		exported(t, a, "process_exec", "file_open")
	})
}
