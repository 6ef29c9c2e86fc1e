// Package packaging_test builds what is installed and looks at it: the RPM's
// list of files, the hook files as a runtime reads them, the unit as systemd
// does, and the policy and configuration as the agent does.
package packaging_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"probity/agent"
	"probity/bpf/policy"
	"probity/tests/need"
)

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, errs.String())
	}
	return string(out)
}

func TestRPM(t *testing.T) {
	need.Command(t, "rpmbuild", "rpm")
	path := strings.TrimSpace(command(t, "../scripts/rpm.sh", t.TempDir()))
	if strings.Contains(path, "\n") || !strings.HasSuffix(path, ".rpm") {
		t.Fatalf("want the path of one RPM, got %q", path)
	}
	files := strings.Fields(command(t, "rpm", "-qlp", path))
	want := []string{
		"/etc/probity",
		"/etc/probity/policies.d",
		"/etc/probity/policies.d/default.yaml",
		"/etc/probity/probity.yaml",
		"/usr/bin/probity",
		"/usr/lib/systemd/system/probity.service",
		"/usr/lib/sysusers.d/probity.conf",
		"/usr/lib/tmpfiles.d/probity.conf",
		"/usr/libexec/probity",
		"/usr/libexec/probity/probity-hook",
		"/usr/libexec/probity/probity-runtime",
		"/usr/share/containers/oci/hooks.d/probity-create.json",
		"/usr/share/containers/oci/hooks.d/probity-poststop.json",
		"/usr/share/doc/probity",
		"/usr/share/doc/probity/README.md",
		"/usr/share/doc/probity/docs",
		"/usr/share/doc/probity/docs/design.md",
		"/usr/share/doc/probity/docs/docker.md",
		"/usr/share/doc/probity/docs/doctor.md",
		"/usr/share/doc/probity/docs/fail-policy.md",
		"/usr/share/doc/probity/docs/keys.md",
		"/usr/share/doc/probity/docs/privacy.md",
		"/usr/share/doc/probity/docs/restart.md",
		"/usr/share/doc/probity/docs/rootless.md",
		"/usr/share/doc/probity/docs/shipping.md",
		"/usr/share/doc/probity/evidence",
		"/usr/share/doc/probity/evidence/FORMAT.md",
		"/usr/share/licenses/probity",
		"/usr/share/licenses/probity/LICENSE",
		"/usr/share/licenses/probity/LICENSES.bpf.md",
		"/usr/share/probity",
		"/usr/share/probity/shippers",
		"/usr/share/probity/shippers/filebeat.yml",
		"/usr/share/probity/shippers/fluent-bit.conf",
		"/usr/share/probity/shippers/otelcol.yaml",
		"/usr/share/probity/shippers/rsyslog-receive.conf",
		"/usr/share/probity/shippers/rsyslog.conf",
		"/usr/share/probity/shippers/vector.yaml",
	}
	slices.Sort(files)
	if !slices.Equal(files, want) {
		t.Errorf("rpm -qlp lists\n%s\nwant\n%s", strings.Join(files, "\n"), strings.Join(want, "\n"))
	}
	// What needs the C library is in a package of its own.
	need.Command(t, "gcc")
	helper, err := filepath.Glob(filepath.Join(filepath.Dir(path), "probity-pkcs11-*.rpm"))
	if err != nil || len(helper) != 1 {
		t.Fatalf("the helper's package: %q, %v", helper, err)
	}
	if got := strings.Fields(command(t, "rpm", "-qlp", helper[0])); !slices.Equal(got, []string{"/usr/libexec/probity/probity-pkcs11"}) {
		t.Errorf("rpm -qlp lists %q", got)
	}
	// An upgrade must not overwrite what an operator wrote.
	config := strings.Fields(command(t, "rpm", "-qcp", path))
	slices.Sort(config)
	if !slices.Equal(config, []string{"/etc/probity/policies.d/default.yaml", "/etc/probity/probity.yaml"}) {
		t.Errorf("configuration files are %q", config)
	}
	// Nobody but root may change what root's runtime executes.
	for line := range strings.Lines(command(t, "rpm", "-qp", "--qf", `[%{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILENAMES}\n]`, path)) {
		f := strings.Fields(line)
		if len(f) != 4 || f[1] != "root" || f[2] != "root" || f[0][5] == 'w' || f[0][8] == 'w' {
			t.Errorf("mode or owner: %s", line)
		}
	}
}

// The spec, the hook files and the unit name the same two programs.
func TestOnePath(t *testing.T) {
	spec, err := os.ReadFile("rpm/probity.spec")
	if err != nil {
		t.Fatal(err)
	}
	unit, err := os.ReadFile("systemd/probity.service")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(unit), "\nExecStart=/usr/bin/probity agent\n") || !strings.Contains(string(spec), "%{_bindir}/probity\n") {
		t.Error("the unit starts another program than the RPM installs")
	}
	if !strings.Contains(string(spec), "%{_libexecdir}/probity/probity-hook\n") {
		t.Error("the RPM does not install the hook where the hook files say")
	}
}

