package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	content "github.com/containerd/containerd/api/services/content/v1"
	images "github.com/containerd/containerd/api/services/images/v1"
	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"probity/runtime/container"
	"probity/runtime/containerd"
)

const (
	// callTimeout bounds one call: a start may be waiting for the answer.
	callTimeout = 400 * time.Millisecond
	// maxCandidates bounds the manifests of one index that are looked at.
	maxCandidates = 16
)

// resolveKey is what containerd said of an image; resolved is what its content
// store makes of that. Content is addressed by digest, so it stays true.
type resolveKey struct{ target, config string }

type resolved struct {
	manifest, index, config string
	diffIDs                 []string // bottom first; nil if the config could not be read
}

// client returns the connection, which dials when it is first used.
func (f *Finder) client() (*grpc.ClientConn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, errors.New("the finder is closed")
	}
	if f.conn == nil {
		conn, err := containerd.Client(f.conf.ContainerdAddress, callTimeout)
		if err != nil {
			return nil, err
		}
		f.conn = conn
	}
	return f.conn, nil
}

// namespaceOf is containerd's namespace of a container.
func namespaceOf(n container.Notice) string { return cmp.Or(n.Namespace, containerd.CRI) }

// call runs one read-only call in a namespace.
func call[Q, A any](ctx context.Context, namespace, what string, f func(context.Context, *Q, ...grpc.CallOption) (*A, error), req *Q) (*A, error) {
	ctx, cancel := context.WithTimeout(containerd.In(ctx, namespace), callTimeout)
	defer cancel()
	a, err := f(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("ask containerd for %s: %w", what, err)
	}
	return a, nil
}

// fromContainerd identifies the image of a container. NRI says its name
// and a digest, which is an index's or a manifest's: only the content store
// knows which (containerd 2.4; older ones say nothing).
func (f *Finder) fromContainerd(ctx context.Context, n container.Notice) (container.Image, error) {
	img := n.Identity.Image
	target := img.Digest
	img.Digest, img.DigestReason = "", ""
	if target == "" {
		name, digest, err := f.imageOf(ctx, n)
		img.Name = cmp.Or(img.Name, name)
		if err != nil {
			return img, err
		}
		target = digest
	}
	if !container.ValidDigest(target) {
		return img, fmt.Errorf("containerd names the image by %.80q, which is not a sha256 digest", target)
	}
	r, err := f.resolve(ctx, namespaceOf(n), resolveKey{target, img.ConfigDigest})
	if err != nil {
		return img, fmt.Errorf("image %s: %w", target, err)
	}
	img.Digest, img.IndexDigest, img.ConfigDigest = r.manifest, r.index, r.config
	return img, nil
}

// imageOf returns name and target digest of a container's image. Who knows the
// namespace has the name from containerd's own record; what NRI calls it may be another.
func (f *Finder) imageOf(ctx context.Context, n container.Notice) (name, digest string, err error) {
	conn, err := f.client()
	if err != nil {
		return "", "", err
	}
	namespace := namespaceOf(n)
	if n.Namespace != "" {
		name = n.Identity.Image.Name
	} else {
		c, err := call(ctx, namespace, "container "+n.Identity.ID, containers.NewContainersClient(conn).Get, &containers.GetContainerRequest{ID: n.Identity.ID})
		if err != nil {
			return "", "", err
		}
		name = c.GetContainer().GetImage()
	}
	if name == "" {
		return "", "", errors.New("containerd knows no image for the container")
	}
	i, err := call(ctx, namespace, "image "+name, images.NewImagesClient(conn).Get, &images.GetImageRequest{Name: name})
	if err != nil {
		return name, "", err
	}
	return name, i.GetImage().GetTarget().GetDigest(), nil
}

