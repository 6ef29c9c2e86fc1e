package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// kind is what a name stands for in one layer, or in the merged tree.
type kind uint8

const (
	none kind = iota
	regular
	symlink
	directory
	whiteout // a 0:0 character device: hides the name in the layers below
	special  // FIFO, socket, device
)

// The marks that overlayfs puts on directories by extended attributes. Which
// namespace counts is a property of the mount (option userxattr): an image may
// carry the other one, and it means nothing then.
const (
	opaqueTrusted  = 1 << iota // hides the same directory in the layers below
	opaqueUser                 //
	strangeTrusted             // redirect, or whiteouts by attribute: content is elsewhere than its name says
	strangeUser                //
)

// Bounds of one layer.
const (
	maxText = 32 << 20 // bytes of all names and symlink targets
	maxRel  = 4095     // bytes of a path: what a container can open by name
	maxLink = 4096     // bytes of a symlink's target
	maxName = 255      // NAME_MAX
	maxAttr = 1 << 16  // XATTR_LIST_MAX
)

// Index is what one layer holds: names, what they are, where symlinks point
// and which directories are opaque. It is read once and never changes. Sizes
// and contents are not in it.
type Index struct {
	names   string  // all names, one after the other
	entries []entry // of one directory together, sorted by name
	dirs    []dir   // 0 is the layer's root
	links   []string
	text    int   // bytes of names and links
	marks   uint8 // of all directories but the root, or-ed
	// why the index does not hold the whole layer, or "".
	why string
	key string // see LayerFiles.Key
}

type entry struct {
	name uint32 // offset in names
	sub  uint32 // directory: index in dirs; symlink: index in links
	len  uint8
	kind kind
}

type dir struct {
	first, n uint32 // entries
	marks    uint8
}

func (x *Index) name(e *entry) string { return x.names[e.name : e.name+uint32(e.len)] }

func (x *Index) children(d uint32) []entry { return x.entries[x.dirs[d].first:][:x.dirs[d].n] }

// find looks up a clean relative path without following symlinks.
func (x *Index) find(rel string) *entry {
	var e *entry
	d := uint32(0)
	for seg := range strings.SplitSeq(rel, "/") {
		if e != nil {
			if e.kind != directory {
				return nil
			}
			d = e.sub
		}
		kids := x.children(d)
		i, ok := slices.BinarySearchFunc(kids, seg, func(k entry, s string) int { return strings.Compare(x.name(&k), s) })
		if !ok {
			return nil
		}
		e = &kids[i]
	}
	return e
}

// readIndex reads the layer whose root is open at root. It follows no symlink
// and enters no other mount; at most limit names are taken.
func readIndex(ctx context.Context, root int, limit int) (*Index, error) {
	var (
		x     = &Index{dirs: []dir{{}}}
		names []byte
		list  lister
		// Paths are put together when they are needed: those of a hostile
		// layer's directories would fill the memory.
		up = []struct{ dir, entry uint32 }{{}}
	)
	path := func(d uint32) string {
		var segs []string
		for n := 0; d != 0 && n <= maxRel; d = up[d].dir {
			e := x.entries[up[d].entry]
			segs = append(segs, string(names[e.name:][:e.len]))
			n += int(e.len) + 1
		}
		if len(segs) == 0 {
			return "."
		}
		slices.Reverse(segs)
		return strings.Join(segs, "/")
	}
	for d := uint32(0); d < uint32(len(x.dirs)); d++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		rel := path(d)
		if len(rel) > maxRel {
			x.note("a path is longer than %d bytes", maxRel)
			continue
		}
		fd, err := openat2(root, rel, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK, beneath)
		switch err {
		case nil:
		case unix.EXDEV, unix.EACCES, unix.EPERM, unix.EIO, unix.EUCLEAN: // it will be so the next time too
			x.note("directory %.256q: %v", rel, err)
			continue
		default:
			return nil, fmt.Errorf("open directory %.256q of the layer: %w", rel, err)
		}
		first := len(x.entries)
		err = list.read(fd, func(name []byte, k kind) error {
			if len(x.entries) == limit {
				return fmt.Errorf("%w: it has more than %d files", errFull, limit)
			}
			e := entry{name: uint32(len(names)), len: uint8(len(name)), kind: k}
			if k == symlink {
				target, err := readlink(fd, string(name))
				if err != nil {
					return err
				}
				x.text += len(target)
				e.sub = uint32(len(x.links))
				x.links = append(x.links, target)
			}
			if x.text += len(name); x.text > maxText {
				return fmt.Errorf("%w: its names are longer than %d bytes", errFull, maxText)
			}
			names = append(names, name...)
			x.entries = append(x.entries, e)
			return nil
		})
		x.dirs[d].marks = list.marks(fd)
		unix.Close(fd)
		full := errors.Is(err, errFull)
		if err != nil && !full {
			return nil, fmt.Errorf("read directory %.256q of the layer: %w", rel, err)
		}
		if d != 0 { // overlayfs ignores the marks of a layer's root
			x.marks |= x.dirs[d].marks
		}
		kids := x.entries[first:]
		slices.SortFunc(kids, func(a, b entry) int {
			return bytes.Compare(names[a.name:][:a.len], names[b.name:][:b.len])
		})
		x.dirs[d].first, x.dirs[d].n = uint32(first), uint32(len(kids))
		for i := range kids {
			if kids[i].kind == directory {
				kids[i].sub = uint32(len(x.dirs))
				x.dirs = append(x.dirs, dir{})
				up = append(up, struct{ dir, entry uint32 }{d, uint32(first + i)})
			}
		}
		if full {
			x.note("%v", err)
			break
		}
	}
	x.names = string(names)
	x.entries = slices.Clip(x.entries)
	return x, nil
}

func (x *Index) note(format string, args ...any) {
	if x.why == "" {
		x.why = fmt.Sprintf(format, args...)
	}
}

var errFull = errors.New("bound reached")

// weight is what the index is accounted for in the cache.
func (x *Index) weight() int { return len(x.entries) + x.text/64 }
