package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/evidence/redact"
	"probity/evidence/witness"
	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/runtime/image"
	"probity/runtime/lifecycle"
	"probity/runtime/oci"
	"probity/runtime/sandbox"
)

// live is one run that the agent has on its hands.
type live struct {
	id        string
	container string
	start     startKey
	under     *policies   // that it is armed under
	user      bool        // it is of a user's own runtime
	held      func() bool // whether the source still waits for the answer; nil if it cannot tell
	// created says whether nothing of it has run yet, where nobody waits for an answer of
	// ours; nil where somebody does.
	created func() bool
	// earlier says since when it ran before it was armed, and why; nil of a run that
	// is seen starting. started is then when it did; 0 is not known.
	earlier *witness.Earlier
	kept    *left // what it was taken up from, if its counters went on
	started int64
	before  bool            // what was counted before is kept beside its counters; arm's own
	init    *os.File        // pidfd of the container's first process; nil if that has ended
	armed   chan struct{}   // closed when arming is over
	ctx     context.Context // ends with stop
	stop    context.CancelFunc

	// released is when the container was let go before it was armed, or 0; refused
	// why it is not let go at all. Guarded by Agent.mu, as is what follows.
	released int64
	refused  string
	unheard  bool        // nobody knows whether it was told that
	required bool        // it is refused if what its policies require is not armed in time
	unsigned atomic.Bool // the next agent would not know since when all counters count

	// Set before armed is closed, and not changed afterwards.
	handle *probe.Handle // nil if nothing could be armed
	unmet  string        // which requirement is not met, or ""
	notice container.Notice
	probes []policy.Probe
	// unknown counts processes that were there before, and are not followed.
	unknown int

	checking *turn // who looks at its files and processes
	// What the patrol found at its last look at all processes, and when the
	// last look began that found nothing. Guarded by checking.
	found         []probe.Trouble
	looked        int64
	late          late
	checked       atomic.Int64 // boot time of the last check that came to its end
	toldUnchecked atomic.Int64 // checked, of which it was told that it is long ago
	// The same of its mounts as of its processes, and when they are looked at
	// again. Guarded by checking.
	hidden     []probe.Trouble
	unhidden   int64
	nextMounts int64
	ending     atomic.Bool // its last check has begun
	// disarmed: there is nothing to look at any more. Guarded by checking.
	disarmed bool
	rootDev  [2]uint32 // of the file system of its root
	mountNS  uint32    // inode number of its mount namespace, or 0: not known

	since   time.Time     // of the notice
	reading time.Duration // spent on identifying the files of sets; of identifyAll
	naming  time.Duration // spent on naming stacks; guarded by Agent.naming

	swept    uint64 // bpf.Run.RingFull when its sets were last read; of Agent.sweep
	sweeping pace   // of that
}

// isArmed reports whether arming is over and something was armed: handle, and
// what is set with it, may be read then.
func (l *live) isArmed() bool {
	select {
	case <-l.armed:
		return l.handle != nil
	default:
		return false
	}
}

// notify applies one notice. For a notice with a barrier it returns when the
// run is armed or ctx ends, and never later than the barrier's budget allows.
// held says whether the source's own client still waits, if that can be known. It
// returns why the container must not start, or "".
func (a *Agent) notify(ctx context.Context, n container.Notice, held func() bool) (refused string) {
	a.begin()
	defer a.end()
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Barrier)
	defer cancel()
	if n.At == 0 {
		n.At = cgroup.BootTime()
	}
	n.Identity.BootID = a.bootID
	if err := n.Validate(); err != nil {
		a.problem("a notice of %s was not taken: %v", n.Source, err)
		if !obeys(n) {
			return ""
		}
		return a.mayRefuse(unknown, "what is told of it is not valid")
	}
	switch n.Kind {
	case container.Starting:
		a.mu.Lock()
		a.held++
		a.mu.Unlock()
		refused = a.starting(ctx, n, held, holdPid(n.Pid))
		a.mu.Lock()
		a.held-- // who gives way is told by end
		a.mu.Unlock()
	case container.Existing, container.Started:
		a.toAdopt(n)
	default:
		if n.Kind == container.Removed {
			a.unhook(n.Identity.ID)
		}
		a.mu.Lock()
		actions := a.table.Apply(n)
		a.mu.Unlock()
		for _, act := range actions {
			switch act := act.(type) {
			case lifecycle.LookNow:
				// The runtime is about to take the root file system away: this
				// is the last chance to prove that the files were the ones armed.
				if l := a.run(act.Run.ID); l != nil {
					a.check(l, a.cfg.Barrier/2, a.cfg.Barrier/2)
				}
			case lifecycle.Prefetch:
				select {
				case a.ahead <- act.Notice:
				default: // the start will do it
				}
			}
		}
	}
	return refused
}

