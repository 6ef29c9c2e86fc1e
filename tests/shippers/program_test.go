package shippers

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// program is one that is started, killed and started again.
type program struct {
	args   []string
	output string
	ended  chan struct{} // closed when it has; nil while it does not run
	cmd    *exec.Cmd
}

func newProgram(t *testing.T, name string, args ...string) *program {
	t.Helper()
	p := &program{args: args, output: filepath.Join(t.TempDir(), name+".out")}
	t.Cleanup(func() {
		if p.ended != nil && p.running() {
			p.kill(t)
		}
		if b, err := os.ReadFile(p.output); t.Failed() && err == nil {
			t.Logf("%s said\n%s", name, b[max(0, len(b)-4000):])
		}
	})
	return p
}

func (p *program) start(t *testing.T) {
	t.Helper()
	out, err := os.OpenFile(p.output, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	defer out.Close()
	p.cmd = exec.Command(p.args[0], p.args[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	// Whatever ends the test ends it, too.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, p.cmd.Start())
	p.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) {
		_ = cmd.Wait() // how it ends is the test's doing
		close(ended)
	}(p.cmd, p.ended)
}

func (p *program) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return p.ended != nil
	}
}

func (p *program) end(t *testing.T, how syscall.Signal) {
	t.Helper()
	if !p.running() {
		t.Fatalf("%s has ended by itself: %v", p.args[0], p.cmd.ProcessState)
	}
	must(t, p.cmd.Process.Signal(how))
	select {
	case <-p.ended:
	case <-time.After(2 * time.Minute):
		t.Fatalf("%s does not end at %v", p.args[0], how)
	}
	p.ended = nil
}

func (p *program) kill(t *testing.T) { t.Helper(); p.end(t, syscall.SIGKILL) }
func (p *program) stop(t *testing.T) { t.Helper(); p.end(t, syscall.SIGTERM) }

// freePort is one that nobody listened on a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
}

func sizeOf(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}
