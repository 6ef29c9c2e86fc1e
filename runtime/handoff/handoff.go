// Package handoff is the agent's side of the OCI hook: a unix stream socket on
// which a hook hands over a container's state, once, and is answered, once.
//
// In: bytes from whoever can connect. Out: calls of Config.Handle with the
// bytes of one request and the kernel's word for who sent it. A peer that is
// not admitted, which is all but root unless Config.Admit says otherwise, is hung
// up on before a byte of it is read; a request that is not
// well formed is reported to Config.Rejected, and one that takes too long to
// Config.Late: what they return is answered, which is leave to go on unless a
// closed policy says otherwise. The body is trusted for nothing: runtime/oci
// cross-checks it.
//
// When Run returns the socket is gone from the file system, no peer is being
// served and no call of Handle that was answered in time is running; one that
// was not may still be (see Config.Late).
//
// It is not a control: root can say anything here, and a hook that is not run
// says nothing.
package handoff

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"probity/runtime/handoff/wire"
)

// Request is one request of a hook.
type Request struct {
	Stage wire.Stage
	Body  []byte // 1 to wire.MaxBody bytes, as the runtime wrote them
	Peer  Peer   // valid until Handle returns
}

// Answer is what the hook is told. The zero value lets the container go on.
type Answer struct {
	Refuse  bool
	Message string // for the hook's stderr; at most wire.MaxMessage bytes are sent
}

// Config of a Server.
type Config struct {
	// Handle answers a request. It may be called concurrently. Its context
	// ends with Run's, not with the peer's deadline: what came late for the
	// hook is still worth finishing. Required.
	Handle func(context.Context, Request) Answer
	// Deadline is how long a peer waits for Handle before it is told to go
	// on. Default 1.3 s, below the 1.5 s after which the hook gives up.
	Deadline time.Duration
	// Late is told of a request whose container does not wait for Handle (any
	// more). If it waits for Late, because the deadline is over or Handle has
	// panicked, the peer is answered what Late returns, and not before, so it must
	// be quick. If not, the peer has hung up before it was answered, as a hook does
	// whose own patience is over, or could not be told the answer: what becomes of
	// the container is then not known. Handle may still be running, and may not
	// have looked at anything yet.
	Late func(r Request, waits bool) Answer
	// Admit says whether a peer is served, before a byte of it is read. done is
	// called when the peer is gone and no call of Handle for it runs any more; it may
	// be nil, and is without meaning with an error. Default: root is, and nobody else.
	Admit func(Peer) (done func(), err error)
	// Rejected is told what was not handed to Handle, and why. What it returns is
	// answered to who was admitted and speaks this protocol; all others are hung up on.
	Rejected func(Peer, error) Answer
	// Transfer bounds the reading of a request, and the writing of an
	// answer. Default 500 ms.
	Transfer time.Duration
	// Every is how long one more peer takes to be accepted, after Peers of them in a row
	// (0: no time). So what it costs to hang up on peers is bounded, too.
	Every time.Duration
	// Peers bounds how many are served at once; more wait in the kernel's
	// backlog. Default 64.
	Peers int
	Log   *slog.Logger // default: discarded
}

// Server answers hooks on one socket.
type Server struct {
	listener *Listener
	cfg      Config
}

