package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"probity/runtime/container"
	"probity/runtime/containerd"
	"probity/tests/need"
)

// archive is an OCI image layout in a tar (image-spec, image-layout.md).
type archive struct {
	t     *testing.T
	blobs map[string][]byte
	index []map[string]any
}

func (a *archive) add(mediaType string, b []byte) map[string]any {
	d := digestOf(b)
	a.blobs[d] = b
	return map[string]any{"mediaType": mediaType, "digest": d, "size": len(b)}
}

func (a *archive) json(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		a.t.Fatal(err)
	}
	return b
}

// image adds an image of these layers and returns the descriptor of its
// manifest, and the digest of its config.
func (a *archive) image(layers ...[]byte) (manifest map[string]any, config string) {
	var diffIDs []string
	var descs []map[string]any
	for _, l := range layers {
		diffIDs = append(diffIDs, digestOf(l))
		descs = append(descs, a.add("application/vnd.oci.image.layer.v1.tar", l))
	}
	c := a.add("application/vnd.oci.image.config.v1+json", a.json(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	}))
	m := a.add("application/vnd.oci.image.manifest.v1+json", a.json(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": c, "layers": descs,
	}))
	m["platform"] = map[string]any{"os": "linux", "architecture": runtime.GOARCH}
	return m, c["digest"].(string)
}

func (a *archive) tag(desc map[string]any, name string) {
	named := map[string]any{"annotations": map[string]any{"io.containerd.image.name": name}}
	for k, v := range desc {
		named[k] = v
	}
	a.index = append(a.index, named)
}

func (a *archive) write(path string) {
	a.t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	put := func(name string, b []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b))}); err != nil {
			a.t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			a.t.Fatal(err)
		}
	}
	put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	put("index.json", a.json(map[string]any{"schemaVersion": 2, "manifests": a.index}))
	for d, b := range a.blobs {
		put("blobs/sha256/"+strings.TrimPrefix(d, "sha256:"), b)
	}
	if err := w.Close(); err != nil {
		a.t.Fatal(err)
	}
	if err := os.WriteFile(path, buf.Bytes(), 0o644); err != nil {
		a.t.Fatal(err)
	}
}

func layerTar(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(keys(files)) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[name])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// daemon is a containerd with a root of its own and without CRI: what is asked
// of it is not CRI's.
type daemon struct {
	t       *testing.T
	tools   need.ContainerdTools
	address string
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	d := &daemon{t: t, tools: need.Containerd(t)}
	dir := t.TempDir()
	// A socket's path must be short.
	short, err := os.MkdirTemp("", "pc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(short) })
	d.address = short + "/c.sock"
	config := fmt.Sprintf(`version = 3
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri"]
[grpc]
address = %q
[ttrpc]
address = %q
`, dir+"/root", short+"/state", d.address, d.address+".ttrpc")
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(d.tools.Containerd, "-c", dir+"/config.toml")
	cmd.Env = append(os.Environ(), "PATH="+d.tools.Dir+":"+os.Getenv("PATH"))
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		_ = log.Close()
		if t.Failed() {
			b, _ := os.ReadFile(dir + "/log")
			t.Logf("containerd:\n%s", b[max(0, len(b)-4000):])
		}
	})
	until := time.Now().Add(3 * time.Minute)
	for { // ctr's own call is the wait: it fails at once while there is no socket
		if _, err := d.try("version"); err == nil {
			return d
		} else if time.Now().After(until) {
			t.Fatal(err)
		}
	}
}

func (d *daemon) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.tools.Ctr, append([]string{"-a", d.address, "-n", containerd.CRI}, args...)...)
	b, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, b)
	}
	return string(b), err
}

