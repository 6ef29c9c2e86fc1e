// Package spool puts signed chunks on disk for a shipper to carry away.
//
// In: evidence lines, by run. Out: files ready/FIRST-10-DIGITS/NAME.ndjson below
// the spool's directory, each complete, signed, and never touched again.
//
// True on disk: a name below ready/ holds a whole chunk or does not exist, at
// every moment and after kill -9 or loss of power; when Flush returns nil
// everything appended before is published, when Sync does it is durable; a sequence
// number is never used for two chunks, also not after the shipper has removed them.
// While Run runs, a line that waits for its chunk to close is durable 100 ms after
// Append, in a write-ahead file below the state directory: the next start publishes
// what it finds there, once. True in memory: Append never waits for the disk; what
// cannot be written is kept up to a bound, and what is past the bound is dropped as
// whole chunks, oldest first, those of containers with the most lines before others', counted, and signed as spoolDropped gaps when writing
// works again.
//
// A file whose write or fsync failed is never written again: what it should hold
// goes from memory into another.
//
// It trusts its directories' file system to keep what fsync accepted, and
// whoever may write there not to remove what nobody else has: they can delete
// evidence, and this package cannot stop them. It trusts who may write the state
// directory as it does itself: what is found there is signed. It is not a control
// against either. It does protect from half of a chunk, from two agents on one state
// directory, and from its own crash.
package spool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"probity/evidence"
	"probity/evidence/redact"
	"probity/evidence/sign"
)

// Names below the spool's directory.
const (
	ReadyDir = "ready" // complete chunks
	tmpDir   = "tmp"   // chunks that are being written; emptied at Open
)

// DefaultMaxPending is how many bytes of closed chunks wait in memory.
const DefaultMaxPending = 16 << 20

// worthKeeping is how large a chunk was whose memory is kept for another one: they
// follow each other then, and the next one is about as large.
const worthKeeping = 1 << 20

// DefaultHeartbeat is how often Run puts a heartbeat into the log.
const DefaultHeartbeat = time.Minute

// retryAfter is how long the writer waits after an error.
const retryAfter = time.Second

// ErrClosed is returned by Append and Flush after Close.
var ErrClosed = errors.New("the spool is closed")

// Config says where and for whom a Spool writes. Dir, State, Node, BootID,
// Signer and Clock are required.
type Config struct {
	Dir    string // the spool
	State  string // where seq and instance are kept; one agent at a time
	Node   string
	BootID string
	Agent  string // "probity VERSION"; "probity" if empty
	Signer *sign.Signer
	// Clock reads boot time and wall time, once for each chunk.
	Clock func() evidence.Clock
	// Dropped, if set, is told which runs lost lines, so that their sites'
	// states can be appended again: states are cumulative, so nothing but the
	// moment is lost then. It is called from Run or Flush, without locks held.
	Dropped    func(runIDs []string)
	MaxPending int64 // bytes of closed chunks kept in memory; DefaultMaxPending if 0
	// Quota bounds the bytes of published chunks. Past it the oldest are removed:
	// first those that every consumer has acknowledged, then the others, which is
	// signed; of these first what is of containers past ContainerQuota. 0 is no bound.
	Quota int64
	// ContainerQuota bounds the bytes of one container's lines, published or waiting.
	// Past it lines about entries of its sets are refused, which is signed; from half
	// of it on Thrifty says so. 0 is no bound.
	ContainerQuota int64
	// Heartbeat is how often the log says that all that is live is covered as its
	// latest lines say; DefaultHeartbeat if 0.
	Heartbeat time.Duration
	Log       *slog.Logger
}

