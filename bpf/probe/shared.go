package probe

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"sync/atomic"

	"probity/bpf"
	"probity/evidence"
)

// fileKey identifies what one set of links is attached to: an inode, by one
// probe, at these places. The inode cannot be reused while a link or the
// canary holds it.
type fileKey struct {
	dev, ino uint64
	probe    string
	places   string // the bytes of the points' places
}

// sharedFile is one armed (inode, probe), shared by every container of the
// image and counted by reference.
type sharedFile struct {
	key   fileKey
	path  string // for messages
	stamp stamp  // of the bytes that it was attached to

	// mu serialises attaching, and guards the fields below.
	mu     sync.Mutex
	ready  bool
	why    error // why it was detached while it was in use; not armed again then
	broken error // why it is not ready though nobody meant to take the links away
	points []point
	att    attachment
	canary *canary // of the lower file: its health is the links' health
	proven int64   // boot time before the canary last showed that all that is attached still is; 0: since then it was not, or more was attached
	looked int64   // boot time before the file was last looked at, of rewritten
	found  string  // what was found
	// Links that an earlier engine made: inherited until they are proven, and then
	// goesOn for as long as they are not made again.
	inherited, goesOn bool

	keepable bool // its links may be kept while there is no agent

	usage
}

// usage counts who uses what containers share.
type usage struct {
	attachedAt atomic.Int64  // boot time at which it was attached; 0: it is not
	failing    bool          // it could not be attached again; of Engine.keep
	mended     atomic.Uint32 // how often lost links were made again
	leaveUntil atomic.Int64  // boot time until which it is left as it is: see crowded

	// Guarded by Engine.mu.
	refs      int
	idleSince int64 // boot time at which refs became 0
}

func (u *usage) use() *usage { return u }

// arm attaches once, then proves for this container: mapped is the container's
// own view of the file. It returns the refusal per place; a place without one
// is armed.
func (s *sharedFile) arm(e *Engine, lower, merged *os.File) (map[place]refusal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why != nil {
		return nil, fmt.Errorf("%s was detached: %w", s.path, s.why)
	}
	m := e.machine
	view, err := newCanary(merged, s.offsets(), len(m.breakpoint))
	if err != nil {
		return nil, fmt.Errorf("map %s through the container's root: %w", s.path, err)
	}
	defer view.close()
	if s.inherited {
		if err := s.takeUp(e, lower); err != nil {
			e.cfg.Log.Warn("links that were kept are made again", "file", s.path, "err", err)
		} else {
			s.works(e)
		}
	}
	if !s.ready {
		if err := s.attach(e.obj, lower, m); err != nil {
			return nil, err
		}
		s.works(e)
	} else {
		s.again(e.obj, lower)
		s.keep(e)
	}
	out := maps.Clone(s.att.refused)
	attached := s.attached()
	ok, err := view.patched(offsetsOf(attached), m.breakpoint)
	for i, p := range attached {
		switch {
		case err != nil:
			out[p] = refusal{evidence.AttachFailed, err.Error()}
		case !ok[i]:
			out[p] = refusal{evidence.UnprobeableInstruction, "attached, but the instruction does not read as a breakpoint through the container's own path"}
		}
	}
	return out, nil
}

// attaches reports whether to arm it again attaches anything.
func (s *sharedFile) attaches() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why == nil && (!s.ready || len(s.refusedForNow()) > 0)
}

// attach makes the links, and the canary that proves them. With mu held.
func (s *sharedFile) attach(obj *bpf.Objects, lower *os.File, m Machine) (err error) {
	if s.canary, err = newCanary(lower, s.offsets(), len(m.breakpoint)); err != nil {
		return fmt.Errorf("map %s: %w", s.path, err)
	}
	s.att = attach(obj, lower, s.points)
	s.ready, s.goesOn, s.proven = true, false, 0
	return nil
}

func (s *sharedFile) offsets() []uint64 {
	out := make([]uint64, len(s.points))
	for i, p := range s.points {
		out[i] = p.offset
	}
	return out
}

// again attaches the points that could not be attached for want of something,
// such as memory, and not because of their instruction: what failed for one
// container need not fail for the next.
func (s *sharedFile) again(obj *bpf.Objects, lower *os.File) {
	points := s.refusedForNow()
	if len(points) == 0 {
		return
	}
	for _, p := range points {
		delete(s.att.refused, p.place)
	}
	s.proven = 0
	more := attach(obj, lower, points)
	s.att.links, s.att.progs = append(s.att.links, more.links...), append(s.att.progs, more.progs...)
	maps.Copy(s.att.refused, more.refused)
}

