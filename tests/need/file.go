package need

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// DeadFUSE needs FUSE, and mounts one on dir whose server never answers: what
// touches a file below it hangs until the test is over.
func DeadFUSE(t testing.TB, dir string) {
	t.Helper()
	Root(t)
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		unmet(t, "fuse", "%v", err)
	}
	err = unix.Mount("fuse", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, "fd="+strconv.Itoa(int(dev.Fd()))+",rootmode=40000,user_id=0,group_id=0")
	if err != nil {
		dev.Close()
		unmet(t, "fuse", "mount one: %v", err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Unmount(dir, unix.MNT_DETACH), dev.Close()); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
}

// File needs what a file was opened for: err is how that ended.
func File(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		unmet(t, "file", "%s: %v", what, err)
	}
}

// GNUCLibrary needs the C library of this machine to be glibc, and returns its
// path.
func GNUCLibrary(t testing.TB) string {
	t.Helper()
	path := CLibrary(t)
	if !strings.HasSuffix(path, "/libc.so.6") {
		unmet(t, "libc", "%s is another", path)
	}
	return path
}

// CLibrary needs the C library of this machine, and returns its path.
func CLibrary(t testing.TB) string {
	t.Helper()
	for _, pattern := range []string{"/lib/*-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/lib/libc.so.6", "/lib/ld-musl-*.so.1"} {
		if m, _ := filepath.Glob(pattern); len(m) > 0 {
			return m[0]
		}
	}
	unmet(t, "libc", "none is where it is expected")
	return ""
}
