package probe

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/evidence"
	"probity/runtime/image"
	"probity/runtime/process"
)

// Handle is one armed container. Its methods may be called from one goroutine
// at a time; Close may be called at any time.
type Handle struct {
	Sites    []Site
	Searches []Search
	ArmedAt  int64 // boot time at which the last site was proven

	engine *Engine
	target Target
	kept   bool // an earlier engine's counters go on
	sets   setState
	late   int // places that were attached after the start, of Add
	// Of Sites, those that there were at the start, and how many of the others are
	// not armed; of Add.
	first, refused int
	once           sync.Once
	err            error

	// mu guards the fields below, and Sites against the engine's own look at
	// them.
	mu       sync.Mutex
	held     []held
	hooks    []heldHook
	stood    map[uint32]*stood // by site number
	told     []Standing        // not yet returned by Stood
	runStood uint64            // bpf.Run.Stood when the counters were last read
	lookedAt int64             // boot time of that
	nextDue  int64             // boot time at which the next of them counts again; 0: none
	slow     time.Duration     // for which files of its own have held up the machine
}

// held is a reference to a shared file, by one of its names, and the
// container's counters there.
type held struct {
	file  *sharedFile
	match image.Match
	stamp stamp
	// merged is the file as the container's own root shows it.
	merged process.File
	lease  *os.File        // of a file that the container may write
	had    map[uint32]bool // those that an earlier engine made
	ids    []uint32        // nil if the counters belong to another name of the file
	times  []uint32        // those that have a duration
	armed  []uint32        // those that are attached
	mended uint32          // sharedFile.mended, as far as it was told
	proven int64           // boot time after which they were last proven
}

// heldHook is a reference to a place in the kernel.
type heldHook struct {
	*sharedHook
	armed bool
	seen  uint32 // sharedHook.mended, as far as it was told
}

// Counter reads the kernel's counter of an armed site. Probes without a site
// number count execs.
func (h *Handle) Counter(s Site) (bpf.Counter, error) {
	if s.ID == 0 {
		r, err := h.engine.obj.Run(h.target.Cgroup)
		return bpf.Counter{Count: r.Execs, FirstNs: r.FirstExecNs, LastNs: r.LastExecNs}, err
	}
	return h.engine.obj.Slot(h.target.Cgroup, s.ID)
}

// Duration returns the times between a site's entry and its return, as far as
// they were counted; nil if none was, or the site has none.
func (h *Handle) Duration(s Site) (*evidence.Duration, error) {
	if s.ID == 0 || !paired(&s) {
		return nil, nil
	}
	d, err := h.engine.obj.Duration(h.target.Cgroup, s.ID)
	if err != nil {
		return nil, err
	}
	return evidence.NewDuration(d.Buckets, d.SumNs, d.Unmatched), nil
}

// Run reads what the kernel counts for the container as a whole.
func (h *Handle) Run() (bpf.Run, error) { return h.engine.obj.Run(h.target.Cgroup) }

// Misses is Engine.Misses.
func (h *Handle) Misses() evidence.Loss { return h.engine.Misses() }

// MissesOf is Engine.MissesOf.
func (h *Handle) MissesOf(t evidence.ProbeType) evidence.Loss { return h.engine.MissesOf(t) }

// Trouble is a site that is not armed any more.
type Trouble struct {
	Path   string // of the file, in the container; "" of a place in the kernel
	Probe  string // the probe's id, of a place in the kernel; with neither it may be any site
	Reason evidence.GapReason
	Detail string
	// Since is the boot time of the last proof that it was well, if that is
	// not the last health check.
	Since int64
	// Until is the boot time by which it was proven to be well again; 0: it is not.
	Until int64
}

// troubles are what a check finds: at most one for each file and reason.
type troubles []Trouble

// still reports whether something is wrong with a file now.
func (ts troubles) still(path string) bool {
	return slices.ContainsFunc(ts, func(t Trouble) bool { return t.Path == path && t.Until == 0 })
}

// add takes a trouble with a file. Several probes may have it: it is well again when
// it is for all of them. One of which something else is wrong already has one that
// says so, but of another time.
func (ts *troubles) add(t Trouble) {
	i := slices.IndexFunc(*ts, func(o Trouble) bool { return o.Path == t.Path && o.Reason == t.Reason })
	switch {
	case i >= 0:
		known := &(*ts)[i]
		known.Since = min(known.Since, t.Since)
		if known.Until != 0 && t.Until != 0 {
			known.Until = max(known.Until, t.Until)
		} else {
			known.Until = 0
		}
	case t.Until != 0 || !ts.still(t.Path):
		*ts = append(*ts, t)
	}
}

