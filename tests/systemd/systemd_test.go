// Package systemd_test runs the product as its package installs it, on a machine whose
// first process is systemd: the scriptlets, the unit with everything that it says, a
// container with the hook, and what happens to its evidence when the agent is
// reloaded, killed, hung and stopped. tests/kernels boots such a machine. Nothing of
// the unit is changed for the test, but where a subtest says so.
package systemd_test

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/verify"
	"probity/tests/need"
)

// TestMachine is one life of an installation, in order.
func TestMachine(t *testing.T) {
	p := need.Systemd(t)
	m := machine{target: filepath.Join(p, "target"), root: filepath.Join(p, "root"), scripts: filepath.Join(p, "scripts")}
	for _, step := range []struct {
		name string
		do   func(*machine, *testing.T)
	}{
		{"install", (*machine).install},
		{"start", (*machine).start},
		{"container", (*machine).container},
		{"sandbox", (*machine).sandbox},
		{"least", (*machine).least},
		{"readers", (*machine).readers},
		{"reload", (*machine).reload},
		{"kill", (*machine).kill},
		{"kept", (*machine).kept},
		{"socket", (*machine).socket},
		{"credential", (*machine).credential},
		{"watchdog", (*machine).watchdog},
		{"locked", (*machine).locked},
		{"during", (*machine).during},
		{"ends", (*machine).ends},
		{"stop", (*machine).stop},
		{"remove", (*machine).remove},
	} {
		if !t.Run(step.name, func(t *testing.T) { began := time.Now(); step.do(&m, t); t.Logf("%.1f s", time.Since(began).Seconds()) }) {
			out, _ := tried(t, "systemctl", "status", "--no-pager", "--lines=0", unit)
			journal, _ := tried(t, "journalctl", "--no-pager", "--boot", "--output=cat", "--unit="+unit)
			t.Logf("%s failed\n%s\n%s", step.name, out, journal)
			if step.name == "install" || step.name == "start" {
				return // nothing comes after it
			}
		}
	}
}

// machine is what the subtests know of it.
type machine struct {
	root, scripts, target string // of the package, and a program for containers

	readersGID, ackGID uint32
	key                []byte // the node's first
}

// install does what rpm does: it unpacks and runs the scriptlet. Nothing is started.
func (m *machine) install(t *testing.T) {
	if err := os.CopyFS("/", os.DirFS(m.root)); err != nil {
		t.Fatal(err)
	}
	t.Log(said(t, "/bin/sh", filepath.Join(m.scripts, "post"), "1"))
	m.readersGID, m.ackGID = groupNumber(t, "probity"), groupNumber(t, "probity-ack")
	place(t, state, 0o710, m.readersGID)
	place(t, spool, 0o2750, m.readersGID)
	place(t, spool+"/ack", 0o1775, m.ackGID)
	if is := property(t, unit, "ActiveState"); is != "inactive" {
		t.Errorf("after the installation the unit is %s", is)
	}
	if is := property(t, unit, "UnitFileState"); is != "disabled" {
		t.Errorf("after the installation the unit is %s", is)
	}
	// A function to see; the default policy has what is executed. Sets take an emulated
	// machine minutes to verify.
	write(t, "/etc/probity/policies.d/test.yaml", `name: test
select: {}
probes:
  - {id: function, type: uprobe, file: /bin/target, symbols: [hello]}
`)
	// An emulated machine on a busy one may need longer than a unit gets.
	write(t, "/etc/systemd/system/probity.service.d/slow.conf", "[Service]\nTimeoutStartSec=600\nTimeoutStopSec=300\n")
}

// start: systemctl returns when the agent has said that it is ready.
func (m *machine) start(t *testing.T) {
	// A runtime that is started with it, as at the machine's boot, waits until it is ready.
	write(t, "/etc/systemd/system/both.target", "[Unit]\nWants=containerd.service probity.service\n")
	write(t, "/etc/systemd/system/containerd.service", "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n")
	said(t, "systemctl", "daemon-reload")
	said(t, "systemctl", "start", "both.target")
	said(t, "systemctl", "start", unit, "containerd.service") // waits for both
	active(t)
	ready, err := strconv.Atoi(property(t, unit, "ActiveEnterTimestampMonotonic"))
	if err != nil {
		t.Fatal(err)
	}
	if began, err := strconv.Atoi(property(t, "containerd.service", "ExecMainStartTimestampMonotonic")); err != nil || began < ready {
		t.Errorf("the runtime began at %d us, and the agent was ready at %d (%v)", began, ready, err)
	}
	// Whatever systemd does to the directories of the unit.
	place(t, state, 0o710, m.readersGID)
	place(t, spool, 0o2750, m.readersGID)
	place(t, spool+"/ack", 0o1775, m.ackGID)
	place(t, "/run/probity", 0o755, 0)
	place(t, hookSock, 0o600, 0)
	place(t, "/run/probity/admin.sock", 0o600, 0)
	if m.key, err = os.ReadFile(state + "/node.pub"); err != nil {
		t.Fatal(err)
	}
	st := ask(t, "/status")
	if len(st.Problems) > 0 {
		t.Errorf("problems: %q", st.Problems)
	}
	if !strings.HasPrefix(st.Sources["hook"], "listening") {
		t.Errorf("sources: %v", st.Sources)
	}
}

