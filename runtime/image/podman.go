package image

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"probity/runtime/container"
)

// Bounds of the files of containers/storage. A host with a thousand containers
// has about 500 KB in each.
const (
	maxStoreFile = 16 << 20
	maxLinks     = 1 << 14 // remembered names and digests, of each kind
)

// store is one graphroot of containers/storage: podman's, or CRI-O's. Its JSON
// files are replaced atomically, so they are read without its locks.
type store struct {
	root   string
	dirs   *localDirs
	at     stamp // of images.json when images was filled
	images map[string]storedImage
	found  map[string]container.Image // verified against the manifest, by image id and digest
}

type storedImage struct {
	ID     string   `json:"id"`
	Digest string   `json:"digest"`
	Names  []string `json:"names"`
	Big    []string `json:"big-data-names"`
}

type storedContainer struct {
	ID       string `json:"id"`
	Image    string `json:"image"`
	Layer    string `json:"layer"`
	Metadata string `json:"metadata"`
}

type storedLayer struct {
	ID         string `json:"id"`
	DiffDigest string `json:"diff-digest"`
}

// graphroot returns the storage directory that a bundle lies in:
// GRAPHROOT/overlay-containers/ID/userdata.
func (f *Finder) graphroot(n container.Notice) string {
	dir, last := filepath.Split(filepath.Clean(n.Bundle))
	dir, id := filepath.Split(filepath.Clean(dir))
	dir = filepath.Clean(dir)
	if last == "userdata" && id == n.Identity.ID && filepath.Base(dir) == "overlay-containers" && filepath.IsAbs(dir) {
		return filepath.Dir(dir)
	}
	return f.conf.PodmanRoot
}

// fromStorage identifies the image of a container of podman or CRI-O. Neither
// tells a hook or a plugin the manifest digest.
func (f *Finder) fromStorage(n container.Notice) (container.Image, error) {
	root := f.graphroot(n)
	c, err := f.findContainer(root, n.Identity.ID)
	if err != nil {
		return container.Image{Name: n.Identity.Image.Name}, err
	}
	if c.Image == "" {
		return container.Image{Name: n.Identity.Image.Name}, errors.New("the container was made from a root file system, not from an image")
	}
	var meta struct {
		ImageName string `json:"image-name"`
	}
	_ = json.Unmarshal([]byte(c.Metadata), &meta) // of podman; anything else has no name
	img, names, err := f.storedImage(root, c.Image)
	for _, name := range append([]string{meta.ImageName}, names...) {
		if img.Name == "" && len(name) <= container.MaxName {
			img.Name = name
		}
	}
	return img, err
}

// findContainer looks in the two lists of containers; the volatile one is of
// containers that do not survive a reboot.
func (f *Finder) findContainer(root, id string) (*storedContainer, error) {
	var errs []error
	for _, file := range []string{"containers.json", "volatile-containers.json"} {
		b, err := readBelow(&f.dirs, root, "overlay-containers/"+file, maxStoreFile, nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c, err := parseContainer(b, id)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", file, err))
		}
		if c != nil {
			return c, nil
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return nil, fmt.Errorf("the container is not in %s/overlay-containers", root)
}

// parseContainer returns the container with that id from a list, or nil. The
// list grows with the host while a start waits: where the id stands as the
// first member of an object, as containers/storage writes it, only that object
// is decoded. In JSON the bytes `{"id":"` cannot lie within a string.
func parseContainer(b []byte, id string) (*storedContainer, error) {
	start, _ := json.Marshal(id)
	start = append([]byte(`{"id":`), start...)
	if i := bytes.Index(b, start); i >= 0 && bytes.Count(b, start) == 1 {
		var c storedContainer
		if err := json.NewDecoder(bytes.NewReader(b[i:])).Decode(&c); err == nil && c.ID == id && c.Layer != "" {
			return &c, nil
		}
	}
	var all []storedContainer
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].ID == id {
			return &all[i], nil
		}
	}
	return nil, nil
}