// Spool collects lines into chunks and writes them. Append, Seal, Flush and
// Close may be called concurrently.
type Spool struct {
	cfg   Config
	state *state
	book  book          // with writing held
	have  inventory     // with writing held
	wake  chan struct{} // capacity 1: Run has something to look at

	// instance is the log's at the start. A chunk gets its name, and its place in
	// the log, when it is written: until then this one stands there.
	instance string

	writing  sync.Mutex // held over everything that touches the spool; taken before keeping and mu
	synced   string     // the directory below ready/ that is known to be durable
	prepared bool       // the spool was found in order, or put in order

	left   []leftover // write-ahead files of earlier processes, as long as the log cannot be read
	leftAt uint64     // the number of the first

	keeping  sync.Mutex // held over everything that touches the write-ahead files; taken before mu
	keepBuf  []byte
	walNamed bool          // their directory is durable
	waits    chan struct{} // capacity 1: keepUp has something to do

	mu       sync.Mutex
	open     *chunk        // takes lines; nil if no line waits
	seals    uint64        // how many were closed: who read the clock before does not begin the next
	pending  []*chunk      // closed, oldest first
	bytes    int64         // of pending
	inflight int           // so many of the first pending are being written
	next     uint64        // sequence number of the next chunk
	drops    drops         // not yet signed
	lost     evidence.Time // see PowerLoss
	due      bool          // keepUp knows that lines wait
	over     []*chunk      // whose write-ahead files may go
	spare    []byte        // of the last chunk that was written, if it was a large one
	failing  error         // why the last attempt to write failed
	failed   time.Time     // since when they do
	moved    chan struct{} // closed after the next attempt to write; nil if nobody waits
	stuck    bool          // somebody has waited for that in vain
	closed   bool
	stored   int64                   // of have, as mu's holders know it
	held     map[string]*holding     // by container
	refused  map[refusedKey]*refusal // lines that were not taken
	again    map[string]bool         // runs of which some were refused for want of a disk
	dropped  map[string]uint64       // lines, by reason, since Open
}

// Open makes the directories, removes what a crash left in tmp/, and finds the
// next sequence number. A spool that cannot be written now is no error: chunks
// then wait in memory. A state directory that cannot be read is one, or that
// another process holds.
func Open(cfg Config) (*Spool, error) {
	if cfg.Dir == "" || cfg.State == "" || cfg.Signer == nil || cfg.Clock == nil {
		return nil, errors.New("open spool: Dir, State, Signer and Clock are required")
	}
	if cfg.Agent == "" {
		cfg.Agent = "probity"
	}
	if cfg.MaxPending <= 0 {
		cfg.MaxPending = DefaultMaxPending
	}
	if cfg.Heartbeat <= 0 {
		cfg.Heartbeat = DefaultHeartbeat
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	st, err := openState(cfg.State)
	if err != nil {
		return nil, fmt.Errorf("open spool: state: %w", err)
	}
	s := &Spool{
		cfg: cfg, state: st, wake: make(chan struct{}, 1), waits: make(chan struct{}, 1),
		held: map[string]*holding{}, refused: map[refusedKey]*refusal{}, again: map[string]bool{}, dropped: map[string]uint64{},
	}
	s.book = book{cfg: &s.cfg, state: st}
	if err := s.begin(); err != nil {
		return nil, errors.Join(fmt.Errorf("open spool: %w", err), st.close())
	}
	return s, nil
}

// begin finds out where the earlier agent was, and publishes what it left.
func (s *Spool) begin() error {
	s.instance = s.state.instance
	left, err := s.leftovers()
	if err != nil {
		return err
	}
	names, top, err := visible(s.cfg.Dir)
	if err != nil {
		return err
	}
	for _, l := range left {
		names[l.name] = true
	}
	used := s.state.used
	if used > 0 && s.state.tree.Size == 0 && s.book.absent() {
		s.state.unused()
		used = 0
	}
	loaded := s.state.instance
	s.left = left
	unready := s.prepare(context.Background(), names)
	s.instance = s.state.instance
	last := s.book.last
	switch {
	case unready != nil || s.instance != loaded || last.bootID == "":
	case last.bootID != s.cfg.BootID && !last.closed:
		s.lostSince(last.at)
	case last.bootID == s.cfg.BootID && (s.state.tree.Origin == s.book.origin() || s.state.first()):
		// Nothing was lost but memory: the log has all numbers that were used.
		used = min(used, last.top)
	}
	s.next = max(used, top) + 1
	// A header that cannot be written would fail every chunk: say so now.
	if _, err := newChunk(s.header(evidence.Clock{Wall: evidence.TimeOf(time.Unix(0, 0))}, s.next), nil, s.instance); err != nil {
		return err
	}
	s.leftAt = s.next
	s.next += uint64(len(s.left))
	if unready != nil {
		s.cfg.Log.Error("the spool cannot be written, evidence waits in memory", "dir", s.cfg.Dir, "error", unready)
		s.foundLost()
		return nil
	}
	return s.adoptFirst()
}

// adoptFirst publishes what was found in write-ahead files. It is no error that it
// cannot: then the chunks wait like any other.
func (s *Spool) adoptFirst() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	any, err := s.adoptLate()
	s.book.known = nil
	if err != nil {
		return err
	}
	s.next = s.leftAt // what was published needs no number
	if !any {
		return nil
	}
	s.next = uint64(s.pending[len(s.pending)-1].header.Seq) + 1
	if _, err := s.publishLocked(context.Background()); err != nil {
		s.cfg.Log.Error("what an earlier agent left cannot be published yet", "error", err)
	}
	return nil
}

