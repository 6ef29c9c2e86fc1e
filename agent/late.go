package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/runtime/image"
	"probity/runtime/process"
)

// Bounds on what one container can make the agent look at.
const (
	maxOthers = 4096     // files that it has mapped and in which nothing is armed
	maxExecs  = 4096     // paths that it has executed
	maxLater  = maxExecs // things that wait for their turn
	// maxReplan is the longest time between two searches of a container whose
	// files have changed in a way that a search does not mend.
	maxReplan = 5 * time.Minute
)

// late is what is known of files that came into a container after its start.
// Guarded by live.checking, but for execs.
type late struct {
	others map[otherFile]bool
	mapped []*image.Mapped
	full   bool // others is

	good    int64         // when no file was found changed
	changed string        // the files that a search could not mend, as it was last
	wait    time.Duration // until the next search for them
	next    time.Time

	judged map[bpf.File]bool // of which it is known what a probe has to do with them
	execs  map[program]bool  // that are judged, or about to be; guarded by Agent.mu
	later  []appeared        // what waits for its turn; guarded by Agent.mu
	pace   pace              // of looking at it; guarded by Agent.mu
	// What is not looked at yet. Guarded by Agent.mu.
	pending map[program]appeared
}

// appeared is something that runs in a container and may not be armed.
type appeared struct {
	l    *live
	pid  int    // of a process that has just called execve; 0: search the container
	path string // as it was passed to execve; empty: any
	from int64  // boot time from which on it may have run unseen
	why  evidence.GapReason

	file   bpf.File // that was executed, if that is known
	interp string   // of a script, the path of its interpreter
	name   string   // of the file; empty: any
}

// event takes one event of the kernel: detail for the witness, and news for who
// arms what appears.
func (a *Agent) event(e bpf.Event) {
	if a.park(e) {
		return
	}
	switch e.Kind {
	case bpf.EventCall:
		a.called(e.Cgroup)
		return
	case bpf.EventStack:
		a.stack(e)
		return
	}
	a.witness.Event(e)
	if e.Kind != bpf.EventExec {
		return
	}
	a.mu.Lock()
	l := a.armedIn[e.Cgroup]
	a.mu.Unlock()
	if l == nil || l.user || !slices.ContainsFunc(l.probes, policy.Probe.OfFiles) {
		return
	}
	x := appeared{l: l, pid: e.Pid, path: e.Path, from: e.Ns, why: evidence.GapUnarmedMapping, file: e.File, interp: e.Interp, name: e.Name}
	if a.claim(x) {
		a.soon(x)
	}
}

// soon has something looked at, when it is its container's turn.
func (a *Agent) soon(x appeared) {
	if x.why == evidence.GapUnarmedMapping {
		a.mu.Lock()
		if x.l.late.pending == nil {
			x.l.late.pending = map[program]appeared{}
		}
		x.l.late.pending[x.program()] = x
		a.mu.Unlock()
	}
	a.mu.Lock()
	full := len(x.l.late.later) == maxLater
	if !full {
		x.l.late.later = append(x.l.late.later, x)
	}
	a.mu.Unlock()
	if full {
		a.unseen(x)
		return
	}
	select {
	case a.catchUp <- struct{}{}:
	default: // whoever was told will see this too
	}
}

// unseen signs that something was not looked at which a probe may be for. What
// is in the image was found when it was searched, and a file that has changed is
// found again by the next health check.
func (a *Agent) unseen(x appeared) {
	a.lookedAt(x)
	a.disown(x)
	if x.why == evidence.GapUnarmedMapping && !x.l.handle.Knows(x.file) && !x.inImage() {
		a.unarmed(x, "", "it was executed, and there was no time to look at it")
	}
}

func (a *Agent) lookedAt(x appeared) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(x.l.late.pending, x.program())
}

// notLookedAt signs what of a run will not be looked at any more.
func (a *Agent) notLookedAt(l *live) {
	a.mu.Lock()
	pending := slices.Collect(maps.Values(l.late.pending))
	a.mu.Unlock()
	for _, x := range pending {
		a.unseen(x)
	}
}

// searchFree is how long looking at what appears in a container may take until it
// has only its share, and searchShare how much longer than looking it then rests.
// A target that is not named by its path costs a search of all files for each
// program that is new.
const (
	searchFree  = 2 * time.Second
	searchShare = 9
)

// catching looks at what appears: the containers in turn, each within its share.
type catching struct {
	runs   func() []*live
	waits  func(*live) (next time.Time, any bool) // when its next piece may be looked at
	take   func(*live) (appeared, bool)
	back   func(appeared)             // it was not its turn
	do     func(appeared)             // with checking held
	looked func(*live, time.Duration) // took so long
}

