package image

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"probity/runtime/container"
)

// dockerRoot writes a data-root as docker 20.10 does, of one container.
func dockerRoot(t *testing.T, files map[string]string) *Finder {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f := New(Config{DockerRoot: root + "/", ContainerdAddress: root + "/no.sock", PodmanRoot: root})
	t.Cleanup(func() { f.Close() })
	return f
}

// The config of an image of two layers, as docker import writes it, with its digest.
const dockerImage = `{"architecture":"amd64","comment":"Imported from -","config":{"Cmd":null},"created":"2026-11-24T00:37:24.280480466Z","docker_version":"20.10.24+dfsg1","os":"linux","rootfs":{"type":"layers","diff_ids":["` + aDigest + `","` + bDigest + `"]}}`

func dockerFiles() (files map[string]string, id, digest string) {
	digest = digestOf([]byte(dockerImage))
	id = strings.Repeat("7", 64)
	layers := "image/overlay2/layerdb/sha256/"
	both := digestOf([]byte(aDigest + " " + bDigest))
	return map[string]string{
		"containers/" + id + "/config.v2.json":                                           `{"StreamConfig":{},"State":{"Running":true,"Pid":7},"ID":"` + id + `","Path":"/bin/target","Args":["hello"],"Config":{"Hostname":"7","Env":null,"Image":"localhost/target:latest","Labels":{"tier":"1"}},"Image":"` + digest + `","NetworkSettings":{},"Name":"/web-3","Driver":"overlay2","OS":"linux"}`,
		"image/overlay2/imagedb/content/sha256/" + strings.TrimPrefix(digest, "sha256:"): dockerImage,
		layers + strings.TrimPrefix(aDigest, "sha256:") + "/cache-id":                    "cache-a",
		layers + strings.TrimPrefix(both, "sha256:") + "/cache-id":                       "cache-b",
	}, id, digest
}

func TestDocker(t *testing.T) {
	files, id, digest := dockerFiles()
	f := dockerRoot(t, files)
	if name, labels := f.Named(id); name != "web-3" || !reflect.DeepEqual(labels, map[string]string{"tier": "1"}) {
		t.Errorf("%q, %v", name, labels)
	}
	n := container.Notice{Identity: container.Identity{Runtime: container.Docker, ID: id}}
	want := container.Image{Name: "localhost/target:latest", ConfigDigest: digest, DigestReason: "docker's graph drivers keep an image without its manifest"}
	if got := f.Identify(context.Background(), n); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	root := f.conf.DockerRoot
	layers := []Layer{{Dir: root + "/overlay2/upper-init/diff"}, {Dir: root + "/overlay2/cache-b/diff"}, {Dir: root + "/overlay2/cache-a/diff"}}
	f.nameLayers(context.Background(), n, want, layers)
	for i, d := range []string{"", bDigest, aDigest} {
		if layers[i].DiffID != d {
			t.Errorf("layer %s: %q, want %q", layers[i].Dir, layers[i].DiffID, d)
		}
	}
}

// What does not hold together says why, and claims nothing.
func TestDockerRefused(t *testing.T) {
	_, id, digest := dockerFiles()
	config, blob := "containers/"+id+"/config.v2.json", "image/overlay2/imagedb/content/sha256/"+strings.TrimPrefix(digest, "sha256:")
	for what, c := range map[string]struct {
		change func(files map[string]string)
		why    string
	}{
		"no container":     {func(m map[string]string) { delete(m, config) }, "no such file"},
		"not JSON":         {func(m map[string]string) { m[config] = "{" }, "config.v2.json: "},
		"too long":         {func(m map[string]string) { m[config] += strings.Repeat(" ", 1048577) }, "at most 1048576 are read"},
		"a path as driver": {func(m map[string]string) { m[config] = strings.Replace(m[config], "overlay2", "../x", 1) }, "driver"},
		"another's digest": {func(m map[string]string) { m[config] = strings.Replace(m[config], digest, "sha256:../x", 1) }, "docker names the image by"},
		"another config":   {func(m map[string]string) { m[blob] += " " }, "has digest"},
		"no config":        {func(m map[string]string) { delete(m, blob) }, "no such file"},
		"manifest in no store": {func(m map[string]string) {
			m[config] = strings.Replace(m[config], `"OS"`, `"ImageManifest":{"digest":"`+aDigest+`"},"OS"`, 1)
		}, "image \"" + aDigest},
	} {
		files, _, _ := dockerFiles()
		c.change(files)
		f := dockerRoot(t, files)
		got := f.Identify(context.Background(), container.Notice{Identity: container.Identity{Runtime: container.Docker, ID: id}})
		if got.Digest != "" || got.ConfigDigest != "" || !strings.Contains(got.DigestReason, c.why) {
			t.Errorf("%s: %+v, want a reason with %q", what, got, c.why)
		}
	}
}