// Earlier is when an earlier agent last made room for chunks in this state
// directory, as found at Open; zero if there was none. Its chunks may be gone.
func (s *Spool) Earlier() time.Time { return s.state.since }

func (s *Spool) header(clock evidence.Clock, seq uint64) evidence.Header {
	leaf := evidence.Uint64(seq)
	return evidence.Header{
		Chunk: evidence.ChunkName(seq, s.instance), Node: s.cfg.Node, BootID: s.cfg.BootID,
		Seq: evidence.Uint64(seq), KeyID: s.cfg.Signer.KeyID(), Clock: clock, Agent: s.cfg.Agent,
		Log: evidence.Origin(s.cfg.Node, s.instance), Leaf: &leaf,
	}
}

// Append adds a run's lines to the open chunk; runID is "" for lines of the node
// or of a source. build is called with the clock of the header that the lines go
// under, and derives every time in them from it; where they are spread over
// several chunks, all of these have the same clock. It is called again where
// that chunk was closed meanwhile, and then its last lines count. It must not
// call the Spool. A line that no redactor has seen is refused. Append checks all lines before it takes the first, so it takes
// all or none, and never waits for the disk. Lines are made and encoded without a
// lock: those of several runs at once. Calls about one run must not overlap, or
// their order is not said.
func (s *Spool) Append(runID string, build func(evidence.Clock) []redact.Line) error {
	e := buffers.Get().(*encoder)
	defer e.put()
	if err := s.appendUnlocked(e, runID, redacted(runID, build)); err != nil {
		return fmt.Errorf("append evidence: %w", err)
	}
	return nil
}

// attempts is how often lines are made without the lock before they are made
// with it, while nobody else can close the chunk.
const attempts = 2

func (s *Spool) appendUnlocked(e *encoder, runID string, what content) error {
	for range attempts {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return ErrClosed
		}
		clock := s.clockFor(runID)
		seals := s.seals
		s.mu.Unlock()

		if err := what(e, clock); err != nil {
			return err
		}

		s.mu.Lock()
		switch {
		case s.closed:
			s.mu.Unlock()
			return ErrClosed
		case s.open == nil && s.seals == seals, s.open != nil && s.open.header.Clock == clock:
			err := s.take(clock, e)
			s.mu.Unlock()
			return err
		}
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	return s.append(e, runID, what)
}

// append makes and takes lines with mu held.
func (s *Spool) append(e *encoder, runID string, what content) error {
	clock := s.clockFor(runID)
	if err := what(e, clock); err != nil {
		return err
	}
	return s.take(clock, e)
}

// clockFor returns the clock of the chunk that a run's lines would go into, with
// mu held.
func (s *Spool) clockFor(runID string) evidence.Clock {
	if c := s.open; c != nil && c.full(runID) {
		s.seal()
	}
	if s.open != nil {
		return s.open.header.Clock
	}
	return s.cfg.Clock()
}

// take adds encoded lines, whose times are the clock's, with mu held.
func (s *Spool) take(clock evidence.Clock, e *encoder) error {
	var h *holding
	tell := "" // the run of which something was refused that is to be told now
	for _, l := range e.lines {
		if id := containerOf(l.line); id == "" {
			h = nil
		} else if h == nil || h.containerID != id {
			h = s.holding(id)
		}
		switch v := l.line.(type) {
		case *evidence.Observation:
			if v.Entry == nil {
				break
			}
			if why := s.past(h); why != "" {
				if s.refuse(clock, v, why) {
					tell = v.RunID
				}
				continue
			}
		case *evidence.Coverage: // its list of probes says how many entries there are
			if len(s.refused) > 0 {
				tell = v.RunID
			}
		}
		if s.open != nil && !s.open.fits(l) {
			s.seal()
		}
		if s.open == nil {
			c, err := newChunk(s.header(clock, s.next), s.spare, s.instance)
			if err != nil {
				return err // Open has tried this header
			}
			s.next++
			s.open, s.spare = c, nil
			s.signal() // Run sets its timer
		}
		s.open.add(l)
		if h != nil {
			h.waiting += int64(len(l.bytes)) + 1
		}
	}
	if tell != "" {
		s.tellRefused(tell)
	}
	s.waiting()
	return nil
}

