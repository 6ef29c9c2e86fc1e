package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"probity/runtime/container"
)

// This file is about the root file systems of a user's own (rootless) runtime. All that
// the mount table says of such an overlay's layers is text of the user's, who may serve
// file systems by himself (FUSE), in his mount namespace and below an overlay: whoever
// opens a file there can be kept waiting for ever, past SIGKILL. So nothing is opened
// through the container's root, nor by a process of it. What is opened are directories of
// the host that belong to the user, found without symlinks and without entering a file
// system that could block. That they are what the container has is not shown by it.

// userDoubt is why no search in a user's container is complete.
const userDoubt = "it is a user's own (rootless) container: its layers are that user's claim"

// stackOfUser is stack for a container of a user's own runtime.
func stackOfUser(n container.Notice) (Rootfs, error) {
	r := Rootfs{Owner: n.Identity.User, Doubt: userDoubt}
	root := filepath.Clean(n.Rootfs)
	if !filepath.IsAbs(root) || root == "/" || n.Pid <= 0 {
		return r, fmt.Errorf("%q is not the directory of a user's container", n.Rootfs)
	}
	var err error
	if r.ids, err = idsOf(n.Pid); err != nil {
		return r, err
	}
	ms, err := mountsWithin(n.Pid, root)
	if err != nil {
		return r, err
	}
	m := top(ms, root)
	if m == nil {
		return r, fmt.Errorf("nothing is mounted at %s by process %d", root, n.Pid)
	}
	r.Driver = m.fstype
	switch {
	case m.fstype == "overlay" && m.root == "/":
		err = r.overlayOfUser(m, root)
	case m.fstype == "overlay":
		err = errors.New("its root is a directory inside an overlay")
	default:
		if r.Upper, r.Doubt = hostPath(m); r.Doubt == "" {
			r.Doubt = userDoubt
		}
	}
	for i := range ms {
		if ms[i].point == root {
			continue
		}
		c := container.Mount{Destination: strings.TrimPrefix(ms[i].point, root), Type: ms[i].fstype, Source: ms[i].root}
		if isPseudo(c) {
			r.Pseudo = append(r.Pseudo, c)
		} else {
			r.Mounts = append(r.Mounts, c)
		}
	}
	return r, err
}

func (r *Rootfs) overlayOfUser(m *mount, root string) error {
	o, err := parseOverlay(m.super)
	if err != nil {
		return fmt.Errorf("overlay options: %w", err)
	}
	r.UserXattr = o.userxattr
	abs := func(p string) (string, error) {
		if !filepath.IsAbs(p) { // mounted from the storage directory, .../overlay/ID/merged
			p = filepath.Join(twoUp(root), p)
		}
		return shortNameOf(r.Owner, filepath.Clean(p))
	}
	for _, l := range o.lower {
		dir, err := abs(l)
		if err != nil {
			return err
		}
		r.Layers = append(r.Layers, Layer{Dir: dir, Owner: r.Owner, ids: r.ids})
	}
	if o.upper != "" {
		r.Upper, err = abs(o.upper)
	}
	return err
}

// shortNameOf is shortName below a directory of a user's.
func shortNameOf(owner uint32, dir string) (string, error) {
	parent, name := filepath.Split(dir)
	if parent = filepath.Clean(parent); filepath.Base(parent) != "l" {
		return dir, nil
	}
	fd, err := openOwned(parent, owner)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	target, err := readlink(fd, name)
	switch {
	case errors.Is(err, unix.EINVAL): // a directory that only looks so
		return dir, nil
	case err != nil:
		return "", err
	case filepath.IsAbs(target):
		return filepath.Clean(target), nil
	}
	return filepath.Join(parent, target), nil
}

// ErrNotTheirs: a directory is not the user's whose container is said to have it.
var ErrNotTheirs = errors.New("not the user's own")

// openOwned opens a directory by path only, if it is the user's. On the way nothing is
// looked up in a file system that could block: each mount is recognised before anything
// below it is named.
func openOwned(dir string, owner uint32) (int, error) {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir {
		return -1, fmt.Errorf("open %q: not a clean absolute path", dir)
	}
	local := map[int]bool{}
	if err := eachMount("/proc/self/mountinfo", func(m *mount) bool {
		local[m.id] = localType(m.fstype)
		return true
	}); err != nil {
		return -1, err
	}
	at, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /: %w", err)
	}
	for seg := range strings.SplitSeq(strings.TrimPrefix(dir, "/"), "/") {
		next, err := unix.Openat(at, seg, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		unix.Close(at)
		if err != nil {
			return -1, fmt.Errorf("open %s, at %q: %w", dir, seg, err)
		}
		at = next
		var st unix.Statx_t
		// What the kernel knows: no file system is asked.
		err = unix.Statx(at, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st)
		if err == nil && !local[int(st.Mnt_id)] {
			err = ErrRemote
		}
		if err != nil {
			unix.Close(at)
			return -1, fmt.Errorf("open %s, at %q: %w", dir, seg, err)
		}
	}
	var st unix.Stat_t
	err = unix.Fstat(at, &st)
	if err == nil && st.Uid != owner {
		err = fmt.Errorf("%w: it belongs to uid %d, not %d", ErrNotTheirs, st.Uid, owner)
	}
	if err != nil {
		unix.Close(at)
		return -1, fmt.Errorf("open %s: %w", dir, err)
	}
	return at, nil
}

// open opens the layer's directory by path only; known says that it was found to be
// local before.
func (l Layer) open(known bool) (int, error) {
	if l.Owner != 0 {
		return openOwned(l.Dir, l.Owner)
	}
	return openDir(l.Dir, known)
}

// layer opens a layer's directory by path only.
func (d *localDirs) layer(l Layer) (int, error) {
	if l.Owner != 0 {
		return openOwned(l.Dir, l.Owner)
	}
	return d.open(l.Dir)
}

// upper is the writable directory as a layer.
func (r *Rootfs) upper() Layer { return Layer{Dir: r.Upper, Owner: r.Owner, ids: r.ids} }

// maxIDs bounds uid_map, which has 340 lines at most (user_namespaces(7)).
const maxIDs = 340 * 33

// idsOf reads which ids are mapped in a process's user namespace.
func idsOf(pid int) (string, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/uid_map")
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIDs))
	return string(b), err
}

// theirs returns an error if a file in a user's layer belongs to nobody of his: he may
// have linked it there.
func (l Layer) theirs(st *unix.Stat_t) error {
	if l.Owner == 0 || st.Uid == l.Owner {
		return nil
	}
	for line := range strings.Lines(l.ids) {
		f := strings.Fields(line)
		if len(f) != 3 {
			break
		}
		first, err := strconv.ParseUint(f[1], 10, 32)
		n, nerr := strconv.ParseUint(f[2], 10, 32)
		if id := uint64(st.Uid); err == nil && nerr == nil && id >= first && id-first < n {
			return nil
		}
	}
	return fmt.Errorf("%w: it belongs to uid %d, and the layer to %d", ErrNotTheirs, st.Uid, l.Owner)
}
