package handoff

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"probity/tests/need"
)

// A process of the same namespaces is a neighbour; one in a pid namespace of its own,
// which is root on the socket as well, is not.
func TestNeighbour(t *testing.T) {
	need.Root(t)
	for why, c := range map[string]struct {
		flags uintptr
		want  string
	}{
		"of the host":     {0, ""},
		"of a container":  {unix.CLONE_NEWPID, "another pid namespace"},
		"of another user": {unix.CLONE_NEWUSER, "another user namespace"},
	} {
		t.Run(why, func(t *testing.T) {
			path := filepath.Join(publicDir(t), "s")
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if err := os.Chmod(path, 0o777); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), askEnv+"="+path)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: c.flags}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			conn, err := l.AcceptUnix()
			if err != nil {
				t.Fatal(err)
			}
			err = Neighbour(conn)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			conn.Close()
			cmd.Wait()
		})
	}
}