// waitFor bounds one wait for the disk.
const waitFor = time.Second

// Wait returns when Append has room: when no more than half of the chunks that may
// wait in memory do. Who reads faster than the disk writes, and can read later,
// asks before Append: what is past the bound would be dropped. It does not wait for
// a disk that fails, and not again for one that has not written for a second; stop
// ends it.
func (s *Spool) Wait(stop <-chan struct{}) {
	for {
		moved := s.behind()
		if moved == nil {
			return
		}
		timer := time.NewTimer(waitFor)
		select {
		case <-moved:
		case <-timer.C:
			s.mu.Lock()
			s.stuck = s.moved == moved // else it has moved just now
			s.mu.Unlock()
		case <-stop:
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// behind returns what is closed when the disk has come on, or nil if that is not
// worth waiting for.
func (s *Spool) behind() chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes <= s.cfg.MaxPending/2 || s.failing != nil || s.stuck || s.closed {
		return nil
	}
	if s.moved == nil {
		s.moved = make(chan struct{})
	}
	return s.moved
}

// Seal closes the open chunk now, as the end of a run does. It does not wait
// for the disk.
func (s *Spool) Seal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seal()
}

// seal is Seal with mu held.
func (s *Spool) seal() {
	c := s.open
	if c == nil {
		return
	}
	s.open = nil
	s.seals++
	c.closed, c.closedNs = time.Now(), int64(s.cfg.Clock().BootNs)
	s.pending = append(s.pending, c)
	s.bytes += c.size()
	s.shed()
	s.signal()
}

// shed drops whole chunks past the bound, but not the one that is being written, nor
// the newest: the bound is of what waits behind it. The oldest goes first of those
// that are of containers which have more than their part of what waits, and of nobody
// else, then of those that are mostly of such, and only then the oldest of all.
func (s *Spool) shed() {
	for s.bytes > s.cfg.MaxPending {
		i := s.inflight
		for i < len(s.pending) && s.pending[i].placed != nil {
			i++ // it may be in the log
		}
		if len(s.pending) <= i+1 {
			return
		}
		for _, now := range sacrifices {
			is := func(c *chunk) bool { return c.placed == nil && now(s.greedy(c)) }
			if g := slices.IndexFunc(s.pending[i:len(s.pending)-1], is); g >= 0 {
				i += g
				break
			}
		}
		s.drop(i)
	}
}

// drop gives up pending[i] and remembers what has to be signed about it.
func (s *Spool) drop(i int) {
	c := s.pending[i]
	s.pending = slices.Delete(s.pending, i, i+1)
	s.bytes -= c.size()
	s.dropped[DroppedMemory] += c.tally.Lines()
	s.drops.add(c, s.here(c.header), s.failing)
	s.isOver(c)
	s.cfg.Log.Error("dropped a chunk that could not be written", "chunk", c.header.Chunk, "lines", c.tally.Lines(), "error", s.failing)
}

func (s *Spool) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run writes closed chunks, and closes the open one MaxWaitNs after its first
// line, until ctx ends. It then closes and tries to write what is left, once,
// and returns what could not be written as an error.
func (s *Spool) Run(ctx context.Context) error {
	var keeper sync.WaitGroup
	keeper.Go(func() { s.keepUp(ctx) })
	defer keeper.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var retry time.Time // not before, after an error
	beat := time.Now().Add(s.cfg.Heartbeat)
	for {
		now := time.Now()
		due := s.sealDue(now)
		if !now.Before(beat) {
			beat = now.Add(s.cfg.Heartbeat)
			s.beat(ctx)
		}
		if due.IsZero() || beat.Before(due) {
			due = beat
		}
		if !now.Before(retry) {
			retry = time.Time{}
			if err := s.publish(ctx); err != nil && ctx.Err() == nil {
				retry = time.Now().Add(retryAfter)
			}
		}
		if !retry.IsZero() && retry.Before(due) {
			due = retry
		}
		timer.Reset(time.Until(due))
		select {
		case <-ctx.Done():
			return s.flushOrKeep()
		case <-s.wake:
		case <-timer.C:
		}
	}
}

// beat puts a heartbeat into the log, unless something waits that its root would
// not be over.
func (s *Spool) beat(ctx context.Context) {
	s.tellDue()
	if err := s.publish(ctx); err != nil {
		return // said already
	}
	if s.relieve() {
		if _, err := s.Collect(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Error("what all consumers have cannot be removed", "error", err)
		}
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	err := s.prepare(ctx, nil)
	if err == nil {
		err = s.book.beat(s.cfg.Clock().Wall)
	}
	if err != nil && ctx.Err() == nil {
		s.book.forget()
		s.cfg.Log.Error("no heartbeat could be written into the node's log", "error", err)
	}
}

// sealDue closes the open chunk if its time has come, or says when it will.
func (s *Spool) sealDue(now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		return time.Time{}
	}
	due := s.open.opened.Add(evidence.MaxWaitNs)
	if now.Before(due) {
		return due
	}
	s.seal()
	return time.Time{}
}

// Flush closes the open chunk and returns nil when all that was appended before
// the call is durable. It tries again after an error until ctx ends.
func (s *Spool) Flush(ctx context.Context) error {
	for {
		err := s.flushOnce()
		if err == nil {
			return nil
		}
		timer := time.NewTimer(retryAfter)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("flush spool: %w", err)
		case <-timer.C:
		}
	}
}

