package nri

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/tests/need"
)

func TestLife(t *testing.T) {
	socket := socketPath(t)
	n := start(t, socket, nil, nil)
	release := make(chan struct{})
	notices := make(chan container.Notice, 64)
	h, s := listen(t, Config{Socket: socket, Notify: func(_ context.Context, n container.Notice) error {
		notices <- n
		if n.Kind == container.Starting {
			<-release
		}
		return nil
	}})
	n.connected(t)
	receive(t, h.synced)
	ctx := context.Background()
	begin := cgroup.BootTime()

	c := running("c1", 4711)
	c.Args, c.Env = []string{"web", "--token", "secret"}, []string{"TOKEN=secret", "PATH=/opt/bin:/bin"}
	alone := start(t, socketPath(t), nil, nil) // what a runtime without plugins makes of it
	want, err := alone.CreateContainer(ctx, &api.CreateContainerRequest{Pod: pod, Container: c})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := n.CreateContainer(ctx, &api.CreateContainerRequest{Pod: pod, Container: c}); err != nil || !proto.Equal(got, want) {
		t.Errorf("CreateContainer: %v, %v; want %v", got, err, want)
	}
	if err := n.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: pod, Container: c}); err != nil {
		t.Fatal(err)
	}
	created := receive(t, notices)
	if created.Kind != container.Created || created.Pid != 0 {
		t.Errorf("created: %+v", created)
	}

	answered := make(chan error, 1)
	go func() { answered <- n.startContainer(c) }()
	starting := receive(t, notices)
	silent(t, answered)
	if starting.Kind != container.Starting || starting.Pid != 4711 || starting.Source != s.Name() || starting.At < begin || starting.At > cgroup.BootTime() {
		t.Errorf("starting: %+v", starting)
	}
	if want := (container.Command{Arg0: "web", Path: "/opt/bin:/bin"}); starting.Command != want || created.Command != want {
		t.Errorf("command: %+v, %+v", created.Command, starting.Command)
	}
	id := starting.Identity
	if id.Runtime != container.Containerd || id.ID != "c1" || id.Name != "web" || id.Pod == nil || id.Pod.Name != "web-0" || id.Pod.Namespace != "shop" || id.Pod.UID != "u-1" || id.Pod.Labels["app"] != "web" || id.CgroupID != 0 {
		t.Errorf("identity: %+v, pod %+v", id, id.Pod)
	}
	close(release)
	if err := receive(t, answered); err != nil {
		t.Error(err)
	}

	if _, err := n.StopContainer(ctx, &api.StopContainerRequest{Pod: pod, Container: c}); err != nil {
		t.Fatal(err)
	}
	if err := n.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: pod, Container: c}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []container.Kind{container.Stopped, container.Removed} {
		if got := receive(t, notices); got.Kind != want || got.Identity.ID != "c1" {
			t.Errorf("%v: %+v", want, got)
		}
	}
	select {
	case l := <-h.late:
		t.Errorf("late: %+v", l)
	default:
	}
}

// Events that do not wait do not wait for those that take long, either.
func TestOnlyStartsBlock(t *testing.T) {
	socket := socketPath(t)
	n := start(t, socket, nil, nil)
	release := make(chan struct{})
	var notified atomic.Int32
	h, _ := listen(t, Config{Socket: socket, Notify: func(context.Context, container.Notice) error {
		<-release
		notified.Add(1)
		return nil
	}})
	n.connected(t)
	receive(t, h.synced)
	for i := range 200 {
		c := running(fmt.Sprint("c", i), 7)
		if err := n.PostCreateContainer(context.Background(), &api.PostCreateContainerRequest{Pod: pod, Container: c}); err != nil {
			t.Fatal(err)
		}
	}
	if got := notified.Load(); got != 0 {
		t.Errorf("%d notified", got)
	}
	close(release)
}