func (a *Agent) catchingUp(ctx context.Context) error {
	c := &catching{runs: a.runs, waits: a.waits, take: a.takeLater, back: a.putBack, do: a.appeared, looked: a.lookedFor}
	return c.run(ctx, a.catchUp)
}

func (c *catching) run(ctx context.Context, told <-chan struct{}) error {
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-told:
		case <-rest.C:
		}
		rest.Reset(c.turn(ctx))
	}
}

// turn looks at one thing of each run, and returns how long there is nothing to do.
func (c *catching) turn(ctx context.Context) time.Duration {
	next := time.Now().Add(time.Hour) // somebody will tell
	for _, l := range c.runs() {
		if ctx.Err() != nil {
			return 0
		}
		at, any := c.waits(l)
		if any && !time.Now().Before(at) {
			x, ok := c.take(l)
			if !ok {
				continue
			}
			begun, _ := l.inTurn(0, patience, func() {
				began := time.Now()
				c.do(x)
				c.looked(l, time.Since(began))
			})
			if !begun {
				c.back(x)
			}
			at, any = c.waits(l)
			if least := time.Now().Add(5 * time.Millisecond); !begun || at.Before(least) {
				at = least
			}
		}
		if any && at.Before(next) {
			next = at
		}
	}
	return time.Until(next)
}

// waits returns when the next of what waits of a run may be looked at. Nothing is
// looked at before the run is armed, which looks at all of it, or when it has
// ended.
func (a *Agent) waits(l *live) (next time.Time, any bool) {
	if !l.isArmed() || l.ctx.Err() != nil {
		return next, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return l.late.pace.next, len(l.late.later) > 0
}

func (a *Agent) takeLater(l *live) (x appeared, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(l.late.later) == 0 {
		return x, false
	}
	x, l.late.later = l.late.later[0], l.late.later[1:]
	return x, true
}

func (a *Agent) putBack(x appeared) {
	a.mu.Lock()
	defer a.mu.Unlock()
	x.l.late.later = append([]appeared{x}, x.l.late.later...)
	x.l.late.pace.waitFor(patience, time.Now())
}

func (a *Agent) lookedFor(l *live, d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p, rest := &l.late.pace, searchShare
	if p.taken+d < searchFree {
		rest = 0
	}
	p.took(d, time.Now(), rest)
}

// appeared looks at what may not be armed. With l.checking held.
func (a *Agent) appeared(x appeared) {
	switch {
	case x.l.disarmed:
		return
	case x.pid != 0:
		a.executed(x)
	default:
		a.search(x)
	}
	a.lookedAt(x)
}

// mayBe reports whether a path, as a process has named it, may be that of a
// file which a probe is for.
func mayBe(probes []policy.Probe, path string) bool {
	return slices.ContainsFunc(probes, func(p policy.Probe) bool { return p.MayBe(path) })
}

func has(h *probe.Handle, path string) bool {
	for i := range h.Sites {
		if f := h.Sites[i].File; f != nil && f.Match.Path == path {
			return true
		}
	}
	return false
}

// otherFile is a file as it was when it was looked at: what is written into it
// later may be what a probe is for, and its number may become another's.
type otherFile struct {
	process.File
	sec  int64 // of its change time, if that is known
	nsec uint32
}

// whichFile asks no file system's server: it takes what the kernel knows.
func whichFile(f process.File, link string) otherFile {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_CTIME, &st); err != nil {
		return otherFile{File: f}
	}
	return otherFile{f, st.Ctime.Sec, st.Ctime.Nsec}
}

// mapped arms what a process has mapped of files that are on no layer. With
// l.checking held.
func (a *Agent) mapped(l *live, p *process.Process, other []process.Mapping, from int64) {
	for _, m := range other {
		this := whichFile(m.File, p.Link(m))
		if l.late.others[this] {
			continue
		}
		if len(l.late.others) == maxOthers {
			if !l.late.full {
				l.late.full = true
				a.witness.UnarmedMapping(l.id, "", from, 0, fmt.Sprintf("more than %d files were mapped in which nothing is armed: further ones are not looked at", maxOthers))
			}
			return
		}
		if l.late.others == nil {
			l.late.others = map[otherFile]bool{}
		}
		if settled(this.sec, int64(this.nsec)) {
			l.late.others[this] = true
		}
		f, err := openMapped(p, m)
		switch {
		case errors.Is(err, image.ErrInRoot):
			switch own, err := ownRoot(l, p); {
			case err == nil && own:
				if mayBe(l.probes, m.Path) {
					a.witness.UnarmedMapping(l.id, m.Path, from, 0, "it is in a root file system that the process has for itself")
				}
			default:
				a.mappedInRoot(l, p, m, from)
			}
		case err != nil:
			if !ended(p) && mayBe(l.probes, m.Path) {
				a.witness.UnarmedMapping(l.id, m.Path, from, 0, err.Error())
			}
		default:
			a.addMapped(l, f, from)
		}
	}
}

