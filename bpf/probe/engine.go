package probe

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/kernel"
	"probity/bpf/policy"
	"probity/evidence"
	"probity/runtime/image"
	"probity/runtime/process"
)

// Config configures an Engine. The zero value of a field is the default in
// parentheses.
type Config struct {
	Kernel kernel.Facts
	// Linger is how long links of a file stay after its last container has
	// gone, so that the next start of the image finds them (30 s).
	Linger time.Duration
	// MaxSites bounds the sites of one container (Kernel.MaxSites: 20000; 256 where the kernel
	// has no uprobe_multi, because each costs a link of its own).
	MaxSites int
	// MaxRate is how many hits per second and container a site may have whose
	// probe does not say; past it, it stands down (100000).
	MaxRate uint64
	// BootTime is CLOCK_BOOTTIME in nanoseconds. Required.
	BootTime func() int64
	Log      *slog.Logger
	// Keeper has what counts held while there is no agent (nil: nobody does), and
	// KeptFiles are what an earlier engine had held so: NewEngine takes them over if
	// the objects were, and closes them else.
	Keeper    Keeper
	KeptFiles map[string][]*os.File
}

// Engine arms containers. Safe for concurrent use.
type Engine struct {
	obj        *bpf.Objects
	cfg        Config
	machine    Machine
	kernelSide kernelSide

	lineage *bpf.Lineage
	// lineageMisses is lineage's own; tests put another in its place.
	lineageMisses func() (uint64, error)
	leases        leases

	mu     sync.Mutex
	files  map[fileKey]*sharedFile
	hooks  map[hookKey]*sharedHook
	levels [bpf.MaxLevel]int // armed containers at each depth
	any    int               // armed containers of unknown depth
	nests  map[uint64]*nest  // armed containers by cgroup id
	next   uint32            // the last site number given
	closed bool

	handles map[*Handle]bool
	stood   uint64 // bpf.Objects.Stood when the counters were last looked at
	turn    uint64 // of keep
	missed  uint64 // by hooks that are forgotten

	keptFiles atomic.Uint64 // the last name of links that were kept
	// keptRuns are the cgroups that an earlier process counts for, with the numbers of
	// their counters, until somebody takes them up; keptLevels are their depths.
	keptRuns   map[uint64][]uint32
	keptLevels uint32
}

// NewEngine begins to follow the processes of containers, and returns an engine without any
// container. It starts no goroutine; Run takes away what is not used any more.
func NewEngine(obj *bpf.Objects, cfg Config) *Engine {
	if cfg.Linger == 0 {
		cfg.Linger = 30 * time.Second
	}
	if cfg.MaxSites == 0 {
		cfg.MaxSites = max(cfg.Kernel.MaxSites, kernel.SitesSingle)
		if _, err := obj.UprobeMulti(false); err != nil { // it may have been switched off by option
			cfg.MaxSites = kernel.SitesSingle
		}
	}
	if cfg.MaxRate == 0 {
		cfg.MaxRate = 100000
	}
	cfg.MaxRate = min(cfg.MaxRate, math.MaxUint32)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{obj: obj, cfg: cfg, machine: Host(), kernelSide: hostKernel(Host()), files: map[fileKey]*sharedFile{}, hooks: map[hookKey]*sharedHook{}, nests: map[uint64]*nest{}, handles: map[*Handle]bool{}}
	e.lineage = obj.AttachLineage()
	if left := obj.Inherited(); left != nil {
		e.inherit(left, cfg.KeptFiles)
	} else {
		for _, list := range cfg.KeptFiles {
			for _, f := range list {
				f.Close()
			}
		}
	}
	e.cfg.KeptFiles = nil
	if e.Keep() == nil { // links alone are of no use to the next
		e.cfg.Keeper = nil
	}
	e.lineageMisses = e.lineage.Misses
	for what, err := range map[string]error{
		"execs": e.lineage.ExecErr, "births and ends of processes": e.lineage.ProcessErr, "moves between cgroups": e.lineage.MoveErr,
	} {
		if err != nil {
			cfg.Log.Warn("this kernel does not show "+what, "err", err)
		}
	}
	return e
}