func TestLate(t *testing.T) {
	socket := socketPath(t)
	n := start(t, socket, nil, nil)
	release := make(chan struct{})
	finished := make(chan error, 1)
	h, _ := listen(t, Config{Socket: socket, Barrier: 30 * time.Millisecond, Notify: func(ctx context.Context, n container.Notice) error {
		if n.Identity.ID == "slow" {
			<-release
			finished <- ctx.Err()
		}
		return nil
	}})
	n.connected(t)
	if err := n.startContainer(running("slow", 7)); err != nil {
		t.Error(err)
	}
	select { // told before the container was let go, not soon afterwards
	case got := <-h.late:
		if got.Identity.ID != "slow" || got.Kind != container.Starting {
			t.Errorf("late: %+v", got)
		}
	default:
		t.Error("the container was let go before Late was told")
	}
	if err := n.startContainer(running("quick", 8)); err != nil { // we were not cut off
		t.Error(err)
	}
	close(release)
	if err := receive(t, finished); err != nil {
		t.Errorf("what came late was cancelled: %v", err)
	}
	if got := receive(t, h.lost); got[1] != 0 {
		t.Errorf("lost %v", got)
	}
	receive(t, h.lost)
	silent(t, h.lost)
}

// A runtime with a shorter timeout than usual shortens the barrier; one that
// loses patience earlier than it said cuts us off, starts the container, and
// we come back.
func TestRuntimesTimeout(t *testing.T) {
	adaptation.SetPluginRequestTimeout(1600 * time.Millisecond)
	t.Cleanup(func() { adaptation.SetPluginRequestTimeout(adaptation.DefaultPluginRequestTimeout) })
	socket := socketPath(t)
	n := start(t, socket, nil, nil)
	release := make(chan struct{})
	h, _ := listen(t, Config{Socket: socket, Barrier: time.Hour, Notify: func(context.Context, container.Notice) error {
		<-release
		return nil
	}})
	t.Cleanup(func() { close(release) })
	n.connected(t)
	receive(t, h.synced)
	opened, closed := receive(t, h.lost), receive(t, h.lost)
	if opened[1] != 0 || closed[0] != opened[0] || closed[1] < closed[0] {
		t.Errorf("lost %v, then %v", opened, closed)
	}
	if err := n.startContainer(running("a", 7)); err != nil {
		t.Error(err)
	}
	receive(t, h.late)
	silent(t, h.lost) // within the timeout

	adaptation.SetPluginRequestTimeout(20 * time.Millisecond)
	if err := n.startContainer(running("b", 8)); err != nil {
		t.Errorf("the start failed: %v", err)
	}
	opened, closed = receive(t, h.lost), receive(t, h.lost)
	if opened[1] != 0 || closed[0] != opened[0] || closed[1] <= closed[0] {
		t.Errorf("lost %v, then %v", opened, closed)
	}
	receive(t, h.synced)
}

