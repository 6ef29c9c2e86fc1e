package systemd_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"probity/evidence"
	"probity/tests/need"
)

// The user, who has a home and a manager, and the ids that are subordinate to him.
const (
	uid      = 1000
	home     = "/home/user"
	runtimes = "/run/user/1000"
	userSock = "/run/probity/rootless.sock"
	delegate = "/user.slice/user-1000.slice/user@1000.service/"
)

// userManager is systemd's unit but for PAM and logind, which packages that are unpacked
// and not configured have not.
const userManager = `[Unit]
Description=User manager of %i
[Service]
User=%i
Type=notify
ExecStart=/usr/lib/systemd/systemd --user
Slice=user-%i.slice
KillMode=mixed
Delegate=pids memory cpu
Environment=HOME=` + home + ` XDG_RUNTIME_DIR=/run/user/%i
TimeoutStartSec=600
`

// TestUsers is a user's own podman on a machine whose operator lets users tell of their
// containers. The unit is as it is shipped.
func TestUsers(t *testing.T) {
	p := need.Systemd(t)
	installForUsers(t, p)
	makeUser(t)
	for file, text := range map[string]string{
		home + "/.config/containers/containers.conf": "[engine]\nhooks_dir = [\"" + home + "/.config/containers/oci/hooks.d\"]\nevents_logger = \"none\"\n",
		home + "/.config/containers/storage.conf":    "[storage]\ndriver = \"overlay\"\n",
		// As docs/rootless.md has it.
		home + "/.config/containers/oci/hooks.d/probity.json": `{"version":"1.0.0","hook":{"path":"/usr/libexec/probity/probity-hook","args":["probity-hook","createRuntime","--socket","` + userSock + `"],"timeout":5},` +
			`"when":{"annotations":{"^io\\.container\\.manager$":"^libpod$"}},"stages":["createRuntime"]}`,
	} {
		write(t, file, text)
	}
	said(t, "/bin/sh", "-c", "mkdir -p "+home+"/i/bin && cp "+filepath.Join(p, "target")+" "+home+"/i/bin/target && chown -R 1000:1000 "+home)
	out, err := asManaged("/bin/sh", "-c", "busybox tar -C "+home+"/i -cf "+home+"/i.tar . && podman import "+home+"/i.tar localhost/target:1").CombinedOutput()
	if err != nil {
		t.Fatalf("podman import: %v\n%s", err, out)
	}

	t.Run("own cgroup", func(t *testing.T) {
		runAsUser(t, "cold") // the first start may take longer than the hook waits, in an emulated machine
		runAsUser(t, "web")
		runAsUser(t, "kept", "--userns=keep-id") // its layers are mounted where nobody else sees them
	})
	t.Run("no cgroup", func(t *testing.T) {
		runAsUser(t, "none", "--cgroups=disabled")
	})
	cov, obs, gaps := linesOf(t)
	c := cov["web"]
	if c == nil || c.Source != "rootless:1000" || c.Runtime != "podman" || c.Image != "localhost/target:1" || !strings.HasPrefix(c.CgroupPath, delegate) ||
		c.ImageDigest != "" || !strings.Contains(c.ImageDigestReason, "which says that it is image id sha256:") || !c.Final {
		text, _ := json.Marshal(c)
		t.Errorf("%s", text)
	}
	for name, want := range map[string]evidence.State{"web hello": evidence.Hit, "web quiet": evidence.Partial, "kept hello": evidence.NotArmed, "none hello": evidence.NotArmed, "none quiet": evidence.NotArmed} {
		o := obs[name]
		if o == nil || o.State != want || want == evidence.NotArmed && o.Reason != map[bool]evidence.NotArmedReason{true: evidence.SharedCgroup, false: evidence.FileUnreadable}[strings.HasPrefix(name, "none ")] || want == evidence.Hit && *o.Count != 7 {
			text, _ := json.Marshal(o)
			t.Errorf("%s: %s", name, text)
		}
	}
	for _, g := range gaps {
		// It may be late, where the machine is emulated.
		if c := cov["web"]; c != nil && g.RunID == c.RunID && g.Reason != evidence.GapUnarmedMapping && g.Reason != evidence.GapLateAttach || strings.HasPrefix(g.Source, "rootless:") {
			text, _ := json.Marshal(g)
			t.Errorf("%s", text)
		}
	}
	if t.Failed() {
		journal, _ := tried(t, "journalctl", "--no-pager", "--boot", "--output=cat", "--unit="+unit)
		t.Log(journal)
	}
}