// New returns a server for l. It starts nothing; Run closes l.
func New(l *Listener, cfg Config) *Server {
	if cfg.Deadline <= 0 {
		cfg.Deadline = 1300 * time.Millisecond
	}
	if cfg.Transfer <= 0 {
		cfg.Transfer = 500 * time.Millisecond
	}
	if cfg.Peers <= 0 {
		cfg.Peers = 64
	}
	if cfg.Admit == nil {
		cfg.Admit = rootOnly
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{listener: l, cfg: cfg}
}

// Errors that Rejected is told, besides those of reading.
var (
	ErrNotRoot = errors.New("the peer is not root")
	ErrEmpty   = errors.New("the state is empty")
	ErrTooLong = errors.New("the state is longer than 1 MiB")
)

// Run serves until ctx ends, which is no error, or the listener fails.
func (s *Server) Run(ctx context.Context) error {
	var peers sync.WaitGroup
	defer peers.Wait()
	defer s.listener.Close()
	stop := context.AfterFunc(ctx, func() { s.listener.Close() })
	defer stop()

	slots := make(chan struct{}, s.cfg.Peers)
	var free time.Time // when as many may be accepted in a row again
	for {
		if now := time.Now(); s.cfg.Every > 0 {
			if free = free.Add(s.cfg.Every); free.Before(now) {
				free = now
			}
			wait(ctx, free.Sub(now)-time.Duration(s.cfg.Peers-1)*s.cfg.Every)
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := s.listener.AcceptUnix()
		if err != nil {
			<-slots
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM) {
				// Accept fails at once until something is freed.
				s.cfg.Log.Warn("accept a hook", "error", err)
				wait(ctx, 50*time.Millisecond)
				continue
			}
			return fmt.Errorf("accept a hook: %w", err)
		}
		peers.Go(func() {
			defer func() { <-slots }()
			s.serve(ctx, conn)
		})
	}
}

func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// serve owns conn.
func (s *Server) serve(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	peer, err := peerOf(conn)
	if err != nil {
		s.reject(peer, err)
		return
	}
	handed := false // once Handle runs, it is who closes the peer
	defer func() {
		if !handed {
			peer.close()
		}
	}()
	if peer.done, err = s.cfg.Admit(peer); err != nil {
		peer.done = nil
		s.reject(peer, err)
		return
	}
	if err := conn.SetDeadline(time.Now().Add(s.cfg.Transfer)); err != nil {
		s.reject(peer, err)
		return
	}
	stage, body, err := receive(conn)
	if err != nil {
		a := s.reject(peer, err)
		if !errors.Is(err, wire.ErrProtocol) { // who speaks something else gets no answer
			s.answer(conn, peer, a)
		}
		return
	}
	handed = true
	gone, stop := watch(conn)
	req := Request{Stage: stage, Body: body, Peer: peer}
	a := s.ask(ctx, req, gone)
	stop()
	if !s.answer(conn, peer, a) && a.Refuse {
		s.late(req, false)
	}
}

// ask returns Handle's answer, or Late's at the deadline, when the peer is gone, or
// if Handle panics.
func (s *Server) ask(ctx context.Context, req Request, gone <-chan struct{}) Answer {
	done := make(chan Answer, 1)
	failed := make(chan struct{})
	go func() {
		defer req.Peer.close()
		defer func() {
			if p := recover(); p != nil {
				s.cfg.Log.Error("answer a hook", "panic", p)
				close(failed)
			}
		}()
		done <- s.cfg.Handle(ctx, req)
	}()
	deadline := time.NewTimer(s.cfg.Deadline)
	defer deadline.Stop()
	select {
	case a := <-done:
		select {
		case <-gone: // it did not wait for this
			s.late(req, false)
		default:
		}
		return a
	case <-gone:
		return s.late(req, false)
	case <-failed:
	case <-deadline.C:
		select {
		case a := <-done: // both were ready
			return a
		default:
		}
	}
	return s.late(req, true)
}

func (s *Server) late(req Request, waits bool) (a Answer) {
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Log.Error("a late answer to a hook", "panic", p)
		}
	}()
	req.Peer.fd, req.Peer.done = nil, nil // belong to Handle
	if s.cfg.Late != nil {
		a = s.cfg.Late(req, waits)
	}
	return a
}

func rootOnly(p Peer) (done func(), err error) {
	if p.Uid != 0 {
		return nil, ErrNotRoot
	}
	return nil, nil
}

// level is of what is logged because of a peer: who is not root could fill the log.
func (p Peer) level() slog.Level {
	if p.Uid != 0 {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

func (s *Server) reject(p Peer, err error) (a Answer) {
	s.cfg.Log.Log(context.Background(), p.level(), "hook rejected", "pid", p.Pid, "uid", p.Uid, "error", err)
	if s.cfg.Rejected != nil {
		a = s.cfg.Rejected(p, err)
	}
	return a
}

// answer reports whether the peer was told.
func (s *Server) answer(conn *net.UnixConn, p Peer, a Answer) bool {
	verdict := wire.Proceed
	if a.Refuse {
		verdict = wire.Refuse
	}
	if err := conn.SetDeadline(time.Now().Add(s.cfg.Transfer)); err != nil {
		s.cfg.Log.Log(context.Background(), p.level(), "answer a hook", "error", err)
		return false
	}
	if _, err := conn.Write(wire.AppendAnswer(nil, verdict, a.Message)); err != nil {
		s.cfg.Log.Log(context.Background(), p.level(), "answer a hook", "error", err)
		return false
	}
	return true
}

// receive reads one request. The body's memory grows as it arrives, so that a
// header alone costs nothing.
func receive(r io.Reader) (wire.Stage, []byte, error) {
	var head [wire.HeaderBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, fmt.Errorf("read a request: %w", err)
	}
	stage, n, err := wire.ParseHeader(head)
	switch {
	case err != nil:
		return 0, nil, fmt.Errorf("read a request: header %x: %w", binary.BigEndian.Uint32(head[:4]), err)
	case n == 0:
		return stage, nil, ErrEmpty
	case n > wire.MaxBody:
		return stage, nil, ErrTooLong
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(body) < n {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, nil, fmt.Errorf("read a request: %d of %d bytes: %w", len(body), n, err)
	}
	return stage, body, nil
}
