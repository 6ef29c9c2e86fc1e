package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"probity/bpf/probe"
	"probity/evidence"
	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/runtime/handoff"
	"probity/runtime/handoff/wire"
	"probity/runtime/image"
	"probity/runtime/oci"
)

// This file is what the agent does for users who run containers by themselves
// (rootless), where an operator opts in by rootlessHookSocket. A user is told nothing and
// refused nothing. What he says is believed as [oci.UserNotice] checks it, of his own
// containers, and marked as his by the run's source. What he can take of the agent is
// bounded, for himself and for all users together; what is past that starts unseen, and
// a gap of his source says so.

// The bounds. A compose file of a developer starts some tens of containers at once.
const (
	userPeers   = 8                     // requests of one user that are looked at, at once
	usersEvery  = 10 * time.Millisecond // a request, of all users
	userStarts  = 64                    // starts of one user at once
	userEvery   = 30 * time.Second      // he has one more each
	userRuns    = 32                    // runs of one user that live
	usersRuns   = 128                   // those of all users
	userArming  = 4                     // runs of one user that are being armed, at once
	maxUsers    = 1024                  // of whom it is remembered what they took
	missedEvery = time.Minute           // a source's gaps are told together, after the first
	maxMissed   = 64                    // sources of which that is told apart
	userReading = 2                     // containers of users whose layers are read, at once
	userReads   = 5 * time.Second       // reading the layers of one
	userFiles   = 1 << 18               // names of files in their layers that are kept
	userStuck   = 10 * time.Second      // a start that is not armed then is signed as unseen
)

// usersWord is why nothing is claimed of what a user's container did not execute.
const usersWord = "it is a user's own (rootless) container: what he says that it has is armed, and what it executes is not looked at"

// withoutSets refuses the sets of a plan for a user's container. Their entries are what a
// container can fill the spool with: there each container id has its share, and of ids a
// user has as many as he likes, root's among them.
func withoutSets(plan probe.Plan) {
	for i := range plan.Sites {
		if s := &plan.Sites[i]; s.Set != "" && s.Reason == "" {
			s.Reason, s.Detail = evidence.OverBudget, "sets of users' containers are not kept: they have no share of the spool"
		}
	}
}

// noUser is the source of what was told by who is no user, as far as is known.
const noUser = "rootless"

// ofUsers reports whether a source is a user's.
func ofUsers(source string) bool { return strings.HasPrefix(source, noUser+":") }

// rootsRuns are the runs that are not users'.
func (a *Agent) rootsRuns() []*live {
	return slices.DeleteFunc(a.runs(), func(l *live) bool { return l.user })
}

func newUsers() users {
	return users{layers: &image.Cache{Entries: userFiles, LayerEntries: userFiles / 2}, reading: make(chan struct{}, userReading)}
}

// view is [image.Cache.View] of a user's layers, which may be as many and as large as he
// likes: in turn, and not for long.
func (u *users) view(ctx context.Context, r image.Rootfs) (*image.View, error) {
	select {
	case u.reading <- struct{}{}:
		defer func() { <-u.reading }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, userReads)
	defer cancel()
	return u.layers.View(ctx, r)
}

// wait waits for the goroutines of users' runs, but not for long.
func (u *users) wait() {
	done := make(chan struct{})
	go func() {
		u.work.Wait()
		close(done)
	}()
	late := time.NewTimer(turnFor)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
	}
}

// usersProcesses lists all processes of whoever is not root: a user may have his files
// mapped outside his containers, and by others.
func usersProcesses() (pids []int, whole bool, err error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, false, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, false, err
	}
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		// Not the directory's owner, which is root where a process may not be dumped.
		status, err := os.ReadFile("/proc/" + n + "/status")
		if err == nil && !strings.Contains(string(status), "\nUid:\t0\t") {
			pids = append(pids, pid)
		}
	}
	return pids, true, nil
}

// users is what users have taken.
type users struct {
	// work are the goroutines of users' runs, which must not hold up the agent's end.
	work sync.WaitGroup
	// layers is what was read of users' layers: they must not have root's forgotten.
	layers  *image.Cache
	reading chan struct{} // holds who reads

	mu     sync.Mutex
	by     map[uint32]*userShare
	missed map[string]*missed
}

type userShare struct {
	peers int
	taken float64 // of userStarts, as of at
	at    time.Time
}

