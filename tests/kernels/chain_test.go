package kernels

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"probity/tests/kernels/guest"
	"probity/tests/need"
)

// TestChain runs the whole chain in a kernel with kprobes: runc, the hook, the
// agent, its evidence, and verify, in the guest and again here. The signed
// payload must say kprobe of what a kprobe saw, and the uprobe beside it must
// be worth more.
func TestChain(t *testing.T) {
	m := one(t)
	dir := need.Kernel(t, m.QEMU(), m.Name)
	programs := programs(t, m.Arch)
	for name, pkg := range map[string]string{"probity": "./plugin", "probity-hook": "./hook"} {
		if err := goRun(m.Arch, "build", "-trimpath", "-o", filepath.Join(programs, name), pkg); err != nil {
			t.Fatal(err)
		}
	}
	step := guest.Step{Name: "chain", Dir: "/tmp", Args: []string{"/bin/sh", "/chain/run.sh"}, Limit: 180}
	boot := bootOrFail(t, m, dir, guest.Job{Cgroups: guest.V2, Steps: []guest.Step{step}}, Load{
		"/init":             filepath.Join(programs, "init"),
		"/bin/probity":      filepath.Join(programs, "probity"),
		"/bin/probity-hook": filepath.Join(programs, "probity-hook"),
		"/chain":            "testdata/chain",
		"/chain/target.c":   "conformance/testdata/target.c",
	})
	s, _ := boot.Step(step.Name)
	if !s.Ended || s.Exit != 0 {
		t.Fatalf("ended %v, exit code %d\n\t%s", s.Ended, s.Exit, strings.Join(s.Output, "\n\t"))
	}
	spool := t.TempDir()
	chunks := unpack(t, s.Output, spool)
	if len(chunks) == 0 {
		t.Fatalf("no chunk came out of the guest\n\t%s", strings.Join(s.Output, "\n\t"))
	}
	here := filepath.Join(spool, "probity")
	if err := goRun("", "build", "-o", here, "./plugin"); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(here, "verify", filepath.Join(spool, "spool"), "--key", filepath.Join(spool, "state/node.pub")).CombinedOutput(); err != nil {
		t.Errorf("verify on the host: %v\n%s", err, out)
	}

	type line struct {
		Kind, ProbeID, ProbeType, State, Count string
		ContainerID                            string
		Final                                  bool
		Confidence                             struct{ Value float64 }
		PayloadType, Payload                   string
	}
	last := map[string]line{} // by probe
	signed := ""
	for _, chunk := range chunks {
		for text := range bytes.Lines(chunk) {
			var l line
			if err := json.Unmarshal(text, &l); err != nil {
				t.Fatal(err)
			}
			if l.Kind == "observation" && l.ContainerID == "chain" {
				last[l.ProbeID] = l
			}
			if l.PayloadType != "" {
				payload, err := base64.StdEncoding.DecodeString(l.Payload)
				if err != nil {
					t.Fatal(err)
				}
				signed += string(payload)
			}
		}
	}
	call, function := last["call"], last["function"]
	if call.State != "hit" || call.Count != "5" || call.ProbeType != "kprobe" || !call.Final {
		t.Errorf("the system call: %+v; want 5 hits by a kprobe", call)
	}
	if function.State != "hit" || function.Count != "7" || function.ProbeType != "uprobe" || !function.Final {
		t.Errorf("the function: %+v; want 7 hits by a uprobe", function)
	}
	if call.Confidence.Value <= 0 || call.Confidence.Value >= function.Confidence.Value {
		t.Errorf("confidence %v of the kprobe, %v of the uprobe beside it", call.Confidence.Value, function.Confidence.Value)
	}
	if !strings.Contains(signed, `"kprobe"`) || !strings.Contains(signed, `"uprobe"`) {
		t.Errorf("the signed payloads do not name both types: %s", signed)
	}
}

// unpack writes the guest's files below dir, and returns the chunks in the
// order of their names.
func unpack(t *testing.T, output []string, dir string) (chunks [][]byte) {
	t.Helper()
	for _, text := range output {
		field := strings.Fields(text)
		if len(field) != 3 || field[0] != "file" {
			continue
		}
		b, err := base64.StdEncoding.DecodeString(field[2])
		if err != nil || !filepath.IsLocal(field[1]) {
			t.Fatalf("file %s: %v", field[1], err)
		}
		path := filepath.Join(dir, field[1])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(path, ".ndjson") {
			chunks = append(chunks, b)
		}
	}
	return chunks
}
