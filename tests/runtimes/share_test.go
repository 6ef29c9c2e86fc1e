package runtimes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"probity/tests/need"
)

// user is somebody who is not root.
type user struct {
	uid    uint32
	groups []uint32
}

// does runs a program as him.
func (u user) does(t *testing.T, args ...string) (out string, code int) {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.uid, Gid: u.uid, Groups: u.groups}}
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", args, err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// packaged makes in root the groups and directories that the package makes, and returns
// the groups' numbers.
func packaged(t *testing.T, s *Scratch, root string) (readers, ackers uint32) {
	t.Helper()
	for _, dir := range []string{"etc", "var", "usr/bin"} {
		s.mkdir(t, root, dir)
	}
	for from, to := range map[string]string{"sysusers.conf": "sysusers.d", "tmpfiles.conf": "tmpfiles.d"} {
		b, err := os.ReadFile("../../packaging/systemd/" + from)
		if err != nil {
			t.Fatal(err)
		}
		s.mkdir(t, root, "usr/lib", to)
		s.write(t, filepath.Join(root, "usr/lib", to, "probity.conf"), string(b))
	}
	for _, program := range [][]string{{"systemd-sysusers"}, {"systemd-tmpfiles", "--create"}} {
		cmd := exec.CommandContext(t.Context(), program[0], append(program[1:], "--root="+s.Path(root), "probity.conf")...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", program, err, out)
		}
	}
	b, err := os.ReadFile(s.Path(root, "etc/group"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		for name, id := range map[string]*uint32{"probity": &readers, "probity-ack": &ackers} {
			if rest, ok := strings.CutPrefix(line, name+":x:"); ok {
				if _, err := fmt.Sscanf(rest, "%d:", id); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if readers == 0 || ackers == 0 || readers == ackers {
		t.Fatalf("the groups are %d and %d", readers, ackers)
	}
	return readers, ackers
}

// asUnit is a program that runs another as the unit does, as far as files go.
func asUnit(t *testing.T, s *Scratch, program string) string {
	t.Helper()
	unit, err := os.ReadFile("../../packaging/systemd/probity.service")
	if err != nil {
		t.Fatal(err)
	}
	var bound, mask string
	for line := range strings.Lines(string(unit)) {
		if caps, ok := strings.CutPrefix(line, "CapabilityBoundingSet="); ok {
			bound = "-all"
			for _, c := range strings.Fields(caps) {
				bound += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
			}
		}
		if m, ok := strings.CutPrefix(line, "UMask="); ok {
			mask = strings.TrimSpace(m)
		}
	}
	if bound == "" || mask == "" {
		t.Fatal("the unit has no capabilities or no umask")
	}
	script := s.write(t, "as-unit", fmt.Sprintf("#!/bin/sh\numask %s\nexec setpriv --bounding-set=%s --inh-caps=-all %s \"$@\"\n", mask, bound, program))
	if err := os.Chmod(script, 0o755); err != nil {
		t.Fatal(err)
	}
	return script
}

// The directories as the package makes them, an agent that may do what its unit lets it,
// and real users: who is in the group reads and verifies the evidence and can write
// nothing; a shipper can write its own acknowledgement besides, and not another's; who is
// in neither gets to nothing.
func TestReadersAndShippers(t *testing.T) {
	need.Root(t)
	need.BPF(t)
	need.Cgroup2(t)
	need.Command(t, "systemd-sysusers", "systemd-tmpfiles", "setpriv")
	p := NewPodman(t)
	d, s := podmanDriver{p}, p.Scratch
	readers, ackers := packaged(t, s, "host")
	state := s.Path("host/var/lib/probity")
	spool, key := filepath.Join(state, "spool"), filepath.Join(state, "node.pub")
	programs := Programs(t)
	b, err := os.ReadFile(programs.Probity)
	if err != nil {
		t.Fatal(err)
	}
	probity := s.Path("host/usr/bin/probity") // where everybody gets to it
	if err := errors.Join(os.WriteFile(probity, b, 0o755), os.Chmod(s.Dir, 0o711)); err != nil {
		t.Fatal(err)
	}
	programs.Probity = asUnit(t, s, probity)
	o := d.agent(AgentOptions{Policies: []string{targetPolicy}, Config: fmt.Sprintf("group: %d\n", readers), Args: []string{"--state", state}})
	a := OpenAgent(t, s, programs, spool, o)
	d.attach(t, a)
	targetImage(t, d)
	p.Run(t, targetName, "hello")
	a.WaitIdle(t)

	reader, other := user{65531, []uint32{readers}}, user{65532, nil}
	shipper, second := user{65533, []uint32{readers, ackers}}, user{65534, []uint32{readers, ackers}}
	for _, c := range []struct {
		who  user
		code int
		args []string
	}{
		{reader, 0, []string{"verify", spool, "--key", key}},
		{reader, 0, []string{"evidence", "show", spool}},
		{reader, 0, []string{"evidence", "pending", spool, "--consumer", "ship"}},
		{reader, 3, []string{"evidence", "ack", spool, "--consumer", "ship"}},
		{other, 3, []string{"verify", spool, "--key", key}},
		{other, 3, []string{"evidence", "show", spool}},
		{shipper, 0, []string{"verify", spool, "--key", key}},
		{shipper, 0, []string{"evidence", "ack", spool, "--consumer", "ship"}},
		{second, 3, []string{"evidence", "ack", spool, "--consumer", "ship"}}, // it is the first one's
		{reader, 0, []string{"evidence", "pending", spool}},
	} {
		if out, code := c.who.does(t, append([]string{probity}, c.args...)...); code != c.code {
			t.Errorf("probity %v as %+v: exit code %d, want %d\n%s", c.args, c.who, code, c.code, out)
		}
	}

	ack := filepath.Join(spool, "ack")
	mine := filepath.Join(ack, "ship.json")
	paths := []string{}
	if err := filepath.WalkDir(state, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	may := func(u user, what string) string {
		out, code := u.does(t, append([]string{"/bin/sh", "-c", `for f; do if [ -$0 "$f" ]; then echo "$f"; fi; done`, what}, paths...)...)
		if code != 0 {
			t.Fatalf("exit code %d\n%s", code, out)
		}
		return strings.TrimSpace(out)
	}
	for _, c := range []struct {
		who  user
		want []string
	}{{reader, nil}, {other, nil}, {shipper, []string{ack, mine}}, {second, []string{ack}}} {
		if got := may(c.who, "w"); got != strings.Join(c.want, "\n") {
			t.Errorf("%+v may write\n%s\nwant %v", c.who, got, c.want)
		}
	}
	var read []string
	for _, path := range paths {
		if (path == spool || strings.HasPrefix(path, spool+"/")) && path != filepath.Join(spool, "reserve") || path == key {
			read = append(read, path)
		}
	}
	if got := may(reader, "r"); got != strings.Join(read, "\n") || len(read) < 10 {
		t.Errorf("a reader may read\n%s\nwant\n%s", got, strings.Join(read, "\n"))
	}
	if got := may(other, "r"); got != "" {
		t.Errorf("who is in no group may read\n%s", got)
	}
	for _, args := range [][]string{{"rm", "-f", mine}, {"mv", "-f", mine, filepath.Join(ack, "other.json")}, {"mv", mine, spool}} {
		if out, code := second.does(t, args...); code == 0 {
			t.Errorf("another shipper may: %v\n%s", args, out)
		}
	}

	// What the shipper acknowledged, the agent removes, and signs that it did.
	if code, out, errs := a.Probity(t, "evidence", "gc", "--admin-socket", a.AdminSocket); code != 0 || strings.HasPrefix(out, "0 ") {
		t.Errorf("gc: exit code %d\n%s%s", code, out, errs)
	}
	p.Run(t, targetName, "hello")
	a.WaitIdle(t)
	if out, code := reader.does(t, probity, "verify", spool, "--key", key); code != 0 || !strings.Contains(out, "removed by the node itself") {
		t.Errorf("verify: exit code %d\n%s", code, out)
	}
	a.Stop(t)
}
