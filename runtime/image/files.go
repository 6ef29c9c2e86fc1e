package image

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// LayerFiles is what one layer holds, whether the container sees it or not: a
// layer never changes, so that what is found out about its files is found out
// once for all containers.
type LayerFiles struct {
	Layer Layer
	x     *Index
}

// LayerFiles returns the layers, top first.
func (v *View) LayerFiles() []LayerFiles {
	out := make([]LayerFiles, len(v.r.Layers))
	for i, l := range v.r.Layers {
		out[i] = LayerFiles{l, v.m.layers[i]}
	}
	return out
}

// Key names the layer by what it is and where it lies; "" if it could not be
// read, and is empty here.
func (f LayerFiles) Key() string { return f.x.key }

// Each calls fn with the paths of the layer's regular files, below Layer.Dir and
// in an order that never changes, from file number from on, until fn returns
// false.
func (f LayerFiles) Each(from int, fn func(rel string) bool) {
	n := 0
	var walk func(d uint32, rel string) bool
	walk = func(d uint32, rel string) bool {
		kids := f.x.children(d)
		for i := range kids {
			e := &kids[i]
			switch e.kind {
			case regular:
				if n++; n > from && !fn(join(rel, f.x.name(e))) {
					return false
				}
			case directory:
				// A path that is too long was not read further, so this ends.
				if !walk(e.sub, join(rel, f.x.name(e))) {
					return false
				}
			}
		}
		return true
	}
	walk(0, "")
}

// OpenDir is a layer's directory, open to read many of its files.
type OpenDir struct {
	layer Layer
	fd    int
}

// Open opens the layer's directory.
func (f LayerFiles) Open() (*OpenDir, error) {
	fd, err := f.Layer.open(false)
	if err != nil {
		return nil, fmt.Errorf("open layer %s: %w", f.Layer.Dir, err)
	}
	return &OpenDir{f.Layer, fd}, nil
}

// Close closes the directory.
func (d *OpenDir) Close() error { return unix.Close(d.fd) }

// Read opens one of the layer's files as [Match.Open] does, and returns its size.
func (d *OpenDir) Read(rel string) (*os.File, int64, error) {
	return openRegular(d.fd, d.layer, rel)
}

// openRegular opens a regular file below an open directory, and nothing else.
func openRegular(dir int, layer Layer, rel string) (*os.File, int64, error) {
	name := layer.Dir
	fd, st, err := openPath(dir, rel)
	if err != nil {
		return nil, 0, fmt.Errorf("open %s in %s: %w", rel, name, err)
	}
	defer unix.Close(fd)
	if kindOfStat(&st) != regular {
		return nil, 0, fmt.Errorf("open %s in %s: %w", rel, name, ErrNotRegular)
	}
	if err := layer.theirs(&st); err != nil {
		return nil, 0, fmt.Errorf("open %s in %s: %w", rel, name, err)
	}
	// The same inode again, for reading: fd was opened by path only.
	f, err := os.OpenFile(procFd(fd), os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("open %s in %s for reading: %w", rel, name, err)
	}
	return f, st.Size, nil
}

// Shows returns the file that the container sees at a path of one of its
// layers, if it is that layer's: no layer above, mount or change of the
// container hides it.
func (v *View) Shows(l Layer, rel string) (Match, bool) {
	m, _, err := v.Lookup("/" + rel)
	return m, err == nil && m.Layer.Dir == l.Dir && m.Rel == rel
}

var (
	// ErrNoFile: the container has no such file.
	ErrNoFile = errors.New("no such file")
	// ErrMounted: the path leads into a mount, which is not searched.
	ErrMounted = errors.New("in a mount, which is not searched")
)