// ExecMechanism says how execs are seen, or why they are not.
func (e *Engine) ExecMechanism() (bpf.ExecMechanism, error) { return e.lineage.Exec, e.lineage.ExecErr }

// Moves returns nil, or why it cannot be seen that a process leaves the cgroup
// of its container: what it does from then on would go unseen without a trace.
func (e *Engine) Moves() error { return e.lineage.MoveErr }

// AnyLevel is the depth of a cgroup whose depth below the real root is not
// known: the kernel then looks at all depths, which costs each hit more.
const AnyLevel = -1

// Target is the container to arm.
type Target struct {
	Cgroup uint64 // kernel cgroup id
	Init   int    // pid of its first process, in the kernel's own namespace; 0: not known
	Level  int    // depth of that cgroup below the root, or AnyLevel
	// Around are the ids of the cgroups around it, innermost first: a container
	// that is armed in one of them has this one's processes too.
	Around []uint64
	// Root is its merged root file system, opened by path only. Arm closes it: to
	// hold it longer pins the mount. nil: it must not be opened, and that what is armed
	// is what the container has is not proven.
	Root  *os.File
	Upper string // host path of its upper directory; empty if it has none
	Files Files  // to say which files its sets are about; nil: that is not said
	// Processes lists the processes that it has now, all of them if whole: what
	// they have mapped decides whether attaching would hold up the machine. nil:
	// that is not asked.
	Processes func() (pids []int, whole bool, err error)
	// TakeUp: an earlier agent has armed it, and its counters are to go on where they
	// were kept ([Engine.Kept]): Site.Kept says of which sites. Else they are forgotten.
	TakeUp bool
	// Unsigned is called before counters are made that were not there at the start: a
	// process that goes on with them must know whether their gap was signed. nil: nobody
	// goes on with them.
	Unsigned func()
}

