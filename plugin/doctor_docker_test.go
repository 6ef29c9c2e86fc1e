package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"probity/agent"
	"probity/tests/need"
)

func TestDoctorDocker(t *testing.T) {
	need.Root(t)
	ours := filepath.Join(t.TempDir(), "probity-runtime")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", ours, "probity/wrapper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, c := range map[string]struct {
		text, events, status, what string
	}{
		"no file":          {"-", "on", checkSkip, "from containerd's events"},
		"of other things":  {`{"runtimes": {"kata": {"path": "/usr/bin/kata"}}}`, "on", checkSkip, "from containerd's events"},
		"events are off":   {`{}`, "off", checkWarn, "docker's containers are not seen"},
		"default":          {`{"runtimes": {"p": {"path": "OURS"}}, "default-runtime": "p"}`, "on", checkOK, "the default runtime is ours, p"},
		"not the default":  {`{"runtimes": {"p": {"path": "OURS"}}}`, "on", checkOK, "--runtime p only"},
		"not installed":    {`{"runtimes": {"p": {"path": "/nonexistent/probity-runtime"}}}`, "on", checkFail, "no such file"},
		"not JSON":         {"{", "on", checkFail, "docker does not start with it"},
		"its runtime only": {`{"default-runtime": "p"}`, "on", checkSkip, "no runtime of ours"},
	} {
		file := filepath.Join(t.TempDir(), "daemon.json")
		if c.text != "-" {
			if err := os.WriteFile(file, []byte(strings.Replace(c.text, "OURS", ours, 1)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got := judgeDocker(file, agent.Config{ContainerdEvents: c.events})
		if len(got) != 1 {
			t.Errorf("%s: %+v", name, got)
		}
		judged(t, got[0], c.status, c.what)
	}
	if got := (&host{dirs: []string{t.TempDir()}}).checkDocker(agent.Config{}); got != nil {
		t.Errorf("where there is none: %+v", got)
	}
}
