package nri

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/ttrpc"
	"go.uber.org/goleak"

	"probity/runtime/container"
)

// runtimeEnv makes the test binary a runtime, to be killed.
const runtimeEnv = "PROBITY_TEST_NRI_RUNTIME"

func TestMain(m *testing.M) {
	nrilog.Set(quiet{})
	if socket := os.Getenv(runtimeEnv); socket != "" {
		runtimeRole(socket)
		return
	}
	goleak.VerifyTestMain(m)
}

type quiet struct{}

func (quiet) Debugf(context.Context, string, ...any) {}
func (quiet) Infof(context.Context, string, ...any)  {}
func (quiet) Warnf(context.Context, string, ...any)  {}
func (quiet) Errorf(context.Context, string, ...any) {}

const within = 3 * time.Minute // a deadline that is only met when something is broken

// node is a runtime's side of NRI: the real adaptation on a real socket.
type node struct {
	*adaptation.Adaptation
	synced chan error // one for each plugin that was synchronized, or not
	pods   []*api.PodSandbox
	list   []*api.Container
}

func newNode(dir, socket, name string, pods []*api.PodSandbox, list []*api.Container) (*node, error) {
	n := &node{synced: make(chan error, 64), pods: pods, list: list}
	sync := func(ctx context.Context, f adaptation.SyncCB) error {
		_, err := f(ctx, n.pods, n.list)
		n.synced <- err
		return err
	}
	update := func(context.Context, []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
		return nil, fmt.Errorf("we never ask for updates")
	}
	var err error
	n.Adaptation, err = adaptation.New(name, "2.4.2", sync, update, adaptation.WithSocketPath(socket),
		adaptation.WithPluginPath(filepath.Join(dir, "plugins")), adaptation.WithPluginConfigPath(filepath.Join(dir, "conf.d")))
	if err != nil {
		return nil, err
	}
	if err := n.Start(); err != nil {
		return nil, err
	}
	select {
	case err := <-n.synced: // of the plugins that the runtime starts itself: none
		return n, err
	case <-time.After(within):
		return nil, errors.New("the runtime does not synchronize")
	}
}

func start(t *testing.T, socket string, pods []*api.PodSandbox, list []*api.Container) *node {
	t.Helper()
	n, err := newNode(t.TempDir(), socket, "containerd", pods, list)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bounded(t, "stop the runtime", n.Stop) })
	return n
}

// startContainer is the runtime's call at the barrier.
func (n *node) startContainer(c *api.Container) error {
	return n.StartContainer(context.Background(), &api.StartContainerRequest{Pod: pod, Container: c})
}

// connected waits until a plugin takes part in events: the adaptation adds it
// after its Synchronize, and blocks synchronization no longer than that.
func (n *node) connected(t *testing.T) {
	t.Helper()
	if err := receive(t, n.synced); err != nil {
		t.Fatalf("synchronize: %v", err)
	}
	bounded(t, "wait for the plugin to take part", func() { n.BlockPluginSync().Unblock() })
}

var pod = &api.PodSandbox{Id: "p0d", Name: "web-0", Namespace: "shop", Uid: "u-1", Labels: map[string]string{"app": "web"}}

func running(id string, pid uint32) *api.Container {
	return &api.Container{Id: id, PodSandboxId: pod.Id, Name: "web", Pid: pid, State: api.ContainerState_CONTAINER_RUNNING,
		Labels: map[string]string{labelContainer: "web"}}
}

// heard records what a source says.
type heard struct {
	notices chan container.Notice
	late    chan container.Notice
	lost    chan [2]int64
	synced  chan struct{}
}

// listen runs a source. Whatever cfg sets stays.
func listen(t *testing.T, cfg Config) (*heard, *Source) {
	t.Helper()
	h := &heard{make(chan container.Notice, 4096), make(chan container.Notice, 64), make(chan [2]int64, 64), make(chan struct{}, 64)}
	if notify := cfg.Notify; notify == nil {
		cfg.Notify = func(_ context.Context, n container.Notice) error { h.notices <- n; return nil }
	}
	cfg.Late = func(n container.Notice, _ bool) error { h.late <- n; return nil }
	cfg.Lost = func(from, to int64) { h.lost <- [2]int64{from, to} }
	cfg.Synced = func() { h.synced <- struct{}{} }
	s := New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := receive(t, done); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return h, s
}

func receive[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(within):
		t.Fatal("nothing came")
	}
	return v
}

// bounded fails if f does not return: what waits for ever names itself here and
// not in the dump of a test binary that was killed.
func bounded(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(within):
		buf := make([]byte, 1<<20)
		t.Fatalf("%s: it does not return\n%s", what, buf[:runtime.Stack(buf, true)])
	}
}

// silent fails if something comes in a while. A test that cannot fail by being
// slow needs no more.
func silent[T any](t *testing.T, c <-chan T) {
	t.Helper()
	select {
	case v := <-c:
		t.Fatalf("%v came", v)
	case <-time.After(50 * time.Millisecond):
	}
}