// missed are starts of a source that were not taken since the last were told.
type missed struct {
	told     time.Time // zero: none was
	from, to int64
	n        int
	why      string // of the first
}

var errUserBusy = errors.New("more requests of this user at once than are looked at")

// get returns what a user took, as of now. With mu held.
func (u *users) get(uid uint32, now time.Time) *userShare {
	x := u.by[uid]
	if x == nil {
		if len(u.by) >= maxUsers {
			maps.DeleteFunc(u.by, func(_ uint32, x *userShare) bool {
				return x.peers == 0 && now.Sub(x.at) >= userStarts*userEvery // it has all again
			})
		}
		if u.by == nil {
			u.by = map[uint32]*userShare{}
		}
		x = &userShare{at: now}
		u.by[uid] = x
	}
	x.taken = max(0, x.taken-float64(now.Sub(x.at))/float64(userEvery))
	x.at = now
	return x
}

// enter takes one of a user's requests in; leave is called once for it.
func (u *users) enter(uid uint32, now time.Time) (leave func(), err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	x := u.get(uid, now)
	if x.peers >= userPeers {
		return nil, errUserBusy
	}
	x.peers++
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		x.peers--
	}, nil
}

// start takes one of a user's starts.
func (u *users) start(uid uint32, now time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	x := u.get(uid, now)
	if x.taken+1 > userStarts {
		return fmt.Errorf("more starts than %d at once, and one in %v, of uid %d", userStarts, userEvery, uid)
	}
	x.taken++
	return nil
}

// admitUser is asked by the users' socket before a byte is read.
func (a *Agent) admitUser(p handoff.Peer) (done func(), err error) {
	if err := oci.User(p.Pid, p.Uid); err != nil {
		return nil, err
	}
	if !p.Alive() { // else the process that was looked at was another
		return nil, handoff.ErrPeerGone
	}
	return a.users.enter(p.Uid, time.Now())
}

// userRejected is told of a request that could not be taken.
func (a *Agent) userRejected(p handoff.Peer, err error) handoff.Answer {
	source := noUser
	if p.Uid != 0 && !errors.Is(err, oci.ErrNotOwn) && !errors.Is(err, handoff.ErrPeerGone) {
		source = oci.UserSource(p.Uid)
	}
	a.missUser(source, cgroup.BootTime(), err)
	return handoff.Answer{}
}

// hookOfUser answers a user's hook: with nothing, when it need not wait any more.
func (a *Agent) hookOfUser(ctx context.Context, r handoff.Request) handoff.Answer {
	at, source := cgroup.BootTime(), oci.UserSource(r.Peer.Uid)
	if r.Stage != wire.CreateRuntime {
		a.lookAtUsers(source, r.Body)
		return handoff.Answer{}
	}
	n, init, err := a.believeUser(r) // that it shares its cgroup is signed
	if init == nil {
		a.missUser(source, at, err)
		return handoff.Answer{}
	}
	a.begin()
	defer a.end()
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Barrier)
	defer cancel()
	n.Identity.BootID = a.bootID
	a.starting(ctx, n, r.Peer.Alive, init)
	return handoff.Answer{}
}

// believeUser checks what a user's hook says of a start. init is nil unless it is
// believed.
func (a *Agent) believeUser(r handoff.Request) (n container.Notice, init *os.File, err error) {
	if err := a.users.start(r.Peer.Uid, time.Now()); err != nil {
		return n, nil, err
	}
	n, init, err = oci.UserNotice(r.Body, r.Peer.Pid, r.Peer.Uid)
	if init != nil && !r.Peer.Alive() {
		init.Close()
		return n, nil, fmt.Errorf("the hook of container %s did not wait for the answer", n.Identity.ID)
	}
	return n, init, err
}

// lookAtUsers looks at runs of a user that end, before their files are taken away.
func (a *Agent) lookAtUsers(source string, state []byte) {
	st, err := oci.ParseState(state)
	if err != nil {
		return
	}
	for _, l := range a.runs() {
		if l.container == st.ID && l.start.source == source {
			a.check(l, a.cfg.Barrier/2, a.cfg.Barrier/2)
		}
	}
}

