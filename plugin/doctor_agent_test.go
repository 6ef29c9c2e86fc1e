package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/agent"
	"probity/evidence"
	"probity/evidence/nodekey"
	"probity/evidence/redact"
	"probity/evidence/sign"
	"probity/evidence/spool"
	"probity/tests/need"
)

func judged(t *testing.T, got check, status, what string) {
	t.Helper()
	if got.Status != status || !strings.Contains(got.What, what) || (got.Advice == "") != (status == checkOK || status == checkSkip) {
		t.Errorf("%+v, want %s with %q", got, status, what)
	}
}

func TestDoctorService(t *testing.T) {
	show := func(load, active, enabled, restarts, result, exit string) string {
		return fmt.Sprintf("Result=%s\nNRestarts=%s\nExecMainStatus=%s\nLoadState=%s\nActiveState=%s\nUnitFileState=%s\n", result, restarts, exit, load, active, enabled)
	}
	for _, c := range []struct{ show, status, what string }{
		{show("loaded", "active", "enabled", "0", "success", "0"), checkOK, "runs"},
		{show("loaded", "active", "disabled", "0", "success", "0"), checkWarn, "not start at boot"},
		{show("loaded", "active", "enabled", "3", "success", "0"), checkWarn, "3 restarts"},
		{show("loaded", "inactive", "enabled", "0", "success", "0"), checkFail, "inactive"},
		{show("loaded", "activating", "enabled", "2", "exit-code", "1"), checkFail, "activating"},
		{show("loaded", "failed", "enabled", "30", "exit-code", "3"), checkFail, "exit-code, exit status 3"},
		{show("loaded", "failed", "enabled", "0", "exit-code", "4"), checkFail, "the token refused the PIN"},
		{show("not-found", "inactive", "", "0", "success", "0"), checkWarn, "not installed"},
		{show("bad-setting", "inactive", "", "0", "success", "0"), checkFail, "bad-setting"},
		{"", checkFail, ""},
	} {
		judged(t, judgeService(c.show), c.status, c.what)
	}
}

func TestDoctorAgent(t *testing.T) {
	well := func() agent.Status {
		return agent.Status{Version: versionString(), Sources: map[string]string{"containerd": "connected", "hook": "listening on /x", "events": "no socket yet"}, Live: 7}
	}
	for name, c := range map[string]struct {
		change func(*agent.Status)
		status string
		what   string
	}{
		"well":         {func(*agent.Status) {}, checkOK, "live runs: 7"},
		"another":      {func(s *agent.Status) { s.Version = "v0" }, checkWarn, "version v0"},
		"cannot sign":  {func(s *agent.Status) { s.Unsigned = "the token is gone" }, checkFail, "the token is gone"},
		"disconnected": {func(s *agent.Status) { s.Sources["containerd"] = "disconnected: gone" }, checkWarn, "of containerd it hears nothing"},
		"a problem":    {func(s *agent.Status) { s.Problems = []string{"no policy"} }, checkWarn, "no policy"},
		"dropped":      {func(s *agent.Status) { s.Stored.Dropped = map[string]uint64{"containerQuota": 4, "none": 0} }, checkWarn, "4 lines dropped"},
	} {
		st := well()
		c.change(&st)
		got := judgeAgent(st)
		if len(got) != 1 {
			t.Errorf("%s: %+v", name, got)
		}
		judged(t, got[0], c.status, c.what)
	}
	judged(t, checkAgent(t.Context(), agent.Config{AdminSocket: filepath.Join(t.TempDir(), "none")})[0], checkSkip, "see admin socket")
}

// The key is one that the agent made; it is broken in each way.
func TestDoctorKey(t *testing.T) {
	need.Root(t)
	for name, c := range map[string]struct {
		change func(state string) error
		key    string
		status string
		what   string
	}{
		"well":             {func(string) error { return nil }, "", checkOK, "SHA256:"},
		"others read it":   {func(s string) error { return os.Chmod(s+"/node.key", 0o640) }, "", checkFail, "mode 0640"},
		"another's":        {func(s string) error { return os.Chown(s+"/node.key", 1, 1) }, "", checkFail, "user 1"},
		"lost":             {func(s string) error { return os.Remove(s + "/node.key") }, "", checkFail, "no such file"},
		"no key":           {func(s string) error { return os.WriteFile(s+"/node.key", []byte("x\x1b[2J"), 0o600) }, "", checkFail, "node.key"},
		"others' state":    {func(s string) error { return os.Chmod(s, 0o777) }, "", checkFail, "others than root may change it"},
		"none yet":         {func(s string) error { return errors.Join(os.Remove(s+"/node.key"), os.Remove(s+"/node.pub")) }, "", checkSkip, "none yet"},
		"none on a token":  {func(s string) error { return errors.Join(os.Remove(s+"/node.key"), os.Remove(s+"/node.pub")) }, "pkcs11:token=x;object=y?module-path=/x&pin-source=/x", checkWarn, "none yet"},
		"a token's":        {func(s string) error { return os.Remove(s + "/node.key") }, "pkcs11:token=x;object=y?module-path=/x&pin-source=/x", checkOK, "not opened here"},
		"a source unknown": {func(string) error { return nil }, "floppy", checkFail, "floppy"},
		"a FIFO":           {func(s string) error { return errors.Join(os.Remove(s+"/node.key"), unix.Mkfifo(s+"/node.key", 0o600)) }, "", checkFail, "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			state := filepath.Join(t.TempDir(), "state")
			if err := os.Mkdir(state, 0o700); err != nil {
				t.Fatal(err)
			}
			s, err := nodekey.Init(nodekey.Config{State: state, Source: nodekey.Source{Kind: nodekey.File}})
			if err == nil {
				err = errors.Join(s.Close(), c.change(state))
			}
			if err != nil {
				t.Fatal(err)
			}
			judged(t, checkKey(agent.Config{State: state, Key: c.key, KeyHelper: "/nonexistent"}), c.status, c.what)
		})
	}
}

