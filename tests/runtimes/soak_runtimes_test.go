package runtimes

import (
	"fmt"
	"os"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// soakable is a runtime that may be killed while somebody asks it for something.
type soakable interface {
	suite
	name() string
	// forget removes what a failed start has left of a container, and returns its ids.
	forget(t T, name string) (ids []string)
}

type soakPodman struct{ podmanSuite }

func (s soakPodman) name() string { return "podman" }

func (s soakPodman) forget(t T, name string) []string {
	ids := strings.Fields(s.Podman.Podman(t, "ps", "--all", "--no-trunc", "--filter", "name=^"+name+"$", "--format", "{{.ID}}"))
	s.Podman.Podman(t, "rm", "--force", "--time", "0", "--ignore", name)
	for _, id := range ids { // podman may have been killed before it knew that it had started it
		s.killAll(t, id)
	}
	return ids
}

// killAll kills what is in a container's cgroup.
func (s soakPodman) killAll(t T, id string) {
	var pids []int
	for _, pid := range s.Scratch.processes() {
		groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if strings.Contains(string(groups), "/libpod-"+id) {
			pids = append(pids, pid)
		}
	}
	waitGone(pids)
}

type soakCRI struct{ criSuite }

func (s soakCRI) name() string { return "containerd" }

func (s soakCRI) forget(t T, name string) (ids []string) {
	ctx, cancel := within(t, Patience)
	defer cancel()
	pods, err := s.server.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, pod := range pods.Items {
		if pod.Metadata.Name != name+"-pod" {
			continue
		}
		list, err := s.server.runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: pod.Id}})
		if err != nil {
			t.Fatalf("%v", err)
		}
		for _, c := range list.Containers {
			ids = append(ids, c.Id)
		}
		if _, err := s.server.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod.Id}); err != nil {
			t.Fatalf("%v", err)
		}
		if _, err := s.server.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod.Id}); err != nil {
			t.Fatalf("%v", err)
		}
	}
	return ids
}

type soakOCI struct{ ociSuite }

func (s soakOCI) name() string { return s.OCI.Name }

// Nobody kills runc, so that a failed start is the agent's doing.
func (s soakOCI) forget(t T, name string) []string {
	t.Errorf("%s did not start %s", s.OCI.Name, name)
	return nil
}

// tried is a test that what fails in is an error of.
type tried struct{ *testing.T }

type failure struct{ error }

func (t tried) Fatalf(format string, args ...any) {
	panic(failure{fmt.Errorf(format, args...)})
}

// attempt does what ends a test when it fails, and returns why it failed.
func attempt(t *testing.T, do func(T)) (err error) {
	defer func() {
		if r := recover(); r != nil {
			f, ok := r.(failure)
			if !ok {
				panic(r)
			}
			err = f.error
		}
	}()
	do(tried{t})
	return nil
}

// persist does something until it succeeds: runtimes come back.
func persist(t *testing.T, what string, do func(T)) {
	ctx, cancel := within(t, Patience)
	defer cancel()
	for {
		err := attempt(t, do)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		pause(ctx)
	}
}
