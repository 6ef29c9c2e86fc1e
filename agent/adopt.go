package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"probity/evidence"
	"probity/evidence/witness"
	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/runtime/lifecycle"
	"probity/runtime/oci"
)

// A container that runs when a source first tells of it is adopted: armed as it
// is, with a gap from the start of its first process until then. Nobody waits for
// that, so it gives way to those who start, and comes one after the other.

// maxAdopting bounds the containers that wait for it.
const maxAdopting = 1 << 13

// mostGivenWay is how long an adoption gives way to starts at most. A node on which
// containers start all the time has its others adopted all the same.
const mostGivenWay = 2 * time.Second

// ticks are the units of /proc/PID/stat, on every machine (USER_HZ).
const ticks = int64(time.Second) / 100

// rescan is how often the state directories are looked at. A container whose hook
// found no socket yet, or gave up before the agent could listen to it, is told of by
// nobody else. One that has come since the last look is left to its hook, which has 2 s
// from when it is started.
const rescan = 5 * time.Second

// toAdopt has a container adopted that runs already.
func (a *Agent) toAdopt(n container.Notice) {
	a.begin()
	select {
	case a.adopt <- n:
	default:
		a.end()
		a.witness.SourceMissed(n.Source, n.At, cgroup.BootTime(), "more containers ran already than are adopted in one go")
	}
}

// adopting adopts what waits for it.
func (a *Agent) adopting(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case n := <-a.adopt:
			a.giveWay(ctx, mostGivenWay)
			a.adoptWithin(ctx, n, turnFor)
		}
	}
}

// adoptWithin adopts a container, and returns after most at the latest: stores and root
// file systems may never answer, which must cost the next one nothing. It goes on by
// itself then. If that takes very long, or the agent stops before, it is signed that the
// container runs unseen.
func (a *Agent) adoptWithin(ctx context.Context, n container.Notice, most time.Duration) {
	done := make(chan struct{})
	go func() {
		defer a.end()
		defer close(done)
		a.adoptOne(ctx, n, nil)
	}()
	limit := time.NewTimer(most)
	defer limit.Stop()
	select {
	case <-done:
		return
	case <-limit.C:
	}
	a.log.Warn("a container that ran already is not adopted yet", "container", n.Identity.ID, "after", most)
	a.work.Go(func() {
		late := time.NewTimer(stuckAfter)
		defer late.Stop()
		select {
		case <-done:
			return
		case <-late.C:
		case <-ctx.Done():
		}
		a.witness.SourceMissed(n.Source, n.At, cgroup.BootTime(), fmt.Sprintf("container %s, which ran already, was not adopted in all this time: its image or its files could not be read", n.Identity.ID))
	})
}

