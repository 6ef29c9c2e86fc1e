package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"probity/runtime/container"
	"probity/runtime/containerd"
)

// dockerContainer is what is used of ROOT/containers/ID/config.v2.json, which docker
// writes before a container starts.
type dockerContainer struct {
	Name   string // with a slash before it
	Image  string // the digest of the image's config, with docker's own graph drivers
	Driver string
	// ImageManifest is there with containerd's image store.
	ImageManifest *struct {
		Digest string `json:"digest"`
	}
	Config struct {
		Image  string // as the user spelled it
		Labels map[string]string
	}
}

const maxDockerContainer = 1 << 20

var dockerDriver = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

func parseDockerContainer(b []byte) (c dockerContainer, err error) {
	if len(b) > maxDockerContainer {
		return c, fmt.Errorf("config.v2.json: %d bytes, at most %d are read", len(b), maxDockerContainer)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return dockerContainer{}, fmt.Errorf("config.v2.json: %w", err)
	}
	if c.Driver != "" && !dockerDriver.MatchString(c.Driver) {
		return dockerContainer{}, fmt.Errorf("config.v2.json: driver %.40q", c.Driver)
	}
	return c, nil
}

func (f *Finder) docker(id string) (dockerContainer, error) {
	b, err := readBelow(&f.dirs, f.conf.DockerRoot, "containers/"+id+"/config.v2.json", maxDockerContainer, nil)
	if err != nil {
		return dockerContainer{}, err
	}
	return parseDockerContainer(b)
}

// Named returns what docker calls one of its containers, and its labels; "" and nil if
// that is not known. Neither hooks nor containerd are told.
func (f *Finder) Named(id string) (name string, labels map[string]string) {
	c, err := f.docker(id)
	if err != nil {
		f.conf.Log.Debug("no name", "container", id, "err", err)
		return "", nil
	}
	return strings.TrimPrefix(c.Name, "/"), c.Config.Labels
}

// errNoManifest: nothing is wrong, there just is none.
var errNoManifest = errors.New("docker's graph drivers keep an image without its manifest")

// fromDocker identifies the image of a container of docker.
func (f *Finder) fromDocker(ctx context.Context, n container.Notice) (img container.Image, err error) {
	c, err := f.docker(n.Identity.ID)
	if err != nil {
		return img, err
	}
	img.Name = container.Text(c.Config.Image)
	if c.ImageManifest != nil {
		r, err := f.resolve(ctx, containerd.Docker, resolveKey{target: c.ImageManifest.Digest})
		if err != nil {
			return img, fmt.Errorf("image %.80q: %w", c.ImageManifest.Digest, err)
		}
		img.Digest, img.IndexDigest, img.ConfigDigest = r.manifest, r.index, r.config
		return img, nil
	}
	if _, err := f.dockerConfig(c); err != nil {
		return img, err
	}
	img.ConfigDigest = c.Image
	return img, errNoManifest
}

// dockerConfig returns the config of a container's image, which has the digest that it
// is stored by.
func (f *Finder) dockerConfig(c dockerContainer) ([]byte, error) {
	hex, _ := strings.CutPrefix(c.Image, "sha256:")
	if !container.ValidDigest(c.Image) || c.Driver == "" {
		return nil, fmt.Errorf("docker names the image by %.80q, with driver %q", c.Image, c.Driver)
	}
	b, err := readBelow(&f.dirs, f.conf.DockerRoot, "image/"+c.Driver+"/imagedb/content/sha256/"+hex, maxManifest, nil)
	if err != nil {
		return nil, err
	}
	if got := digestOf(b); got != c.Image {
		return nil, fmt.Errorf("the config of image %s has digest %s", c.Image, got)
	}
	return b, nil
}

// dockerDiffIDs names the layers of docker's own overlay2: ROOT/image/overlay2/layerdb
// has for the chain of each image's layers the directory that the last of them is in.
// The layer that docker puts on top of them for /etc/hosts and the like has no diff id.
func (f *Finder) dockerDiffIDs(id string, layers []Layer) error {
	c, err := f.docker(id)
	if err != nil {
		return err
	}
	b, err := f.dockerConfig(c)
	if err != nil {
		return err
	}
	diffIDs, err := parseDiffIDs(b)
	if err != nil {
		return err
	}
	for i, d := range diffIDs {
		hex, _ := strings.CutPrefix(chainID(diffIDs[:i+1]), "sha256:")
		b, err := readBelow(&f.dirs, f.conf.DockerRoot, "image/"+c.Driver+"/layerdb/sha256/"+hex+"/cache-id", 256, nil)
		if err != nil {
			return err
		}
		dir := f.conf.DockerRoot + "/" + c.Driver + "/" + string(b) + "/diff"
		for j := range layers {
			if layers[j].Dir == dir {
				layers[j].DiffID = d
			}
		}
	}
	return nil
}
