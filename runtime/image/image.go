// Package image finds out which image a container was made from, which layers
// its root file system is stacked from, and which files of those layers a
// pattern means. It works offline, from the runtimes' own stores.
//
// In: a notice that a runtime source has cross-checked; /proc; podman's and
// CRI-O's storage directory, and docker's; containerd's socket, by read-only calls in the
// container's namespace; the directories of the layers. Out: a [container.Image], a
// [Rootfs], and from a [Cache] a [View] of the container's files.
//
// Trusted are the kernel, the runtimes' daemons and the storage files that
// belong to root (or to the agent's own user). Not trusted is anything that an
// image or a container can shape: names, symlinks, attributes, the upper
// directory, mount points. Reads of them are bounded, and lookups stay inside
// the layer, off symlinks and on its mount. File systems that could leave the
// reader hanging (FUSE, network) are refused from the mount table alone.
//
// What is true on return: a digest was either computed from the very bytes of
// the manifest or is absent with a reason; a diff id is given only where the
// runtime's store says so for that very directory, or the chain of them is the
// name of the container's snapshot. A match was in the layers when they were
// indexed; it stays a claim about names until the file is opened and armed.
// It is not a control: an image's name is what the store says it is, and
// without CAP_SYS_ADMIN the kernel hides overlayfs's attributes, so that files
// below an opaque directory seem to be there.
package image

import (
	"cmp"
	"context"
	"log/slog"
	"path"
	"sync"

	"google.golang.org/grpc"

	"probity/runtime/container"
)

// Defaults of [Config].
const (
	DefaultContainerd = "/run/containerd/containerd.sock"
	DefaultPodmanRoot = "/var/lib/containers/storage"
	DefaultDockerRoot = "/var/lib/docker"
)

// Config says where the stores are. The zero value means the defaults.
type Config struct {
	ContainerdAddress string // path of containerd's socket
	PodmanRoot        string // graphroot of podman and CRI-O, for containers whose bundle does not lie in one
	DockerRoot        string // docker's data-root
	Log               *slog.Logger
}

// Finder answers from the stores. It is safe for concurrent use.
type Finder struct {
	conf Config
	dirs localDirs

	mu       sync.Mutex
	conn     *grpc.ClientConn
	closed   bool
	resolved map[resolveKey]resolved // of containerd's images; immutable facts
	stores   map[string]*store       // podman's, by graphroot
	diffIDs  map[diffKey]string      // of layer directories that were looked up
	links    map[string]string       // podman's short layer names
}

// New returns a Finder. It connects to nothing before it is asked.
func New(c Config) *Finder {
	c.ContainerdAddress = cmp.Or(c.ContainerdAddress, DefaultContainerd)
	c.PodmanRoot = cmp.Or(c.PodmanRoot, DefaultPodmanRoot)
	c.DockerRoot = path.Clean(cmp.Or(c.DockerRoot, DefaultDockerRoot))
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Finder{conf: c}
}

// Close ends the connection to containerd, if there is one.
func (f *Finder) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.conn == nil {
		return nil
	}
	err := f.conn.Close()
	f.conn = nil
	return err
}

// Identify returns what is known of a container's image. It never fails: where
// the manifest's digest cannot be found, DigestReason says why.
func (f *Finder) Identify(ctx context.Context, n container.Notice) container.Image {
	var img container.Image
	var err error
	switch n.Identity.Runtime {
	case container.Containerd:
		img, err = f.fromContainerd(ctx, n)
	case container.Podman, container.CRIO:
		img, err = f.fromStorage(n)
	case container.Docker:
		img, err = f.fromDocker(ctx, n)
	default:
		img = n.Identity.Image
		if img.Digest == "" && img.DigestReason == "" {
			img.DigestReason = string(n.Identity.Runtime) + " keeps no image that is known here"
		}
	}
	if err != nil {
		f.conf.Log.Debug("no manifest digest", "container", n.Identity.ID, "err", err)
		img.Digest, img.DigestReason = "", clip(err.Error(), maxReason)
	}
	return img
}

// maxReason bounds a reason, which goes into a line of evidence.
const maxReason = 512

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "..."
	}
	return s
}
