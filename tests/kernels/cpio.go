package kernels

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// archive writes a cpio archive in the "newc" format, the one that the kernel
// unpacks (Documentation/driver-api/early-userspace/buffer-format.rst). The
// first error stays.
type archive struct {
	w    io.Writer
	ino  int
	dirs map[string]bool
	err  error
}

func newArchive(w io.Writer) *archive { return &archive{w: w, dirs: map[string]bool{}} }

func (a *archive) entry(name string, mode uint32, data []byte) {
	a.ino++
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.write([]byte(header + name + "\x00"))
	a.pad(len(header) + len(name) + 1)
	a.write(data)
	a.pad(len(data))
}

func (a *archive) write(b []byte) {
	if a.err == nil {
		_, a.err = a.w.Write(b)
	}
}

func (a *archive) pad(n int) { a.write(make([]byte, -n&3)) }

const (
	modeDir  = 0o040755
	modeFile = 0o100000
)

// file adds a regular file, and the directories on its way.
func (a *archive) file(name string, perm fs.FileMode, data []byte) {
	name = strings.TrimPrefix(path.Clean(name), "/")
	a.parents(name)
	a.entry(name, modeFile|uint32(perm.Perm()), data)
}

func (a *archive) parents(name string) {
	dir := path.Dir(name)
	if dir == "." || a.dirs[dir] {
		return
	}
	a.parents(dir)
	a.dirs[dir] = true
	a.entry(dir, modeDir, nil)
}

// copyFile adds the host's file from.
func (a *archive) copyFile(name, from string) {
	if a.err != nil {
		return
	}
	info, err := os.Stat(from)
	if err != nil {
		a.err = err
		return
	}
	data, err := os.ReadFile(from)
	if err != nil {
		a.err = err
		return
	}
	a.file(name, info.Mode(), data)
}

// copyDir adds the regular files below the host's directory from.
func (a *archive) copyDir(name, from string) {
	if a.err != nil {
		return
	}
	err := filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		a.copyFile(path.Join(name, filepath.ToSlash(rel)), p)
		return a.err
	})
	if a.err == nil {
		a.err = err
	}
}

// end writes the trailer. Another archive may follow.
func (a *archive) end() error {
	a.entry("TRAILER!!!", 0, nil)
	return a.err
}
