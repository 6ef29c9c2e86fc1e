package nri

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"

	"probity/runtime/cgroup"
	"probity/runtime/container"
)

// registration bounds one attempt until the runtime has configured us. The
// runtime allows 5 s itself; one that is busy with other plugins needs longer
// to get to us.
const registration = 15 * time.Second

// attempt is one connection, from dial to its end. Its stub is never used
// again: a stub that was cut off keeps state.
type attempt struct {
	s       *Source
	ctx     context.Context      // ends with Run
	timeout func() time.Duration // the runtime's, known from its Configure on
	runtime atomic.Pointer[container.Runtime]
	barrier atomic.Int64 // ns
	aborted atomic.Bool

	registered     chan struct{} // closed once the runtime has answered a registration
	registeredOnce sync.Once
}

// attempt connects once and stays until the connection ends. It reports
// whether the runtime had configured us.
func (s *Source) attempt(ctx context.Context) (connected bool, err error) {
	conn, err := s.dial(ctx)
	if err != nil {
		return false, err
	}
	w := &watched{Conn: conn, ended: make(chan struct{})}
	defer w.Close()
	a := &attempt{s: s, ctx: ctx, registered: make(chan struct{})}
	a.barrier.Store(int64(s.cfg.Barrier))

	closed := make(chan struct{})
	st, err := stub.New(a,
		stub.WithPluginName(s.cfg.Name), stub.WithPluginIdx(s.cfg.Index),
		stub.WithConnection(w), stub.WithLogger(logger{s.cfg.Log}),
		stub.WithTTRPCOptions([]ttrpc.ClientOpts{ttrpc.WithUnaryClientInterceptor(a.called)}, nil),
		stub.WithOnClose(sync.OnceFunc(func() { close(closed) })))
	if err != nil {
		return false, fmt.Errorf("make an NRI stub: %w", err)
	}
	a.timeout = st.RequestTimeout
	if err := a.start(ctx, st, w); err != nil {
		return false, err
	}
	s.cfg.Log.Info("connected", "barrier", time.Duration(a.barrier.Load()))

	select {
	case <-w.ended:
	case <-ctx.Done():
	}
	at := cgroup.BootTime()
	w.Close()
	st.Stop()
	<-closed
	if ctx.Err() == nil {
		s.disconnected(at)
	}
	return true, nil
}

// start starts the stub, which is not safe to call: between its registration
// and the runtime's Configure it waits on a channel, deaf to its context and
// to the end of the connection, with its mutex held. So it waits in a goroutine
// of its own, and if the connection ends or the time is over, a Configure of
// our own making, which fails, gets it out.
func (a *attempt) start(ctx context.Context, st stub.Stub, w *watched) error {
	started := make(chan error, 1)
	go func() { started <- st.Start(ctx) }()
	limit := time.NewTimer(registration)
	defer limit.Stop()
	select {
	case err := <-started:
		return err
	case <-w.ended:
	case <-limit.C:
	case <-ctx.Done():
	}
	// Start may have returned at the same moment; that is as good.
	a.aborted.Store(true)
	w.Close()
	select {
	case <-a.registered:
		// The stub keeps one result of a Configure, and Start takes one: even if
		// the runtime's own came just before the end, this one returns.
		if c, ok := st.(configurer); ok {
			go c.Configure(ctx, &api.ConfigureRequest{RuntimeName: "aborted"})
		}
	case err := <-started: // nothing takes the result of a Configure
		return abandoned(st, err)
	}
	return abandoned(st, <-started)
}

// called is around each call to the runtime. The first is the registration, and
// the stub makes no other.
func (a *attempt) called(ctx context.Context, q *ttrpc.Request, p *ttrpc.Response, _ *ttrpc.UnaryClientInfo, call ttrpc.Invoker) error {
	err := call(ctx, q, p)
	if err == nil && p.GetStatus().GetCode() == 0 {
		a.registeredOnce.Do(func() { close(a.registered) })
	}
	return err
}

// configurer is the part of a stub that the runtime calls.
type configurer interface {
	Configure(context.Context, *api.ConfigureRequest) (*api.ConfigureResponse, error)
}

// abandoned stops a stub that did start, too late.
func abandoned(st stub.Stub, err error) error {
	if err == nil {
		st.Stop()
		return errRegistration
	}
	return fmt.Errorf("%w: %w", errRegistration, err)
}

// watched is a connection that says when it has ended.
type watched struct {
	net.Conn
	ended chan struct{}
	once  sync.Once
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if err != nil {
		w.end()
	}
	return n, err
}

func (w *watched) Write(b []byte) (int, error) {
	n, err := w.Conn.Write(b)
	if err != nil {
		w.end()
	}
	return n, err
}

// Close closes the connection; further calls do nothing.
func (w *watched) Close() error {
	w.end()
	return w.Conn.Close()
}

func (w *watched) end() { w.once.Do(func() { close(w.ended) }) }

// logger is the stub's log: its news are details here.
type logger struct{ log *slog.Logger }

func (l logger) Debugf(ctx context.Context, f string, v ...any) {
	l.say(ctx, slog.LevelDebug, f, v)
}
func (l logger) Infof(ctx context.Context, f string, v ...any) { l.say(ctx, slog.LevelDebug, f, v) }
func (l logger) Warnf(ctx context.Context, f string, v ...any) { l.say(ctx, slog.LevelWarn, f, v) }
func (l logger) Errorf(ctx context.Context, f string, v ...any) {
	l.say(ctx, slog.LevelError, f, v)
}

func (l logger) say(ctx context.Context, level slog.Level, f string, v []any) {
	if l.log.Enabled(ctx, level) {
		l.log.Log(ctx, level, "nri: "+fmt.Sprintf(f, v...))
	}
}
