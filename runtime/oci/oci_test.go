package oci

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/tests/need"
)

// The processes of a test share its cgroup, so the truth comes with
// ErrSharedCgroup here; TestOwnCgroup and the runtimes' own tests have one.
func TestTrueState(t *testing.T) {
	for name, want := range map[string]container.Runtime{"runc": container.Runc, "crun": container.Crun} {
		s := play(t, t.TempDir(), name)
		before := cgroup.BootTime()
		n, err := Notice(CreateRuntime, s.state(map[string]any{"owner": "not in the specification"}), s.Hook)
		if !errors.Is(err, ErrSharedCgroup) {
			t.Fatal(err)
		}
		if n.At < before || n.At > cgroup.BootTime() {
			t.Errorf("at %d", n.At)
		}
		if n.At = 0; !strings.Contains(n.Shared, "cgroup") {
			t.Errorf("shared: %q", n.Shared)
		}
		n.Shared = ""
		truth := container.Notice{
			Source: "hook", Kind: container.Starting, Pid: s.Init, Rootfs: s.rootfs, Bundle: s.bundle,
			Mounts:  []container.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/data", Type: "bind", Source: "/srv"}},
			Command: container.Command{Arg0: "web", Path: "/opt/bin:/bin", Dir: "/srv"},
			Identity: container.Identity{
				Runtime: want, ID: "web", Name: "web", Annotations: map[string]string{"app": "web"},
				Image: container.Image{DigestReason: "an OCI hook is not told the image"},
			},
		}
		if !reflect.DeepEqual(n, truth) {
			t.Errorf("%s: %+v\nwant %+v", name, n, truth)
		}
	}
}

func TestOwnCgroup(t *testing.T) {
	need.Root(t)
	mount := need.Cgroup2(t)
	s := play(t, t.TempDir(), "runc")
	name := "/probity-oci-" + strconv.Itoa(s.Init)
	dir := mount + name
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, home, _ := strings.Cut(string(own), "0::")
	home, _, _ = strings.Cut(home, "\n")
	if err := os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(s.Init)), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(mount+home+"/cgroup.procs", []byte(strconv.Itoa(s.Init)), 0) })
	n, err := Notice(CreateRuntime, s.state(nil), s.Hook)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	if n.Identity.CgroupPath != name || n.Identity.CgroupID != st.Ino {
		t.Errorf("cgroup %q, %d; want %q, %d", n.Identity.CgroupPath, n.Identity.CgroupID, name, st.Ino)
	}
	// The hook moves in: the cgroup is not the container's alone any more.
	if err := os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(s.Hook)), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(mount+home+"/cgroup.procs", []byte(strconv.Itoa(s.Hook)), 0) })
	if n, err := Notice(CreateRuntime, s.state(nil), s.Hook); !errors.Is(err, ErrSharedCgroup) || n.Identity.CgroupID != 0 {
		t.Errorf("with the hook inside: cgroup %d, %v", n.Identity.CgroupID, err)
	}
}

