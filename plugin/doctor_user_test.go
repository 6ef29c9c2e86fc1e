package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"probity/tests/need"
)

// Who is not root is told what he may not see, and the real programs answer him, too.
func TestDoctorUnprivileged(t *testing.T) {
	podman := need.Podman(t)
	dir, err := os.MkdirTemp("", "doctor")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program := filepath.Join(dir, "probity")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", program, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(program, 0o755)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), defaultPatience*12)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "doctor", "-o", "json", "--timeout", "2m")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitFinding && exit.ExitCode() != exitBlind {
		t.Fatalf("%v: %s", err, out)
	}
	var checks []check
	if err := json.Unmarshal(out, &checks); err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for _, ch := range checks {
		status[ch.Name] = ch.Status
		if ch.Where == podman && ch.Status != checkOK {
			t.Errorf("%+v", ch)
		}
	}
	if status["kernel"] != checkUnknown {
		t.Errorf("%+v", checks)
	}
}
