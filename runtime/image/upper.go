package image

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Bounds on an upper directory, which the container fills as it likes.
const (
	maxSnapshot   = 512     // names up to which it is read whole, once a view
	maxUpperNames = 1 << 16 // names listed in one search
	maxUpperText  = 8 << 20 // bytes of the paths of directories, names and targets kept in one search
)

// upper is the writable directory of a container, read as a search needs it:
// a name is looked up, and only a directory that a pattern goes through with a
// meta character is listed. The container may change it meanwhile; lookups stay
// inside, on one mount and off symlinks.
type upper struct {
	fd     int // O_PATH, or -1: only what was read before
	dirs   map[string]*upperDir
	list   lister
	listed int // names, of all directories; at most limit are taken
	limit  int
	text   int
	why    string
}

// take accounts for text that is kept.
func (u *upper) take(n int) bool {
	if u.text += n; u.text > maxUpperText {
		u.note("its names are longer than %d bytes", maxUpperText)
		return false
	}
	return true
}

type upperDir struct {
	path   string // below the upper directory, "" for itself
	marks  uint8
	names  map[string]kind // nil until listed
	target map[string]string
}

func newUpper(fd, limit int) *upper {
	return &upper{fd: fd, limit: limit, dirs: map[string]*upperDir{}}
}

func (u *upper) note(format string, args ...any) {
	if u.why == "" {
		u.why = "the writable layer: " + fmt.Sprintf(format, args...)
	}
}

func (u *upper) open(path string, flags uint64) (int, error) {
	if path == "" {
		path = "."
	}
	return openat2(u.fd, path, flags|unix.O_NOFOLLOW, beneath)
}

// dir returns the directory at path, or nil if there is none.
func (u *upper) dir(path string) *upperDir {
	if d, ok := u.dirs[path]; ok {
		return d
	}
	if u.fd < 0 || !u.take(len(path)) {
		return nil
	}
	fd, err := u.open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK)
	if err != nil {
		if err != unix.ENOENT && err != unix.ENOTDIR && err != unix.ELOOP {
			u.note("open %q: %v", path, err)
		}
		return nil
	}
	defer unix.Close(fd)
	d := &upperDir{path: path, marks: u.list.marks(fd)}
	if path == "" {
		d.marks = 0 // overlayfs ignores those of the root
	}
	u.dirs[path] = d
	return d
}

// lookup returns what name is in d; none if it is not there.
func (u *upper) lookup(d *upperDir, name string) kind {
	if d.names != nil || u.fd < 0 {
		return d.names[name]
	}
	fd, err := u.open(d.path, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		defer unix.Close(fd)
		var k kind
		if k, err = lstatAt(fd, name); err == nil {
			return k
		}
	}
	if err != unix.ENOENT && err != unix.ENOTDIR && err != unix.ELOOP {
		u.note("look up %q in %q: %v", name, d.path, err)
	}
	return none
}

// all returns the names in d. The map is not to be changed.
func (u *upper) all(d *upperDir) map[string]kind {
	if d.names != nil || u.fd < 0 {
		return d.names
	}
	fd, err := u.open(d.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK)
	if err != nil {
		u.note("open %q: %v", d.path, err)
		return nil
	}
	defer unix.Close(fd)
	d.names = map[string]kind{}
	if err := u.list.read(fd, func(name []byte, k kind) error {
		if u.listed++; u.listed > u.limit {
			return fmt.Errorf("more than %d files", u.limit)
		}
		if !u.take(len(name)) {
			return errFull
		}
		d.names[string(name)] = k
		return nil
	}); err != nil {
		u.note("%v", err)
	}
	return d.names
}

// link returns the target of the symlink name in d.
func (u *upper) link(d *upperDir, name string) string {
	if t, ok := d.target[name]; ok || u.fd < 0 {
		return t
	}
	fd, err := u.open(d.path, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	t, err := readlink(fd, name)
	if err != nil || !u.take(len(t)) {
		return ""
	}
	if d.target == nil {
		d.target = map[string]string{}
	}
	d.target[name] = t
	return t
}

// snapshot reads the whole upper directory if it is small, and returns a
// digest of all that a search could find out about it. Two containers with the
// same digest have the same matches.
func (u *upper) snapshot() (sum [sha256.Size]byte, ok bool) {
	h := sha256.New()
	text := func(s string) {
		var n [4]byte
		binary.LittleEndian.PutUint32(n[:], uint32(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	for queue := []string{""}; len(queue) > 0; {
		path := queue[0]
		queue = queue[1:]
		d := u.dir(path)
		if d == nil {
			return sum, false
		}
		names := u.all(d)
		if u.why != "" {
			return sum, false
		}
		text(path)
		h.Write([]byte{d.marks})
		keys := make([]string, 0, len(names))
		for name := range names {
			keys = append(keys, name)
		}
		slices.SortFunc(keys, cmp.Compare[string])
		for _, name := range keys {
			text(name)
			h.Write([]byte{byte(names[name])})
			switch names[name] {
			case symlink:
				text(u.link(d, name))
			case directory:
				queue = append(queue, join(path, name))
			}
		}
	}
	h.Sum(sum[:0])
	return sum, true
}

// join appends a name to a path without a leading slash.
func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "/" + name
}
