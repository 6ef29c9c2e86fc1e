package pins

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/tests/leak"
	"probity/tests/need"
)

func TestMain(m *testing.M) { leak.Main(m) }

// bpffs mounts a BPF file system for one test.
func bpffs(t *testing.T, mode string) string {
	t.Helper()
	need.Root(t)
	need.BPF(t)
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode="+mode); err != nil {
		t.Fatalf("mount a BPF file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

func open(t *testing.T, dir string) (*Store, *bytes.Buffer) {
	t.Helper()
	var said bytes.Buffer
	s, err := Open(dir, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s, &said
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newRecord(t *testing.T, text string) int {
	t.Helper()
	fd, err := bpf.Record([]byte(text))
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func newMap(t *testing.T) *ebpf.Map {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 8})
	must(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

// What is kept outlives the store that kept it: the next one has the same map, and the
// text that was in a record, before the rest.
func TestKept(t *testing.T) {
	dir := filepath.Join(bpffs(t, "0700"), "probity")
	s, said := open(t, dir)
	m := newMap(t)
	must(t, m.Put(uint32(1), uint32(41)))
	text := strings.Repeat("what it is ", 1000)
	s.Keep(bpf.Descriptors{Name: "file-1", FDs: []int{m.FD(), newRecord(t, text), m.FD()}})
	s.Keep(bpf.Descriptors{Name: "unsigned-7", FDs: []int{newRecord(t, "")}})
	s.Keep(bpf.Descriptors{Name: "gone", FDs: []int{m.FD()}})
	s.Unkeep("gone", "never")
	if said.Len() > 0 {
		t.Errorf("it says %s", said)
	}
	must(t, s.Close())
	must(t, m.Close())

	next, said := open(t, dir)
	defer next.Close()
	must(t, os.Mkdir(filepath.Join(dir, unready+"half"), 0o700)) // whoever kept it was killed
	held, err := next.Take()
	must(t, err)
	if len(held) != 2 || len(held["unsigned-7"]) != 1 || len(held["file-1"]) != 3 || said.Len() > 0 {
		t.Fatalf("%v; it says %s", held, said)
	}
	got, err := io.ReadAll(io.NewSectionReader(held["file-1"][0], 0, bpf.MaxRecord))
	if err != nil || string(got) != text {
		t.Errorf("a record of %d bytes, %v", len(got), err)
	}
	fd, err := bpf.Dup(int(held["file-1"][2].Fd()))
	must(t, err)
	again, err := ebpf.NewMapFromFD(fd)
	must(t, err)
	defer again.Close()
	var v uint32
	if err := again.Lookup(uint32(1), &v); err != nil || v != 41 {
		t.Errorf("%d, %v", v, err)
	}
	for _, files := range held {
		for _, f := range files {
			f.Close()
		}
	}
	must(t, next.Drop())
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// All of a name or nothing is kept, and what cannot be is said.
func TestNotKept(t *testing.T) {
	dir := filepath.Join(bpffs(t, "0700"), "probity")
	s, said := open(t, dir)
	defer s.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer func() { unix.Close(pair[0]); unix.Close(pair[1]) }()
	m := newMap(t)
	for name, fds := range map[string][]int{"socket": {m.FD(), pair[0]}, "../outside": {m.FD()}, "": {m.FD()}, unready + "x": {m.FD()}, "closed": {1 << 20}} {
		said.Reset()
		s.Keep(bpf.Descriptors{Name: name, FDs: fds})
		if !strings.Contains(said.String(), "not kept for the next agent") {
			t.Errorf("%q: it says %q", name, said)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// A directory that somebody else could fill is not believed, and none is used twice.
func TestOpen(t *testing.T) {
	fs, open777 := bpffs(t, "0700"), bpffs(t, "0777")
	must(t, os.Chmod(open777, 0o777)) // the sticky bit is always set at first
	log := slog.New(slog.DiscardHandler)
	must(t, os.Mkdir(filepath.Join(fs, "readable"), 0o755))
	must(t, os.Mkdir(filepath.Join(fs, "theirs"), 0o700))
	must(t, os.Chown(filepath.Join(fs, "theirs"), 65534, 65534))
	must(t, os.Symlink("readable", filepath.Join(fs, "link")))
	for dir, want := range map[string]string{
		t.TempDir() + "/probity": "mount -t bpf bpf /sys/fs/bpf", "relative": "absolute path", fs + "/../x": "absolute path",
		fs + "/readable": "may change", fs + "/theirs": "belongs to uid 65534", fs + "/link": "no directory", open777 + "/probity": "may change",
		fs + "/none/probity": "no such file",
	} {
		s, err := Open(dir, log)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v, want %q", dir, err, want)
		}
		if err == nil {
			s.Close()
		}
	}
	first, err := Open(filepath.Join(fs, "probity"), log)
	must(t, err)
	if _, err := Open(filepath.Join(fs, "probity"), log); !errors.Is(err, unix.EWOULDBLOCK) || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("a second time: %v", err)
	}
	must(t, first.Close())
}
