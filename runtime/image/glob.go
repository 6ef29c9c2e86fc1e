package image

import (
	"fmt"
	"slices"
	"strings"
)

// Bounds of one search.
const (
	maxMatches = 4096
	maxSteps   = 2 << 20 // names looked at
	maxDepth   = 2048    // directories and symlinks entered from one another
	maxHops    = 40      // symlinks in one path (the kernel's MAXSYMLINKS)
)

// search walks the container's tree along one pattern. Its state is a directory
// and how much of the pattern is left; the same state is entered once, which is
// what bounds directory symlinks that lead back.
type search struct {
	m     *merged
	up    *upper
	deny  uint8 // marks of an opaque directory
	odd   uint8 // marks of a redirected one
	root  *place
	segs  []segment
	seen  map[state]bool
	found map[string]hit
	steps int
	depth int
	why   string
}

// state names a directory by its node where that says all, else by its path.
type state struct {
	node int32
	path string
	seg  int
}

// place is a directory as the container sees it.
type place struct {
	parent *place // of the root: itself
	name   string // in parent
	node   int32  // in the layers' tree, or -1
	upper  *upperDir
	cover  *cover
}

// path returns the place's path, without a leading slash, and "" for the root.
func (p *place) path() string {
	var segs []string
	for ; p.parent != p; p = p.parent {
		segs = append(segs, p.name)
	}
	slices.Reverse(segs)
	return strings.Join(segs, "/")
}

func (p *place) state(seg int) state {
	if p.node >= 0 && p.upper == nil && p.cover == nil {
		return state{p.node, "", seg}
	}
	return state{-1, p.path(), seg}
}

// thing is what a name in a place stands for. kind none with a cover is a mount.
type thing struct {
	kind      kind
	node      int32
	fromUpper bool
	cover     *cover
	inside    bool // of a mount: a symlink leads to something in it
}

// hit is a file that matched.
type hit struct {
	node      int32
	fromUpper bool
	kind      kind
}

func (s *search) note(format string, args ...any) {
	if s.why == "" {
		s.why = fmt.Sprintf(format, args...)
	}
}

func (s *search) step() bool {
	if s.steps++; s.steps > maxSteps {
		s.note("more than %d names would have to be looked at", maxSteps)
		return false
	}
	return true
}

// run searches for one list of segments.
func (s *search) run(segs []segment) {
	s.segs, s.seen = segs, map[state]bool{}
	s.walk(s.root, 0)
}

// walk matches segs[i:] below p.
func (s *search) walk(p *place, i int) {
	if at := p.state(i); s.seen[at] || !s.step() {
		return
	} else {
		s.seen[at] = true
	}
	if s.depth == maxDepth {
		s.note("more than %d directories and symlinks lead from one to the next", maxDepth)
		return
	}
	s.depth++
	defer func() { s.depth-- }()
	seg := &s.segs[i]
	switch {
	case seg.deep:
		if i+1 < len(s.segs) {
			s.walk(p, i+1)
		}
		s.each(p, "", func(name string, t thing) { s.deeper(p, name, t, i) })
	case seg.literal:
		if t, ok := s.lookup(p, seg.text); ok {
			s.matched(p, seg.text, t, i)
		}
	default:
		s.each(p, seg.prefix, func(name string, t thing) {
			if seg.match(name) {
				s.matched(p, name, t, i)
			}
		})
	}
}

// matched handles a name that segs[i] matches.
func (s *search) matched(p *place, name string, t thing, i int) {
	s.reach(p, name, t, i+1, i+1 == len(s.segs))
}

// deeper handles a name below segs[i], which is "**".
func (s *search) deeper(p *place, name string, t thing, i int) {
	s.reach(p, name, t, i, i+1 == len(s.segs))
}

// reach goes on with segs[i:] at a name; ends says whether a file may stand
// there. A file before "/**" is no match, as in doublestar's own globbing.
func (s *search) reach(p *place, name string, t thing, i int, ends bool) {
	if t.kind == symlink {
		hops := 0
		at, last, end, ok := s.follow(p, s.link(p, name, t), &hops)
		if !ok {
			return
		}
		if end.kind == directory {
			if i < len(s.segs) {
				s.walk(at, i)
			}
			return
		}
		p, name, t = at, last, end
	}
	switch t.kind {
	case none:
		s.mounted(p, name, t, i, ends)
	case directory:
		if i < len(s.segs) {
			s.walk(s.enter(p, name, t), i)
		}
	default:
		if ends {
			s.add(p, name, t)
		}
	}
}

// mounted says what a mount means for a search that reaches it with segs[i:].
func (s *search) mounted(p *place, name string, t thing, i int, ends bool) {
	c := t.cover
	below := i < len(s.segs) || t.inside && ends
	switch {
	case (c.what == volume || c.what == either) && below:
		s.note("the pattern may match below the mount at %s, which is not searched", c.at)
	case (c.what == file || c.what == either) && ends && !t.inside:
		s.note("the pattern matches %s, which is mounted and not searched", c.at)
	case c.what == pseudo && c.real && i < len(s.segs):
		s.walk(under(p, name, c), i)
	}
}

