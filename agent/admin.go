package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"time"

	"probity/bpf/kernel"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/evidence/spool"
	"probity/runtime/handoff"
)

// Status is what `probity status` shows.
type Status struct {
	Version string `json:"version"`
	Node    string `json:"node"`
	KeyID   string `json:"keyId"`
	// Unsigned is why nothing can be signed now, if so: what the key is kept in cannot
	// be reached, and evidence waits.
	Unsigned  string            `json:"unsigned,omitempty"`
	BootID    string            `json:"bootId"`
	Spool     string            `json:"spool"`
	Stored    spool.Usage       `json:"stored"`    // in the spool
	Coalesced uint64            `json:"coalesced"` // lines left out since the start because a later one says the same, at least
	Policies  PolicyStatus      `json:"policies"`
	Kernel    kernel.Facts      `json:"kernel"`
	Exec      string            `json:"execMechanism"` // tracepoint, rawTracepoint, or why there is none
	Cgroup    string            `json:"cgroupMode"`
	Sources   map[string]string `json:"sources"` // by name: connected, or what is the matter
	Seen      Seen              `json:"seen"`    // containers since the agent's start
	Live      int               `json:"liveRuns"`
	Waiting   int               `json:"waiting"` // runs being armed or sealed
	Armed     probe.Stats       `json:"armed"`
	// Goroutines are those of the agent's process: where they grow, something leaks.
	Goroutines int      `json:"goroutines"`
	Problems   []string `json:"problems"` // what a person should look at
}

// PolicyStatus sums up the policies in force.
type PolicyStatus struct {
	Dir      string `json:"dir"`
	Digest   string `json:"digest"`
	Policies int    `json:"policies"`
	Probes   int    `json:"probes"`
	// Since is when they came into force.
	Since evidence.Time `json:"since"`
	// Refused is why the last reload changed nothing; absent if it did not fail.
	Refused string `json:"refused,omitempty"`
}

// Status returns what the agent is doing.
func (a *Agent) Status() Status {
	stored := a.spool.Usage()
	unsigned, key, p := "", a.key(), a.inForce()
	if err := key.Failing(); err != nil {
		unsigned = err.Error()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s := Status{
		Version: a.cfg.Version, Node: a.cfg.Node, KeyID: key.KeyID(), Unsigned: unsigned, BootID: a.bootID, Spool: a.cfg.Spool, Stored: stored, Coalesced: a.witness.Coalesced(),
		Policies: PolicyStatus{Dir: a.cfg.Policies, Digest: p.Digest, Policies: len(p.Policies), Since: evidence.TimeOf(p.since), Refused: a.reloadRefused},
		Kernel:   a.kernel, Sources: map[string]string{}, Seen: a.seen, Live: len(a.live), Waiting: a.busy, Problems: append([]string{}, a.problems...),
		Goroutines: runtime.NumGoroutine(),
	}
	for _, p := range p.Policies {
		s.Policies.Probes += len(p.Probes)
	}
	for k, v := range a.sources {
		s.Sources[k] = v
	}
	if a.cgErr == nil {
		s.Cgroup = string(a.cgroups.Mode)
	}
	if a.engine != nil {
		s.Armed = a.engine.Stats()
		if how, err := a.engine.ExecMechanism(); err != nil {
			s.Exec = err.Error()
		} else {
			s.Exec = string(how)
		}
	}
	return s
}

// Collected is the answer to a request to collect.
type Collected struct {
	Chunks int `json:"chunks"`
}

// serveAdmin serves the administration socket: root only. All that it changes is
// that acknowledged chunks go, and the node's key. The kernel's
// word for who connects (SO_PEERCRED) is the only thing that is believed.
func (a *Agent) serveAdmin(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { reply(w, a.Status()) })
	mux.HandleFunc("GET /containers", func(w http.ResponseWriter, _ *http.Request) { reply(w, a.witness.Live()) })
	// Answers when no run is live and all evidence is on disk.
	mux.HandleFunc("GET /idle", func(w http.ResponseWriter, r *http.Request) {
		err := a.waitIdle(r.Context())
		if err == nil {
			err = a.spool.Flush(r.Context())
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		reply(w, a.Status())
	})
	mux.HandleFunc("POST /collect", func(w http.ResponseWriter, r *http.Request) {
		n, err := a.spool.Collect(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		reply(w, Collected{n})
	})
	a.serveChanges(mux)
	peers := &bounded{Listener: rootOnly{l, a}, slots: make(chan struct{}, maxAdminPeers), closed: make(chan struct{})}
	srv := &http.Server{
		// No ReadTimeout: it would end the wait of /idle. So who sends a body slowly, or
		// one that nobody wants, is told to hurry by withBody.
		ConnState:   peers.state,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connection{}, c) },
		Handler:     withBody(mux), ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Minute, IdleTimeout: 5 * time.Second, MaxHeaderBytes: 8 << 10,
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	err := srv.Serve(peers)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the peer may have gone
}

// rootOnly hangs up on peers that are not root before a byte of them is read.
type rootOnly struct {
	net.Listener
	agent *Agent
}

func (l rootOnly) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := handoff.PeerUID(c.(*net.UnixConn))
		if err == nil && uid == 0 {
			return c, nil
		}
		l.agent.cfg.Log.Warn("refused a peer of the administration socket", "uid", uid, "err", err)
		c.Close()
	}
}

