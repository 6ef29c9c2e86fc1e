package containerd

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"probity/tests/need"
)

// listenerEnv makes the test binary listen on a socket, as whoever it runs as.
const listenerEnv = "PROBITY_TEST_LISTENER"

const stranger = 65534

func TestMain(m *testing.M) {
	if path := os.Getenv(listenerEnv); path != "" {
		if _, err := net.Listen("unix", path); err != nil {
			panic(err)
		}
		os.Stdout.WriteString("listening\n")
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the test closes it
		return
	}
	os.Exit(m.Run())
}

// A socket is believed for who made it, who may write to it and who listens there now.
func TestDial(t *testing.T) {
	dir := t.TempDir()
	open := func(name string) string {
		path := filepath.Join(dir, name)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		if err := os.Chmod(path, 0o660); err != nil {
			t.Fatal(err)
		}
		return path
	}
	c, err := connect(context.Background(), open("own"))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()

	everybodys := open("everybodys")
	if err := os.Chmod(everybodys, 0o662); err != nil {
		t.Fatal(err)
	}
	if _, err := connect(context.Background(), everybodys); !errors.Is(err, ErrSocket) {
		t.Errorf("a socket that everybody may write to: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := connect(context.Background(), file); !errors.Is(err, ErrSocket) {
		t.Errorf("a file: %v", err)
	}
	if _, err := connect(context.Background(), filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
}

func TestDialStranger(t *testing.T) {
	need.Root(t)
	dir, err := os.MkdirTemp("", "probity-listener-") // t.TempDir is in a directory of ours alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "socket")
	self := filepath.Join(dir, "listener")
	b, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(self, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = []string{listenerEnv + "=" + path}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger}, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(line, err)
	}
	if _, err := connect(context.Background(), path); !errors.Is(err, ErrSocket) {
		t.Errorf("another user's socket: %v", err)
	}
	// As if root had made it, and another listened.
	if err := errors.Join(os.Chown(path, 0, 0), os.Chmod(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := connect(context.Background(), path); !errors.Is(err, ErrSocket) {
		t.Errorf("another user listens: %v", err)
	}
}
