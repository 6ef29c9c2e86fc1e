// Package runtimes drives real container runtimes and the real agent: a
// containerd of its own through the CRI API, a podman with its own storage,
// images built offline, and bin/probity as an operator would start it. The
// scenario tests beside it and the demo (tests/demo) are written on top.
//
// In: installed programs (see tests/need). Out: handles whose methods end the
// test when something fails. Everything lives in one new directory and below
// one new cgroup per [Scratch], and is gone when the test is over: processes,
// mounts, cgroups, files. Nothing of the system's own podman or containerd is
// read or changed. It trusts the machine; it is not a control of anything.
package runtimes

import (
	"context"
	"os"
	"path/filepath"
	"time"
)

// T is what the harness needs of a test. The demo, which is not a test, has
// its own.
type T interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Failed() bool
	Cleanup(func())
	Context() context.Context
}

// Patience bounds every single wait of the harness: a failsafe, and no measure of
// anything. Nothing waits for it to pass.
const Patience = 3 * time.Minute

// within returns the test's context with a deadline. Cleanup functions, which
// run when the test's own context is over, pass nil.
func within(t T, d time.Duration) (context.Context, context.CancelFunc) {
	if t == nil {
		return context.WithTimeout(context.Background(), d)
	}
	return context.WithTimeout(t.Context(), d)
}

// Scratch is a directory with a short path (unix sockets take 107 bytes) and
// the name of a cgroup that nobody else has.
type Scratch struct {
	Dir    string
	Cgroup string // "/probity-XXXX": the parent of all containers made here
}

// NewScratch makes one, and sweeps it when the test is over.
func NewScratch(t T) *Scratch {
	t.Helper()
	dir, err := os.MkdirTemp("", "probity-")
	if err != nil {
		t.Fatalf("make a scratch directory: %v", err)
	}
	s := &Scratch{Dir: dir, Cgroup: "/" + filepath.Base(dir)}
	t.Cleanup(func() {
		if err := s.sweep(); err != nil {
			t.Errorf("sweep %s: %v", s.Dir, err)
		}
	})
	return s
}

// Path returns the path of name below the scratch directory.
func (s *Scratch) Path(name ...string) string {
	return filepath.Join(append([]string{s.Dir}, name...)...)
}

// mkdir makes a directory below the scratch directory and returns its path.
func (s *Scratch) mkdir(t T, name ...string) string {
	t.Helper()
	dir := s.Path(name...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatalf("make %s: %v", dir, err)
	}
	return dir
}

// write writes a file below the scratch directory and returns its path.
func (s *Scratch) write(t T, name, text string) string {
	t.Helper()
	path := s.Path(name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatalf("write %s: %v", path, err)
	}
	return path
}