// giveWay returns when no start is held, or after most.
func (a *Agent) giveWay(ctx context.Context, most time.Duration) {
	limit := time.NewTimer(most)
	defer limit.Stop()
	for {
		a.mu.Lock()
		held, changed := a.held, a.changed
		a.mu.Unlock()
		if held == 0 {
			return
		}
		select {
		case <-changed: // some notice has been carried out
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// adoptOne adopts a container, and returns when it is armed or cannot be. created says,
// when it is called, whether nothing of the container has run yet; nil of one of which
// something may have.
func (a *Agent) adoptOne(ctx context.Context, n container.Notice, created func() bool) {
	init := holdPid(n.Pid)
	mine := false // whether the run has taken it
	defer func() {
		if !mine && init != nil {
			init.Close()
		}
	}()
	began, cgErr, err := a.believe(&n, init)
	if err == nil && a.has(n) {
		return // it was seen starting, or adopted before
	}
	a.identify(ctx, &n)
	under := a.policiesOf(n.Identity)
	probes := under.Select(n.Identity)
	if len(probes) == 0 {
		a.count(n, false)
		return
	}
	if err != nil {
		a.mu.Lock()
		known := a.table.Known(n.Identity.ID, n.Pid)
		a.mu.Unlock()
		if known {
			return // who armed it watches it, and has seen its end if that is what it is
		}
		if n.Made == 0 { // else it was told of when it began, and is only too short
			a.problem("container %s, which ran already, is not adopted: %v", n.Identity.ID, err)
		}
		a.witness.SourceMissed(n.Source, cmp.Or(n.Made, n.At), cgroup.BootTime(), fmt.Sprintf("container %s, which ran already, was not adopted: %v", n.Identity.ID, err))
		return
	}
	if created != nil && !created() {
		created = nil
	}
	if created != nil {
		n.At = began // when it is let go, nobody will say: at any time from then on
	}
	var l *live
	a.mu.Lock()
	for _, act := range a.table.Apply(n) {
		if act, ok := act.(lifecycle.Arm); ok {
			mine = true
			l = a.beginRun(act.Run, init, under)
			if l.created = created; l.earlier == nil && created == nil {
				l.earlier, l.started = &witness.Earlier{
					From: began, Since: began, Reason: evidence.GapAdopted, Detail: "the container ran before the agent knew of it",
				}, began
			}
			a.work.Go(func() { a.arm(l, act.Run, probes, cgErr) })
		}
	}
	a.mu.Unlock()
	if l == nil {
		return
	}
	a.count(n, true)
	select {
	case <-l.armed:
		if l.earlier != nil {
			a.log.Info("adopted", "run", l.id, "container", l.container, "as", l.earlier.Reason, "armed", l.handle != nil)
		}
	case <-ctx.Done():
	}
}

// has reports whether the run is one that this agent has armed already, or one that
// cannot be taken up.
func (a *Agent) has(n container.Notice) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	r, ok := a.table.Of(n)
	return ok && (r.State != lifecycle.Left || a.left[r.ID] != nil && a.left[r.ID].Cut)
}

// errEnded says that the container that a source tells of has ended.
var errEnded = errors.New("it has ended")

// believe checks what a source says of a container that runs, and completes it: its
// process is held, lives, had started when the source told of it (and when the source
// says), is in no mount namespace of the host's, and in the cgroup that the source
// names, which is still the one that it looked at. It returns the boot time at which the process started, and
// why the run has no cgroup of its own, if that is so.
func (a *Agent) believe(n *container.Notice, init *os.File) (began int64, cgErr, err error) {
	start, _ := oci.StartTicks(n.Pid) // 0: it has ended
	switch mount := mountNSOf(n.Pid); {
	case n.Pid == 0:
		return 0, nil, errors.New("its source does not tell its process")
	case init == nil || start == 0 || mount == 0:
		return 0, nil, errEnded
	case n.Identity.InitStart != 0 && n.Identity.InitStart != start, int64(start)*ticks > n.At:
		return 0, nil, errEnded // its pid is another process's by now
	case mount == mountNSOf(os.Getpid()) || mount == mountNSOf(1):
		return 0, nil, fmt.Errorf("pid %d is in no container: its mount namespace is the host's", n.Pid)
	}
	switch {
	case a.cgErr != nil:
		cgErr = a.cgErr
	case n.Identity.CgroupID != 0: // the source has looked, and not now
		path, id, err := a.cgroups.OfPidIn(n.Pid, n.Identity.CgroupPath)
		if err != nil || path != n.Identity.CgroupPath || id != n.Identity.CgroupID {
			return 0, nil, errEnded // the pid is another's, or it was moved
		}
	case n.Identity.InitStart != 0:
		cgErr = fmt.Errorf("cgroup of pid %d: %w", n.Pid, cgroup.ErrShared)
	default:
		within := ""
		if n.CgroupName != "" {
			within, cgErr = a.cgroups.Named(n.Pid, n.CgroupName)
		}
		if cgErr == nil {
			n.Identity.CgroupPath, n.Identity.CgroupID, cgErr = a.cgroups.OfPidIn(n.Pid, within)
		}
	}
	switch {
	case cgErr == nil:
	case errors.Is(cgErr, cgroup.ErrShared):
		n.Identity.CgroupPath, n.Identity.CgroupID, n.Identity.InitStart = "", 0, start
	case errors.Is(cgErr, cgroup.ErrGone):
		return 0, nil, errEnded
	default: // it is not where its runtime put it: the process is another's
		return 0, nil, cgErr
	}
	if !alive(init) {
		return 0, nil, errEnded
	}
	return int64(start) * ticks, cgErr, nil
}

// beginRun makes a run that the table wants armed. With mu held.
func (a *Agent) beginRun(run lifecycle.Run, init *os.File, under *policies) *live {
	l := &live{id: run.ID, under: under, container: run.Notice.Identity.ID, start: keyOfStart(run.Notice), user: ofUsers(run.Notice.Source), init: init, armed: make(chan struct{}), checking: newTurn(), since: time.Now()}
	l.ctx, l.stop = context.WithCancel(context.Background())
	if x := a.left[run.ID]; x != nil && x.kept {
		l.kept = x
	}
	l.earlier, l.started = a.takeUp(run.ID, under)
	a.live[l.id] = l
	return l
}

// whatRuns has the programs looked at that an adopted container runs by now: its
// image was searched, and they may be others.
func (a *Agent) whatRuns(l *live) {
	pids, whole, err := a.cgroups.Procs(l.notice.Identity.CgroupPath, l.notice.Identity.CgroupID)
	if err != nil || !whole {
		a.witness.UnarmedMapping(l.id, "", l.checked.Load(), 0, "not all processes that it had when it was adopted could be looked at")
	}
	for _, pid := range pids {
		path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil {
			continue // it has ended, or is the kernel's
		}
		x := appeared{l: l, pid: pid, path: path, from: l.checked.Load(), why: evidence.GapUnarmedMapping}
		if a.claim(x) {
			a.soon(x)
		}
	}
}

// scanStates tells of the containers that the runtimes' state directories have, as long
// as ctx lasts.
func (a *Agent) scanStates(ctx context.Context) error {
	s := &scanner{a: a, dirs: a.cfg.RuntimeStates, seen: map[string]*state{}, failed: map[string]bool{}}
	s.look(ctx, true)
	a.heard(oci.Source)
	a.end() // the begin of serve
	tick := time.NewTicker(rescan)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		s.look(ctx, false)
	}
}

// scanner remembers what it has found in the state directories.
type scanner struct {
	a      *Agent
	dirs   []string
	seen   map[string]*state // by path
	failed map[string]bool   // directories of which it was told that they cannot be listed
}

// state is a container's directory in a runtime's.
type state struct {
	dir     string // the runtime's
	saved   oci.Saved
	claim   *oci.Claim // nil: it could not be read
	settled bool       // told of, or nothing to tell: it is not looked at again
	failed  bool       // told that it can't be adopted
	// outlived: its first process had ended at the last look, and others had not.
	outlived bool
	looking  chan looked // somebody looks at it, and has not come back
}

// look tells of each container that was not told of before: of those that were there at
// the last look already, or of all. All states are read before any is believed.
func (s *scanner) look(ctx context.Context, all bool) {
	found := make(map[string]*state, len(s.seen))
	var todo []*state
	var claims []*oci.Claim
	for _, dir := range s.dirs {
		at := cgroup.BootTime()
		states, err := oci.States(dir)
		if err != nil && !s.failed[dir] {
			s.a.problem("containers that run already may not be adopted: %v", err)
			s.a.witness.SourceMissed(oci.SourceOf(dir), at, cgroup.BootTime(), err.Error())
		}
		s.failed[dir] = err != nil
		for _, saved := range states {
			path := filepath.Join(dir, saved.ID)
			known := s.seen[path]
			again := known != nil && known.saved == saved
			if !again {
				known = &state{dir: dir, saved: saved}
			}
			if known.claim == nil { // it could not be read yet
				known.claim, _ = oci.ReadClaim(dir, saved.ID)
			}
			if known.claim != nil {
				claims = append(claims, known.claim)
			}
			found[path] = known
			if (all || again) && !known.settled {
				todo = append(todo, known)
			}
		}
	}
	s.seen = found
	if len(todo) == 0 {
		return
	}
	held := oci.NewClaims(s.dirs, claims)
	for _, x := range todo {
		if ctx.Err() != nil {
			return
		}
		s.a.scan(ctx, x, held)
	}
}

// watches reports whether there is a run of the container.
func (a *Agent) watches(s *state) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return s.claim != nil && a.table.Known(s.saved.ID, s.claim.Pid())
}

