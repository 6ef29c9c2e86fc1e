package handoff

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
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
