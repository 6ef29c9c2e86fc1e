package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"probity/runtime/container"
)

// Layer is one directory that a root file system is stacked from.
type Layer struct {
	Dir    string // on the host
	DiffID string // "sha256:" and hex, or "" where no store vouches for it
}

// Rootfs says what a container's root file system is made of.
type Rootfs struct {
	Driver string  // "overlay", or the type of the file system
	Layers []Layer // read-only, top first
	Upper  string  // the writable directory on the host, or ""; with no layers, the whole root
	Merged string  // a path by which the agent reaches the merged tree

	Mounts []container.Mount // below the root, except kernel interfaces
	Files  []string          // destinations in Mounts that are known to be single files
	Dirs   []string          // destinations in Mounts that are known to be directories
	Pseudo []container.Mount // kernel interfaces: what the image has there is hidden

	UserXattr bool   // overlayfs's attributes are user.overlay.*
	Doubt     string // why a search in it cannot be complete, or ""
}

// Rootfs reads the container's mount table. At OCI createRuntime (n.Rootfs is
// set) the mounts are already made, below n.Rootfs in the process's own mount
// namespace; later they are below its "/".
func (f *Finder) Rootfs(ctx context.Context, n container.Notice, img container.Image) (Rootfs, error) {
	r, err := f.stack(n)
	if err != nil {
		return Rootfs{}, fmt.Errorf("root file system of container %s: %w", n.Identity.ID, err)
	}
	f.nameLayers(ctx, n, img, r.Layers)
	return r, nil
}

func (f *Finder) stack(n container.Notice) (Rootfs, error) {
	var r Rootfs
	root := "/"
	if n.Rootfs != "" {
		if root = filepath.Clean(n.Rootfs); !filepath.IsAbs(root) || root == "/" {
			return r, fmt.Errorf("%q is not a container's directory", n.Rootfs)
		}
	}
	var ms []mount
	if n.Pid > 0 {
		var err error
		if ms, err = mountsWithin(n.Pid, root); err != nil {
			return r, err
		}
	} else if n.Rootfs == "" {
		return r, errors.New("neither its pid nor its path is known")
	}
	proc, prefix := "/proc/"+strconv.Itoa(n.Pid)+"/root", root
	m := top(ms, root)
	if m == nil && n.Rootfs != "" {
		// Not in the process's namespace (or there is none): in ours. What
		// will be mounted below it is what the notice says.
		var err error
		if ms, err = mountsWithin(0, root); err != nil {
			return r, err
		}
		m, proc, prefix = top(ms, root), "", ""
	}
	if m == nil && n.Rootfs == "" {
		return r, errors.New("nothing is mounted at the root of its mount namespace")
	}
	r.Merged = root
	if n.Rootfs == "" {
		r.Merged = proc
		if same, err := sameRoot(proc); err != nil || same {
			return r, cmp.Or(err, fmt.Errorf("pid %d is in the agent's own root file system", n.Pid))
		}
	}
	switch {
	case m == nil:
		if err := localPath(root); err != nil {
			return r, err
		}
		r.Driver, r.Upper = "directory", root
	case m.fstype == "overlay":
		if err := f.overlay(&r, m, n); err != nil {
			return r, err
		}
	default:
		r.Driver = m.fstype
		r.Upper, r.Doubt = hostPath(m)
	}
	if prefix == "" {
		configured(&r, n.Mounts)
	} else {
		mounted(&r, ms, m, prefix, proc)
	}
	return r, nil
}

// sameRoot reports whether a process's root is ours. Asking for nothing but the
// mount id makes no file system ask its server.
func sameRoot(proc string) (bool, error) {
	var own, other unix.Statx_t
	for path, st := range map[string]*unix.Statx_t{"/": &own, proc: &other} {
		if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, st); err != nil {
			return false, fmt.Errorf("look at %s: %w", path, err)
		}
	}
	return own.Dev_major == other.Dev_major && own.Dev_minor == other.Dev_minor && own.Ino == other.Ino, nil
}

// mountsWithin returns the mounts at and below dir, of a process or, with pid
// 0, of ours.
func mountsWithin(pid int, dir string) ([]mount, error) {
	table := "/proc/self/mountinfo"
	if pid > 0 {
		table = "/proc/" + strconv.Itoa(pid) + "/mountinfo"
	}
	var ms []mount
	err := eachMount(table, func(m *mount) bool {
		if within(m.point, dir) && (pid > 0 || m.point == dir) {
			ms = append(ms, *m)
		}
		return true
	})
	return ms, err
}

