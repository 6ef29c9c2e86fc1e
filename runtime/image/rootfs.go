package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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
	Owner  uint32 // the user whose it must be to be opened; 0: that is not asked
	ids    string // his, and those subordinate to him, as uid_map has them: files are theirs
}

// Rootfs says what a container's root file system is made of.
type Rootfs struct {
	Driver string  // "overlay", or the type of the file system
	Layers []Layer // read-only, top first
	Upper  string  // the writable directory on the host, or ""; with no layers, the whole root
	Merged string  // a path by which the agent reaches the merged tree; "" if it must not
	Owner  uint32  // the user whose own runtime has made it, or 0
	ids    string  // as in Layer

	Mounts []container.Mount // below the root, except kernel interfaces
	Files  []string          // destinations in Mounts that are known to be single files
	Dirs   []string          // destinations in Mounts that are known to be directories
	Inert  []string          // destinations in Mounts at which no file was an ELF one
	Pseudo []container.Mount // kernel interfaces: what the image has there is hidden

	UserXattr bool   // overlayfs's attributes are user.overlay.*
	Doubt     string // why a search in it cannot be complete, or ""

	looked int // files and directories of mounts that were looked at
}

// Rootfs reads the container's mount table. At OCI createRuntime (n.Rootfs is
// set) the mounts are already made, below n.Rootfs in the process's own mount
// namespace; later they are below its "/".
func (f *Finder) Rootfs(ctx context.Context, n container.Notice, img container.Image) (Rootfs, error) {
	stack := f.stack
	if n.Identity.User != 0 {
		stack = stackOfUser
	}
	r, err := stack(n)
	if err != nil {
		return Rootfs{}, fmt.Errorf("root file system of container %s: %w", n.Identity.ID, err)
	}
	if r.Owner == 0 {
		f.nameLayers(ctx, n, img, r.Layers)
	}
	return r, nil
}

func (f *Finder) stack(n container.Notice) (Rootfs, error) {
	var r Rootfs
	if n.Rootfs == "" && n.Pid <= 0 {
		return r, errors.New("neither its pid nor its path is known")
	}
	root := "/"
	if n.Rootfs != "" {
		if root = filepath.Clean(n.Rootfs); !filepath.IsAbs(root) || root == "/" {
			return r, fmt.Errorf("%q is not a container's directory", n.Rootfs)
		}
	}
	m, ms, theirs, err := rootMount(n.Pid, root)
	if err != nil {
		return r, err
	}
	if m == nil && n.Rootfs != "" {
		// The mount table has no symlinks, the bundle's path may.
		parent, err := canonical(filepath.Dir(root))
		if err != nil {
			return r, err
		}
		root = filepath.Join(parent, filepath.Base(root))
		if m, ms, theirs, err = rootMount(n.Pid, root); err != nil {
			return r, err
		}
	}
	proc := "/proc/" + strconv.Itoa(n.Pid) + "/root"
	if m == nil && n.Rootfs == "" {
		return r, errors.New("nothing is mounted at the root of its mount namespace")
	}
	r.Merged = root
	if n.Rootfs == "" {
		r.Merged = proc
		if same, err := sameRoot(proc); err != nil || same {
			return r, cmp.Or(err, fmt.Errorf("pid %d is in the host's root file system", n.Pid))
		}
	}
	switch {
	case m == nil:
		if err := localPath(root); err != nil {
			return r, err
		}
		r.Driver, r.Upper = "directory", root
	case m.fstype == "overlay":
		if err := f.overlay(&r, m, n, root); err != nil {
			return r, err
		}
	default:
		r.Driver = m.fstype
		r.Upper, r.Doubt = hostPath(m)
	}
	if theirs {
		mounted(&r, ms, m, root, proc)
	} else {
		configured(&r, n.Mounts)
	}
	return r, nil
}

// rootMount returns the mount that is visible at root, and the mounts below it:
// in the process's mount table if it is in that one, else in ours, where what
// the container will mount below it is not known.
func rootMount(pid int, root string) (m *mount, ms []mount, theirs bool, err error) {
	if pid > 0 {
		if ms, err = mountsWithin(pid, root); err != nil {
			return nil, nil, false, err
		}
		if m = top(ms, root); m != nil || root == "/" {
			return m, ms, true, nil
		}
	}
	ms, err = mountsWithin(0, root)
	return top(ms, root), ms, false, err
}

// sameRoot reports whether a process's root is ours, or that of the host's
// init. Asking for nothing but the mount id makes no file system ask its server.
func sameRoot(proc string) (bool, error) {
	look := func(path string) (st unix.Statx_t, err error) {
		err = unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st)
		return st, err
	}
	st, err := look(proc)
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", proc, err)
	}
	for _, other := range []string{"/", "/proc/1/root"} {
		o, err := look(other)
		if err == nil && o.Dev_major == st.Dev_major && o.Dev_minor == st.Dev_minor && o.Ino == st.Ino {
			return true, nil
		}
	}
	return false, nil
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
