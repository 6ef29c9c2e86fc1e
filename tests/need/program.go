package need

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Peers is the variable with the directory of the programs that
// scripts/peers.sh builds.
const Peers = "PROBITY_PEERS"

// adminDirs are searched after PATH: an ordinary user's PATH, and the one that
// sudo hands over, often lack them, and runc and iptables live there.
var adminDirs = []string{"/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/lib/podman", "/usr/libexec/podman"}

// Look returns the path of an installed program.
func Look(name string) (string, bool) {
	if path, err := exec.LookPath(name); err == nil {
		return path, true
	}
	for _, dir := range adminDirs {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, true
		}
	}
	return "", false
}

// Command needs every one of these programs, and returns their paths.
func Command(t testing.TB, names ...string) []string {
	t.Helper()
	var paths []string
	for _, name := range names {
		path, ok := Look(name)
		if !ok {
			unmet(t, "command:"+name, "it is not installed")
		}
		paths = append(paths, path)
	}
	return paths
}

// Podman needs root and podman with what it cannot run without, and returns
// podman's path.
func Podman(t testing.TB) string {
	t.Helper()
	Root(t)
	for _, name := range []string{"podman", "conmon"} {
		if _, ok := Look(name); !ok {
			unmet(t, "podman", "%s is not installed", name)
		}
	}
	Runc(t)
	path, _ := Look("podman")
	return path
}

// Runc needs root and runc, and returns its path. It is the runtime of all
// tests because crun refuses to run in hybrid cgroup mode.
func Runc(t testing.TB) string {
	t.Helper()
	Root(t)
	path, ok := Look("runc")
	if !ok {
		unmet(t, "runc", "runc is not installed")
	}
	return path
}

// ContainerdTools are the programs of one containerd.
type ContainerdTools struct {
	Dir        string // holds all of them; the shim is found through PATH, so put it there
	Containerd string
	Shim       string // containerd-shim-runc-v2
	Ctr        string
}

// Containerd needs root, runc and a containerd of 2.0 or later that was built
// from its module.
func Containerd(t testing.TB) ContainerdTools {
	t.Helper()
	Root(t)
	Runc(t)
	c := ContainerdIn(PeersDir(t))
	for _, path := range []string{c.Containerd, c.Shim, c.Ctr} {
		peer(t, "containerd", path)
	}
	return c
}

// ContainerdIn names the programs in dir, whether they are there or not.
func ContainerdIn(dir string) ContainerdTools {
	return ContainerdTools{
		Dir:        dir,
		Containerd: filepath.Join(dir, "containerd"),
		Shim:       filepath.Join(dir, "containerd-shim-runc-v2"),
		Ctr:        filepath.Join(dir, "ctr"),
	}
}

// Cosign needs cosign built from its module, and returns its path.
func Cosign(t testing.TB) string {
	t.Helper()
	path := filepath.Join(PeersDir(t), "cosign")
	peer(t, "cosign", path)
	return path
}

// Runsc needs root and gVisor's runsc built from its module, and returns its
// path.
func Runsc(t testing.TB) string {
	t.Helper()
	Root(t)
	path := filepath.Join(PeersDir(t), "runsc")
	peer(t, "runsc", path)
	return path
}

// Collector needs the OpenTelemetry Collector built from its modules, and returns
// its path. Only its name requires it: building it takes four minutes of a
// processor, so that only make test-full does.
func Collector(t testing.TB) string {
	t.Helper()
	path := filepath.Join(PeersDir(t), "otelcol")
	peer(t, "otelcol", path)
	return path
}

// Rustc needs Rust's compiler, and returns its path. Only its name requires it:
// it takes 200 MB or more, so that only make test-full installs it.
func Rustc(t testing.TB) string {
	t.Helper()
	path, ok := Look("rustc")
	if home, err := os.UserHomeDir(); !ok && err == nil {
		path, err = exec.LookPath(filepath.Join(home, ".cargo/bin/rustc"))
		ok = err == nil
	}
	if !ok {
		unmet(t, "rustc", "it is not installed, nor below ~/.cargo")
	}
	return path
}

// Interpreter needs Node.js ("node") or a Java runtime ("java"), and returns the
// path of its program, without links. Only its name requires it: each takes some
// 200 MB, so that only make test-full installs it.
func Interpreter(t testing.TB, name string) string {
	t.Helper()
	path, ok := Look(name)
	if !ok {
		unmet(t, name, "it is not installed")
	}
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		t.Fatalf("find %s: %v", name, err)
	}
	return path
}

// QEMU needs one of QEMU's programs, and returns its path. Only its name
// requires it: no user needs it, and it is large.
func QEMU(t testing.TB, name string) string {
	t.Helper()
	path, ok := Look(name)
	if !ok {
		unmet(t, "qemu", "%s is not installed", name)
	}
	return path
}

func peer(t testing.TB, name, path string) {
	t.Helper()
	if _, err := exec.LookPath(path); err != nil {
		unmet(t, name, "%s is not there; scripts/peers.sh %s builds it", path, name)
	}
}

// PeersDir returns the directory that scripts/peers.sh builds into. It need
// not exist.
func PeersDir(t testing.TB) string {
	t.Helper()
	if dir := strings.TrimSpace(os.Getenv(Peers)); dir != "" {
		return dir
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatalf("find the cache directory, or set %s: %v", Peers, err)
	}
	return filepath.Join(cache, "probity", "peers")
}
