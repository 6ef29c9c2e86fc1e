// Package nri is the source of notices for containerd and CRI-O: an NRI plugin
// on one socket, supervised for as long as the agent lives.
//
// In: what the runtime says over its NRI socket. Out: calls of Config.Notify,
// and of Lost and Synced, which say from when to when nothing could be heard.
// A Starting notice is the barrier: the runtime starts the container's first
// instruction when Notify returns, or when Config.Barrier is over. Everything
// else is only queued while the runtime waits, since all of a node's NRI events
// share one lock; what is held of that lock is bounded, by Barrier for one
// start and by a fifth of any ten seconds for all together, but for those that
// Config.Insist is for. A start that could not be waited for is told to Config.Late.
//
// It trusts the runtime for who a container is, and the kernel for who listens
// on the socket: root, or the agent's own user. No error of a callback reaches the
// runtime but one that wraps [ErrRefused], which fails the start (CRI-O only logs
// it), and no panic. No container is changed, but one of CRI-O's for which
// Config.Hook returns a hook: an OCI runtime obeys that.
//
// When Run returns nothing is connected, and of the callbacks only a Notify that
// was late, whose context has ended, may still be running.
//
// It is not a control: the runtime starts a container without us when we are
// late or away. The cgroup is the caller's to find from the pid; CRI-O before
// 1.36 sends none, and the notice has 0 then.
package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/runtime/dial"
)

// DefaultSocket is where runtimes listen by default.
const DefaultSocket = "/var/run/nri/nri.sock"

// Config of a Source.
type Config struct {
	Socket string // default DefaultSocket
	Name   string // of the plugin; default "probity"
	Index  string // two digits, the order among plugins; default "10"
	Log    *slog.Logger

	// Notify takes a notice. Those of starts come concurrently, each from
	// its own goroutine; all others one after the other. For Starting it
	// blocks until the container may run, or returns ErrRefused. Its context ends with Run, not at
	// the barrier: what came late is worth finishing. Required.
	Notify func(context.Context, container.Notice) error
	// Barrier is how long a start waits for Notify. Default 1.5 s; never
	// more than three quarters of the runtime's own timeout, after which it
	// would cut the plugin off.
	Barrier time.Duration
	// Late is told of a start that does not wait for Notify to return: past the
	// barrier, past the budget, because Run ends, or because the notice could not
	// be made or Notify panicked. The container starts when Late returns, unless
	// that is ErrRefused, and not before, so it must be quick. It may come
	// before Notify has been entered, and concurrently with others. If it does not
	// wait (Run ends, and the connection with it), nobody knows whether an answer
	// reaches the runtime: the container may start in any case.
	Late func(n container.Notice, waits bool) error
	// Insist says of a start that it waits until Barrier, whatever the budget: it
	// would have to be refused otherwise, because of what others have spent.
	Insist func(container.Notice) bool
	// Hook returns an OCI hook for a container of CRI-O that is about to be made, to run
	// at createRuntime, or nil. It must be quick. If it is nil itself CreateContainer is
	// not asked for.
	Hook func(container.Notice) *Hook
	// Lost says that nothing could be heard from boot time from (in ns) on:
	// with to 0 when that begins, and again with its end.
	Lost func(from, to int64)
	// Synced says that the runtime has listed what runs, and that Notify has
	// had all of it.
	Synced func()
}

// Source is one NRI socket.
type Source struct {
	cfg    Config
	name   string // as notices spell it
	shared budget
	queue  *queue

	started chan struct{} // one token for each Notify of a start that runs
	lost    atomic.Int64  // boot time since when nothing is heard, or 0
}

// Hook is an OCI hook (runtime-spec, "POSIX-platform Hooks").
type Hook struct {
	Path    string
	Args    []string // the first is the program's name
	Timeout time.Duration
}

// ErrRefused is wrapped by what Notify and Late return of a container that must not
// start. The whole error is what the runtime is told.
var ErrRefused = errors.New("refused")