// under returns a kernel interface's place: empty but for mounts in it.
func under(p *place, name string, c *cover) *place {
	return &place{parent: p, name: name, node: -1, cover: c}
}

func (s *search) add(p *place, name string, t thing) {
	path := join(p.path(), name)
	if _, ok := s.found[path]; !ok && len(s.found) == maxMatches {
		s.note("more than %d files match", maxMatches)
		return
	}
	s.found[path] = hit{t.node, t.fromUpper, t.kind}
}

// follow resolves a symlink's target from p, inside the container's root. For
// a directory, place is the directory itself; for anything else, the directory
// that holds it, with its name.
func (s *search) follow(p *place, target string, hops *int) (at *place, name string, t thing, ok bool) {
	if *hops++; *hops > maxHops || target == "" || !s.step() {
		return nil, "", thing{}, false
	}
	if target[0] == '/' {
		p = s.root
	}
	for target != "" {
		seg, rest, more := strings.Cut(target, "/")
		target = rest
		switch seg {
		case "", ".":
			continue
		case "..":
			p = p.parent
			continue
		}
		t, ok := s.lookup(p, seg)
		switch {
		case !ok:
			return nil, "", thing{}, false
		case t.kind == symlink:
			sub, name, end, ok := s.follow(p, s.link(p, seg, t), hops)
			if !ok {
				return nil, "", thing{}, false
			}
			if end.kind == directory {
				p = sub
				continue
			}
			p, seg, t = sub, name, end
			if t.kind == none {
				t.inside = t.inside || more
				return p, seg, t, true
			}
		case t.kind == directory:
			p = s.enter(p, seg, t)
			continue
		}
		switch {
		case t.kind == none && t.cover.what == pseudo && t.cover.real && more:
			p = under(p, seg, t.cover)
			continue
		case t.kind == none: // whatever is left of the target lies in the mount
			t.inside = more
			return p, seg, t, true
		}
		return p, seg, t, !more // "file/" is no file
	}
	return p, "", thing{kind: directory}, true
}

// lookup finds a name in a place: mounts first, then the upper directory, then
// the layers.
func (s *search) lookup(p *place, name string) (thing, bool) {
	if !s.step() {
		return thing{}, false
	}
	c := p.cover.kid(name)
	if c != nil && c.what != nothing {
		return thing{node: -1, cover: c}, true
	}
	node := int32(-1)
	if p.node >= 0 {
		if n, ok := s.m.child(uint32(p.node), name); ok {
			node = int32(n)
		}
	}
	if p.upper != nil {
		switch k := s.up.lookup(p.upper, name); k {
		case none:
		case directory:
			if node >= 0 && s.m.nodes[node].kind != directory {
				node = -1
			}
			return thing{kind: directory, node: node, fromUpper: true, cover: c}, true
		case whiteout:
			return thing{}, false
		default:
			return thing{kind: k, node: node, fromUpper: true, cover: c}, true
		}
	}
	switch {
	case node >= 0:
		return thing{kind: s.m.nodes[node].kind, node: node, cover: c}, true
	case c != nil: // on the way to a mount that was made without a directory here
		return thing{kind: directory, node: -1, cover: c}, true
	}
	return thing{}, false
}

// each calls f for the names in a place that begin with prefix.
func (s *search) each(p *place, prefix string, f func(string, thing)) {
	var upperNames map[string]kind
	if p.upper != nil {
		upperNames = s.up.all(p.upper)
	}
	if p.node >= 0 {
		d := &s.m.nodes[p.node]
		for n := d.first; n < d.first+d.n && s.step(); n++ {
			name := s.m.name(n)
			if !strings.HasPrefix(name, prefix) || p.cover.kid(name) != nil || upperNames[name] != none {
				continue
			}
			f(name, thing{kind: s.m.nodes[n].kind, node: int32(n)})
		}
	}
	for name := range upperNames {
		if strings.HasPrefix(name, prefix) && p.cover.kid(name) == nil {
			if t, ok := s.lookup(p, name); ok {
				f(name, t)
			}
		}
	}
	if p.cover != nil {
		for name := range p.cover.kids {
			if strings.HasPrefix(name, prefix) {
				if t, ok := s.lookup(p, name); ok {
					f(name, t)
				}
			}
		}
	}
}

// enter returns the place of a directory.
func (s *search) enter(p *place, name string, t thing) *place {
	q := &place{parent: p, name: name, node: t.node, cover: t.cover}
	if t.fromUpper {
		if q.upper = s.up.dir(q.path()); q.upper != nil {
			if q.upper.marks&s.odd != 0 {
				s.note("/%.256s was renamed (overlay redirect), which is not followed", q.path())
			}
			if q.upper.marks&s.deny != 0 {
				q.node = -1
			}
		}
	}
	return q
}

func (s *search) link(p *place, name string, t thing) string {
	if t.fromUpper {
		return s.up.link(p.upper, name)
	}
	return s.m.target(uint32(t.node))
}
