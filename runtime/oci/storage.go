package oci

import (
	"bytes"
	"encoding/json"
	"path"
	"strings"

	"probity/runtime/container"
)

const maxStore = 32 << 20 // bytes of a store's list of containers

// storageRuntime names the engine by where its bundles are, or returns "".
//
// podman and CRI-O keep a container's bundle at
// STORE/DRIVER-containers/ID/userdata and name themselves in an annotation.
// Only both together are believed: the annotation alone is anybody's. The
// shims of containerd have their bundles below their own directory, in one
// directory for each namespace, of which moby is docker's.
func storageRuntime(id, bundle string, annotations map[string]string) container.Runtime {
	if list, ok := listDir(id, bundle); ok && strings.HasSuffix(list, "-containers") {
		switch annotations["io.container.manager"] {
		case "libpod":
			return container.Podman
		case "cri-o":
			return container.CRIO
		}
	}
	if rest, ok := strings.CutSuffix(bundle, "/"+id); ok && path.Base(path.Dir(rest)) == "io.containerd.runtime.v2.task" {
		if path.Base(rest) == "moby" {
			return container.Docker
		}
		return container.Containerd
	}
	return ""
}

// listDir returns the directory that holds the store's list of containers.
func listDir(id, bundle string) (string, bool) {
	return strings.CutSuffix(bundle, "/"+id+"/userdata")
}

// stored is what a store's list says of a container.
type stored struct {
	ID       string   `json:"id"`
	Names    []string `json:"names"`
	Image    string   `json:"image"`    // its id: the hex digits of its configuration's digest
	Metadata string   `json:"metadata"` // of podman, JSON: the image's name is in it
}

// name is the container's first name.
func (s stored) name() string {
	if len(s.Names) == 0 || len(s.Names[0]) > container.MaxName {
		return ""
	}
	return s.Names[0]
}

// image is the name of its image.
func (s stored) image() string {
	var m struct {
		Name string `json:"image-name"`
	}
	if json.Unmarshal([]byte(s.Metadata), &m) != nil || len(m.Name) > container.MaxName {
		return ""
	}
	return m.Name
}

// nameOf returns the container's name, or "" if it is not known.
func nameOf(r container.Runtime, id, bundle string) string {
	switch r {
	case container.Runc, container.Crun:
		return id // what the user called it
	case container.Podman:
		return owner(0).stored(id, bundle).name()
	}
	return ""
}

// stored reads what podman's store says of a container.
func (o owner) stored(id, bundle string) stored {
	list, ok := listDir(id, bundle)
	if !ok {
		return stored{}
	}
	dir, err := o.open(list)
	if err != nil {
		return stored{}
	}
	defer dir.Close()
	// What --rm made is in the first; both are replaced by rename.
	for _, file := range []string{"volatile-containers.json", "containers.json"} {
		f, err := o.openFile(dir, file)
		if err != nil {
			continue
		}
		b, err := readAllBounded(f, maxStore)
		f.Close()
		if err != nil {
			continue
		}
		if c := find(b, id); c.name() != "" {
			return c
		}
	}
	return stored{}
}

// find returns the container with that id from a list of containers/storage. It reads
// no further than that.
func find(list []byte, id string) stored {
	d := json.NewDecoder(bytes.NewReader(list))
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return stored{}
	}
	for d.More() {
		var c stored
		if d.Decode(&c) != nil {
			return stored{}
		}
		if c.ID == id && len(c.Names) > 0 {
			return c
		}
	}
	return stored{}
}
