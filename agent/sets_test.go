package agent

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/evidence"
)

const setsPolicy = `name: sets
probes:
  - {id: exec, set: exec}
  - {id: libraries, set: libraries}
`

// What a set says of a file's content is said of that content only: whatever
// becomes of the file, another one is another entry.
func TestEntryIsOneContent(t *testing.T) {
	bin, err := target()
	must(t, err)
	first, second := append(bytes.Clone(bin), '1'), append(bytes.Clone(bin), '2')
	for name, c := range map[string]struct {
		path   string
		change func(path string) error // second is there, and where it is
		now    string
	}{
		"overwritten over the image": {path: "/bin/tool", change: func(path string) error { return os.WriteFile(path, second, 0) }},
		"overwritten":                {path: "/bin/new", change: func(path string) error { return os.WriteFile(path, second, 0) }},
		"stored into":                {path: "/bin/new", change: func(path string) error { return store(path, len(second)-1, '2') }},
		"replaced": {path: "/bin/new", change: func(path string) error {
			if err := os.Remove(path); err != nil { // its inode's number is free
				return err
			}
			return os.WriteFile(path, second, 0o755)
		}},
		"another name": {path: "/bin/new", now: "/bin/newer", change: func(path string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.WriteFile(path+"er", second, 0o755)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNodeWith(t, Config{}, setsPolicy)
			b := newBoxOf(t, map[string][]byte{"bin/target": bin, "bin/tool": first}, 1, "serve")
			n.notify(context.Background(), b.notice("c1"), yes)
			b.run()
			if c.path != "/bin/tool" {
				must(t, os.WriteFile(b.dir+"/merged"+c.path, first, 0o755))
			}
			b.exec(c.path, "x")
			b.settle(c.path)
			must(t, c.change(b.dir+"/merged"+c.path))
			for range 3 {
				b.exec(cmp.Or(c.now, c.path), "x")
			}
			got := map[bpf.Set][]uint64{}
			must(t, n.onlyRun().handle.Entries(func(e *bpf.SetEntry) bool {
				// The box has a root, and no mount namespace that begins there.
				if p, ok := strings.CutPrefix(e.Path(), b.dir+"/merged"); ok && (p == c.path || p == c.now) {
					got[e.Set] = append(got[e.Set], e.Count)
				}
				return true
			}))
			b.end()
			must(t, n.waitIdle(context.Background()))
			for _, set := range []bpf.Set{bpf.SetExec, bpf.SetLibraries} {
				slices.Sort(got[set])
				// By system calls an execve tells of each of its mappings.
				if n := got[set]; len(n) != 2 || n[1] != 3*n[0] || set == bpf.SetExec && n[0] != 1 {
					t.Errorf("%s: entries of %d times, want two, and of one and three programs", set, n)
				}
			}
		})
	}
}

// store changes a byte of a file through a shared mapping.
func store(path string, at int, to byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, at+1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	m[at] = to
	return unix.Munmap(m)
}

// settle waits until a change of the file would change its change time too.
func (b *box) settle(path string) {
	b.t.Helper()
	for {
		var st unix.Stat_t
		must(b.t, unix.Stat(b.dir+"/merged"+path, &st))
		var now unix.Timespec
		must(b.t, unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &now))
		if now.Nano()-st.Ctim.Nano() > 50*time.Millisecond.Nanoseconds() {
			return
		}
	}
}

// A number of an inode that is used again is not the file that had it.
func TestEntryIsOnePath(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "reuse")
	if out, err := exec.Command("gcc", "-O2", "-static", "-o", bin, "testdata/reuse.c").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	program, err := os.ReadFile(bin)
	must(t, err)
	n := newNodeWith(t, Config{}, "name: s\nprobes:\n  - {id: files, set: files}\n")
	b := newBoxOf(t, map[string][]byte{"bin/target": program}, 1)
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, _ := n.allLines("c1")
	got := map[string]uint64{}
	for _, o := range obs {
		if path, ok := strings.CutPrefix(o.Path, b.dir+"/merged/tmp/"); ok {
			got[path+" "+o.Entry.Access] = uint64(*o.Count)
		}
	}
	want := map[string]uint64{}
	for i := range 4 {
		for _, access := range []string{"read", "write"} {
			want[fmt.Sprint("secret-", i, " ", access)] = 1
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// These two scripts were one entry: FNV-1a makes one hash of both.
func TestEntriesOfOneHash(t *testing.T) {
	bin, err := target()
	must(t, err)
	n := newNodeWith(t, Config{}, setsPolicy)
	b := newBoxOf(t, map[string][]byte{"bin/target": bin, "bin/sh": bin}, 1, "serve")
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	want := []string{"8yn0iYCKYHlIj4-BwPqk", "GReLUrM4wMqfg9yzV3KQ"}
	for _, name := range want {
		must(t, os.WriteFile(b.dir+"/merged/"+name, []byte("#!/bin/sh now\n"), 0o755))
		b.exec(name, "x")
	}
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, _ := n.allLines("c1")
	var got []string
	for _, o := range obs {
		if o.Set == evidence.SetExec && strings.HasSuffix(o.Path, "/bin/sh") && !slices.Contains(got, o.Entry.Argument) {
			got = append(got, o.Entry.Argument)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