// installForUsers installs and starts the agent, with the socket for users.
func installForUsers(t *testing.T, p string) {
	t.Helper()
	if err := os.CopyFS("/", os.DirFS(filepath.Join(p, "root"))); err != nil {
		t.Fatal(err)
	}
	said(t, "/bin/sh", filepath.Join(p, "scripts", "post"), "1")
	write(t, "/etc/probity/probity.yaml", "rootlessHookSocket: "+userSock+"\ngroup: probity\n")
	if err := os.RemoveAll("/etc/probity/policies.d"); err != nil {
		t.Fatal(err)
	}
	write(t, "/etc/probity/policies.d/test.yaml", `name: test
select: {}
probes:
  - {id: hello, type: uprobe, file: /bin/target, symbols: [hello]}
  - {id: quiet, type: uprobe, file: /bin/target, symbols: [abort]}
`)
	write(t, "/etc/systemd/system/probity.service.d/slow.conf", "[Service]\nTimeoutStartSec=600\nTimeoutStopSec=300\n")
	said(t, "systemctl", "daemon-reload")
	said(t, "systemctl", "start", unit)
	active(t)
	if st, err := os.Stat(userSock); err != nil || st.Mode().Perm() != 0o666 {
		t.Fatalf("%v, %v", st, err)
	}
}

// makeUser makes the user, his home, and has his manager run.
func makeUser(t *testing.T) {
	t.Helper()
	for file, text := range map[string]string{
		"/etc/passwd": "user:x:1000:1000::" + home + ":/bin/sh\n", "/etc/group": "user:x:1000:\n",
		"/etc/subuid": "user:100000:65536\n", "/etc/subgid": "user:100000:65536\n", "/etc/hosts": "", "/etc/resolv.conf": "",
	} {
		f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err == nil {
			_, err = io.WriteString(f, text)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"/home", runtimes} {
		if err := errors.Join(os.MkdirAll(dir, 0o755), unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755")); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(home, 0o700), os.Chown(home, uid, uid), os.Chmod(runtimes, 0o700), os.Chown(runtimes, uid, uid), os.MkdirAll("/var/tmp", 0o755), os.Chmod("/var/tmp", 0o1777)); err != nil {
		t.Fatal(err)
	}
	write(t, "/etc/systemd/system/user@.service", userManager)
	said(t, "systemctl", "daemon-reload")
	said(t, "systemctl", "start", "user@1000.service")
	until(t, "the user's bus", func() bool { _, err := os.Stat(runtimes + "/bus"); return err == nil })
}

// asManaged is a program that the user's manager runs.
func asManaged(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("systemd-run", append([]string{"--user", "--pipe", "--wait", "--quiet", "--collect", name}, args...)...)
	cmd.Env = []string{"HOME=" + home, "XDG_RUNTIME_DIR=" + runtimes, "DBUS_SESSION_BUS_ADDRESS=unix:path=" + runtimes + "/bus", "PATH=" + os.Getenv("PATH")}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd
}

// runAsUser has the user's podman run a container, which waits until the agent has done
// all that it does at its start.
func runAsUser(t *testing.T, name string, args ...string) {
	t.Helper()
	args = append([]string{"run", "--rm", "--interactive", "--network=none", "--name=" + name}, args...)
	cmd := asManaged("podman", append(args, "localhost/target:1", "/bin/target", "await", "1", "hello", "7")...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	until(t, "container "+name+" is armed, or not", func() bool {
		select {
		case err := <-ended:
			t.Fatalf("%s: %v\n%s", name, err, out.String())
		default:
		}
		st := ask(t, "/status")
		return st.LiveRuns == 1 && st.Waiting == 0
	})
	if err = errors.Join(lastLine(in), <-ended); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out.String())
	}
	idle(t)
}

// linesOf are the last coverage line of each container, by its name, the last line of
// each of its probes, and all gaps.
func linesOf(t *testing.T) (cov map[string]*evidence.Coverage, obs map[string]*evidence.Observation, gaps []*evidence.Gap) {
	t.Helper()
	cov, obs = map[string]*evidence.Coverage{}, map[string]*evidence.Observation{}
	byRun := map[string]string{}
	key, err := os.ReadFile(state + "/node.pub")
	if err != nil {
		t.Fatal(err)
	}
	report(t, key)
	files, err := filepath.Glob(spool + "/ready/*/*.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		for _, text := range lines[1 : len(lines)-1] {
			l, err := evidence.Decode(text)
			if err != nil {
				t.Fatal(err)
			}
			switch l := l.(type) {
			case *evidence.Coverage:
				cov[l.ContainerName], byRun[l.RunID] = l, l.ContainerName
			case *evidence.Observation:
				obs[byRun[l.RunID]+" "+l.ProbeID] = l
			case *evidence.Gap:
				gaps = append(gaps, l)
			}
		}
	}
	return cov, obs, gaps
}