// starting arms a container that waits, and returns why it must not start, or "". init
// is its first process, which starting takes over: while that lives its pid is its own,
// and what /proc says of it is of this process.
func (a *Agent) starting(ctx context.Context, n container.Notice, held func() bool, init *os.File) string {
	mine := false // whether the run has taken it
	defer func() {
		if !mine && init != nil {
			init.Close()
		}
	}()
	if n.Identity.User == 0 { // else there is only what the user claims
		// Not with ctx: that ends with the barrier, and who comes late has a name too.
		a.identify(context.WithoutCancel(ctx), &n)
	}
	under := a.inForce()
	probes := under.Select(n.Identity)
	a.count(n, len(probes) > 0)
	if !required(probes) {
		if why := a.stranger(n); why != "" {
			return a.refuseStranger(n, why)
		}
	}
	if len(probes) == 0 {
		a.mu.Lock()
		letGo := a.takeLetGo(n)
		a.mu.Unlock()
		if letGo.refused != "" {
			a.refuseStranger(n, letGo.refused)
		}
		return "" // no policy wants it: no record at all
	}
	cgErr, insist := a.complete(&n), required(probes) && obeys(n)
	if cgErr == nil && !unreaped(init) { // what /proc said was perhaps of the next process with its number
		n.Identity.CgroupPath, n.Identity.CgroupID = "", 0
		cgErr = fmt.Errorf("cgroup of pid %d: %w: the container's first process has ended", n.Pid, cgroup.ErrGone)
	}

	a.mu.Lock()
	letGo := a.takeLetGo(n)
	if n.Identity.User != 0 {
		if err := a.ofUserLocked(n, cgErr); err != nil {
			a.mu.Unlock()
			a.missUser(n.Source, n.At, fmt.Errorf("container %s: %w", n.Identity.ID, err))
			return ""
		}
	}
	var l *live
	for _, act := range a.table.Apply(n) {
		switch act := act.(type) {
		case lifecycle.Arm:
			mine = true
			l = a.beginRun(act.Run, init, under)
			l.held, l.required = held, insist
			if l.required && letGo.refused != "" {
				a.refuseLocked(l, notInTime)
			} else if letGo.refused == "" {
				l.released = letGo.at
			}
			work := &a.work
			if l.user {
				work = &a.users.work
				work.Go(func() { a.watchUser(l, n) })
			}
			work.Go(func() { a.arm(l, act.Run, probes, cgErr) })
		case lifecycle.Await:
			if l = a.live[act.Run.ID]; l != nil && insist {
				a.requireLocked(l)
			}
		}
	}
	a.mu.Unlock()
	if l == nil {
		return ""
	}
	select {
	case <-l.armed:
	case <-ctx.Done():
	}
	refused := a.answer(l)
	if refused != "" && !mine { // its lines may be written
		a.witness.FailPolicy(l.id, true, refused)
	}
	return refused
}

// complete fills in the run's cgroup, from /proc and not from what a source
// said; it returns why there is none. That it is shared a source may know better, who has
// seen others in it.
func (a *Agent) complete(n *container.Notice) error {
	if a.cgErr != nil {
		return a.cgErr
	}
	path, id, err := a.cgroups.OfPid(n.Pid)
	if err == nil && n.Shared != "" {
		err = fmt.Errorf("%w: %s", cgroup.ErrShared, n.Shared)
	}
	if err != nil {
		n.Identity.InitStart, _ = oci.StartTicks(n.Pid) // 0: it has ended
		return err
	}
	n.Identity.CgroupPath, n.Identity.CgroupID = path, id
	return nil
}

