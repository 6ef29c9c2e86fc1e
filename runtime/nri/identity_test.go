package nri

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"

	"probity/bpf/policy"
	"probity/runtime/container"
)

func TestIdentify(t *testing.T) {
	hex := strings.Repeat("ab", 32)
	target, config := "sha256:"+strings.Repeat("1", 64), "sha256:"+hex
	for _, test := range []struct {
		name    string
		runtime container.Runtime
		pod     *api.PodSandbox
		c       *api.Container
		want    container.Identity
	}{
		{"containerd 2.4", container.Containerd, pod, &api.Container{Id: "c", PodSandboxId: "p0d", Name: "cri-name",
			Labels:      map[string]string{labelContainer: "web"},
			Annotations: map[string]string{criContainer: "annotated", criImage: "docker.io/library/web:1"},
			Image:       &api.Image{Name: "docker.io/library/web:1", Digest: target, ConfigDigest: config},
		}, container.Identity{Runtime: container.Containerd, ID: "c", Name: "web",
			Pod:         &container.Pod{ID: "p0d", Name: "web-0", Namespace: "shop", UID: "u-1", Labels: map[string]string{"app": "web"}},
			Labels:      map[string]string{labelContainer: "web"},
			Annotations: map[string]string{criContainer: "annotated", criImage: "docker.io/library/web:1"},
			Image:       container.Image{Name: "docker.io/library/web:1", ConfigDigest: config, DigestReason: "NRI does not say whether " + target + " is an index or a manifest"},
		}},
		{"containerd 2.0, no image", container.Containerd, nil, &api.Container{Id: "c", PodSandboxId: "p",
			Labels:      map[string]string{labelPod: "n", labelNamespace: "ns", labelUID: "u"},
			Annotations: map[string]string{criContainer: "annotated", criImage: "docker.io/library/web:1"},
		}, container.Identity{Runtime: container.Containerd, ID: "c", Name: "annotated",
			Pod:         &container.Pod{ID: "p", Name: "n", Namespace: "ns", UID: "u"},
			Labels:      map[string]string{labelPod: "n", labelNamespace: "ns", labelUID: "u"},
			Annotations: map[string]string{criContainer: "annotated", criImage: "docker.io/library/web:1"},
			Image:       container.Image{Name: "docker.io/library/web:1", DigestReason: "NRI does not know the manifest"},
		}},
		{"CRI-O", container.CRIO, nil, &api.Container{Id: "c", Name: "web",
			Annotations: map[string]string{crioImage: "quay.io/web:1", crioImageID: hex},
		}, container.Identity{Runtime: container.CRIO, ID: "c", Name: "web",
			Annotations: map[string]string{crioImage: "quay.io/web:1", crioImageID: hex},
			Image:       container.Image{Name: "quay.io/web:1", ConfigDigest: config, DigestReason: "NRI does not know the manifest"},
		}},
		{"digests that are none", container.Containerd, nil, &api.Container{Id: "c",
			Image: &api.Image{Name: strings.Repeat("n", container.MaxName+1), Digest: "sha512:x", ConfigDigest: "sha256:" + strings.ToUpper(hex)},
		}, container.Identity{Runtime: container.Containerd, ID: "c", Image: container.Image{DigestReason: "NRI does not know the manifest"}}},
		{"nothing", container.Docker, nil, nil, container.Identity{Runtime: container.Docker, Image: container.Image{DigestReason: "NRI does not know the manifest"}}},
	} {
		got, cut := identify(test.runtime, test.pod, test.c)
		if !reflect.DeepEqual(got, test.want) || cut != 0 {
			t.Errorf("%s: %+v, pod %+v, %d left out\nwant %+v, pod %+v", test.name, got, got.Pod, cut, test.want, test.want.Pod)
		}
		if err := got.Validate(); err != nil && test.c != nil {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// CRI-O copies the annotations of the pod into its containers: their author must
// not call a container, its pod or its image something else by them.
func TestAnnotationsDoNotName(t *testing.T) {
	forged := map[string]string{
		labelContainer: "forged", labelPod: "forged", labelNamespace: "forged", labelUID: "forged", criContainer: "forged", criImage: "forged",
		"io.kubernetes.cri-o.ContainerName": "forged", crioImage: "forged", crioImageID: strings.Repeat("f", 64), crioAsked: "forged",
	}
	c := &api.Container{Id: "c", PodSandboxId: pod.Id, Name: "web", Annotations: forged,
		Image: &api.Image{Name: "quay.io/web:1", ConfigDigest: "sha256:" + strings.Repeat("1", 64)}}
	for _, r := range []container.Runtime{container.Containerd, container.CRIO} {
		id, _ := identify(r, pod, c)
		if id.Name != "web" || id.Pod.Name != pod.Name || id.Pod.Namespace != pod.Namespace || id.Pod.UID != pod.Uid || id.Image.Name != "quay.io/web:1" || id.Image.ConfigDigest != c.Image.ConfigDigest {
			t.Errorf("%s: %+v, pod %+v", r, id, id.Pod)
		}
		orphan, _ := identify(r, nil, &api.Container{Id: "c", Name: "web", Annotations: map[string]string{labelPod: "forged", labelNamespace: "forged"}})
		if orphan.Pod != nil {
			t.Errorf("%s: pod %+v", r, orphan.Pod)
		}
	}
}

func TestRuntimeNamed(t *testing.T) {
	for name, want := range map[string]container.Runtime{"containerd": container.Containerd, "cri-o": container.CRIO, "CRI-O": container.CRIO, "docker": container.Docker, "": "", "aborted": ""} {
		if got, ok := runtimeNamed(name); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %v", name, got, ok)
		}
	}
}

// Nobody gets out of sight behind many annotations, or long ones.
func TestFit(t *testing.T) {
	many := map[string]string{"app": "web"}
	for i := range 2 * container.MaxPairs {
		many[fmt.Sprintf("padding-%06d", i)] = "x"
	}
	long := map[string]string{"app": "web", "long": strings.Repeat("x", container.MaxPairsBytes)}
	for _, m := range []map[string]string{many, long} {
		id, cut := identify(container.Containerd, &api.PodSandbox{Id: "p", Labels: m}, &api.Container{Id: "c", Labels: m, Annotations: m})
		if err := id.Validate(); err != nil {
			t.Error(err)
		}
		for _, kept := range []map[string]string{id.Labels, id.Annotations, id.Pod.Labels} {
			if kept["app"] != "web" {
				t.Errorf("%d kept, not the one that matters", len(kept))
			}
		}
		if !id.Cut {
			t.Error("it does not say that some are missing")
		}
		if want := 3 * (len(m) - len(id.Labels)); cut != want || cut == 0 {
			t.Errorf("%d left out, want %d", cut, want)
		}
	}
}

// The labels that a policy goes by are the longest, for instance: it is for the
// container all the same.
func TestFitSelects(t *testing.T) {
	want := map[string]string{"app.kubernetes.io/part-of": "payments"}
	m := map[string]string{"app.kubernetes.io/part-of": "payments"}
	for i := range container.MaxPairs {
		m[fmt.Sprintf("x%06d", i)] = ""
	}
	id, _ := identify(container.Containerd, &api.PodSandbox{Id: "p", Labels: m}, &api.Container{Id: "c"})
	if s := (policy.Selector{PodLabels: want}); !s.Match(id) {
		t.Error("it got out of sight")
	}
}

// Whatever a runtime sends is a valid identity or none at all.
func FuzzIdentify(f *testing.F) {
	f.Add("c", "web", "key", "value", "docker.io/web:1", "sha256:x")
	f.Add("", "\xff", "", "", "", strings.Repeat("a", 64))
	f.Fuzz(func(t *testing.T, id, name, key, value, image, digest string) {
		m := map[string]string{key: value, labelContainer: name, labelPod: value, crioImage: image, crioImageID: digest}
		for _, r := range []container.Runtime{container.Containerd, container.CRIO} {
			got, _ := identify(r, &api.PodSandbox{Id: name, Name: value, Labels: m},
				&api.Container{Id: id, Name: name, Labels: m, Annotations: m, Image: &api.Image{Name: image, Digest: digest, ConfigDigest: digest}})
			got.ID = "c" // the one thing that makes a notice unusable
			if err := got.Validate(); err != nil {
				t.Fatal(err)
			}
			if got.Image.Digest != "" || got.Image.DigestReason == "" {
				t.Fatalf("image %+v", got.Image)
			}
		}
	})
}

// What a runtime calls a container's cgroup, by either driver.
func TestCgroupName(t *testing.T) {
	for path, want := range map[string]string{
		"/k8s.io/0123":                                       "0123",
		"/kubepods/besteffort/pod7/0123":                     "0123",
		"kubepods-besteffort-pod7.slice:cri-containerd:0123": "cri-containerd-0123.scope",
		"system.slice:crio:0123":                             "crio-0123.scope",
		":crio:0123":                                         "crio-0123.scope",
		"a.slice::0123":                                      "0123.scope",
		"a.slice:crio:b.slice":                               "b.slice",
		"a.slice:crio:":                                      "",
		"":                                                   "",
		"/":                                                  "",
		"/a/..":                                              "",
		"/a/" + strings.Repeat("x", container.MaxName+1): "",
	} {
		if got := cgroupName(path); got != want {
			t.Errorf("%.40q: %.40q, want %q", path, got, want)
		}
	}
}
