package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	node "probity/agent"
	"probity/evidence"
	"probity/runtime/handoff"
	"probity/runtime/handoff/wire"
	"probity/tests/need"
)

// user is a uid that is nobody's, and whose podman maps itself only: it needs neither
// /etc/subuid nor newuidmap.
const user = 65534

// rootless is a user's own podman, with a store of its own.
func rootless(t *testing.T, hooks func(dir string)) func(args ...string) (string, error) {
	t.Helper()
	path, runc := need.Podman(t), need.Runc(t)
	busybox := need.Command(t, "busybox", "tar")
	dir, err := os.MkdirTemp("", "hook-rootless") // conmon's socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(dir+"/home", 0o700), os.Chmod(dir, 0o755), os.Chown(dir+"/home", user, user)); err != nil {
		t.Fatal(err)
	}
	hooks(dir + "/hooks")
	home := dir + "/home"
	as := func(name string, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir = "/"
		cmd.Env = []string{"HOME=" + home, "XDG_RUNTIME_DIR=" + home + "/x", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR=" + home}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
		var text strings.Builder // its warnings of the host are on stderr
		cmd.Stdout = &text
		var errs strings.Builder
		cmd.Stderr = &errs
		if err := cmd.Run(); err != nil {
			return text.String() + errs.String(), err
		}
		return text.String(), nil
	}
	podman := func(args ...string) (string, error) {
		return as(path, append([]string{"--root", home + "/root", "--runroot", home + "/run", "--tmpdir", home + "/tmp", "--storage-driver=vfs",
			"--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime", runc, "--hooks-dir", dir + "/hooks"}, args...)...)
	}
	t.Cleanup(func() {
		if out, err := podman("rm", "--all", "--force", "--time=0"); err != nil {
			t.Errorf("%s, %v", out, err)
		}
		// The process that keeps the user's namespace, if there is one, is in a file of
		// --tmpdir.
		if b, err := os.ReadFile(home + "/tmp/pause.pid"); err == nil {
			if out, err := as("/bin/sh", "-c", "kill -9 "+strings.TrimSpace(string(b))); err != nil {
				t.Errorf("%s, %v", out, err)
			}
		}
		tick := time.NewTicker(20 * time.Millisecond) // what cleans up behind a container is still at it
		defer tick.Stop()
		for deadline := time.Now().Add(within); ; <-tick.C {
			err := os.RemoveAll(dir)
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Error(err)
				return
			}
		}
	})
	script := "mkdir -p x i/bin && cp " + busybox[0] + " i/bin/busybox && ln -s busybox i/bin/sh && tar --owner=0 --group=0 -C i -cf i.tar ."
	if out, err := as("/bin/sh", "-c", "cd "+home+" && "+script); err != nil {
		t.Fatalf("%s, %v", out, err)
	}
	if out, err := podman("import", home+"/i.tar", image); err != nil {
		t.Fatalf("podman import: %s, %v", out, err)
	}
	return podman
}

// A user's own podman starts containers and ends them whatever the hook, the agent
// and the operator's file say, and nothing of the hook is in what he reads.
func TestPodmanRootless(t *testing.T) {
	need.Podman(t)
	dir := publicDir(t)
	closed, his := file(t, dir+"/closed", "closed\n", 0o644), file(t, dir+"/his", "closed\n", 0o644)
	if err := os.Chown(his, user, user); err != nil {
		t.Fatal(err)
	}
	asked := make(chan wire.Stage, 8)
	private := agent(t, handoff.Config{Handle: func(_ context.Context, r handoff.Request) handoff.Answer {
		t.Error("the agent of root's containers was asked")
		return handoff.Answer{Refuse: true}
	}})
	if err := os.Chmod(filepath.Dir(private), 0o755); err != nil { // the socket itself says no
		t.Fatal(err)
	}
	refusing := listen(t, func(c net.Conn) {
		head := make([]byte, wire.HeaderBytes)
		io.ReadFull(c, head)
		asked <- wire.Stage(head[len(wire.Magic)])
		io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(head[len(wire.Magic)+1:])))
		c.Write(wire.AppendAnswer(nil, wire.Refuse, "no"))
	})
	reachable(t, refusing)
	for _, test := range []struct {
		name, socket, policy string
		asks                 int
	}{
		{"no agent", "/none/hook.sock", closed, 0},
		{"no agent, and a file of his", "/none/hook.sock", his, 0}, // root's, as his podman's namespace sees it
		{"an agent that he may not ask", private, his, 0},
		{"who refuses everybody", refusing, closed, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			podman := rootless(t, func(dir string) {
				hookFiles(t, dir, test.socket, "--fail-policy", test.policy)
			})
			out, err := podman("run", "--rm", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--network=none", image,
				"/bin/sh", "-c", "echo ran; exec /bin/busybox cat /proc/self/uid_map")
			if f := strings.Fields(out); err != nil || len(f) != 4 || f[0] != "ran" || f[2] != "65534" || f[3] != "1" {
				t.Errorf("%q, %v", out, err)
			}
			for range test.asks { // so the hook has run
				select {
				case stage := <-asked:
					if !stage.Valid() {
						t.Errorf("stage %d", stage)
					}
				case <-time.After(within):
					t.Fatal("the hook has not asked")
				}
			}
		})
	}
}

