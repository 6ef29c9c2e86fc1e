package probe

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/bpf/symbol"
	"probity/runtime/image"
)

// Stores through a shared mapping change a file's bytes and not its change time:
// what was read while somebody could make them is no fact of the file with that
// time, and neither is a digest.
func TestSteady(t *testing.T) {
	tmpfs := t.TempDir()
	lower := newLower(t)
	must(t, unix.Mount("tmpfs", tmpfs, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(tmpfs, 0)) })
	good, err := os.ReadFile(filepath.Join(lower, "bin/target"))
	must(t, err)
	for where, dir := range map[string]string{"disk": t.TempDir(), "tmpfs": tmpfs} {
		t.Run(where, func(t *testing.T) {
			path := filepath.Join(dir, "lib")
			must(t, os.WriteFile(path, good, 0o755))
			match := image.Match{Path: "/lib", Layer: image.Layer{Dir: dir}, Rel: "lib", Kind: image.Regular, Origin: image.FromUpper}
			in := &Inspector{}
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			must(t, err)
			m, err := unix.Mmap(int(f.Fd()), 0, len(good), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			must(t, err)
			must(t, f.Close()) // the mapping stays
			m[len(good)-1] ^= 0xff
			one, err := in.Inspect(match, symbol.Query{})
			must(t, err)
			m[len(good)-1] ^= 0xff
			other, err := in.Inspect(match, symbol.Query{})
			must(t, err)
			if one.stamp != other.stamp {
				t.Fatal("this kernel changes the time: the test shows nothing")
			}
			for _, facts := range []Facts{one, other} {
				if _, err := facts.Digest(); !errors.Is(facts.unsteady, errWritten) || !errors.Is(err, errUnsteady) {
					t.Errorf("while it is mapped to be written: %v, digest %v", facts.unsteady, err)
				}
			}
			must(t, unix.Munmap(m))
			facts, err := in.Inspect(match, symbol.Query{})
			must(t, err)
			if sum, err := facts.Digest(); err != nil || facts.unsteady != nil || !strings.HasPrefix(sum, "sha256:") {
				t.Errorf("%s, %v, %v", sum, err, facts.unsteady)
			}
			// Whoever opens it for writing now does not wait for anybody.
			w, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
			must(t, err)
			must(t, w.Close())
			// No container writes a file of a layer.
			match.Origin = image.FromLayer
			if s, err := hold(match, nil); err != nil || s.still() != nil {
				t.Errorf("of a layer: %v", err)
			}
		})
	}
}

// Who wants to write a file that is being hashed waits no longer than it takes to
// notice.
func TestSteadyGivesWay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lib")
	must(t, os.WriteFile(path, []byte("text"), 0o755))
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	s, err := hold(image.Match{Path: "/lib", Origin: image.FromVolume}, f)
	must(t, err)
	if _, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Fatalf("a writer did not have to wait: %v", err)
	}
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, errUnsteady) || s.still() == nil {
		t.Errorf("it is read on: %v", err)
	}
	s.free()
	w, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	must(t, err)
	must(t, w.Close())
}

// Nor for as long as it takes to make out what is in it, without reading on.
func TestSteadyIsNotWaitedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lib")
	must(t, os.WriteFile(path, []byte("text"), 0o755))
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	s, err := hold(image.Match{Path: "/lib", Origin: image.FromVolume}, f)
	must(t, err)
	defer s.free()
	opened := make(chan error, 1)
	go func() {
		w, err := os.OpenFile(path, os.O_WRONLY, 0)
		opened <- errors.Join(err, w.Close())
	}()
	select {
	case err := <-opened:
		must(t, err)
	case <-time.After(20 * time.Second): // less than the kernel waits
		t.Error("it waits until the file is read")
	}
	if err := s.still(); !errors.Is(err, errUnsteady) {
		t.Errorf("what was read is taken for a fact: %v", err)
	}
}

// What was planned of a file while it could be written is not armed by that plan,
// and by the next one it is.
func TestUnsteadyIsNotArmed(t *testing.T) {
	b := newWays(t)
	e := newEngine(t, bpf.Options{}, Config{})
	h := b.arm(e, symbols("leaf"))
	path := filepath.Join(b.merged, "bin/target")
	w, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	files := b.copied()
	at, _, _ := files.Glob("")
	facts, err := files.Inspect(at[0], symbol.Query{})
	must(t, err)
	must(t, w.Close())
	more := b.add(e, h, shaky{files, facts.unsteady})
	if facts.unsteady == nil || len(more) != 1 || more[0].Armed || !strings.Contains(more[0].Detail, errWritten.Error()) {
		t.Errorf("%v, %+v", facts.unsteady, more)
	}
	if more := b.add(e, h, files); len(more) != 1 || !more[0].Armed {
		t.Errorf("the next time: %+v", more)
	}
}

// shaky is a tree whose file was unsteady when it was inspected.
type shaky struct {
	upper
	unsteady error
}

func (o shaky) Inspect(m image.Match, q symbol.Query) (Facts, error) {
	f, err := o.upper.Inspect(m, q)
	f.unsteady, f.plans = o.unsteady, nil
	return f, err
}

// Of a file of its own, a container may have changed the bytes while it had it
// mapped, and nothing tells: the set of what was mapped does not say what they
// were. While it is executed nobody can write it.
func TestIdentifyOwnFile(t *testing.T) {
	b := newBox(t, newLower(t))
	e := newEngine(t, bpf.Options{}, Config{})
	at := b.target()
	at.Files = onlyFile{image.Match{Path: "/bin/copy", Layer: image.Layer{Dir: b.upper}, Rel: "bin/copy", Kind: image.Regular, Origin: image.FromUpper}, &Inspector{}}
	h, err := e.Arm(t.Context(), at, b.plan(policy.Probe{ID: "e", Set: policy.SetExec}, policy.Probe{ID: "l", Set: policy.SetLibraries}))
	must(t, err)
	defer h.Close()
	program, err := os.ReadFile(filepath.Join(b.merged, "bin/target"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(b.merged, "bin/copy"), program, 0o755))
	b.runAt("bin/copy", nil, "none")
	seen := map[bpf.Set]bool{}
	must(t, h.Entries(func(entry *bpf.SetEntry) bool {
		id := h.Identify(entry)
		if seen[entry.Set] = true; id.Origin != image.FromUpper || (id.Digest != "") != (entry.Set == bpf.SetExec) || (id.Why != "") != (id.Digest == "") {
			t.Errorf("%v %s: %+v", entry.Set, entry.Path(), id)
		}
		return true
	}))
	if len(seen) != 2 {
		t.Errorf("entries of %v", seen)
	}
}

// onlyFile is a tree in which every path leads to one file.
type onlyFile struct {
	match image.Match
	*Inspector
}

func (o onlyFile) Glob(string) ([]image.Match, bool, string)        { return []image.Match{o.match}, true, "" }
func (o onlyFile) Lookup(string) (m image.Match, x bool, err error) { return o.match, true, nil }
func (o onlyFile) Command() Command                                 { return Command{} }
func (o onlyFile) Objects(func(symbol.Identity) bool) ([]image.Match, bool, string) {
	return nil, true, ""
}
