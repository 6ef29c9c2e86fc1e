package runtimes

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"probity/tests/need"
)

// CRIO is a CRI-O of our own: its storage, state, sockets and configuration are in the
// scratch directory. Debian has no package of it, so it is a driver only where crio and
// its pinns are installed.
type CRIO struct {
	criServer

	Root   string // of containers/storage
	States string // where its runc keeps the states of containers
	store  *Podman
	runc   string
}

// hasCRIO reports whether there is one to start.
func hasCRIO() bool {
	for _, name := range []string{"crio", "pinns", "conmon"} {
		if _, ok := need.Look(name); !ok {
			return false
		}
	}
	return true
}

// StartCRIO starts one for a test, which needs root, runc, and podman to load images
// into its storage.
func StartCRIO(t testing.TB) *CRIO {
	t.Helper()
	path := need.Podman(t)
	need.Command(t, "gcc")
	s := NewScratch(t)
	c := &CRIO{store: OpenPodman(t, s, path)}
	c.Root, c.States = c.store.Root, c.store.States
	dir := s.mkdir(t, "crio")
	c.criServer = newCRIServer(t, s, "cri-o", filepath.Join(dir, "crio.sock"))
	// Of a cgroup of its own: cgroups are not made below one that is a process's.
	c.parent = filepath.Join(s.Cgroup, "crio")
	// It wants an OOM score that a host without CAP_SYS_RESOURCE cannot set, and has no
	// option against it.
	c.runc = s.write(t, "crio/runc", fmt.Sprintf(`#!/bin/sh
bundle=
for word; do
	[ "$last" != --bundle ] || bundle=$word
	last=$word
done
[ -z "$bundle" ] || sed -i 's/"oomScoreAdj": *-[0-9]*/"oomScoreAdj":0/' "$bundle/config.json"
exec %s "$@"
`, runc()))
	if err := os.Chmod(c.runc, 0o755); err != nil {
		t.Fatalf("cri-o: %v", err)
	}
	config := s.write(t, "crio.conf", c.toml(dir))
	policy := s.write(t, "policy.json", `{"default": [{"type": "insecureAcceptAnything"}]}`)
	crio, _ := need.Look("crio")
	c.program = func() *exec.Cmd {
		cmd := exec.Command(crio, "--config", config, "--config-dir", "", "--signature-policy", policy)
		cmd.Env = append(os.Environ(), "CONTAINERS_STORAGE_CONF="+s.Path("podman", "storage.conf"), "PATH="+os.Getenv("PATH")+":"+filepath.Dir(runc()))
		return cmd
	}
	c.Load(t, pauseArchive(t, s, filepath.Join(repository(t), "tests/demo/image/pause.c")))
	c.begin(t)
	return c
}

// toml is the configuration: nothing outside dir and the storage, no CNI.
func (c *CRIO) toml(dir string) string {
	pinns, _ := need.Look("pinns")
	conmon, _ := need.Look("conmon")
	return fmt.Sprintf(`[crio]
root = %[2]q
runroot = %[3]q
storage_driver = "overlay"
log_dir = "%[1]s/log"
version_file = "%[1]s/version"
version_file_persist = ""
clean_shutdown_file = "%[1]s/clean"
internal_wipe = false

[crio.api]
listen = %[4]q

[crio.runtime]
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
default_runtime = "runc"
apparmor_profile = "unconfined"
seccomp_profile = "unconfined"
hooks_dir = [%[5]q]
container_exits_dir = "%[1]s/exits"
container_attach_socket_dir = "%[1]s/attach"
namespaces_dir = "%[1]s/ns"
pinns_path = %[6]q
default_capabilities = ["CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE", "KILL", "SYS_CHROOT"]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
drop_infra_ctr = false
enable_criu_support = false
irqbalance_config_restore_file = "disable"

[crio.runtime.runtimes.runc]
runtime_path = %[7]q
runtime_root = %[8]q
monitor_path = %[9]q
monitor_cgroup = "pod"

[crio.image]
pause_image = %[10]q
big_files_temporary_dir = "%[1]s"

[crio.network]
network_dir = "%[1]s/cni"
plugin_dirs = ["%[1]s/cni-bin"]

[crio.nri]
enable_nri = true
nri_listen = %[11]q
nri_plugin_dir = "%[1]s/nri/plugins"
nri_plugin_config_dir = "%[1]s/nri/conf.d"
`, dir, c.Root, c.store.RunRoot, c.Address, c.store.HooksDir, pinns, c.runc, c.States, conmon, pauseImage, c.NRISocket)
}

// Load loads an OCI archive into the storage, which podman has open, too.
func (c *CRIO) Load(t T, archive string) {
	t.Helper()
	c.store.Load(t, archive)
}
