// Package events is the source of notices for containers that containerd runs and NRI
// does not tell of: those of ctr, nerdctl and docker, and those of CRI where NRI is off.
//
// In: containerd's socket: its task events, of all namespaces; its lists of namespaces
// and tasks; the record of each container that they name. Out: calls of Config.Notify,
// one after the other, and of Lost and Synced, between which nothing could be
// heard. All that is asked of containerd only reads.
//
// Nobody waits for an answer: a container starts when its client says so, about 30 ms
// after the event of its creation in the fastest case. What is true of a [Task] when
// Notify is called is what was true when containerd said so; [Task.Created] asks again.
//
// Events are not kept for who was away, and come in loose order: when the source is
// connected, the tasks that there are are listed. Where there is no socket there is no
// containerd that could start anything, and nothing is lost.
//
// It trusts containerd for who a container is, and runtime/containerd for who listens.
// It is not a control: whoever may write to containerd's socket may publish any event in
// any namespace, and label a container as one of CRI's. A pid is a claim until it is
// found in /proc.
package events

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	service "github.com/containerd/containerd/api/services/events/v1"
	namespaces "github.com/containerd/containerd/api/services/namespaces/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc"

	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/runtime/containerd"
	"probity/runtime/dial"
)

// Task is what is told of one task, which is a container that has a process.
type Task struct {
	container.Notice
	// Unknown says that containerd has no record of the container (any more): nothing but
	// its id is known.
	Unknown bool
	// CRI says that containerd's CRI plugin made the container, so that NRI tells of it
	// unless it is off.
	CRI bool
	// Created says whether, when it is called, no instruction of the container has run. It
	// may say no where that is so. nil of a task that may run, and of those whose shim is
	// not known to tell.
	Created func() bool
}

// Config of a Source.
type Config struct {
	Socket string // containerd's
	Log    *slog.Logger

	// Notify takes what is told: of kind Started with Created set, when the task was made,
	// and without, when it was started; Existing of one that was listed; Stopped and
	// Removed. It must be quick. Required.
	Notify func(context.Context, Task)
	// Known reports whether somebody who knows more has told of a container's process
	// already: then nothing is asked about it.
	Known func(id string, pid int) bool
	// Lost says that nothing could be heard from boot time at (in ns) on.
	Lost func(at int64)
	// Synced says that it can be again, and that Notify has had all that runs.
	Synced func()
}

// Source is one containerd.
type Source struct {
	cfg  Config
	name string
	told map[key]int   // by container, the pid of the task that Notify was told of
	made map[key]int64 // when the task was created, in boot time
	lost bool          // nothing is heard
}

type key struct{ namespace, id string }

// New returns a source. It starts nothing.
func New(cfg Config) *Source {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Known == nil {
		cfg.Known = func(string, int) bool { return false }
	}
	if cfg.Lost == nil {
		cfg.Lost = func(int64) {}
	}
	if cfg.Synced == nil {
		cfg.Synced = func() {}
	}
	return &Source{cfg: cfg, name: Name(cfg.Socket)}
}

// Name is the source of the notices of a socket.
func Name(socket string) string { return "events:" + socket }

const (
	// callTimeout bounds a call: containerd asks a shim, or all of them.
	callTimeout = 2 * time.Second
	listTimeout = time.Minute
	// relist is when tasks are listed again after the first time: nothing says when the
	// subscription begins, but that it has been asked for before.
	relist = time.Second
	// maxWaiting is how many events may wait. With more the source starts over: it can
	// list what there is.
	maxWaiting = 1 << 14
	// maxTold is how many tasks are remembered as told of.
	maxTold = 1 << 15
)

// topics is what the event service is asked for.
const topics = `topic~="^/tasks/(create|start|exit|delete)$"`

// Run connects, and connects again, until ctx ends, which is no error.
func (s *Source) Run(ctx context.Context) error {
	from := cgroup.BootTime() // since when nothing is heard, if something can be said
	dial.Again(ctx, func() (bool, error) {
		if _, err := os.Lstat(s.cfg.Socket); errors.Is(err, fs.ErrNotExist) {
			from = cgroup.BootTime()
			return false, err
		}
		s.disconnected(from)
		return s.attempt(ctx)
	}, func(err error) { s.cfg.Log.Info("not connected", "error", err) })
	return nil
}

func (s *Source) disconnected(at int64) {
	if !s.lost {
		s.lost = true
		s.cfg.Lost(at)
	}
}

func (s *Source) synced() {
	if s.lost {
		s.lost = false
		s.cfg.Synced()
	}
}

// errFull: containerd told more than was taken.
var errFull = fmt.Errorf("more than %d events wait", maxWaiting)