func (s *Spool) flushOnce() error {
	s.Seal()
	return s.publish(context.Background())
}

// flushOrKeep leaves what cannot be published to the next start.
func (s *Spool) flushOrKeep() error {
	s.mu.Lock()
	s.tellRefused("")
	s.mu.Unlock()
	err := s.flushOnce()
	if err != nil {
		err = errors.Join(err, s.keep(true))
	}
	return err
}

// Rekey goes on with another key of the node's, which has to follow the one before:
// what was appended is published under the old key as far as the disk allows, and
// from here on the new one signs. Its epoch, with the successions that lead to it, is
// in the log when Rekey returns nil. After an error it comes into the log with the
// next chunk or heartbeat: the new key is in use in either case, unless it does not
// follow.
func (s *Spool) Rekey(ctx context.Context, next *sign.Signer) error {
	err := s.flushOnce()
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	old := s.cfg.Signer
	switch {
	case s.closed:
		s.mu.Unlock()
		return ErrClosed
	case next.KeyID() == old.KeyID() || next.Key(old.KeyID()) == nil:
		s.mu.Unlock()
		return fmt.Errorf("go on with another key: %s does not follow %s", next.KeyID(), old.KeyID())
	}
	s.seal() // what began meanwhile has the old key in its header until it is placed
	s.cfg.Signer = next
	s.mu.Unlock()
	err = errors.Join(err, old.Rest()) // what both are kept in may serve one at a time
	if err == nil {
		err = s.prepare(ctx, nil)
	}
	if err == nil {
		if err = s.book.rekey(s.cfg.Clock().Wall); err != nil {
			s.book.forget()
		}
	}
	if err != nil {
		return fmt.Errorf("go on with another key: its epoch is not in the log yet: %w", err)
	}
	return nil
}

// Close writes what is left, once, and gives up the state directory. It is
// idempotent. Run should have returned before.
func (s *Spool) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	if again {
		return nil
	}
	err := s.flushOrKeep()
	s.writing.Lock()
	defer s.writing.Unlock()
	if err == nil {
		err = s.state.settle(s.next - 1) // leaves no hole in the numbers
	}
	if err == nil {
		err = s.book.close(s.cfg.Clock().Wall)
	}
	s.closeWALs()
	return errors.Join(err, s.state.close())
}

// publish writes all closed chunks. ctx is looked at between chunks.
func (s *Spool) publish(ctx context.Context) error {
	s.writing.Lock()
	runs, err := s.publishLocked(ctx)
	s.writing.Unlock()
	if len(runs) > 0 && s.cfg.Dropped != nil {
		s.cfg.Dropped(runs)
	}
	return err
}

