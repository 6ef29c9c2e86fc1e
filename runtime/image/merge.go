package image

import (
	"fmt"
	"slices"
	"strings"
)

// merged is the tree that overlayfs shows for a list of layers, without the
// upper directory. It never changes; memo has a lock of its own.
type merged struct {
	layers []*Index
	nodes  []node // 0 is the root; the children of one directory lie together, sorted by name
	why    string // why it may differ from what the container sees, or ""
	memo   memo
}

type node struct {
	entry    uint32 // in layers[layer].entries
	first, n uint32 // children
	layer    uint16
	kind     kind
}

func (m *merged) name(i uint32) string {
	x := m.layers[m.nodes[i].layer]
	return x.name(&x.entries[m.nodes[i].entry])
}

func (m *merged) target(i uint32) string {
	x := m.layers[m.nodes[i].layer]
	return x.links[x.entries[m.nodes[i].entry].sub]
}

// child returns the node with that name in directory d.
func (m *merged) child(d uint32, name string) (uint32, bool) {
	lo, hi := m.nodes[d].first, m.nodes[d].first+m.nodes[d].n
	for lo < hi {
		mid := (lo + hi) / 2
		switch c := strings.Compare(m.name(mid), name); {
		case c == 0:
			return mid, true
		case c < 0:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return 0, false
}

// marked returns the masks of the marks that count for a mount.
func marked(userxattr bool) (opaque, strange uint8) {
	if userxattr {
		return opaqueUser, strangeUser
	}
	return opaqueTrusted, strangeTrusted
}

// merge applies overlayfs's rules (Documentation/filesystems/overlayfs.rst) to
// layers, top first: the topmost name wins; directories merge, down to an
// opaque one, a whiteout or something that is not a directory; the marks of a
// layer's root do not count.
func merge(layers []*Index, userxattr bool) *merged {
	type part struct {
		layer uint16
		dir   uint32
	}
	type pending struct {
		node  uint32
		parts []part
	}
	opaque, strange := marked(userxattr)
	m := &merged{layers: layers, nodes: []node{{kind: directory}}}
	root := pending{}
	for i, x := range layers {
		root.parts = append(root.parts, part{uint16(i), 0})
		if x.why != "" && m.why == "" {
			m.why = fmt.Sprintf("layer %d from the top: %s", i, x.why)
		}
		if x.marks&strange != 0 && i < len(layers)-1 && m.why == "" {
			m.why = fmt.Sprintf("layer %d from the top has redirected directories or whiteouts by attribute, which are not followed", i)
		}
	}
	type child struct {
		part
		entry uint32
	}
	var kids []child
	for queue := []pending{root}; len(queue) > 0; {
		p := queue[0]
		queue = queue[1:]
		kids = kids[:0]
		for _, part := range p.parts {
			d := &layers[part.layer].dirs[part.dir]
			for e := d.first; e < d.first+d.n; e++ {
				kids = append(kids, child{part, e})
			}
		}
		name := func(c child) string { x := layers[c.layer]; return x.name(&x.entries[c.entry]) }
		if len(p.parts) > 1 {
			slices.SortFunc(kids, func(a, b child) int {
				if c := strings.Compare(name(a), name(b)); c != 0 {
					return c
				}
				return int(a.layer) - int(b.layer)
			})
		}
		first := uint32(len(m.nodes))
		for i := 0; i < len(kids); {
			j := i + 1
			for j < len(kids) && name(kids[j]) == name(kids[i]) {
				j++
			}
			c := kids[i]
			k := layers[c.layer].entries[c.entry].kind
			if k != whiteout {
				m.nodes = append(m.nodes, node{entry: c.entry, layer: c.layer, kind: k})
			}
			if k == directory {
				sub := pending{node: uint32(len(m.nodes) - 1)}
				for _, c := range kids[i:j] {
					x := layers[c.layer]
					e := &x.entries[c.entry]
					if e.kind != directory {
						break
					}
					sub.parts = append(sub.parts, part{c.layer, e.sub})
					if x.dirs[e.sub].marks&opaque != 0 {
						break
					}
				}
				queue = append(queue, sub)
			}
			i = j
		}
		m.nodes[p.node].first, m.nodes[p.node].n = first, uint32(len(m.nodes))-first
	}
	m.nodes = slices.Clip(m.nodes)
	return m
}

// weight is what the tree and its memo are accounted for in the cache.
func (m *merged) weight() int { return len(m.nodes) }