// container: armed before its first instruction, its evidence verifies.
func (m *machine) container(t *testing.T) {
	// The first start of an image may take longer than the hook waits, in an emulated machine.
	m.run(t, "cold", 0)
	m.sees(t, "warm", 0)
	// A file that its container may write is guarded by a lease, whoever has it.
	m.sees(t, "owned", 1000)
}

// run runs a container to its end.
func (m *machine) run(t *testing.T, id string, owner int) {
	t.Helper()
	c := begin(t, bundle(t, id, owner, m.target), id)
	armed(t)
	c.end(t)
	idle(t)
}

// sees runs a container, in which the agent has to see all.
func (m *machine) sees(t *testing.T, id string, owner int) verify.Report {
	t.Helper()
	m.run(t, id, owner)
	rep := report(t, m.key)
	m.saw(t, rep, id)
	return rep
}

// saw wants in the evidence what a container did.
func (m *machine) saw(t *testing.T, rep verify.Report, id string) {
	t.Helper()
	function, exec := false, false
	for _, r := range rep.Rows {
		switch {
		case r.ContainerID != id:
		case r.ProbeID == "function":
			function = true
			if r.State != evidence.Hit || r.Count == nil || *r.Count != 7 || r.ProbeType != "uprobe" {
				t.Errorf("%s: %+v, want 7 hits by a uprobe", id, r)
			}
		case r.ProbeID == "exec":
			exec = r.State == evidence.Hit
		}
	}
	if !function || !exec {
		t.Errorf("%s: function %v, exec %v", id, function, exec)
	}
	for _, g := range rep.Gaps {
		if g.ContainerID == id && g.Reason != evidence.GapLateAttach {
			t.Errorf("%s: a gap: %+v", id, g)
		}
	}
}

// sandbox: the agent has what the unit says and no more, and nothing that it needs is
// taken away.
func (m *machine) sandbox(t *testing.T) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(mainPid(t)) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	is := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		is[k] = strings.TrimSpace(v)
	}
	const lease, ptrace, admin, dacRead = 28, 19, 21, 2
	want := uint64(1<<lease | 1<<ptrace | 1<<admin | 1<<dacRead)
	for _, set := range []string{"CapBnd", "CapPrm", "CapEff"} {
		if got, err := strconv.ParseUint(is[set], 16, 64); err != nil || got != want {
			t.Errorf("%s is %s, want %016x", set, is[set], want)
		}
	}
	if is["NoNewPrivs"] != "1" || is["Seccomp"] != "2" {
		t.Errorf("NoNewPrivs %s, Seccomp %s", is["NoNewPrivs"], is["Seccomp"])
	}
	// All that root finds in this kernel, the agent finds.
	var root map[string]any
	decode(t, said(t, "probity", "kernel", "-o", "json"), &root)
	agent := ask(t, "/status").Kernel
	if len(root) < 10 {
		t.Errorf("root finds %v", root)
	}
	for what, is := range root {
		if what != "tookNs" && !reflect.DeepEqual(is, agent[what]) {
			t.Errorf("%s: root finds %v, the agent %v", what, is, agent[what])
		}
	}
}