func (s *Spool) publishLocked(ctx context.Context) (lostLines []string, err error) {
	for ctx.Err() == nil {
		s.mu.Lock()
		if len(s.pending) == 0 {
			s.mu.Unlock()
			return lostLines, nil
		}
		batch := slices.Clone(s.pending[:min(len(s.pending), maxBatch)])
		s.inflight = len(batch)
		s.mu.Unlock()

		n, err := s.write(ctx, batch)

		s.mu.Lock()
		s.inflight, s.stuck = 0, false
		if s.moved != nil {
			close(s.moved)
			s.moved = nil
		}
		s.spare = nil
		for _, c := range batch[:n] {
			s.bytes -= c.size()
			if c.size() >= worthKeeping {
				s.spare = c.body // nobody has it any more
			}
			s.isOver(c)
		}
		s.pending = slices.Delete(s.pending, 0, n)
		switch {
		case err == nil:
			if s.failing != nil {
				s.cfg.Log.Info("the spool can be written again", "chunk", batch[0].header.Chunk)
			}
		case errors.Is(err, errNever):
			s.failing = err
			s.drop(0)
		default:
			if s.failing == nil {
				s.failed = time.Now()
				s.cfg.Log.Error("the spool cannot be written, evidence waits in memory", "chunk", batch[n].header.Chunk, "error", err)
			}
			s.failing = err
			s.shed()
			n := len(s.pending)
			s.mu.Unlock()
			return lostLines, fmt.Errorf("write %d waiting chunks: %w", n, err)
		}
		s.failing = nil
		if !s.drops.empty() {
			lostLines = append(lostLines, s.signDrops()...)
		}
		if len(s.again) > 0 { // there is room for them now
			lostLines = append(lostLines, slices.Sorted(maps.Keys(s.again))...)
			clear(s.again)
		}
		s.mu.Unlock()
		s.keeping.Lock()
		s.tidy()
		s.keeping.Unlock()
	}
	return lostLines, ctx.Err()
}

// signDrops turns what was dropped into gap lines, in chunks that are closed at
// once. If such a chunk is dropped in its turn, the same facts come back.
func (s *Spool) signDrops() (runIDs []string) {
	all := s.drops.split()
	s.drops = drops{}
	s.seal() // the gaps' chunks hold nothing else, so that they can carry them back
	e := buffers.Get().(*encoder)
	defer e.put()
	for i, d := range all {
		if err := s.append(e, "", own(func(c evidence.Clock) []*evidence.Gap { return d.gaps(c, s.instance, i) })); err != nil {
			s.cfg.Log.Error("sign the gap of dropped evidence", "lines", d.lines, "error", err)
			s.drops.merge(d)
			continue
		}
		if s.open != nil {
			s.open.carries = d
		}
		s.seal()
		runIDs = append(runIDs, d.runIDs()...)
	}
	return runIDs
}

// prepare makes the directories, opens the log, and completes what an earlier
// agent left in tmp/, once; later it only opens the log again after an error. names
// are chunks that somebody asks the log about.
func (s *Spool) prepare(ctx context.Context, names map[string]bool) error {
	if s.prepared {
		return s.openLog(ctx)
	}
	for _, d := range []string{tmpDir, ReadyDir} {
		if err := os.MkdirAll(filepath.Join(s.cfg.Dir, d), 0o750); err != nil {
			return err
		}
	}
	// Nobody must read a checkpoint there that could be gone with its directory.
	if err := errors.Join(syncPath(s.cfg.Dir), syncPath(filepath.Dir(s.cfg.Dir))); err != nil {
		return err
	}
	if names == nil {
		var err error
		if names, _, err = visible(s.cfg.Dir); err != nil {
			return err
		}
		for _, l := range s.left {
			names[l.name] = true
		}
	}
	tmp, err := os.ReadDir(filepath.Join(s.cfg.Dir, tmpDir))
	if err != nil {
		return err
	}
	for _, e := range tmp {
		name, _ := strings.CutSuffix(e.Name(), ".ndjson")
		names[name] = true
	}
	s.book.watch = func(name string) bool { return names[name] }
	if err := s.openLog(ctx); err != nil {
		return err
	}
	s.book.watch = nil
	if err := s.finish(); err != nil {
		return err
	}
	if err := s.count(ctx); err != nil {
		return err
	}
	s.reserve()
	s.prepared = true
	return nil
}

func (s *Spool) openLog(ctx context.Context) error {
	if err := s.book.open(ctx); err != nil {
		return fmt.Errorf("open the node's log: %w", err)
	}
	return nil
}