// openMapped opens a file by the process's link to what it had mapped: it is
// errAnother if the process has called execve since and has another file there, and
// [process.ErrGone] if the link may have been another process's.
func openMapped(p *process.Process, m process.Mapping) (*image.Mapped, error) {
	f, err := image.OpenMapped(p.Pid, p.Link(m), m.Path, m.File.Dev)
	if err != nil {
		return nil, err
	}
	ino, err := f.Inode()
	if err == nil {
		err = p.Alive()
	}
	if err == nil && ino != m.File.Ino {
		err = errAnother
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s of process %d: %w", m.Path, p.Pid, err)
	}
	return f, nil
}

// addMapped arms what is wanted of a file, and takes it over. It reports whether
// anything is.
func (a *Agent) addMapped(l *live, f *image.Mapped, from int64) (wanted bool) {
	plan, doubt := a.planOne(l, f)
	if doubt != "" {
		a.witness.UnarmedMapping(l.id, f.Path, from, 0, doubt)
	}
	if _, armed := a.add(l, nil, plan, from, evidence.GapUnarmedMapping); !armed {
		f.Close() // by path only: nothing is lost
	} else {
		l.late.mapped = append(l.late.mapped, f)
	}
	return doubt != "" || slices.ContainsFunc(plan.Sites, func(s probe.Site) bool { return s.File != nil })
}

// add arms what is new in a plan, and reports whether anything is, and whether it
// is armed. A file that took
// the place of one that was armed is one that has changed, whoever found it first:
// the health check, or the look at who executes it. root is as in [probe.Engine.Add].
func (a *Agent) add(l *live, root *os.File, plan probe.Plan, from int64, why evidence.GapReason) (any, armed bool) {
	before := map[string]bool{}
	for i := range l.handle.Sites {
		if s := &l.handle.Sites[i]; s.Armed && s.File != nil {
			before[s.File.Match.Path] = true
		}
	}
	more := a.engine.Add(l.ctx, l.handle, root, plan)
	if len(more) == 0 {
		return false, false
	}
	for _, s := range more {
		armed = armed || s.Armed
		a.log.Debug("appeared", "container", l.container, "path", s.File.Match.Path, "symbol", s.Symbol, "armed", s.Armed, "reason", s.Reason, "detail", s.Detail)
	}
	// It runs already: a hit would wait for its line from now on.
	a.witness.NotHashed(l.id, a.hashers.digest(more, time.Now().Add(digestAfterHit), digestBytes))
	var fresh, changed []probe.Site
	for _, s := range more {
		if before[s.File.Match.Path] {
			changed = append(changed, s)
		} else {
			fresh = append(fresh, s)
		}
	}
	if len(fresh) > 0 {
		a.witness.Add(l.id, fresh, nil, from, why)
	}
	if len(changed) > 0 {
		a.witness.Add(l.id, changed, nil, min(from, cmp.Or(l.late.good, l.handle.ArmedAt)), evidence.GapFileChanged)
		// What is armed again is well from now on, and not from the next check on.
		a.witness.Checked(l.id, cgroup.BootTime(), a.troubles(l))
	}
	a.signed(l)
	return true, armed
}

// changedFiles has a container searched whose files are not what was armed.
// With l.checking held.
func (a *Agent) changedFiles(l *live, at int64, troubles []probe.Trouble) {
	var paths []string
	from := at
	for _, t := range troubles {
		switch t.Reason {
		case evidence.GapFileChanged, evidence.GapLinkLost:
			if t.Path != "" && t.Until == 0 { // else a place in the kernel, or well again
				paths = append(paths, t.Path)
			}
		}
	}
	if len(paths) == 0 {
		l.late.changed, l.late.good = "", at
		return
	}
	if l.late.good != 0 {
		from = l.late.good
	}
	all := strings.Join(paths, "\x00")
	if now := time.Now(); all != l.late.changed {
		l.late.changed, l.late.wait, l.late.next = all, a.cfg.Health, now
	} else if now.Before(l.late.next) {
		return
	}
	l.late.wait = min(2*l.late.wait, maxReplan)
	l.late.next = time.Now().Add(l.late.wait)
	a.soon(appeared{l: l, from: from, why: evidence.GapFileChanged})
}