// readers: the groups may do what docs/privacy.md says, and nothing else.
func (m *machine) readers(t *testing.T) {
	directories, chunks := 0, 0
	err := filepath.WalkDir(spool, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path == spool+"/ack":
			return fs.SkipDir
		case d.IsDir():
			directories++
			place(t, path, 0o2750, m.readersGID)
		case path == spool+"/reserve": // is there to be removed when the disk is full
			place(t, path, 0o600, m.readersGID)
		default:
			if strings.HasSuffix(path, ".ndjson") {
				chunks++
			}
			place(t, path, 0o640, m.readersGID)
		}
		return nil
	})
	if err != nil || directories < 3 || chunks == 0 {
		t.Errorf("%d directories, %d chunks, %v", directories, chunks, err)
	}
	key := filepath.Join(t.TempDir(), "node.pub")
	for dir := filepath.Dir(key); dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755|fs.ModeSticky); err != nil {
			t.Fatal(err)
		}
	}
	write(t, key, string(m.key))
	readers, ackers := []uint32{m.readersGID}, []uint32{m.readersGID, m.ackGID}
	chunk, _ := filepath.Glob(spool + "/ready/*/*.ndjson")
	for _, test := range []struct {
		groups []uint32
		code   int
		args   []string
	}{
		{readers, 0, []string{"probity", "verify", spool, "--key", key}},
		{nil, 3, []string{"probity", "verify", spool, "--key", key}},
		{readers, 1, []string{"cat", state + "/node.key"}},
		{readers, 1, []string{"ls", state}},
		{readers, 1, []string{"rm", "-f", chunk[0]}},
		{readers, 1, []string{"touch", spool + "/ack/mine"}},
		{ackers, 1, []string{"rm", "-f", chunk[0]}},
		{ackers, 0, []string{"probity", "evidence", "ack", spool, strings.TrimSuffix(filepath.Base(chunk[0]), ".ndjson"), "--consumer", "shipper"}},
	} {
		if out, code := asUser(t, test.groups, test.args[0], test.args[1:]...); code != test.code {
			t.Errorf("%q in groups %v: exit code %d, want %d\n%s", test.args, test.groups, code, test.code, out)
		}
	}
	// What the shipper acknowledged is the agent's to read and remove.
	out := said(t, "probity", "evidence", "gc")
	if _, err := os.Stat(chunk[0]); err == nil {
		t.Errorf("the acknowledged chunk is still there: %s", out)
	}
}

