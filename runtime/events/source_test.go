package events

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	service "github.com/containerd/containerd/api/services/events/v1"
	namespaces "github.com/containerd/containerd/api/services/namespaces/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/timestamppb"

	"probity/runtime/container"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const within = 3 * time.Minute // a deadline that is only met when something is broken

// daemon is containerd's side, as far as the source asks it, on a real socket: what a
// real one does is shown by tests/runtimes, this one can do what it should not.
type daemon struct {
	events chan *types.Envelope

	mu      sync.Mutex
	records map[string]*containers.Container // by namespace/id
	created map[string]int                   // pids of tasks that are only created
	running map[string]int
	asked   []string // which records, and "task " and of which tasks
}

func of(ctx context.Context, id string) string {
	md, _ := metadata.FromIncomingContext(ctx)
	return fmt.Sprint(md.Get("containerd-namespace")[0], "/", id)
}

type eventService struct {
	service.UnimplementedEventsServer
	*daemon
}

func (d eventService) Subscribe(r *service.SubscribeRequest, s service.Events_SubscribeServer) error {
	if want := []string{`topic~="^/tasks/(create|start|exit|delete)$"`}; !reflect.DeepEqual(r.Filters, want) {
		return status.Errorf(codes.InvalidArgument, "filters %v", r.Filters)
	}
	for {
		select {
		case e := <-d.events:
			if err := s.Send(e); err != nil {
				return err
			}
		case <-s.Context().Done():
			return nil
		}
	}
}

type namespaceService struct {
	namespaces.UnimplementedNamespacesServer
	*daemon
}

func (namespaceService) List(context.Context, *namespaces.ListNamespacesRequest) (*namespaces.ListNamespacesResponse, error) {
	return &namespaces.ListNamespacesResponse{Namespaces: []*namespaces.Namespace{{Name: "moby"}, {Name: "../x"}}}, nil
}

type taskService struct {
	tasks.UnimplementedTasksServer
	*daemon
}

func (d taskService) List(ctx context.Context, _ *tasks.ListTasksRequest) (*tasks.ListTasksResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := &tasks.ListTasksResponse{}
	for k, pid := range d.running {
		r.Tasks = append(r.Tasks, &task.Process{ID: filepath.Base(k), Pid: uint32(pid), Status: task.Status_RUNNING})
	}
	r.Tasks = append(r.Tasks, &task.Process{ID: "over", Pid: 1, Status: task.Status_STOPPED}, &task.Process{ID: "../x", Pid: 1, Status: task.Status_RUNNING})
	return r, nil
}

func (d taskService) Get(ctx context.Context, r *tasks.GetRequest) (*tasks.GetResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, "task "+of(ctx, r.ContainerID))
	if pid, ok := d.created[of(ctx, r.ContainerID)]; ok {
		return &tasks.GetResponse{Process: &task.Process{ID: r.ContainerID, Pid: uint32(pid), Status: task.Status_CREATED}}, nil
	}
	return &tasks.GetResponse{Process: &task.Process{ID: r.ContainerID, Pid: 1, Status: task.Status_RUNNING}}, nil
}

type containerService struct {
	containers.UnimplementedContainersServer
	*daemon
}

func (d containerService) Get(ctx context.Context, r *containers.GetContainerRequest) (*containers.GetContainerResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	k := of(ctx, r.ID)
	d.asked = append(d.asked, k)
	if rec := d.records[k]; rec != nil {
		return &containers.GetContainerResponse{Container: rec}, nil
	}
	return nil, status.Error(codes.NotFound, "no such container")
}

func newDaemon() *daemon {
	return &daemon{
		events: make(chan *types.Envelope), records: map[string]*containers.Container{}, created: map[string]int{}, running: map[string]int{},
	}
}