// arm arms a run, and sees it to its end.
func (a *Agent) arm(l *live, run lifecycle.Run, probes []policy.Probe, cgErr error) {
	defer l.stop()
	if l.init != nil {
		defer l.init.Close()
	}
	l.mountNS = mountNSOf(run.Notice.Pid)
	start := a.armInTurn(l, run, probes, cgErr)
	if l.handle == nil && l.kept != nil && a.ended(run.Notice.Identity) {
		a.giveBack(l)
		return
	}
	held := l.earlier != nil || (l.held == nil || l.held()) && (l.created == nil || l.created())
	l.unmet = unmet(probes, start.Sites, start.Searches)
	a.witness.Armed(start)
	if l.user && l.handle != nil {
		a.witness.UnarmedMapping(l.id, "", start.ArmedAt, 0, usersWord)
	}
	// Whoever answered the runtime did so by this time at the latest.
	most := run.Notice.At + int64(a.cfg.Barrier)
	if l.created != nil { // nobody did
		most = math.MaxInt64
	}
	a.mu.Lock()
	close(l.armed)
	if l.handle != nil {
		a.armedIn[run.Notice.Identity.CgroupID] = l
	}
	released := l.released
	if (released == 0 || l.created != nil) && !held && l.refused == "" {
		// Who held it has gone, nobody knows when: it may have run all the time.
		released = run.Notice.At
	}
	a.armedLocked(l, start.ArmedAt > most, released)
	refused := l.refused != ""
	a.table.Armed(l.id, l.handle != nil)
	a.mu.Unlock()
	if l.earlier != nil {
		released = 0 // it ran all the time, which has a gap of its own
	} else if released == 0 && !refused && start.ArmedAt > most {
		released = most
	}

	ended := make(chan end, 1)
	go func() { ended <- a.waitEnd(l, run.Notice) }()
	var e end
	if released == 0 && l.earlier == nil { // else it runs already
		e = waitStarted(l.ctx, ended)
	}
	// What takes time comes now.
	a.witness.NotHashed(l.id, a.firstDigests(l, start.Sites))
	a.tellFailPolicy(l, probes, released)
	a.witness.Publish(l.id, released)
	a.keepBefore(l)
	a.signed(l)
	a.tellDeaf(l)
	if l.handle != nil && l.earlier != nil {
		a.replay(l)
	}
	if l.handle != nil {
		if err := a.engine.Moves(); err != nil {
			a.witness.AttributionLost(l.id, 0, start.ArmedAt, "this kernel does not show that a process leaves the container's cgroup: "+err.Error())
		}
	}
	if l.unknown > 0 {
		a.witness.AttributionLost(l.id, uint64(l.unknown), start.ArmedAt, "processes that were there before the container was armed cannot be told from its runtime's")
	}
	if released != 0 || l.earlier != nil {
		a.sweepSets(l) // what it did before this run was known
	}
	if l.handle != nil && l.earlier != nil {
		a.whatRuns(l)
	}
	if l.handle != nil {
		a.learn(run.Notice.Identity.Image.Digest)
	}
	if !e.seen {
		e = <-ended
	}
	if l.ctx.Err() != nil {
		return // the agent stops
	}
	if e.err != nil {
		a.problem("the end of container %s could not be watched: %v", run.Notice.Identity.ID, e.err)
		<-l.ctx.Done()
		return
	}
	a.seal(l, e.at)
}

// ownStart is how long a container that was let go has the processors for its own
// start, before the first lines about it are written: making them takes as long as
// arming it. A first hit is on disk within a second, half of which is the spool's.
const ownStart = 100 * time.Millisecond

// end is how the watching of a run came to its end.
type end struct {
	seen bool
	at   int64 // boot time
	err  error
}

// waitStarted returns after ownStart, or when the run has ended or is to stop.
func waitStarted(ctx context.Context, ended <-chan end) (e end) {
	t := time.NewTimer(ownStart)
	defer t.Stop()
	select {
	case e = <-ended:
	case <-t.C:
	case <-ctx.Done():
	}
	return e
}

// armInTurn arms a run that nobody waits for when it is its turn. There may be hundreds
// at once, and together they would have the processors, while a runtime that holds its
// lock waits to be told that it need not wait.
func (a *Agent) armInTurn(l *live, run lifecycle.Run, probes []policy.Probe, cgErr error) witness.Start {
	a.mu.Lock()
	letGo := l.released != 0
	a.mu.Unlock()
	if letGo {
		select {
		case a.lateArm <- struct{}{}:
			defer func() { <-a.lateArm }()
		case <-l.ctx.Done(): // it is armed all the same, and says that it was not in time
		}
	}
	return a.armNow(l, run, probes, cgErr)
}