// reload: the key that the configuration names; a failure leaves everything as it was.
func (m *machine) reload(t *testing.T) {
	pid := mainPid(t)
	first := ask(t, "/status").KeyID
	said(t, "systemctl", "reload", unit)
	if now := ask(t, "/status").KeyID; now != first {
		t.Errorf("the key was %s and is %s", first, now)
	}
	said(t, "probity", "key", "rotate")
	second := ask(t, "/status").KeyID
	if second == first {
		t.Error("the key was not changed")
	}
	said(t, "systemctl", "reload", unit)

	config, err := os.ReadFile("/etc/probity/probity.yaml")
	if err != nil {
		t.Fatal(err)
	}
	write(t, "/etc/probity/probity.yaml", string(config)+"\nkey: credential:none\n")
	if out, code := tried(t, "systemctl", "reload", unit); code == 0 {
		t.Errorf("a key that is not there was reloaded: %s", out)
	}
	write(t, "/etc/probity/probity.yaml", string(config))
	active(t)
	if now := ask(t, "/status").KeyID; now != second {
		t.Errorf("the key was %s and is %s", second, now)
	}
	// A policy with a mistake fails the reload, and changes nothing.
	before := ask(t, "/status").Policies
	const file = "/etc/probity/policies.d/reloaded.yaml"
	write(t, file, "name: reloaded\nprobes:\n  - {id: reloaded, type: uprobe, file: /x, symbol: x}\n")
	if out, code := tried(t, "systemctl", "reload", unit); code == 0 || ask(t, "/status").Policies.Digest != before.Digest {
		t.Errorf("a policy with a mistake was reloaded: %s", out)
	}
	write(t, file, "name: reloaded\nprobes:\n  - {id: reloaded, type: uprobe, file: /x, symbols: [x]}\n")
	said(t, "systemctl", "reload", unit)
	if now := ask(t, "/status").Policies; now.Digest == before.Digest || now.Policies != before.Policies+1 || now.Refused != "" {
		t.Errorf("the policies were %+v and are %+v", before, now)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	said(t, "systemctl", "reload", unit) // after it
	if mainPid(t) != pid || property(t, unit, "NRestarts") != "0" {
		t.Error("it was restarted")
	}
	m.sees(t, "reloaded", 0)
}

// kill: systemd starts the agent again, and the time without one is signed.
func (m *machine) kill(t *testing.T) {
	c := begin(t, bundle(t, "survivor", 0, m.target), "survivor")
	armed(t)
	until(t, "what is known of the container is in the spool", func() bool {
		return slices.ContainsFunc(report(t, m.key).Rows, func(r verify.Row) bool { return r.ContainerID == "survivor" })
	})
	pid := mainPid(t)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	restarted(t, 1, pid)
	c.end(t) // it is not harmed
	idle(t)
	rep := m.sees(t, "afterwards", 0)
	node, run := false, false
	for _, g := range rep.Gaps {
		if g.Reason == evidence.GapAgentDown && !g.To.IsZero() {
			node = node || g.Scope == evidence.ScopeNode
		}
		run = run || g.Reason == evidence.GapAgentDown && g.ContainerID == "survivor"
	}
	if !node || !run {
		t.Errorf("agentDown of the node: %v, of the run: %v\n%+v", node, run, rep.Gaps)
	}
}

// kept: where a container's files are an image's, what counts outlives the agent. What
// the program does before a kill, while there is no agent, and after, is all counted, and
// there is no gap.
func (m *machine) kept(t *testing.T) {
	c := begin(t, layered(t, "kept", m.target, "hello", "7", "await", "1", "hello", "7", "await", "1", "hello", "7"), "kept")
	armed(t)
	rows := func() (out []verify.Row) {
		for _, r := range report(t, m.key).Rows {
			if r.ContainerID == "kept" && r.ProbeID == "function" {
				out = append(out, r)
			}
		}
		return out
	}
	until(t, "what it did first is in the spool", func() bool {
		r := rows()
		return len(r) == 1 && r[0].Count != nil && *r[0].Count == 7
	})
	if n, err := strconv.Atoi(property(t, unit, "NFileDescriptorStore")); err != nil || n < 12 {
		t.Errorf("systemd holds %d descriptors, %v", n, err)
	}
	pid, before := mainPid(t), property(t, unit, "NRestarts")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.goOn(t) // systemd starts the next one a second later
	n, err := strconv.Atoi(before)
	if err != nil {
		t.Fatal(err)
	}
	restarted(t, n+1, pid)
	until(t, "what it did meanwhile is in the spool", func() bool {
		r := rows()
		return len(r) == 1 && r[0].Count != nil && *r[0].Count == 14
	})
	said(t, "systemctl", "restart", unit)
	active(t)
	c.end(t)
	idle(t)
	if r := rows(); len(r) != 1 || r[0].State != evidence.Hit || r[0].Count == nil || *r[0].Count != 21 || !r[0].Complete {
		t.Errorf("%+v, want 21 hits and no gap", r)
	}
	for _, g := range report(t, m.key).Gaps {
		if g.ContainerID == "kept" {
			t.Errorf("a gap: %+v", g)
		}
	}
}

// socket: who asks while there is no agent waits for the next one, at the same socket.
func (m *machine) socket(t *testing.T) {
	said(t, "systemctl", "reset-failed", unit)
	is := func() uint64 {
		var st syscall.Stat_t
		if err := syscall.Lstat(hookSock, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	before, pid := is(), mainPid(t)
	n, err := strconv.Atoi(property(t, unit, "NRestarts"))
	if err != nil {
		t.Fatal(err)
	}
	// Stopped, so that it cannot have taken what comes; the next one has to.
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", hookSock)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("no request\n")); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	restarted(t, n+1, pid)
	if now := is(); now != before {
		t.Error("it is another socket")
	}
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); err != nil && !errors.Is(err, syscall.ECONNRESET) { // it is answered, or refused
		t.Errorf("who waited: %v", err)
	}
	said(t, "systemctl", "reset-failed", unit) // it has been started more often than a unit may be in a minute
	said(t, "systemctl", "restart", unit)
	if now := is(); now != before {
		t.Error("after a restart it is another socket")
	}
	m.sees(t, "asked", 0)
}

// restarted returns when systemd has started the agent for the nth time again.
func restarted(t testing.TB, n int, pid int) {
	t.Helper()
	until(t, "systemd starts the agent again", func() bool {
		return property(t, unit, "NRestarts") == strconv.Itoa(n) && property(t, unit, "ActiveState") == "active"
	})
	if mainPid(t) == pid {
		t.Error("it is the same process")
	}
}

// credential: the key comes from systemd. What is loaded is what was there when the
// unit was started: a reload, of the unit or of systemd, loads nothing.
func (m *machine) credential(t *testing.T) {
	dir := t.TempDir()
	// A new key as the encrypted credential NAME. The host has no TPM, and where the
	// first file system is all in memory its secret has to be asked for.
	encrypt := func(name string) string {
		from := filepath.Join(dir, name+strconv.FormatInt(time.Now().UnixNano(), 36))
		id := said(t, "probity", "key", "init", "--source", "file", "--state", from)
		said(t, "systemd-creds", "encrypt", "--with-key=host", "--name="+name, from+"/node.key", "/etc/probity/"+name+".cred")
		return id
	}
	a, b := encrypt("a"), encrypt("b")
	write(t, "/etc/systemd/system/probity.service.d/test.conf", "[Service]\nLoadCredentialEncrypted=a:/etc/probity/a.cred\nLoadCredentialEncrypted=b:/etc/probity/b.cred\n")
	said(t, "systemctl", "daemon-reload")
	said(t, "systemctl", "restart", unit)
	active(t)
	config, err := os.ReadFile("/etc/probity/probity.yaml")
	if err != nil {
		t.Fatal(err)
	}
	change := func(name, id string) {
		t.Helper()
		said(t, "probity", "key", "rotate", "--to", "credential:"+name)
		write(t, "/etc/probity/probity.yaml", string(config)+"\nkey: credential:"+name+"\n")
		said(t, "systemctl", "reload", unit)
		if is := ask(t, "/status").KeyID; !strings.Contains(id, is) {
			t.Errorf("after a change to the credential %s the key is %s, want %s", name, is, id)
		}
	}
	change("a", a)
	third := encrypt("a") // another key, in the same file
	said(t, "systemctl", "reload", unit)
	if is := ask(t, "/status").KeyID; !strings.Contains(a, is) || strings.Contains(third, is) {
		t.Errorf("after the file has changed and a reload the key is %s, want that of the start, %s", is, a)
	}
	change("b", b)
	m.sees(t, "credential", 0)
}

// watchdog: an agent that hangs is killed and started again, with the key of its
// credential.
func (m *machine) watchdog(t *testing.T) {
	key := ask(t, "/status").KeyID
	pid, n := mainPid(t), property(t, unit, "NRestarts")
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	count, err := strconv.Atoi(n)
	if err != nil {
		t.Fatal(err)
	}
	restarted(t, count+1, pid)
	out := said(t, "journalctl", "--no-pager", "--boot", "--output=cat", "--unit="+unit)
	if !strings.Contains(out, "SIGABRT: abort") { // what systemd sends, and the agent says
		t.Errorf("the watchdog did nothing:\n%s", out)
	}
	if is := ask(t, "/status").KeyID; is != key {
		t.Errorf("the key is %s, want %s", is, key)
	}
}

// stop leaves nothing: no process, no program in the kernel, no socket. A container
// that runs goes on, one that starts is not disturbed.
func (m *machine) stop(t *testing.T) {
	c := begin(t, bundle(t, "left", 0, m.target), "left")
	armed(t)
	pid := mainPid(t)
	its, now := objectsOf(t, pid), kernelObjects(t)
	for object := range its {
		if !now[object] {
			t.Errorf("the agent has %s open, and the kernel does not list it", object)
		}
	}
	if len(its) < 10 {
		t.Errorf("the agent has %v", its)
	}
	said(t, "systemctl", "stop", unit)
	if result, is := property(t, unit, "Result"), property(t, unit, "ActiveState"); result != "success" || is != "inactive" {
		t.Errorf("after the stop the unit is %s, %s", is, result)
	}
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("the agent: %v", err)
	}
	if procs, err := os.ReadFile("/sys/fs/cgroup/system.slice/probity.service/cgroup.procs"); len(procs) > 0 {
		t.Errorf("processes: %s, %v", procs, err)
	}
	if _, err := os.Lstat("/run/probity"); !os.IsNotExist(err) {
		t.Errorf("the sockets' directory: %v", err)
	}
	until(t, "the kernel has let go of everything", func() bool { // it frees programs behind the last reference
		for object := range kernelObjects(t) {
			if its[object] {
				return false
			}
		}
		return true
	})
	c.end(t)
	alone := begin(t, bundle(t, "alone", 0, m.target), "alone")
	alone.end(t)
	if s := alone.out.String(); s != "" {
		t.Errorf("without an agent the hook says %q", s)
	}
	rep := report(t, m.key)
	open := false
	for _, g := range rep.Gaps {
		open = open || g.Reason == evidence.GapAgentDown && g.Scope == evidence.ScopeNode && g.To.IsZero()
	}
	if !open {
		t.Error("that there is no agent is not signed")
	}
}

// remove does what rpm does; the evidence stays.
func (m *machine) remove(t *testing.T) {
	said(t, "systemctl", "enable", "--now", unit)
	active(t)
	said(t, "/bin/sh", filepath.Join(m.scripts, "preun"), "0")
	if is := property(t, unit, "ActiveState"); is != "inactive" {
		t.Errorf("the unit is %s", is)
	}
	if err := os.Remove("/usr/lib/systemd/system/" + unit); err != nil {
		t.Fatal(err)
	}
	said(t, "/bin/sh", filepath.Join(m.scripts, "postun"), "0")
	if links, _ := filepath.Glob("/etc/systemd/system/*.wants/probity*"); len(links) > 0 {
		t.Errorf("left behind: %q", links)
	}
	report(t, m.key)
}

func decode(t testing.TB, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}