func TestLies(t *testing.T) {
	s := play(t, t.TempDir(), "runc")
	elsewhere := play(t, t.TempDir(), "runc")
	forged := t.TempDir() // root's too, and it names the true root file system
	writeConfig(t, forged, `{"root":{"path":"`+s.rootfs+`"},"annotations":{"app":"another"}}`)
	ended := exec.Command("/bin/true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		change map[string]any
		peer   int
		want   error
	}{
		{"no pid", map[string]any{"pid": nil}, s.Hook, ErrPid},
		{"the hook's pid", map[string]any{"pid": s.Hook}, s.Hook, ErrPid},
		{"the runtime's pid", map[string]any{"pid": s.Runtime}, s.Hook, ErrPid},
		{"the agent's pid", map[string]any{"pid": os.Getpid()}, s.Hook, ErrPid},
		{"pid 1", map[string]any{"pid": 1}, s.Hook, ErrPid},
		{"a pid that has ended", map[string]any{"pid": ended.Process.Pid}, s.Hook, ErrPid},
		{"a process of the agent", map[string]any{"pid": other(t, nil)}, s.Hook, ErrPid},
		{"init of another container", map[string]any{"pid": elsewhere.Init}, s.Hook, ErrPid},
		{"another child of the runtime", map[string]any{"pid": s.Sibling}, s.Hook, ErrPid},
		{"a container of the runtime that runs", map[string]any{"pid": s.Entered}, s.Hook, ErrPid},
		{"a thread of init", map[string]any{"pid": threadOf(t, s.Init)}, s.Hook, ErrPid},
		{"the bundle of another container", map[string]any{"bundle": elsewhere.bundle}, s.Hook, ErrBundle},
		{"a bundle that is nobody's", map[string]any{"bundle": forged}, s.Hook, ErrBundle},
		{"a bundle that is not there", map[string]any{"bundle": s.bundle + "/none"}, s.Hook, ErrBundle},
		{"a bundle that is a file", map[string]any{"bundle": s.bundle + "/config.json"}, s.Hook, ErrBundle},
		{"everything of another container", map[string]any{"pid": elsewhere.Init, "bundle": elsewhere.bundle}, s.Hook, ErrPid},
		{"a hook that has ended", nil, ended.Process.Pid, errAny},
		{"a hook that is nobody", nil, 0, errAny},
		{"a hook in a pid namespace of its own", nil, s.Boxed, errAny},
		{"a hook in a root directory of its own", nil, s.Jailed, errAny},
		{"stopped already", map[string]any{"status": "stopped"}, s.Hook, ErrState},
	} {
		t.Run(test.name, func(t *testing.T) {
			n, err := Notice(CreateRuntime, s.state(test.change), test.peer)
			if err == nil || errors.Is(err, ErrSharedCgroup) || test.want != errAny && !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			if !reflect.DeepEqual(n, container.Notice{}) {
				t.Errorf("a notice with it: %+v", n)
			}
		})
	}
	if _, err := Notice("poststart", s.state(nil), s.Hook); !errors.Is(err, ErrState) {
		t.Errorf("another stage: %v", err)
	}
}

// Root in a container that was given the socket is not root on the host.
func TestOnHost(t *testing.T) {
	s := play(t, t.TempDir(), "runc")
	for pid, want := range map[int]bool{s.Hook: true, s.Boxed: false, s.Jailed: false} {
		p, err := hold(pid)
		if err != nil {
			t.Fatal(err)
		}
		if err := onHost(p, 0); (err == nil) != want {
			t.Errorf("%+v: %d: %v", s, pid, err)
		}
		p.release()
	}
}

var errAny = errors.New("any error")

// threadOf returns a thread of pid that is not its leader; Go programs have.
func threadOf(t *testing.T, pid int) int {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); {
		tasks, err := os.ReadDir(procPath(pid, "task"))
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if tid, _ := strconv.Atoi(task.Name()); tid != pid {
				return tid
			}
		}
	}
	t.Fatalf("pid %d has no second thread", pid)
	return 0
}

func TestAnotherUsersProcess(t *testing.T) {
	need.Root(t)
	s := play(t, t.TempDir(), "runc")
	pid := other(t, func(c *exec.Cmd) {
		c.Path, c.Args = need.Command(t, "sh")[0], []string{"sh", "-c", "echo $$; read x"}
		c.Dir = "/"
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	})
	if _, err := Notice(CreateRuntime, s.state(map[string]any{"pid": pid}), s.Hook); !errors.Is(err, ErrPid) {
		t.Error(err)
	}
}

