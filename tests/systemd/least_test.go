package systemd_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"probity/evidence"
)

// leastPolicy has, besides what is executed, a file where only its owner gets to, and one
// that an overlay's opaque directory hides.
const leastPolicy = `name: least
select: {}
probes:
  - {id: private, type: uprobe, file: /private/target, symbols: [hello]}
  - {id: hidden, type: uprobe, file: /hidden/target, symbols: [hello]}
`

// least: with the unit's capabilities everything is done, and without each of them what
// the unit's comment says is not, and nothing else. What may be missing has a name there:
//
//	image     a function of a file of an image is not seen
//	private   nor is one in a directory that is another user's alone
//	writable  nor is one of a user's file, which its container may write
//	hidden    a file that an upper layer hides is not told from one of the container
func (m *machine) least(t *testing.T) {
	b, err := os.ReadFile("/usr/lib/systemd/system/" + unit)
	if err != nil {
		t.Fatal(err)
	}
	set := strings.Fields(string(regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindSubmatch(b)[1]))
	said := map[string][]string{}
	for _, line := range regexp.MustCompile(`(?m)^# *without (CAP_\w+): (.*)$`).FindAllStringSubmatch(string(b), -1) {
		said[line[1]] = strings.Fields(line[2])
	}
	if has := slices.Sorted(maps.Keys(said)); !slices.Equal(has, slices.Sorted(slices.Values(set))) {
		t.Fatalf("the unit has %q, and says of %q what they are for", set, has)
	}
	m.fails(t, "all", set, nil)
	for _, without := range set {
		m.fails(t, strings.ToLower(without), slices.DeleteFunc(slices.Clone(set), func(c string) bool { return c == without }), said[without])
	}
	// SYS_ADMIN is for more than those two, which it includes.
	if instead := slices.Concat(slices.DeleteFunc(slices.Clone(set), func(c string) bool { return c == "CAP_SYS_ADMIN" }), []string{"CAP_BPF", "CAP_PERFMON"}); multi(t) {
		m.fails(t, "instead", instead, []string{"hidden"})
	}
}

// multi reports whether the kernel is Linux 6.6 or later, which has uprobe_multi.
func multi(t testing.TB) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(b), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return major > 6 || major == 6 && minor >= 6
}

// fails runs the agent with these capabilities, and wants that exactly this fails.
func (m *machine) fails(t *testing.T, name string, set, want []string) {
	t.Helper()
	const dropIn, policy = "/etc/systemd/system/probity.service.d/least.conf", "/etc/probity/policies.d/least.yaml"
	write(t, dropIn, "[Service]\nCapabilityBoundingSet=\nCapabilityBoundingSet="+strings.Join(set, " ")+"\n")
	write(t, policy, leastPolicy)
	restart := func() {
		said(t, "systemctl", "daemon-reload")
		said(t, "systemctl", "reset-failed", unit)
		said(t, "systemctl", "restart", unit)
		active(t)
	}
	restart()
	defer func() {
		if err := errors.Join(os.Remove(dropIn), os.Remove(policy)); err != nil {
			t.Fatal(err)
		}
		restart()
	}()
	image, writable := "image-"+name, "writable-"+name
	for id, dir := range map[string]string{image: m.guarded(t, image), writable: bundle(t, writable, 1000, m.target)} {
		c := begin(t, dir, id)
		until(t, "the container is armed, or not believed", func() bool {
			st := ask(t, "/status")
			return st.LiveRuns == 1 && st.Waiting == 0 || st.LiveRuns == 0 && len(st.Problems) > 0
		})
		c.end(t)
		idle(t)
	}
	failing := map[string]bool{"image": true, "private": true, "writable": true, "hidden": true}
	for _, r := range report(t, m.key).Rows {
		hit := r.State == evidence.Hit && r.Count != nil && *r.Count == 7
		switch {
		case r.ContainerID == image && r.ProbeID == "function" && hit:
			delete(failing, "image")
		case r.ContainerID == image && r.ProbeID == "private" && r.State != evidence.NotArmed:
			delete(failing, "private")
		case r.ContainerID == image && r.ProbeID == "hidden" && r.Reason == evidence.FileNotFound:
			delete(failing, "hidden")
		case r.ContainerID == writable && r.ProbeID == "function" && hit:
			delete(failing, "writable")
		}
		if r.ContainerID == image || r.ContainerID == writable {
			t.Logf("%s: %s of %s is %s %s", name, r.ProbeID, r.ContainerID, r.State, r.Reason)
		}
	}
	if got := slices.Sorted(maps.Keys(failing)); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("with %q: %q fail, want %q\n%q", set, got, want, ask(t, "/status").Problems)
	}
}

// guarded is layered with one more layer, and with a directory that is another user's.
func (m *machine) guarded(t *testing.T, id string) string {
	t.Helper()
	dir := layered(t, id, m.target, "await", "1", "hello", "7", "hello", "0")
	path := func(name string) string { return filepath.Join(dir, name) }
	target, err := os.ReadFile(m.target)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(path("rootfs"), 0); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"private", "hidden"} {
		if err := errors.Join(os.Mkdir(path("lower/"+sub), 0o700), os.WriteFile(path("lower/"+sub+"/target"), target, 0o755), os.Chown(path("lower/"+sub), 1000, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		os.MkdirAll(path("writable/above/hidden"), 0o755),
		unix.Setxattr(path("writable/above/hidden"), "trusted.overlay.opaque", []byte("y"), 0),
		unix.Mount("overlay", path("rootfs"), "overlay", 0, "lowerdir="+path("writable/above")+":"+path("lower")+",upperdir="+path("writable/upper")+",workdir="+path("writable/work")),
	); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path("rootfs/hidden/target")); err == nil {
		t.Fatal("it is not hidden")
	}
	return dir
}