// socketPath is short enough for a socket.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nri")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "nri.sock")
}

// process is a runtime in a process of its own, that can be killed.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	out *bufio.Reader
	in  interface{ Write([]byte) (int, error) }
}

// spawn starts one. It has the containers listed.
func spawn(t *testing.T, socket string, list ...*api.Container) *process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), runtimeEnv+"="+socket, runtimeEnv+"_LIST="+string(b))
	cmd.Stderr = os.Stderr
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
	p := &process{t, cmd, bufio.NewReader(out), in}
	t.Cleanup(p.kill)
	p.expect("listening")
	return p
}

func (p *process) expect(want string) {
	p.t.Helper()
	late := time.AfterFunc(within, func() { p.cmd.Process.Kill() }) // ends the reading
	defer late.Stop()
	if line, err := p.out.ReadString('\n'); err != nil || line != want+"\n" {
		p.t.Fatalf("the runtime says %q, %v; want %q", line, err, want)
	}
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// start has the runtime start a container.
func (p *process) start(id string) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, id); err != nil {
		p.t.Fatal(err)
	}
	p.expect("started " + id)
}

func runtimeRole(socket string) {
	var list []*api.Container
	if err := json.Unmarshal([]byte(os.Getenv(runtimeEnv+"_LIST")), &list); err != nil {
		panic(err)
	}
	n, err := newNode(filepath.Dir(socket), socket, "containerd", []*api.PodSandbox{pod}, list)
	if err != nil {
		panic(err)
	}
	fmt.Println("listening")
	go func() {
		for err := range n.synced {
			if err == nil {
				n.BlockPluginSync().Unblock()
			}
			fmt.Println("synced", err)
		}
	}()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if err := n.startContainer(running(in.Text(), 7)); err != nil {
			panic(err)
		}
		fmt.Println("started", in.Text())
	}
}

// halfway is a runtime that answers a registration and then does what the test
// says, instead of sending Configure.
type halfway struct {
	registered chan func() // drops the connection; the answer has been sent
	listener   net.Listener
	conns      sync.WaitGroup
	hasty      bool // sends Configure before that answer, and is gone instead of it
}

func newHalfway(t *testing.T, socket string) *halfway {
	t.Helper()
	h := &halfway{registered: make(chan func(), 16)}
	h.listen(t, socket)
	return h
}

func (h *halfway) listen(t *testing.T, socket string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	h.listener = l
	h.conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			h.conns.Go(func() { h.serve(conn) })
		}
	})
}

// stop stops listening. All connections must have been dropped.
func (h *halfway) stop() {
	h.listener.Close()
	h.conns.Wait()
}

func (h *halfway) serve(conn net.Conn) {
	s, err := ttrpc.NewServer()
	if err != nil {
		panic(err)
	}
	ready := make(chan struct{}) // the multiplexer reads at once
	spy := &answering{Conn: conn, ready: ready}
	mux := multiplex.Multiplex(spy)
	l, err := mux.Listen(multiplex.RuntimeServiceConn)
	if err != nil {
		panic(err)
	}
	drop := sync.OnceFunc(func() { mux.Close(); l.Close(); s.Close() })
	spy.answered = sync.OnceFunc(func() { h.registered <- drop })
	spy.ended = drop
	close(ready)
	r := registrar{}
	if h.hasty {
		plugin, err := mux.Open(multiplex.PluginServiceConn)
		if err != nil {
			panic(err)
		}
		client := ttrpc.NewClient(plugin)
		defer client.Close()
		r.before = func() {
			api.NewPluginClient(client).Configure(context.Background(), &api.ConfigureRequest{RuntimeName: "containerd"})
			drop()
		}
	}
	api.RegisterRuntimeService(s, r)
	s.Serve(context.Background(), l)
}

// answering says when the first message has been sent, and when the other side
// is gone.
type answering struct {
	net.Conn
	ready           <-chan struct{} // closed when the functions are set
	answered, ended func()
}

func (c *answering) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	<-c.ready
	c.answered()
	return n, err
}

func (c *answering) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		<-c.ready
		go c.ended() // it waits for readers
	}
	return n, err
}

type registrar struct {
	before func() // the answer, if set
}

func (r registrar) RegisterPlugin(_ context.Context, q *api.RegisterPluginRequest) (*api.Empty, error) {
	if r.before != nil {
		r.before()
	}
	if q.PluginName != "probity" || q.PluginIdx != "10" {
		return nil, fmt.Errorf("plugin %q", q.PluginName)
	}
	return &api.Empty{}, nil
}

func (registrar) UpdateContainers(context.Context, *api.UpdateContainersRequest) (*api.UpdateContainersResponse, error) {
	return nil, fmt.Errorf("we never ask for updates")
}
