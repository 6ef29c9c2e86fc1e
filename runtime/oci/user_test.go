package oci

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/runtime/container"
	"probity/tests/need"
)

// Users that are nobody's, and ids that are subordinate to the first.
const (
	someone = 61234
	another = 61235
	subid   = 161234
)

// userRole is a user on the host, who starts his runtime as root of a user namespace.
func userRole() {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Path = os.Args[0]
	cmd.Env = append(os.Environ(), roleEnv+"=runtime")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = inUserNS(os.Getuid())
	if err := cmd.Run(); err != nil {
		panic(err)
	}
}

// inUserNS has a process be root in a user and a mount namespace of whoever starts it.
func inUserNS(uid int) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}},
	}
}

// userPlay is play for a user's own runtime; the bundle is at place below a directory of
// his. Who starts the runtime may be changed.
func userPlay(t *testing.T, uid uint32, place, name string, change func(*exec.Cmd)) scene {
	t.Helper()
	need.Root(t)
	dir, err := os.MkdirTemp("", "oci-user")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := scene{bundle: filepath.Join(dir, "home", place)}
	s.rootfs = filepath.Join(s.bundle, "rootfs")
	if err := errors.Join(os.Chmod(dir, 0o755), os.MkdirAll(s.rootfs, 0o700)); err != nil {
		t.Fatal(err)
	}
	writeConfig(t, s.bundle, trueConfig)
	if err := filepath.Walk(dir+"/home", func(p string, _ os.FileInfo, err error) error {
		return errors.Join(err, os.Chown(p, int(uid), int(uid)))
	}); err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, name)
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, s.rootfs, "mounted")
	cmd.Dir = s.bundle
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	role := "user"
	if change != nil {
		role = "runtime"
		change(cmd)
	}
	line, err := bufio.NewReader(startRole(t, cmd, role)).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &s)
	}
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return s
}

// userNotice closes what it need not hold.
func userNotice(s []byte, hook int, uid uint32) (container.Notice, error) {
	n, init, err := UserNotice(s, hook, uid)
	if init != nil {
		init.Close()
	}
	return n, err
}

// What is true of a user's own is believed, and marked as his claim where it is one. The
// processes of a test share its cgroup.
func TestUserNotice(t *testing.T) {
	s := userPlay(t, someone, "b", "runc", nil)
	n, init, err := UserNotice(s.state(nil), s.Hook, someone)
	if !errors.Is(err, ErrSharedCgroup) || init == nil {
		t.Fatal(err)
	}
	defer init.Close()
	id := n.Identity
	if n.Source != "rootless:61234" || id.User != someone || id.Runtime != container.Runc || id.ID != "web" || id.CgroupID != 0 {
		t.Errorf("%+v", n)
	}
	if n.Pid != s.Init || n.Rootfs != s.rootfs || n.Bundle != s.bundle || n.Kind != container.Starting {
		t.Errorf("%+v", n)
	}
	if id.Image.Digest != "" || !strings.HasPrefix(id.Image.DigestReason, "rootless: uid 61234 can write") {
		t.Errorf("image %+v", id.Image)
	}
	held := process{fd: init}
	if !held.alive() {
		t.Error("the pidfd is of nobody who lives")
	}
}

// The name of his image, and its id, are what his store says.
func TestUserNoticeOfPodman(t *testing.T) {
	config := strings.Replace(trueConfig, `{"app":"web"}`, `{"io.container.manager":"libpod"}`, 1)
	s := userPlay(t, someone, "store/overlay-containers/web/userdata", "runc", nil)
	hex := strings.Repeat("ab", 32)
	list := `[{"id":"web","names":["mine"],"image":"` + hex + `","metadata":"{\"image-name\":\"docker.io/library/nginx:1\"}"}]`
	p := filepath.Join(s.bundle, "../../containers.json")
	writeConfig(t, s.bundle, config)
	if err := errors.Join(os.WriteFile(p, []byte(list), 0o600), os.Chown(p, someone, someone)); err != nil {
		t.Fatal(err)
	}
	n, err := userNotice(s.state(nil), s.Hook, someone)
	if !errors.Is(err, ErrSharedCgroup) {
		t.Fatal(err)
	}
	id := n.Identity
	if id.Runtime != container.Podman || id.Name != "mine" || id.Image.Name != "docker.io/library/nginx:1" || id.Image.Digest != "" ||
		!strings.HasSuffix(id.Image.DigestReason, "says that it is image id sha256:"+hex) {
		t.Errorf("%+v", id)
	}
	// Another's list is not his.
	if err := os.Chown(p, another, another); err != nil {
		t.Fatal(err)
	}
	if n, _ := userNotice(s.state(nil), s.Hook, someone); n.Identity.Name != "" || n.Identity.Image.Name != "" {
		t.Errorf("%+v", n.Identity)
	}
}