// attempt connects once and stays until the connection ends. It reports whether all
// that runs was told of.
func (s *Source) attempt(ctx context.Context) (connected bool, err error) {
	conn, err := containerd.Client(s.cfg.Socket, callTimeout)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	run := ctx
	ctx, cancel := context.WithCancel(run)
	stream, err := service.NewEventsClient(conn).Subscribe(ctx, &service.SubscribeRequest{Filters: []string{topics}})
	if err != nil {
		cancel()
		return false, fmt.Errorf("subscribe to events: %w", err)
	}
	waiting, ended := make(chan *types.Envelope, maxWaiting), make(chan error, 1)
	go func() { ended <- receive(stream, waiting) }()
	over := false
	defer func() {
		cancel()
		if !over {
			<-ended
		}
		if connected && run.Err() == nil {
			s.disconnected(cgroup.BootTime())
		}
	}()

	s.told, s.made = map[key]int{}, map[key]int64{}
	if err := s.list(ctx, conn); err != nil {
		return false, err
	}
	s.synced()
	s.cfg.Log.Info("connected")
	again := time.NewTimer(relist)
	defer again.Stop()
	for {
		select {
		case env := <-waiting:
			s.event(ctx, conn, env)
		case <-again.C:
			if err := s.list(ctx, conn); err != nil {
				return true, err
			}
		case err := <-ended:
			over = true
			return true, fmt.Errorf("events: %w", err)
		}
	}
}

// receive hands on what comes until the stream ends. containerd keeps what is not
// taken, without bound: it is always taken.
func receive(stream service.Events_SubscribeClient, into chan<- *types.Envelope) error {
	for {
		env, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case into <- env:
		default:
			return errFull
		}
	}
}

// event takes one event.
func (s *Source) event(ctx context.Context, conn *grpc.ClientConn, env *types.Envelope) {
	e, err := Parse(env)
	if err != nil {
		s.cfg.Log.Warn("an event that cannot be used", "error", err)
		return
	}
	k := key{e.Namespace, e.ID}
	switch e.Kind {
	case container.Created, container.Started:
		if e.Kind == container.Created {
			if len(s.made) >= maxTold {
				clear(s.made)
			}
			s.made[k] = bootTime(env.GetTimestamp().AsTime())
		}
		s.tell(ctx, conn, e)
	case container.Stopped, container.Removed:
		if e.Exec != "" {
			return // an exec session has ended
		}
		if e.Kind == container.Removed {
			delete(s.told, k)
			delete(s.made, k)
		}
		s.cfg.Notify(ctx, Task{Notice: container.Notice{
			Source: s.name, Kind: e.Kind, Namespace: e.Namespace, Pid: e.Pid, At: cgroup.BootTime(),
			Identity: container.Identity{Runtime: runtimeOf(e.Namespace), ID: e.ID},
		}})
	}
}

// bootTime is the boot time of a moment, as the clocks stand now, and not after now.
func bootTime(at time.Time) int64 {
	return max(0, cgroup.BootTime()-max(0, int64(time.Since(at))))
}

// list tells of the tasks that there are.
func (s *Source) list(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	all, err := namespaces.NewNamespacesClient(conn).List(ctx, &namespaces.ListNamespacesRequest{})
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	for _, ns := range all.GetNamespaces() {
		if !valid(ns.GetName()) {
			continue // containerd makes none such
		}
		list, err := tasks.NewTasksClient(conn).List(containerd.In(ctx, ns.GetName()), &tasks.ListTasksRequest{})
		if err != nil {
			return fmt.Errorf("list the tasks of namespace %s: %w", ns.GetName(), err)
		}
		for _, t := range list.GetTasks() {
			e := Event{Namespace: ns.GetName(), ID: t.GetID(), Pid: int(t.GetPid())}
			switch t.GetStatus() {
			case task.Status_CREATED:
				e.Kind = container.Created
			case task.Status_STOPPED:
				continue
			default:
				e.Kind = container.Existing
			}
			if valid(e.ID) && e.Pid <= maxPid {
				s.tell(ctx, conn, e)
			}
		}
	}
	return nil
}

// tell tells of a task with its process, once.
func (s *Source) tell(ctx context.Context, conn *grpc.ClientConn, e Event) {
	k, at := key{e.Namespace, e.ID}, cgroup.BootTime()
	if e.Pid == 0 || s.told[k] == e.Pid || s.cfg.Known(e.ID, e.Pid) {
		return // without a process there is nothing to look at: its start will say
	}
	t, ok := s.describe(ctx, conn, e, at)
	t.Made = s.made[k]
	if !ok {
		return
	}
	if len(s.told) >= maxTold { // events of what there is not
		clear(s.told)
	}
	s.told[k] = e.Pid
	s.cfg.Notify(ctx, t)
}
