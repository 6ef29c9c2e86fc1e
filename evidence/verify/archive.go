package verify

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"unicode/utf8"

	"probity/evidence"
)

// This file reads archives of spools: tar, and tar in gzip. Nothing is unpacked:
// chunks are checked as they come by, and of all else only logs and
// acknowledgements are kept, in memory. Who made the archive may be an enemy, so
// everything is bounded, and what no spool has is a finding.

// What an archive may cost. Past a bound the archive is not looked at any further,
// and that is a finding.
const (
	maxEntries     = 4 << 20   // entries
	maxNameBytes   = 256 << 20 // of all names together
	maxName        = 4096      // bytes of one
	maxDepth       = 32        // directories of one
	maxSpools      = 1024      // spools in it
	maxSideFiles   = 1 << 18   // of logs and acknowledgements; a log of a million chunks has 8,000
	maxSideBytes   = 256 << 20 // of logs and acknowledgements together
	maxSideFile    = 4 << 20   // of one of them; the largest of a log has half
	maxRatio       = 200       // bytes per byte of gzip; chunks have about 20
	freeBytes      = 64 << 20  // before the ratio is looked at
	maxPadding     = 1 << 20   // of zeros behind the end
	maxBadEntries  = 1000      // findings of one archive
	tarBlock       = 512
	tarMagicOffset = 257
)

var errBomb = fmt.Errorf("it unpacks to more than %d times its size", maxRatio)

// isArchive reports whether a file begins like a tar archive or like gzip.
func isArchive(head []byte) bool {
	return isGzip(head) || len(head) >= tarMagicOffset+5 && string(head[tarMagicOffset:tarMagicOffset+5]) == "ustar"
}

func isGzip(head []byte) bool { return bytes.HasPrefix(head, []byte{0x1f, 0x8b}) }

// archive is one archive, while and after it is read.
type archive struct {
	name  string // for findings
	found []Finding
	side  sideFiles
	roots map[string]bool // the spools in it: directories with ready/ or a log
	names int             // bytes
	kept  int             // bytes of side files
	sides int             // side files
	n     int             // chunk files
	onWay []string        // side files that may be chunks that were not published yet
}

func newArchive(name string) *archive {
	return &archive{name: name, side: sideFiles{}, roots: map[string]bool{}}
}

// errFull ends the reading of an archive that is past a bound; the finding is said.
var errFull = errors.New("past a bound")

func (a *archive) say(kind Kind, name, format string, args ...any) error {
	file := a.name
	if name != "" {
		file += "/" + strings.ToValidUTF8(name, "\ufffd")
	}
	a.found = append(a.found, Finding{Kind: kind, File: file, Reason: fmt.Sprintf(format, args...)})
	if len(a.found) < maxBadEntries {
		return nil
	}
	a.found = append(a.found, full(a.name))
	return errFull
}

func full(name string) Finding {
	return Finding{Kind: BadArchive, File: name, Reason: "too much is wrong with it: from here on it was not looked at"}
}

// read goes through the archive. take is given each chunk file, whose bytes it must
// not keep. An error is one of the reader below, or of ctx: everything that is wrong
// with the archive itself is a finding.
func (a *archive) read(ctx context.Context, r io.Reader, take func(file, io.Reader, int64) error) error {
	in := &source{r: r}
	buffered := bufio.NewReaderSize(in, 64<<10)
	head, _ := buffered.Peek(2)
	var plain io.Reader = buffered
	if isGzip(head) {
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return a.broken(in, err)
		}
		plain = &measured{r: z, in: in}
	}
	end := &ending{r: plain}
	t := tar.NewReader(end)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil && n == maxEntries {
			err = fmt.Errorf("more than %d entries", maxEntries)
		}
		if err != nil {
			return a.broken(in, err)
		}
		if err := a.entry(h, t, take); err != nil {
			if errors.Is(err, errFull) {
				return nil
			}
			return a.broken(in, err)
		}
	}
	if !end.marked() {
		_ = a.say(Truncated, "", "the archive has no end: it is cut off")
		return nil
	}
	return a.rest(in, plain)
}

