package shippers

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"probity/tests/need"
	"probity/tests/runtimes"
)

// The session in docs/shipping.md: what it says is typed is typed here, on a node whose
// agent saw containers of podman and whose evidence rsyslog carried, and what it shows is
// what is printed, but for ids, times, sizes and how many chunks a fast machine makes.
func TestDocumentedSession(t *testing.T) {
	rsyslogd := need.Command(t, "rsyslogd")[0]
	need.File(t, "rsyslog's RELP", module("omrelp.so"))
	need.Command(t, "gcc")
	doc, err := os.ReadFile("../../docs/shipping.md")
	must(t, err)
	_, shown, _ := strings.Cut(string(doc), "\n```text session\n")
	shown, _, ok := strings.Cut(shown, "\n```\n")
	named := regexp.MustCompile(`\d{16}-([0-9a-f]{16})`).FindStringSubmatch(shown)
	if !ok || named == nil {
		t.Fatal("docs/shipping.md has no session")
	}

	p := runtimes.NewPodman(t)
	policy, err := os.ReadFile("../demo/policy.yaml")
	must(t, err)
	a := runtimes.StartAgent(t, runtimes.AgentOptions{Policies: []string{string(policy)}, PodmanRoot: p.Root, States: []string{p.States}})
	root, err := filepath.Abs("../..")
	must(t, err)
	p.InstallHook(t, root, a.Binaries.Hook, a.HookSocket)
	image := filepath.Join(t.TempDir(), "image.tar")
	runtimes.DemoImage(t, p.Scratch, filepath.Join(root, "tests", "demo", "image"), image)
	p.Load(t, image)
	for _, call := range []string{"call", "idle", "call"} {
		p.Run(t, "--name", "caller", "--rm", runtimes.DemoImageName, call)
		a.WaitIdle(t)
	}

	port, work, far := freePort(t), t.TempDir(), t.TempDir()
	receiver := newProgram(t, "receiver", rsyslogd, "-n", "-i", filepath.Join(far, "pid"), "-f",
		configuration(t, "rsyslog-receive.conf", map[string]string{"/var/spool/probity-received": far, "2514": port}))
	sender := newProgram(t, "sender", rsyslogd, "-n", "-i", filepath.Join(work, "pid"), "-f",
		configuration(t, "rsyslog.conf", map[string]string{"/var/lib/probity-rsyslog": work, "collector.example": "127.0.0.1", "2514": port, "/var/lib/probity/spool": a.Spool}))
	receiver.start(t)
	sender.start(t)
	until(t, "rsyslog has read all", 3*time.Minute, sender, func() bool { return allRead(t, a.Spool, work) })
	sender.stop(t)
	receiver.stop(t)

	names, err := filepath.Glob(filepath.Join(a.Spool, "ready", "*", "*.ndjson"))
	if err != nil || len(names) < 3 {
		t.Fatalf("%v, %v", names, err)
	}
	// Where things are here, as the document has it.
	here := []string{
		"/var/lib/probity/spool", a.Spool, "/var/spool/probity-received", far, "/srv/evidence", filepath.Join(t.TempDir(), "evidence"),
		named[1], strings.TrimSuffix(filepath.Base(names[0])[17:], ".ndjson"),
		"probity evidence gc", "probity evidence gc --admin-socket " + a.AdminSocket,
	}
	back := slices.Clone(here)
	slices.Reverse(back)
	cwd := t.TempDir()
	key, err := os.ReadFile(a.Key())
	must(t, err)
	must(t, os.WriteFile(filepath.Join(cwd, "node.pub"), key, 0o644))
	var printed strings.Builder
	for line := range strings.Lines(shown + "\n") {
		_, command, typed := strings.Cut(line, "# ")
		if !typed || !strings.HasPrefix(line, "node# ") && !strings.HasPrefix(line, "far# ") {
			continue
		}
		printed.WriteString(line)
		cmd := exec.CommandContext(t.Context(), "/bin/bash", "-o", "pipefail", "-c", strings.NewReplacer(here...).Replace(command))
		cmd.Dir, cmd.Env = cwd, append(os.Environ(), "PATH="+filepath.Dir(a.Binaries.Probity)+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil && !errors.As(err, new(*exec.ExitError)) || cmd.ProcessState.ExitCode() != 0 {
			t.Errorf("%s%s: %v", line, out, err)
		}
		printed.WriteString(strings.NewReplacer(back...).Replace(string(out)))
	}
	if a, b := settled(shown), settled(printed.String()); a != b {
		t.Errorf("docs/shipping.md shows\n%s\nthe commands print\n%s\n(instance %s)", shown, &printed, here[7])
	}
}

// varying is what differs from one session to the next.
var varying = []struct {
	re *regexp.Regexp
	to string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+Z`), "TIME"},
	{regexp.MustCompile(`SHA256:[A-Za-z0-9+/]{43}`), "KEY"},
	{regexp.MustCompile(`sha256:[0-9a-f]{64}`), "DIGEST"},
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "ROOT"},
	{regexp.MustCompile(`[A-Za-z0-9+/]{43}=`), "ROOT"},
	{regexp.MustCompile(`\d{16}-[0-9a-f]{16}`), "CHUNK"},
	{regexp.MustCompile(`\b[0-9a-f]{16}\b`), "INSTANCE"},
	{regexp.MustCompile(`\d+ heartbeats?`), "N heartbeats"},
	{regexp.MustCompile(`\b[1-9][0-9]*\b`), "N"}, // 0 is told
	{regexp.MustCompile(` +`), " "},
}

// settled has one line of those that follow each other and differ in that only.
func settled(s string) string {
	for _, v := range varying {
		s = v.re.ReplaceAllString(s, v.to)
	}
	return strings.Join(slices.Compact(strings.Split(strings.TrimSpace(s), "\n")), "\n")
}