// Arm arms the plan's sites for one container and returns when each is proven
// armed or has its reason. It must be called while the container cannot run
// and its root file system cannot go away. An error means that nothing at all
// is armed; a site that could not be armed is no error. When ctx ends, the
// files that are left are not armed.
func (e *Engine) Arm(ctx context.Context, t Target, plan Plan) (*Handle, error) {
	root := t.Root
	if root != nil {
		defer root.Close()
	}
	t.Root = nil // the handle outlives it
	if t.Level < AnyLevel || t.Level >= bpf.MaxLevel {
		return nil, fmt.Errorf("cgroup is %d levels deep, at most %d can be armed", t.Level, bpf.MaxLevel-1)
	}
	h := &Handle{engine: e, target: t, Sites: plan.Sites, Searches: plan.Searches}
	if sites, kept := e.claim(t.Cgroup); kept && t.TakeUp {
		h.kept = true
	} else {
		if kept {
			if err := e.obj.Forget(t.Cgroup, sites); err != nil {
				return nil, err
			}
		}
		if err := e.obj.PutRun(t.Cgroup, t.Init); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(e.enter(t), e.level(t.Level, 1)); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	e.armExec(h)
	for _, b := range batches(h.Sites, e.share()) {
		if ctx.Err() != nil {
			b.refuse(evidence.AttachFailed, fmt.Errorf("given up: %w", ctx.Err()))
			continue
		}
		e.armBatch(h, b, root)
	}
	e.armHooks(h)
	e.armSets(h)
	for i := range h.Sites {
		if s := &h.Sites[i]; !s.Armed && s.Reason == "" {
			s.Reason, s.Detail = evidence.KernelUnsupported, "nothing here attaches such a probe"
		}
	}
	h.ArmedAt = e.cfg.BootTime()
	h.lookedAt = h.ArmedAt
	e.mu.Lock()
	defer e.mu.Unlock()
	e.handles[h] = true
	return h, nil
}

func (e *Engine) armExec(h *Handle) {
	for i := range h.Sites {
		s := &h.Sites[i]
		if s.Requested != evidence.Tracepoint || s.Event != policy.ProcessExec || s.Reason != "" {
			continue
		}
		if err := e.lineage.ExecErr; err != nil {
			s.Reason, s.Detail = evidence.KernelUnsupported, err.Error()
			continue
		}
		s.Armed, s.Type, s.Kept = true, evidence.ProbeType(e.lineage.Exec), h.kept
		if s.Type != s.Requested {
			s.Detail = "at the raw tracepoint, where the kernel skips fewer programs"
		}
	}
}

// batch are the sites of one probe in one file.
type batch struct {
	file  *File
	probe string
	sites []*Site
}

// bound is how many sites may be attached, and why not more.
type bound struct {
	most int
	why  string
}

// share is what a container may have. A container's files are its author's, and
// may match a policy as often as he likes: where more than half of the counters
// are taken, one more container gets an eighth of the others at most, so that
// there is something left for the next, however many take all they can.
func (e *Engine) share() bound {
	used, all := e.obj.Slots()
	if free := all - used; 2*free < all && free/8 < e.cfg.MaxSites {
		most := max(1, free/8)
		return bound{most, fmt.Sprintf("%d of the node's %d counters are taken, and one more container gets %d", used, all, most)}
	}
	return bound{e.cfg.MaxSites, fmt.Sprintf("more than %d sites in one container", e.cfg.MaxSites)}
}

// batches groups the sites that are to be attached, and refuses those past the
// bound.
func batches(sites []Site, bound bound) []*batch {
	type key struct{ dir, rel, probe string }
	index := map[key]*batch{}
	var order []*batch
	n := 0
	for i := range sites {
		s := &sites[i]
		if s.Reason != "" || !s.HasOffset || s.File == nil {
			continue
		}
		if n += 1 + len(exitsOf(s)); n > bound.most {
			s.Reason, s.Detail = evidence.OverBudget, bound.why
			continue
		}
		k := key{s.File.Match.Layer.Dir, s.File.Match.Rel, s.Probe.ID}
		b := index[k]
		if b == nil {
			b = &batch{file: s.File, probe: s.Probe.ID}
			index[k] = b
			order = append(order, b)
		}
		b.sites = append(b.sites, s)
	}
	return order
}

// armBatch arms one batch. What goes wrong is the reason of its sites.
func (e *Engine) armBatch(h *Handle, b *batch, root *os.File) {
	all := b.refuse
	lower, err := b.file.Match.Open()
	if err != nil {
		all(unreadable(err), err)
		return
	}
	defer lower.Close()
	at := b.file.stamp
	if err := unchanged(lower, at); err != nil {
		all(evidence.AttachFailed, err)
		return
	}
	merged, err := inRoot(root, b.file.Match)
	if err != nil {
		all(evidence.FileUnreadable, err)
		return
	}
	defer merged.Close()
	shared, err := e.take(at, b)
	if err != nil {
		all(overBudget(err), err)
		return
	}
	mine := held{file: shared, match: b.file.Match, stamp: at, mended: shared.mended.Load()}
	if seen, err := stampOf(merged); err == nil {
		mine.merged = process.File{Dev: seen.dev, Ino: seen.ino}
	}
	if !slices.ContainsFunc(h.held, func(o held) bool { return o.file == shared }) { // else another name of it has them
		err = e.putCounters(h, &mine, b)
	}
	if err != nil {
		e.drop(&shared.usage)
		all(overBudget(err), err)
		return
	}
	var refusedAt map[place]refusal
	own := b.file.Match.Writable()
	if own {
		if err = h.tooSlow(); err == nil {
			mine.lease, err = e.leases.take(b.file.Match, shared, h)
		}
		if err == nil {
			err = b.file.unsteady
		}
	}
	if err == nil && shared.attaches() {
		err = e.crowded(shared, h, &mine)
	}
	if err == nil {
		began := time.Now()
		refusedAt, err = shared.arm(e, lower, merged)
		if took := time.Since(began); e.slowed(shared, took) && own {
			h.blame(took)
		}
	}
	if err != nil {
		all(overBudget(err), errors.Join(err, e.obj.DeleteSlots(h.target.Cgroup, mine.ids), e.obj.DeleteDurations(h.target.Cgroup, mine.times), e.leases.drop(mine.lease)))
		e.drop(&shared.usage)
		return
	}
	for _, s := range b.sites {
		if r, no := refusedAt[placeOf(s)]; no {
			s.Reason, s.Detail = r.reason, r.detail
			continue
		}
		s.Armed, s.Type, s.ID = true, typeOf(s), shared.site(placeOf(s))
		s.Kept = mine.had[s.ID] && shared.goneOn()
		mine.armed = append(mine.armed, s.ID)
		for _, exit := range exitsOf(s) {
			if r, no := refusedAt[exit]; no {
				s.Detail = fmt.Sprintf("its durations are not whole: the return at %#x: %s", exit.offset, r.detail)
			}
		}
	}
	mine.proven = e.cfg.BootTime()
	h.mu.Lock()
	h.held = append(h.held, mine)
	h.mu.Unlock()
}

// putCounters makes the container's counters of one batch.
func (e *Engine) putCounters(h *Handle, mine *held, b *batch) error {
	var slots []bpf.Slot
	for _, s := range b.sites {
		slot := e.rules(s)
		slot.Site = mine.file.site(placeOf(s))
		if slices.Contains(mine.ids, slot.Site) {
			continue
		}
		slots, mine.ids = append(slots, slot), append(mine.ids, slot.Site)
		if s.Duration {
			mine.times = append(mine.times, slot.Site)
		}
	}
	if h.kept {
		var err error
		if mine.had, slots, err = e.obj.HasSlots(h.target.Cgroup, slots); err != nil {
			return err
		}
	}
	// The next process must not take these for counters that were there all the time.
	if (h.kept || h.ArmedAt != 0) && len(slots) > 0 && mine.file.keepable && h.target.Unsigned != nil {
		h.target.Unsigned()
	}
	if err := e.obj.PutSlots(h.target.Cgroup, slots); err != nil || len(mine.times) == 0 {
		return err
	}
	if err := e.obj.PutDurations(h.target.Cgroup, mine.times); err != nil {
		return errors.Join(err, e.obj.DeleteSlots(h.target.Cgroup, mine.ids))
	}
	return nil
}

// inRoot opens a file as the container sees it: in its root as it was mounted,
// not through a mount on top of it, because a file that is hidden by a volume
// is not what the container will run. A mapped file is what it is.
func inRoot(root *os.File, m image.Match) (*os.File, error) {
	if m.Mapped() || m.Layer.Owner != 0 { // it may be served by somebody who never answers
		return m.Open()
	}
	if root == nil {
		return nil, fmt.Errorf("open %s in the container's root: it was not opened", m.Path)
	}
	fd, err := unix.Openat2(int(root.Fd()), relative(m.Path), &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, fmt.Errorf("open %s in the container's root: %w", m.Path, err)
	}
	return os.NewFile(uintptr(fd), m.Path), nil
}

// placeOf says where a site of a file is armed, and how: a return instruction
// is probed as any other.
func placeOf(s *Site) place {
	return place{offset: s.Offset, ret: s.Requested == evidence.Uretprobe && !s.Return}
}

// exitsOf says where the function returns that a site is the entry of, if it
// is to be timed: at its return instructions where they are known, since a
// program does not notice those.
func exitsOf(s *Site) []place {
	if !s.Duration {
		return nil
	}
	if len(s.Returns) == 0 {
		return []place{{offset: s.Offset, ret: true, exit: true}}
	}
	var out []place
	for _, o := range s.Returns {
		out = append(out, place{offset: o, exit: true})
	}
	return out
}

// typeOf says what the kernel uses for a site of a file.
func typeOf(s *Site) evidence.ProbeType {
	switch {
	case placeOf(s).ret:
		return evidence.Uretprobe
	case s.Requested == evidence.USDT:
		return evidence.USDT
	}
	return evidence.Uprobe
}

func (b *batch) refuse(r evidence.NotArmedReason, err error) {
	for _, s := range b.sites {
		s.Reason, s.Detail = r, err.Error()
	}
}

func overBudget(err error) evidence.NotArmedReason {
	if errors.Is(err, bpf.ErrNoSpace) || errors.Is(err, errCrowded) || errors.Is(err, errOwn) {
		return evidence.OverBudget
	}
	return evidence.AttachFailed
}

func relative(path string) string {
	for len(path) > 0 && path[0] == '/' {
		path = path[1:]
	}
	return path
}

func (s *sharedFile) site(at place) uint32 {
	for _, p := range s.points {
		if p.place == at {
			return p.at.Site
		}
	}
	return 0
}

// take finds or makes the shared file and takes a reference.
func (e *Engine) take(at stamp, b *batch) (*sharedFile, error) {
	var points []point
	seen := map[place]int{} // and which point it is
	var exits [][2]int      // a point, and that of its entry
	for _, s := range b.sites {
		entry := placeOf(s)
		if _, ok := seen[entry]; ok {
			continue
		}
		seen[entry] = len(points)
		points = append(points, point{place: entry, semaphore: s.Semaphore, at: bpf.At{Pair: s.Duration, Stacked: s.Duration, Go: s.Duration && s.Go}})
		for _, exit := range exitsOf(s) {
			if _, ok := seen[exit]; ok {
				continue // of another name of the function
			}
			exits = append(exits, [2]int{len(points), seen[entry]})
			seen[exit] = len(points)
			// On x86 a return probe runs when the return address is off the stack.
			popped := exit.ret && e.machine.elf == elf.EM_X86_64
			points = append(points, point{place: exit, at: bpf.At{Pair: true, Return: true, Stacked: true, Go: s.Go, Popped: popped}})
		}
	}
	key := fileKey{at.dev, at.ino, b.probe, placesKey(points)}
	e.mu.Lock()
	old := e.files[key]
	e.mu.Unlock()
	if old != nil && old.stamp != at {
		e.forget(old, errRewritten)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errors.New("the engine is closed")
	}
	s := e.files[key]
	if s == nil {
		first, err := e.number(len(points))
		if err != nil {
			return nil, err
		}
		for i := range points {
			points[i].at.Site = first + uint32(i)
		}
		for _, x := range exits {
			points[x[0]].at.Site = points[x[1]].at.Site
		}
		timed := slices.ContainsFunc(points, func(p point) bool { return p.at.Pair })
		s = &sharedFile{key: key, path: b.file.Match.Path, stamp: at, points: points, keepable: !timed && b.file.Match.Origin == image.FromLayer}
		e.files[key] = s
	}
	e.join(&s.usage)
	return s, nil
}

// number gives out n numbers for sites and returns the first. With mu held. One
// that is used again would count for what it was before.
func (e *Engine) number(n int) (uint32, error) {
	if uint64(e.next)+uint64(n) > math.MaxUint32 {
		return 0, fmt.Errorf("%w: all site numbers are used up", bpf.ErrNoSpace)
	}
	e.next += uint32(n)
	return e.next - uint32(n) + 1, nil
}

// join takes a reference. With mu held.
func (e *Engine) join(u *usage) {
	u.refs++
}

// drop gives a reference back.
func (e *Engine) drop(u *usage) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unuse(u)
}

