package nri

import (
	"cmp"
	"strings"

	"github.com/containerd/nri/pkg/api"

	"probity/runtime/container"
)

const maxPid = 1 << 22 // PID_MAX_LIMIT on 64-bit kernels

// runtimeNamed translates the name a runtime configures plugins with.
func runtimeNamed(name string) (container.Runtime, bool) {
	switch strings.ToLower(name) {
	case "containerd":
		return container.Containerd, true
	case "cri-o", "crio":
		return container.CRIO, true
	case "docker", "dockerd", "moby":
		return container.Docker, true
	}
	return "", false
}

// The labels of the kubelet, and the annotations of the runtimes.
const (
	labelContainer = "io.kubernetes.container.name"
	labelPod       = "io.kubernetes.pod.name"
	labelNamespace = "io.kubernetes.pod.namespace"
	labelUID       = "io.kubernetes.pod.uid"

	criContainer = "io.kubernetes.cri.container-name" // containerd
	criImage     = "io.kubernetes.cri.image-name"     //
	crioImage    = "io.kubernetes.cri-o.ImageName"    // CRI-O
	crioImageID  = "io.kubernetes.cri-o.ImageRef"     // the image ID, despite its name
	crioAsked    = "io.kubernetes.cri-o.Image"        // older; an image ID or a name
)

// identify says who a container is. Names longer than the bounds are left out,
// and so are labels and annotations past them; how many of those is returned.
// Nobody gets out of sight by giving themselves many labels.
func identify(r container.Runtime, p *api.PodSandbox, c *api.Container) (id container.Identity, cut int) {
	labels, notes := c.GetLabels(), c.GetAnnotations()
	id = container.Identity{Runtime: r, ID: c.GetId(), Image: imageOf(r, c)}
	id.Name = nameOf(r, c)
	pod := container.Pod{
		ID:        container.Text(cmp.Or(p.GetId(), c.GetPodSandboxId())),
		Name:      container.Text(p.GetName(), labels[labelPod]),
		Namespace: container.Text(p.GetNamespace(), labels[labelNamespace]),
		UID:       container.Text(p.GetUid(), labels[labelUID]),
	}
	var a, b, d int
	pod.Labels, a = container.Fit(p.GetLabels())
	id.Labels, b = container.Fit(labels)
	id.Annotations, d = container.Fit(notes)
	if pod.ID != "" || pod.Name != "" {
		id.Pod = &pod
	}
	cut = a + b + d
	id.Cut = cut > 0
	return id, cut
}

// nameOf prefers what only the kubelet and the runtime can write. CRI-O copies
// the pod's annotations, which are its author's, into each container's and then
// overwrites what it sets itself: what it does not set is anybody's word.
func nameOf(r container.Runtime, c *api.Container) string {
	name := container.Text(c.GetLabels()[labelContainer], c.GetName())
	if name == "" && r != container.CRIO {
		name = container.Text(c.GetAnnotations()[criContainer])
	}
	return name
}

// imageOf says what NRI knows of the image, which is not its manifest's
// digest: api.Image.Digest is that of the target, an index or a manifest, and
// which of the two it is, it does not say. So the digest is left to whoever
// can look into the image store, and the config digest, of which there is only
// one kind, says whether they found the same image.
func imageOf(r container.Runtime, c *api.Container) (i container.Image) {
	notes := c.GetAnnotations()
	if r == container.CRIO {
		i.Name = container.Text(c.GetImage().GetName(), notes[crioImage], notes[crioAsked])
		i.ConfigDigest = digest(container.Text(c.GetImage().GetConfigDigest(), notes[crioImageID]))
	} else {
		i.Name = container.Text(c.GetImage().GetName(), notes[criImage])
		i.ConfigDigest = digest(c.GetImage().GetConfigDigest())
	}
	if d := c.GetImage().GetDigest(); container.ValidDigest(d) {
		i.DigestReason = "NRI does not say whether " + d + " is an index or a manifest"
	} else {
		i.DigestReason = "NRI does not know the manifest"
	}
	return i
}

// cgroupName returns what a container's cgroup is called, by the path that the
// runtime was given for it: with systemd's driver "SLICE:PREFIX:NAME" (runc's
// docs/systemd.md), else a path. "" if it cannot be told.
func cgroupName(cgroupsPath string) string {
	if parts := strings.Split(cgroupsPath, ":"); len(parts) == 3 {
		switch prefix, name := parts[1], parts[2]; {
		case name == "" || strings.HasSuffix(name, ".slice"):
			return container.Text(name)
		case prefix == "":
			return container.Text(name + ".scope")
		default:
			return container.Text(prefix + "-" + name + ".scope")
		}
	}
	name := cgroupsPath[strings.LastIndexByte(cgroupsPath, '/')+1:]
	if name == "." || name == ".." {
		return ""
	}
	return container.Text(name)
}

// digest takes a digest, or the bare hex digits that CRI-O calls an image ID.
func digest(s string) string {
	if container.ValidDigest(s) {
		return s
	}
	if container.ValidDigest("sha256:" + s) {
		return "sha256:" + s
	}
	return ""
}