// userLate is told that a user's hook does not wait any more.
func (a *Agent) userLate(r handoff.Request, waits bool) handoff.Answer {
	if r.Stage != wire.CreateRuntime {
		return handoff.Answer{}
	}
	source := oci.UserSource(r.Peer.Uid)
	st, err := oci.ParseState(r.Body)
	if err != nil {
		a.missUser(source, cgroup.BootTime(), err)
		return handoff.Answer{}
	}
	a.late(container.Notice{Source: source, Kind: container.Starting, Pid: st.Pid, Identity: container.Identity{ID: st.ID, Cut: true}}, waits)
	return handoff.Answer{}
}

// ofUserLocked returns an error if a user's start is one that the agent does not take.
// With mu held.
func (a *Agent) ofUserLocked(n container.Notice, cgErr error) error {
	id := n.Identity
	if cgErr == nil && !oci.Delegated(id.CgroupPath, id.User) {
		return fmt.Errorf("%w: it has moved to %s", oci.ErrNotOwn, id.CgroupPath)
	}
	if r, ok := a.table.Of(n); ok && r.Notice.Source != n.Source {
		return fmt.Errorf("%w: that is a run of %s", oci.ErrNotOwn, r.Notice.Source)
	}
	own, all, arming := 0, 0, 0
	for _, l := range a.live {
		if l.container == id.ID && l.start.source != n.Source {
			return fmt.Errorf("%w: a container of that id is one of %s", oci.ErrNotOwn, l.start.source)
		}
		if !ofUsers(l.start.source) {
			continue
		}
		all++
		if l.start.source != n.Source {
			continue
		}
		own++
		select {
		case <-l.armed:
		default:
			arming++
		}
	}
	switch {
	case own >= userRuns:
		return fmt.Errorf("more than %d containers of uid %d live", userRuns, id.User)
	case all >= usersRuns:
		return fmt.Errorf("more than %d containers of users live", usersRuns)
	case arming >= userArming:
		return fmt.Errorf("more than %d containers of uid %d are being armed at once", userArming, id.User)
	}
	return nil
}

// missUser notes that a user's container starts unseen. The first is signed at once,
// those that follow together.
func (a *Agent) missUser(source string, from int64, err error) {
	a.log.Debug("a user's container is not looked at", "source", source, "err", err)
	a.users.mu.Lock()
	defer a.users.mu.Unlock()
	if a.users.missed == nil {
		a.users.missed = map[string]*missed{}
	}
	m := a.users.missed[source]
	if m == nil && len(a.users.missed) >= maxMissed {
		source = noUser
		m = a.users.missed[source]
	}
	if m == nil {
		m = &missed{}
		a.users.missed[source] = m
	}
	if m.n == 0 {
		m.from, m.why = from, err.Error()
	}
	m.n++
	m.from, m.to = min(m.from, from), cgroup.BootTime()
	if m.told.IsZero() {
		a.signMissedLocked(source, m, time.Now())
	}
}

// signMissedLocked signs what of a source was missed. With users.mu held.
func (a *Agent) signMissedLocked(source string, m *missed, now time.Time) {
	why := m.why
	if m.n > 1 {
		why = fmt.Sprintf("%d starts; the first: %s", m.n, why)
	}
	a.witness.SourceMissed(source, m.from, m.to, why)
	m.n, m.told = 0, now
}

// tellMissed signs what users have started unseen, at most once in missedEvery for each.
func (a *Agent) tellMissed(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for done := false; !done; {
		select {
		case <-ctx.Done():
			done = true
		case <-tick.C:
		}
		a.users.mu.Lock()
		for source, m := range a.users.missed {
			switch now := time.Now(); {
			case m.n > 0 && (done || now.Sub(m.told) >= missedEvery):
				a.signMissedLocked(source, m, now)
			case m.n == 0 && now.Sub(m.told) >= missedEvery:
				delete(a.users.missed, source)
			}
		}
		a.users.mu.Unlock()
	}
	return nil
}

// watchUser signs that a user's container is not armed yet: what he serves himself
// (FUSE) can keep that waiting for ever.
func (a *Agent) watchUser(l *live, n container.Notice) {
	stuck := time.NewTimer(userStuck)
	defer stuck.Stop()
	select {
	case <-l.armed:
	case <-l.ctx.Done():
	case <-stuck.C:
		a.missUser(n.Source, n.At, fmt.Errorf("container %s was not armed within %v", n.Identity.ID, userStuck))
	}
}
