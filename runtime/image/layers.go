package image

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"probity/runtime/container"
)

// overlay fills in the layers of an overlay mount.
func (f *Finder) overlay(r *Rootfs, m *mount, n container.Notice, root string) error {
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
	// overlay that it made itself, of any directories of the host: only one
	// that we see too is believed.
	if n.Kind != container.Starting && !ours(m.dev) {
		r.Doubt = "its overlay is not mounted in the agent's mount namespace: its layers are only a claim"
		return nil
	}
	base := func(rel string) string {
		for _, dir := range []string{
			twoUp(o.upper), // .../overlay/ID/diff, .../snapshots/ID/fs
			twoUp(root),    // .../overlay/ID/merged
			filepath.Join(f.graphroot(n), "overlay"),
		} {
			if dir != "" && dir != "/" && unix.Faccessat(unix.AT_FDCWD, filepath.Join(dir, rel), unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) == nil {
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