// selected is a policy for every container.
const selected = `name: all
probes:
  - id: shell
    type: uprobe
    file: /bin/busybox
    symbols: [main]
  - id: exec
    type: tracepoint
    event: sched:sched_process_exec
`

// ran is an agent that runs until end is called, which returns its lines.
func ran(t *testing.T, dir string, cfg node.Config) (end func() []evidence.Line) {
	t.Helper()
	if err := errors.Join(os.Mkdir(dir+"/policies.d", 0o755), os.WriteFile(dir+"/policies.d/all.yaml", []byte(selected), 0o600)); err != nil {
		t.Fatal(err)
	}
	ready := make(chan bool)
	cfg.Node, cfg.State, cfg.Policies, cfg.AdminSocket = "test", dir+"/state", dir+"/policies.d", dir+"/admin.sock"
	cfg.NRISockets, cfg.RuntimeStates, cfg.Version, cfg.Ready = []string{"none"}, []string{"none"}, "test", func() { close(ready) }
	a, err := node.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	<-ready
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return func() (lines []evidence.Line) {
		stop()
		files, err := filepath.Glob(dir + "/state/spool/ready/*/*.ndjson")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			all := strings.Split(strings.TrimSpace(string(b)), "\n")
			for _, text := range all[1 : len(all)-1] {
				l, err := evidence.Decode(text)
				if err != nil {
					t.Fatal(err)
				}
				lines = append(lines, l)
			}
		}
		return lines
	}
}

// Where an operator opts in, the agent is told of a user's container, and believes it. It
// has no cgroup of its own here, as those that podman's cgroupfs manager makes: that is
// signed, and not that nothing was executed.
func TestPodmanRootlessTells(t *testing.T) {
	dir := publicDir(t)
	socket := dir + "/rootless.sock"
	end := ran(t, dir, node.Config{HookSocket: "none", RootlessHookSocket: socket})
	podman := rootless(t, func(dir string) { hookFiles(t, dir, socket) })
	out, err := podman("run", "--name=mine", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--network=none", image, "/bin/sh", "-c", "echo ran")
	if err != nil || out != "ran\n" {
		t.Errorf("%q, %v", out, err)
	}
	var last *evidence.Coverage
	states := map[string]evidence.NotArmedReason{}
	for _, l := range end() {
		switch l := l.(type) {
		case *evidence.Coverage:
			last = l
		case *evidence.Observation:
			states[l.ProbeID+" "+string(l.State)] = l.Reason
		case *evidence.Gap:
			if l.Scope != evidence.ScopeNode {
				t.Errorf("gap %+v", l)
			}
		}
	}
	if last == nil || last.Source != "rootless:65534" || last.Runtime != "podman" || last.ContainerName != "mine" || last.Image != image || last.CgroupID != 0 || last.CgroupPath != "" ||
		last.ImageDigest != "" || !strings.Contains(last.ImageDigestReason, "which says that it is image id sha256:") {
		b, _ := json.Marshal(last)
		t.Errorf("%s", b)
	}
	if len(states) != 2 || states["shell notArmed"] != evidence.SharedCgroup || states["exec notArmed"] != evidence.SharedCgroup {
		t.Errorf("%v", states)
	}
}