// rest looks at what follows the end.
func (a *archive) rest(in *source, r io.Reader) error {
	buf := make([]byte, 32<<10)
	for n := 0; ; {
		got, err := r.Read(buf)
		if n += got; n > maxPadding || bytes.ContainsFunc(buf[:got], func(c rune) bool { return c != 0 }) {
			_ = a.say(BadArchive, "", "something follows the archive's end")
			return nil
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return a.broken(in, err)
		}
	}
}

// broken says what is wrong with an archive that cannot be read on. What the disk
// says is no finding.
func (a *archive) broken(in *source, err error) error {
	switch {
	case in.err != nil:
		return fmt.Errorf("read %s: %w", a.name, in.err)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		_ = a.say(Truncated, "", "the archive is cut off")
	default:
		_ = a.say(BadArchive, "", "%v", err)
	}
	return nil
}

// entry takes one entry.
func (a *archive) entry(h *tar.Header, r io.Reader, take func(file, io.Reader, int64) error) error {
	if h.Typeflag == tar.TypeXGlobalHeader { // git archive writes one, with a comment
		for k := range h.PAXRecords {
			if k != "comment" { // archive/tar does not heed it, and tar does: it would unpack another archive
				return a.say(BadArchive, "", "a global header, which says something of all files: %.40q", k)
			}
		}
		return nil
	}
	if p, ok := h.PAXRecords["path"]; ok && p != h.Name {
		return a.say(BadArchive, h.Name, "a file of two names, which tar unpacks as %.200q", p)
	}
	name, err := entryName(h.Name)
	if err != nil {
		return a.say(BadArchive, h.Name, "%v", err)
	}
	if h.Typeflag == tar.TypeDir {
		return nil
	}
	root, rel, inReady := inSpool(name)
	if inReady {
		if err := a.addRoot(root); err != nil {
			return err
		}
	}
	switch {
	case h.Typeflag != tar.TypeReg && inReady:
		return a.say(Misplaced, name, "not a regular file (%s)", entryType(h))
	case h.Typeflag != tar.TypeReg:
		return a.say(BadArchive, name, "not a regular file (%s), which no spool has", entryType(h))
	case isSparse(h):
		return a.say(BadArchive, name, "a sparse file, which no spool has")
	}
	if _, twice := a.side[name]; twice {
		return a.say(Duplicated, name, "the archive has this name twice")
	}
	if a.names += len(name); a.names > maxNameBytes {
		return fmt.Errorf("its names have more than %d bytes", maxNameBytes)
	}
	switch {
	case !inReady && h.Size <= evidence.MaxChunkBytes && isOnItsWay(name):
		a.onWay = append(a.onWay, name)
		return a.keep(name, r, evidence.MaxChunkBytes)
	case inReady || strings.HasSuffix(name, ".ndjson"):
		a.side[name] = nil // that it is there
		a.n++
		if h.Size > evidence.MaxChunkBytes {
			return a.say(Malformed, name, "%v: %d bytes, a chunk has at most %d", errNotChunk, h.Size, evidence.MaxChunkBytes)
		}
		f := file{path: a.name + "/" + name}
		if inReady {
			f.rel, f.spool = rel, a.spool(root)
		}
		err := take(f, r, h.Size)
		if errors.Is(err, errFull) {
			a.found = append(a.found, full(a.name))
		}
		return err
	case isSide(name):
		if err := a.keep(name, r, maxSideFile); err != nil {
			return err
		}
		if root, ok := strings.CutSuffix("/"+name, "/"+logDir+"/checkpoint"); ok && path.Base(path.Dir(root)) != retiredDir {
			return a.addRoot(strings.TrimPrefix(root, "/"))
		}
	}
	return nil
}

// keep keeps a file in memory.
func (a *archive) keep(name string, r io.Reader, most int64) error {
	if a.sides++; a.sides > maxSideFiles {
		return fmt.Errorf("its logs have more than %d files: unpack it and verify the directory", maxSideFiles)
	}
	b, err := io.ReadAll(io.LimitReader(r, most))
	if err != nil {
		return err
	}
	if a.kept += len(b); a.kept > maxSideBytes {
		return fmt.Errorf("its logs have more than %d bytes: unpack it and verify the directory", maxSideBytes)
	}
	a.side[name] = b
	return nil
}

