package verify

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"probity/evidence"
)

// readyDir is where a spool keeps its chunks (evidence/spool).
const readyDir = "ready"

var (
	errVanished = errors.New("removed while we looked")
	errNotChunk = errors.New("not a chunk")
)

// file is one file to check.
type file struct {
	path string
	rel  string // below ready/; "" for a file that was named itself
	// spool is the directory that was named, for a file in one.
	spool string
}

// stdin is the path of standard input.
const stdin = "-"

// paths is what there is to look at.
type paths struct {
	files   []file
	streams []string // archives, and standard input
	spools  []spool  // directories
	found   []Finding
}

// find lists what paths name, each file once. What is wrong with the names in a
// spool is a finding; what cannot be listed is part of the error.
func find(list []string) (in paths, err error) {
	var errs []error
	seen := map[string]bool{}
	once := func(path string) bool {
		path = filepath.Clean(path)
		if seen[path] {
			return false
		}
		seen[path] = true
		return true
	}
	for _, p := range spoolsFirst(list) {
		if p == stdin {
			if once(p) {
				in.streams = append(in.streams, p)
			}
			continue
		}
		st, err := os.Stat(p)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%w: %w", ErrLook, err))
			continue
		case !once(p):
			continue
		case !st.IsDir() && looksLikeArchive(p):
			in.streams = append(in.streams, p)
			continue
		case !st.IsDir():
			in.files = append(in.files, file{path: p})
			continue
		}
		in.spools = append(in.spools, spool{name: p})
		n, failed := 0, len(errs)
		root := filepath.Join(p, readyDir)
		err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist) && path != root:
				return nil // a shipper removes what it has delivered
			case err != nil:
				errs = append(errs, fmt.Errorf("%w: %w", ErrLook, err))
				if e != nil && e.IsDir() {
					return fs.SkipDir
				}
				return nil
			case e.IsDir():
				return nil
			}
			n++
			if !e.Type().IsRegular() {
				in.found = append(in.found, Finding{Kind: Misplaced, File: path, Reason: fmt.Sprintf("not a regular file (%v)", e.Type())})
				return nil
			}
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			if once(path) {
				in.files = append(in.files, file{path: path, rel: rel, spool: p})
			}
			return nil
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("%w: %w", ErrLook, err))
		} else if n == 0 && len(errs) == failed {
			errs = append(errs, fmt.Errorf("%w: %s: a spool without any chunk", ErrLook, p))
		}
	}
	return in, errors.Join(errs...)
}

// spoolsFirst puts directories first: a chunk in one that is named itself, too, is
// checked as the spool's.
func spoolsFirst(list []string) []string {
	var dirs, others []string
	for _, p := range list {
		if st, err := os.Stat(p); err == nil && st.IsDir() {
			dirs = append(dirs, p)
		} else {
			others = append(others, p)
		}
	}
	return append(dirs, others...)
}

// looksLikeArchive looks at how a file begins. What cannot be read is left to who
// reads it as a chunk.
func looksLikeArchive(path string) bool {
	f, err := openFile(path, false)
	if err != nil {
		return false
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return false
	}
	head := make([]byte, tarBlock)
	n, err := io.ReadFull(f, head)
	return (err == nil || errors.Is(err, io.ErrUnexpectedEOF)) && isArchive(head[:n])
}

// read returns the file's bytes, bounded by what a chunk can have. They lie in
// *buf, which it makes larger where needed.
func (f file) read(buf *[]byte) ([]byte, error) {
	h, err := openFile(f.path, f.rel != "")
	if err != nil {
		if f.rel != "" && errors.Is(err, fs.ErrNotExist) {
			return nil, errVanished
		}
		return nil, err
	}
	defer h.Close()
	st, err := h.Stat()
	if err != nil {
		return nil, err
	}
	switch {
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%w: not a regular file (%v)", errNotChunk, st.Mode().Type())
	case st.Size() > evidence.MaxChunkBytes:
		return nil, fmt.Errorf("%w: %d bytes, a chunk has at most %d", errNotChunk, st.Size(), evidence.MaxChunkBytes)
	}
	if need := int(st.Size()) + 1; cap(*buf) < need {
		*buf = make([]byte, need)
	}
	b := (*buf)[:st.Size()+1] // one more: a file that grows is no chunk
	n, err := io.ReadFull(h, b)
	switch {
	case err == nil:
		return nil, fmt.Errorf("%w: it grew while it was read", errNotChunk)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return b[:n], nil
	}
	return nil, fmt.Errorf("read %s: %w", f.path, err)
}

// named compares a chunk's place in a spool with its name.
func (f file) named(c *Chunk) []Finding {
	if f.rel == "" {
		return nil
	}
	if want := evidence.ChunkPath(c.Header.Chunk); filepath.ToSlash(f.rel) != want {
		if strings.TrimSuffix(filepath.Base(f.rel), ".ndjson") == c.Header.Chunk {
			return []Finding{{Kind: Misplaced, File: f.path, Reason: fmt.Sprintf("not where the chunk belongs, %s", readyDir+"/"+want)}}
		}
		return []Finding{{Kind: Misplaced, File: f.path, Line: 1, Reason: fmt.Sprintf("the file's name is not its chunk's, %s", c.Header.Chunk)}}
	}
	return nil
}