// looked is what oci.Existing returned.
type looked struct {
	n   container.Notice
	err error
}

// existing is oci.Existing, which may never come back if the bundle is on a file system
// that does not answer: it is waited for once, and asked for at later looks.
func (s *state) existing(ctx context.Context, claims *oci.Claims) (_ looked, ok bool) {
	most := time.Duration(0)
	if s.looking == nil {
		c := make(chan looked, 1)
		s.looking, most = c, turnFor
		go func() {
			n, err := oci.Existing(s.dir, s.saved.ID, claims)
			c <- looked{n, err}
		}()
	}
	limit := time.NewTimer(most)
	defer limit.Stop()
	select {
	case r := <-s.looking:
		s.looking = nil
		return r, true
	case <-limit.C:
	case <-ctx.Done():
	}
	return looked{}, false
}

// errSlow says that it did not come back.
var errSlow = errors.New("its bundle could not be read in time")

func (a *Agent) scan(ctx context.Context, s *state, claims *oci.Claims) {
	at := cgroup.BootTime()
	r, ok := s.existing(ctx, claims)
	n, err := r.n, r.err
	if !ok {
		if ctx.Err() != nil {
			return
		}
		err = fmt.Errorf("container %s of %s: %w", s.saved.ID, s.dir, errSlow)
	}
	switch {
	case err == nil || errors.Is(err, cgroup.ErrShared): // which is signed
		s.settled = true
		a.told.hear(s.saved.ID, at)
		a.notify(ctx, n, nil)
	case errors.Is(err, oci.ErrEnded), errors.Is(err, oci.ErrNotHere):
		s.settled = true // nothing runs, and nothing will in this; or another source tells of it
	case errors.Is(err, os.ErrNotExist) && !errors.Is(err, oci.ErrBundle):
		// It is being made or removed.
	case errors.Is(err, oci.ErrOutlived) && (!s.outlived || a.watches(s)):
		s.outlived = true // it may be ending; or who armed it sees its end
	case !s.failed:
		s.failed = true
		a.told.hear(s.saved.ID, at)
		a.problem("a container that runs already is not adopted: %v", err)
		a.witness.SourceMissed(oci.SourceOf(s.dir), at, cgroup.BootTime(), err.Error())
	}
}
