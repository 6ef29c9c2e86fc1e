package runtimes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"probity/tests/need"
)

// AgentOptions say how to start the agent. The zero value starts one that
// listens to no runtime and has no policy.
type AgentOptions struct {
	Policies   []string // texts of YAML files
	NRISockets []string
	Containerd string // its address
	PodmanRoot string
	States     []string // state directories of runc or crun; none: the system's are not looked at
	Config     string   // text of the configuration file
	Args       []string // further arguments
	Env        []string
	Nice       bool // with the priority that the unit gives it
	Store      bool // somebody holds for the next agent what one has held
}

// For fills in the options that make the agent listen to c.
func (o AgentOptions) For(c *Containerd) AgentOptions {
	o.NRISockets = append(slices.Clip(o.NRISockets), c.NRISocket)
	o.Containerd = c.Address
	return o
}

// Agent is a running bin/probity with a throwaway key and spool.
type Agent struct {
	Scratch     *Scratch
	Binaries    Binaries
	State       string // holds node.key and node.pub
	Spool       string
	PolicyDir   string
	HookSocket  string
	AdminSocket string

	options AgentOptions
	server  *process
	notify  *net.UnixConn
	ready   *readiness
	store   *fdStore // nil: nobody holds anything
}

// StartAgent starts one for a test and returns when it is ready.
func StartAgent(t testing.TB, options AgentOptions) *Agent {
	t.Helper()
	need.Root(t)
	need.BPF(t)
	need.Cgroup2(t)
	return OpenAgent(t, NewScratch(t), Programs(t), "", options)
}

// OpenAgent starts one in s, with its spool at spool, or in s if that is
// empty, and returns when it is ready.
func OpenAgent(t T, s *Scratch, b Binaries, spool string, options AgentOptions) *Agent {
	t.Helper()
	a := &Agent{
		Scratch:     s,
		Binaries:    b,
		State:       s.Path("agent"),
		Spool:       spool,
		PolicyDir:   s.mkdir(t, "policies.d"),
		HookSocket:  filepath.Join(s.mkdir(t, "agent.run"), "hook.sock"),
		AdminSocket: s.Path("agent.run", "admin.sock"),
		options:     options,
	}
	if err := os.MkdirAll(a.State, 0o700); err != nil {
		t.Fatalf("agent: %v", err)
	}
	if a.Spool == "" {
		a.Spool = s.Path("spool")
	}
	for i, text := range options.Policies {
		s.write(t, fmt.Sprintf("policies.d/%02d.yaml", i), text)
	}
	s.write(t, "probity.yaml", options.Config)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.Path("agent.run", "notify.sock"), Net: "unixgram"})
	if err != nil {
		t.Fatalf("agent: listen for its readiness: %v", err)
	}
	a.notify, a.ready = conn, newReadiness()
	if options.Store {
		a.store = &fdStore{}
		t.Cleanup(a.store.drop)
	}
	go a.ready.listen(conn, a.store)
	t.Cleanup(func() {
		if a.server != nil {
			if err := a.server.stop(syscall.SIGTERM); err != nil {
				t.Errorf("%v", err)
			}
			if t.Failed() {
				t.Logf("agent's log:\n%s", a.server.tail())
			}
		}
		conn.Close()
	})
	a.Start(t)
	return a
}

// Start starts the agent, again with what it left, and returns when it is
// ready.
func (a *Agent) Start(t T) {
	t.Helper()
	ready := a.ready.next()
	a.launch(t)
	select {
	case <-ready:
	case <-a.server.done:
		t.Fatalf("the agent ended before it was ready: %v\n%s", a.server.err, a.server.tail())
	case <-t.Context().Done():
		t.Fatalf("waiting for the agent: %v", t.Context().Err())
	}
}

// launch starts the process.
func (a *Agent) launch(t T) {
	t.Helper()
	args := []string{
		"agent", "--config", a.Scratch.Path("probity.yaml"), "--state", a.State, "--spool", a.Spool, "--policies", a.PolicyDir,
		"--hook-socket", a.HookSocket, "--admin-socket", a.AdminSocket,
		"--containerd-address", a.options.Containerd, "--podman-root", a.options.PodmanRoot, "--node", "node.test",
	}
	for _, socket := range a.options.NRISockets {
		args = append(args, "--nri-socket", socket)
	}
	for _, dir := range a.options.States {
		args = append(args, "--runtime-state", dir)
	}
	if len(a.options.States) == 0 {
		args = append(args, "--runtime-state", "none")
	}
	if len(a.options.NRISockets) == 0 {
		args = append(args, "--nri-socket", "none")
	}
	cmd := exec.Command(a.Binaries.Probity, append(args, a.options.Args...)...)
	cmd.Env = append(os.Environ(), append([]string{atRaces, "NOTIFY_SOCKET=" + a.notify.LocalAddr().String()}, a.options.Env...)...)
	if a.store != nil {
		a.store.give(cmd)
	}
	if a.options.Nice {
		nice, err := exec.LookPath("nice")
		if err != nil {
			t.Fatalf("agent: %v", err)
		}
		cmd.Path, cmd.Args = nice, append([]string{"nice", "-n", unitNice, cmd.Path}, cmd.Args[1:]...)
	}
	server, err := start("the agent", a.Scratch.Path("agent.log"), cmd)
	if err != nil {
		t.Fatalf("%v", err)
	}
	a.server = server
}