// isOnItsWay reports whether a file may be a chunk that was not published yet: those of
// a spool count if its log has them (logCheck.late).
func isOnItsWay(name string) bool {
	chunk, ok := strings.CutSuffix(path.Base(name), ".ndjson")
	_, _, valid := evidence.ParseChunkName(chunk)
	return ok && valid && path.Base(path.Dir(name)) == tmpDir
}

// strays gives take the chunk files in directories that are called like a spool's and are
// none's: they are files that were named one by one.
func (a *archive) strays(take func(file, io.Reader, int64) error) error {
	for _, name := range a.onWay {
		root := path.Dir(path.Dir(name))
		if root == "." {
			root = ""
		}
		if b := a.side[name]; !a.roots[root] {
			a.n++
			if err := take(file{path: a.name + "/" + name}, bytes.NewReader(b), int64(len(b))); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *archive) addRoot(root string) error {
	a.roots[root] = true
	if len(a.roots) > maxSpools {
		return fmt.Errorf("more than %d spools", maxSpools)
	}
	return nil
}

// spool is what findings call a spool in the archive.
func (a *archive) spool(root string) string {
	if root == "" {
		return a.name
	}
	return a.name + "/" + root
}

// entryName is the name of an entry as a path below the archive. What would lead
// somebody who unpacks it elsewhere, or could be read in two ways, is none.
func entryName(name string) (string, error) {
	clean := strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/")
	switch {
	case clean == "" || clean == ".":
		return ".", nil
	case !utf8.ValidString(clean) || strings.ContainsFunc(clean, func(r rune) bool { return r < ' ' || r == '\\' || r == 0x7f }):
		return "", errors.New("its name has what no file of a spool has in its name")
	case len(clean) > maxName || strings.Count(clean, "/") > maxDepth:
		return "", fmt.Errorf("its name has more than %d bytes, or leads through more than %d directories", maxName, maxDepth)
	case !fs.ValidPath(clean):
		return "", errors.New("its name leads out of the archive, or is not in its shortest form")
	}
	return clean, nil
}

// inSpool takes a path below some ready/ apart. Where there are several, it is the
// last: the others are in front of the spool.
func inSpool(name string) (root, rel string, ok bool) {
	parts := strings.Split(name, "/")
	for at := len(parts) - 2; at >= 0; at-- {
		switch parts[at] {
		case readyDir:
			return strings.Join(parts[:at], "/"), strings.Join(parts[at+1:], "/"), true
		case logDir, retiredDir, AckDir:
			return "", "", false
		}
	}
	return "", "", false
}

// isSide reports whether a file may be of a spool's log, or an acknowledgement.
func isSide(name string) bool {
	for p := range strings.SplitSeq(name, "/") {
		if p == logDir || p == retiredDir || p == AckDir {
			return true
		}
	}
	return false
}

func isSparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

func entryType(h *tar.Header) string {
	switch h.Typeflag {
	case tar.TypeLink:
		return "a hard link"
	case tar.TypeSymlink:
		return "a symbolic link"
	case tar.TypeChar, tar.TypeBlock:
		return "a device"
	case tar.TypeFifo:
		return "a FIFO"
	case tar.TypeGNUSparse:
		return "a sparse file"
	}
	return fmt.Sprintf("type %q", h.Typeflag)
}

// source remembers what went wrong outside of the archive, and how much was read.
type source struct {
	r   io.Reader
	n   int64
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// measured ends a bomb.
type measured struct {
	r  io.Reader
	in *source
	n  int64
}

func (m *measured) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if m.n += int64(n); m.n > freeBytes && m.n/maxRatio > m.in.n {
		return n, errBomb
	}
	return n, err
}

// ending remembers the last two blocks: zeros mark an archive's end, and
// archive/tar does without.
type ending struct {
	r    io.Reader
	last []byte
}

func (e *ending) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	e.last = append(e.last, p[max(0, n-2*tarBlock):n]...)
	e.last = e.last[max(0, len(e.last)-2*tarBlock):]
	return n, err
}

func (e *ending) marked() bool {
	return len(e.last) == 2*tarBlock && !bytes.ContainsFunc(e.last, func(c rune) bool { return c != 0 })
}
