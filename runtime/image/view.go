package image

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"probity/runtime/container"
)

// View is what one container sees: the merged layers, its upper directory and
// its mounts, as of the call to [Cache.View]. It is safe for concurrent use.
type View struct {
	r     Rootfs
	m     *merged
	cover *cover
	up    *upper // read whole, or nil: the upper directory is read by each search
	sum   [sha256.Size]byte
	known bool // the upper directory is local
	why   string
}

// newView looks at the upper directory and digests all that decides a search.
func newView(r Rootfs, m *merged, why string, dirs *localDirs) *View {
	v := &View{r: r, m: m, cover: newCover(&r), why: cmp.Or(r.Doubt, why, m.why)}
	h := sha256.New()
	if r.Upper != "" {
		if fd, err := dirs.layer(r.upper()); err == nil {
			v.known = true
			up := newUpper(fd, maxSnapshot)
			if sum, ok := up.snapshot(); ok {
				up.fd = -1
				v.up = up
				h.Write(sum[:])
			}
			unix.Close(fd)
		}
	}
	for _, list := range [][]container.Mount{r.Mounts, r.Pseudo} {
		digestText(h, "")
		for _, m := range list {
			digestText(h, m.Destination)
		}
	}
	for _, list := range [][]string{r.Files, r.Dirs} {
		digestText(h, "")
		for _, f := range list {
			digestText(h, f)
		}
	}
	h.Sum(v.sum[:0])
	return v
}

func digestText(h hash.Hash, s string) {
	var n [4]byte
	binary.LittleEndian.PutUint32(n[:], uint32(len(s)))
	h.Write(n[:])
	h.Write([]byte(s))
}

// Glob returns the files that match a doublestar pattern, each once under its
// path without symlinks, sorted by path. Symlinks are resolved inside the
// container's root. The search is complete if no bound was reached, every layer
// could be read and the pattern cannot match below a mount; else why says what
// was left out first.
func (v *View) Glob(pattern string) (matches []Match, complete bool, why string) {
	all, err := parsePattern(pattern)
	if err != nil {
		return nil, false, err.Error()
	}
	if v.up == nil && v.r.Upper != "" {
		fd, err := v.r.upper().open(v.known)
		if err != nil {
			matches, why = v.search(all, nil)
			why = cmp.Or(v.why, "the writable layer cannot be read: "+err.Error())
			return matches, false, why
		}
		defer unix.Close(fd)
		matches, why = v.search(all, newUpper(fd, maxUpperNames))
	} else if got, ok := v.m.memo.get(v.sum, pattern); ok {
		matches, why = v.again(got.matches), got.why
	} else {
		matches, why = v.search(all, v.up)
		v.m.memo.put(v.sum, pattern, found{matches, why})
		matches = slices.Clone(matches)
	}
	why = cmp.Or(v.why, why)
	return matches, why == "", why
}

// start begins a search at the root.
func (v *View) start(up *upper) *search {
	s := &search{m: v.m, up: up, found: map[string]hit{}}
	s.deny, s.odd = marked(v.r.UserXattr)
	s.root = &place{node: 0, cover: v.cover}
	s.root.parent = s.root
	if up != nil {
		s.root.upper = up.dir("")
	}
	return s
}

// search runs all alternatives of a pattern.
func (v *View) search(all [][]segment, up *upper) ([]Match, string) {
	s := v.start(up)
	for _, segs := range all {
		s.run(segs)
	}
	if up != nil && s.why == "" {
		s.why = up.why
	}
	ms := v.matches(s)
	return ms, s.why
}

// matches turns what was found into values, and looks at the files themselves:
// their sizes, and where the data of a file is that was copied up without it.
func (v *View) matches(s *search) []Match {
	roots := roots{}
	defer roots.close()
	out := make([]Match, 0, len(s.found))
	for path, h := range s.found {
		m := Match{Path: "/" + path, Rel: path, Kind: Special, Origin: FromLayer, known: true}
		layer := -1 // the upper directory
		if h.fromUpper {
			m.Origin, m.Layer, m.known = FromUpper, v.r.upper(), v.known
		} else {
			layer = int(v.m.nodes[h.node].layer)
			m.Layer = v.r.Layers[layer]
		}
		if h.kind != regular {
			out = append(out, m)
			continue
		}
		m.Kind = Regular
		for {
			size, only, redirected := roots.look(&m, v.r.UserXattr)
			m.Size = size
			if !only {
				break
			}
			// The container executes the data file, further down.
			next := layer + 1
			for next < len(v.m.layers) {
				e := v.m.layers[next].find(path)
				if e != nil && e.kind == regular {
					break
				}
				next++
			}
			if redirected || next >= len(v.m.layers) {
				s.note("%s was copied up without its data (overlay metacopy), which is under another name", m.Path)
				break
			}
			layer = next
			m.Origin, m.Layer, m.known = FromLayer, v.r.Layers[layer], true
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Match) int { return cmp.Compare(a.Path, b.Path) })
	return out
}

// again makes matches of another container's search this container's own.
func (v *View) again(ms []Match) []Match {
	out := slices.Clone(ms)
	roots := roots{}
	defer roots.close()
	for i := range out {
		if m := &out[i]; m.Origin == FromUpper {
			m.Layer, m.known = v.r.upper(), v.known
			if m.Kind == Regular {
				m.Size, _, _ = roots.look(m, v.r.UserXattr)
			}
		}
	}
	return out
}

// roots are the directories whose files are looked at in one call, open.
type roots map[string]int

func (r roots) close() {
	for _, fd := range r {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// look returns a file's size, and whether it is there without its data. What
// is wrong with a file is said when it is opened.
func (r roots) look(m *Match, userxattr bool) (size int64, only, redirected bool) {
	dir, ok := r[m.Layer.Dir]
	if !ok {
		var err error
		if dir, err = m.Layer.open(m.known); err != nil {
			dir = -1
		}
		r[m.Layer.Dir] = dir
	}
	if dir < 0 {
		return 0, false, false
	}
	fd, st, err := openPath(dir, m.Rel)
	if err != nil {
		return 0, false, false
	}
	defer unix.Close(fd)
	if kindOfStat(&st) == regular {
		only, redirected = metadataOnly(fd, userxattr)
	}
	return st.Size, only, redirected
}

// memo keeps the results of searches in one merged tree, by what else decided
// them: the upper directory, the mounts and the pattern.
type memo struct {
	mu      sync.Mutex
	results map[memoKey]found
	held    int
}

type memoKey struct {
	sum     [sha256.Size]byte
	pattern string
}

type found struct {
	matches []Match
	why     string
}

// maxMemo bounds the matches, and results, that one tree keeps.
const maxMemo = 4096

func (m *memo) get(sum [sha256.Size]byte, pattern string) (found, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f, ok := m.results[memoKey{sum, pattern}]
	return f, ok
}

func (m *memo) put(sum [sha256.Size]byte, pattern string, f found) {
	m.mu.Lock()
	defer m.mu.Unlock()
	cost := 1 + len(pattern)/64
	for i := range f.matches {
		cost += 1 + len(f.matches[i].Path)/64
	}
	if cost > maxMemo {
		return
	}
	if m.results == nil || m.held+cost > maxMemo {
		m.results, m.held = map[memoKey]found{}, 0
	}
	if _, ok := m.results[memoKey{sum, pattern}]; !ok {
		m.held += cost
	}
	m.results[memoKey{sum, pattern}] = f
}