// Check proves again that the container runs the files that were armed and
// that they are still armed. It returns the files for which that is not so, at
// most one trouble each, and the probes on the kernel. Links that are dead are
// made again at once, and proven: the trouble is returned all the same, with its
// end, to every container that they served, and not the next time.
func (h *Handle) Check() []Trouble { return h.CheckAsOf(h.engine.cfg.BootTime()) }

// CheckAsOf is Check as one of many containers: of what they share, that is the
// links and the layers' files, it believes a proof that was made after that boot
// time. A trouble of those begins with the last proof that there was none, and not
// with the last check that believed it.
func (h *Handle) CheckAsOf(asOf int64) []Trouble {
	var out troubles
	current := h.current()
	h.copiedUp(current, &out)
	for i := range h.held {
		held := &h.held[i]
		path := held.match.Path
		if held.file.gone() != nil && (current[path] || h.again(held, asOf)) {
			continue // what is there now is armed
		}
		if held.match.Origin != image.FromLayer && !out.still(path) && !current[path] {
			if why := held.changed(); why != "" {
				out.add(Trouble{Path: path, Reason: evidence.GapFileChanged, Detail: why})
			}
		}
		proven := asOf
		if t := h.linked(held, asOf); t.Reason != "" {
			out.add(t)
			proven = t.Until
		}
		if held.match.Origin == image.FromLayer && !out.still(path) && !current[path] {
			if why := held.file.rewritten(h.engine, held, asOf); why != "" && !h.again(held, asOf) {
				out.add(Trouble{Path: path, Reason: evidence.GapFileChanged, Detail: why, Since: held.proven})
				proven = 0
			}
		}
		if proven != 0 {
			held.proven = proven
		}
	}
	for i := range h.hooks {
		if hook := &h.hooks[i]; hook.armed {
			if t := h.hooked(hook); t.Reason != "" {
				out = append(out, t)
			}
		}
	}
	return out
}

// linked looks whether the links to a file are as they were made, and makes them
// again. The trouble has no reason if there is none.
func (h *Handle) linked(held *held, asOf int64) Trouble {
	e, path := h.engine, held.match.Path
	err := held.file.check(e, held.armed, asOf)
	if errors.Is(err, errRests) && h.quiet(held.armed) {
		err = nil
	}
	n := held.file.mended.Load()
	if err == nil && n == held.mended {
		return Trouble{}
	}
	t := Trouble{Path: path, Reason: evidence.GapLinkLost, Since: held.proven}
	if err == nil {
		// Who made them proved them before he said that they are attached.
		t.Detail, t.Until = "the file's links were lost, and made again", held.file.attachedAt.Load()
		held.mended = n
		return t
	}
	t.Detail = err.Error()
	if held.file.gone() == nil {
		if err := held.file.mend(e, held); err != nil {
			t.Detail += ", and could not be armed again: " + err.Error()
		} else if held.file.check(e, held.armed, e.cfg.BootTime()) == nil {
			t.Until = e.cfg.BootTime() // after the proof: before it, it is not known
		}
	}
	held.mended = held.file.mended.Load()
	return t
}

// hooked is linked for a place in the kernel.
func (h *Handle) hooked(hook *heldHook) Trouble {
	e := h.engine
	err := hook.check(e.kernelSide)
	if errors.Is(err, errRests) && h.quiet([]uint32{hook.site}) {
		err = nil
	}
	n := hook.mended.Load()
	if err == nil && n == hook.seen {
		return Trouble{}
	}
	t := Trouble{Probe: hook.key.probe, Reason: evidence.GapLinkLost, Detail: hook.key.name + ": "}
	if err == nil {
		t.Detail, t.Until = t.Detail+"its link was lost, and made again", hook.attachedAt.Load()
		hook.seen = n
		return t
	}
	t.Detail += err.Error()
	if err := hook.mend(e); err != nil {
		t.Detail += ", and could not be armed again: " + err.Error()
	} else if hook.check(e.kernelSide) == nil {
		t.Until = e.cfg.BootTime()
	}
	hook.seen = hook.mended.Load()
	return t
}

