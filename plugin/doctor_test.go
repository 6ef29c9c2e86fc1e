package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

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
			return checkHooks(dir, true)
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
			return checkHooks(dir, true)
		}, checkFail, "not a regular file"},
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