func TestSocketAppears(t *testing.T) {
	socket := socketPath(t)
	before := cgroup.BootTime()
	h, _ := listen(t, Config{Socket: socket})
	opened := receive(t, h.lost)
	if opened[0] < before || opened[1] != 0 {
		t.Errorf("lost %v", opened)
	}
	silent(t, h.lost) // it tries, in vain
	created := running("waits", 0)
	created.State = api.ContainerState_CONTAINER_CREATED
	stopped := running("ended", 0)
	stopped.State = api.ContainerState_CONTAINER_STOPPED
	orphan := running("orphan", 9)
	orphan.PodSandboxId = "unlisted"
	n := start(t, socket, []*api.PodSandbox{pod}, []*api.Container{running("here", 7), created, stopped, orphan})
	n.connected(t)
	if closed := receive(t, h.lost); closed[0] != opened[0] || closed[1] <= opened[0] {
		t.Errorf("lost %v after %v", closed, opened)
	}
	receive(t, h.synced) // everything listed came before it
	var got []string
	for len(h.notices) > 0 {
		n := <-h.notices
		got = append(got, fmt.Sprint(n.Kind, " ", n.Identity.ID, " ", n.Pid, " ", n.Identity.Pod.Name))
	}
	if want := "existing here 7 web-0, created waits 0 web-0, existing orphan 9 "; strings.Join(got, ", ") != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestRuntimeRestarted(t *testing.T) {
	socket := socketPath(t)
	first := spawn(t, socket)
	h, _ := listen(t, Config{Socket: socket})
	first.expect("synced <nil>")
	receive(t, h.synced)
	receive(t, h.lost)
	receive(t, h.lost)
	first.start("a")
	if n := receive(t, h.notices); n.Kind != container.Starting || n.Identity.ID != "a" {
		t.Errorf("%+v", n)
	}
	for range 3 { // more than once
		killed := cgroup.BootTime()
		first.kill()
		opened := receive(t, h.lost)
		if opened[0] < killed || opened[1] != 0 {
			t.Errorf("lost %v, killed at %d", opened, killed)
		}
		first = spawn(t, socket, running("a", 7))
		first.expect("synced <nil>")
		if closed := receive(t, h.lost); closed[0] != opened[0] || closed[1] <= opened[0] {
			t.Errorf("lost %v after %v", closed, opened)
		}
		receive(t, h.synced)
		if n := receive(t, h.notices); n.Kind != container.Existing || n.Identity.ID != "a" || n.Identity.Pod.Namespace != "shop" {
			t.Errorf("%+v", n)
		}
		first.start("b")
		if n := receive(t, h.notices); n.Kind != container.Starting || n.Identity.ID != "b" {
			t.Errorf("%+v", n)
		}
	}
}

// Between Register and Configure the stub is deaf. goleak sees to it that
// nothing of an attempt stays behind.
func TestDroppedBeforeConfigure(t *testing.T) {
	socket := socketPath(t)
	half := newHalfway(t, socket)
	h, _ := listen(t, Config{Socket: socket})
	for range 3 {
		receive(t, half.registered)()
	}
	drop := receive(t, half.registered)
	half.listener.Close()
	drop()
	bounded(t, "end the runtime", half.stop)
	n := start(t, socket, nil, nil)
	n.connected(t)
	receive(t, h.synced)
}

// A runtime whose Configure comes before its answer to the registration, and
// that is gone without one: the stub keeps the first result of a Configure and
// takes none, so that another call would never return. goleak would see it.
func TestConfiguredButNotRegistered(t *testing.T) {
	socket := socketPath(t)
	half := &halfway{registered: make(chan func(), 16), hasty: true}
	half.listen(t, socket)
	h, _ := listen(t, Config{Socket: socket})
	for range 3 {
		receive(t, half.registered)
	}
	half.listener.Close()
	bounded(t, "end the runtime", half.stop)
	n := start(t, socket, nil, nil)
	n.connected(t)
	receive(t, h.synced)
}

// A runtime that never sends Configure does not keep Run from ending.
func TestEndBeforeConfigure(t *testing.T) {
	socket := socketPath(t)
	half := newHalfway(t, socket)
	t.Cleanup(func() { bounded(t, "end the runtime", half.stop) })
	t.Run("source", func(t *testing.T) {
		listen(t, Config{Socket: socket})
		drop := receive(t, half.registered)
		t.Cleanup(drop) // after Run has returned
	})
}

// A thousand containers, with more about them than one message holds, and a
// Notify that takes its time.
func TestSynchronizeThousand(t *testing.T) {
	// How long the runtime waits for 8 MiB to be taken is the machine's affair.
	adaptation.SetPluginRequestTimeout(within)
	t.Cleanup(func() { adaptation.SetPluginRequestTimeout(adaptation.DefaultPluginRequestTimeout) })
	socket := socketPath(t)
	var (
		pods []*api.PodSandbox
		list []*api.Container
	)
	for i := range 1000 {
		c := running(fmt.Sprint("c", i), uint32(i+1))
		c.PodSandboxId = fmt.Sprint("p", i/2)
		if i%2 == 0 {
			// As many as there are in the wild: nri 0.12.5 sends 0 of one
			// pod for ever when it splits a list that is too long.
			pods = append(pods, &api.PodSandbox{Id: c.PodSandboxId, Name: c.PodSandboxId})
		}
		c.Annotations = map[string]string{"note": strings.Repeat("x", 8<<10)}
		list = append(list, c)
	}
	release := make(chan struct{})
	notices := make(chan container.Notice, 2000)
	var first atomic.Bool
	h, _ := listen(t, Config{Socket: socket, Notify: func(_ context.Context, n container.Notice) error {
		if n.Kind == container.Existing && first.CompareAndSwap(false, true) {
			<-release
		}
		notices <- n
		return nil
	}})
	begin := time.Now()
	n := start(t, socket, pods, list)
	n.connected(t)
	t.Logf("synchronized 1000 containers of 8 KiB in %v, connecting included", time.Since(begin))
	// Starts go through meanwhile.
	if err := n.startContainer(running("new", 4242)); err != nil {
		t.Error(err)
	}
	if got := receive(t, notices); got.Identity.ID != "new" {
		t.Errorf("%v %s came first", got.Kind, got.Identity.ID)
	}
	if len(h.synced) != 0 {
		t.Error("synced before everything was told")
	}
	close(release)
	receive(t, h.synced)
	if len(notices) != 1000 {
		t.Fatalf("%d notices", len(notices))
	}
	for i := range 1000 {
		if got := <-notices; got.Kind != container.Existing || got.Identity.ID != fmt.Sprint("c", i) || got.Identity.Pod.Name != fmt.Sprint("p", i/2) {
			t.Fatalf("%v %s, number %d", got.Kind, got.Identity.ID, i)
		}
	}
}

func TestNotifyBreaks(t *testing.T) {
	socket := socketPath(t)
	n := start(t, socket, nil, nil)
	var calls atomic.Int32
	h, _ := listen(t, Config{Socket: socket, Notify: func(_ context.Context, n container.Notice) error {
		calls.Add(1)
		if n.Identity.ID == "panics" {
			panic("broken")
		}
		return errors.New("broken")
	}})
	n.connected(t)
	receive(t, h.synced)
	for _, c := range []*api.Container{running("panics", 7), running("fails", 8), {Id: "bad/id", Pid: 9}, {}} {
		if err := n.startContainer(c); err != nil {
			t.Errorf("%s: %v", c.Id, err)
		}
		if err := n.RemoveContainer(context.Background(), &api.RemoveContainerRequest{Pod: pod, Container: c}); err != nil {
			t.Errorf("%s: %v", c.Id, err)
		}
	}
	if got := calls.Load(); got < 2 { // the removals may be queued still
		t.Errorf("%d calls", got)
	}
	receive(t, h.lost)
	receive(t, h.lost)
	silent(t, h.lost)
}

// A runtime that evidence has no name for is not served.
func TestUnknownRuntime(t *testing.T) {
	socket := socketPath(t)
	n, err := newNode(t.TempDir(), socket, "sandman", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bounded(t, "stop the runtime", n.Stop) })
	h, _ := listen(t, Config{Socket: socket})
	receive(t, h.lost)
	silent(t, h.synced)
	silent(t, h.lost)
}

// Somebody else listens on the socket's path.
func TestAnotherUserListens(t *testing.T) {
	need.Root(t)
	socket := socketPath(t)
	listening := make(chan net.Listener, 1)
	go func() {
		// The kernel takes the credentials of the thread that calls listen.
		// It is not unlocked, so it ends with the goroutine.
		runtime.LockOSThread()
		if err := os.Chmod(socketDir(socket), 0o777); err != nil {
			panic(err)
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			panic(errno)
		}
		l, err := net.Listen("unix", socket)
		if err != nil {
			panic(err)
		}
		listening <- l
	}()
	l := receive(t, listening)
	defer l.Close()
	s := New(Config{Socket: socket, Notify: func(context.Context, container.Notice) error { return nil }})
	if conn, err := s.dial(context.Background()); err == nil || !strings.Contains(err.Error(), "uid 65534 listens") {
		t.Errorf("%v, %v", conn, err)
	}
}

func socketDir(socket string) string { return strings.TrimSuffix(socket, "/nri.sock") }
