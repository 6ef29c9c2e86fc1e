package agent

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"probity/tests/need"
)

// Who holds on to the administration socket costs the agent so many descriptors and no
// more, and nobody can for ever: not with a body that never comes, whether or not
// somebody wants it.
func TestAdminPeersAreBounded(t *testing.T) {
	need.Root(t)
	path := t.TempDir() + "/admin.sock"
	l, err := net.Listen("unix", path)
	must(t, err)
	a := &Agent{log: slog.New(slog.DiscardHandler)}
	a.cfg.Log = a.log
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.serveAdmin(ctx, l) }()
	var held []net.Conn
	for i := range maxAdminPeers {
		c, err := net.Dial("unix", path)
		must(t, err)
		defer c.Close()
		_, err = fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: agent\r\nContent-Length: 100\r\n\r\n{", []string{"POST /key/rotate", "GET /nothing"}[i%2])
		must(t, err)
		held = append(held, c)
	}
	for i, c := range held {
		must(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != http.StatusBadRequest {
			t.Fatalf("connection %d: %v, %v", i, resp, err)
		}
	}
	// Their places are free again.
	var into any
	if err := Ask(ctx, path, "/nothing", &into); err == nil {
		t.Error("nothing is something")
	}
	cancel()
	must(t, <-done)
}

func TestBounded(t *testing.T) {
	path := t.TempDir() + "/s"
	l, err := net.Listen("unix", path)
	must(t, err)
	b := &bounded{Listener: l, slots: make(chan struct{}, 2), closed: make(chan struct{})}
	accepted, ended := make(chan net.Conn, 3), make(chan error, 1)
	go func() {
		for {
			c, err := b.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- c
		}
	}()
	for range 3 {
		c, err := net.Dial("unix", path)
		must(t, err)
		defer c.Close()
	}
	one, two := <-accepted, <-accepted
	defer two.Close()
	select {
	case <-accepted:
		t.Error("one too many")
	default:
	}
	one.Close()
	b.state(one, http.StateClosed)
	three := <-accepted
	defer three.Close()
	must(t, b.Close()) // while it waits for a place
	if err := <-ended; err == nil {
		t.Error("it goes on")
	}
}
