// Package ociarchive writes an OCI image layout as one tar file, which both
// `podman load` and `ctr images import` take, without a registry and without
// either of them.
//
// In: the files of the image, layer by layer, and how to start it. Out: the
// archive; the same input gives the same bytes on every machine and with every
// version of Go (layers are not compressed, times are zero, the order is
// fixed), so that the manifest digest that both runtimes see is one number that
// a test can compare. It trusts its caller: it is for images that we build.
package ociarchive

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
)

// File is one entry of a layer. Directories above it are made as needed.
type File struct {
	Path string // absolute, in the container
	Mode int64  // permission bits; zero means 0755 for directories and 0644 else
	Data []byte
	Link string // a symbolic link to this
	Dir  bool
	Fifo bool
	// Size makes a sparse-looking file of that many zero bytes after Data.
	// It is written out: tar has no portable holes.
	Size int64
}

// Image is what to write.
type Image struct {
	Name       string // with a tag: localhost/demo:latest
	Layers     [][]File
	Entrypoint []string
	Cmd        []string
	Env        []string
	Labels     map[string]string
}

const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type blobs map[string][]byte

func (b blobs) add(mediaType string, data []byte) descriptor {
	sum := sha256.Sum256(data)
	digest := hex.EncodeToString(sum[:])
	b[digest] = data
	return descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: int64(len(data))}
}

func (b blobs) addJSON(mediaType string, v any) (descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, fmt.Errorf("encode %s: %w", mediaType, err)
	}
	return b.add(mediaType, data), nil
}

// Write writes img to name, which must not exist, and returns the manifest's
// digest.
func Write(name string, img Image) (digest string, err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return "", fmt.Errorf("create the archive: %w", err)
	}
	digest, err = write(f, img)
	if e := f.Close(); err == nil && e != nil {
		err = e
	}
	if err != nil {
		os.Remove(name)
		return "", fmt.Errorf("write %s: %w", name, err)
	}
	return digest, nil
}

func write(w io.Writer, img Image) (string, error) {
	all := blobs{}
	layers, diffIDs := []descriptor{}, []string{}
	for _, files := range img.Layers {
		data, err := layer(files)
		if err != nil {
			return "", err
		}
		d := all.add(typeLayer, data)
		layers = append(layers, d)
		diffIDs = append(diffIDs, d.Digest) // not compressed: the blob is the diff
	}
	config, err := all.addJSON(typeConfig, map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config": map[string]any{
			"Env":        append([]string{"PATH=/usr/local/bin:/usr/bin:/bin"}, img.Env...),
			"Entrypoint": img.Entrypoint,
			"Cmd":        img.Cmd,
			"Labels":     img.Labels,
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		return "", err
	}
	manifest, err := all.addJSON(typeManifest, map[string]any{
		"schemaVersion": 2, "mediaType": typeManifest, "config": config, "layers": layers,
	})
	if err != nil {
		return "", err
	}
	manifest.Platform = &platform{Architecture: runtime.GOARCH, OS: "linux"}
	_, tag, _ := strings.Cut(path.Base(img.Name), ":")
	manifest.Annotations = map[string]string{
		"io.containerd.image.name":          img.Name, // podman prefers it, too
		"org.opencontainers.image.ref.name": tag,
	}
	index, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": typeIndex, "manifests": []descriptor{manifest},
	})
	if err != nil {
		return "", err
	}
	out := []File{
		{Path: "/oci-layout", Data: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{Path: "/index.json", Data: index},
	}
	for digest, data := range all {
		out = append(out, File{Path: "/blobs/sha256/" + digest, Data: data})
	}
	archive, err := layer(out)
	if err != nil {
		return "", err
	}
	if _, err := w.Write(archive); err != nil {
		return "", err
	}
	return manifest.Digest, nil
}

// layer returns the tar of files, sorted, each directory once before what is
// in it.
func layer(files []File) ([]byte, error) {
	entries := map[string]File{}
	for _, f := range files {
		if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path {
			return nil, fmt.Errorf("file %q: the path is not absolute and clean", f.Path)
		}
		if _, twice := entries[f.Path]; twice {
			return nil, fmt.Errorf("file %s: twice in one layer", f.Path)
		}
		entries[f.Path] = f
	}
	for _, f := range files {
		for dir := path.Dir(f.Path); dir != "/"; dir = path.Dir(dir) {
			if _, there := entries[dir]; !there {
				entries[dir] = File{Path: dir, Dir: true}
			}
		}
	}
	names := make([]string, 0, len(entries))
	for name := range entries {
		names = append(names, name)
	}
	sort.Strings(names)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range names {
		if err := add(w, entries[name]); err != nil {
			return nil, fmt.Errorf("file %s: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func add(w *tar.Writer, f File) error {
	h := &tar.Header{Name: strings.TrimPrefix(f.Path, "/"), Mode: f.Mode, Typeflag: tar.TypeReg, Size: max(f.Size, int64(len(f.Data)))}
	switch {
	case f.Dir:
		h.Name, h.Typeflag, h.Size = h.Name+"/", tar.TypeDir, 0
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Size, h.Mode = tar.TypeSymlink, f.Link, 0, 0o777
	case f.Fifo:
		h.Typeflag, h.Size = tar.TypeFifo, 0
	}
	if h.Mode == 0 {
		h.Mode = 0o644
		if f.Dir {
			h.Mode = 0o755
		}
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if h.Size == 0 {
		return nil
	}
	if _, err := w.Write(f.Data); err != nil {
		return err
	}
	_, err := io.CopyN(w, zeros{}, h.Size-int64(len(f.Data)))
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// FromHost returns the file src of this machine as dst in the container, with
// its permission bits; symbolic links are followed.
func FromHost(src, dst string) (File, error) {
	st, err := os.Stat(src)
	if err != nil {
		return File{}, fmt.Errorf("read %s: %w", src, err)
	}
	data, err := os.ReadFile(src)
	if err != nil {
		return File{}, fmt.Errorf("read %s: %w", src, err)
	}
	return File{Path: dst, Mode: int64(st.Mode().Perm()), Data: data}, nil
}

// WithLibraries returns prog as dst and what its dynamic loader would map on
// this machine: the loader, at the path that the program asks for, and the
// libraries, where the loader finds them. Libraries in skip (base names) are
// left out, for the caller to place. A static program is returned alone. dirs
// are searched for libraries before the system's.
func WithLibraries(prog, dst string, dirs []string, skip ...string) ([]File, error) {
	self, err := FromHost(prog, dst)
	if err != nil {
		return nil, err
	}
	needed, err := loaded(prog, dirs)
	if err != nil {
		return nil, err
	}
	files := []File{self}
	for _, lib := range needed {
		if slices.Contains(skip, filepath.Base(lib)) {
			continue
		}
		f, err := FromHost(lib, lib)
		if err != nil {
			return nil, err
		}
		f.Mode = 0o755
		files = append(files, f)
	}
	return files, nil
}

// Name returns the name of the image in an archive that Write wrote.
func Name(archive string) (string, error) {
	f, err := os.Open(archive)
	if err != nil {
		return "", fmt.Errorf("read the archive: %w", err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err != nil {
			return "", fmt.Errorf("read %s: find index.json: %w", archive, err)
		}
		if h.Name != "index.json" {
			continue
		}
		var index struct{ Manifests []descriptor }
		if err := json.NewDecoder(r).Decode(&index); err != nil || len(index.Manifests) != 1 {
			return "", fmt.Errorf("read %s: index.json holds %d manifests (%v)", archive, len(index.Manifests), err)
		}
		return index.Manifests[0].Annotations["io.containerd.image.name"], nil
	}
}
