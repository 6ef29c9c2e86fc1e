package agent

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"probity/evidence"
	"probity/evidence/nodekey"
	"probity/evidence/redact"
	"probity/evidence/spool"
	"probity/tests/need"
)

const (
	readers  = 54321 // a group that no machine has
	shippers = 54322
	nobody   = 65534 // users
	shipper  = 54323
)

// openDir is a directory that everybody can get to, unlike t.TempDir.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "probity-share-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	return dir
}

// noRules redacts nothing.
var noRules *redact.Redactor

// writeEvidence is what the agent does with its state and spool: a key, a chunk, a
// log.
func writeEvidence(dir string) error {
	state := dir + "/state"
	if err := os.MkdirAll(state, 0o700); err != nil {
		return err
	}
	if err := share(dir+"/state/spool", state, readers); err != nil {
		return err
	}
	key, _, err := Config{Node: "n", State: state}.NodeKey()
	if err != nil {
		return err
	}
	signer, err := nodekey.Open(key)
	if err != nil {
		return err
	}
	s, err := spool.Open(spool.Config{Dir: state + "/spool", State: state, Node: "n", BootID: "b", Signer: signer, Clock: now})
	if err != nil {
		return err
	}
	err = s.Append("", func(c evidence.Clock) []redact.Line {
		return noRules.Lines(&evidence.Gap{GapID: "g", Scope: evidence.ScopeNode, Reason: evidence.GapAgentDown, From: c.Wall, Count: evidence.Loss{N: 1}})
	})
	if err != nil {
		return err
	}
	if err := s.Flush(context.Background()); err != nil {
		return err
	}
	return s.Close()
}

// as runs a shell command as nobody, in these groups.
func as(t *testing.T, script string, groups ...uint32) error {
	t.Helper()
	return asUser(t, nobody, script, groups...)
}

func asUser(t *testing.T, uid uint32, script string, groups ...uint32) error {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-ec", script)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: nobody, Groups: groups}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return err
}

// Who is in the group reads the evidence, writes none of it, and sees nothing of the
// state; who is not reads nothing. That holds for what is made later, too.
func TestReadersGroup(t *testing.T) {
	need.Root(t)
	defer unix.Umask(unix.Umask(0o027)) // as the unit has it
	dir := openDir(t)
	must(t, writeEvidence(dir))
	must(t, writeEvidence(dir)) // the second start finds all in order
	state, in := dir+"/state", dir+"/state/spool"
	chunks, err := filepath.Glob(in + "/ready/*/*.ndjson")
	must(t, err)
	if len(chunks) < 2 {
		t.Fatalf("chunks: %v", chunks)
	}
	for _, f := range append(chunks, in+"/log/checkpoint") {
		if err := as(t, "cat "+f+" >/dev/null", readers); err != nil {
			t.Errorf("a reader: %v", err)
		}
		if err := as(t, "cat "+f); err == nil {
			t.Errorf("somebody else reads %s", f)
		}
	}
	if err := as(t, "find "+in+" -type f ! -name reserve -exec cat {} + >/dev/null && find "+in+" -type d -exec ls {} + >/dev/null", readers); err != nil {
		t.Errorf("a reader does not get to all of the spool: %v", err)
	}
	seen := 0
	must(t, filepath.WalkDir(state, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path == in:
			return fs.SkipDir
		case d.Name() == "node.pub": // for everybody
		case as(t, "test -r "+path, readers) == nil:
			t.Errorf("a reader may read %s", path)
		default:
			seen++
		}
		return nil
	}))
	if seen < 3 {
		t.Errorf("of the state only %d files were tried", seen)
	}
	for _, forbidden := range []string{
		"echo x >> " + chunks[0], "rm -f " + chunks[0], "mv " + chunks[0] + " " + chunks[0] + ".x",
		"touch " + in + "/x", "touch " + in + "/ready/x", "touch " + in + "/ack/all.json", "mkdir " + in + "/log/x", "rmdir " + in + "/ack", "echo x >> " + in + "/log/checkpoint",
	} {
		if err := as(t, forbidden, readers); err == nil {
			t.Errorf("a reader may: %s", forbidden)
		}
	}
	key, err := os.Stat(state + "/node.key")
	must(t, err)
	if key.Mode().Perm() != 0o600 || key.Sys().(*syscall.Stat_t).Gid != 0 {
		t.Errorf("the key is %v, group %d", key.Mode(), key.Sys().(*syscall.Stat_t).Gid)
	}
}

// Acknowledging is for another group than reading: who may do it, and is root not,
// does it with the command's own code, and cannot touch another consumer's.
func TestWhoAcknowledges(t *testing.T) {
	need.Root(t)
	dir := openDir(t)
	must(t, writeEvidence(dir))
	ack := dir + "/state/spool/ack"
	must(t, os.Lchown(ack, 0, shippers))
	must(t, unix.Chmod(ack, 0o1775)) // as tmpfiles.d does
	must(t, os.WriteFile(ack+"/other.json", []byte("{}"), 0o644))
	self, err := os.Executable()
	must(t, err)
	copied := dir + "/test" // where nobody gets to it
	must(t, exec.CommandContext(t.Context(), "cp", self, copied).Run())
	run := "PROBITY_TEST_ACK=" + dir + "/state/spool " + copied + " -test.run=TestAckHelper"
	if err := as(t, run, readers); err == nil {
		t.Error("a reader acknowledges")
	}
	if err := asUser(t, shipper, run, readers, shippers); err != nil {
		t.Errorf("a shipper: %v", err)
	}
	must(t, as(t, "cat "+ack+"/rsyslog.json", readers)) // verify holds the log against it
	for _, forbidden := range []string{"rm -f " + ack + "/other.json", "mv -f " + ack + "/rsyslog.json " + ack + "/other.json", "echo >> " + ack + "/other.json"} {
		if err := asUser(t, shipper, forbidden, readers, shippers); err == nil {
			t.Errorf("a shipper may: %s", forbidden)
		}
	}
	must(t, writeEvidence(dir)) // the agent takes the directory as it is
	must(t, os.Lchown(ack, 0, readers))
	must(t, unix.Chmod(ack, 0o1775))
	if err := writeEvidence(dir); err == nil || !strings.Contains(err.Error(), "chgrp probity-ack") {
		t.Errorf("acknowledgements for all readers to write: %v", err)
	}
}

