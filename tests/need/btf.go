package need

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// NoKernelBTF needs root, and hides the kernel's own types (BTF) from the rest
// of this test: from its goroutine, not from those that it starts, so the test
// has no subtests. Nobody else sees it.
func NoKernelBTF(t testing.TB) {
	t.Helper()
	Root(t)
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"unshare the mounts", func() error { return unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS) }},
		{"make the mounts private", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		{"hide the types", func() error {
			if _, err := os.Stat("/sys/kernel/btf"); os.IsNotExist(err) {
				return nil // there are none
			}
			return unix.Mount("tmpfs", "/sys/kernel/btf", "tmpfs", 0, "")
		}},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
	}
}

// KernelBTF needs a kernel that offers its types, and returns them. To be
// called before NoKernelBTF.
func KernelBTF(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("/sys/kernel/btf/vmlinux")
	if err != nil {
		unmet(t, "btf", "%v", err)
	}
	return b
}
