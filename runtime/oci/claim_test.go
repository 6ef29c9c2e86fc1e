package oci

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"probity/tests/need"
)

// rename gives the container that save has written another id.
func rename(t *testing.T, dir, id string) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(dir+"/"+id), os.Rename(dir+"/web", dir+"/"+id)); err != nil {
		t.Fatal(err)
	}
}

// claimsOf reads what all states say.
func claimsOf(t *testing.T, dirs ...string) *Claims {
	t.Helper()
	var all []*Claim
	for _, dir := range dirs {
		states, err := States(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range states {
			c, err := ReadClaim(dir, s.ID)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, c)
		}
	}
	return NewClaims(dirs, all)
}

// What two states claim is nobody's: one process, one cgroup, or one around another's.
// What is left of a container that has ended claims nothing, nor does one without a
// cgroup of its own.
func TestContested(t *testing.T) {
	need.Root(t)
	mount := need.Cgroup2(t)
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, home, _ := strings.Cut(string(own), "0::")
	home, _, _ = strings.Cut(home, "\n")
	web, other := play(t, t.TempDir(), "runc"), play(t, t.TempDir(), "runc")
	top := "/probity-contested-" + strconv.Itoa(web.Entered)
	for _, d := range []string{top, top + "/a", top + "/b", top + "/ab"} {
		if err := os.Mkdir(mount+d, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(mount + d) })
	}
	for pid, in := range map[int]string{web.Entered: top + "/a", other.Entered: top + "/b"} {
		move := func(to string) error {
			return os.WriteFile(mount+to+"/cgroup.procs", []byte(strconv.Itoa(pid)), 0)
		}
		if err := move(in); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { move(home) })
	}
	for _, test := range []struct {
		name        string
		web, other  string // cgroups
		pid         int
		start       uint64
		first, both bool // refused
	}{
		{"each its own", top + "/a", top + "/b", other.Entered, 0, false, false},
		{"names that begin alike", top + "/a", top + "/ab", other.Entered, 0, false, true},
		{"one around the other's", top, top + "/b", other.Entered, 0, true, true},
		{"one around both, by two states", top, top, other.Entered, 0, true, true},
		{"one process", top + "/a", top + "/a", web.Entered, 0, true, true},
		{"one process, one without a cgroup", top + "/a", "", web.Entered, 0, true, true},
		{"one process that has ended", top + "/a", top + "/a", web.Entered, 1, false, true},
		{"around one that has ended", top, top + "/b", other.Entered, 1, false, true},
		{"one says none", top, "", other.Entered, 0, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			runc, crun := t.TempDir(), t.TempDir()
			start := test.start
			if start == 0 {
				start = ticks(t, test.pid)
			}
			saveRunc(t, runc, web.Entered, web.bundle, map[string]any{"cgroup_paths": map[string]string{"": mount + test.web}})
			saveCrun(t, crun, other.Entered, other.bundle, map[string]any{"cgroup-path": test.other, "pid": test.pid, "process-start-time": start})
			rename(t, crun, "other")
			claims := claimsOf(t, runc, crun)
			_, err := Existing(runc, "web", claims)
			if (err != nil) != test.first || test.first && !errors.Is(err, ErrContested) {
				t.Errorf("the first: %v", err)
			}
			if _, err := Existing(crun, "other", claims); (err != nil) != test.both {
				t.Errorf("the other: %v", err)
			} else if test.first && !errors.Is(err, ErrContested) {
				t.Errorf("the other: %v, which is not why", err)
			}
		})
	}
}

