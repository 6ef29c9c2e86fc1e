package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/agent"
	"probity/tests/need"
)

const nriTable = "[plugins.'io.containerd.nri.v1.nri']\n"

// What a real containerd makes of its files is what is said of them, and each advice
// that is a command is run and does what it says.
func TestDoctorContainerd(t *testing.T) {
	tools := need.Containerd(t)
	cfg, err := agent.Config{}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	const on = "NRI is on at /var/run/nri/nri.sock"
	for name, c := range map[string]struct {
		main   string // "-": there is no such file
		drop   string // conf.d/x.toml, if not empty
		mode   os.FileMode
		status string // of the first check
		what   string
		after  string // the status, once its own advice was followed; "": it is no command
		inert  string // what holds once the advice about the drop-in was followed; "": there is none
	}{
		"no file":                {main: "-", status: checkOK, what: on},
		"an empty file":          {status: checkOK, what: on},
		"off":                    {main: "version = 3\n" + nriTable + "  disable = true\n", status: checkFail, what: "disable = true", after: checkOK},
		"off, version 2":         {main: "version = 2\n[plugins]\n  [plugins.\"io.containerd.nri.v1.nri\"]\n    disable = true\n", status: checkFail, what: "disable = true", after: checkOK},
		"off among others":       {main: "version = 3\n[plugins.'io.containerd.internal.v1.opt']\n  path = '/opt/x'\n" + nriTable + "  disable=true\n  socket_path = '/var/run/nri/nri.sock'\n[debug]\n  level = 'info'\n", status: checkFail, what: "disable = true", after: checkOK},
		"in the disabled list":   {main: "version = 3\ndisabled_plugins = ['io.containerd.snapshotter.v1.zfs', \"io.containerd.nri.v1.nri\"]\n", status: checkFail, what: "disabled_plugins", after: checkOK},
		"in a list of lines":     {main: "version = 3\ndisabled_plugins = [\n  'io.containerd.nri.v1.nri',\n  'io.containerd.snapshotter.v1.zfs',\n]\n" + nriTable + "  disable = false\n", status: checkFail, what: "disabled_plugins", after: checkOK},
		"off in a drop-in":       {main: "version = 3\nimports = ['DIR/conf.d/*.toml']\n", drop: "version = 3\n" + nriTable + "  disable = true\n", status: checkFail, what: "disable = true", after: checkOK},
		"not imported, no list":  {main: "version = 3\n", drop: "version = 3\n" + nriTable + "  disable = true\n", status: checkOK, what: on, inert: checkFail},
		"not imported, empty":    {main: "", drop: "version = 3\n" + nriTable + "  disable = true\n", status: checkOK, what: on, inert: checkFail},
		"not imported, no file":  {main: "-", drop: "version = 3\n" + nriTable + "  disable = true\n", status: checkOK, what: on, inert: checkFail},
		"imports nothing":        {main: "version = 3\nimports = []\n", drop: "version = 3\ndisabled_plugins = ['io.containerd.nri.v1.nri']\n", status: checkOK, what: on, inert: checkFail},
		"off, drop-in not read":  {main: "version = 3\n" + nriTable + "  socket_path = '/var/run/nri/nri.sock'\n  disable = true\n", drop: "version = 3\n" + nriTable + "  disable = false\n", status: checkFail, what: "conf.d/x.toml says disable = false, which is not imported: present, but not effective", after: checkOK},
		"of other things":        {main: "version = 3\n", drop: "version = 3\n[debug]\n  level = 'debug'\n", status: checkOK, what: on},
		"imported by its name":   {main: "version = 3\nimports = ['conf.d/x.toml']\n", drop: "version = 3\n" + nriTable + "  disable = false\n", status: checkOK, what: on},
		"a broken drop-in":       {main: "version = 3\nimports = ['DIR/conf.d/*.toml']\n", drop: "[[[", status: checkFail, what: "does not start with it"},
		"broken":                 {main: "version = \x1b[2J", status: checkFail, what: "does not start with it"},
		"lets nobody connect":    {main: "version = 3\n" + nriTable + "  disable_connections = true\n", status: checkFail, what: "lets no plugin connect", after: checkOK},
		"short of time":          {main: "version = 3\n" + nriTable + "  plugin_request_timeout = '500ms'\n", status: checkWarn, what: "500ms to answer", after: checkOK},
		"elsewhere":              {main: "version = 3\n" + nriTable + "  socket_path = '/run/other.sock'\n", status: checkFail, what: "NRI is at /run/other.sock, and the agent connects to /var/run/nri/nri.sock"},
		"no CRI":                 {main: "version = 3\ndisabled_plugins = ['io.containerd.cri.v1.runtime']\n", status: checkSkip, what: "CRI is off"},
		"no CRI, as docker's is": {main: "disabled_plugins = ['cri']\n", status: checkSkip, what: "CRI is off"},
		"others may change it":   {main: "version = 3\n", mode: 0o666, status: checkFail, what: "others than root may change it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			put := func(name, text string) {
				text = strings.ReplaceAll(text, "DIR", dir)
				if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			file := filepath.Join(dir, "config.toml")
			if c.main != "-" {
				put(file, c.main)
			}
			if c.drop != "" {
				put(filepath.Join(dir, "conf.d/x.toml"), c.drop)
			}
			if c.mode != 0 {
				if err := os.Chmod(file, c.mode); err != nil {
					t.Fatal(err)
				}
			}
			check := func() []check {
				c := containerd{service: service{program: tools.Containerd}, file: file, agent: "/etc/probity/probity.yaml"}
				effective, absent, bad := c.effective(t.Context())
				if bad != nil {
					return []check{*bad}
				}
				return c.judge(effective, absent, cfg)
			}
			got := check()
			if got[0].Status != c.status || !strings.Contains(got[0].What, c.what) {
				t.Fatalf("%+v, want %s with %q", got, c.status, c.what)
			}
			if (c.inert != "") != (len(got) > 1) {
				t.Fatalf("%+v: a drop-in that is not imported: %v", got, c.inert != "")
			}
			for _, ch := range got {
				if (ch.Advice == "") != (ch.Status == checkOK || ch.Status == checkSkip) {
					t.Errorf("%+v: what to do goes with what is not well", ch)
				}
			}
			if c.after != "" {
				follow(t, got[0].Advice)
				if again := check(); again[0].Status != c.after {
					t.Errorf("after %s\n%+v", got[0].Advice, again)
				}
			}
			if c.inert != "" {
				if got[1].Status != checkWarn || !strings.Contains(got[1].What, "present, but not effective") {
					t.Errorf("%+v", got[1])
				}
				follow(t, got[1].Advice)
				if again := check(); again[0].Status != c.inert || len(again) > 1 {
					t.Errorf("after %s\n%+v", got[1].Advice, again)
				}
			}
		})
	}
}

