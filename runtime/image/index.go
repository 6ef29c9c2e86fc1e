package image

import (
	"bytes"
	"context"
	"encoding/binary"
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
	maxRel  = 4095    // bytes of a path: what a container can open by name
	maxLink = 4096    // bytes of a symlink's target
	maxName = 255     // NAME_MAX
	maxAttr = 1 << 16 // XATTR_LIST_MAX
)

// Index is what one layer holds: names, what they are, where symlinks point
// and which directories are opaque. It is read once and never changes. Sizes
// and contents are not in it.
type Index struct {
	names   string  // all names, one after the other
	entries []entry // of one directory together, sorted by name
	dirs    []dir   // 0 is the layer's root
	links   []string
	marks   uint8 // of all directories but the root, or-ed
	// why the index does not hold the whole layer, or "".
	why string
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

// Entries returns how many names the layer has.
func (x *Index) Entries() int { return len(x.entries) }

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
	type pending struct {
		dir uint32
		rel string
	}
	var (
		x     = &Index{dirs: []dir{{}}}
		names []byte
		list  lister
		queue = []pending{{0, "."}}
	)
	for len(queue) > 0 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p := queue[0]
		queue = queue[1:]
		fd, err := openat2(root, p.rel, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK, beneath)
		switch err {
		case nil:
		case unix.EXDEV, unix.EACCES, unix.EPERM, unix.EIO, unix.EUCLEAN: // it will be so the next time too
			x.note("directory %q: %v", p.rel, err)
			continue
		default:
			return nil, fmt.Errorf("open directory %q of the layer: %w", p.rel, err)
		}
		first := len(x.entries)
		err = list.read(fd, func(name []byte, k kind) error {
			if len(x.entries) == limit {
				return errFull
			}
			e := entry{name: uint32(len(names)), len: uint8(len(name)), kind: k}
			if k == symlink {
				target, err := readlink(fd, string(name))
				if err != nil {
					return err
				}
				e.sub = uint32(len(x.links))
				x.links = append(x.links, target)
			}
			names = append(names, name...)
			x.entries = append(x.entries, e)
			return nil
		})
		x.dirs[p.dir].marks = list.marks(fd)
		unix.Close(fd)
		if errors.Is(err, errFull) {
			x.note("it has more than %d files", limit)
			queue = nil
		} else if err != nil {
			return nil, fmt.Errorf("read directory %q of the layer: %w", p.rel, err)
		}
		if p.dir != 0 { // overlayfs ignores the marks of a layer's root
			x.marks |= x.dirs[p.dir].marks
		}
		kids := x.entries[first:]
		slices.SortFunc(kids, func(a, b entry) int {
			return bytes.Compare(names[a.name:][:a.len], names[b.name:][:b.len])
		})
		x.dirs[p.dir].first, x.dirs[p.dir].n = uint32(first), uint32(len(kids))
		for i := range kids {
			if kids[i].kind != directory {
				continue
			}
			kids[i].sub = uint32(len(x.dirs))
			x.dirs = append(x.dirs, dir{})
			rel := string(names[kids[i].name:][:kids[i].len])
			if p.rel != "." {
				rel = p.rel + "/" + rel
			}
			if len(rel) > maxRel {
				x.note("a path is longer than %d bytes", maxRel)
				continue
			}
			queue = append(queue, pending{kids[i].sub, rel})
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

// lister reads directories; its buffers are used again.
type lister struct {
	buf, attrs []byte
}

// read calls f for every name in the open directory, in the file system's
// order. It stats only what the directory does not tell.
func (l *lister) read(fd int, f func(name []byte, k kind) error) error {
	if l.buf == nil {
		l.buf = make([]byte, 64<<10)
	}
	for {
		n, err := unix.Getdents(fd, l.buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("getdents: %w", err)
		}
		if n == 0 {
			return nil
		}
		for b := l.buf[:n]; len(b) > 0; {
			// struct linux_dirent64: u64 ino, s64 off, u16 reclen, u8 type, name
			if len(b) < 20 {
				return errors.New("getdents: a record is cut short")
			}
			size := int(binary.NativeEndian.Uint16(b[16:]))
			if size < 20 || size > len(b) {
				return errors.New("getdents: a record has an impossible size")
			}
			typ, name := b[18], b[19:size]
			b = b[size:]
			if i := bytes.IndexByte(name, 0); i >= 0 {
				name = name[:i]
			}
			if len(name) == 0 || len(name) > maxName || string(name) == "." || string(name) == ".." {
				continue
			}
			k, err := kindOf(fd, name, typ)
			if err == unix.ENOENT { // removed meanwhile
				continue
			}
			if err != nil {
				return fmt.Errorf("stat %q: %w", name, err)
			}
			if err := f(name, k); err != nil {
				return err
			}
		}
	}
}

func kindOf(fd int, name []byte, typ byte) (kind, error) {
	switch typ {
	case unix.DT_REG:
		return regular, nil
	case unix.DT_LNK:
		return symlink, nil
	case unix.DT_DIR:
		return directory, nil
	case unix.DT_CHR, unix.DT_UNKNOWN: // a whiteout? or a file system without types
		return lstatAt(fd, string(name))
	}
	return special, nil
}

func lstatAt(fd int, name string) (kind, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return none, err
	}
	return kindOfStat(&st), nil
}

func kindOfStat(st *unix.Stat_t) kind {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return regular
	case unix.S_IFLNK:
		return symlink
	case unix.S_IFDIR:
		return directory
	case unix.S_IFCHR:
		if st.Rdev == 0 {
			return whiteout
		}
	}
	return special
}

func readlink(fd int, name string) (string, error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Readlinkat(fd, name, buf)
		switch {
		case err != nil:
			return "", fmt.Errorf("read link %q: %w", name, err)
		case n < len(buf):
			return string(buf[:n]), nil
		case len(buf) > maxLink:
			return "", fmt.Errorf("read link %q: longer than %d bytes", name, maxLink)
		}
		buf = make([]byte, 2*len(buf))
	}
}

// marks reads overlayfs's attributes of an open directory. Without
// CAP_SYS_ADMIN the kernel hides trusted.*: a directory then looks mergeable.
func (l *lister) marks(fd int) uint8 {
	if l.attrs == nil {
		l.attrs = make([]byte, maxAttr)
	}
	n, err := unix.Flistxattr(fd, l.attrs)
	if err != nil || n <= 0 || n > len(l.attrs) {
		return 0
	}
	var marks uint8
	for a := range bytes.SplitSeq(l.attrs[:n], []byte{0}) {
		ns, strange := uint8(opaqueTrusted), uint8(strangeTrusted)
		rest, ok := bytes.CutPrefix(a, []byte("trusted.overlay."))
		if !ok {
			if rest, ok = bytes.CutPrefix(a, []byte("user.overlay.")); !ok {
				continue
			}
			ns, strange = opaqueUser, strangeUser
		}
		switch string(rest) {
		case "opaque":
			var v [8]byte
			n, err := unix.Fgetxattr(fd, string(a), v[:])
			switch {
			case err == nil && n == 1 && v[0] == 'y':
				marks |= ns
			case err == nil && n == 1 && v[0] == 'x': // Linux 6.7: holds whiteouts that are attributes
				marks |= strange
			}
		case "redirect":
			marks |= strange
		}
	}
	return marks
}
