package systemd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"probity/evidence/sign"
	"probity/evidence/verify"
)

const (
	within   = 8 * time.Minute // a deadline that is only met when something is broken
	state    = "/var/lib/probity"
	spool    = state + "/spool"
	hookSock = "/run/probity/hook.sock"
	hookFile = "/usr/share/containers/oci/hooks.d/probity-create.json"
	unit     = "probity.service"
)

// said runs a program that has to succeed and returns what it says.
func said(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, code := tried(t, name, args...)
	if code != 0 {
		t.Fatalf("%s %s: exit code %d\n%s", name, strings.Join(args, " "), code, out)
	}
	return out
}

// tried runs a program and returns what it says, and its exit code.
func tried(t testing.TB, name string, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	if exit != nil {
		return string(out), exit.ExitCode()
	}
	return string(out), 0
}

// until waits for something that nobody announces.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	end := time.NewTimer(within)
	defer end.Stop()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for !f() {
		select {
		case <-look.C:
		case <-end.C:
			t.Fatalf("never: %s", what)
		}
	}
}

// property is what systemd says of a unit.
func property(t testing.TB, of, name string) string {
	t.Helper()
	return strings.TrimSpace(said(t, "systemctl", "show", "--value", "--property="+name, of))
}

// mainPid is the agent's.
func mainPid(t testing.TB) int {
	t.Helper()
	pid, err := strconv.Atoi(property(t, unit, "MainPID"))
	if err != nil || pid <= 0 {
		t.Fatalf("MainPID is %d, %v", pid, err)
	}
	return pid
}

// active wants the unit to run, and its agent to be whom systemd takes it for.
func active(t testing.TB) {
	t.Helper()
	if is := property(t, unit, "ActiveState"); is != "active" {
		out, _ := tried(t, "systemctl", "status", "--no-pager", unit)
		t.Fatalf("the unit is %s\n%s", is, out)
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", mainPid(t)))
	if err != nil || exe != "/usr/bin/probity" {
		t.Fatalf("the main process is %q, %v", exe, err)
	}
}

// write replaces a file.
func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// status is some of what the agent says of itself.
type status struct {
	KeyID    string `json:"keyId"`
	LiveRuns int    `json:"liveRuns"`
	Waiting  int    `json:"waiting"`
	Policies struct {
		Policies        int
		Digest, Refused string
	} `json:"policies"`
	Kernel   map[string]any
	Sources  map[string]string `json:"sources"`
	Problems []string          `json:"problems"`
}

// ask asks the agent on its administration socket.
func ask(t testing.TB, path string) (st status) {
	t.Helper()
	client := http.Client{Timeout: within, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", "/run/probity/admin.sock")
	}}}
	r, err := client.Get("http://agent" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(r.Body)
		t.Fatalf("%s: %s: %s", path, r.Status, b)
	}
	if err := json.NewDecoder(r.Body).Decode(&st); err != nil {
		t.Fatal(err)
	}
	return st
}

// idle returns when no run is live and all evidence is on disk.
func idle(t testing.TB) status { t.Helper(); return ask(t, "/idle") }

// report verifies the spool with the node's first key.
func report(t testing.TB, key []byte) verify.Report {
	t.Helper()
	public, err := sign.LoadPublic(key)
	if err != nil {
		t.Fatal(err)
	}
	rep, err := verify.Path(t.Context(), []string{spool}, public, verify.Options{})
	if err != nil || !rep.Sound() {
		t.Fatalf("verify: %+v, %v", rep.Findings, err)
	}
	return rep
}

// layered is bundle with its files in a layer, as an image has them, and with another
// command.
func layered(t testing.TB, id, target string, command ...string) string {
	t.Helper()
	dir := bundle(t, id, 0, target)
	path := func(name string) string { return filepath.Join(dir, name) }
	err := os.Rename(path("rootfs"), path("lower"))
	for _, sub := range []string{"rootfs", "writable"} {
		err = errors.Join(err, os.Mkdir(path(sub), 0o755))
	}
	err = errors.Join(err, unix.Mount("tmpfs", path("writable"), "tmpfs", 0, ""), os.Mkdir(path("writable/upper"), 0o755), os.Mkdir(path("writable/work"), 0o755))
	if err == nil {
		err = unix.Mount("overlay", path("rootfs"), "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", path("lower"), path("writable/upper"), path("writable/work")))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, at := range []string{"rootfs", "writable"} {
			if err := unix.Unmount(path(at), 0); err != nil {
				t.Errorf("unmount %s: %v", path(at), err)
			}
		}
	})
	b, err := os.ReadFile(path("config.json"))
	if err != nil {
		t.Fatal(err)
	}
	args, err := json.Marshal(append([]string{"/bin/target"}, command...))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), `["/bin/target","await","1","hello","7"]`, string(args), 1)
	if text == string(b) {
		t.Fatalf("%s has another command", b)
	}
	write(t, path("config.json"), text)
	return dir
}

// container is one that crun runs, and that waits to be written to.
type container struct {
	id  string
	in  io.WriteCloser
	out bytes.Buffer
	// ended is closed when crun has, with err.
	ended chan struct{}
	err   error
}

