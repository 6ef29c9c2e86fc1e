package events

import (
	"reflect"
	"strings"
	"testing"

	containers "github.com/containerd/containerd/api/services/containers/v1"

	"probity/runtime/container"
)

func TestIdentify(t *testing.T) {
	sp, err := parseSpec([]byte(`{"ociVersion":"1.2.0","process":{"args":["nginx","-g"],"env":["PATH=/bin"],"cwd":"/srv"},"annotations":{"a":"b"}}`))
	if err != nil {
		t.Fatal(err)
	}
	notes := map[string]string{"a": "b"}
	image := container.Image{Name: "docker.io/library/nginx:1", DigestReason: "an event does not have the image"}
	rec := func(labels map[string]string) *containers.Container {
		return &containers.Container{ID: "c1", Image: image.Name, Labels: labels, Sandbox: "p1"}
	}
	for what, c := range map[string]struct {
		runtime container.Runtime
		labels  map[string]string
		want    container.Identity
	}{
		"ctr":     {container.Containerd, nil, container.Identity{Name: "c1"}},
		"nerdctl": {container.Containerd, map[string]string{"nerdctl/name": "web"}, container.Identity{Name: "web"}},
		"docker":  {container.Docker, nil, container.Identity{}},
		"CRI": {container.Containerd, map[string]string{
			"io.cri-containerd.kind": "container", "io.kubernetes.container.name": "web", "io.kubernetes.pod.name": "web-1", "io.kubernetes.pod.namespace": "shop", "io.kubernetes.pod.uid": "u",
		}, container.Identity{Name: "web", Pod: &container.Pod{ID: "p1", Name: "web-1", Namespace: "shop", UID: "u"}}},
	} {
		c.want.Runtime, c.want.ID, c.want.Image, c.want.Labels, c.want.Annotations = c.runtime, "c1", image, c.labels, notes
		if got := identify(c.runtime, rec(c.labels), sp); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", what, got, c.want)
		}
	}
	many := map[string]string{}
	for i := range 2000 {
		many[strings.Repeat("k", i+1)] = ""
	}
	id := identify(container.Containerd, rec(many), sp)
	if err := id.Validate(); err != nil || !id.Cut || len(id.Labels) == 0 {
		t.Errorf("%d labels, cut %v, %v", len(id.Labels), id.Cut, err)
	}
}

func TestSpecRefused(t *testing.T) {
	for _, text := range []string{"", "[]", `{"process":{"args":"nginx"}}`, `{"annotations":{"a":1}}`, `{} {}`, `{"a":"` + strings.Repeat("b", 4194304) + `"}`} {
		if sp, err := parseSpec([]byte(text)); err == nil || !reflect.DeepEqual(sp, spec{}) {
			t.Errorf("%.40s: %+v, %v", text, sp, err)
		}
	}
}

// What is taken of a configuration is always what a notice takes.
func FuzzSpec(f *testing.F) {
	f.Add([]byte(`{"process":{"args":["a"],"env":["PATH=/bin"],"cwd":"/"},"annotations":{"a":"b"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		sp, err := parseSpec(b)
		if err != nil {
			return
		}
		n := container.Notice{
			Source: "events", Kind: container.Started, Command: container.CommandOf(sp.Process.Args, sp.Process.Env, sp.Process.Cwd),
			Identity: identify(container.Containerd, &containers.Container{ID: "a"}, sp),
		}
		if err := n.Validate(); err != nil {
			t.Fatal(err)
		}
	})
}
