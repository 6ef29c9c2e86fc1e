package verify

import (
	"bytes"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// sideFiles is a file system of what was kept of an archive: regular files by their
// names, which entryName has checked. Chunk files are in it without their bytes.
type sideFiles map[string][]byte

// Open implements fs.FS.
func (s sideFiles) Open(name string) (fs.File, error) {
	if b, ok := s[name]; ok && fs.ValidPath(name) {
		return &sideFile{sideInfo{path.Base(name), int64(len(b)), 0o444}, bytes.NewReader(b)}, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// trees returns the spools in these directories of the archive, each with an index of
// its directories. A file is the nearest spool's.
func (s sideFiles) trees(roots map[string]bool) map[string]sideTree {
	trees := map[string]sideTree{}
	for root := range roots {
		trees[root] = sideTree{files: s, root: root, dirs: map[string][]fs.DirEntry{}}
	}
	for name, b := range s {
		if b == nil {
			continue
		}
		root, name, ok := nearest(roots, name)
		if !ok {
			continue
		}
		dirs := trees[root].dirs
		entry := fs.FileInfoToDirEntry(sideInfo{path.Base(name), int64(len(b)), 0o444})
		for dir := path.Dir(name); ; dir = path.Dir(dir) {
			known := dirs[dir] != nil
			dirs[dir] = append(dirs[dir], entry)
			if known || dir == "." {
				break
			}
			entry = fs.FileInfoToDirEntry(sideInfo{path.Base(dir), 0, 0o555 | fs.ModeDir})
		}
	}
	for _, t := range trees {
		for _, list := range t.dirs {
			slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
		}
	}
	return trees
}

// nearest takes the name of a log's file, or of an acknowledgement's, apart.
func nearest(roots map[string]bool, name string) (root, rel string, ok bool) {
	parts := strings.Split(name, "/")
	for at := len(parts) - 2; at >= 0; at-- {
		switch parts[at] {
		case logDir, retiredDir, AckDir:
			if root := strings.Join(parts[:at], "/"); roots[root] {
				return root, strings.Join(parts[at:], "/"), true
			}
		}
	}
	return "", "", false
}

// sideTree is one spool of an archive.
type sideTree struct {
	files sideFiles
	root  string
	dirs  map[string][]fs.DirEntry
}

// Open implements fs.FS.
func (t sideTree) Open(name string) (fs.File, error) { return t.files.Open(path.Join(t.root, name)) }

// ReadDir implements fs.ReadDirFS.
func (t sideTree) ReadDir(name string) ([]fs.DirEntry, error) {
	if list, ok := t.dirs[name]; ok {
		return list, nil
	}
	return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrNotExist}
}

type sideFile struct {
	info sideInfo
	*bytes.Reader
}

func (f *sideFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *sideFile) Close() error               { return nil }

var _ io.Reader = (*sideFile)(nil)

type sideInfo struct {
	name string
	size int64
	mode fs.FileMode
}

func (i sideInfo) Name() string       { return i.name }
func (i sideInfo) Size() int64        { return i.size }
func (i sideInfo) Mode() fs.FileMode  { return i.mode }
func (i sideInfo) ModTime() time.Time { return time.Time{} }
func (i sideInfo) IsDir() bool        { return i.mode.IsDir() }
func (i sideInfo) Sys() any           { return nil }