// unitNice is the unit's Nice=.
const unitNice = "-10"

// Kill kills the agent with SIGKILL and waits for its end.
func (a *Agent) Kill(t T) {
	t.Helper()
	if err := a.server.stop(syscall.SIGKILL); err != nil {
		t.Fatalf("%v", err)
	}
}

// Stop ends the agent with SIGTERM; it must exit 0.
func (a *Agent) Stop(t T) {
	t.Helper()
	a.End(t, syscall.SIGTERM)
}

// End ends the agent with a signal; it must exit 0.
func (a *Agent) End(t T, signal syscall.Signal) {
	t.Helper()
	if err := a.server.stop(signal); err != nil {
		t.Fatalf("%v\n%s", err, a.server.tail())
	}
	if a.server.err != nil {
		t.Fatalf("the agent's end: %v\n%s", a.server.err, a.server.tail())
	}
}

// Pid returns the agent's process id.
func (a *Agent) Pid() int { return a.server.cmd.Process.Pid }

// Log returns the path of the agent's log.
func (a *Agent) Log() string { return a.server.log }

// Key returns the path of the agent's public key.
func (a *Agent) Key() string { return filepath.Join(a.State, "node.pub") }

// Done is closed when the agent has ended.
func (a *Agent) Done() <-chan struct{} { return a.server.done }

// Probity runs the command line and returns its exit code and both outputs.
func (a *Agent) Probity(t T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	return runProbity(ctx, t, a.Binaries.Probity, args...)
}

func runProbity(ctx context.Context, t T, program string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs strings.Builder
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("probity %s: %v", strings.Join(args, " "), err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// liveRun is one of the agent's live runs.
type liveRun struct {
	Identity struct {
		ID       string `json:"id"`
		CgroupID string `json:"cgroupId"`
	} `json:"identity"`
	Armed int `json:"armed"` // sites
}

// live lists the live runs. An error says that the agent did not answer.
func (a *Agent) live(t T) (runs []liveRun, err error) {
	t.Helper()
	return runs, a.ask(t, "containers", &runs)
}

// agentStatus is what tests want of the agent's status.
type agentStatus struct {
	Sources    map[string]string              `json:"sources"`
	Live       int                            `json:"liveRuns"`
	Goroutines int                            `json:"goroutines"`
	Stored     struct{ Bytes, Waiting int64 } `json:"stored"`
	Policies   struct{ Policies int }         `json:"policies"`
}

// status asks for it. An error says that the agent did not answer.
func (a *Agent) status(t T) (s agentStatus, err error) {
	t.Helper()
	return s, a.ask(t, "status", &s)
}

// ask has a command of the command line ask the agent.
func (a *Agent) ask(t T, command string, into any) error {
	t.Helper()
	code, out, errs := a.Probity(t, command, "-o", "json", "--admin-socket", a.AdminSocket)
	if code != 0 {
		return fmt.Errorf("%s: exit code %d\n%s", command, code, errs)
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return nil
}

// WaitIdle waits until no run is live and every line is on disk.
func (a *Agent) WaitIdle(t T) {
	t.Helper()
	code, out, errs := a.Probity(t, "status", "--wait-idle", Patience.String(), "--admin-socket", a.AdminSocket)
	if code != 0 {
		t.Fatalf("wait for the last evidence: exit code %d\n%s%s%s", code, out, errs, a.server.tail())
	}
}

// WaitSources waits until every runtime that the agent was given is connected:
// a container that starts before that is not announced.
func (a *Agent) WaitSources(t T) {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	var status agentStatus
	connected := func(socket string) bool { return status.Sources["nri:"+socket] == "connected" }
	for ctx.Err() == nil {
		var err error
		if status, err = a.status(t); err != nil {
			t.Fatalf("%v", err)
		}
		if !slices.ContainsFunc(a.options.NRISockets, func(s string) bool { return !connected(s) }) {
			return
		}
		pause(ctx)
	}
	t.Fatalf("the runtimes are not connected: %v\n%s", status.Sources, a.server.tail())
}

// Verify verifies the whole spool with the agent's key, which must find
// nothing, and returns what it printed.
func (a *Agent) Verify(t T) string {
	t.Helper()
	code, out, errs := a.Probity(t, "verify", a.Spool, "--key", a.Key())
	if code != 0 {
		t.Fatalf("verify %s: exit code %d\n%s%s", a.Spool, code, out, errs)
	}
	return out
}

// readiness turns the messages of the service notification socket into one
// closed channel per start.
type readiness struct {
	mu      sync.Mutex
	waiting chan struct{} // nil when nobody waits
}

func newReadiness() *readiness { return &readiness{} }

func (r *readiness) next() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = make(chan struct{})
	return r.waiting
}

// listen returns when conn is closed.
func (r *readiness) listen(conn *net.UnixConn, store *fdStore) {
	for {
		text, err := readNotice(conn, store)
		if err != nil {
			return
		}
		if !slices.Contains(strings.Split(text, "\n"), "READY=1") {
			continue
		}
		r.mu.Lock()
		if r.waiting != nil {
			close(r.waiting)
			r.waiting = nil
		}
		r.mu.Unlock()
	}
}
