package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"probity/runtime/container"
)

func execPolicy(name, id string) string {
	return fmt.Sprintf("name: %s\nprobes:\n  - id: %s\n    type: tracepoint\n    event: sched:sched_process_exec\n", name, id)
}

func write(t *testing.T, dir, name, data string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	a, b := execPolicy("a", "exec-a"), execPolicy("b", "exec-b")
	write(t, dir, "20-b.yaml", b)
	write(t, dir, "10-a.yaml", a)
	write(t, dir, ".10-a.yaml.swp.yaml", "not read")
	write(t, dir, "README", "not read")
	write(t, dir, "c.yml", "not read")
	set, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "10-a.yaml\x00%d\x00%s20-b.yaml\x00%d\x00%s", len(a), a, len(b), b))
	if want := "sha256:" + hex.EncodeToString(sum[:]); set.Digest != want {
		t.Errorf("digest %s, want %s", set.Digest, want)
	}
	if len(set.Policies) != 2 || set.Policies[0].Name != "a" || set.Policies[1].File != filepath.Join(dir, "20-b.yaml") {
		t.Errorf("%+v", set.Policies)
	}
	probes := set.Select(container.Identity{Runtime: container.Runc, ID: "x"})
	if len(probes) != 2 || probes[0].ID != "exec-a" || probes[1].ID != "exec-b" {
		t.Errorf("probes %+v", probes)
	}

	empty, err := Load(t.TempDir())
	if err != nil || len(empty.Policies) != 0 || empty.Digest != "sha256:"+hex.EncodeToString(sha256.New().Sum(nil)) {
		t.Errorf("empty directory: %+v, %v", empty, err)
	}
	if _, err := Load(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
}

func TestLoadProblems(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "1.yaml", execPolicy("a", "exec"))
	write(t, dir, "2.yaml", execPolicy("a", "exec"))
	write(t, dir, "3.yaml", "name: c\n")
	write(t, dir, "4.yaml", "# "+strings.Repeat("x", 2*MaxFile))
	_, err := Load(dir)
	var ds Diagnostics
	if !errors.As(err, &ds) {
		t.Fatalf("%v", err)
	}
	one := filepath.Join(dir, "1.yaml")
	want := []string{
		"2.yaml:1:7: name \"a\" is taken by " + one,
		"2.yaml:3:9: id \"exec\" is taken by " + one,
		"3.yaml:1:1: policy: no probes, and nothing to redact",
		"4.yaml:1:1: the file is larger than 1048576 bytes",
	}
	for i := range want {
		want[i] = filepath.Join(dir, want[i])
	}
	if err.Error() != strings.Join(want, "\n") {
		t.Errorf("got\n%v\nwant\n%s", err, strings.Join(want, "\n"))
	}
}

// What is not a regular file is an error, and does not block.
func TestLoadSpecial(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "fifo.yaml: not a regular file") {
		t.Errorf("FIFO: %v", err)
	}
	dir = t.TempDir()
	write(t, dir, "policy", execPolicy("a", "exec"))
	if err := os.Symlink("policy", filepath.Join(dir, "link.yaml")); err != nil { // as Kubernetes mounts a ConfigMap
		t.Fatal(err)
	}
	if set, err := Load(dir); err != nil || len(set.Policies) != 1 {
		t.Errorf("link: %v", err)
	}
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "dir.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil {
		t.Error("directory: no error")
	}
}

func TestSelect(t *testing.T) {
	id := container.Identity{
		Runtime: container.Containerd, Name: "web-1",
		Pod:         &container.Pod{Namespace: "prod-eu", Labels: map[string]string{"app": "web", "tier": ""}},
		Image:       container.Image{Name: "ghcr.io/acme/web:1.2"},
		Annotations: map[string]string{"io.example/on": "true"},
	}
	noPod, noImage, cut := id, id, id
	cut.Cut = true
	noPod.Pod, noImage.Image = nil, container.Image{}
	for _, c := range []struct {
		name string
		s    Selector
		id   container.Identity
		want bool
	}{
		{"empty", Selector{}, id, true},
		{"empty, nobody", Selector{}, container.Identity{}, true},
		{"runtime", Selector{Runtimes: []container.Runtime{container.Podman, container.Containerd}}, id, true},
		{"other runtime", Selector{Runtimes: []container.Runtime{container.Podman}}, id, false},
		{"namespace", Selector{Namespaces: []string{"dev", "prod-*"}}, id, true},
		{"other namespace", Selector{Namespaces: []string{"prod"}}, id, false},
		{"namespace, no pod", Selector{Namespaces: []string{"*"}}, noPod, false},
		{"labels", Selector{PodLabels: map[string]string{"app": "web", "tier": ""}}, id, true},
		{"one label differs", Selector{PodLabels: map[string]string{"app": "web", "tier": "x"}}, id, false},
		{"a missing label is not an empty one", Selector{PodLabels: map[string]string{"zone": ""}}, id, false},
		{"labels, no pod", Selector{PodLabels: map[string]string{"app": "web"}}, noPod, false},
		{"image", Selector{Images: []string{"ghcr.io/acme/*"}}, id, true},
		{"a star does not match a slash", Selector{Images: []string{"ghcr.io/*"}}, id, false},
		{"two do", Selector{Images: []string{"ghcr.io/**"}}, id, true},
		{"image not known", Selector{Images: []string{"**"}}, noImage, false},
		{"container", Selector{Containers: []string{"web-?"}}, id, true},
		{"other container", Selector{Containers: []string{"db-*"}}, id, false},
		{"annotation", Selector{Annotations: map[string]string{"io.example/on": "true"}}, id, true},
		{"other annotation", Selector{Annotations: map[string]string{"io.example/on": "false"}}, id, false},
		{"a label that may have been left out", Selector{PodLabels: map[string]string{"zone": "eu"}}, cut, true},
		{"an annotation that may have been", Selector{Annotations: map[string]string{"io.example/zone": "eu"}}, cut, true},
		{"one that differs was not", Selector{PodLabels: map[string]string{"app": "db"}}, cut, false},
		{"all must match", Selector{Containers: []string{"web-*"}, Namespaces: []string{"dev"}}, id, false},
	} {
		if got := c.s.Match(c.id); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// A digest changes with any change of a file's name or content.
func TestDigest(t *testing.T) {
	seen := map[string]string{}
	for name, files := range map[string][]Source{
		"one":                {{"a.yaml", []byte(execPolicy("a", "x"))}},
		"renamed":            {{"b.yaml", []byte(execPolicy("a", "x"))}},
		"comment":            {{"a.yaml", []byte(execPolicy("a", "x") + "#")}},
		"two":                {{"a.yaml", []byte(execPolicy("a", "x"))}, {"b.yaml", []byte(execPolicy("b", "y"))}},
		"two, swapped names": {{"a.yaml", []byte(execPolicy("b", "y"))}, {"b.yaml", []byte(execPolicy("a", "x"))}},
	} {
		set, err := NewSet(files)
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[set.Digest]; ok {
			t.Errorf("%s and %s: %s", name, other, set.Digest)
		}
		seen[set.Digest] = name
	}
	forward := []Source{{"a.yaml", []byte(execPolicy("a", "x"))}, {"b.yaml", []byte(execPolicy("b", "y"))}}
	set, err := NewSet([]Source{forward[1], forward[0]})
	if err != nil || seen[set.Digest] != "two" || set.Policies[0].Name != "a" {
		t.Errorf("order matters: %+v, %v", set, err)
	}
}