// resolve finds the platform manifest that a target digest stands for, through
// the content store.
func (f *Finder) resolve(ctx context.Context, namespace string, key resolveKey) (resolved, error) {
	f.mu.Lock()
	r, ok := f.resolved[key]
	f.mu.Unlock()
	if ok {
		return r, nil
	}
	m, err := f.manifest(ctx, namespace, key.target)
	if err != nil {
		return r, err
	}
	r.manifest = key.target
	if m.isIndex() {
		r.index = key.target
		if r.manifest, m, err = f.choose(ctx, namespace, m, key.config); err != nil {
			return r, err
		}
	}
	r.config = m.Config.Digest
	if key.config != "" && key.config != r.config {
		return r, fmt.Errorf("its config is %s, but containerd runs %s", r.config, key.config)
	}
	if b, err := f.blob(ctx, namespace, r.config); err != nil {
		f.conf.Log.Debug("no diff ids", "image", key.target, "err", err)
	} else if r.diffIDs, err = parseDiffIDs(b); err != nil {
		f.conf.Log.Debug("no diff ids", "image", key.target, "err", err)
	}
	if r.diffIDs == nil {
		return r, nil // the identity is whole; the config may be there the next time
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.resolved == nil || len(f.resolved) >= maxLinks {
		f.resolved = map[resolveKey]resolved{}
	}
	f.resolved[key] = r
	f.resolved[resolveKey{r.manifest, r.config}] = r
	return r, nil
}

// choose returns the manifest of an index that the container runs: the one
// with its config, or the only one of this platform whose content is there.
func (f *Finder) choose(ctx context.Context, namespace string, index *manifest, config string) (digest string, m *manifest, err error) {
	candidates := index.here()
	if len(candidates) > maxCandidates {
		return "", nil, fmt.Errorf("the index has more than %d manifests for this platform", maxCandidates)
	}
	for _, d := range candidates {
		got, gerr := f.manifest(ctx, namespace, d.Digest)
		if status.Code(gerr) == codes.NotFound {
			continue
		}
		switch {
		case gerr != nil:
			return "", nil, gerr
		case got.isIndex() || config != "" && got.Config.Digest != config:
		case m != nil && digest != d.Digest:
			return "", nil, errors.New("the index has several manifests for this platform, and nothing says which one runs")
		default:
			digest, m = d.Digest, got
		}
	}
	if m == nil {
		return "", nil, errors.New("the manifest for this platform is not in containerd's content store")
	}
	return digest, m, nil
}

func (f *Finder) manifest(ctx context.Context, namespace, digest string) (*manifest, error) {
	b, err := f.blob(ctx, namespace, digest)
	if err != nil {
		return nil, err
	}
	return parseManifest(b)
}

// blob reads content and checks that it is what its digest says.
func (f *Finder) blob(ctx context.Context, namespace, digest string) ([]byte, error) {
	if !container.ValidDigest(digest) {
		return nil, fmt.Errorf("%.80q is not a sha256 digest", digest)
	}
	conn, err := f.client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(containerd.In(ctx, namespace), callTimeout)
	defer cancel()
	stream, err := content.NewContentClient(conn).Read(ctx, &content.ReadContentRequest{Digest: digest})
	if err != nil {
		return nil, fmt.Errorf("ask containerd for content %s: %w", digest, err)
	}
	var b []byte
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("ask containerd for content %s: %w", digest, err)
		}
		if b = append(b, part.GetData()...); len(b) > maxManifest {
			return nil, fmt.Errorf("content %s is longer than %d bytes", digest, maxManifest)
		}
	}
	if got := digestOf(b); got != digest {
		return nil, fmt.Errorf("content %s has digest %s", digest, got)
	}
	return b, nil
}

// snapshotDiffIDs returns the diff ids of the layers below a container's
// snapshot, bottom first, if the snapshot's own parent proves them: containerd
// names a committed snapshot by the chain id of its layers.
func (f *Finder) snapshotDiffIDs(ctx context.Context, namespace, id string, img container.Image) ([]string, error) {
	if img.Digest == "" {
		return nil, errors.New("the image's manifest is not known")
	}
	r, err := f.resolve(ctx, namespace, resolveKey{img.Digest, img.ConfigDigest})
	if err != nil {
		return nil, err
	}
	if r.diffIDs == nil {
		return nil, errors.New("the image's config is not known")
	}
	conn, err := f.client()
	if err != nil {
		return nil, err
	}
	c, err := call(ctx, namespace, "container "+id, containers.NewContainersClient(conn).Get, &containers.GetContainerRequest{ID: id})
	if err != nil {
		return nil, err
	}
	s, err := call(ctx, namespace, "snapshot of container "+id, snapshots.NewSnapshotsClient(conn).Stat, &snapshots.StatSnapshotRequest{
		Snapshotter: c.GetContainer().GetSnapshotter(), Key: c.GetContainer().GetSnapshotKey(),
	})
	if err != nil {
		return nil, err
	}
	if parent := s.GetInfo().GetParent(); parent != chainID(r.diffIDs) {
		return nil, fmt.Errorf("the container's snapshot stands on %.80q, not on the image's layers", parent)
	}
	return r.diffIDs, nil
}