// storedImage returns what a store knows of an image. The digest is verified
// against the manifest's bytes.
func (f *Finder) storedImage(root, id string) (container.Image, []string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.stores[root]
	if s == nil {
		s = &store{root: root, dirs: &f.dirs}
		if f.stores == nil || len(f.stores) >= 64 {
			f.stores = map[string]*store{}
		}
		f.stores[root] = s
	}
	if err := s.load(); err != nil {
		return container.Image{}, nil, err
	}
	img, ok := s.images[id]
	if !ok {
		return container.Image{}, nil, fmt.Errorf("image %.64s is not in %s/overlay-images", id, root)
	}
	key := id + img.Digest
	if got, ok := s.found[key]; ok {
		return got, img.Names, nil
	}
	out, err := s.verify(img)
	if err != nil {
		return out, img.Names, err
	}
	if s.found == nil || len(s.found) >= maxLinks {
		s.found = map[string]container.Image{}
	}
	s.found[key] = out
	return out, img.Names, nil
}

// load reads images.json if it was replaced since.
func (s *store) load() error {
	var now stamp
	b, err := readBelow(s.dirs, s.root, "overlay-images/images.json", maxStoreFile, func(st stamp) bool {
		now = st
		return s.images == nil || st != s.at
	})
	if err != nil || b == nil {
		return err
	}
	images, err := parseImages(b)
	if err != nil {
		return fmt.Errorf("%s/overlay-images/images.json: %w", s.root, err)
	}
	s.images, s.at = images, now
	return nil
}

func parseImages(b []byte) (map[string]storedImage, error) {
	var all []storedImage
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, err
	}
	m := make(map[string]storedImage, len(all))
	for _, img := range all {
		m[img.ID] = img
	}
	return m, nil
}

// verify reads the image's manifest from the store.
func (s *store) verify(img storedImage) (container.Image, error) {
	var out container.Image
	if !container.ValidDigest(img.Digest) {
		return out, fmt.Errorf("images.json has no sha256 digest for image %.64s", img.ID)
	}
	if !container.ValidDigest("sha256:" + img.ID) {
		return out, fmt.Errorf("%.64q is not an image id", img.ID)
	}
	dir := "overlay-images/" + img.ID + "/"
	b, err := readBelow(s.dirs, s.root, dir+"manifest", maxManifest, nil)
	if err != nil {
		return out, err
	}
	if got := digestOf(b); got != img.Digest {
		return out, fmt.Errorf("the manifest of image %.64s has digest %s, images.json says %s", img.ID, got, img.Digest)
	}
	m, err := parseManifest(b)
	if err != nil {
		return out, err
	}
	if m.isIndex() {
		return out, fmt.Errorf("image %.64s is stored by its index %s", img.ID, img.Digest)
	}
	if m.Config.Digest != "sha256:"+img.ID {
		return out, fmt.Errorf("the manifest of image %.64s names another config, %s", img.ID, m.Config.Digest)
	}
	out.Digest, out.ConfigDigest = img.Digest, m.Config.Digest
	out.IndexDigest = s.index(img, dir)
	return out, nil
}

// index returns the digest of the one index that the image was pulled by, if
// the store has kept it.
func (s *store) index(img storedImage, dir string) string {
	found := ""
	for _, name := range img.Big {
		d, ok := strings.CutPrefix(name, "manifest-")
		if !ok || d == img.Digest || !container.ValidDigest(d) {
			continue
		}
		// containers/storage names files so when a key has more than [a-z0-9.].
		b, err := readBelow(s.dirs, s.root, dir+"="+base64.StdEncoding.EncodeToString([]byte(name)), maxManifest, nil)
		if err != nil || digestOf(b) != d {
			continue
		}
		m, err := parseManifest(b)
		if err != nil || !m.isIndex() {
			continue
		}
		for _, of := range m.Manifests {
			if of.Digest == img.Digest {
				if found != "" && found != d {
					return "" // it was pulled by several: which one, nobody knows
				}
				found = d
			}
		}
	}
	return found
}

// parseLayers returns the diff digests of a layers.json by layer id.
func parseLayers(b []byte) (map[string]string, error) {
	var all []storedLayer
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, err
	}
	m := make(map[string]string, len(all))
	for _, l := range all {
		if container.ValidDigest(l.DiffDigest) {
			m[l.ID] = l.DiffDigest
		}
	}
	return m, nil
}
