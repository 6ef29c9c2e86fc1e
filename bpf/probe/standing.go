package probe

import (
	"errors"
	"fmt"
	"os"
	"time"

	"probity/bpf"
	"probity/evidence"
)

// Standing is a time for which a site's counter stands still: it has its
// answer, or its probe came too often.
type Standing struct {
	Site   uint32             // Site.ID
	Reason evidence.GapReason // GapStoodDown or GapBudgetDisarm
	From   int64              // boot time
	To     int64              // boot time from which it counts again; 0 while it stands still
	Detail string
}

// Stood returns the times that began or ended since it was last called: one
// that ended is returned again, with its end. A site whose counter stands still
// keeps what it has counted.
func (h *Handle) Stood() []Standing {
	h.engine.look(h, h.engine.cfg.BootTime())
	h.mu.Lock()
	defer h.mu.Unlock()
	out := h.told
	h.told = nil
	return out
}

// rules are what a site's probe says about standing down.
func (e *Engine) rules(s *Site) bpf.Slot {
	p := s.Probe
	rate := p.MaxRate
	if rate == 0 {
		rate = e.cfg.MaxRate
	}
	return bpf.Slot{
		StopAfter: p.StopAfter, MaxRate: uint32(rate), RearmAfter: p.RearmAfter, Stack: p.Stack,
		Caller: s.File != nil && (s.Return || s.Symbol != "" && s.Marker == "" && s.InlinedIn == ""),
	}
}

// stood is one time for which a counter stands still.
type stood struct {
	Standing
	times uint32 // how often the counter had stood down by then
	due   int64  // boot time from which it counts again; 0: never
}

// look reads the counters of a container if one of them stood down since the
// last time, or one is due.
func (e *Engine) look(h *Handle, now int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	run, err := e.obj.Run(h.target.Cgroup)
	if err != nil {
		return // closed meanwhile
	}
	due := h.nextDue != 0 && h.nextDue <= now
	if run.Stood == h.runStood && !due {
		h.lookedAt = now
		return
	}
	h.runStood = run.Stood
	seen := map[uint32]bool{}
	for i := range h.Sites {
		s := &h.Sites[i]
		if !s.Armed || s.ID == 0 || seen[s.ID] {
			continue
		}
		seen[s.ID] = true
		c, err := e.obj.Slot(h.target.Cgroup, s.ID)
		if err != nil {
			continue
		}
		h.follow(s, c, now)
	}
	h.lookedAt, h.nextDue = now, 0
	for _, st := range h.stood {
		if st.due != 0 && st.To == 0 && (h.nextDue == 0 || st.due < h.nextDue) {
			h.nextDue = st.due
		}
	}
}

// follow takes what a counter says. With mu held.
func (h *Handle) follow(s *Site, c bpf.Counter, now int64) {
	st := h.stood[s.ID]
	if st == nil {
		st = &stood{Standing: Standing{Site: s.ID, To: 1}}
		if h.stood == nil {
			h.stood = map[uint32]*stood{}
		}
		h.stood[s.ID] = st
	}
	end := func(at int64) {
		if st.To == 0 {
			st.To = at
			h.told = append(h.told, st.Standing)
		}
	}
	if c.Stood == st.times {
		if st.due != 0 && st.due <= now && h.counts(s.ID) {
			end(max(st.due, h.attachedAt(s.ID)))
		}
		return
	}
	end(max(st.due, h.attachedAt(s.ID)))
	from := c.StoodNs
	if c.Stood != st.times+1 || from == 0 {
		from = h.lookedAt // it counted in between, nobody knows when
	}
	*st = stood{Standing: Standing{Site: s.ID, Reason: evidence.GapStoodDown, From: from}, times: c.Stood}
	if rearm := s.Probe.RearmAfter; rearm != 0 {
		st.due = from + int64(rearm)
	}
	switch c.Standing {
	case bpf.StandingTooOften:
		st.Reason, st.Detail = evidence.GapBudgetDisarm, fmt.Sprintf("more than %d hits came within a second", h.engine.rules(s).MaxRate)
	default:
		st.Detail = fmt.Sprintf("%d hits were counted, as many as were asked for", s.Probe.StopAfter)
	}
	h.told = append(h.told, st.Standing)
	if c.StoodNs == 0 {
		end(now)
	}
}

// holding returns what has the links of a site. With mu held.
func (h *Handle) holding(id uint32) shared {
	for i := range h.held {
		for _, own := range h.held[i].armed {
			if own == id {
				return h.held[i].file
			}
		}
	}
	for _, hook := range h.hooks {
		if hook.site == id {
			return hook.sharedHook
		}
	}
	return nil
}

func (h *Handle) counts(id uint32) bool {
	s := h.holding(id)
	return s != nil && s.use().attachedAt.Load() != 0
}

func (h *Handle) attachedAt(id uint32) int64 {
	if s := h.holding(id); s != nil {
		return s.use().attachedAt.Load()
	}
	return 0
}

// stands reports whether none of these sites awaits an answer, now or soon.
// With mu held.
func (h *Handle) stands(ids []uint32, until int64) bool {
	for _, id := range ids {
		st := h.stood[id]
		if st == nil || st.To != 0 || st.due != 0 && st.due <= until {
			return false
		}
	}
	return true
}

// quiet reports whether it is said of each of these sites that its counter
// stands still.
func (h *Handle) quiet(ids []uint32) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range ids {
		if st := h.stood[id]; st == nil || st.To != 0 {
			return false
		}
	}
	return true
}

// minDetach is how long nobody must await an answer for a link to be worth
// taking away and making again.
const minDetach = 2 * time.Second

