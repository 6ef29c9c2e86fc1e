package bench

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"probity/tests/need"
	"probity/tests/runtimes"
)

// created makes what a runtime has made by createRuntime: a bundle, and a process
// that waits in a mount namespace and a cgroup of its own. It is a container as
// docker would start it, which no policy is for.
func created(b *testing.B) (bundle, state string) {
	b.Helper()
	const id = "bench"
	bundle = filepath.Join(b.TempDir(), "io.containerd.runtime.v2.task", "moby", id)
	rootfs := filepath.Join(bundle, "rootfs")
	must(b, os.MkdirAll(rootfs, 0o755))
	must(b, os.WriteFile(filepath.Join(bundle, "config.json"), []byte(`{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"args":["/bin/true"],"cwd":"/"}}`), 0o600))
	cg, _ := room(b, "hook")
	init := exec.Command("cat") // until its pipe is closed, however that comes
	init.Dir = rootfs
	init.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, UseCgroupFD: true, CgroupFD: int(cg.Fd())}
	pipe, err := init.StdinPipe()
	must(b, err)
	must(b, init.Start())
	b.Cleanup(func() { must(b, pipe.Close()); must(b, init.Wait()) })
	return bundle, fmt.Sprintf(`{"ociVersion":"1.0.2","id":%q,"status":"creating","pid":%d,"bundle":%q}`, id, init.Process.Pid, bundle)
}

// BenchmarkHook measures the hook as a whole process, with an agent that answers,
// with none, and while it restarts. Beside it are the fork and exec of a program
// that does nothing, and of one in Go, whose runtime is most of the hook's time.
func BenchmarkHook(b *testing.B) {
	need.Root(b)
	agent := runtimes.StartAgent(b, runtimes.AgentOptions{})
	bins := runtimes.Programs(b)
	bundle, state := created(b)
	hook := func(socket string) *exec.Cmd {
		cmd := exec.Command(bins.Hook, "createRuntime", "--socket", socket)
		cmd.Dir, cmd.Stdin = bundle, strings.NewReader(state)
		return cmd
	}
	if out, err := hook(agent.HookSocket).CombinedOutput(); err != nil || len(out) > 0 {
		b.Fatalf("the agent does not believe the container: %v\n%s", err, out)
	}
	dir := b.TempDir()
	empty := filepath.Join(dir, "empty")
	must(b, os.WriteFile(empty+".go", []byte("package main\n\nfunc main() {}\n"), 0o600))
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", empty, empty+".go")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("go build: %v\n%s", err, out)
	}
	left := filepath.Join(dir, "left.sock") // of an agent that was killed
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left})
	must(b, err)
	l.SetUnlinkOnClose(false)
	must(b, l.Close())

	const rounds = 200
	var floor, goFloor, up, absent, refused []float64
	for range rounds {
		floor = append(floor, timed(b, exec.Command("/bin/true")))
		goFloor = append(goFloor, timed(b, exec.Command(empty)))
		up = append(up, timed(b, hook(agent.HookSocket)))
		absent = append(absent, timed(b, hook("/nonexistent/probity.sock")))
		refused = append(refused, timed(b, hook(left)))
	}
	var while []float64
	over := make(chan struct{})
	var asking sync.WaitGroup
	asking.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
				began := time.Now()
				if err := hook(agent.HookSocket).Run(); err != nil {
					b.Error(err)
					return
				}
				while = append(while, ms(time.Since(began)))
			}
		}
	})
	for range 3 {
		agent.Stop(b)
		agent.Start(b)
	}
	close(over)
	asking.Wait()

	floors := fmt.Sprintf("(/bin/true %.2f, empty Go %.2f)", median(floor), median(goFloor))
	judged(b, median(up) <= 2, "hook, whole process, agent up, p50", "<= 2 ms", "%.2f ms %s", median(up), floors)
	judged(b, median(absent) <= 2, "hook, whole process, socket absent, p50", "<= 2 ms", "%.2f ms", median(absent))
	row(b, "  a killed agent's socket, p50", "measured", "%.2f ms", median(refused))
	judged(b, slices.Max(while) <= 2000, "hook, whole process, agent restarting, the worst", "<= its deadline, 2 s", "%.1f ms of %d, p50 %.2f ms", slices.Max(while), len(while), median(while))
	b.ReportMetric(median(up), "ms-up")
	b.ReportMetric(median(absent), "ms-absent")
}