// overlay fills in the layers of an overlay mount.
func (f *Finder) overlay(r *Rootfs, m *mount, n container.Notice) error {
	r.Driver = m.fstype
	if m.root != "/" {
		r.Doubt = "its root is a directory inside an overlay, whose layers do not begin there"
		return nil
	}
	o, err := parseOverlay(m.super)
	if err != nil {
		return fmt.Errorf("overlay options: %w", err)
	}
	r.UserXattr = o.userxattr
	if o.dataOnly {
		r.Doubt = "it has data-only layers, which are not searched"
	}
	// The options name paths of whoever mounted it. At the barrier that is the
	// runtime; later a container with rights of its own may have moved to an
	// overlay that it made itself, unless we see the same one.
	if n.Kind != container.Starting && !ours(m.dev) {
		r.Doubt = "its overlay is not mounted in the agent's mount namespace: the layers' paths are only a claim"
	}
	base := func(rel string) string {
		for _, dir := range []string{
			twoUp(o.upper),                  // .../overlay/ID/diff, .../snapshots/ID/fs
			twoUp(filepath.Clean(n.Rootfs)), // .../overlay/ID/merged
			filepath.Join(f.graphroot(n), "overlay"),
		} {
			if dir != "" && unix.Faccessat(unix.AT_FDCWD, filepath.Join(dir, rel), unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) == nil {
				return dir
			}
		}
		return ""
	}
	abs := func(p string) (string, error) {
		if filepath.IsAbs(p) {
			return filepath.Clean(p), nil
		}
		// Mounted from the storage directory, because the options would not
		// have fitted into one page.
		dir := base(p)
		if dir == "" || !filepath.IsLocal(p) {
			return "", fmt.Errorf("layer %q: the directory that it is relative to is not known", p)
		}
		return filepath.Join(dir, p), nil
	}
	for _, l := range o.lower {
		dir, err := abs(l)
		if err != nil {
			return err
		}
		if dir, err = f.shortName(dir); err != nil {
			return err
		}
		r.Layers = append(r.Layers, Layer{Dir: dir})
	}
	if o.upper != "" {
		if r.Upper, err = abs(o.upper); err != nil {
			return err
		}
	}
	return nil
}

