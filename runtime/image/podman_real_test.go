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
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"probity/runtime/container"
	"probity/tests/need"
)

// imageTar is a root file system with a static program that waits.
func imageTar(t *testing.T) []byte {
	t.Helper()
	busybox := need.Command(t, "busybox")[0]
	prog, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	put := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	put(tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	put(tar.Header{Name: "bin/busybox", Mode: 0o755}, prog)
	put(tar.Header{Name: "bin/sleep", Typeflag: tar.TypeSymlink, Linkname: "/bin/busybox"}, nil)
	put(tar.Header{Name: "usr/lib/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	put(tar.Header{Name: "usr/lib/libgreet.so.1", Mode: 0o755}, []byte("library"))
	put(tar.Header{Name: "usr/lib/libgreet.so", Typeflag: tar.TypeSymlink, Linkname: "libgreet.so.1"}, nil)
	put(tar.Header{Name: "data/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	put(tar.Header{Name: "data/hidden.so", Mode: 0o755}, []byte("hidden by the volume"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// podman is one podman with a storage of its own.
type podman struct {
	t    *testing.T
	bin  string
	root string
	args []string
}

func newPodman(t *testing.T) *podman {
	t.Helper()
	p := &podman{t: t, bin: need.Podman(t)}
	runc := need.Runc(t)
	dir := t.TempDir()
	p.root = dir + "/root"
	p.args = []string{"--root", p.root, "--runroot", dir + "/run", "--tmpdir", dir + "/tmp", "--runtime", runc,
		"--cgroup-manager", "cgroupfs", "--events-backend", "none"}
	t.Cleanup(func() {
		p.try("rm", "-f", "-t", "0", "-a")
		p.try("umount", "-a", "-f")
		_ = exec.Command("umount", p.root+"/overlay").Run()
	})
	return p
}

func (p *podman) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.bin, append(slices.Clone(p.args), args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("podman %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out)), err
}

func (p *podman) run(args ...string) string {
	p.t.Helper()
	out, err := p.try(args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

func TestPodman(t *testing.T) {
	p := newPodman(t)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/rootfs.tar", imageTar(t), 0o644); err != nil {
		t.Fatal(err)
	}
	p.run("import", dir+"/rootfs.tar", "localhost/probity-image:1")
	// A second layer on top of it, with a file more.
	if err := os.WriteFile(dir+"/Containerfile", []byte("FROM localhost/probity-image:1\nCOPY libgreet.so.2 /usr/lib/libgreet.so.2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/libgreet.so.2", []byte("second"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.run("build", "--network=host", "--isolation=chroot", "--pull-never", "-f", dir+"/Containerfile", "-t", "localhost/probity-image:2", dir)
	volume := t.TempDir()
	id := p.run("run", "-d", "--pull=never", "--network=none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096",
		"--name", "one", "-v", volume+":/data", "-v", dir+"/libgreet.so.2:/usr/lib/one.file", "localhost/probity-image:2", "/bin/sleep", "1000000")
	pid, err := strconv.Atoi(p.run("inspect", "-f", "{{.State.Pid}}", id))
	if err != nil {
		t.Fatal(err)
	}
	f := New(Config{})
	defer f.Close()
	n := container.Notice{
		Kind: container.Existing, Pid: pid,
		Identity: container.Identity{Runtime: container.Podman, ID: id},
		Bundle:   p.root + "/overlay-containers/" + id + "/userdata",
	}

	img := f.Identify(t.Context(), n)
	want := container.Image{
		Name:         "localhost/probity-image:2",
		Digest:       p.run("image", "inspect", "-f", "{{.Digest}}", "localhost/probity-image:2"),
		ConfigDigest: "sha256:" + p.run("image", "inspect", "-f", "{{.Id}}", "localhost/probity-image:2"),
	}
	if img != want {
		t.Errorf("Identify = %+v\nwant %+v", img, want)
	}

	var inspected []struct {
		GraphDriver struct{ Data map[string]string }
		RootFS      struct{ Layers []string }
	}
	if err := json.Unmarshal([]byte(p.run("image", "inspect", "localhost/probity-image:2")), &inspected); err != nil {
		t.Fatal(err)
	}
	diffIDs := inspected[0].RootFS.Layers
	merged := p.root + "/overlay/" // of the container, as the hook's bundle names it
	merged += p.run("inspect", "-f", "{{.GraphDriver.Data.MergedDir}}", id)[len(merged):]

	hook := n // at createRuntime: the same mounts, below Rootfs in the host's view
	hook.Kind, hook.Pid, hook.Rootfs = container.Starting, 0, merged
	hook.Mounts = []container.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs"}, {Destination: "/dev/shm", Type: "bind", Source: p.root + "/overlay-containers/" + id + "/userdata/shm"},
		{Destination: "/data", Type: "bind", Source: volume}, {Destination: "/usr/lib/one.file", Type: "bind", Source: dir + "/libgreet.so.2"},
	}
	for name, n := range map[string]container.Notice{"running": n, "createRuntime": hook} {
		t.Run(name, func(t *testing.T) {
			r, err := f.Rootfs(t.Context(), n, img)
			if err != nil {
				t.Fatal(err)
			}
			if r.Driver != "overlay" || r.Doubt != "" || len(r.Layers) != 2 || r.Upper == "" {
				t.Fatalf("Rootfs = %+v", r)
			}
			for i, l := range r.Layers {
				if l.DiffID != diffIDs[len(diffIDs)-1-i] {
					t.Errorf("layer %d: %+v, want diff id %s", i, l, diffIDs[len(diffIDs)-1-i])
				}
			}
			if _, err := os.Stat(filepath.Join(r.Merged, "bin/busybox")); err != nil {
				t.Errorf("the merged path: %v", err)
			}
			v, err := new(Cache).View(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct {
				pattern  string
				want     []string
				complete bool
			}{
				{"/usr/lib/libgreet.so*", []string{"/usr/lib/libgreet.so.1", "/usr/lib/libgreet.so.2"}, true},
				{"/bin/sleep", []string{"/bin/busybox"}, true},
				{"/usr/**/libgreet.so.2", []string{"/usr/lib/libgreet.so.2"}, true},
				{"/usr/lib/one.*", nil, false},
				{"/**/hidden.so", nil, false},
				{"/data/hidden.so", nil, false},
				{"/proc/self/exe", nil, true},
				{"/dev/*", nil, true},
			} {
				ms, complete, why := v.Glob(c.pattern)
				var got []string
				for _, m := range ms {
					got = append(got, m.Path)
					checkMatch(t, r.Merged, m)
					if m.Origin != FromLayer || m.Layer.DiffID == "" {
						t.Errorf("%s: %+v", c.pattern, m)
					}
				}
				if !slices.Equal(got, c.want) || complete != c.complete {
					t.Errorf("%s: %q, complete %v (%s); want %q, %v", c.pattern, got, complete, why, c.want, c.complete)
				}
			}
		})
	}

	// What the container writes is found in its upper directory.
	p.run("exec", id, "/bin/busybox", "cp", "/usr/lib/libgreet.so.1", "/usr/lib/libgreet.so.3")
	p.run("exec", id, "/bin/busybox", "touch", "/usr/lib/libgreet.so.2")
	r, err := f.Rootfs(t.Context(), n, img)
	if err != nil {
		t.Fatal(err)
	}
	v, err := new(Cache).View(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	ms, complete, why := v.Glob("/usr/lib/libgreet.so*")
	origins := map[string]string{}
	for _, m := range ms {
		origins[m.Path] = m.Origin
		checkMatch(t, r.Merged, m)
	}
	if !complete || len(ms) != 3 || origins["/usr/lib/libgreet.so.1"] != FromLayer || origins["/usr/lib/libgreet.so.2"] != FromUpper || origins["/usr/lib/libgreet.so.3"] != FromUpper {
		t.Errorf("after writing: %v %v %s", origins, complete, why)
	}

	// A digest that cannot be verified is absent, with a reason.
	imageDir := p.root + "/overlay-images/" + strings.TrimPrefix(want.ConfigDigest, "sha256:")
	if err := os.WriteFile(imageDir+"/manifest", []byte(`{"forged":true}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if img := New(Config{}).Identify(t.Context(), n); img.Digest != "" || !strings.Contains(img.DigestReason, "images.json says") {
		t.Errorf("a forged manifest: %+v", img)
	}
	n.Identity.ID = strings.Repeat("0", 64)
	if img := New(Config{PodmanRoot: p.root}).Identify(t.Context(), n); img.Digest != "" || !strings.Contains(img.DigestReason, "not in") {
		t.Errorf("a container that is not there: %+v", img)
	}
}

// hookReport tells the test binary to be an OCI hook at createRuntime: it looks
// at the root file system as the agent would then, and writes what it saw.
const hookReport = "PROBITY_TEST_HOOK_REPORT"

type report struct {
	Err      string
	Rootfs   Rootfs
	Matches  map[string][]string
	Complete map[string]bool
}

var hookPatterns = []string{"/usr/lib/libgreet.so*", "/data/*", "/**/hidden.so", "/dev/**", "/usr/lib/one.file", "/etc/hosts", "/etc/hostname"}

func hook(out string) error {
	var rep report
	err := func() error {
		var state struct {
			ID     string `json:"id"`
			Pid    int    `json:"pid"`
			Bundle string `json:"bundle"`
		}
		if err := json.NewDecoder(os.Stdin).Decode(&state); err != nil {
			return err
		}
		var config struct{ Root struct{ Path string } }
		b, err := os.ReadFile(state.Bundle + "/config.json")
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b, &config); err != nil {
			return err
		}
		f := New(Config{})
		defer f.Close()
		n := container.Notice{
			Kind: container.Starting, Pid: state.Pid, Bundle: state.Bundle, Rootfs: config.Root.Path,
			Identity: container.Identity{Runtime: container.Podman, ID: state.ID},
		}
		if rep.Rootfs, err = f.Rootfs(context.Background(), n, f.Identify(context.Background(), n)); err != nil {
			return err
		}
		v, err := new(Cache).View(context.Background(), rep.Rootfs)
		if err != nil {
			return err
		}
		rep.Matches, rep.Complete = map[string][]string{}, map[string]bool{}
		for _, p := range hookPatterns {
			ms, complete, _ := v.Glob(p)
			for _, m := range ms {
				rep.Matches[p] = append(rep.Matches[p], m.Path)
			}
			rep.Complete[p] = complete
		}
		return nil
	}()
	if err != nil {
		rep.Err = err.Error()
	}
	b, err := json.Marshal(rep)
	if err != nil {
		return err
	}
	return os.WriteFile(out, b, 0o644)
}

func TestPodmanCreateRuntime(t *testing.T) {
	p := newPodman(t)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/rootfs.tar", imageTar(t), 0o644); err != nil {
		t.Fatal(err)
	}
	p.run("import", dir+"/rootfs.tar", "localhost/probity-image:1")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf(`{"version":"1.0.0","hook":{"path":%q,"env":["%s=%s/report"]},"when":{"always":true},"stages":["createRuntime"]}`, exe, hookReport, dir)
	if err := os.Mkdir(dir+"/hooks.d", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/hooks.d/probity.json", []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	p.args = append(p.args, "--hooks-dir", dir+"/hooks.d")
	p.run("run", "--rm", "--pull=never", "--network=none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096",
		"-v", dir+":/data", "-v", dir+"/rootfs.tar:/usr/lib/one.file", "localhost/probity-image:1", "/bin/sleep", "0")
	b, err := os.ReadFile(dir + "/report")
	if err != nil {
		t.Fatal(err)
	}
	var rep report
	if err := json.Unmarshal(b, &rep); err != nil || rep.Err != "" {
		t.Fatalf("%v %s", err, rep.Err)
	}
	if len(rep.Rootfs.Layers) != 1 || rep.Rootfs.Layers[0].DiffID == "" || rep.Rootfs.Doubt != "" || !slices.Contains(rep.Rootfs.Files, "/usr/lib/one.file") {
		t.Errorf("Rootfs = %+v", rep.Rootfs)
	}
	for pattern, want := range map[string]string{
		"/usr/lib/libgreet.so*": "[/usr/lib/libgreet.so.1] true", "/data/*": "[] false", "/**/hidden.so": "[] false",
		"/dev/**": "[] true", "/usr/lib/one.file": "[] false", "/etc/hosts": "[] false",
	} {
		if got := fmt.Sprint(rep.Matches[pattern], " ", rep.Complete[pattern]); got != want {
			t.Errorf("%s: %s, want %s", pattern, got, want)
		}
	}
}