// unuse is drop with mu held. It reports whether that was the last reference.
func (e *Engine) unuse(u *usage) (last bool) {
	if u.refs--; u.refs == 0 {
		u.idleSince = e.cfg.BootTime()
	}
	return u.refs == 0
}

// dropMapped gives back a reference to a file that has no layer. With the last
// one goes the file: a link holds the mount, and a volume could not be detached
// from the machine. Nobody joins it meanwhile, who would lose what he armed.
func (e *Engine) dropMapped(s *sharedFile) {
	e.mu.Lock()
	last := e.unuse(&s.usage)
	if last && e.files[s.key] == s {
		delete(e.files, s.key)
	}
	e.mu.Unlock()
	if last {
		e.forget(s, errClosed)
	}
}

// leave ends the engine's own look at a container.
func (e *Engine) leave(h *Handle) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.handles, h)
}

// level counts containers per depth and tells the kernel which depths to look at.
func (e *Engine) level(n, by int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n == AnyLevel {
		e.any += by
	} else {
		e.levels[n] += by
	}
	mask := e.keptLevels
	if e.any > 0 {
		mask = math.MaxUint32
	}
	for i, c := range e.levels {
		if c > 0 {
			mask |= 1 << i
		}
	}
	return e.obj.SetLevels(mask)
}

