package runtimes

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
)

// Binaries are the programs under test.
type Binaries struct {
	Probity string
	Hook    string
}

// Prebuilt is the variable with the directory of both programs, for a machine without
// a compiler of Go: tests/kernels boots one.
const Prebuilt = "PROBITY_PROGRAMS"

// built is the result of the one build of this test process. It is a value
// that never changes once it is there, kept because linking takes seconds and
// every scenario needs it.
var built = sync.OnceValues(func() (Binaries, error) {
	if dir := os.Getenv(Prebuilt); dir != "" {
		return Binaries{Probity: filepath.Join(dir, "probity"), Hook: filepath.Join(dir, "probity-hook")}, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return Binaries{}, err
	}
	return Build(context.Background(), root, filepath.Join(root, "bin", "test"))
})

// Programs returns the binaries, built from the working tree.
func Programs(t testing.TB) Binaries {
	t.Helper()
	b, err := built()
	if err != nil {
		t.Fatalf("%v", err)
	}
	return b
}

// Build builds both programs of the repository root into dir. The build is
// put in place by rename: another package's tests may be running the old one.
func Build(ctx context.Context, root, dir string) (Binaries, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Binaries{}, fmt.Errorf("build: %w", err)
	}
	fresh, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return Binaries{}, fmt.Errorf("build: %w", err)
	}
	defer os.RemoveAll(fresh)
	b := Binaries{Probity: filepath.Join(dir, "probity"), Hook: filepath.Join(dir, "probity-hook")}
	for path, pkg := range map[string]string{b.Probity: "./plugin", b.Hook: "./hook"} {
		out := filepath.Join(fresh, filepath.Base(path))
		args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", out}
		env := append(os.Environ(), "CGO_ENABLED=0")
		if raced() && path == b.Probity { // the hook does one thing after the other
			args, env = append(args, "-race"), append(os.Environ(), "CGO_ENABLED=1")
		}
		cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
		cmd.Dir, cmd.Env = root, env
		if _, err := output(cmd); err != nil {
			return Binaries{}, fmt.Errorf("build %s: %w", pkg, err)
		}
		if err := os.Rename(out, path); err != nil {
			return Binaries{}, fmt.Errorf("build %s: %w", pkg, err)
		}
	}
	return b, nil
}

// raced says whether this test was built with the race detector: what it tests
// is then, too. A program that has a race is to end there and then, so that the
// test which caused it fails.
func raced() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

const atRaces = "GORACE=halt_on_error=1"

// moduleRoot returns the root of the source tree, from the directory that a
// test of it runs in.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("find the repository: no go.mod above the working directory")
}

func repository(t T) string {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		t.Fatalf("%v", err)
	}
	return root
}
