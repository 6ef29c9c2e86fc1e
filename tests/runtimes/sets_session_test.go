package runtimes

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"probity/evidence"
	"probity/tests/need"
)

// An exec session is the container's from its own execve on: of what the
// runtime does in the container's cgroup before, nothing is there. The session
// here asks a name server, and works in a root of its own choice.
func TestSetsOfExecSession(t *testing.T) {
	const policy = `
name: sets
select:
  images: ["localhost/target*"]
probes:
  - {id: exec, set: exec}
  - {id: libraries, set: libraries}
  - {id: syscalls, set: syscalls}
  - {id: network, set: network}
  - {id: files, set: files}
`
	busybox, err := filepath.EvalSymlinks(need.Command(t, "busybox")[0])
	if err != nil {
		t.Fatal(err)
	}
	underEach(t, AgentOptions{Policies: []string{policy}}, func(t *testing.T, d driver, a *Agent) {
		bin := d.scratch().Path("target")
		Compile(t, bin, "-static", "-O2", "testdata/target.c")
		archive, _ := BuildImage(t, d.scratch(), targetName, []string{"/bin/target"},
			HostFile(t, bin, "/bin/target"), HostFile(t, busybox, "/bin/busybox"))
		d.load(t, archive)
		// CRI's containers have the host's network, where others may run this test too.
		pid := os.Getpid()
		server := fmt.Sprintf("127.%d.%d.%d", 128|pid>>16&63, pid>>8&255, pid&255)
		c := d.start(t, targetName, "session", "names", server, "wait")
		// Init may not have come to its server yet.
		c.exec(t, "/bin/busybox", "sh", "-c", strings.ReplaceAll("until BOX nslookup probity.test "+server+"; do BOX true; done; BOX mkdir -p /jail/bin && BOX cp /bin/busybox /jail/bin && BOX chroot /jail BOX true", "BOX", "/bin/busybox"))
		c.goOn(t)
		c.wait(t)
		e := settled(t, a)

		asked, shell, jailed := false, false, false
		for _, o := range e.Observations {
			if o.ContainerID != c.id() {
				continue
			}
			if o.Set == "syscalls" && o.Final {
				for _, calls := range o.SystemCalls {
					for _, n := range []int{unix.SYS_SETNS, unix.SYS_CAPSET, unix.SYS_PIVOT_ROOT, unix.SYS_SECCOMP, unix.SYS_KEYCTL} {
						if slices.Contains(calls.Numbers, n) {
							t.Errorf("system call %d is the runtime's", n)
						}
					}
				}
			}
			if o.Entry == nil || o.Process == nil {
				continue
			}
			comm := o.Process.Comm
			if strings.HasPrefix(comm, "runc") || strings.HasPrefix(comm, "crun") || strings.HasPrefix(comm, "conmon") || strings.Contains(o.Path, "runc") || strings.HasPrefix(o.Path, "/proc/self/attr") {
				t.Errorf("%s of the runtime: %s %+v %+v", o.Set, o.Path, o.Process, o.Entry)
			}
			session := o.Process.Session == evidence.SessionExec
			switch {
			case o.Set == "exec" && session && o.Path == "/bin/busybox":
				shell = true
			case o.Set == "exec" && strings.HasPrefix(o.Path, "/jail"):
				if o.Path != "/jail/bin/busybox" || o.Entry.Argument != "/bin/busybox" || !strings.Contains(o.Detail, "another root") {
					t.Errorf("in another root: %s %+v %q", o.Path, o.Entry, o.Detail)
				}
				jailed = true
			case o.Set == "network" && o.Entry.Operation == "dns":
				if o.Entry.Address != server || o.Entry.Port != 53 || o.Entry.Protocol != "udp" || !session {
					t.Errorf("asked %+v by %+v", o.Entry, o.Process)
				}
				asked = true
			}
		}
		if !shell || !asked || !jailed {
			t.Errorf("the session's shell: %v, its question: %v, what it did in another root: %v", shell, asked, jailed)
		}
	})
}