func TestDoctorClock(t *testing.T) {
	judged(t, judgeClock(0, 0, 1500*time.Microsecond), checkOK, "at most 2ms off")
	judged(t, judgeClock(5, 0, 0), checkWarn, "nothing keeps it right")
	judged(t, judgeClock(0, unix.STA_UNSYNC, 0), checkWarn, "nothing keeps it right")
	// Whatever this machine's is, the kernel says so.
	if got := checkClock(); got.Status != checkOK && got.Status != checkWarn {
		t.Errorf("%+v", got)
	}
}

func TestDoctorSpace(t *testing.T) {
	const m = 1 << 20
	for _, c := range []struct {
		quota, used, free int64
		status, what      string
	}{
		{1024, 100 * m, 2048 * m, checkOK, "100.0 MiB in 3 chunks, 2048.0 MiB free on the disk, quota 1024.0 MiB"},
		{1024, 100 * m, 900 * m, checkWarn, "full before the quota"},
		{1024, 1000 * m, 100 * m, checkOK, ""},
		{-1, 100 * m, 100 * m, checkOK, "no quota"},
		{1024, 1024 * m, 63 * m, checkFail, "dropped when it is full"},
	} {
		judged(t, judgeSpace(agent.Config{SpoolQuotaMiB: c.quota}, held{3, c.used}, c.free), c.status, c.what)
	}
}

// A real spool, with a consumer that acknowledges, falls behind and writes nonsense.
func TestDoctorSpool(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	signer, err := sign.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, "spool")
	cfg := agent.Config{Spool: at, SpoolQuotaMiB: -1}
	look := func(n int) []check {
		t.Helper()
		got := checkSpool(t.Context(), cfg)
		if len(got) != n {
			t.Fatalf("%d checks, want %d: %+v", len(got), n, got)
		}
		return got
	}
	judged(t, look(1)[0], checkSkip, "none yet")
	boot := int64(1e12)
	s, err := spool.Open(spool.Config{Dir: at, State: filepath.Join(dir, "state"), Node: "n", BootID: "5b1a7f9e-3c0d-4e2a-9b8c-7d6e5f4a3b2c", Signer: signer,
		Clock: func() evidence.Clock {
			boot += 1e6
			return evidence.Clock{BootNs: evidence.Uint64(boot), Wall: evidence.TimeOf(time.Unix(1_700_000_000, boot))}
		}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		err := s.Append("", func(c evidence.Clock) []redact.Line {
			at := c.Time(int64(c.BootNs))
			return noRules.Lines(&evidence.Gap{GapID: fmt.Sprint(i), Scope: evidence.ScopeNode, Reason: evidence.GapAgentDown, From: at, To: at})
		})
		if err := errors.Join(err, s.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	judged(t, look(1)[0], checkOK, "in 3 chunks")

	r, err := spool.NewReader(at, "siem")
	if err != nil {
		t.Fatal(err)
	}
	items, err := r.Pending(t.Context())
	if err != nil || len(items) != 3 {
		t.Fatalf("%v, %v", items, err)
	}
	if _, err := r.Ack(t.Context(), items[0]); err != nil {
		t.Fatal(err)
	}
	judged(t, look(2)[1], checkOK, "consumer siem: 2 chunks are not acknowledged")
	long := time.Now().Add(-2 * lateAck)
	if err := os.Chtimes(items[1].Path, long, long); err != nil {
		t.Fatal(err)
	}
	judged(t, look(2)[1], checkWarn, "2 chunks are not acknowledged, the oldest of "+long.UTC().Format(time.RFC3339))
	if _, err := r.Ack(t.Context(), items[2]); err != nil {
		t.Fatal(err)
	}
	judged(t, look(2)[1], checkOK, "everything")
	if err := os.WriteFile(filepath.Join(at, spool.AckDir, "x.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	judged(t, look(3)[1], checkWarn, "not an acknowledgement")
	if err := os.Chmod(at, 0o777); err != nil {
		t.Fatal(err)
	}
	judged(t, look(1)[0], checkFail, "mode 0777")
}