// Run detaches in the background what no container uses any more or awaits an
// answer of, and attaches again what is due. It returns when ctx ends and
// nothing is being detached.
func (e *Engine) Run(ctx context.Context) error {
	// To detach may take kernels without uprobe_multi minutes: what is due
	// does not wait for it.
	var reaping sync.WaitGroup
	defer reaping.Wait()
	free := make(chan struct{}, 1)
	free <- struct{}{}
	tick := time.NewTicker(max(min(e.cfg.Linger/4, 250*time.Millisecond), 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			now := e.cfg.BootTime()
			e.keep(now)
			select {
			case <-free:
				reaping.Go(func() { e.reap(now - int64(e.cfg.Linger)); free <- struct{}{} })
			default: // the last one is still at it
			}
		}
	}
}

// reap detaches files that have been without a container since before.
func (e *Engine) reap(before int64) {
	var idle []shared
	e.mu.Lock()
	for k, s := range e.files {
		if s.refs == 0 && s.idleSince <= before {
			delete(e.files, k)
			idle = append(idle, s)
		}
	}
	for k, s := range e.hooks {
		if s.refs == 0 && s.idleSince <= before {
			delete(e.hooks, k)
			idle = append(idle, s)
		}
	}
	e.mu.Unlock()
	closeAll(idle, e.cfg.Log)
	for _, s := range idle {
		if hook, ok := s.(*sharedHook); ok {
			e.mu.Lock()
			e.missed += hook.missed // nobody has it any more
			e.mu.Unlock()
		}
	}
	if err := e.obj.TrimSets(e.cfg.Linger); err != nil {
		e.cfg.Log.Warn("detach from sets", "err", err)
	}
}

