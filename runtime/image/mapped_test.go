package image

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"probity/tests/need"
)

// What a container has at a path is opened where that cannot hang.
func TestResolve(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	for _, d := range []string{"tmp", "fuse"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tmp := filepath.Join(dir, "tmp")
	if err := unix.Mount("tmpfs", tmp, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(tmp, 0) })
	need.DeadFUSE(t, filepath.Join(dir, "fuse"))
	if err := os.WriteFile(filepath.Join(tmp, "file"), []byte("text"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"link": "file", "away": "../fuse/x"} {
		if err := os.Symlink(target, filepath.Join(tmp, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(tmp, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()

	found, err := Resolve(os.Getpid(), root, filepath.Join(tmp, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	dev, err := DeviceOf(os.Getpid(), found)
	var st unix.Stat_t
	if err := errors.Join(err, unix.Stat(filepath.Join(tmp, "file"), &st)); err != nil || dev != st.Dev {
		t.Errorf("on device %d, want %d: %v", dev, st.Dev, err)
	}
	m, err := OpenMapped(os.Getpid(), procFd(int(found.Fd())), found.Name(), dev)
	if err != nil {
		t.Fatal(err)
	}
	if m.Origin != FromTmpfs || m.Size != 4 || !m.Mapped() {
		t.Errorf("%+v", m.Match)
	}
	f, err := m.Open()
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, pattern := range []string{filepath.Join(dir, "**"), "/nowhere"} {
		got, complete, why := m.Glob(pattern)
		if want := pattern != "/nowhere"; (len(got) == 1) != want || !complete || why != "" {
			t.Errorf("%s: %v, %v, %s", pattern, got, complete, why)
		}
	}
	for range 2 {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	if f, err := m.Open(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("once it is closed: %v, %v", f, err)
	}
	own, err := HoldMapped(os.Getpid(), found, found.Name(), dev)
	if err != nil {
		t.Fatal(err)
	}
	if own.Origin != FromTmpfs || own.Size != 4 || own.Close() != nil {
		t.Errorf("%+v", own.Match)
	}
	if err := unix.Fstat(int(found.Fd()), &st); err != nil {
		t.Errorf("what it was made of is not the owner's any more: %v", err)
	}
	for path, want := range map[string]error{
		filepath.Join(dir, "fuse/x"):  ErrRemote,
		filepath.Join(tmp, "link"):    unix.ELOOP,
		filepath.Join(tmp, "away"):    unix.ELOOP,
		tmp + "/../tmp/file":          ErrRemote, // perhaps
		"tmp/file":                    nil,
		filepath.Join(tmp, "nowhere"): unix.ENOENT,
	} {
		if f, err := Resolve(os.Getpid(), root, path); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v, %v; want %v", path, f, err, want)
		}
	}
	fifo, err := Resolve(os.Getpid(), root, filepath.Join(tmp, "fifo"))
	if err != nil {
		t.Fatal(err)
	}
	defer fifo.Close()
	if m, err := Peek(fifo, "/fifo"); !errors.Is(err, ErrNotRegular) {
		t.Errorf("a fifo: %v, %v", m, err)
	}
	if m, err := Peek(found, "/file"); err != nil || m.Path != "/file" || m.Close() != nil {
		t.Errorf("a file: %v, %v", m, err)
	}
}

// An overlay that a container has made itself may be stacked on anything, also on
// what never answers.
func TestOverlayOfTheContainers(t *testing.T) {
	for _, point := range []string{"/", "/mnt"} {
		if got, err := originAt(&mount{point: point, fstype: "overlay", dev: "0:1048575"}, "it"); !errors.Is(err, ErrRemote) {
			t.Errorf("%s: %q, %v", point, got, err)
		}
	}
}