// maxAdminPeers bounds who is connected to the administration socket at once: root, and
// so a container that was given the socket's directory. Further ones wait; each has a
// descriptor of the agent's, of which containers need some.
const maxAdminPeers = 64

// bounded accepts so many connections at once.
type bounded struct {
	net.Listener
	slots  chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (b *bounded) Accept() (net.Conn, error) {
	select {
	case b.slots <- struct{}{}:
	case <-b.closed:
		return nil, net.ErrClosed
	}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.slots
	}
	return c, err
}

func (b *bounded) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.Listener.Close()
}

// state is the server's ConnState: each connection that was accepted ends once.
func (b *bounded) state(_ net.Conn, s http.ConnState) {
	if s == http.StateClosed {
		<-b.slots
	}
}

// bodyPatience is how long a request's body may take.
const bodyPatience = 2 * time.Second

// withBody reads a request's body before anything is done for it: a handler that
// answers without would leave that to the server, which waits for ever.
func withBody(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			hurry := http.NewResponseController(w)
			err := hurry.SetReadDeadline(time.Now().Add(bodyPatience))
			var body []byte
			if err == nil {
				body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
			}
			if err == nil {
				err = hurry.SetReadDeadline(time.Time{})
			}
			if err != nil {
				w.Header().Set("Connection", "close")
				http.Error(w, "read the request: "+err.Error(), http.StatusBadRequest)
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		h.ServeHTTP(w, r)
	})
}

// Ask asks the agent that listens on socket. It is the command line's half.
func Ask(ctx context.Context, socket, path string, into any) error {
	return ask(ctx, http.MethodGet, socket, path, into)
}

// Collect asks the agent to remove what every consumer has acknowledged.
func Collect(ctx context.Context, socket string) (Collected, error) {
	var c Collected
	return c, ask(ctx, http.MethodPost, socket, "/collect", &c)
}

func ask(ctx context.Context, method, socket, path string, into any) error {
	return send(ctx, method, socket, path, nil, into)
}

// send asks with a body, if there is one.
func send(ctx context.Context, method, socket, path string, body, into any) error {
	var content io.Reader = http.NoBody
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(b)
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, content)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the agent at %s: %w (is it running, and are you root?)", socket, errors.Unwrap(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return fmt.Errorf("ask the agent at %s: %s: %s", socket, resp.Status, strings.TrimSpace(string(why)))
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	return nil
}

// WaitReady asks until the agent answers.
func WaitReady(ctx context.Context, socket string, most time.Duration) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for {
		var st Status
		err := Ask(ctx, socket, "/status", &st)
		if err == nil {
			return st, nil
		}
		// Nothing announces a socket that is not there yet.
		select {
		case <-ctx.Done():
			return st, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// WaitIdle returns when the agent has no live run and all evidence is on disk.
func WaitIdle(ctx context.Context, socket string, most time.Duration) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	var st Status
	err := Ask(ctx, socket, "/idle", &st)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("runs are still live after %v (see: probity containers)", most)
	}
	return st, err
}