// shared is what containers share: a sharedFile or a sharedHook.
type shared interface {
	close() error
	String() string
	use() *usage
	// rest takes the links away if all who use it are among those who stand.
	rest(e *Engine, standing []*Handle)
	// attachAgain makes them again; by is one who holds a file.
	attachAgain(e *Engine, by *held) error
}

// closeAll detaches in parallel: one after the other each costs tens of
// milliseconds.
func closeAll(all []shared, log *slog.Logger) {
	var wg sync.WaitGroup
	for _, s := range all {
		wg.Go(func() {
			if err := s.close(); err != nil {
				log.Warn("detach", "from", s.String(), "err", err)
			}
		})
	}
	wg.Wait()
}

// Stats are the engine's own numbers.
type Stats struct {
	Files int `json:"files"` // (inode, probe) pairs attached
	Hooks int `json:"hooks"` // (place in the kernel, probe) pairs attached
	Sites int `json:"sites"`
	// Resting are the files and hooks that are detached because nobody who uses
	// them awaits an answer.
	Resting int `json:"resting"`
}

// Stats returns what is attached now.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	st := Stats{Files: len(e.files), Hooks: len(e.hooks), Sites: len(e.hooks)}
	for _, s := range e.files {
		st.Sites += len(s.points)
		if s.refs > 0 && s.attachedAt.Load() == 0 {
			st.Resting++
		}
	}
	for _, s := range e.hooks {
		if s.refs > 0 && s.attachedAt.Load() == 0 {
			st.Resting++
		}
	}
	return st
}

// Close detaches everything. It is idempotent. Counters of handles that are
// still open cannot be read afterwards.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	var all []shared
	for _, s := range e.files {
		all = append(all, s)
	}
	for _, s := range e.hooks {
		all = append(all, s)
	}
	e.files, e.hooks = map[fileKey]*sharedFile{}, map[hookKey]*sharedHook{}
	e.mu.Unlock()
	for _, s := range all { // who keeps links is to go on
		if f, ok := s.(*sharedFile); ok {
			f.mu.Lock()
			f.att.unkeep = nil
			f.mu.Unlock()
		}
	}
	closeAll(all, e.cfg.Log)
	return e.lineage.Close()
}