// putIn moves a process into a cgroup of its own, until the test ends.
func putIn(t *testing.T, pid int, path string) {
	t.Helper()
	mount := need.Cgroup2(t)
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, home, _ := strings.Cut(string(own), "0::")
	home, _, _ = strings.Cut(home, "\n")
	for i, r := range path {
		if i > 0 && r == '/' || i == len(path)-1 {
			dir := mount + strings.TrimSuffix(path[:i+1], "/")
			if err := os.Mkdir(dir, 0o755); err == nil {
				t.Cleanup(func() {
					if err := os.Remove(dir); err != nil {
						t.Error(err)
					}
				})
			} else if !errors.Is(err, os.ErrExist) {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(mount+path+"/cgroup.procs", []byte(strconv.Itoa(pid)), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(mount+home+"/cgroup.procs", []byte(strconv.Itoa(pid)), 0) })
}

// A cgroup is his if it is below the one that systemd delegates to him.
func TestUserCgroup(t *testing.T) {
	for path, own := range map[string]bool{
		"/user.slice/user-61234.slice/user@61234.service/user.slice/libpod-web.scope": true,
		"/user.slice/user-61234.slice/user@61234.service":                             false, // all that he runs
		"/user.slice/user-61234.slice/session-1.scope":                                false,
		"/user.slice/user-61235.slice/user@61235.service/libpod-web.scope":            false,
		"/user.slice/user-61234.slice/user@61235.service/libpod-web.scope":            false,
		"/system.slice/user.slice/user-61234.slice/user@61234.service/x":              false,
		"/machine.slice/libpod-web.scope":                                             false,
	} {
		t.Run(strings.ReplaceAll(path[1:], "/", ","), func(t *testing.T) {
			s := userPlay(t, someone, "b", "runc", nil)
			putIn(t, s.Init, path)
			n, err := userNotice(s.state(nil), s.Hook, someone)
			switch {
			case own && (err != nil || n.Identity.CgroupPath != path || n.Identity.CgroupID == 0):
				t.Errorf("%+v, %v", n.Identity, err)
			case !own && !errors.Is(err, ErrNotOwn):
				t.Errorf("%+v, %v", n.Identity, err)
			}
		})
	}
}

// Processes that are not his, or no container's, with everything else true.
func TestUserClaims(t *testing.T) {
	s := userPlay(t, someone, "b", "runc", nil)
	theirs := userPlay(t, another, "b", "runc", nil)
	roots := play(t, t.TempDir(), "runc")
	// The kernel's word for whose a user namespace is: root may make one for a user.
	made := userPlay(t, someone, "b", "runc", func(c *exec.Cmd) {
		c.SysProcAttr = inUserNS(someone)
		c.SysProcAttr.Credential = &syscall.Credential{NoSetGroups: true} // root of it
	})
	ended := other(t, nil)
	if err := syscall.Kill(ended, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		state []byte
		hook  int
		uid   uint32
		want  error
	}{
		{"root", s.state(nil), s.Hook, 0, ErrNotOwn},
		{"another's hook and container", theirs.state(nil), theirs.Hook, someone, ErrNotOwn},
		{"another's container", theirs.state(nil), s.Hook, someone, ErrPid},
		{"his hook is another's", s.state(nil), s.Hook, another, ErrNotOwn},
		{"root's container", roots.state(nil), s.Hook, someone, ErrPid},
		{"root's container, and hook", roots.state(nil), roots.Hook, someone, ErrNotOwn},
		{"a namespace that root made", made.state(nil), made.Hook, someone, ErrNotOwn},
		{"the agent", s.state(map[string]any{"pid": os.Getpid()}), s.Hook, someone, ErrPid},
		{"pid 1", s.state(map[string]any{"pid": 1}), s.Hook, someone, ErrPid},
		{"the hook itself", s.state(map[string]any{"pid": s.Hook}), s.Hook, someone, ErrPid},
		{"the runtime", s.state(map[string]any{"pid": s.Runtime}), s.Hook, someone, ErrPid},
		{"a child of the runtime's", s.state(map[string]any{"pid": s.Sibling}), s.Hook, someone, ErrPid},
		{"a container that runs", s.state(map[string]any{"pid": s.Entered}), s.Hook, someone, ErrPid},
		{"somebody who ended", s.state(map[string]any{"pid": ended}), s.Hook, someone, ErrPid},
		{"nobody", s.state(map[string]any{"pid": 0}), s.Hook, someone, ErrPid},
		{"a hook in a container", s.state(nil), s.Boxed, someone, nil},
		{"a hook with another root", s.state(nil), s.Jailed, someone, nil},
		{"another's bundle", s.state(map[string]any{"bundle": theirs.bundle}), s.Hook, someone, ErrBundle},
		{"a directory of root's", s.state(map[string]any{"bundle": "/etc"}), s.Hook, someone, ErrBundle},
		{"no state", []byte("{}"), s.Hook, someone, ErrState},
		{"it runs", s.state(map[string]any{"status": "running"}), s.Hook, someone, ErrState},
		{"an id that is a path", s.state(map[string]any{"id": "../web"}), s.Hook, someone, ErrState},
	} {
		t.Run(test.name, func(t *testing.T) {
			n, init, err := UserNotice(test.state, test.hook, test.uid)
			if err == nil || errors.Is(err, ErrSharedCgroup) || init != nil || n.Source != "" {
				t.Fatalf("believed: %+v, %v", n, err)
			}
			if test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
		})
	}
	if _, err := userNotice(s.state(nil), s.Hook, someone); !errors.Is(err, ErrSharedCgroup) { // or all that shows nothing
		t.Error(err)
	}
}

// Bundles that are not his, or lead to what is not.
func TestUserBundles(t *testing.T) {
	s := userPlay(t, someone, "a/b", "runc", nil)
	config := s.bundle + "/config.json"
	home := filepath.Dir(filepath.Dir(s.bundle))
	for _, test := range []struct {
		name string
		do   func() error
		undo func() error
	}{
		{"config.json is root's", func() error { return os.Chown(config, 0, 0) }, nil},
		{"config.json is another's", func() error { return os.Chown(config, another, another) }, nil},
		{"a link to root's file", func() error { return errors.Join(os.Remove(config), os.Link("/etc/passwd", config)) }, nil},
		{"a symlink to root's file", func() error { return errors.Join(os.Remove(config), os.Symlink("/etc/shadow", config)) }, nil},
		{"a symlink to his own", func() error { return errors.Join(os.Rename(config, config+".1"), os.Symlink("config.json.1", config)) }, nil},
		{"a FIFO", func() error {
			return errors.Join(os.Remove(config), unix.Mkfifo(config, 0o644), os.Chown(config, someone, someone))
		}, nil},
		{"a directory", func() error {
			return errors.Join(os.Remove(config), os.Mkdir(config, 0o755), os.Chown(config, someone, someone))
		}, nil},
		{"too long", func() error { return os.Truncate(config, maxConfig+1) }, nil},
		{"others may write it", func() error { return os.Chmod(config, 0o666) }, nil},
		{"others may write the bundle", func() error { return os.Chmod(s.bundle, 0o777) }, func() error { return os.Chmod(s.bundle, 0o700) }},
		{"the bundle is another's", func() error { return os.Chown(s.bundle, another, another) }, func() error { return os.Chown(s.bundle, someone, someone) }},
		{"another's directory on the way", func() error { return os.Chown(home, another, another) }, func() error { return os.Chown(home, someone, someone) }},
		{"a directory that he may not pass", func() error { return errors.Join(os.Chown(home, 0, 0), os.Chmod(home, 0o700)) },
			func() error { return os.Chown(home, someone, someone) }},
		{"a symlink of his on the way", func() error {
			return errors.Join(os.Rename(home+"/a", home+"/c"), os.Symlink("c", home+"/a"), os.Lchown(home+"/a", someone, someone))
		}, func() error { return errors.Join(os.Remove(home+"/a"), os.Rename(home+"/c", home+"/a")) }},
		{"a root that is not mounted", func() error { return os.WriteFile(config, []byte(`{"root":{"path":"none"}}`), 0) }, nil},
		{"a root of the host's", func() error { return os.WriteFile(config, []byte(`{"root":{"path":"/etc"}}`), 0) }, nil},
		{"the host's root", func() error { return os.WriteFile(config, []byte(`{"root":{"path":"/"}}`), 0) }, nil},
		{"a root out of the bundle", func() error { return os.WriteFile(config, []byte(`{"root":{"path":"/tmp/../etc"}}`), 0) }, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			os.RemoveAll(config)
			writeConfig(t, s.bundle, trueConfig)
			if err := errors.Join(os.Chmod(config, 0o600), os.Chown(config, someone, someone)); err != nil {
				t.Fatal(err)
			}
			if _, err := userNotice(s.state(nil), s.Hook, someone); !errors.Is(err, ErrSharedCgroup) {
				t.Fatalf("before: %v", err)
			}
			if err := test.do(); err != nil {
				t.Fatal(err)
			}
			_, err := userNotice(s.state(nil), s.Hook, someone)
			if test.undo != nil {
				if err := test.undo(); err != nil {
					t.Fatal(err)
				}
			}
			if !errors.Is(err, ErrBundle) {
				t.Errorf("error %v, want %v", err, ErrBundle)
			}
		})
	}
}

// A runtime of root's is not taken for a user's.
func TestUserRuntimes(t *testing.T) {
	for place, config := range map[string]string{
		"io.containerd.runtime.v2.task/moby/web":   trueConfig,
		"io.containerd.runtime.v2.task/k8s.io/web": trueConfig,
		"store/overlay-containers/web/userdata":    strings.Replace(trueConfig, `{"app":"web"}`, `{"io.container.manager":"cri-o"}`, 1),
	} {
		s := userPlay(t, someone, place, "runc", nil)
		writeConfig(t, s.bundle, config)
		if _, err := userNotice(s.state(nil), s.Hook, someone); !errors.Is(err, ErrNotOwn) {
			t.Errorf("%s: %v", place, err)
		}
	}
}

// Ids that are subordinate to a user are not users: with 65536 of them he would have as
// many shares of the agent.
func TestSubordinate(t *testing.T) {
	need.Root(t)
	unshare := need.Command(t, "unshare", "setpriv")
	cmd := exec.Command(unshare[0], "--user", "sh", "-c", "echo $$; read x; exec "+unshare[1]+" --reuid=7 --clear-groups sh -c 'echo $$; read x'")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: someone, Gid: someone}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	lines := bufio.NewReader(out)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	for _, kind := range []string{"uid_map", "gid_map"} { // as newuidmap does
		if err := os.WriteFile(procPath(pid, kind), fmt.Appendf(nil, "0 %d 1\n1 %d 100\n", someone, subid), 0); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Fprintln(in)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(procPath(pid, ""), &st); err != nil || st.Uid != subid+6 {
		t.Fatalf("uid %d, %v", st.Uid, err)
	}
	if err := User(pid, subid+6); !errors.Is(err, ErrNotOwn) {
		t.Errorf("a subordinate id: %v", err)
	}
	if err := User(pid, someone); err != nil {
		t.Errorf("its user: %v", err)
	}
	for uid, want := range map[uint32]bool{someone: true, 0: false} { // on the host
		if err := User(os.Getpid(), uid); (err == nil) != want {
			t.Errorf("uid %d: %v", uid, err)
		}
	}
}

// A user may have mounted what he serves himself on the way to his bundle: nothing below it
// is named.
func TestUserServesHisBundle(t *testing.T) {
	s := userPlay(t, someone, "a/b", "runc", nil)
	served := filepath.Join(filepath.Dir(filepath.Dir(s.bundle)), "served")
	if err := errors.Join(os.Mkdir(served, 0o755), os.Chown(served, someone, someone)); err != nil {
		t.Fatal(err)
	}
	need.DeadFUSE(t, served)
	told := make(chan error, 1)
	go func() {
		_, err := userNotice(s.state(map[string]any{"bundle": served + "/b"}), s.Hook, someone)
		told <- err
	}()
	select {
	case err := <-told:
		if !errors.Is(err, ErrBundle) || !strings.Contains(err.Error(), "fuse") {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("it waits for the user's server")
	}
}
