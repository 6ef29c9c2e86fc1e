package need

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Kernels is the variable with the directory that scripts/kernels.sh fetches
// into.
const Kernels = "PROBITY_KERNELS"

// Kernel needs a kernel to boot in a virtual machine, by its name in
// tests/kernels/machines.txt, and the program that emulates the machine. It
// returns the cache directory, which has the userlands, too.
func Kernel(t testing.TB, qemu, name string) string {
	t.Helper()
	if _, ok := Look(qemu); !ok {
		unmet(t, "kernel", "%s is not installed", qemu)
	}
	dir := strings.TrimSpace(os.Getenv(Kernels))
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatalf("find the cache directory, or set %s: %v", Kernels, err)
		}
		dir = filepath.Join(cache, "probity", "kernels")
	}
	if _, err := os.Stat(filepath.Join(dir, name, "vmlinuz")); err != nil {
		unmet(t, "kernel", "%v; scripts/kernels.sh %s fetches it", err, name)
	}
	return dir
}