// bundle makes a container's directory: the target, which belongs to owner, and the
// hook as the package's file for runtimes says it.
func bundle(t testing.TB, id string, owner int, target string) string {
	t.Helper()
	dir := filepath.Join("/srv", id)
	root := filepath.Join(dir, "rootfs")
	for _, sub := range []string{"bin", "proc", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(target)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "bin/target")
	if err := errors.Join(os.WriteFile(path, b, 0o755), os.Chown(path, owner, owner)); err != nil {
		t.Fatal(err)
	}
	var hook struct{ Hook json.RawMessage }
	if b, err = os.ReadFile(hookFile); err == nil {
		err = json.Unmarshal(b, &hook)
	}
	if err != nil {
		t.Fatal(err)
	}
	type object = map[string]any
	config, err := json.Marshal(object{
		"ociVersion": "1.0.2",
		"process":    object{"user": object{"uid": owner, "gid": owner}, "args": []string{"/bin/target", "await", "1", "hello", "7"}, "cwd": "/"},
		"root":       object{"path": "rootfs"},
		"mounts":     []object{{"destination": "/proc", "type": "proc", "source": "proc"}},
		"hooks":      object{"createRuntime": []json.RawMessage{hook.Hook}},
		"linux":      object{"cgroupsPath": "/crun/" + id, "namespaces": []object{{"type": "pid"}, {"type": "ipc"}, {"type": "mount"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "config.json"), string(config))
	return dir
}

// begin starts a container, and returns when it runs.
func begin(t testing.TB, dir, id string) *container {
	t.Helper()
	c := &container{id: id, ended: make(chan struct{})}
	cmd := exec.Command("crun", "--cgroup-manager", "cgroupfs", "run", "--bundle", dir, id)
	cmd.Stdout, cmd.Stderr = &c.out, &c.out
	var err error
	if c.in, err = cmd.StdinPipe(); err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		c.err = cmd.Wait()
		close(c.ended)
	}()
	until(t, "container "+id+" runs", func() bool {
		select {
		case <-c.ended:
			t.Fatalf("container %s: %v\n%s", id, c.err, c.out.String())
		default:
		}
		b, _ := os.ReadFile(filepath.Join("/sys/fs/cgroup/crun", id, "cgroup.procs"))
		for pid := range strings.FieldsSeq(string(b)) {
			if comm, _ := os.ReadFile("/proc/" + pid + "/comm"); string(comm) == "target\n" {
				return true
			}
		}
		return false
	})
	return c
}

// armed returns when the agent has done all that it does at the start of a container.
func armed(t testing.TB) {
	t.Helper()
	until(t, "the container is armed", func() bool { st := ask(t, "/status"); return st.LiveRuns == 1 && st.Waiting == 0 })
}

// end lets a container go on to its end.
func (c *container) end(t testing.TB) {
	t.Helper()
	err := lastLine(c.in)
	<-c.ended
	if err := errors.Join(err, c.err); err != nil {
		t.Fatalf("container %s: %v\n%s", c.id, err, c.out.String())
	}
}

// lastLine lets a program go on that reads until the end of its input.
func lastLine(in io.WriteCloser) error {
	_, err := in.Write([]byte("\n"))
	if cerr := in.Close(); !errors.Is(cerr, os.ErrClosed) { // who waits for its end may have been first
		err = errors.Join(err, cerr)
	}
	return err
}

// goOn lets it go on to where it waits next, and returns when it has taken that.
func (c *container) goOn(t testing.TB) {
	t.Helper()
	if _, err := c.in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	until(t, "container "+c.id+" goes on", func() bool {
		n, err := unix.IoctlGetInt(int(c.in.(*os.File).Fd()), unix.TIOCINQ)
		return err == nil && n == 0
	})
}

// kernelObjects are the BPF programs, maps and links of the machine.
func kernelObjects(t testing.TB) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for next, err := ebpf.ProgramGetNextID(0); ; next, err = ebpf.ProgramGetNextID(next) {
		if errors.Is(err, os.ErrNotExist) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all[fmt.Sprintf("program %d", next)] = true
	}
	for next, err := ebpf.MapGetNextID(0); ; next, err = ebpf.MapGetNextID(next) {
		if errors.Is(err, os.ErrNotExist) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all[fmt.Sprintf("map %d", next)] = true
	}
	var it link.Iterator
	defer it.Close()
	for it.Next() {
		all[fmt.Sprintf("link %d", it.ID)] = true
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// objectsOf are those that a process has open. Others have some, too: systemd for
// devices of its units, crun for those of its containers.
func objectsOf(t testing.TB, pid int) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	its := map[string]bool{}
	for _, file := range files {
		b, _ := os.ReadFile(file) // the descriptor may be closed by now
		for line := range strings.Lines(string(b)) {
			for field, kind := range map[string]string{"prog_id:": "program", "map_id:": "map", "link_id:": "link"} {
				if id, ok := strings.CutPrefix(line, field); ok {
					its[kind+" "+strings.TrimSpace(id)] = true
				}
			}
		}
	}
	return its
}

// asUser runs a program as nobody, in these groups, and returns its exit code.
func asUser(t testing.TB, groups []uint32, name string, args ...string) (string, int) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534, Groups: groups}}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// groupNumber is that of one of the machine's groups.
func groupNumber(t testing.TB, name string) uint32 {
	t.Helper()
	b, err := os.ReadFile("/etc/group")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Split(line, ":"); len(f) > 2 && f[0] == name {
			n, err := strconv.ParseUint(f[2], 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			return uint32(n)
		}
	}
	t.Fatalf("no group %s:\n%s", name, b)
	return 0
}

// place wants mode and owner of a path.
func place(t testing.TB, path string, mode fs.FileMode, gid uint32) {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Error(err)
	} else if st.Mode&0o7777 != uint32(mode) || st.Uid != 0 || st.Gid != gid {
		t.Errorf("%s is %04o %d:%d, want %04o 0:%d", path, st.Mode&0o7777, st.Uid, st.Gid, mode, gid)
	}
}
