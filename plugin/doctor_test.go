package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"probity/agent"
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
	hooksOf := func(files map[string]string) func(*testing.T) []check {
		return func(t *testing.T) []check {
			dir := t.TempDir()
			for name, text := range files {
				put(t, filepath.Join(dir, name), text, 0o644)
			}
			return checkHooks(dir, true, wire.DefaultPath)
		}
	}
	policies := func(files map[string]string) func(*testing.T) []check {
		return func(t *testing.T) []check {
			dir := t.TempDir()
			for name, text := range files {
				put(t, filepath.Join(dir, name), text, 0o644)
			}
			return []check{checkPolicies(agent.Config{Policies: dir})}
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
		"hook well":         {hooksOf(map[string]string{createHook: ours(hook), poststopHook: ours(hook)}), checkOK, ""},
		"no poststop hook":  {hooksOf(map[string]string{createHook: ours(hook)}), checkWarn, poststopHook + ": absent"},
		"no hook":           {hooksOf(nil), checkFail, "no probity-create.json"},
		"a stranger's file": {hooksOf(map[string]string{"probity-create.json": ours(hook), "x.json": "{"}), checkFail, "x.json"},
		"program missing":   {hooksOf(map[string]string{"probity-create.json": ours("/nonexistent/hook")}), checkFail, "no such file"},
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
			put(t, filepath.Join(dir, createHook), ours(hook), 0o644)
			put(t, filepath.Join(dir, poststopHook), ours(hook), 0o644)
			return checkHooks(dir, true, "/run/elsewhere.sock")
		}, checkFail, "asks on /run/probity/hook.sock, the agent listens on /run/elsewhere.sock"},
		"hook told where": {func(t *testing.T) []check {
			dir := t.TempDir()
			text := strings.Replace(ours(hook), `"createRuntime"],`, `"createRuntime", "--fail-policy", "/x", "--socket", "/run/elsewhere.sock"],`, 1)
			put(t, filepath.Join(dir, createHook), text, 0o644)
			put(t, filepath.Join(dir, poststopHook), text, 0o644)
			return checkHooks(dir, true, "/run/elsewhere.sock")
		}, checkOK, ""},
		"poststop asks elsewhere": {func(t *testing.T) []check {
			dir := t.TempDir()
			put(t, filepath.Join(dir, createHook), ours(hook), 0o644)
			put(t, filepath.Join(dir, poststopHook), strings.Replace(ours(hook), `"createRuntime"],`, `"createRuntime", "--socket", "/run/old.sock"],`, 1), 0o644)
			return checkHooks(dir, true, wire.DefaultPath)
		}, checkFail, poststopHook + ": it asks on /run/old.sock"},
		"no hook is wanted": {func(t *testing.T) []check { return checkHooks(t.TempDir(), true, "none") }, checkOK, ""},
		"no podman":         {func(t *testing.T) []check { return checkHooks(t.TempDir(), false, wire.DefaultPath) }, checkOK, ""},
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
		"socket absent":       {socket(os.Remove), checkFail, "absent: the agent does not run"},
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
		"configuration group": {func(t *testing.T) []check {
			path := filepath.Join(t.TempDir(), "probity.yaml")
			put(t, path, "group: no-such-group\n", 0o644)
			_, c := checkConfig(path, true)
			return []check{c}
		}, checkFail, "no-such-group"},
		"policies":        {policies(map[string]string{"a.yaml": "name: a\nprobes:\n  - {id: x, type: tracepoint, event: 'sched:sched_process_exec'}\n"}), checkOK, ""},
		"no policy":       {policies(nil), checkWarn, "nothing is probed"},
		"a broken policy": {policies(map[string]string{"a.yaml": "name: [\n"}), checkFail, "the agent does not start"},
		"no policies":     {func(*testing.T) []check { return []check{checkPolicies(agent.Config{Policies: "/nonexistent"})} }, checkFail, "absent"},
		"configuration":   {func(t *testing.T) []check { _, c := checkConfig("/etc/passwd", true); return []check{c} }, checkFail, "/etc/passwd"},
	} {
		t.Run(name, func(t *testing.T) {
			worst, reasons := checkOK, ""
			for _, got := range c.look(t) {
				if got.Status != checkOK && got.Status != checkSkip {
					worst, reasons = worse(worst, got.Status), reasons+got.Where+": "+got.What
				}
				if (got.Advice == "") != (got.Status == checkOK || got.Status == checkSkip) {
					t.Errorf("%+v: what to do goes with what is not well", got)
				}
			}
			if worst != c.result || !strings.Contains(reasons, c.reason) {
				t.Errorf("%s (%s), want %s (%s)", worst, reasons, c.result, c.reason)
			}
		})
	}
}