// armNow does what must happen before the container's first instruction.
func (a *Agent) armNow(l *live, run lifecycle.Run, probes []policy.Probe, cgErr error) witness.Start {
	n, began := run.Notice, cgroup.BootTime()
	start := witness.Start{
		Identity: n.Identity, Source: n.Source, Notified: n.At, Earlier: l.earlier,
		Redact: redact.New(l.under.Redact(n.Identity), l.under.key, n.Identity.Image.Name), Policies: l.under.Digest,
	}
	if l.earlier != nil {
		start.Notified = l.started
	}
	refuse := func(r evidence.NotArmedReason, err error) witness.Start {
		plan := probe.Refuse(probes, r, err.Error())
		start.Sites, start.Searches = plan.Sites, plan.Searches
		start.ArmedAt = cgroup.BootTime()
		return start
	}
	// First of all: the rest of what is found is about a process of this kernel.
	var by sandbox.Verdict
	if !l.user { // nothing is opened by a user's process
		by = a.sandbox(l, n)
	}
	if by.Kind != "" && !by.UnlessNative {
		return refuse(evidence.SandboxedRuntime, errors.New(by.Why))
	}
	if cgErr != nil {
		return refuse(whyNoCgroup(cgErr), cgErr)
	}
	if a.engine == nil {
		return refuse(evidence.KernelUnsupported, a.bpfErr)
	}
	// What fails because the container has ended meanwhile says so.
	failed := func(r evidence.NotArmedReason, err error) witness.Start {
		if a.ended(n.Identity) {
			r = evidence.EndedBeforeArmed
		}
		return refuse(r, err)
	}
	rootfs, err := a.finder.Rootfs(l.ctx, n, n.Identity.Image)
	if err != nil {
		return failed(evidence.FileUnreadable, fmt.Errorf("find the container's root file system: %w", err))
	}
	views := a.layers.View
	if l.user {
		views = a.users.view
	}
	view, err := views(l.ctx, rootfs)
	if err != nil {
		return failed(evidence.FileUnreadable, fmt.Errorf("read the container's layers: %w", err))
	}
	root, rootDev, err := openRoot(rootfs)
	if err != nil {
		return failed(evidence.AttachFailed, err)
	}
	defer root.Close() // Arm does, if it comes to that
	if (n.Rootfs == "" || l.user) && !alive(l.init) {
		// All this was found by its pid, which may have been another's by then.
		return failed(evidence.AttachFailed, errors.New("the container's first process ended before its files were found"))
	}
	found := cgroup.BootTime()
	tree := probe.Tree{
		View: view, Inspector: a.inspect, Runs: command(n), Until: time.Now().Add(a.cfg.Barrier / 3), // the rest is for arming
		ReadUntil: time.Now().Add(readFor),
	}
	if by.UnlessNative {
		if native, why := startsNative(tree); !native {
			return refuse(evidence.SandboxedRuntime, fmt.Errorf("%s, and %s", by.Why, why))
		}
	}
	plan := probe.MakePlan(probes, tree, probe.On(a.kernel))
	planned := cgroup.BootTime()
	kept := l.earlier != nil && l.earlier.Kept
	processes := func() ([]int, bool, error) { return a.cgroups.Procs(n.Identity.CgroupPath, n.Identity.CgroupID) }
	if l.user { // the files are his also where he is not in the container
		withoutSets(plan)
		rootfs.Upper, processes = "", usersProcesses
	}
	unsigned := a.marks(l, n.Identity.CgroupID)
	if !kept && unsigned != nil && carries(l.earlier) { // the new counters do not have that
		unsigned()
	}
	h, err := a.engine.Arm(l.ctx, probe.Target{
		TakeUp: kept, Unsigned: unsigned,
		Cgroup: n.Identity.CgroupID, Init: n.Pid, Level: a.level(n.Identity.CgroupPath), Around: a.around(n.Identity.CgroupPath), Root: root, Upper: rootfs.Upper,
		Files:     probe.Tree{View: view, Inspector: a.inspect, Runs: tree.Runs}, // for as long as it lives: without the bounds of a start
		Processes: processes,
	}, plan)
	switch {
	case errors.Is(err, bpf.ErrTaken):
		return refuse(evidence.SharedCgroup, fmt.Errorf("another container is armed in cgroup %s: %w", n.Identity.CgroupPath, err))
	case err != nil:
		return failed(evidence.AttachFailed, err)
	}
	a.log.Debug("armed", "run", l.id, "container", l.container, "sites", len(h.Sites),
		"after", time.Duration(h.ArmedAt-n.At), "identified", time.Duration(began-n.At), "found", time.Duration(found-began), "planned", time.Duration(planned-found), "attached", time.Duration(h.ArmedAt-planned))
	if h.NeedsLineage() && !kept { // else they were followed all the time
		l.unknown = a.already(h, n)
		h.ArmedAt = cgroup.BootTime()
	}
	l.handle, l.looked, l.notice, l.probes = h, h.ArmedAt, n, probes
	if kept { // when it was last well, nobody knows any more
		l.looked = l.earlier.From
	}
	l.checked.Store(l.looked)
	l.rootDev = rootDev
	start.Sites, start.Searches, start.Arm, start.ArmedAt = h.Sites, h.Searches, h, h.ArmedAt
	return start
}