// search plans the whole container again, as it is now, and arms what is new. It
// returns the probes of which it saw all files. With l.checking held.
func (a *Agent) search(x appeared) (whole map[string]bool) {
	l := x.l
	p, root, err := a.rootOf(l)
	if err != nil {
		a.log.Debug("search a container again", "container", l.container, "err", err)
		return nil
	}
	defer p.Close()
	defer root.Close()
	n := l.notice
	// It may have moved to another root by now: what its mount table says is not
	// what the runtime made.
	n.Kind, n.Pid, n.Rootfs = container.Existing, p.Pid, ""
	rootfs, err := a.finder.Rootfs(l.ctx, n, n.Identity.Image)
	if err == nil {
		var view *image.View
		if view, err = a.layers.View(l.ctx, rootfs); err == nil {
			err = p.Alive() // else its number may have been another's, and this another's files
		}
		if err == nil {
			plan := probe.MakePlan(l.probes, probe.Tree{
				View: view, Inspector: a.inspect, Runs: command(l.notice), Until: time.Now().Add(a.cfg.Health), ReadUntil: time.Now().Add(readFor),
			}, probe.On(a.kernel))
			a.add(l, root, plan, x.from, x.why)
			whole = map[string]bool{}
			for _, s := range plan.Searches {
				whole[s.ProbeID] = s.Complete
			}
			return whole
		}
	}
	a.log.Debug("search a container again", "container", l.container, "err", err)
	return nil
}

// ownRoot reports whether a process has another root file system than the
// container's: one that it has made itself, or a container inside the container.
func ownRoot(l *live, p *process.Process) (bool, error) {
	dev, err := deviceOf(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/root", p.Thread))
	if err == nil {
		err = p.Alive()
	}
	return dev != l.rootDev, err
}

// deviceOf returns the device of a file: of the directory itself without a path.
// No file system asks its server for that.
func deviceOf(dir int, path string) ([2]uint32, error) {
	flags := unix.AT_STATX_DONT_SYNC | unix.AT_NO_AUTOMOUNT
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var st unix.Statx_t
	if err := unix.Statx(dir, path, flags, unix.STATX_MNT_ID, &st); err != nil {
		return [2]uint32{}, fmt.Errorf("look at %s: %w", path, err)
	}
	return [2]uint32{st.Dev_major, st.Dev_minor}, nil
}

// rootOf opens the root directory of a living process of the container, its
// first one if that lives, and holds on to the process: whoever looks at more of it
// by its number asks afterwards whether it was that process still.
func (a *Agent) rootOf(l *live) (*process.Process, *os.File, error) {
	pids, _, err := a.cgroups.Procs(l.notice.Identity.CgroupPath, l.notice.Identity.CgroupID)
	if err != nil {
		return nil, nil, err
	}
	if alive(l.init) {
		pids = append([]int{l.notice.Pid}, pids...)
	}
	for _, pid := range pids {
		p, err := a.openOwn(l, pid)
		if err != nil {
			continue
		}
		root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err == nil && p.Alive() == nil {
			return p, root, nil
		}
		root.Close()
		p.Close()
	}
	return nil, nil, fmt.Errorf("container %s has no process any more", l.container)
}

// openOwn opens a process that had this number as one of the container's, if it
// still is one: it may have ended since, and the number be another's.
func (a *Agent) openOwn(l *live, pid int) (*process.Process, error) {
	p, err := process.Open(pid)
	if err != nil {
		return nil, err
	}
	path, _, err := a.cgroups.OfPid(pid)
	own := l.notice.Identity.CgroupPath
	switch {
	case errors.Is(err, cgroup.ErrGone):
		err = process.ErrGone
	case err == nil && path != own && !strings.HasPrefix(path, own+"/"):
		err = process.ErrGone // it has left, or is another with its number
	case err == nil:
		err = p.Alive() // else it may have been another's cgroup
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// disarm takes the run's sites away. Whoever looks at the container does not
// find them taken away meanwhile; if he does not come back, they stay.
func (a *Agent) disarm(l *live) {
	if l.handle == nil {
		return
	}
	if begun, _ := l.inTurn(turnFor, turnFor, func() { a.disarmNow(l) }); !begun {
		a.log.Warn("not disarmed: looking at the container has not come back", "run", l.id)
		go func() {
			l.checking.Lock()
			defer l.checking.Unlock()
			a.disarmNow(l)
		}()
	}
}

func (a *Agent) disarmNow(l *live) {
	l.disarmed = true
	err := l.handle.Close()
	for _, f := range l.late.mapped {
		err = errors.Join(err, f.Close())
	}
	l.late.mapped = nil
	if err != nil {
		a.log.Warn("disarm", "run", l.id, "err", err)
	}
}
