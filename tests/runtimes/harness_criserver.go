package runtimes

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// criServer is a container runtime with a CRI socket: the process, which can be ended
// and started again, and its clients.
type criServer struct {
	Scratch   *Scratch
	Address   string // of the CRI socket, which is containerd's own, too
	NRISocket string

	name    string           // for messages and the log's file
	program func() *exec.Cmd // what start starts
	parent  string           // of the pods' cgroups
	server  *process
	conn    *grpc.ClientConn
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
	pods    *atomic.Int64 // that were made
}

// newCRIServer returns one that has yet to begin.
func newCRIServer(t T, s *Scratch, name, address string) criServer {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return criServer{
		Scratch: s, Address: address, NRISocket: filepath.Join(s.mkdir(t, "nri"), "nri.sock"), name: name, parent: s.Cgroup,
		conn: conn, runtime: cri.NewRuntimeServiceClient(conn), images: cri.NewImageServiceClient(conn), pods: new(atomic.Int64),
	}
}

// begin starts it for as long as the test lasts.
func (c *criServer) begin(t T) {
	t.Helper()
	t.Cleanup(func() {
		if err := c.close(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	})
	c.start(t)
}

// start starts the server and waits until CRI answers.
func (c *criServer) start(t T) {
	t.Helper()
	server, err := start(c.name, c.Scratch.Path(c.name+".log"), c.program())
	if err != nil {
		t.Fatalf("%v", err)
	}
	c.server = server
	ctx, cancel := within(t, Patience)
	defer cancel()
	for ctx.Err() == nil {
		try, done := context.WithTimeout(ctx, time.Second)
		_, err = c.runtime.Version(try, &cri.VersionRequest{}, grpc.WaitForReady(true))
		done()
		if err == nil {
			return
		}
		select {
		case <-server.done:
			t.Fatalf("%s ended: %v\n%s", c.name, server.err, server.tail())
		default:
		}
		c.conn.ResetConnectBackoff()
	}
	t.Fatalf("%s does not answer: %v\n%s", c.name, err, server.tail())
}

// Restart stops and starts the server; containers keep running meanwhile.
func (c *criServer) Restart(t T) {
	t.Helper()
	c.Stop(t)
	c.start(t)
}

// Stop stops the server alone; Start brings it back.
func (c *criServer) Stop(t T) {
	t.Helper()
	if err := c.server.stop(syscall.SIGTERM); err != nil {
		t.Fatalf("%v\n%s", err, c.server.tail())
	}
}

// Kill ends the server with SIGKILL; containers stay.
func (c *criServer) Kill(t T) {
	t.Helper()
	if err := c.server.stop(syscall.SIGKILL); err != nil {
		t.Fatalf("%v", err)
	}
}

// Start starts the server after Stop or Kill.
func (c *criServer) Start(t T) {
	t.Helper()
	c.start(t)
}

// Log returns the path of the server's log.
func (c *criServer) Log() string { return c.server.log }

// close removes all pods and stops the server.
func (c *criServer) close() error {
	if c.server == nil {
		return c.conn.Close()
	}
	defer c.conn.Close()
	ctx, cancel := within(nil, Patience)
	defer cancel()
	select {
	case <-c.server.done: // a test left it stopped: sweep ends the rest
		return nil
	default:
	}
	list, err := c.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err == nil {
		for _, pod := range list.Items {
			if _, e := c.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod.Id}); e != nil {
				err = fmt.Errorf("stop pod %s: %w", pod.Id, e)
			} else if _, e := c.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod.Id}); e != nil {
				err = fmt.Errorf("remove pod %s: %w", pod.Id, e)
			}
		}
	}
	if e := c.server.stop(syscall.SIGTERM); e != nil {
		err = e
	}
	return err
}