// openRoot opens a container's root by path only, if that is allowed, and returns its
// device.
func openRoot(r image.Rootfs) (root *os.File, dev [2]uint32, err error) {
	if r.Owner != 0 {
		return nil, dev, nil
	}
	if root, err = os.OpenFile(r.Merged, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return nil, dev, fmt.Errorf("open the container's root: %w", err)
	}
	if dev, err = deviceOf(int(root.Fd()), ""); err != nil {
		root.Close()
		return nil, dev, fmt.Errorf("look at the container's root: %w", err)
	}
	return root, dev, nil
}

// readFor bounds the time for reading the files of one container. A start is let
// go long before; what is found later is armed late.
const readFor = 30 * time.Second

// command is what a container starts. NRI does not tell the working directory,
// in which init waits to start it.
func command(n container.Notice) probe.Command {
	c := probe.Command(n.Command)
	if c.Dir == "" && n.Pid > 0 && n.Rootfs == "" && n.Kind == container.Starting { // later it may be anywhere
		if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", n.Pid)); err == nil && strings.HasPrefix(dir, "/") {
			c.Dir = dir
		}
	}
	return c
}

// whyNoCgroup tells a container that shares its cgroup from one that has ended.
func whyNoCgroup(err error) evidence.NotArmedReason {
	switch {
	case errors.Is(err, cgroup.ErrShared):
		return evidence.SharedCgroup
	case errors.Is(err, cgroup.ErrGone): // a zombie's cgroup may be gone too
		return evidence.EndedBeforeArmed
	}
	return evidence.AttachFailed
}

// level is the depth at which the kernel has the cgroup. In a cgroup namespace
// of its own the agent sees a path from somewhere below the root, and a depth
// counted from there would never match.
func (a *Agent) level(path string) int {
	if id, err := a.cgroups.ID("/"); err != nil || id != cgroup.RootID {
		return probe.AnyLevel
	}
	return a.cgroups.Level(path)
}

// waitEnd returns when nothing of the run executes any more, with the boot
// time at which that was seen.
func (a *Agent) waitEnd(l *live, n container.Notice) end {
	if n.Identity.CgroupID == 0 {
		// Without a cgroup of its own, init's end is all that can be seen.
		err := waitPid(l.ctx, l.init)
		return end{true, cgroup.BootTime(), err}
	}
	err := a.cgroups.WaitEmptyID(l.ctx, n.Identity.CgroupPath, n.Identity.CgroupID)
	return end{true, cgroup.BootTime(), err}
}

// seal writes the last lines of a run whose cgroup is empty.
func (a *Agent) seal(l *live, at int64) {
	a.begin()
	defer a.end()
	// First the check: the runtime removes the upper directory soon.
	a.lastCheck(l)
	a.readOut(l)
	a.mu.Lock()
	actions := a.table.CgroupEmpty(l.id, at)
	a.mu.Unlock()
	sealed := false
	for _, act := range actions {
		if s, ok := act.(lifecycle.Seal); ok {
			sealed = true
			a.witness.End(s.Run.ID, s.At, s.Final)
		}
	}
	if !sealed {
		return // the agent stops, and needs the counters for the run's last lines
	}
	a.disarm(l)
	if l.before {
		a.cfg.Keeper.Unkeep(recordOf(keptBefore, l.notice.Identity.CgroupID))
	}
	a.mu.Lock()
	delete(a.live, l.id)
	if cg := l.notice.Identity.CgroupID; a.armedIn[cg] == l {
		delete(a.armedIn, cg)
	}
	a.mu.Unlock()
}

// readOut takes what the kernel has of runs that are to have their last lines.
func (a *Agent) readOut(runs ...*live) {
	if a.ring == nil {
		return
	}
	a.ring.drain()
	a.named()
	if slices.ContainsFunc(runs, hasSets) {
		a.identified()
	}
	for _, l := range runs {
		a.sweepSets(l)
	}
}