// maxStarts bounds the starts that are being notified, those let go included.
// Past it a start is let go at once and queued.
const maxStarts = 256

// New returns a source. It starts nothing.
func New(cfg Config) *Source {
	if cfg.Socket == "" {
		cfg.Socket = DefaultSocket
	}
	if cfg.Name == "" {
		cfg.Name = "probity"
	}
	if cfg.Index == "" {
		cfg.Index = "10"
	}
	if cfg.Barrier <= 0 {
		cfg.Barrier = 1500 * time.Millisecond
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Source{cfg: cfg, name: "nri:" + cfg.Socket, started: make(chan struct{}, maxStarts)}
	s.cfg.Log = cfg.Log.With("source", s.name)
	s.queue = newQueue(s.overflow)
	return s
}

// Name is the source of this source's notices.
func (s *Source) Name() string { return s.name }

// errRegistration: the runtime took the connection and then did not go through
// with it.
var errRegistration = errors.New("the runtime did not complete the registration")

// Run connects, and connects again, until ctx ends, which is no error.
func (s *Source) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.queue.drain(ctx)
	}()
	defer func() { <-done }()

	s.disconnected(cgroup.BootTime())
	dial.Again(ctx, func() (bool, error) { return s.attempt(ctx) }, func(err error) { s.cfg.Log.Warn("not connected", "error", err) })
	return nil
}

// dial connects to the socket and looks who listens.
func (s *Source) dial(ctx context.Context) (*net.UnixConn, error) {
	d := net.Dialer{Timeout: 2 * time.Second}
	c, err := d.DialContext(ctx, "unix", s.cfg.Socket)
	if err != nil {
		return nil, err
	}
	conn := c.(*net.UnixConn)
	uid, err := dial.ListenerUID(conn)
	if err == nil && !dial.Trusted(uid) {
		err = fmt.Errorf("uid %d listens", uid)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("look who listens on %s: %w", s.cfg.Socket, err)
	}
	return conn, nil
}

// disconnected opens the window in which nothing is heard, once.
func (s *Source) disconnected(at int64) {
	if s.lost.CompareAndSwap(0, at) {
		s.queue.put(func() { s.callLost(at, 0) })
	}
}

// synced closes it.
func (s *Source) synced(at int64) {
	if from := s.lost.Swap(0); from != 0 {
		s.queue.put(func() { s.callLost(from, at) })
	}
}

func (s *Source) callLost(from, to int64) {
	defer s.recovered("lost")
	if s.cfg.Lost != nil {
		s.cfg.Lost(from, to)
	}
}

func (s *Source) callSynced() {
	defer s.recovered("synced")
	if s.cfg.Synced != nil {
		s.cfg.Synced()
	}
}

func (s *Source) callLate(n container.Notice, waits bool) error {
	defer s.recovered("late")
	if s.cfg.Late != nil {
		return s.refused(n, s.cfg.Late(n, waits))
	}
	return nil
}

// refused is what the runtime is told of an error: nothing, unless it is ErrRefused.
func (s *Source) refused(n container.Notice, err error) error {
	if err == nil || errors.Is(err, ErrRefused) {
		return err
	}
	s.cfg.Log.Warn("notice", "kind", n.Kind, "container", n.Identity.ID, "error", err)
	return nil
}

func (s *Source) callInsist(n container.Notice) bool {
	defer s.recovered("insist")
	return s.cfg.Insist != nil && s.cfg.Insist(n)
}

func (s *Source) callHook(n container.Notice) *Hook {
	defer s.recovered("hook")
	return s.cfg.Hook(n)
}

// overflow is told by the queue from when to when it took nothing: a window in
// which we might as well have been deaf.
func (s *Source) overflow(from, to int64) { s.callLost(from, to) }

func (s *Source) recovered(what string) {
	if p := recover(); p != nil {
		s.cfg.Log.Error("a callback panicked", "callback", what, "panic", p)
	}
}
