package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"probity/tests/need"
)

// Doctor runs as root: what anybody else could have put there is not run, however it
// is reached.
func TestTrusted(t *testing.T) {
	need.Root(t)
	dir := t.TempDir() // below /tmp: sticky, where nobody replaces what root owns
	put := func(name string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o755), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	link := func(name, to string) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(to, path)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := put("good", 0o755)
	group, others := put("group", 0o775), put("others", 0o757)
	open := put("open/prog", 0o755)
	users := put("users/prog", 0o755)
	his := put("his", 0o755)
	hisLink := link("hislink", good)
	throughOpen := link("open/link", good)
	if err := errors.Join(os.Chmod(filepath.Dir(open), 0o777), os.Chown(filepath.Dir(users), 1, 1), os.Chown(his, 1, 1), os.Lchown(hisLink, 1, 1)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path string
		real string // "": refused because of others
	}{
		"root's":                       {good, good},
		"by a link":                    {link("link", good), good},
		"by a relative link":           {link("d/link", "../good"), good},
		"the group may write":          {group, ""},
		"others may write":             {others, ""},
		"directory that others write":  {open, ""},
		"directory of a user":          {users, ""},
		"a user's file":                {his, ""},
		"a user's link":                {hisLink, ""},
		"a link in such a directory":   {throughOpen, ""},
		"a link to a link in one":      {link("far", throughOpen), ""},
		"a link to what others change": {link("l2", others), ""},
	} {
		got, err := trusted(c.path)
		if got != c.real || (c.real == "") != errors.Is(err, errOthers) {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.real)
		}
	}
	link("loop", "loop")
	for _, path := range []string{"relative", dir + "/absent", dir + "/loop"} {
		if got, err := trusted(path); err == nil || errors.Is(err, errOthers) {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
}

// script is a program of root's.
func script(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := errors.Join(os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755), os.Chmod(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// The runtimes that are there are asked for their versions, the caller's PATH is not
// asked for them, and what others could have put there is not run.
func TestDoctorRuntimes(t *testing.T) {
	need.Root(t)
	dir, caller := t.TempDir(), t.TempDir()
	ran := filepath.Join(t.TempDir(), "ran")
	script(t, dir, "containerd", `[ "$1" = --version ] && echo "containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6+b1"`)
	script(t, dir, "crio", `printf 'crio version 1.36.0\nVersion:        1.36.0\n'`)
	script(t, dir, "podman", `printf '\033[31mno such thing\n' >&2; exit 7`)
	if err := os.Chmod(script(t, dir, "crun", "touch "+ran), 0o777); err != nil {
		t.Fatal(err)
	}
	script(t, dir, "dockerd", `printf 'who knows\n'`)
	script(t, caller, "runc", "touch "+ran)
	t.Setenv("PATH", caller+":"+os.Getenv("PATH"))
	h := &host{dirs: []string{dir}}
	got := h.checkRuntimes(t.Context())
	for _, want := range []struct{ name, status, what string }{
		{"containerd", checkOK, "1.7.24~ds1"}, {"cri-o", checkOK, "1.36.0"}, {"podman", checkUnknown, "no such thing"},
		{"crun", checkFail, "others than root may change it"}, {"docker", checkUnknown, "no version in its answer"}, {"runtimes", checkSkip, "not installed: runc"},
	} {
		found := false
		for _, ch := range got {
			found = found || ch.Name == want.name && ch.Status == want.status && strings.Contains(ch.What, want.what)
		}
		if !found {
			t.Errorf("no %s %s with %q in\n%+v", want.name, want.status, want.what, got)
		}
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("a program was run that others may change, or that only PATH names")
	}
	if got := (&host{dirs: []string{t.TempDir()}}).checkRuntimes(t.Context()); len(got) != 1 || got[0].Status != checkWarn {
		t.Errorf("where there is none: %+v", got)
	}
}

// One that never answers is unknown when the time is over, and nothing of it is left.
func TestDoctorRuntimeHangs(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	script(t, dir, "podman", "cat "+fifo+" & wait") // with a child that hangs, too
	// Its child opens the FIFO: then the time is over.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		w, err := os.OpenFile(fifo, os.O_WRONLY, 0)
		cancel()
		if err == nil {
			// Nobody reads any more once both were killed.
			for err == nil {
				_, err = w.Write([]byte("x"))
			}
			w.Close()
		}
	}()
	got := (&host{dirs: []string{dir}}).checkRuntimes(ctx)
	if len(got) == 0 || got[0].Name != "podman" || got[0].Status != checkUnknown || !strings.Contains(got[0].What, "no answer") {
		t.Fatalf("%+v", got)
	}
	if out, err := exec.Command("fuser", fifo).CombinedOutput(); err == nil && strings.TrimSpace(string(out)) != "" {
		t.Errorf("left behind: %s", out)
	}
}

// A program that prints without end does not fill the memory.
func TestTellIsBounded(t *testing.T) {
	need.Root(t)
	endless := script(t, t.TempDir(), "p", "exec head -c 5000000 /dev/zero")
	if _, err := tell(t.Context(), endless); err == nil || !strings.Contains(err.Error(), "prints more than") {
		t.Errorf("%v", err)
	}
}

func TestUnitOf(t *testing.T) {
	for text, want := range map[string]string{
		"0::/system.slice/containerd.service\n":                           "containerd.service",
		"12:pids:/system.slice/k3s.service\n0::/system.slice/k3s.service": "k3s.service",
		"0::/user.slice/user-0.slice/session-1.scope\n":                   "",
		"0::/system.slice/a$(reboot).service\n":                           "",
		"0::/system.slice/containerd.service/sub\n":                       "containerd.service",
		"": "",
	} {
		if got := unitOf(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// What is quoted reaches a shell as it was.
func TestQuote(t *testing.T) {
	for _, s := range []string{"/etc/containerd/config.toml", "a b", "it's", `$(x) "y"`, "*", "", "-e"} {
		out, err := exec.Command("/bin/sh", "-c", "printf %s "+quote(s)).Output()
		if err != nil || string(out) != s && s != "-e" {
			t.Errorf("%q: %q, %v", s, out, err)
		}
	}
}
