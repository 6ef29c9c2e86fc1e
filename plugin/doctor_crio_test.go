package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"probity/agent"
	"probity/tests/need"
)

// What `crio config` of CRI-O 1.36.3 prints of NRI: what has its default is a comment.
const crioPrints = `# The CRI-O configuration file specifies all of the available configuration
# options and command-line flags for the crio(8) OCI Kubernetes Container Runtime
[crio]

# CRI-O NRI configuration.
[crio.nri]

# Globally enable or disable NRI.
%s

# NRI socket to listen on.
# nri_listen = "/var/run/nri/nri.sock"

# NRI plugin directory to use.
# nri_plugin_dir = "/opt/nri/plugins"

# Disable connections from externally launched NRI plugins.
# nri_disable_connections = false

# Timeout for a plugin to register itself with NRI.
# nri_plugin_registration_timeout = "5s"

# Timeout for a plugin to handle an NRI request.
nri_plugin_request_timeout = "3s"

# NRI default validator configuration.
# If enabled, the builtin default validator can be used to reject a container if some
#
# [crio.nri.default_validator]
# nri_enable_default_validator = false
`

func TestCRIOFacts(t *testing.T) {
	on := nriFacts{socket: "/var/run/nri/nri.sock", register: 5 * time.Second, request: 3 * time.Second}
	off := on
	off.off = "enable_nri = false"
	for line, want := range map[string]nriFacts{
		"# enable_nri = true": on, "enable_nri = true": on, "enable_nri = false": off, "# enable_nri = false": off,
	} {
		if got, known, err := crioFacts(fmt.Sprintf(crioPrints, line)); err != nil || !known || got != want {
			t.Errorf("%s: %+v, %v, %v; want %+v", line, got, known, err, want)
		}
	}
	// What a running one answers to `crio status config`.
	live := "[crio]\n  [crio.api]\n    listen = \"/x\"\n  [crio.nri]\n    enable_nri = true\n    nri_listen = \"/var/run/nri/nri.sock\"\n    nri_plugin_registration_timeout = \"5s\"\n    nri_plugin_request_timeout = \"3s\"\n    nri_disable_connections = false\n    [crio.nri.default_validator]\n      nri_enable_default_validator = false\n"
	if got, known, err := crioFacts(live); err != nil || !known || got != on {
		t.Errorf("a running one: %+v, %v, %v; want %+v", got, known, err, on)
	}
	if _, known, err := crioFacts("[crio]\n[crio.api]\n"); known || err != nil {
		t.Errorf("one without NRI: %v, %v", known, err)
	}
	if _, _, err := crioFacts("time=x level=info\n"); err == nil {
		t.Error("what is no TOML is no error")
	}
}

// One that runs is asked for what it has, where its files say that it listens; one that
// does not answer is taken for what they say.
func TestCRIORuns(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	program := script(t, dir, "crio", `case "$*" in
"--config=/c config") printf '[crio.api]\n# listen = "/run/of-the-files"\n[crio.nri]\n# enable_nri = true\n# nri_listen = "/n"\n' ;;
"status --socket=/run/of-the-files config") printf '[crio.nri]\nenable_nri = false\nnri_listen = "/n"\n' ;;
*) exit 1 ;;
esac`)
	for _, c := range []struct {
		args    []string
		running bool
		off     string
	}{
		{[]string{"--config", "/c"}, false, ""},
		{[]string{"--config", "/c"}, true, "enable_nri = false"},
		{[]string{"--config", "/c", "--listen=/run/elsewhere"}, true, ""},
	} {
		out, _, err := crio{service{program: program, args: c.args}, c.running, ""}.ask(t.Context())
		f, known, ferr := crioFacts(out)
		if err != nil || ferr != nil || !known || f.off != c.off {
			t.Errorf("%+v: %+v, %v, %v, %v", c, f, known, err, ferr)
		}
	}
}

// A CRI-O that does not run is asked for what it would start with. Where a real one is
// installed, it is; and each advice is followed.
func TestDoctorCRIO(t *testing.T) {
	need.Root(t)
	cfg, err := agent.Config{}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	real, installed := need.Look("crio")
	for name, c := range map[string]struct {
		file   string
		status string
		what   string
		after  string // the status, once the advice was followed, where it is a command
	}{
		"default":             {"", checkOK, "NRI is on at /var/run/nri/nri.sock", ""},
		"off":                 {"[crio.nri]\nenable_nri = false\n", checkFail, "NRI is off (enable_nri = false)", checkOK},
		"lets nobody connect": {"[crio.nri]\nnri_disable_connections = true\n", checkFail, "lets no plugin connect", checkOK},
		"short of time":       {"[crio.nri]\nnri_plugin_request_timeout = \"1s\"\n", checkWarn, "1s to answer", checkOK},
		"elsewhere":           {"[crio.nri]\nnri_listen = \"/run/other.sock\"\n", checkFail, "NRI is at /run/other.sock", ""},
		"broken":              {"[[[", checkFail, "CRI-O does not start with it", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file, drops := filepath.Join(dir, "crio.conf"), filepath.Join(dir, "drops")
			if err := os.WriteFile(file, []byte(c.file), 0o644); err != nil {
				t.Fatal(err)
			}
			// The stand-in prints what it would have of the files, read by nobody else.
			program := script(t, dir, "crio", `case "$*" in *config) ;; *) exit 2;; esac
grep -q '\[\[' `+file+` && echo 'level=fatal msg="update config from file"' >&2 && exit 1
shown() { v=$(cat `+file+` `+drops+`/* 2>/dev/null | sed -n "s/^$1 = //p" | tail -1); if [ "$v" ]; then echo "$1 = $v"; else echo "# $1 = $2"; fi; }
echo '[crio.nri]'
shown enable_nri true; shown nri_listen '"/var/run/nri/nri.sock"'; shown nri_disable_connections false; shown nri_plugin_request_timeout '"2s"'
`)
			if installed {
				program = real
			}
			d := service{program: program, args: []string{"--config", file, "--config-dir=" + drops}}
			if err := os.Mkdir(drops, 0o755); err != nil {
				t.Fatal(err)
			}
			check := func() []check { return crio{d, false, "/etc/probity/probity.yaml"}.check(t.Context(), cfg) }
			got := check()
			if len(got) != 1 || got[0].Status != c.status || !strings.Contains(got[0].What, c.what) || got[0].Where != file {
				t.Fatalf("%+v, want %s with %q", got, c.status, c.what)
			}
			if (got[0].Advice == "") != (c.status == checkOK) {
				t.Errorf("%+v: what to do goes with what is not well", got)
			}
			if c.after == "" {
				return
			}
			command, ok := strings.CutSuffix(got[0].Advice, then("", restart("crio")))
			if !ok {
				t.Fatalf("no restart: %s", got[0].Advice)
			}
			if out, err := exec.Command("/bin/sh", "-ec", command).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", command, err, out)
			}
			if again := check(); again[0].Status != c.after {
				t.Errorf("after %s\n%+v", command, again)
			}
		})
	}
}