// listen has it answer, until the test ends or stop is called.
func (d *daemon) listen(t *testing.T, socket string) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(socket, 0o660); err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	service.RegisterEventsServer(srv, eventService{daemon: d})
	namespaces.RegisterNamespacesServer(srv, namespaceService{daemon: d})
	tasks.RegisterTasksServer(srv, taskService{daemon: d})
	containers.RegisterContainersServer(srv, containerService{daemon: d})
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	stop = sync.OnceFunc(func() { srv.Stop(); <-done })
	t.Cleanup(stop)
	return stop
}

// heard is what a source says.
type heard struct {
	tasks  chan Task
	lost   chan int64
	synced chan struct{}
	known  func(string, int) bool
}

func newHeard() *heard {
	return &heard{tasks: make(chan Task, 64), lost: make(chan int64, 64), synced: make(chan struct{}, 64)}
}

func (h *heard) run(t *testing.T, socket string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	src := New(Config{
		Socket: socket, Known: h.known,
		Notify: func(_ context.Context, x Task) { h.tasks <- x },
		Lost:   func(at int64) { h.lost <- at }, Synced: func() { h.synced <- struct{}{} },
	})
	done := make(chan error, 1)
	go func() { done <- src.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := get(t, done); err != nil {
			t.Error(err)
		}
	})
}

func get[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(within):
		t.Fatal("it does not come")
	}
	return v
}

func (d *daemon) send(t *testing.T, e *types.Envelope) {
	t.Helper()
	select {
	case d.events <- e:
	case <-time.After(within):
		t.Fatal("nobody takes the event")
	}
}

func start(t *testing.T, ns, id string, pid int) *types.Envelope {
	return envelope(t, ns, "/tasks/start", message{"TaskStart", map[protowire.Number]any{1: id, 2: pid}})
}

func create(t *testing.T, ns, id string, pid int) *types.Envelope {
	e := envelope(t, ns, "/tasks/create", message{"TaskCreate", map[protowire.Number]any{1: id, 6: pid}})
	e.Timestamp = timestamppb.Now()
	return e
}

func exit(t *testing.T, ns, id, exec string, pid int) *types.Envelope {
	return envelope(t, ns, "/tasks/exit", message{"TaskExit", map[protowire.Number]any{1: id, 2: exec, 3: pid}})
}

// Where there is no socket nothing is lost; when there is one, the window until it is
// connected is, and what runs is told of.
func TestSocketComesAndGoes(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	h, d := newHeard(), newDaemon()
	d.running["moby/a"] = 7
	d.records["moby/a"] = &containers.Container{ID: "a"}
	h.run(t, socket)
	if len(h.lost) != 0 {
		t.Error("lost what there was not")
	}
	stop := d.listen(t, socket)
	get(t, h.synced)
	if len(h.lost) != 1 {
		t.Errorf("lost %d times", len(h.lost))
	}
	get(t, h.lost)
	if x := get(t, h.tasks); x.Kind != container.Existing || x.Identity.ID != "a" || x.Pid != 7 || x.Namespace != "moby" || x.Identity.Runtime != container.Docker || x.Created != nil || x.Unknown {
		t.Errorf("%+v", x)
	}
	stop()
	get(t, h.lost)
	d.listen(t, socket)
	get(t, h.synced)
	if x := get(t, h.tasks); x.Identity.ID != "a" { // who hears it may have missed its end
		t.Errorf("%+v", x)
	}
	if len(h.lost) != 0 || len(h.tasks) != 0 {
		t.Errorf("lost %d times more, and told of %d more", len(h.lost), len(h.tasks))
	}
}