// TestAckHelper is what `probity evidence ack` does, in a process of its own.
func TestAckHelper(t *testing.T) {
	dir := os.Getenv("PROBITY_TEST_ACK")
	if dir == "" {
		return // it has a caller
	}
	r, err := spool.NewReader(dir, "rsyslog")
	must(t, err)
	items, err := r.Pending(t.Context())
	must(t, err)
	_, err = r.Ack(t.Context(), items[0])
	must(t, err)
}

// With the unit's capabilities, of which none gives files away, the directories that
// the package made are all that is needed; without them the error says what to do.
func TestReadersGroupWithoutCapabilities(t *testing.T) {
	need.Root(t)
	need.Command(t, "setpriv")
	unit, err := os.ReadFile("../packaging/systemd/probity.service")
	must(t, err)
	var set string
	for line := range strings.Lines(string(unit)) {
		if caps, ok := strings.CutPrefix(strings.TrimSpace(line), "CapabilityBoundingSet="); ok {
			set = "-all"
			for _, c := range strings.Fields(caps) {
				set += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
			}
		}
	}
	run := func(dir string) (string, error) {
		self, err := os.Executable()
		must(t, err)
		cmd := exec.CommandContext(t.Context(), "setpriv", "--bounding-set", set, "--inh-caps=-all", self, "-test.run=TestSpoolHelper", "-test.v")
		cmd.Env = append(os.Environ(), "PROBITY_TEST_SPOOL="+dir)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	dir := openDir(t)
	for _, d := range []struct {
		path  string
		group int
		mode  uint32
	}{{"", readers, 0o710}, {"/spool", readers, 0o2750}, {"/spool/ack", shippers, 0o1775}} { // as tmpfiles.d does
		path := dir + "/state" + d.path
		must(t, os.Mkdir(path, 0o700))
		must(t, os.Lchown(path, 0, d.group))
		must(t, unix.Chmod(path, d.mode))
	}
	if out, err := run(dir); err != nil || !strings.Contains(out, "CapEff") {
		t.Fatalf("%v\n%s", err, out)
	}
	must(t, filepath.WalkDir(dir+"/state/spool", func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Base(path) == "ack" {
			return err
		}
		st, mode, err := ownerOf(path)
		if err == nil && (int(st.Gid) != readers || d.IsDir() && mode != 0o2750 || !d.IsDir() && mode != 0o640 && filepath.Base(path) != "reserve") {
			t.Errorf("%s is %04o, group %d", path, mode, st.Gid)
		}
		return err
	}))

	out, err := run(openDir(t))
	if err == nil || !strings.Contains(out, "do it as root: chgrp -R 54321") {
		t.Errorf("without the directories: %v\n%s", err, out)
	}
}

// TestSpoolHelper is the agent's start in a process with less capabilities.
func TestSpoolHelper(t *testing.T) {
	dir := os.Getenv("PROBITY_TEST_SPOOL")
	if dir == "" {
		return // it has a caller
	}
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	var caps uint64
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			_, err := fmt.Sscanf(hex, "%x", &caps)
			must(t, err)
			t.Log(line)
		}
	}
	if caps&(1<<unix.CAP_CHOWN|1<<unix.CAP_FSETID|1<<unix.CAP_DAC_OVERRIDE|1<<unix.CAP_FOWNER) != 0 {
		t.Fatalf("capabilities %x: more than the unit has", caps)
	}
	unix.Umask(0o027)
	must(t, writeEvidence(dir))
}

func TestGroupID(t *testing.T) {
	for _, c := range []struct {
		name string
		want int
		err  string
	}{
		{"", 0, ""},
		{"990", 990, ""},
		{"daemon", 1, ""},
		{"no-such-group", 0, "is not a group of this machine: make it (groupadd --system no-such-group)"},
		{"root", 0, "is root's own"},
		{"0", 0, "is root's own"},
		{"-1", 0, "is not a group"},
		{"4294967295", 0, "is not a group"},
	} {
		got, err := groupID(c.name)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: %d, %v", c.name, got, err)
		}
	}
}

// The spool is only as open as what is above it, and the agent changes nothing there
// that is not its own.
func TestLetThrough(t *testing.T) {
	need.Root(t)
	dir := openDir(t)
	must(t, os.MkdirAll(dir+"/data/spool", 0o755))
	must(t, os.Chmod(dir+"/data", 0o700))
	err := share(dir+"/data/spool", dir+"/state", readers)
	if err == nil || !strings.Contains(err.Error(), "chmod o+x "+dir+"/data") {
		t.Errorf("%v", err)
	}
	must(t, os.Symlink(dir+"/data", dir+"/link"))
	if err := share(dir+"/link/spool", dir+"/state", readers); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("%v", err)
	}
}
