package image

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"probity/runtime/container"
)

// nameLayers fills in the diff ids that a store vouches for.
func (f *Finder) nameLayers(ctx context.Context, n container.Notice, img container.Image, layers []Layer) {
	keys := make([]diffKey, len(layers))
	missing := false
	for i := range layers {
		keys[i] = f.diffKey(layers[i].Dir)
		f.mu.Lock()
		layers[i].DiffID = f.diffIDs[keys[i]]
		f.mu.Unlock()
		missing = missing || layers[i].DiffID == ""
	}
	if !missing {
		return
	}
	switch n.Identity.Runtime {
	case container.Containerd:
		ids, err := f.snapshotDiffIDs(ctx, namespaceOf(n), n.Identity.ID, img)
		if err == nil && len(ids) != len(layers) {
			err = fmt.Errorf("%d layers are mounted, the image has %d", len(layers), len(ids))
		}
		if err != nil {
			f.conf.Log.Debug("layers without diff ids", "container", n.Identity.ID, "err", err)
			return
		}
		for i := range layers {
			layers[i].DiffID = ids[len(ids)-1-i]
		}
	case container.Podman, container.CRIO:
		f.storedDiffIDs(layers)
	case container.Docker:
		if err := f.dockerDiffIDs(n.Identity.ID, layers); err != nil {
			f.conf.Log.Debug("layers without diff ids", "container", n.Identity.ID, "err", err)
		}
	default:
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range layers {
		if f.diffIDs == nil || len(f.diffIDs) >= maxLinks {
			f.diffIDs = map[diffKey]string{}
		}
		if layers[i].DiffID != "" && keys[i] != (diffKey{}) {
			f.diffIDs[keys[i]] = layers[i].DiffID
		}
	}
}

// storedDiffIDs looks layers up in the store whose ROOT/overlay/ID/diff they
// are; with additional image stores that is not the container's own.
func (f *Finder) storedDiffIDs(layers []Layer) {
	known := map[string]map[string]string{}
	for i := range layers {
		dir, last := filepath.Split(layers[i].Dir)
		dir, id := filepath.Split(filepath.Clean(dir))
		if last != "diff" || filepath.Base(dir) != "overlay" {
			continue
		}
		root := filepath.Dir(filepath.Clean(dir))
		ids, ok := known[root]
		if !ok {
			ids = map[string]string{}
			for _, file := range []string{"layers.json", "volatile-layers.json"} {
				b, err := readBelow(&f.dirs, root, "overlay-layers/"+file, maxStoreFile, nil)
				if err == nil {
					var more map[string]string
					if more, err = parseLayers(b); err == nil {
						for k, v := range more {
							ids[k] = v
						}
					}
				}
				if err != nil && !errors.Is(err, unix.ENOENT) {
					f.conf.Log.Debug("layers without diff ids", "store", root, "err", err)
				}
			}
			known[root] = ids
		}
		layers[i].DiffID = ids[id]
	}
}

// diffKey names a directory as it is now: a wiped store numbers its snapshots
// from 1 again.
type diffKey struct {
	dir      string
	dev, ino uint64
	changed  unix.Timespec
}

func (f *Finder) diffKey(dir string) diffKey {
	fd, err := f.dirs.open(dir)
	if err != nil {
		return diffKey{}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return diffKey{}
	}
	return diffKey{dir, uint64(st.Dev), st.Ino, st.Ctim}
}
