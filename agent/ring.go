package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"probity/bpf"
)

// ring reads the kernel's ring buffer and hands each event on.
type ring struct {
	reader *ringbuf.Reader
	take   func(bpf.Event)
	entry  func(*bpf.SetEntry)
	idle   func()      // told when there is nothing more to read for now
	bad    func(error) // takes why a record could not be decoded
	log    *slog.Logger

	turns turns

	mu      sync.Mutex
	waiting []chan struct{} // drains that have not been served
	closed  bool
}

func newRing(r *ringbuf.Reader, take func(bpf.Event), entry func(*bpf.SetEntry), idle func(), bad func(error), log *slog.Logger) *ring {
	return &ring{reader: r, take: take, entry: entry, idle: idle, bad: bad, log: log}
}

// run reads until the ring is closed.
func (r *ring) run() error {
	var rec ringbuf.Record
	var entry bpf.SetEntry // one for all: it is large
	var serving []chan struct{}
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.turns.end() // it ends while it is at something
		r.closed = true
		serveAll(append(serving, r.waiting...))
		r.waiting = nil
	}()
	for {
		err := r.reader.ReadInto(&rec)
		r.turns.begin()
		switch {
		case errors.Is(err, ringbuf.ErrFlushed):
			// A drain may have been asked for after this flush had read the
			// ring, so read once more what is there now, without waiting.
			serving = append(serving, r.asked()...)
			r.reader.SetDeadline(time.Unix(1, 0))
		case errors.Is(err, os.ErrDeadlineExceeded):
			serveAll(serving)
			serving = nil
			r.reader.SetDeadline(time.Time{})
		case errors.Is(err, ringbuf.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("read the ring buffer: %w", err)
		default:
			var e bpf.Event
			isEntry := bpf.IsSetEvent(rec.RawSample)
			if isEntry {
				err = entry.Decode(rec.RawSample)
			} else {
				e, err = bpf.Decode(rec.RawSample)
			}
			switch {
			case err != nil:
				r.log.Error("an event of the kernel was not understood", "err", err)
				r.bad(err)
			case isEntry:
				r.entry(&entry)
			default:
				r.take(e)
			}
			if rec.Remaining == 0 {
				r.idle()
			}
		}
		r.turns.end()
	}
}

func (r *ring) asked() []chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.waiting
	r.waiting = nil
	return w
}

func serveAll(drains []chan struct{}) {
	for _, d := range drains {
		close(d)
	}
}

// drain returns when every event that was in the ring at the call has been
// handed on, or the ring is closed.
func (r *ring) drain() {
	done := make(chan struct{})
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	r.waiting = append(r.waiting, done)
	err := r.reader.Flush()
	r.mu.Unlock()
	if err != nil {
		return
	}
	<-done
}

// close ends run. It is idempotent.
func (r *ring) close() error { return r.reader.Close() }