// A bundle whose files lie, with everything else true.
func TestBundles(t *testing.T) {
	link := func(old string) func(*testing.T, scene) {
		return func(t *testing.T, s scene) {
			p := s.bundle + "/config.json"
			if err := errors.Join(os.Rename(p, s.bundle+"/real.json"), os.Symlink(old, p)); err != nil {
				t.Fatal(err)
			}
		}
	}
	text := func(config string) func(*testing.T, scene) {
		return func(t *testing.T, s scene) { writeConfig(t, s.bundle, config) }
	}
	s := play(t, t.TempDir(), "runc")
	for _, test := range []struct {
		name string
		do   func(*testing.T, scene)
	}{
		{"no config.json", func(t *testing.T, s scene) { os.Remove(s.bundle + "/config.json") }},
		{"a symlink", link("real.json")},
		{"a symlink into /proc", link("/proc/self/environ")},
		{"a FIFO", func(t *testing.T, s scene) {
			os.Remove(s.bundle + "/config.json")
			if err := unix.Mkfifo(s.bundle+"/config.json", 0o644); err != nil {
				t.Fatal(err)
			}
		}},
		{"a directory", func(t *testing.T, s scene) {
			os.Remove(s.bundle + "/config.json")
			os.Mkdir(s.bundle+"/config.json", 0o755)
		}},
		{"others may write it", func(t *testing.T, s scene) { os.Chmod(s.bundle+"/config.json", 0o666) }},
		{"others may write the bundle", func(t *testing.T, s scene) { os.Chmod(s.bundle, 0o777) }},
		{"too long", func(t *testing.T, s scene) { os.Truncate(s.bundle+"/config.json", maxConfig+1) }},
		{"empty", text("")},
		{"not JSON", text("{")},
		{"no root", text(`{"ociVersion":"1.0.2"}`)},
		{"root twice", text(`{"root":{"path":"rootfs"},"root":{"path":"/"}}`)},
		{"root's path twice", text(`{"root":{"path":"rootfs","path":"/"}}`)},
		{"Root", text(`{"Root":{"path":"rootfs"}}`)},
		{"a root that is not there", text(`{"root":{"path":"none"}}`)},
		{"a root that is a file", text(`{"root":{"path":"config.json"}}`)},
		{"a root that init has not mounted", text(`{"root":{"path":"/usr"}}`)},
		{"too many mounts", text(`{"root":{"path":"rootfs"},"mounts":[` + strings.Repeat(`{"destination":"/x"},`, container.MaxPairs) + `{"destination":"/x"}]}`)},
		{"a mount without a place", text(`{"root":{"path":"rootfs"},"mounts":[{"type":"tmpfs"}]}`)},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := errors.Join(os.Chmod(s.bundle, 0o755), os.RemoveAll(s.bundle+"/config.json"))
			if err != nil {
				t.Fatal(err)
			}
			writeConfig(t, s.bundle, trueConfig)
			test.do(t, s)
			if _, err := Notice(CreateRuntime, s.state(nil), s.Hook); !errors.Is(err, ErrBundle) {
				t.Errorf("error %v, want %v", err, ErrBundle)
			}
		})
	}
	t.Run("too many annotations", func(t *testing.T) {
		writeConfig(t, s.bundle, `{"root":{"path":"rootfs"},"annotations":{"a":"`+strings.Repeat("x", container.MaxPairsBytes)+`"}}`)
		if _, err := Notice(CreateRuntime, s.state(nil), s.Hook); !errors.Is(err, container.ErrInvalid) {
			t.Error(err)
		}
	})
	t.Run("an unknown runtime", func(t *testing.T) {
		s := play(t, t.TempDir(), "sleep")
		if _, err := Notice(CreateRuntime, s.state(nil), s.Hook); err == nil || errors.Is(err, ErrSharedCgroup) {
			t.Error(err)
		}
	})
}

