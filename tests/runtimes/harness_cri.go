package runtimes

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Spec says which container to run in a pod of its own.
type Spec struct {
	Image       string
	Name        string   // of the container; the pod is called NAME-pod
	Args        []string // replaces the image's command, after its entrypoint
	Command     []string // replaces the image's entrypoint
	Namespace   string   // default "default"
	UID         string   // of the pod; default: made from the name
	PodLabels   map[string]string
	Annotations map[string]string // of the container
	SharePID    bool              // the container lives in the pod's pid namespace
	Mounts      []*cri.Mount
	Memory      int64 // bytes; 0 is no limit
}

// Container is a container made through CRI.
type Container struct {
	ID    string
	PodID string
	Spec  Spec

	c       *criServer
	log     string
	request *cri.CreateContainerRequest
}

// Run makes a pod and a container in it, and starts the container.
func (c *criServer) Run(t T, spec Spec) *Container {
	t.Helper()
	x := c.Create(t, spec)
	x.Start(t)
	return x
}

// Create makes a pod and a container in it.
func (c *criServer) Create(t T, spec Spec) *Container {
	t.Helper()
	x, err := c.TryCreate(t, spec)
	if err != nil {
		t.Fatalf("create container %s: %v\n%s", spec.Name, err, c.server.tail())
	}
	return x
}

// TryCreate is Create for containers that may be refused.
func (c *criServer) TryCreate(t T, spec Spec) (*Container, error) {
	t.Helper()
	n := c.pods.Add(1)
	if spec.Namespace == "" {
		spec.Namespace = "default"
	}
	if spec.UID == "" {
		spec.UID = fmt.Sprintf("uid-%s-%d", spec.Name, n)
	}
	logs := c.Scratch.mkdir(t, "logs", spec.UID)
	pid := cri.NamespaceMode_CONTAINER
	if spec.SharePID {
		pid = cri.NamespaceMode_POD
	}
	// The host's network: no CNI is needed.
	ns := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: pid, Ipc: cri.NamespaceMode_POD}
	pod := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: spec.Name + "-pod", Namespace: spec.Namespace, Uid: spec.UID},
		LogDirectory: logs,
		Labels:       spec.PodLabels,
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    c.parent,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: ns},
		},
	}
	ctx, cancel := within(t, Patience)
	defer cancel()
	p, err := c.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
	if err != nil {
		t.Fatalf("run pod %s: %v\n%s", pod.Metadata.Name, err, c.server.tail())
	}
	return c.create(ctx, spec, filepath.Join(logs, "log"), &cri.CreateContainerRequest{
		PodSandboxId:  p.PodSandboxId,
		SandboxConfig: pod,
		Config: &cri.ContainerConfig{
			Metadata:    &cri.ContainerMetadata{Name: spec.Name},
			Image:       &cri.ImageSpec{Image: spec.Image, UserSpecifiedImage: spec.Image},
			Command:     spec.Command,
			Args:        spec.Args,
			Mounts:      spec.Mounts,
			Annotations: spec.Annotations,
			LogPath:     "log",
			Labels: map[string]string{ // as the kubelet has them
				"io.kubernetes.container.name": spec.Name,
				"io.kubernetes.pod.name":       pod.Metadata.Name, "io.kubernetes.pod.namespace": spec.Namespace, "io.kubernetes.pod.uid": spec.UID,
			},
			Linux: &cri.LinuxContainerConfig{
				Resources:       &cri.LinuxContainerResources{MemoryLimitInBytes: spec.Memory},
				SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: ns},
			},
		},
	})
}

// create makes a container in a pod that is there.
func (c *criServer) create(ctx context.Context, spec Spec, log string, request *cri.CreateContainerRequest) (*Container, error) {
	made, err := c.runtime.CreateContainer(ctx, request)
	if err != nil {
		return nil, err
	}
	return &Container{ID: made.ContainerId, PodID: request.PodSandboxId, Spec: spec, c: c, log: log, request: request}, nil
}

// TryAgain makes the container's successor in the same pod, as the kubelet does when
// one has ended. It has the same name.
func (x *Container) TryAgain(t T) (*Container, error) {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	x.request.Config.Metadata.Attempt++
	return x.c.create(ctx, x.Spec, x.log, x.request)
}

// TryStart starts the container and returns the runtime's answer.
func (x *Container) TryStart(t T) error {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	_, err := x.c.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: x.ID})
	return err
}

// Start starts the container.
func (x *Container) Start(t T) {
	t.Helper()
	if err := x.TryStart(t); err != nil {
		t.Fatalf("start container %s: %v\n%s", x.Spec.Name, err, x.c.server.tail())
	}
}

// Wait waits for the container's end and returns its exit code.
func (x *Container) Wait(t T) int {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	for ctx.Err() == nil {
		r, err := x.c.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: x.ID})
		if err != nil {
			t.Fatalf("status of container %s: %v", x.Spec.Name, err)
		}
		if r.Status.State == cri.ContainerState_CONTAINER_EXITED {
			return int(r.Status.ExitCode)
		}
		pause(ctx)
	}
	t.Fatalf("container %s does not end", x.Spec.Name)
	return 0
}

// Stop stops the container (the pod stays).
func (x *Container) Stop(t T) {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	if _, err := x.c.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: x.ID}); err != nil {
		t.Fatalf("stop container %s: %v", x.Spec.Name, err)
	}
}

// Remove removes the container and its pod, and with them their storage.
func (x *Container) Remove(t T) {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	if _, err := x.c.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: x.ID}); err != nil {
		t.Fatalf("remove container %s: %v", x.Spec.Name, err)
	}
	if _, err := x.c.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: x.PodID}); err != nil {
		t.Fatalf("stop the pod of %s: %v", x.Spec.Name, err)
	}
	if _, err := x.c.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: x.PodID}); err != nil {
		t.Fatalf("remove the pod of %s: %v", x.Spec.Name, err)
	}
}

// Exec runs a program in the container and returns its stdout; it must exit 0.
func (x *Container) Exec(t T, args ...string) string {
	t.Helper()
	out, err := x.TryExec(t, args...)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return out
}

// TryExec is Exec for programs that may fail.
func (x *Container) TryExec(t T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	r, err := x.c.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: x.ID, Cmd: args, Timeout: int64(Patience / time.Second)})
	if err == nil && r.ExitCode != 0 {
		err = fmt.Errorf("exit code %d\n%s%s", r.ExitCode, r.Stdout, r.Stderr)
	}
	if err != nil {
		return "", fmt.Errorf("exec %q in %s: %w", args, x.Spec.Name, err)
	}
	return string(r.Stdout), nil
}

// Pid returns the pid of the container's init on the host.
func (x *Container) Pid(t T) int {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	r, err := x.c.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: x.ID, Verbose: true})
	if err != nil {
		t.Fatalf("status of container %s: %v", x.Spec.Name, err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(r.Info["info"]), &info); err != nil || info.Pid == 0 {
		t.Fatalf("status of container %s: no pid in %s (%v)", x.Spec.Name, r.Info["info"], err)
	}
	return info.Pid
}

// Output returns what the container has written so far, as CRI logs it
// (time, stream, tag, text).
func (x *Container) Output(t T) string {
	t.Helper()
	b, err := os.ReadFile(x.log)
	if err != nil {
		t.Fatalf("log of container %s: %v", x.Spec.Name, err)
	}
	return string(b)
}

// pause lets a moment pass between two questions to a runtime that has no
// event for the answer; the deadline is the context's.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Millisecond):
	}
}