// copiedUp adds the files of layers that are armed and that the container's upper
// directory has its own version of.
func (h *Handle) copiedUp(current map[string]bool, out *troubles) {
	if h.target.Upper == "" || len(h.held) == 0 {
		return
	}
	upper, upperErr := unix.Open(h.target.Upper, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if upperErr == nil {
		defer unix.Close(upper)
	}
	looked := make(map[string]bool, len(h.held)) // several probes may have a file
	for i := range h.held {
		held := &h.held[i]
		path := held.match.Path
		if len(held.armed) == 0 || held.match.Origin != image.FromLayer || looked[path] || current[path] {
			continue
		}
		looked[path] = true
		if upperErr != nil {
			out.add(Trouble{Path: path, Reason: evidence.GapFileChanged, Detail: fmt.Sprintf("the upper directory was gone before this check: open %s: %v", h.target.Upper, upperErr)})
			continue
		}
		if covered, detail := inUpper(upper, path); covered {
			out.add(Trouble{Path: path, Reason: evidence.GapFileChanged, Detail: detail})
		}
	}
}

// current lists the paths at which the container has a file of its own by now,
// which is armed and as it was then.
func (h *Handle) current() map[string]bool {
	out := map[string]bool{}
	for i := range h.held {
		held := &h.held[i]
		if held.match.Origin != image.FromLayer && held.file.gone() == nil && held.changed() == "" {
			out[held.match.Path] = true
		}
	}
	return out
}

// again reports whether a file of a layer was armed again as it is now, for the
// probes that had it armed as it was.
func (h *Handle) again(old *held, asOf int64) bool {
	for i := range h.held {
		if now := &h.held[i]; old.match.Origin == image.FromLayer && now.match.Origin == image.FromLayer && now.match.Path == old.match.Path &&
			now.file.key.probe == old.file.key.probe && now.stamp != old.stamp && now.file.gone() == nil && now.file.rewritten(h.engine, now, asOf) == "" {
			return true
		}
	}
	return false
}

// changed says what was done to the file since it was armed. The container may
// write one of its own in place; a layer's only root on the host can.
func (h *held) changed() string {
	f, err := h.match.Open()
	if err != nil {
		return "the file that was armed is not there any more: " + err.Error()
	}
	defer f.Close()
	if now, err := stampOf(f); err != nil || now != h.stamp {
		return "the file was written or replaced after it was armed"
	}
	return ""
}

// inUpper reports whether the upper directory has its own version of the path,
// or a whiteout: any write, touch, chmod or chown copies the file up, and what
// the container runs from then on is the copy.
func inUpper(upper int, path string) (bool, string) {
	fd, err := unix.Openat2(upper, relative(path), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch {
	case err == nil:
		unix.Close(fd)
		return true, "the container's upper directory has its own version of the file"
	case errors.Is(err, unix.ENOENT):
		return false, ""
	default: // ELOOP, ENOTDIR: a directory on the way was replaced
		return true, "the container's upper directory covers the path: " + err.Error()
	}
}

// Close disarms the container: its counters go, and the links with them once
// no other container of the image holds them. It is idempotent.
func (h *Handle) Close() error {
	h.once.Do(func() {
		var errs []error
		h.engine.leave(h)
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, held := range h.held {
			errs = append(errs, h.engine.obj.DeleteSlots(h.target.Cgroup, held.ids), h.engine.obj.DeleteDurations(h.target.Cgroup, held.times))
			if held.match.Mapped() {
				h.engine.dropMapped(held.file)
			} else {
				h.engine.drop(&held.file.usage)
			}
			errs = append(errs, h.engine.leases.drop(held.lease))
		}
		for _, hook := range h.hooks {
			id := []uint32{hook.site}
			errs = append(errs, h.engine.obj.DeleteSlots(h.target.Cgroup, id))
			if hook.key.pair {
				errs = append(errs, h.engine.obj.DeleteDurations(h.target.Cgroup, id))
			}
			h.engine.drop(&hook.usage)
		}
		errs = append(errs, h.engine.obj.DeleteSets(h.target.Cgroup), h.engine.exit(h.target.Cgroup), h.engine.obj.DeleteRun(h.target.Cgroup), h.engine.level(h.target.Level, -1))
		h.err = errors.Join(errs...)
	})
	return h.err
}