func TestOpenTrusted(t *testing.T) {
	dir := t.TempDir()
	mk := func(name string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.Mkdir(p, 0o755), os.Mkdir(p+"/in", 0o755), os.Chmod(p, mode)); err != nil {
			t.Fatal(err)
		}
		return p + "/in"
	}
	ln := func(name, target string) string {
		p := filepath.Join(dir, name)
		if err := os.Symlink(target, p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	plain, sticky, open := mk("plain", 0o755), mk("sticky", 0o777|os.ModeSticky), mk("open", 0o777)
	for path, want := range map[string]string{
		"/":                               "/",
		plain:                             plain,
		sticky:                            sticky,
		open:                              "",
		ln("relative", "plain/in"):        plain,
		ln("absolute", plain):             plain,
		ln("up", "plain/in/../../sticky"): filepath.Dir(sticky),
		ln("around", "around"):            "",
		ln("through", "open/in"):          "",
		ln("file", "/etc/passwd"):         "",
		plain + "/none":                   "",
		"relative":                        "",
	} {
		f, err := openTrusted(path)
		switch {
		case err != nil && want != "":
			t.Errorf("%s: %v", path, err)
		case err == nil:
			if f.Name() != want {
				t.Errorf("%s leads to %q, want %q", path, f.Name(), want)
			}
			f.Close()
		}
	}
	t.Run("another user's", func(t *testing.T) {
		need.Root(t)
		theirs := mk("theirs", 0o755)
		if err := os.Chown(filepath.Dir(theirs), 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if f, err := openTrusted(theirs); err == nil {
			f.Close()
			t.Error("opened")
		}
		p := ln("their link", "plain")
		if err := os.Lchown(p, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if f, err := openTrusted(p); err == nil {
			f.Close()
			t.Error("opened through another user's symlink")
		}
	})
}

func TestPoststop(t *testing.T) {
	state := func(bundle string) []byte {
		return []byte(`{"ociVersion":"1.0.2-dev","id":"d575","status":"stopped","bundle":"` + bundle + `","annotations":{"io.podman.annotations.init":"FALSE"}}`)
	}
	check := func(t *testing.T, bundle string, want container.Runtime) {
		t.Helper()
		n, err := Notice(Poststop, state(bundle), os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if n.Kind != container.Stopped || n.Pid != 0 || n.Identity.ID != "d575" || n.Identity.Runtime != want {
			t.Errorf("%+v", n)
		}
	}
	t.Run("nothing is left", func(t *testing.T) { check(t, "/none/overlay-containers/d575/userdata", container.Podman) })
	t.Run("the bundle is left", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "vfs-containers", "d575", "userdata")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		writeConfig(t, dir, `{"root":{"path":"/x"},"annotations":{"io.container.manager":"cri-o"}}`)
		check(t, dir, container.CRIO)
		ago := time.Duration(cgroup.BootTime() / 2) // not before the machine started
		began := time.Now().Add(-ago)
		if err := os.Chtimes(filepath.Join(dir, "config.json"), time.Now(), began); err != nil {
			t.Fatal(err)
		}
		n, err := Notice(Poststop, state(dir), os.Getpid())
		if made := time.Duration(cgroup.BootTime() - n.Made); err != nil || made < ago || made > ago+time.Minute {
			t.Errorf("its bundle was made %v ago, %v", made, err)
		}
	})
	running := bytes.Replace(state("/none"), []byte("stopped"), []byte("running"), 1)
	if _, err := Notice(Poststop, running, os.Getpid()); !errors.Is(err, ErrState) {
		t.Error(err)
	}
}

func TestStorageRuntime(t *testing.T) {
	libpod := map[string]string{"io.container.manager": "libpod"}
	for _, test := range []struct {
		bundle string
		notes  map[string]string
		want   container.Runtime
	}{
		{"/var/lib/containers/storage/overlay-containers/ID/userdata", libpod, container.Podman},
		{"/var/lib/containers/storage/overlay-containers/ID/userdata", map[string]string{"io.container.manager": "cri-o"}, container.CRIO},
		{"/var/lib/containers/storage/overlay-containers/ID/userdata", nil, ""},
		{"/var/lib/containers/storage/overlay-containers/OTHER/userdata", libpod, ""},
		{"/srv/bundle", libpod, ""},
		{"/run/containerd/io.containerd.runtime.v2.task/k8s.io/ID", libpod, container.Containerd},
		{"/run/containerd/io.containerd.runtime.v2.task/moby/ID", nil, container.Docker},
		{"/run/containerd/io.containerd.runtime.v2.task/moby/OTHER", nil, ""},
	} {
		if got := storageRuntime("ID", test.bundle, test.notes); got != test.want {
			t.Errorf("%s, %v: %q, want %q", test.bundle, test.notes, got, test.want)
		}
	}
}

func TestFind(t *testing.T) {
	const list = `[{"id":"a","names":["one"],"metadata":"{}"},{"id":"b","names":["two","three"]},{"id":"c"}]`
	for id, want := range map[string]string{"a": "one", "b": "two", "c": "", "d": ""} {
		if got := find([]byte(list), id).name(); got != want {
			t.Errorf("%s: %q, want %q", id, got, want)
		}
	}
	for _, bad := range []string{"", "{}", "[", `[{"id":1}]`, `[{"id":"a","names":"one"}]`} {
		if got := find([]byte(bad), "a").name(); got != "" {
			t.Errorf("%s: %q", bad, got)
		}
	}
}