// refusedForNow lists the points that may be attached another time. With mu held.
func (s *sharedFile) refusedForNow() (out []point) {
	if len(s.att.refused) == 0 {
		return nil
	}
	for _, p := range s.points {
		if s.att.refused[p.place].reason == evidence.AttachFailed {
			out = append(out, p)
		}
	}
	return out
}

// works notes that the links are made and proven. With mu held.
func (s *sharedFile) works(e *Engine) {
	s.attachedAt.Store(e.cfg.BootTime())
	if s.broken != nil {
		s.broken = nil
		s.mended.Add(1)
	}
	s.keep(e)
}

// goneOn reports whether its links are an earlier engine's, and were never away.
func (s *sharedFile) goneOn() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready && s.goesOn
}

// errRests reports that the links were taken away because nobody awaits an
// answer: a trouble only for who does.
var errRests = errors.New("its links were taken away while it awaits an answer")

// check says why not all of these sites are armed, by what the canary reads. All
// containers of an image ask for the same files: what it read after the boot time
// asOf is not read again.
func (s *sharedFile) check(e *Engine, armed []uint32, asOf int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.why != nil:
		return fmt.Errorf("it was detached: %w", s.why)
	case s.broken != nil:
		return s.broken
	case !s.ready:
		return errRests
	}
	if s.proven == 0 || s.proven < asOf {
		now := e.cfg.BootTime()
		s.proven = 0
		if lost, err := s.lost(e.machine); err != nil || lost > 0 {
			return cmp.Or(err, fmt.Errorf("%d of the file's sites do not read as a breakpoint any more", lost))
		}
		s.proven = now
	}
	if left, r := s.left(armed); left > 0 {
		return fmt.Errorf("%d of the file's sites were not attached again after it rested: %s", left, r.detail)
	}
	return nil
}

// lost counts the attached sites that do not read as a breakpoint. With mu held.
func (s *sharedFile) lost(m Machine) (n int, err error) {
	ok, err := s.canary.patched(offsetsOf(s.attached()), m.breakpoint)
	for _, yes := range ok {
		if !yes {
			n++
		}
	}
	return n, err
}

// left counts which of these sites the kernel refused when the links were made
// again, and says why of one. With mu held.
func (s *sharedFile) left(armed []uint32) (n int, why refusal) {
	if len(s.att.refused) == 0 {
		return 0, refusal{}
	}
	wanted := make(map[uint32]bool, len(armed))
	for _, id := range armed {
		wanted[id] = true
	}
	for _, p := range s.points {
		if r, no := s.att.refused[p.place]; no && !p.exit && wanted[p.at.Site] {
			n, why = n+1, r
		}
	}
	return n, why
}

// rewritten says what somebody on the host did to a file of a layer since it was
// armed, if he did. The canary does not show that: its pages are its own. AsOf as
// in check.
func (s *sharedFile) rewritten(e *Engine, by *held, asOf int64) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.looked == 0 || s.found != "" || s.looked < asOf {
		s.looked, s.found = e.cfg.BootTime(), by.changed()
	}
	return s.found
}

// detach closes a file that is in use, and remembers why.
func (s *sharedFile) detach(why error) error {
	s.mu.Lock()
	if s.why == nil {
		s.why = why
	}
	s.mu.Unlock()
	return s.close()
}

// gone returns why the file was detached while it was in use, if it was.
func (s *sharedFile) gone() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why
}

// armedOffsets lists the offsets at which a process must have a breakpoint.
func (s *sharedFile) armedOffsets() []uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ready {
		return nil
	}
	return offsetsOf(s.attached())
}

// attached lists the places that the kernel took. With mu held.
func (s *sharedFile) attached() []place {
	var out []place
	for _, p := range s.points {
		if _, no := s.att.refused[p.place]; !no {
			out = append(out, p.place)
		}
	}
	return out
}

func offsetsOf(places []place) []uint64 {
	out := make([]uint64, len(places))
	for i, p := range places {
		out[i] = p.offset
	}
	return out
}

func (s *sharedFile) String() string { return s.path }

func (s *sharedFile) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = false
	s.attachedAt.Store(0)
	return errors.Join(s.att.close(), s.canary.close())
}