func TestHookFiles(t *testing.T) {
	for file, stage := range map[string]string{"probity-create.json": "createRuntime", "probity-poststop.json": "poststop"} {
		b, err := os.ReadFile(filepath.Join("hooks", file))
		if err != nil {
			t.Fatal(err)
		}
		var h struct {
			Version string
			Hook    struct {
				Path    string
				Args    []string
				Timeout int
			}
			When   struct{ Annotations map[string]string }
			Stages []string
		}
		if err := json.Unmarshal(b, &h); err != nil {
			t.Fatalf("%s: %v", file, err) // every podman run would fail
		}
		if h.Version != "1.0.0" || h.Hook.Path != "/usr/libexec/probity/probity-hook" || h.Hook.Timeout != 30 ||
			!slices.Equal(h.Hook.Args, []string{"probity-hook", stage}) || !slices.Equal(h.Stages, []string{stage}) {
			t.Errorf("%s: %+v", file, h)
		}
		// CRI-O reads the same directory and has NRI: podman only.
		for name, value := range h.When.Annotations {
			if !regexp.MustCompile(name).MatchString("io.container.manager") || !regexp.MustCompile(value).MatchString("libpod") ||
				regexp.MustCompile(value).MatchString("cri-o") {
				t.Errorf("%s: matches %q=%q", file, name, value)
			}
		}
		if len(h.When.Annotations) != 1 {
			t.Errorf("%s: %d annotations", file, len(h.When.Annotations))
		}
	}
}

func TestUnit(t *testing.T) {
	need.Command(t, "systemd-analyze")
	command(t, "../scripts/unit.sh")
}

// What systemd makes of what the unit lets its processes do: at most 3.5, where 10 is
// everything.
func TestUnitExposure(t *testing.T) {
	need.Command(t, "systemd-analyze")
	root := t.TempDir()
	dir := filepath.Join(root, "usr/lib/systemd/system")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	unit, err := os.ReadFile("systemd/probity.service")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "probity.service"), unit, 0o644); err != nil {
		t.Fatal(err)
	}
	// It fails past the threshold, in tenths.
	out := command(t, "systemd-analyze", "security", "--offline=true", "--root="+root, "--threshold=35", "--no-pager", "probity.service")
	level := regexp.MustCompile(`Overall exposure level for probity.service: ([0-9.]+)`).FindStringSubmatch(out)
	if level == nil {
		t.Fatalf("systemd-analyze says no level:\n%s", out)
	}
	t.Log(level[0])
}

// What looks right in a unit and breaks this agent, as was seen under systemd 252
// (tests/systemd); the unit says why.
func TestUnitLeavesOut(t *testing.T) {
	unit, err := os.ReadFile("systemd/probity.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, directive := range []string{"StateDirectory", "RestrictSUIDSGID", "PrivateUsers", "ProtectKernelTunables", "ProcSubset", "ProtectProc", "DynamicUser"} {
		if regexp.MustCompile(`(?m)^` + directive + `=`).Match(unit) {
			t.Errorf("the unit has %s=", directive)
		}
	}
	bounded := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindSubmatch(unit)
	if bounded == nil || !slices.Contains(strings.Fields(string(bounded[1])), "CAP_LEASE") {
		t.Error("files of users that their container may write are not armed without CAP_LEASE")
	}
}

// The groups and directories as systemd makes them, in a directory instead of the
// machine: readers may read the spool and write nothing.
func TestGroups(t *testing.T) {
	need.Root(t)
	need.Command(t, "systemd-sysusers", "systemd-tmpfiles")
	root := t.TempDir()
	for from, to := range map[string]string{"sysusers.conf": "usr/lib/sysusers.d/probity.conf", "tmpfiles.conf": "usr/lib/tmpfiles.d/probity.conf"} {
		b, err := os.ReadFile(filepath.Join("systemd", from))
		if err != nil {
			t.Fatal(err)
		}
		to = filepath.Join(root, to)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"etc", "var"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	command(t, "systemd-sysusers", "--root="+root, "probity.conf")
	groups := map[string]uint32{"root": 0}
	b, err := os.ReadFile(filepath.Join(root, "etc/group"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		id, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		groups[f[0]] = uint32(id)
	}
	if groups["probity"] == 0 || groups["probity-ack"] == 0 || groups["probity"] == groups["probity-ack"] {
		t.Fatalf("groups are %v", groups)
	}
	// It fails for directories that are not this package's and that are not in root.
	cmd := exec.CommandContext(t.Context(), "systemd-tmpfiles", "--root="+root, "--create", "probity.conf")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("systemd-tmpfiles: %v\n%s", err, out)
	}
	for path, want := range map[string]struct {
		mode  uint32
		group string
	}{
		"var/lib/probity":           {0o710, "probity"},
		"var/lib/probity/spool":     {0o2750, "probity"},
		"var/lib/probity/spool/ack": {0o1775, "probity-ack"},
	} {
		var st syscall.Stat_t
		if err := syscall.Lstat(filepath.Join(root, path), &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode&0o7777 != want.mode || st.Uid != 0 || st.Gid != groups[want.group] {
			t.Errorf("%s is %04o %d:%d, want %04o 0:%s (%d)", path, st.Mode&0o7777, st.Uid, st.Gid, want.mode, want.group, groups[want.group])
		}
	}
}

func TestDefaults(t *testing.T) {
	b, err := os.ReadFile("default-policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if p, err := policy.Parse("default-policy.yaml", b); err != nil || len(p.Probes) == 0 {
		t.Errorf("the default policy: %v, %d probes", err, len(p.Probes))
	}
	if _, err := agent.ReadConfig("probity.yaml"); err != nil {
		t.Error(err)
	}
	// What is commented out are keys that exist, too.
	text, err := os.ReadFile("probity.yaml")
	if err != nil {
		t.Fatal(err)
	}
	set := regexp.MustCompile(`(?m)^#([a-zA-Z]+: )`).ReplaceAllString(string(text), "$1")
	path := filepath.Join(t.TempDir(), "probity.yaml")
	if err := os.WriteFile(path, []byte(set), 0o644); err != nil {
		t.Fatal(err)
	}
	if c, err := agent.ReadConfig(path); err != nil || c.PodmanRoot == "" {
		t.Errorf("with every key set: %+v, %v", c, err)
	}
}
