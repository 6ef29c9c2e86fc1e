package events

import (
	"context"
	"encoding/json"
	"fmt"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc"

	"probity/runtime/container"
	"probity/runtime/containerd"
	"probity/runtime/process"
)

// The labels that say who a container is, beside its id.
const (
	labelKind      = "io.cri-containerd.kind" // containerd's CRI plugin: "container" or "sandbox"
	labelContainer = "io.kubernetes.container.name"
	labelPod       = "io.kubernetes.pod.name"
	labelNamespace = "io.kubernetes.pod.namespace"
	labelUID       = "io.kubernetes.pod.uid"
	labelNerdctl   = "nerdctl/name"
)

// runcShim is the runtime of which it is known that its shim does not say "created"
// while it starts a task: it answers when that is over (containerd 1.3 to 2.4,
// pkg/process.Init.Status takes the lock that Start holds).
const runcShim = "io.containerd.runc.v2"

const maxSpec = 4 << 20 // bytes of a container's configuration

func runtimeOf(namespace string) container.Runtime {
	if namespace == containerd.Docker {
		return container.Docker
	}
	return container.Containerd
}

// describe says whose task it is. It is not ok if nobody needs to know: the pause
// process of a pod is no container, and one of CRI's that is only created is NRI's.
func (s *Source) describe(ctx context.Context, conn *grpc.ClientConn, e Event, at int64) (t Task, ok bool) {
	// First of all, since there is little time; but of CRI's most are NRI's.
	early := e.Kind == container.Created && e.Namespace != containerd.CRI
	if early {
		if t.Created = s.created(ctx, conn, e); t.Created == nil {
			return t, false // its start is told of, too
		}
	}
	kind := e.Kind
	if kind == container.Created {
		kind = container.Started // if not now, then soon
	}
	t.Notice = container.Notice{
		Source: s.name, Kind: kind, Namespace: e.Namespace, Pid: e.Pid, At: at,
		Identity: container.Identity{Runtime: runtimeOf(e.Namespace), ID: e.ID, Cut: true},
	}
	rec, err := s.record(ctx, conn, e)
	if err != nil { // it runs, whoever it is
		s.cfg.Log.Warn("containerd does not say whose task it is", "namespace", e.Namespace, "container", e.ID, "error", err)
		t.Unknown, t.Identity.Image.DigestReason = true, "containerd did not say what the container is"
		return t, e.Kind != container.Created
	}
	if e.Namespace == containerd.CRI {
		switch rec.GetLabels()[labelKind] {
		case "sandbox":
			return t, false
		case "container":
			t.CRI = true
			if e.Kind == container.Created {
				return t, false
			}
		}
	}
	if e.Kind == container.Created {
		if !early {
			t.Created = s.created(ctx, conn, e)
		}
		if t.Created == nil || rec.GetRuntime().GetName() != runcShim {
			return t, false
		}
	}
	sp, err := parseSpec(rec.GetSpec().GetValue())
	if err != nil {
		s.cfg.Log.Warn("a container's configuration is not understood", "namespace", e.Namespace, "container", e.ID, "error", err)
	}
	t.Command = container.CommandOf(sp.Process.Args, sp.Process.Env, sp.Process.Cwd)
	t.Identity = identify(t.Identity.Runtime, rec, sp)
	t.Identity.Cut = t.Identity.Cut || err != nil
	if err := t.Validate(); err != nil {
		s.cfg.Log.Error("a notice that cannot be used", "error", err)
		return t, false
	}
	return t, true
}

func (s *Source) record(ctx context.Context, conn *grpc.ClientConn, e Event) (*containers.Container, error) {
	ctx, cancel := context.WithTimeout(containerd.In(ctx, e.Namespace), callTimeout)
	defer cancel()
	r, err := containers.NewContainersClient(conn).Get(ctx, &containers.GetContainerRequest{ID: e.ID})
	if err != nil {
		return nil, err
	}
	return r.GetContainer(), nil
}

// created returns what says whether no instruction of a task's container has run, or nil
// if one may have. The shim is asked, through containerd.
func (s *Source) created(ctx context.Context, conn *grpc.ClientConn, e Event) func() bool {
	ctx, cancel := context.WithTimeout(containerd.In(ctx, e.Namespace), callTimeout)
	defer cancel()
	runs, err := process.ExecutionOf(e.Pid)
	if err != nil {
		return nil
	}
	r, err := tasks.NewTasksClient(conn).Get(ctx, &tasks.GetRequest{ContainerID: e.ID})
	if err != nil || r.GetProcess().GetStatus() != task.Status_CREATED || int(r.GetProcess().GetPid()) != e.Pid {
		return nil
	}
	return func() bool {
		still, err := process.ExecutionOf(e.Pid)
		return err == nil && still == runs
	}
}

// spec is what is used of a container's OCI configuration.
type spec struct {
	Process struct {
		Args []string `json:"args"`
		Env  []string `json:"env"`
		Cwd  string   `json:"cwd"`
	} `json:"process"`
	Annotations map[string]string `json:"annotations"`
}

func parseSpec(b []byte) (sp spec, err error) {
	if len(b) > maxSpec {
		return sp, fmt.Errorf("%d bytes, at most %d are taken", len(b), maxSpec)
	}
	if err := json.Unmarshal(b, &sp); err != nil {
		return spec{}, err
	}
	return sp, nil
}

// identify says who a container is, by containerd's record of it.
func identify(r container.Runtime, rec *containers.Container, sp spec) container.Identity {
	labels := rec.GetLabels()
	id := container.Identity{
		Runtime: r, ID: rec.GetID(), Name: container.Text(labels[labelContainer], labels[labelNerdctl]),
		Image: container.Image{Name: container.Text(rec.GetImage()), DigestReason: "an event does not have the image"},
	}
	if r == container.Containerd && id.Name == "" {
		id.Name = rec.GetID() // what the user called it
	}
	if labels[labelPod] != "" {
		id.Pod = &container.Pod{
			ID:   container.Text(rec.GetSandbox()),
			Name: container.Text(labels[labelPod]), Namespace: container.Text(labels[labelNamespace]), UID: container.Text(labels[labelUID]),
		}
	}
	var a, b int
	id.Labels, a = container.Fit(labels)
	id.Annotations, b = container.Fit(sp.Annotations)
	id.Cut = a+b > 0
	return id
}