// A cgroup that is around the agent's too is no reason to call the container's shared,
// if the one that init is in is not.
func TestBlinding(t *testing.T) {
	need.Root(t)
	mount := need.Cgroup2(t)
	s := play(t, t.TempDir(), "runc")
	top := "/probity-blinding-" + strconv.Itoa(s.Entered)
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, home, _ := strings.Cut(string(own), "0::")
	home, _, _ = strings.Cut(home, "\n")
	move := func(pid int, to string) {
		t.Helper()
		if err := os.WriteFile(mount+to+"/cgroup.procs", []byte(strconv.Itoa(pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{top, top + "/box", top + "/agent"} {
		if err := os.Mkdir(mount+d, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Rmdir(mount + d) })
	}
	t.Cleanup(func() { move(os.Getpid(), home); move(s.Entered, home) })
	move(os.Getpid(), top+"/agent")
	move(s.Entered, top+"/box")
	dir := t.TempDir()
	saveRunc(t, dir, s.Entered, s.bundle, map[string]any{"cgroup_paths": map[string]string{"": mount + top}})
	if n, err := Existing(dir, "web", nil); !errors.Is(err, ErrPid) || errors.Is(err, ErrSharedCgroup) {
		t.Errorf("%+v, %v", n, err)
	}
	saveRunc(t, dir, s.Entered, s.bundle, map[string]any{"cgroup_paths": map[string]string{"": mount + top + "/box"}})
	if n, err := Existing(dir, "web", nil); err != nil || n.Identity.CgroupPath != top+"/box" {
		t.Errorf("%+v, %v", n, err)
	}
	move(os.Getpid(), top) // now it does share
	move(s.Entered, top)
	saveRunc(t, dir, s.Entered, s.bundle, map[string]any{"cgroup_paths": map[string]string{"": mount + top}})
	if n, err := Existing(dir, "web", nil); !errors.Is(err, ErrSharedCgroup) {
		t.Errorf("%+v, %v", n, err)
	}
}

// A container whose first process has ended has not, if others run on in its cgroup:
// nobody would tell of them. What is left of one that has ended, in a cgroup that is
// another's by now, has.
func TestOutlived(t *testing.T) {
	need.Root(t)
	mount := need.Cgroup2(t)
	s := play(t, t.TempDir(), "runc")
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, home, _ := strings.Cut(string(own), "0::")
	home, _, _ = strings.Cut(home, "\n")
	top := "/probity-outlived-" + strconv.Itoa(s.Entered)
	if err := os.Mkdir(mount+top, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Rmdir(mount + top) })
	move := func(to string) {
		if err := os.WriteFile(mount+to+"/cgroup.procs", []byte(strconv.Itoa(s.Entered)), 0); err != nil {
			t.Fatal(err)
		}
	}
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	kubernetes := filepath.Join(t.TempDir(), "io.containerd.runtime.v2.task", "k8s.io", "web")
	if err := os.MkdirAll(kubernetes, 0o755); err != nil {
		t.Fatal(err)
	}
	writeConfig(t, kubernetes, trueConfig)
	dir, more := t.TempDir(), t.TempDir()
	look := func(what string, pid int, bundle string, want error) {
		t.Helper()
		saveRunc(t, dir, s.Entered, bundle, map[string]any{"init_process_pid": pid, "init_process_start": 1, "cgroup_paths": map[string]string{"": mount + top}})
		if _, err := Existing(dir, "web", claimsOf(t, dir, more)); !errors.Is(err, want) || errors.Is(err, ErrOutlived) != (want == ErrOutlived) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	look("nobody is there", gone.Process.Pid, s.bundle, ErrEnded)
	move(top)
	t.Cleanup(func() { move(home) })
	look("its pid is nobody's", gone.Process.Pid, s.bundle, ErrOutlived)
	look("its pid is another's", s.Entered, s.bundle, ErrOutlived)
	look("containerd's", gone.Process.Pid, kubernetes, ErrEnded)
	saveRunc(t, more, s.Entered, s.bundle, map[string]any{"cgroup_paths": map[string]string{"": mount + top}})
	rename(t, more, "other")
	look("the cgroup is another's", gone.Process.Pid, s.bundle, ErrEnded)
}

// A bundle in a state directory is none: what is there is called as containers are.
func TestBundleAmongStates(t *testing.T) {
	s := play(t, t.TempDir(), "runc")
	dir := t.TempDir()
	for _, bundle := range []string{dir, dir + "/web", dir + "/evil/b"} {
		if err := os.MkdirAll(bundle, 0o755); err != nil {
			t.Fatal(err)
		}
		writeConfig(t, bundle, trueConfig)
		saveRunc(t, dir, s.Entered, bundle, nil)
		link := t.TempDir() + "/states"
		if err := os.Symlink(dir, link); err != nil {
			t.Fatal(err)
		}
		for _, known := range []string{dir, link} {
			if n, err := Existing(dir, "web", NewClaims([]string{"/none", known}, nil)); !errors.Is(err, ErrBundle) {
				t.Errorf("%s, among the states of %s: %+v, %v", bundle, known, n, err)
			}
		}
	}
	beside := dir + "-beside"
	if err := os.Mkdir(beside, 0o755); err != nil {
		t.Fatal(err)
	}
	writeConfig(t, beside, trueConfig)
	saveRunc(t, dir, s.Entered, beside, nil)
	if _, err := Existing(dir, "web", NewClaims([]string{dir}, nil)); !errors.Is(err, ErrSharedCgroup) {
		t.Errorf("a bundle beside it: %v", err)
	}
}
