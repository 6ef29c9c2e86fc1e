// Package tokens gives tests the places in which a key can be kept: a TPM 2.0 and a
// PKCS#11 token, both emulated in software by what distributions package.
//
// In: a test, and swtpm or SoftHSM as installed. Out: something that speaks as the
// real thing does. It ends with the test.
package tokens

import (
	"bytes"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"os"

	"probity/tests/need"
)

// TPM is an emulated TPM 2.0.
type TPM struct {
	// Socket is its path.
	Socket string

	t     testing.TB
	state string
	args  []string
	cmd   *exec.Cmd
}

// NewTPM needs swtpm, and starts one with nothing in it.
func NewTPM(t testing.TB) *TPM {
	t.Helper()
	return start(t, "--server", "type=unixio,path=SOCKET", "--flags", "not-need-init,startup-clear")
}

// NewChip is a TPM for a virtual machine of QEMU, which alone can talk to it.
func NewChip(t testing.TB) *TPM {
	t.Helper()
	return start(t, "--ctrl", "type=unixio,path=SOCKET")
}

func start(t testing.TB, args ...string) *TPM {
	t.Helper()
	need.Command(t, "swtpm")
	dir, err := os.MkdirTemp("", "swtpm") // short: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &TPM{Socket: filepath.Join(dir, "s"), t: t, state: dir}
	for _, a := range args {
		m.args = append(m.args, strings.ReplaceAll(a, "SOCKET", m.Socket))
	}
	t.Cleanup(m.Stop)
	m.Start()
	return m
}

// Start starts it with the state that it has. It answers when Start returns.
func (m *TPM) Start() {
	m.t.Helper()
	swtpm := need.Command(m.t, "swtpm")[0]
	m.cmd = exec.Command(swtpm, append([]string{"socket", "--tpm2", "--tpmstate", "dir=" + m.state}, m.args...)...)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	m.cmd.Stdout, m.cmd.Stderr = &said, &said
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := net.Dial("unix", m.Socket)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("swtpm does not listen: %v\n%s", err, said.Bytes())
		}
		time.Sleep(time.Millisecond) // nothing announces it
	}
}

// Stop kills it, as loss of power would.
func (m *TPM) Stop() {
	if m.cmd == nil {
		return
	}
	m.cmd.Process.Kill()
	m.cmd.Wait()
	m.cmd = nil
	os.Remove(m.Socket)
}

// Hang lets it take commands and answer none.
func (m *TPM) Hang() { m.signal(syscall.SIGSTOP) }

// Wake ends a Hang.
func (m *TPM) Wake() { m.signal(syscall.SIGCONT) }

func (m *TPM) signal(s syscall.Signal) {
	m.t.Helper()
	if err := m.cmd.Process.Signal(s); err != nil {
		m.t.Fatal(err)
	}
}