// check proves again that the run's sites are armed. If somebody looks at the
// container just now it waits so long; it reports whether it was done within most,
// past which it goes on by itself.
func (a *Agent) check(l *live, wait, most time.Duration) bool {
	return a.checkAsOf(l, wait, most, 0)
}

// checkAsOf is check as [probe.Handle.CheckAsOf] is Check; 0 is the time when it
// is its turn.
func (a *Agent) checkAsOf(l *live, wait, most time.Duration, asOf int64) bool {
	if !l.isArmed() {
		return true
	}
	begun, done := l.inTurn(wait, most, func() { a.checkInTurn(l, asOf) })
	if !begun {
		a.stuck(l)
	}
	return done
}

// troubles is all that is wrong with what is armed of a run. With l.checking
// held.
func (a *Agent) troubles(l *live) []probe.Trouble { return a.troublesAsOf(l, cgroup.BootTime()) }

// troublesAsOf is troubles as [probe.Handle.CheckAsOf] is Check.
func (a *Agent) troublesAsOf(l *live, asOf int64) []probe.Trouble {
	return slices.Concat(l.handle.CheckAsOf(asOf), a.covered(l), l.found)
}

// mountsEvery is how many health checks share one look at a container's mounts:
// reading the tables of a thousand containers takes a tenth of a second.
const mountsEvery = 6

// covered returns the armed files that were hidden by a mount when the container's
// mounts were last looked at. With l.checking held.
func (a *Agent) covered(l *live) []probe.Trouble {
	if l.user { // all of it is in doubt from its start on
		return nil
	}
	now := cgroup.BootTime()
	if now < l.nextMounts && !l.ending.Load() {
		return l.hidden
	}
	l.nextMounts = now + mountsEvery*int64(a.cfg.Health)
	l.hidden = a.coveredNow(l)
	for i := range l.hidden {
		l.hidden[i].Since = l.unhidden
	}
	if len(l.hidden) == 0 {
		l.unhidden = now
	}
	return l.hidden
}

// coveredNow looks at the mounts as the container's first process sees them, or
// another one if that has ended or is about to.
func (a *Agent) coveredNow(l *live) []probe.Trouble {
	var err error
	for range 4 { // a process may end while it is looked at
		p, root, gone := a.rootOf(l)
		if gone != nil {
			return nil // nobody is left whom it could be hidden from
		}
		root.Close()
		var out []probe.Trouble
		out, err = l.handle.Covered(p)
		p.Close()
		if err == nil {
			return out
		}
	}
	return []probe.Trouble{blind("its mounts could not be looked at: %v", err)}
}

// checkNow is check with l.checking held.
func (a *Agent) checkNow(l *live) { a.checkInTurn(l, 0) }

// checkInTurn is checkAsOf with l.checking held.
func (a *Agent) checkInTurn(l *live, asOf int64) {
	if l.disarmed {
		return
	}
	at := cgroup.BootTime()
	asOf = cmp.Or(asOf, at)
	troubles := a.troublesAsOf(l, asOf)
	a.witness.Checked(l.id, at, troubles)
	a.standings(l)
	if !l.user {
		a.changedFiles(l, asOf, troubles)
	}
	l.checked.Store(asOf)
}

// lastCheck is a check after which nothing more is claimed of the run. What could
// not be proven is a gap, and so is what was told and will not be looked at: the
// ring may still have the news of an execve.
func (a *Agent) lastCheck(l *live) {
	if a.ring != nil {
		a.ring.drain()
	}
	l.ending.Store(true)
	if !a.check(l, turnFor, turnFor) {
		a.witness.UnarmedMapping(l.id, "", 0, 0, "its files could not be looked at when it ended: looking at them did not come back")
	}
	a.notLookedAt(l)
}

func (a *Agent) run(id string) *live {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.live[id]
}

func (a *Agent) runs() []*live {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*live, 0, len(a.live))
	for _, l := range a.live {
		out = append(out, l)
	}
	return out
}

// begin and end count what is being carried out, for those who wait until the
// agent is idle.
func (a *Agent) begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy++
}

func (a *Agent) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy--
	close(a.changed)
	a.changed = make(chan struct{})
}

// waitIdle returns when there is no live run and nothing is being carried out.
func (a *Agent) waitIdle(ctx context.Context) error {
	for {
		a.mu.Lock()
		idle, changed := len(a.live) == 0 && a.busy == 0, a.changed
		a.mu.Unlock()
		if idle {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}
