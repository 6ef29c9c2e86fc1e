// Package doctor_test runs `probity doctor` on a machine whose first process is
// systemd, with the runtimes of a distribution: what is wrong after the installation is
// said, each advice is followed as it is printed, and in the end all is well.
// tests/kernels boots such a machine.
package doctor_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/tests/need"
)

// within is a deadline that is only met when something is broken.
const within = 8 * time.Minute

func said(t *testing.T, name string, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out), max(0, exitCode(exit))
}

func exitCode(exit *exec.ExitError) int {
	if exit == nil {
		return 0
	}
	return exit.ExitCode()
}

func must(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, code := said(t, name, args...); code != 0 {
		t.Fatalf("%s %s: exit code %d\n%s", name, strings.Join(args, " "), code, out)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

type check struct{ Name, Status, What, Where, Advice string }

// doctor returns what is said, and the exit code; a person's form of it is logged.
func doctor(t *testing.T, situation string) (checks []check, code int) {
	t.Helper()
	// An emulated machine is slow.
	text, textCode := said(t, "probity", "doctor", "--timeout", "4m")
	t.Logf("%s\n%sexit code %d", situation, text, textCode)
	out, code := said(t, "probity", "doctor", "--timeout", "4m", "-o", "json")
	if err := json.Unmarshal([]byte(out), &checks); err != nil || code != textCode {
		t.Fatalf("%v, exit codes %d and %d: %s", err, textCode, code, out)
	}
	return checks, code
}

// find returns the first check of a name with a status, and fails without one.
func find(t *testing.T, checks []check, name, status, what string) check {
	t.Helper()
	for _, ch := range checks {
		if ch.Name == name && ch.Status == status && strings.Contains(ch.What, what) {
			return ch
		}
	}
	t.Errorf("no %s %s with %q in %+v", name, status, what, checks)
	return check{}
}

func follow(t *testing.T, ch check) {
	t.Helper()
	if ch.Advice == "" {
		t.Fatalf("no advice: %+v", ch)
	}
	must(t, "/bin/sh", "-ec", ch.Advice)
}

// synchronised has the kernel believe what a time daemon says: an emulated machine
// has none.
func synchronised(t *testing.T) {
	t.Helper()
	if _, err := unix.Adjtimex(&unix.Timex{Modes: 0x10 | 0x4 | 0x8, Status: unix.STA_PLL, Maxerror: 20000, Esterror: 1000}); err != nil { // ADJ_STATUS, ADJ_MAXERROR, ADJ_ESTERROR
		t.Fatal(err)
	}
}

func TestDoctor(t *testing.T) {
	dir := need.Systemd(t)
	if err := os.CopyFS("/", os.DirFS(filepath.Join(dir, "root"))); err != nil {
		t.Fatal(err)
	}
	must(t, "/bin/sh", filepath.Join(dir, "scripts/post"), "1")
	write(t, "/etc/systemd/system/probity.service.d/slow.conf", "[Service]\nTimeoutStartSec=600\nTimeoutStopSec=300\nWatchdogSec=600\n")
	write(t, "/etc/systemd/system/containerd.service.d/slow.conf", "[Service]\nTimeoutStartSec=600\nTimeoutStopSec=300\n")
	must(t, "systemctl", "daemon-reload")
	must(t, "/bin/sh", "-ec", "echo 'spoolQuotaMiB: 64' >> /etc/probity/probity.yaml") // the machine's disk is a small one
	must(t, "systemctl", "start", "containerd")

	checks, code := doctor(t, "== after the installation")
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	find(t, checks, "containerd", "ok", "1.7.")
	find(t, checks, "podman", "ok", "5.")
	find(t, checks, "runc", "ok", "1.")
	find(t, checks, "crun", "ok", "1.")
	find(t, checks, "hook program", "ok", "")
	find(t, checks, "agent", "skip", "")
	off := find(t, checks, "containerd NRI", "fail", "NRI is off (disable = true)") // as it is in 1.7
	stopped := find(t, checks, "service", "fail", "inactive")
	follow(t, off)
	follow(t, stopped)

	synchronised(t)
	checks, code = doctor(t, "== NRI switched on, the agent started")
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	find(t, checks, "containerd NRI", "ok", "NRI is on at /var/run/nri/nri.sock")
	find(t, checks, "service", "ok", "starts at boot")
	find(t, checks, "agent", "ok", "it answers")
	find(t, checks, "key", "ok", "SHA256:")
	find(t, checks, "spool", "ok", "quota")
	find(t, checks, "clock", "ok", "synchronised")

	write(t, "/etc/containerd/conf.d/quiet.toml", "version = 2\n[plugins.\"io.containerd.nri.v1.nri\"]\n  disable = true\n")
	write(t, "/etc/containers/containers.conf.d/hooks.conf", "[engine]\nhooks_dir = [\"/srv/hooks\"]\n")
	must(t, "systemctl", "disable", "probity")
	must(t, "systemctl", "kill", "--signal=KILL", "probity")
	// It is restarted at once; ready is what its own command waits for.
	must(t, "probity", "status", "--wait-ready", within.String())
	synchronised(t)
	checks, code = doctor(t, "== a drop-in that nothing imports, another hooks_dir, a unit that is not enabled")
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	inert := find(t, checks, "containerd NRI", "warn", "present, but not effective")
	elsewhere := find(t, checks, "podman hooks", "fail", "present, but not effective: podman reads /srv/hooks as /etc/containers/containers.conf.d/hooks.conf says")
	follow(t, elsewhere)
	follow(t, find(t, checks, "service", "warn", "not start at boot"))
	checks, _ = doctor(t, "== the unit is enabled, and has been restarted")
	find(t, checks, "podman hooks", "ok", "asks on")
	restarted := find(t, checks, "service", "warn", "1 restarts")
	_, clear, ok := strings.Cut(restarted.Advice, "once read: ")
	if !ok {
		t.Fatalf("%+v", restarted)
	}
	must(t, "/bin/sh", "-ec", clear)
	must(t, "rm", inert.Where)
	synchronised(t)
	if checks, code = doctor(t, "== all of it mended"); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
