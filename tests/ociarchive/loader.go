package ociarchive

import (
	"debug/elf"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// loaded returns the absolute paths of the loader and the libraries of the
// program prog, none if it is static. It asks the program's own loader
// (--list, which glibc's has; the program itself is not run): it alone knows
// ld.so.conf and the hardware directories.
func loaded(prog string, dirs []string) ([]string, error) {
	interp, err := interpreter(prog)
	if err != nil || interp == "" {
		return nil, err
	}
	abs, err := filepath.Abs(prog)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(interp, "--list", abs)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(dirs, ":"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("list the libraries of %s: %w: %s", prog, err, out)
	}
	paths := []string{interp}
	for line := range strings.Lines(string(out)) {
		name, path, found := strings.Cut(strings.TrimSpace(line), " => ")
		if !found {
			path = name
		}
		path, _, _ = strings.Cut(path, " (")
		if filepath.IsAbs(path) && !slices.Contains(paths, path) {
			paths = append(paths, path)
		} else if found && !filepath.IsAbs(path) {
			return nil, fmt.Errorf("list the libraries of %s: %s: %s", prog, name, path)
		}
	}
	return paths, nil
}

func interpreter(prog string) (string, error) {
	f, err := elf.Open(prog)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", prog, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b, err := io.ReadAll(p.Open())
		if err != nil {
			return "", fmt.Errorf("read %s: the interpreter: %w", prog, err)
		}
		return strings.TrimRight(string(b), "\x00"), nil
	}
	return "", nil
}