func worse(a, b string) string {
	order := []string{checkOK, checkSkip, checkUnknown, checkWarn, checkFail}
	if slices.Index(order, a) > slices.Index(order, b) {
		return a
	}
	return b
}

// What is to be done wins over what could not be seen, and what there is not on this
// host is neither.
func TestDoctorVerdict(t *testing.T) {
	for statuses, want := range map[string]int{
		"":                  exitSound,
		"ok":                exitSound,
		"ok skip":           exitSound,
		"unknown ok":        exitBlind,
		"ok warn":           exitFinding,
		"fail ok":           exitFinding,
		"unknown warn ok":   exitFinding,
		"warn unknown":      exitFinding,
		"unknown fail skip": exitFinding,
	} {
		var checks []check
		for _, s := range strings.Fields(statuses) {
			checks = append(checks, check{Name: "x", Status: s})
		}
		code := exitSound
		var exit exitError
		if err := verdict(checks); errors.As(err, &exit) {
			code = exit.code
		} else if err != nil {
			t.Errorf("%q: %v", statuses, err)
		}
		if code != want {
			t.Errorf("%q: exit code %d, want %d", statuses, code, want)
		}
	}
}

// What does not return is unknown once the time is over, and the rest is shown.
func TestDoctorDoesNotWaitForever(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	hang := make(chan struct{})
	defer close(hang)
	got := gather(ctx, []look{
		{"a", func(context.Context) []check { <-hang; return nil }},
		{"b", func(context.Context) []check { return []check{{"b", checkOK, "well", "", ""}} }},
	})
	if len(got) != 2 || got[0].Name != "a" || got[0].Status != checkUnknown || got[0].Advice == "" || got[1].Status != checkOK {
		t.Errorf("%+v", got)
	}
}

// What a program or a file says moves no cursor, in neither form.
func TestDoctorPrintsNoEscapes(t *testing.T) {
	checks := []check{{"x", checkFail, "says \x1b[2J\nCHECK\u202e", "/a\rb", "rm \x07"}}
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		c := &cli{out: &out, format: format}
		if err := c.print(checks, func(w io.Writer) error { return printChecks(w, checks) }); err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(out.String(), "\x1b\r\x07") || format == "text" && strings.Count(out.String(), "\n") != 3 || format == "text" && strings.Contains(out.String(), "\u202e") {
			t.Errorf("%s: %q", format, out.String())
		}
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
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(agent.Status{Version: versionString()})
	}))
	if err := os.Mkdir(hooks, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		filepath.Join(hooks, createHook): `{"hook":{"path":"` + hook + `","args":["probity-hook","createRuntime"]}}`,
		file:                             "hookSocket: none\nadminSocket: " + admin + "\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var out, errs bytes.Buffer
	code := run(context.Background(), []string{"doctor", "-o", "json", "--config", file, "--hooks-dir", hooks}, nil, &out, &errs)
	var checks []check
	if err := json.Unmarshal(out.Bytes(), &checks); err != nil {
		t.Fatalf("%v\n%s%s", err, out.String(), errs.String())
	}
	warned := false
	for _, ch := range checks {
		warned = warned || ch.Status == checkWarn && strings.Contains(ch.What, "no hook socket")
		// What else this machine has is its own.
		if ch.Status == checkFail && slices.Contains([]string{"configuration", "kernel", hooksName, "hook socket", "admin socket"}, ch.Name) {
			t.Errorf("%+v", ch)
		}
	}
	if code != exitFinding || !warned {
		t.Errorf("exit code %d, want %d and a warning\n%s%s", code, exitFinding, out.String(), errs.String())
	}
}