// Lookup finds the file that a path means, as the kernel resolves it for a
// process of the container: through symlinks, inside the root. exec says whether
// somebody may execute it. The error wraps ErrNoFile or ErrMounted where that is
// why.
func (v *View) Lookup(name string) (m Match, exec bool, err error) {
	if len(name) > maxRel || !strings.HasPrefix(name, "/") {
		return m, false, fmt.Errorf("%.64q: %w", name, ErrNoFile)
	}
	up := v.up
	if up == nil && v.r.Upper != "" {
		fd, err := v.r.upper().open(v.known)
		if err != nil {
			return m, false, fmt.Errorf("the writable layer cannot be read: %w", err)
		}
		defer unix.Close(fd)
		up = newUpper(fd, maxUpperNames)
	}
	s := v.start(up)
	hops := -1 // name itself is no symlink
	at, last, t, ok := s.follow(s.root, name, &hops)
	switch {
	case !ok || t.kind == directory:
		err = fmt.Errorf("%s: %w", name, ErrNoFile)
	case t.kind == none && t.cover.what == pseudo:
		err = fmt.Errorf("%s: %w", name, ErrNoFile)
	case t.kind == none:
		err = fmt.Errorf("%s, below %s: %w", name, t.cover.at, ErrMounted)
	default:
		s.add(at, last, t)
		if ms := v.matches(s); len(ms) == 1 {
			m = ms[0]
		}
	}
	if why := cmp.Or(s.why, upperWhy(up)); why != "" && (err == nil || errors.Is(err, ErrNoFile)) {
		return m, false, fmt.Errorf("%s: %s", name, why)
	}
	if err != nil {
		return m, false, err
	}
	return m, m.Kind == Regular && v.executable(m), nil
}

func upperWhy(up *upper) string {
	if up == nil {
		return ""
	}
	return up.why
}

// executable reports whether a file has any of the execute bits.
func (v *View) executable(m Match) bool {
	dir, err := m.Layer.open(m.known)
	if err != nil {
		return false
	}
	defer unix.Close(dir)
	fd, st, err := openPath(dir, m.Rel)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return st.Mode&0o111 != 0
}

// EachUpper calls fn with the regular files of the writable layer, until it
// returns false. Those without their data are left out: what the container
// executes of them is a layer's. why says what was not reached.
func (v *View) EachUpper(fn func(Match) bool) (why string) {
	if v.r.Upper == "" {
		return ""
	}
	up := v.up
	if up == nil {
		fd, err := v.r.upper().open(v.known)
		if err != nil {
			return "the writable layer cannot be read: " + err.Error()
		}
		defer unix.Close(fd)
		up = newUpper(fd, maxUpperNames)
	}
	roots := roots{}
	defer roots.close()
	for queue := []string{""}; len(queue) > 0; {
		rel := queue[0]
		queue = queue[1:]
		d := up.dir(rel)
		if d == nil {
			continue
		}
		for name, k := range up.all(d) {
			switch p := join(rel, name); {
			case v.covered(p):
			case k == directory:
				queue = append(queue, p)
			case k == regular:
				m := Match{Path: "/" + p, Layer: v.r.upper(), Rel: p, Kind: Regular, Origin: FromUpper, known: v.known}
				size, only, _ := roots.look(&m, v.r.UserXattr)
				if m.Size = size; !only && !fn(m) {
					return ""
				}
			}
		}
	}
	return up.why
}

// covered reports whether a mount hides a path.
func (v *View) covered(rel string) bool {
	c := v.cover
	for seg := range strings.SplitSeq(rel, "/") {
		if c = c.kid(seg); c == nil {
			return false
		}
		if c.what != nothing {
			return true
		}
	}
	return false
}

// Unsearched says why the layers and the upper directory are not all that the
// container can execute from: what of the layers could not be read, or the
// first mount that is not known to hold no ELF file; "" if there is nothing of
// that.
func (v *View) Unsearched() string {
	if v.why != "" {
		return v.why
	}
	for _, m := range v.r.Mounts {
		if !slices.Contains(v.r.Inert, m.Destination) {
			return "what is mounted at " + m.Destination + " is not searched"
		}
	}
	return ""
}