func (d *daemon) run(args ...string) string {
	d.t.Helper()
	out, err := d.try(args...)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

func (d *daemon) start(image, id string) (pid int) {
	d.t.Helper()
	d.run("run", "-d", "--null-io", image, id, "/bin/sleep", "1000000")
	d.t.Cleanup(func() {
		_, _ = d.try("tasks", "kill", "-s", "SIGKILL", id)
		_, _ = d.try("tasks", "delete", "-f", id)
		_, _ = d.try("containers", "delete", id)
	})
	for line := range strings.Lines(d.run("tasks", "ls")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == id {
			pid, _ = strconv.Atoi(f[1])
		}
	}
	if pid == 0 {
		d.t.Fatalf("no task %s", id)
	}
	return pid
}

func TestContainerd(t *testing.T) {
	d := newDaemon(t)
	a := &archive{t: t, blobs: map[string][]byte{}}
	bottom, top := imageTar(t), layerTar(t, map[string]string{"usr/lib/libgreet.so.2": "second"})
	m, config := a.image(bottom, top)
	single := m["digest"].(string)
	a.tag(m, "localhost/probity:single")
	elsewhere := map[string]any{
		"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digestOf([]byte("not here")), "size": 8,
		"platform": map[string]any{"os": "linux", "architecture": "s390x"},
	}
	index := a.add("application/vnd.oci.image.index.v1+json", a.json(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []any{elsewhere, m},
	}))
	multi := index["digest"].(string)
	a.tag(index, "localhost/probity:multi")
	path := filepath.Join(t.TempDir(), "images.tar")
	a.write(path)
	d.run("images", "import", path)

	f := New(Config{ContainerdAddress: d.address})
	defer f.Close()
	for _, c := range []struct {
		id   string
		want container.Image
	}{
		{"single", container.Image{Name: "localhost/probity:single", Digest: single, ConfigDigest: config}},
		{"multi", container.Image{Name: "localhost/probity:multi", Digest: single, IndexDigest: multi, ConfigDigest: config}},
	} {
		t.Run(c.id, func(t *testing.T) {
			pid := d.start(c.want.Name, "probity-"+c.id)
			n := container.Notice{Kind: container.Existing, Pid: pid, Identity: container.Identity{Runtime: container.Containerd, ID: "probity-" + c.id}}
			if img := f.Identify(t.Context(), n); img != c.want {
				t.Errorf("asked for: %+v\nwant %+v", img, c.want)
			}
			// As NRI says it: with the digest of whatever the name stands for.
			n.Identity.Image = container.Image{Name: "by-nri", Digest: c.want.Digest, ConfigDigest: config}
			if c.want.IndexDigest != "" {
				n.Identity.Image.Digest = c.want.IndexDigest
			}
			byNRI := c.want
			byNRI.Name = "by-nri"
			img := f.Identify(t.Context(), n)
			if img != byNRI {
				t.Errorf("by NRI: %+v\nwant %+v", img, byNRI)
			}
			r, err := f.Rootfs(t.Context(), n, img)
			if err != nil {
				t.Fatal(err)
			}
			if r.Doubt != "" || len(r.Layers) != 2 || r.Layers[0].DiffID != digestOf(top) || r.Layers[1].DiffID != digestOf(bottom) {
				t.Fatalf("Rootfs = %+v\nwant diff ids %s, %s", r, digestOf(top), digestOf(bottom))
			}
			// What the snapshotter said before is what was mounted.
			ahead, err := f.Ahead(t.Context(), n, n.Identity.Image)
			if err != nil || !slices.Equal(ahead.Layers, r.Layers) || ahead.UserXattr != r.UserXattr {
				t.Errorf("Ahead = %+v, %v\nwant the layers %+v", ahead, err, r.Layers)
			}
			v, err := new(Cache).View(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			ms, complete, why := v.Glob("/usr/**/libgreet.so*")
			if !complete || len(ms) != 2 || ms[0].Layer.DiffID != digestOf(bottom) || ms[1].Layer.DiffID != digestOf(top) {
				t.Errorf("%+v %v %s", ms, complete, why)
			}
			for _, m := range ms {
				checkMatch(t, r.Merged, m)
			}
		})
	}

	n := container.Notice{Identity: container.Identity{Runtime: container.Containerd, ID: "nobody"}}
	if img := f.Identify(t.Context(), n); img.Digest != "" || !strings.Contains(img.DigestReason, "not found") {
		t.Errorf("a container that is not there: %+v", img)
	}
	n.Identity.Image = container.Image{Digest: single, ConfigDigest: digestOf([]byte("another"))}
	if img := f.Identify(t.Context(), n); img.Digest != "" || !strings.Contains(img.DigestReason, "config") {
		t.Errorf("a manifest of another config: %+v", img)
	}
}

func TestContainerdAbsent(t *testing.T) {
	f := New(Config{ContainerdAddress: t.TempDir() + "/none.sock"})
	n := container.Notice{Identity: container.Identity{Runtime: container.Containerd, ID: "x", Image: container.Image{Name: "n", Digest: digestOf(nil)}}}
	var took []time.Duration
	for range 5 {
		begin := time.Now()
		img := f.Identify(t.Context(), n)
		took = append(took, time.Since(begin))
		if img.Digest != "" || img.DigestReason == "" || img.Name != "n" {
			t.Errorf("%+v", img)
		}
	}
	if d := slices.Min(took); d > 2*callTimeout { // the machine may be busy, but not with each
		t.Errorf("it took %s to find out that nobody is there", d)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if img := f.Identify(t.Context(), n); !strings.Contains(img.DigestReason, "closed") {
		t.Errorf("after Close: %+v", img)
	}
}