// shortName resolves podman's .../overlay/l/XXXX, a symlink to the layer. Other
// paths are returned as they are.
func (f *Finder) shortName(dir string) (string, error) {
	if filepath.Base(filepath.Dir(dir)) != "l" {
		return dir, nil
	}
	f.mu.Lock()
	to, ok := f.links[dir]
	f.mu.Unlock()
	if ok {
		return to, nil
	}
	target, err := readlink(unix.AT_FDCWD, dir)
	if errors.Is(err, unix.EINVAL) { // a directory that only looks so
		return dir, nil
	}
	if err != nil {
		return "", err
	}
	if to = target; !filepath.IsAbs(target) {
		to = filepath.Join(filepath.Dir(dir), target)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.links == nil || len(f.links) >= maxLinks {
		f.links = map[string]string{}
	}
	f.links[dir] = to
	return to, nil
}

// ours reports whether a superblock is mounted in the agent's namespace.
func ours(dev string) bool {
	found := false
	err := eachMount("/proc/self/mountinfo", func(m *mount) bool {
		found = m.dev == dev
		return !found
	})
	return err == nil && found
}

// hostPath returns the path by which the host reaches what is mounted at m.
func hostPath(m *mount) (dir, doubt string) {
	if !localType(m.fstype) {
		return "", "its root is on " + m.fstype + ", which is not searched"
	}
	best := -1
	err := eachMount("/proc/self/mountinfo", func(h *mount) bool {
		if h.dev == m.dev && within(m.root, h.root) && len(h.root) > best {
			best, dir = len(h.root), filepath.Join(h.point, strings.TrimPrefix(m.root, h.root))
		}
		return true
	})
	if err != nil || best < 0 {
		return "", "its root is not mounted in the agent's mount namespace"
	}
	return dir, ""
}

// mounted sorts the mounts below prefix in a process's mount table.
func mounted(r *Rootfs, ms []mount, root *mount, prefix, proc string) {
	byID := make(map[int]*mount, len(ms))
	for i := range ms {
		byID[ms[i].id] = &ms[i]
	}
	fd, err := unix.Open(proc, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
	}
	for i := range ms {
		m := &ms[i]
		if m == root || m.point == prefix {
			continue
		}
		dest := m.point
		if prefix != "/" {
			dest = strings.TrimPrefix(m.point, prefix)
		}
		c := container.Mount{Destination: dest, Type: m.fstype, Source: m.root}
		if isPseudo(c) {
			r.Pseudo = append(r.Pseudo, c)
			continue
		}
		r.Mounts = append(r.Mounts, c)
		// Only where no mount on the way can hang is it looked at.
		hangs := err != nil
		for at, hops := m, 0; at != nil && at != root && !hangs; at, hops = byID[at.parent], hops+1 {
			hangs = hops > 64 || !localType(at.fstype) && !pseudoTypes[at.fstype] || at.fstype == "autofs"
		}
		if !hangs {
			r.sort(dest, fd, strings.TrimPrefix(m.point, "/"))
		}
	}
}

// configured takes the mounts from the notice, for a container whose mount
// namespace cannot be read.
func configured(r *Rootfs, ms []container.Mount) {
	for _, c := range ms {
		c.Destination = path.Clean("/" + c.Destination)
		if c.Destination == "/" {
			continue
		}
		if isPseudo(c) {
			r.Pseudo = append(r.Pseudo, c)
			continue
		}
		r.Mounts = append(r.Mounts, c)
		src := filepath.Clean(c.Source)
		if filepath.IsAbs(src) && localPath(src) == nil {
			r.sort(c.Destination, unix.AT_FDCWD, src)
		}
	}
}

// sort finds out whether what is mounted at dest is a directory.
func (r *Rootfs) sort(dest string, dir int, rel string) {
	fd, err := openat2(dir, rel, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	switch {
	case unix.Fstat(fd, &st) != nil:
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		r.Dirs = append(r.Dirs, dest)
	default:
		r.Files = append(r.Files, dest)
	}
}

// nameLayers fills in the diff ids that a store vouches for.
func (f *Finder) nameLayers(ctx context.Context, n container.Notice, img container.Image, layers []Layer) {
	keys := make([]diffKey, len(layers))
	missing := false
	for i := range layers {
		keys[i] = f.diffKey(layers[i].Dir)
		f.mu.Lock()
		layers[i].DiffID = f.diffIDs[keys[i]]
		f.mu.Unlock()
		missing = missing || layers[i].DiffID == ""
	}
	if !missing {
		return
	}
	switch n.Identity.Runtime {
	case container.Containerd:
		ids, err := f.snapshotDiffIDs(ctx, n.Identity.ID, img)
		if err == nil && len(ids) != len(layers) {
			err = fmt.Errorf("%d layers are mounted, the image has %d", len(layers), len(ids))
		}
		if err != nil {
			f.conf.Log.Debug("layers without diff ids", "container", n.Identity.ID, "err", err)
			return
		}
		for i := range layers {
			layers[i].DiffID = ids[len(ids)-1-i]
		}
	case container.Podman, container.CRIO:
		f.storedDiffIDs(layers)
	default:
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range layers {
		if f.diffIDs == nil || len(f.diffIDs) >= maxLinks {
			f.diffIDs = map[diffKey]string{}
		}
		if layers[i].DiffID != "" && keys[i] != (diffKey{}) {
			f.diffIDs[keys[i]] = layers[i].DiffID
		}
	}
}

// storedDiffIDs looks layers up in the store whose ROOT/overlay/ID/diff they
// are; with additional image stores that is not the container's own.
func (f *Finder) storedDiffIDs(layers []Layer) {
	known := map[string]map[string]string{}
	for i := range layers {
		dir, last := filepath.Split(layers[i].Dir)
		dir, id := filepath.Split(filepath.Clean(dir))
		if last != "diff" || filepath.Base(dir) != "overlay" {
			continue
		}
		root := filepath.Dir(filepath.Clean(dir))
		ids, ok := known[root]
		if !ok {
			ids = map[string]string{}
			for _, file := range []string{"layers.json", "volatile-layers.json"} {
				b, err := readBelow(root, "overlay-layers/"+file, maxStoreFile, nil)
				if err == nil {
					var more map[string]string
					if more, err = parseLayers(b); err == nil {
						for k, v := range more {
							ids[k] = v
						}
					}
				}
				if err != nil && !errors.Is(err, unix.ENOENT) {
					f.conf.Log.Debug("layers without diff ids", "store", root, "err", err)
				}
			}
			known[root] = ids
		}
		layers[i].DiffID = ids[id]
	}
}

// diffKey names a directory as it is now: a wiped store numbers its snapshots
// from 1 again.
type diffKey struct {
	dir      string
	dev, ino uint64
	changed  unix.Timespec
}

func (f *Finder) diffKey(dir string) diffKey {
	fd, err := f.dirs.open(dir)
	if err != nil {
		return diffKey{}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return diffKey{}
	}
	return diffKey{dir, uint64(st.Dev), st.Ino, st.Ctim}
}
