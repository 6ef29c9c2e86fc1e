package systemd_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"probity/evidence"
	"probity/evidence/verify"
)

// locked: an agent whose token refuses the PIN, or is locked, is started once. The token
// is a helper that says so.
func (m *machine) locked(t *testing.T) {
	const dir, config = "/var/lib/probity-locked", "/etc/probity/probity.yaml"
	was, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		write(t, config, string(was))
		said(t, "systemctl", "reset-failed", unit)
		said(t, "systemctl", "restart", unit)
		active(t)
	}()
	for kind, why := range map[string]string{`\002`: "the token refuses the PIN", `\003`: "the token's PIN is locked"} {
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "pin"), []byte("1234"), 0o600)); err != nil {
			t.Fatal(err)
		}
		tries, helper := filepath.Join(dir, "tries"), filepath.Join(dir, "helper")
		write(t, helper, "#!/bin/sh\necho one >>"+tries+"\ndd bs=1 count=1 of=/dev/null 2>/dev/null\nprintf '\\000\\000\\000\\003"+kind+"no'\ncat >/dev/null\n")
		if err := os.Chmod(helper, 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, config, "state: "+dir+"/state\nkey: pkcs11:token=t;object=node?module-path="+helper+"&pin-source="+dir+"/pin\nkeyHelper: "+helper+"\n")
		said(t, "systemctl", "reset-failed", unit)
		if out, code := tried(t, "systemctl", "restart", unit); code == 0 {
			t.Errorf("it was started\n%s", out)
		}
		// A failure that is tried again is activating (auto-restart) until the next start.
		is := said(t, "systemctl", "show", "--property=ActiveState,NRestarts,ExecMainStatus", unit)
		for _, want := range []string{"ActiveState=failed\n", "NRestarts=0\n", "ExecMainStatus=4\n"} {
			if !strings.Contains(is, want) {
				t.Errorf("%s: want %s, got\n%s", why, want, is)
			}
		}
		if b, err := os.ReadFile(tries); err != nil || string(b) != "one\n" {
			t.Errorf("tried: %q, %v", b, err)
		}
		if out := said(t, "journalctl", "--no-pager", "--boot", "--output=cat", "--unit="+unit); !strings.Contains(out, why) {
			t.Errorf("it does not say that %s", why)
		}
	}
}

// asked asks on the hook socket what is no request, and returns when that is answered.
func asked(t testing.TB) {
	t.Helper()
	c, err := net.Dial("unix", hookSock)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("no request\n")); err != nil {
		t.Error(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
}

// during: a container that starts while the agent is restarted waits for the next one,
// at most as long as its hook does.
func (m *machine) during(t *testing.T) {
	pid := mainPid(t)
	began := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	asked(t)
	t.Logf("from SIGKILL to the first answer on the hook socket: %.2f s", time.Since(began).Seconds())
	until(t, "systemd has it for active", func() bool { return property(t, unit, "ActiveState") == "active" })

	dir := layered(t, "during", m.target, "await", "1", "hello", "7", "hello", "0")
	pid = mainPid(t)
	began = time.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if out, code := tried(t, "systemctl", "restart", unit); code != 0 {
			t.Errorf("restart: %s", out)
		}
	}()
	until(t, "the agent has ended", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
	gone := time.Now()
	c := begin(t, dir, "during")
	waited := time.Since(gone)
	<-done
	ready := time.Since(gone)
	until(t, "the container is armed", func() bool { st := ask(t, "/status"); return st.LiveRuns == 1 && st.Waiting == 0 })
	c.end(t)
	idle(t)
	rep := report(t, m.key)
	if !slices.ContainsFunc(rep.Rows, func(r verify.Row) bool {
		return r.ContainerID == "during" && r.ProbeID == "function" && r.State == evidence.Hit && r.Count != nil && *r.Count == 7
	}) {
		t.Errorf("its calls were not counted: %+v", rep.Rows)
	}
	var gaps []string
	for _, g := range rep.Gaps {
		if g.ContainerID == "during" {
			gaps = append(gaps, string(g.Reason))
			if ready < 1500*time.Millisecond && g.Reason != evidence.GapLateAttach {
				t.Errorf("a gap: %+v", g)
			}
		}
	}
	t.Logf("systemctl restart: %.2f s, without an agent %.2f s; a container that started then ran after %.2f s, with gaps %q",
		gone.Sub(began).Seconds()+ready.Seconds(), ready.Seconds(), waited.Seconds(), gaps)
}

// ends: who ends the agent by a signal, and not by systemctl, has systemd know that it
// ends, so that its watchdog does not count any more; and it is started again.
func (m *machine) ends(t *testing.T) {
	pid := mainPid(t)
	n, err := strconv.Atoi(property(t, unit, "NRestarts"))
	if err != nil {
		t.Fatal(err)
	}
	said(t, "systemctl", "log-level", "debug")
	defer said(t, "systemctl", "log-level", "info")
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	restarted(t, n+1, pid)
	out := said(t, "journalctl", "--no-pager", "--boot", "--output=cat", "_PID=1")
	for _, want := range []string{"STOPPING=1", "EXTEND_TIMEOUT_USEC=30000000"} {
		if !strings.Contains(out, want) {
			t.Errorf("systemd was not told %s", want)
		}
	}
}