// follow runs an advice, but for the restart of what does not run.
func follow(t *testing.T, advice string) {
	t.Helper()
	command, ok := strings.CutSuffix(advice, then("", restart("containerd")))
	if !ok {
		t.Fatalf("no restart: %s", advice)
	}
	if out, err := exec.Command("/bin/sh", "-ec", command).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
}

// A containerd that runs is found with the file that it was started with, and it is
// seen that NRI was switched on in the file only after its start.
func TestDoctorContainerdRuns(t *testing.T) {
	tools := need.Containerd(t)
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "c.toml"), filepath.Join(dir, "nri/nri.sock")
	cfg, err := agent.Config{NRISockets: []string{socket}}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	write := func(disable bool) {
		text := fmt.Sprintf(`version = 3
root = '%[1]s/root'
state = '%[1]s/state'
disabled_plugins = ['io.containerd.snapshotter.v1.blockfile', 'io.containerd.snapshotter.v1.btrfs', 'io.containerd.snapshotter.v1.devmapper', 'io.containerd.snapshotter.v1.erofs', 'io.containerd.snapshotter.v1.zfs']
[grpc]
address = '%[1]s/c.sock'
[ttrpc]
address = '%[1]s/t.sock'
[plugins.'io.containerd.internal.v1.opt']
path = '%[1]s/opt'
[plugins.'io.containerd.cri.v1.runtime']
disable_apparmor = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['%[1]s/bin']
conf_dir = '%[1]s/cni'
[plugins.'io.containerd.nri.v1.nri']
disable = %[3]v
socket_path = '%[2]s'
plugin_path = '%[1]s/plugins'
plugin_config_path = '%[1]s/conf.d'
`, dir, socket, disable)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	asked := func() check {
		t.Helper()
		for _, ch := range findHost().checkContainerd(t.Context(), cfg) {
			if ch.Where == file {
				return ch
			}
		}
		t.Fatal("it is not seen to run")
		return check{}
	}

	write(true)
	stop := runContainerd(t, tools, dir, "c.toml")
	if got := asked(); got.Status != checkFail || !strings.Contains(got.What, "NRI is off") {
		t.Errorf("off: %+v", got)
	}
	write(false)
	if got := asked(); got.Status != checkFail || !strings.Contains(got.What, "started with another") || got.Advice != restart("containerd") {
		t.Errorf("switched on after its start: %+v", got)
	}
	stop()
	stop = runContainerd(t, tools, dir, "c.toml")
	if got := asked(); got.Status != checkOK || !strings.Contains(got.What, "NRI is on at "+socket+"; a plugin has 5s to register and 2s to answer") {
		t.Errorf("on: %+v", got)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(filepath.Dir(socket), 0o755), os.Chmod(socket, 0o666)); err != nil {
		t.Fatal(err)
	}
	if got := asked(); got.Status != checkWarn || got.Advice != "chmod go-w "+socket {
		t.Errorf("a socket for everybody: %+v", got)
	}
	stop()
}

