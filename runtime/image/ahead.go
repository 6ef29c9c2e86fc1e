package image

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"

	"probity/runtime/container"
)

// ErrNotAhead: the runtime does not say what a container's root file system
// will be made of before it is mounted.
var ErrNotAhead = errors.New("not known before the start")

// Ahead says what the root file system of a container that is only created
// will be made of, so that its layers can be indexed before its start waits for
// that: containerd's snapshotter is asked what it would mount. Upper, mounts
// and Merged are not known yet; they are looked at when the container starts.
//
// The layers are what the snapshotter claims. Nothing is armed by them:
// [Finder.Rootfs] reads what the kernel really mounted.
func (f *Finder) Ahead(ctx context.Context, n container.Notice, img container.Image) (Rootfs, error) {
	if n.Identity.Runtime != container.Containerd {
		return Rootfs{}, ErrNotAhead
	}
	conn, err := f.client()
	if err != nil {
		return Rootfs{}, err
	}
	namespace := namespaceOf(n)
	c, err := call(ctx, namespace, "container "+n.Identity.ID, containers.NewContainersClient(conn).Get, &containers.GetContainerRequest{ID: n.Identity.ID})
	if err != nil {
		return Rootfs{}, err
	}
	m, err := call(ctx, namespace, "the mounts of snapshot "+c.GetContainer().GetSnapshotKey(), snapshots.NewSnapshotsClient(conn).Mounts,
		&snapshots.MountsRequest{Snapshotter: c.GetContainer().GetSnapshotter(), Key: c.GetContainer().GetSnapshotKey()})
	if err != nil {
		return Rootfs{}, err
	}
	if ms := m.GetMounts(); len(ms) != 1 || ms[0].GetType() != "overlay" {
		return Rootfs{}, fmt.Errorf("%w: it is not one overlay", ErrNotAhead)
	}
	// As it would stand in the mount table, where a backslash is an escape.
	o, err := parseOverlay(strings.ReplaceAll(strings.Join(m.GetMounts()[0].GetOptions(), ","), `\`, `\134`))
	if err != nil {
		return Rootfs{}, fmt.Errorf("the snapshotter's mount options: %w", err)
	}
	r := Rootfs{Driver: "overlay", UserXattr: o.userxattr}
	for _, dir := range o.lower {
		if !filepath.IsAbs(dir) {
			return Rootfs{}, fmt.Errorf("%w: layer %q is not absolute", ErrNotAhead, dir)
		}
		r.Layers = append(r.Layers, Layer{Dir: filepath.Clean(dir)})
	}
	f.nameLayers(ctx, n, img, r.Layers)
	return r, nil
}
