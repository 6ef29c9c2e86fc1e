package oci

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"probity/runtime/container"
	"probity/tests/need"
)

// ticks is when a process started.
func ticks(t *testing.T, pid int) uint64 {
	t.Helper()
	n, err := StartTicks(pid)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// saveRunc writes the state of container web as runc does, with members of it
// replaced or, by nil, removed.
func saveRunc(t *testing.T, dir string, pid int, bundle string, change map[string]any) {
	t.Helper()
	m := map[string]any{
		"id": "web", "init_process_pid": pid, "init_process_start": ticks(t, pid), "created": "2026-11-23T06:09:24.89628817Z", "rootless": false,
		"cgroup_paths": map[string]string{"cpu": "/sys/fs/cgroup/cpu/web"}, "namespace_paths": map[string]string{"NEWNS": "/proc/1/ns/mnt"},
		"config": map[string]any{"rootfs": bundle + "/rootfs", "labels": []string{"app=web", "bundle=/of/an/annotation", "bundle=" + bundle}},
	}
	save(t, dir, "state.json", m, change)
}

// saveCrun does so as crun does.
func saveCrun(t *testing.T, dir string, pid int, bundle string, change map[string]any) {
	t.Helper()
	m := map[string]any{
		"pid": pid, "process-start-time": ticks(t, pid), "cgroup-path": "", "scope": "", "rootfs": "/", "systemd-cgroup": false, "bundle": bundle,
		"created": "2026-11-23T06:09:24.896288Z", "detached": true, "external_descriptors": `["/dev/null","/dev/null","/dev/null"]`,
	}
	save(t, dir, "status", m, change)
}

func save(t *testing.T, dir, name string, m, change map[string]any) {
	t.Helper()
	for k, v := range change {
		if v == nil {
			delete(m, k)
		} else {
			m[k] = v
		}
	}
	b, err := json.Marshal(m)
	if err == nil {
		err = errors.Join(os.MkdirAll(dir+"/web", 0o711), os.WriteFile(dir+"/web/"+name, b, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Of a state that runc or crun saved the notice is what the hook's was, but that
// its root file system has been entered. The processes of a test share its cgroup,
// so the truth comes with ErrSharedCgroup here, as in TestTrueState.
func TestExisting(t *testing.T) {
	s := play(t, t.TempDir(), "runc")
	for runtime, save := range map[container.Runtime]func(*testing.T, string, int, string, map[string]any){container.Runc: saveRunc, container.Crun: saveCrun} {
		dir := t.TempDir()
		save(t, dir, s.Entered, s.bundle, nil)
		states, err := States(dir)
		if err != nil || !slices.Equal(ids(states), []string{"web"}) {
			t.Fatalf("%s: %v, %v", runtime, states, err)
		}
		n, err := Existing(dir, "web", nil)
		if !errors.Is(err, ErrSharedCgroup) {
			t.Fatal(err)
		}
		if n.At == 0 {
			t.Error("no time")
		}
		n.At = 0
		truth := container.Notice{
			Source: "state:" + dir, Kind: container.Existing, Pid: s.Entered, Bundle: s.bundle,
			Command: container.Command{Arg0: "web", Path: "/opt/bin:/bin", Dir: "/srv"},
			Identity: container.Identity{
				Runtime: runtime, ID: "web", Name: "web", Annotations: map[string]string{"app": "web"}, InitStart: ticks(t, s.Entered),
				Image: container.Image{DigestReason: "a saved state does not have the image"},
			},
		}
		if !reflect.DeepEqual(n, truth) {
			t.Errorf("%+v\nwant %+v", n, truth)
		}
	}
}

// What a state claims and /proc does not bear out is not believed.
func TestExistingLies(t *testing.T) {
	s := play(t, t.TempDir(), "runc")
	start := func(pid int) map[string]any {
		return map[string]any{"init_process_pid": pid, "init_process_start": ticks(t, pid)}
	}
	another := t.TempDir()
	writeConfig(t, another, trueConfig)
	if err := os.Chmod(another, 0o777); err != nil {
		t.Fatal(err)
	}
	kubernetes := filepath.Join(t.TempDir(), "io.containerd.runtime.v2.task", "k8s.io", "web")
	if err := os.MkdirAll(kubernetes, 0o755); err != nil {
		t.Fatal(err)
	}
	writeConfig(t, kubernetes, trueConfig)
	for _, test := range []struct {
		name   string
		change map[string]any
		want   error
	}{
		{"a pid that was used again", map[string]any{"init_process_start": ticks(t, s.Entered) - 1}, ErrEnded},
		{"no start", map[string]any{"init_process_start": nil}, ErrState},
		{"no pid", map[string]any{"init_process_pid": nil}, ErrState},
		{"a pid that nobody can have", map[string]any{"init_process_pid": maxPid + 1}, ErrState},
		{"a negative pid", map[string]any{"init_process_pid": -1}, ErrState},
		{"pid 1", start(1), ErrPid},
		{"the agent", start(os.Getpid()), ErrPid},
		{"a process of the host", start(s.Sibling), ErrPid},
		{"a process with a mount namespace in the host's root", start(s.Init), ErrPid},
		{"a process that was only moved to another root", start(s.Jailed), ErrPid},
		{"a thread", map[string]any{"init_process_pid": threadOf(t, s.Entered)}, errAny},
		{"another container's", map[string]any{"id": "other"}, ErrState},
		{"another cgroup", map[string]any{"cgroup_paths": map[string]string{"": "/sys/fs/cgroup/none/web"}}, errAny},
		{"no labels", map[string]any{"config": map[string]any{}}, ErrState},
		{"the last label is an annotation", map[string]any{"config": map[string]any{"labels": []string{"bundle=" + s.bundle, "a=b"}}}, ErrState},
		{"a bundle that is not there", map[string]any{"config": map[string]any{"labels": []string{"bundle=/none"}}}, ErrBundle},
		{"a bundle that anybody may write", map[string]any{"config": map[string]any{"labels": []string{"bundle=" + another}}}, ErrBundle},
		{"containerd's", map[string]any{"config": map[string]any{"labels": []string{"bundle=" + kubernetes}}}, ErrNotHere},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			saveRunc(t, dir, s.Entered, s.bundle, test.change)
			n, err := Existing(dir, "web", nil)
			if err == nil || test.want != errAny && !errors.Is(err, test.want) || test.want == errAny && errors.Is(err, ErrSharedCgroup) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			if !reflect.DeepEqual(n, container.Notice{}) {
				t.Errorf("a notice with it: %+v", n)
			}
		})
	}
	dir := t.TempDir()
	saveRunc(t, dir, s.Entered, s.bundle, nil)
	// One after the other: each is as the one before left it.
	for _, c := range []struct {
		what   string
		change func() error
	}{
		{"anybody's to write", func() error { return os.Chmod(dir+"/web/state.json", 0o606) }},
		{"somebody else's", func() error {
			return errors.Join(os.Chmod(dir+"/web/state.json", 0o600), os.Chown(dir+"/web/state.json", 4711, 0))
		}},
		{"a FIFO", func() error {
			return errors.Join(os.Remove(dir+"/web/state.json"), unix.Mkfifo(dir+"/web/state.json", 0o600))
		}},
		{"a symlink", func() error {
			return errors.Join(os.Remove(dir+"/web/state.json"), os.Symlink("/etc/passwd", dir+"/web/state.json"))
		}},
		{"not there", func() error { return os.Remove(dir + "/web/state.json") }},
	} {
		if err := c.change(); err != nil {
			t.Fatal(err)
		}
		if _, err := Existing(dir, "web", nil); err == nil || errors.Is(err, ErrSharedCgroup) {
			t.Errorf("a state that is %s: %v", c.what, err)
		}
	}
}

// The run's cgroup is the one that the runtime made, wherever below it init is by
// now: an earlier agent knew it by that one.
func TestExistingInItsCgroup(t *testing.T) {
	need.Root(t)
	mount := need.Cgroup2(t)
	s := play(t, t.TempDir(), "runc")
	name := "/probity-existing-" + strconv.Itoa(s.Entered)
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, home, _ := strings.Cut(string(own), "0::")
	home, _, _ = strings.Cut(home, "\n")
	move := func(to string) {
		t.Helper()
		if err := os.WriteFile(mount+to+"/cgroup.procs", []byte(strconv.Itoa(s.Entered)), 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{name, name + "/init.scope"} {
		if err := os.Mkdir(mount+d, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(mount + d) })
	}
	t.Cleanup(func() { move(home) })
	var st unix.Stat_t
	if err := unix.Stat(mount+name, &st); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	saveRunc(t, dir, s.Entered, s.bundle, map[string]any{"cgroup_paths": map[string]string{"": mount + name}})
	crun := t.TempDir()
	saveCrun(t, crun, s.Entered, s.bundle, map[string]any{"cgroup-path": name})
	for _, in := range []string{name, name + "/init.scope"} {
		move(in)
		for _, dir := range []string{dir, crun} {
			n, err := Existing(dir, "web", nil)
			if err != nil || n.Identity.CgroupPath != name || n.Identity.CgroupID != st.Ino || n.Identity.InitStart != 0 {
				t.Errorf("init in %s: cgroup %q, %d, %v; want %q, %d", in, n.Identity.CgroupPath, n.Identity.CgroupID, err, name, st.Ino)
			}
		}
	}
	saveRunc(t, dir, s.Entered, s.bundle, map[string]any{"cgroup_paths": map[string]string{"": mount + name + "/init"}})
	if _, err := Existing(dir, "web", nil); !errors.Is(err, ErrPid) {
		t.Errorf("a cgroup whose name only begins alike: %v", err)
	}
	move(home)
	saveRunc(t, dir, s.Entered, s.bundle, map[string]any{"cgroup_paths": map[string]string{"": mount + name}})
	if n, err := Existing(dir, "web", nil); err == nil {
		t.Errorf("init has left its cgroup: %+v", n)
	}
}

func ids(states []Saved) (ids []string) {
	for _, s := range states {
		ids = append(ids, s.ID)
	}
	return ids
}

func TestStates(t *testing.T) {
	if states, err := States(t.TempDir() + "/none"); err != nil || states != nil {
		t.Errorf("a directory that is not there: %v, %v", states, err)
	}
	dir := t.TempDir()
	for _, name := range []string{"b", "a", ".empty-directory", "not an id"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(dir+"/file", nil, 0o600), os.Symlink("a", dir+"/link")); err != nil {
		t.Fatal(err)
	}
	before, err := States(dir)
	if err != nil || !slices.Equal(ids(before), []string{"a", "b"}) {
		t.Errorf("%v, %v", before, err)
	}
	// The id is used again.
	if err := errors.Join(os.Rename(dir+"/b", t.TempDir()+"/b"), os.Mkdir(dir+"/b", 0o700)); err != nil {
		t.Fatal(err)
	}
	if after, err := States(dir); err != nil || len(after) != 2 || after[0] != before[0] || after[1] == before[1] {
		t.Errorf("%v, then %v, %v", before, after, err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if states, err := States(dir); err == nil || states != nil {
		t.Errorf("a directory that anybody may write to: %v, %v", states, err)
	}
}

func FuzzParseSaved(f *testing.F) {
	f.Add([]byte(`{"id":"web","init_process_pid":18246,"init_process_start":6336152,"cgroup_paths":{"":"/sys/fs/cgroup/unified/web"},"config":{"labels":["bundle=/b"]}}`))
	f.Add([]byte(`{"pid":7,"process-start-time":8,"cgroup-path":"/web","bundle":"/b"}`))
	f.Add([]byte(`{"pid":7,"process-start-time":-8,"cgroup-path":null,"bundle":"b"}`))
	f.Add([]byte(`{"init_process_pid":1,"init_process_start":1,"config":null,"cgroup_paths":null}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, parse := range []func([]byte) (saved, error){parseRuncState, parseCrunStatus} {
			s, err := parse(in)
			if err != nil {
				continue
			}
			if s.pid <= 0 || s.pid > maxPid || s.start == 0 || !strings.HasPrefix(s.bundle, "/") || !s.runtime.Valid() {
				t.Fatalf("%+v", s)
			}
		}
	})
}