// keep does what has to be done again and again: it looks who stood down,
// detaches what nobody awaits an answer of, and attaches it again in time.
func (e *Engine) keep(now int64) {
	e.mu.Lock()
	handles := make([]*Handle, 0, len(e.handles))
	for h := range e.handles {
		handles = append(handles, h)
	}
	before := e.stood
	e.turn++
	e.mu.Unlock()
	n, err := e.obj.Stood()
	if err != nil {
		e.cfg.Log.Warn("look who stood down", "err", err)
		return
	}
	var due []*Handle
	standing := map[shared][]*Handle{} // who stands, once for each of its references
	wanted := map[shared]*held{}       // detached, and somebody awaits an answer
	for _, h := range handles {
		if n != before {
			e.look(h, now)
		}
		h.mu.Lock()
		if h.nextDue != 0 && h.nextDue <= now {
			due = append(due, h)
		}
		for i := range h.held {
			held := &h.held[i]
			switch {
			case h.stands(held.armed, now+int64(minDetach)):
				standing[held.file] = append(standing[held.file], h)
			case held.file.attachedAt.Load() == 0 && held.file.gone() == nil:
				wanted[held.file] = held
			}
		}
		for i := range h.hooks {
			hook := &h.hooks[i] // not a copy: what the health check notes in it is not read here
			switch {
			case !hook.armed || h.stands([]uint32{hook.site}, now+int64(minDetach)):
				standing[hook.sharedHook] = append(standing[hook.sharedHook], h)
			case hook.attachedAt.Load() == 0:
				wanted[hook.sharedHook] = nil
			}
		}
		h.mu.Unlock()
	}
	for s, held := range wanted {
		err := s.attachAgain(e, held)
		if u := s.use(); (err != nil) != u.failing { // not at every turn
			u.failing = err != nil
			e.cfg.Log.Warn("attach again", "to", s.String(), "err", err)
		}
	}
	for _, h := range due {
		e.look(h, now)
	}
	e.mu.Lock()
	e.stood = n
	e.mu.Unlock()
	for s, who := range standing {
		s.rest(e, who)
	}
}

// rest takes the links away if all who use the file stand down. The canary
// stays with whoever attaches again.
func (s *sharedFile) rest(e *Engine, standing []*Handle) {
	if s.attachedAt.Load() == 0 || !e.nobodyElse(&s.usage, standing) || e.crowded(s, nil, nil) != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ready || !e.nobodyElse(&s.usage, standing) {
		return
	}
	began := time.Now()
	defer func() { e.slowed(s, time.Since(began)) }()
	s.ready = false
	s.attachedAt.Store(0)
	if err := errors.Join(s.att.close(), s.canary.close()); err != nil {
		e.cfg.Log.Warn("detach", "from", s.path, "err", err)
	}
}

func (s *sharedHook) rest(e *Engine, standing []*Handle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.links) == 0 || !e.nobodyElse(&s.usage, standing) {
		return
	}
	if err := s.unlink(); err != nil {
		e.cfg.Log.Warn("detach", "from", s.String(), "err", err)
	}
}

// nobodyElse reports whether those who stand are all who use it. It counts those
// who still do: one may have gone since it was found to stand, and another come,
// who awaits an answer.
func (e *Engine) nobodyElse(u *usage, standing []*Handle) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, h := range standing {
		if e.handles[h] {
			n++
		}
	}
	return u.refs == n
}

// attachAgain makes the links again, and proves them by the lower file.
func (s *sharedFile) attachAgain(e *Engine, by *held) error {
	if !s.attaches() {
		return s.gone()
	}
	if err := e.crowded(s, nil, nil); err != nil {
		return err
	}
	lower, err := by.match.Open()
	if err != nil {
		return err
	}
	defer lower.Close()
	if err := unchanged(lower, by.stamp); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	began := time.Now()
	defer func() { e.slowed(s, time.Since(began)) }()
	return s.remake(e, lower)
}

// mend makes links again that were lost, and those that could not be made.
func (s *sharedFile) mend(e *Engine, by *held) error {
	s.mu.Lock()
	if s.ready && s.why == nil {
		if lost, err := s.lost(e.machine); err != nil || lost > 0 {
			s.ready, s.broken = false, errors.New("its links were lost")
			s.attachedAt.Store(0)
			// To close what is closed already is no error of interest.
			_, _ = s.att.close(), s.canary.close()
		}
	}
	s.mu.Unlock()
	return s.attachAgain(e, by)
}

// remake attaches what is not attached. With mu held.
func (s *sharedFile) remake(e *Engine, lower *os.File) error {
	switch {
	case s.why != nil:
		return s.why
	case s.ready:
		s.again(e.obj, lower)
		return nil
	}
	if err := s.attach(e.obj, lower, e.machine); err != nil {
		return err
	}
	attached := s.attached()
	ok, err := s.canary.patched(offsetsOf(attached), e.machine.breakpoint)
	for i := range ok {
		if !ok[i] && err == nil {
			err = errors.New("the instructions do not read as breakpoints")
		}
	}
	if err != nil {
		s.ready = false
		return errors.Join(err, s.att.close(), s.canary.close())
	}
	s.works(e)
	return nil
}

func (s *sharedHook) attachAgain(e *Engine, _ *held) error {
	s.arm(e)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.links) == 0 {
		return errors.New(s.refused.detail)
	}
	return nil
}

// mend makes links again that were lost.
func (s *sharedHook) mend(e *Engine) error {
	s.mu.Lock()
	if len(s.links) > 0 {
		s.broken = true
		_ = s.unlink() // to close what is closed already is no error of interest
	}
	s.mu.Unlock()
	return s.attachAgain(e, nil)
}
