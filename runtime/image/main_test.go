package image

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/bmatcuk/doublestar/v4"
	"go.uber.org/goleak"
)

// inRoot tells the test binary to be the reference: it changes its root to the
// directory that the variable names and globs there with doublestar itself, so
// that the kernel resolves every symlink and every layer.
const inRoot = "PROBITY_TEST_GLOB_IN"

func TestMain(m *testing.M) {
	if root := os.Getenv(inRoot); root != "" {
		if err := reference(root, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if out := os.Getenv(hookReport); out != "" {
		if err := hook(out); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func reference(root string, patterns []string) error {
	if err := syscall.Chroot(root); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	out := make(map[string][]string)
	for _, p := range patterns {
		got, err := doublestar.FilepathGlob(p)
		if err != nil {
			return err
		}
		paths := []string{}
		for _, path := range got {
			real, err := filepath.EvalSymlinks(path)
			if err != nil { // dangling, or a loop
				continue
			}
			if st, err := os.Lstat(real); err != nil || st.Mode().Type() == fs.ModeDir {
				continue
			}
			paths = append(paths, real)
		}
		slices.Sort(paths)
		out[p] = slices.Compact(paths)
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}
