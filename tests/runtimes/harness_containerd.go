package runtimes

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"probity/tests/need"
	"probity/tests/ociarchive"
)

// pauseImage is the sandbox image: ours, so that no registry is asked.
const pauseImage = "localhost/probity-pause:latest"

// Containerd is a containerd of our own: its root, state, sockets and
// configuration are in the scratch directory.
type Containerd struct {
	criServer

	tools  need.ContainerdTools
	config string
}

// StartContainerd starts one for a test, which needs root, runc and a built
// containerd.
func StartContainerd(t testing.TB) *Containerd {
	t.Helper()
	tools := need.Containerd(t)
	need.Command(t, "gcc")
	return OpenContainerd(t, NewScratch(t), tools, filepath.Join(repository(t), "tests/demo/image/pause.c"))
}

// OpenContainerd starts one in s. pause is the C file of the sandbox image.
func OpenContainerd(t T, s *Scratch, tools need.ContainerdTools, pause string) *Containerd {
	t.Helper()
	dir := s.mkdir(t, "containerd")
	c := &Containerd{tools: tools}
	c.criServer = newCRIServer(t, s, "containerd", filepath.Join(dir, "containerd.sock"))
	c.config = s.write(t, "containerd.toml", c.toml(dir, c.Version(t)))
	c.program = func() *exec.Cmd {
		cmd := exec.Command(tools.Containerd, "--config", c.config)
		// The shim is looked for in PATH, and asks for runc there.
		cmd.Env = append(os.Environ(), "PATH="+tools.Dir+":"+filepath.Dir(runc())+":"+os.Getenv("PATH"))
		return cmd
	}
	c.begin(t)
	c.Load(t, pauseArchive(t, s, pause))
	return c
}

// pauseArchive makes the sandbox image of a C file.
func pauseArchive(t T, s *Scratch, pause string) string {
	t.Helper()
	Compile(t, s.Path("pause"), "-static", "-s", pause)
	archive, _ := BuildImage(t, s, pauseImage, []string{"/pause"}, HostFile(t, s.Path("pause"), "/pause"))
	return archive
}

// toml is the configuration: nothing outside dir, no CNI, and what a
// restricted host needs (no CAP_SYS_RESOURCE: an OOM score cannot be lowered).
func (c *Containerd) toml(dir, version string) string {
	cri, format := cri2, 3
	if strings.HasPrefix(version, "1.") {
		cri, format = cri1, 2
	}
	return fmt.Sprintf(common+cri, dir, c.Address, pauseImage, c.NRISocket, runc(), c.Scratch.Path("s"), format)
}

// common is of both; version says which plugins there are.
const common = `version = %[7]d
root = '%[1]s/root'
state = '%[1]s/state'
temp = '%[1]s/temp'
imports = []
disabled_plugins = ['io.containerd.snapshotter.v1.blockfile', 'io.containerd.snapshotter.v1.btrfs', 'io.containerd.snapshotter.v1.devmapper', 'io.containerd.snapshotter.v1.erofs', 'io.containerd.snapshotter.v1.zfs']

[grpc]
address = '%[2]s'

[ttrpc]
address = '%[2]s.ttrpc'

[plugins.'io.containerd.internal.v1.opt']
path = '%[1]s/opt'

[plugins.'io.containerd.nri.v1.nri']
disable = false
socket_path = '%[4]s'
plugin_path = '%[1]s/nri/plugins'
plugin_config_path = '%[1]s/nri/conf.d'
`

// CRI is two plugins from containerd 2.0 on.
const cri2 = `
[plugins.'io.containerd.cri.v1.images']
snapshotter = 'overlayfs'

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '%[3]s'

[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
disable_apparmor = true

[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = 'runc'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = '%[5]s'
Root = '%[1]s/runc'
SystemdCgroup = false

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['%[1]s/cni/bin']
conf_dir = '%[1]s/cni/conf'

[plugins.'io.containerd.shim.v1.manager']
socket_dir = '%[6]s'
`

// And one before.
const cri1 = `
[plugins.'io.containerd.grpc.v1.cri']
sandbox_image = '%[3]s'
restrict_oom_score_adj = true
disable_apparmor = true

[plugins.'io.containerd.grpc.v1.cri'.containerd]
snapshotter = 'overlayfs'
default_runtime_name = 'runc'

[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'

[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]
BinaryName = '%[5]s'
Root = '%[1]s/runc'
SystemdCgroup = false

[plugins.'io.containerd.grpc.v1.cri'.cni]
bin_dir = '%[1]s/cni/bin'
conf_dir = '%[1]s/cni/conf'
`

// Version returns the version of the program, such as "2.4.2".
func (c *Containerd) Version(t T) string {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	out, err := output(exec.CommandContext(ctx, c.tools.Containerd, "--version"))
	f := strings.Fields(out) // containerd github.com/containerd/containerd/v2 v2.4.2 REVISION
	if err != nil || len(f) < 3 {
		t.Fatalf("containerd --version: %q, %v", out, err)
	}
	return strings.TrimPrefix(f[2], "v")
}

// LowRuntime is the variable with the name of the program that podman and containerd run
// containers with; runc if it is not set. crun refuses hosts in the hybrid cgroup mode.
const LowRuntime = "PROBITY_LOW_RUNTIME"

func runc() string {
	name := cmp.Or(os.Getenv(LowRuntime), "runc")
	if path, ok := need.Look(name); ok {
		return path
	}
	return name
}

// Ctr runs the ctr tool in CRI's namespace and returns its output.
func (c *Containerd) Ctr(t T, args ...string) string {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	out, err := output(exec.CommandContext(ctx, c.tools.Ctr, append([]string{"--address", c.Address, "--namespace", "k8s.io"}, args...)...))
	if err != nil {
		t.Fatalf("%v", err)
	}
	return out
}

// Load imports an OCI archive and returns when CRI knows its images, which it
// learns by an event.
func (c *Containerd) Load(t T, archive string) {
	t.Helper()
	name, err := ociarchive.Name(archive)
	if err != nil {
		t.Fatalf("%v", err)
	}
	c.Ctr(t, "images", "import", "--platform", "linux", archive)
	ctx, cancel := within(t, Patience)
	defer cancel()
	for ctx.Err() == nil {
		r, err := c.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
		if err == nil && r.Image != nil {
			return
		}
		pause(ctx)
	}
	t.Fatalf("containerd: CRI does not know %s after its import\n%s", name, c.server.tail())
}

// Digest returns the digest that the image store has for an image's name.
func (c *Containerd) Digest(t T, name string) string {
	t.Helper()
	for line := range strings.Lines(c.Ctr(t, "images", "list")) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == name {
			return f[2]
		}
	}
	t.Fatalf("containerd has no image %s", name)
	return ""
}