// What is told of, and as what.
func TestTasks(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	h, d := newHeard(), newDaemon()
	h.known = func(id string, pid int) bool { return id == "known" && pid == 8 }
	runc := &containers.Container_Runtime{Name: "io.containerd.runc.v2"}
	own := os.Getpid()
	d.records = map[string]*containers.Container{
		"n/c":          {ID: "c", Runtime: runc},
		"n/other":      {ID: "other", Runtime: &containers.Container_Runtime{Name: "io.containerd.kata.v2"}},
		"n/late":       {ID: "late", Runtime: runc},
		"n/sandbox":    {ID: "sandbox", Labels: map[string]string{labelKind: "sandbox"}}, // a label is anybody's
		"k8s.io/pause": {ID: "pause", Labels: map[string]string{labelKind: "sandbox"}},
		"k8s.io/cri":   {ID: "cri", Runtime: runc, Labels: map[string]string{labelKind: "container"}},
		"k8s.io/ctr":   {ID: "ctr", Runtime: runc},
	}
	d.created = map[string]int{"n/c": own, "n/other": own, "n/late": 9, "k8s.io/cri": own, "k8s.io/ctr": own}
	d.listen(t, socket)
	h.run(t, socket)
	get(t, h.synced)
	type told struct {
		Kind                  container.Kind
		ID                    string
		Pid                   int
		Created, CRI, Unknown bool
	}
	for _, e := range []*types.Envelope{
		{Namespace: "n", Topic: "/tasks/start"}, // no event at all
		create(t, "n", "c", own), start(t, "n", "c", own), start(t, "n", "c", own),
		create(t, "n", "other", own), start(t, "n", "other", own),
		create(t, "n", "late", own), start(t, "n", "late", own), // whose task is another process
		start(t, "n", "nobody", 5),
		start(t, "n", "c", 0), start(t, "n", "c", 77),
		start(t, "n", "sandbox", 6),
		create(t, "k8s.io", "pause", own), start(t, "k8s.io", "pause", own),
		create(t, "k8s.io", "cri", own), start(t, "k8s.io", "cri", own),
		create(t, "k8s.io", "ctr", own),
		start(t, "k8s.io", "known", 8), exit(t, "n", "c", "session", 5), exit(t, "n", "c", "c", own),
		envelope(t, "n", "/tasks/delete", message{"TaskDelete", map[protowire.Number]any{1: "c", 2: own}}),
		start(t, "n", "c", 77), // again, with a pid that it had
	} {
		d.send(t, e)
	}
	for _, want := range []told{
		{container.Started, "c", own, true, false, false},
		{container.Started, "other", own, false, false, false},
		{container.Started, "late", own, false, false, false},
		{container.Started, "nobody", 5, false, false, true},
		{container.Started, "c", 77, false, false, false},
		{container.Started, "sandbox", 6, false, false, false},
		{container.Started, "cri", own, false, true, false},
		{container.Started, "ctr", own, true, false, false},
		{container.Stopped, "c", own, false, false, false},
		{container.Removed, "c", own, false, false, false},
		{container.Started, "c", 77, false, false, false},
	} {
		x := get(t, h.tasks)
		if got := (told{x.Kind, x.Identity.ID, x.Pid, x.Created != nil, x.CRI, x.Unknown}); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		if err := x.Validate(); err != nil {
			t.Error(err)
		}
		if x.Created != nil && (!x.Created() || x.Made == 0 || x.Made > x.At) {
			t.Errorf("%s: made at %d, told at %d", x.Identity.ID, x.Made, x.At)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.asked {
		switch k {
		case "k8s.io/known", "task k8s.io/cri", "task k8s.io/pause": // of NRI's, the record at most
			t.Errorf("asked about %s", k)
		}
	}
}

// endless is a stream that always has an event more.
type endless struct {
	service.Events_SubscribeClient
	n int
}

func (e *endless) Recv() (*types.Envelope, error) { e.n++; return &types.Envelope{}, nil }

// What comes is always taken, since containerd keeps it otherwise: when more waits than
// is kept, that is the end, and the source starts over with what is listed.
func TestReceive(t *testing.T) {
	stream, waiting := &endless{}, make(chan *types.Envelope, 3)
	if err := receive(stream, waiting); !errors.Is(err, errFull) || stream.n != 4 || len(waiting) != 3 {
		t.Errorf("%v after %d events, %d wait", err, stream.n, len(waiting))
	}
}
