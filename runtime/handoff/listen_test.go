package handoff

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestListen(t *testing.T) {
	stale := func(t *testing.T, path string) {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
	}
	write := func(t *testing.T, path string) {
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name    string
		before  func(t *testing.T, path string)
		refused bool
	}{
		{"nothing there", func(*testing.T, string) {}, false},
		{"stale socket", stale, false},
		{"stale temporary socket", func(t *testing.T, p string) { stale(t, p+".new") }, false},
		{"a file", write, true},
		{"a file in the temporary's place", func(t *testing.T, p string) { write(t, p+".new") }, true},
		{"a directory", func(t *testing.T, p string) { os.Mkdir(p, 0o700) }, true},
		{"a link to a socket", func(t *testing.T, p string) { stale(t, p+".else"); os.Symlink(p+".else", p) }, true},
		{"the lock is a link", func(t *testing.T, p string) { write(t, p+".else"); os.Symlink(p+".else", p+".lock") }, true},
		{"no directory", func(t *testing.T, p string) { os.Remove(filepath.Dir(p)) }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			test.before(t, path)
			l, err := Listen(path, 0o640)
			if test.refused {
				if err == nil {
					l.Close()
					t.Fatal("listens")
				}
				if b, err := os.ReadFile(path); err == nil && string(b) != "precious" {
					t.Errorf("what was there is now %q", b)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			st, err := os.Lstat(path)
			if err != nil || st.Mode() != os.ModeSocket|0o640 {
				t.Errorf("%v, %v", st, err)
			}
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
			if _, err := Listen(path, 0); !errors.Is(err, ErrInUse) {
				t.Errorf("a second listener: %v", err)
			}
			if err := errors.Join(l.Close(), l.Close()); err != nil {
				t.Errorf("close twice: %v", err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("after Close: %v", err)
			}
			again, err := Listen(path, 0)
			if err != nil {
				t.Fatalf("listen again: %v", err)
			}
			again.Close()
		})
	}
}

// A listener that somebody held is gone on with: who came meanwhile is served, and the
// path was there all the time. What is none, or not what is at the path, is refused.
func TestInherit(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	first, err := Listen(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error)
	go func() {
		_, err := first.AcceptUnix()
		accepted <- err
	}()
	fds, err := first.Descriptors()
	if err != nil {
		t.Fatal(err)
	}
	again := func() (out []*os.File) { // what the service manager hands out each time
		for _, fd := range fds {
			fd, err := unix.Dup(fd)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, os.NewFile(uintptr(fd), path))
		}
		return out
	}
	refused := func(what string, files []*os.File, at string) {
		t.Helper()
		if l, err := Inherit(files, at); err == nil {
			l.Close()
			t.Errorf("%s: taken", what)
		}
		for _, f := range files {
			if f.Fd() != ^uintptr(0) {
				t.Errorf("%s: a file is still open", what)
			}
		}
	}
	refused("while another agent has it", again(), path)
	if err := errors.Join(first.Close(), first.Close()); err != nil {
		t.Fatal(err)
	}
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	client, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatalf("while nobody serves it: %v", err)
	}
	defer client.Close()
	for i, what := range []string{"only what is at the path", "only the socket"} {
		half := again()
		half[i].Close()
		refused(what, []*os.File{half[1-i]}, path)
	}
	other, err := Listen(path+"2", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	more, err := other.Descriptors()
	if err != nil {
		t.Fatal(err)
	}
	mixed := again()
	mixed[0].Close()
	mixed[0] = os.NewFile(uintptr(more[0]), "other")
	refused("another listener", mixed, path)
	unix.Close(more[1])
	refused("another path", again(), path+"3")

	l, err := Inherit(again(), path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("its path is gone: %v", err)
	}
	// Somebody else's since.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	refused("without its path", again(), path)
	third, err := Listen(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	third.keep = true
	third.Close()
	refused("with another socket at its path", again(), path)
	for _, fd := range fds {
		unix.Close(fd)
	}
}
