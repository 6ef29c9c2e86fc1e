package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"probity/runtime/handoff"
	"probity/runtime/handoff/wire"
	"probity/tests/need"
)

// Each failure is provoked, and each says what to do.
func TestDoctor(t *testing.T) {
	need.Root(t)
	put := func(t *testing.T, path, text string, mode os.FileMode) {
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	hook := filepath.Join(t.TempDir(), "probity-hook")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", hook, "probity/hook")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	shipped, err := os.ReadFile("../packaging/hooks/probity-create.json")
	if err != nil {
		t.Fatal(err)
	}
	ours := func(path string) string {
		return strings.Replace(string(shipped), "/usr/libexec/probity/probity-hook", path, 1)
	}
	hooks := func(files map[string]string) func(*testing.T) []check {
		return func(t *testing.T) []check {
			dir := t.TempDir()
			for name, text := range files {
				put(t, filepath.Join(dir, name), text, 0o644)
			}
			return checkHooks(dir, true, wire.DefaultPath)
		}
	}
	program := func(text string, mode os.FileMode) func(*testing.T) []check {
		return func(t *testing.T) []check {
			path := filepath.Join(t.TempDir(), "hook")
			put(t, path, text, mode)
			return []check{checkProgram(path)}
		}
	}
	socket := func(change func(path string) error) func(*testing.T) []check {
		return func(t *testing.T) []check {
			dir := t.TempDir()
			path := filepath.Join(dir, "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if err := change(path); err != nil {
				t.Fatal(err)
			}
			return []check{checkSocket("hook socket", path)}
		}
	}
	for name, c := range map[string]struct {
		look   func(*testing.T) []check
		result string
		reason string
	}{
		"hook well":         {hooks(map[string]string{"probity-create.json": ours(hook)}), checkOK, ""},
		"no hook":           {hooks(nil), checkFail, "has no probity-create.json"},
		"a stranger's file": {hooks(map[string]string{"probity-create.json": ours(hook), "x.json": "{"}), checkFail, "x.json"},
		"program missing":   {hooks(map[string]string{"probity-create.json": ours("/nonexistent/hook")}), checkFail, "no such file"},
		"not executable":    {program("x", 0o644), checkFail, "not executable"},
		"others may write":  {program("x", 0o777), checkFail, "others than root"},
		"a script":          {program("#!/bin/sh\n", 0o755), checkFail, "not an ELF program"},
		"not static":        {func(*testing.T) []check { return []check{checkProgram("/bin/sh")} }, checkFail, "not static"},
		"hook is a FIFO": {func(t *testing.T) []check {
			dir := t.TempDir()
			if err := unix.Mkfifo(filepath.Join(dir, "f.json"), 0o600); err != nil {
				t.Fatal(err)
			}
			return checkHooks(dir, true, wire.DefaultPath)
		}, checkFail, "not a regular file"},
		"hook asks elsewhere": {func(t *testing.T) []check {
			dir := t.TempDir()
			put(t, filepath.Join(dir, "probity-create.json"), ours(hook), 0o644)
			return checkHooks(dir, true, "/run/elsewhere.sock")
		}, checkFail, "asks on /run/probity/hook.sock, the agent listens on /run/elsewhere.sock"},
		"hook told where": {func(t *testing.T) []check {
			dir := t.TempDir()
			text := strings.Replace(ours(hook), `"createRuntime"],`, `"createRuntime", "--fail-policy", "/x", "--socket", "/run/elsewhere.sock"],`, 1)
			put(t, filepath.Join(dir, "probity-create.json"), text, 0o644)
			return checkHooks(dir, true, "/run/elsewhere.sock")
		}, checkOK, ""},
		"hook without a socket": {func(t *testing.T) []check {
			dir := t.TempDir()
			put(t, filepath.Join(dir, "probity-create.json"), ours(hook), 0o644)
			return checkHooks(dir, true, "none")
		}, checkWarn, "no hook socket"},
		"socket of nobody": {func(t *testing.T) []check {
			path := filepath.Join(t.TempDir(), "s")
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
			if err != nil {
				t.Fatal(err)
			}
			l.SetUnlinkOnClose(false)
			l.Close()
			return []check{checkSocket("hook socket", path)}
		}, checkFail, "nobody listens"},
		"the agent's own": {func(t *testing.T) []check {
			path := filepath.Join(t.TempDir(), "s")
			l, err := handoff.Listen(path, 0) // as the agent does
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			return []check{checkSocket("hook socket", path)}
		}, checkOK, ""},
		"socket by a link": {func(t *testing.T) []check {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "a b"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("a b", filepath.Join(dir, "l")); err != nil {
				t.Fatal(err)
			}
			l, err := net.Listen("unix", filepath.Join(dir, "a b", "s"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			return []check{checkSocket("hook socket", filepath.Join(dir, "l", "s"))}
		}, checkOK, ""},
		"socket well":         {socket(func(p string) error { return nil }), checkOK, ""},
		"socket absent":       {socket(os.Remove), checkFail, "is absent"},
		"socket of another":   {socket(func(p string) error { return os.Chown(p, 1, 1) }), checkFail, "others than root"},
		"directory of all":    {socket(func(p string) error { return os.Chmod(filepath.Dir(p), 0o777) }), checkFail, "others than root"},
		"a file is no socket": {func(*testing.T) []check { return []check{checkSocket("hook socket", "/etc/passwd")} }, checkFail, "not a socket"},
		"configuration value": {func(t *testing.T) []check {
			path := filepath.Join(t.TempDir(), "probity.yaml")
			put(t, path, "spoolQuotaMiB: 3\nhookSocket: /x\n", 0o644)
			cfg, c := checkConfig(path, true)
			if cfg.HookSocket != "/x" || cfg.AdminSocket != defaultAdmin {
				t.Errorf("its sockets: %q and %q", cfg.HookSocket, cfg.AdminSocket)
			}
			return []check{c}
		}, checkFail, "spoolQuotaMiB: 3"},
		"configuration": {func(t *testing.T) []check { _, c := checkConfig("/etc/passwd", true); return []check{c} }, checkFail, "/etc/passwd"},
	} {
		t.Run(name, func(t *testing.T) {
			worst, reasons := checkOK, ""
			for _, got := range c.look(t) {
				if got.Result != checkOK {
					worst, reasons = got.Result, reasons+got.Reason
				}
				if (got.Do == "") != (got.Result == checkOK) {
					t.Errorf("%+v: what to do goes with what is not well", got)
				}
			}
			if worst != c.result || !strings.Contains(reasons, c.reason) {
				t.Errorf("%s (%s), want %s (%s)", worst, reasons, c.result, c.reason)
			}
		})
	}
}

// A script that asks learns of a warning: here a hook that has nowhere to ask.
func TestDoctorWarningIsOne(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	hook, hooks, admin, file := filepath.Join(dir, "hook"), filepath.Join(dir, "hooks"), filepath.Join(dir, "admin.sock"), filepath.Join(dir, "probity.yaml")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", hook, "probity/hook")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l, err := net.Listen("unix", admin)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Mkdir(hooks, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		filepath.Join(hooks, "probity-create.json"): `{"hook":{"path":"` + hook + `","args":["probity-hook","createRuntime"]}}`,
		file: "hookSocket: none\nadminSocket: " + admin + "\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var out, errs bytes.Buffer
	code := run(context.Background(), []string{"doctor", "--config", file, "--hooks-dir", hooks}, nil, &out, &errs)
	if fails := strings.Contains(out.String(), "  fail  "); code != exitFinding || fails || !strings.Contains(out.String(), "no hook socket") {
		t.Errorf("exit code %d, want %d and nothing but a warning\n%s%s", code, exitFinding, out.String(), errs.String())
	}
}