// runContainerd starts one in dir, by a relative name of its file, and returns when
// it serves.
func runContainerd(t *testing.T, tools need.ContainerdTools, dir, file string) (stop func()) {
	t.Helper()
	cmd := exec.Command(tools.Containerd, "--config="+file)
	cmd.Dir = dir
	log, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	stop = func() {
		cmd.Process.Signal(unix.SIGTERM)
		cmd.Wait()
	}
	t.Cleanup(stop)
	failsafe := time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() })
	defer failsafe.Stop()
	var said []string
	for lines := bufio.NewScanner(log); lines.Scan(); {
		said = append(said, lines.Text())
		if strings.Contains(lines.Text(), "containerd successfully booted") {
			go func() {
				for lines.Scan() { // it must not wait for us
				}
			}()
			return stop
		}
	}
	t.Fatalf("containerd does not serve:\n%s", strings.Join(said, "\n"))
	return nil
}

// Where the table is not there, as in containerd 1.7, it is appended, whatever the file
// ends with; where it is written in another way, no command is made up.
func TestContainerdSet(t *testing.T) {
	for text, want := range map[string]string{
		"-":                                "",
		"":                                 "",
		"version = 2":                      "",
		"version = 2\n[debug]\nlevel = ''": "",
		nriTable + "socket_path = '/x'":    "",
		nriTable + "disable=true":          "",
		"plugins.'io.containerd.nri.v1.nri'.disable = true": `set disable = false in [plugins."io.containerd.nri.v1.nri"] of FILE`,
		"plugins = {'io.containerd.nri.v1.nri' = {}}":       `set disable = false in [plugins."io.containerd.nri.v1.nri"] of FILE`,
	} {
		c := containerd{file: filepath.Join(t.TempDir(), "a b", "c.toml")}
		if text != "-" {
			if err := errors.Join(os.Mkdir(filepath.Dir(c.file), 0o755), os.WriteFile(c.file, []byte(text), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		advice := c.set(c.files(), text == "-", "disable", "false")
		if want != "" {
			if advice != strings.Replace(want, "FILE", c.file, 1) {
				t.Errorf("%q: %s", text, advice)
			}
			continue
		}
		out, err := exec.Command("/bin/sh", "-ec", advice).CombinedOutput()
		if files := c.files(); err != nil || len(files) != 1 || files[0].tree.table("plugins", nriPlugin)["disable"] != false {
			t.Errorf("%q: after %s: %v %s\n%v", text, advice, err, out, files)
		}
	}
}

// The agent asks one containerd about images: it is seen where none listens there.
func TestDoctorContainerdAddress(t *testing.T) {
	tools := need.Containerd(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "c.toml")
	if err := os.WriteFile(file, []byte("version = 3\n[grpc]\naddress = '/run/of-the-file.sock'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	one := service{program: tools.Containerd, args: []string{"--config", file}}
	other := service{program: tools.Containerd, args: []string{"--address=/run/of-the-line.sock", "--config", filepath.Join(dir, "absent")}}
	for _, c := range []struct {
		run  []service
		asks string
		at   string // "": nothing to say
	}{
		{[]service{one}, "/run/containerd/containerd.sock", "/run/of-the-file.sock"},
		{[]service{one}, "/run/of-the-file.sock", ""},
		{[]service{other}, "/run/containerd/containerd.sock", "/run/of-the-line.sock"},
		{[]service{one, other}, "/run/of-the-line.sock", ""},
	} {
		cfg, err := agent.Config{ContainerdAddress: c.asks}.WithDefaults()
		if err != nil {
			t.Fatal(err)
		}
		at := ""
		for _, ch := range (&host{daemons: map[string][]service{"containerd": c.run}, config: "/c"}).checkContainerd(t.Context(), cfg) {
			if ch.Name == "containerd socket" {
				at = ch.Where
				judged(t, ch, checkWarn, "the agent asks at "+c.asks)
			}
		}
		if at != c.at {
			t.Errorf("%+v: said of %q", c, at)
		}
	}
}

func TestOption(t *testing.T) {
	for line, want := range map[string]string{
		"":                            "/etc/containerd/config.toml",
		"--config /a":                 "/a",
		"--config=/a":                 "/a",
		"-c /a":                       "/a",
		"-c=/a --log-level debug":     "/a",
		"--log-level debug -config a": "/run/x/a",
		"--config /a --config /b":     "/b",
		"--config":                    "/etc/containerd/config.toml",
	} {
		if got := containerdFile(slices.DeleteFunc(strings.Split(line, " "), func(s string) bool { return s == "" }), "/run/x"); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
