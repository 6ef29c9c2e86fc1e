package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"

	"probity/runtime/container"
)

// maxManifest bounds a manifest, an index or an image configuration (registries
// refuse manifests past 4 MiB).
const maxManifest = 4 << 20

// descriptor is the part of an OCI content descriptor that is needed here
// (image-spec, descriptor.md). Docker's has the same members.
type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
	Platform  *struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
		Variant      string `json:"variant"`
	} `json:"platform"`
}

// manifest is either an image manifest or an index of manifests.
type manifest struct {
	MediaType string       `json:"mediaType"`
	Config    *descriptor  `json:"config"`
	Layers    []descriptor `json:"layers"`
	Manifests []descriptor `json:"manifests"`
}

func (m *manifest) isIndex() bool { return m.Manifests != nil }

// parseManifest decodes an image manifest or an index, and refuses what could
// be read as both (the confusion of CVE-2021-41190).
func parseManifest(b []byte) (*manifest, error) {
	if len(b) > maxManifest {
		return nil, fmt.Errorf("manifest: %d bytes, at most %d are read", len(b), maxManifest)
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	switch index, image := m.Manifests != nil, m.Config != nil || m.Layers != nil; {
	case index && image:
		return nil, errors.New("manifest: it is an index and an image manifest at the same time")
	case !index && !image:
		return nil, errors.New("manifest: it is neither an index nor an image manifest")
	case image && (m.Config == nil || !container.ValidDigest(m.Config.Digest)):
		return nil, errors.New("manifest: it has no valid config digest")
	}
	for _, d := range m.Manifests {
		if !container.ValidDigest(d.Digest) {
			return nil, fmt.Errorf("manifest: %.80q is not a sha256 digest", d.Digest)
		}
	}
	return &m, nil
}

// here returns the manifests of an index that this machine could run, or all
// if none names a platform. Attestations name the platform "unknown".
func (m *manifest) here() []descriptor {
	var out []descriptor
	named := false
	for _, d := range m.Manifests {
		if d.Platform == nil {
			continue
		}
		named = true
		if d.Platform.OS == "linux" && d.Platform.Architecture == runtime.GOARCH {
			out = append(out, d)
		}
	}
	if !named {
		return m.Manifests
	}
	return out
}

// parseDiffIDs returns rootfs.diff_ids of an image configuration, bottom first.
func parseDiffIDs(b []byte) ([]string, error) {
	if len(b) > maxManifest {
		return nil, fmt.Errorf("image config: %d bytes, at most %d are read", len(b), maxManifest)
	}
	var c struct {
		RootFS struct {
			Type    string   `json:"type"`
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	if len(c.RootFS.DiffIDs) > maxLayers {
		return nil, fmt.Errorf("image config: more than %d layers", maxLayers)
	}
	for _, d := range c.RootFS.DiffIDs {
		if !container.ValidDigest(d) {
			return nil, fmt.Errorf("image config: %.80q is not a sha256 digest", d)
		}
	}
	return c.RootFS.DiffIDs, nil
}

// chainID names a stack of layers (image-spec, config.md, "Layer ChainID").
func chainID(diffIDs []string) string {
	chain := ""
	for _, d := range diffIDs {
		if chain == "" {
			chain = d
			continue
		}
		chain = digestOf([]byte(chain + " " + d))
	}
	return chain
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
