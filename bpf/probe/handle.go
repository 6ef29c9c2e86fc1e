package probe

import (
	"errors"
	"fmt"
	"os"
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
	lease  *os.File // of a file that the container may write
	ids    []uint32 // nil if the counters belong to another name of the file
	times  []uint32 // those that have a duration
	armed  []uint32 // those that are attached
	mended uint32   // sharedFile.mended, as far as it was told
	proven int64    // boot time after which they were last proven; 0: when they were armed
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
}

// Check proves again that the container runs the files that were armed and
// that they are still armed. It returns the files for which that is not so, at
// most one trouble each, and the probes on the kernel. Links that are dead are
// made again at once; the trouble is returned all the same, to every container
// that they served, and not the next time.
func (h *Handle) Check() []Trouble { return h.CheckAsOf(h.engine.cfg.BootTime()) }

// CheckAsOf is Check as one of many containers: of what they share, that is the
// links and the layers' files, it believes a proof that was made after that boot
// time. A trouble of those begins with the last proof that there was none, and not
// with the last check that believed it.
func (h *Handle) CheckAsOf(asOf int64) []Trouble {
	var out []Trouble
	done := map[string]bool{}
	add := func(t Trouble) {
		if !done[t.Path] {
			done[t.Path] = true
			out = append(out, t)
		}
	}
	current := h.current()
	h.copiedUp(current, add)
	for i := range h.held {
		held := &h.held[i]
		path := held.match.Path
		if held.file.gone() != nil && (current[path] || h.again(held, asOf)) {
			continue // what is there now is armed
		}
		if held.match.Origin != image.FromLayer && !done[path] && !current[path] {
			if why := held.changed(); why != "" {
				add(Trouble{Path: path, Reason: evidence.GapFileChanged, Detail: why})
			}
		}
		well := true
		err := held.file.check(h.engine, held.armed, asOf)
		if errors.Is(err, errRests) && h.quiet(held.armed) {
			err = nil
		}
		if err != nil {
			detail := err.Error()
			if held.file.gone() == nil {
				if err := held.file.mend(h.engine, held); err != nil {
					detail += ", and could not be armed again: " + err.Error()
				}
			}
			add(Trouble{Path: path, Reason: evidence.GapLinkLost, Detail: detail, Since: held.proven})
			well = false
		}
		if n := held.file.mended.Load(); n != held.mended {
			held.mended = n
			add(Trouble{Path: path, Reason: evidence.GapLinkLost, Detail: "the file's links were lost, and made again", Since: held.proven})
			well = false
		}
		if held.match.Origin == image.FromLayer && !done[path] && !current[path] {
			if why := held.file.rewritten(h.engine, held, asOf); why != "" && !h.again(held, asOf) {
				add(Trouble{Path: path, Reason: evidence.GapFileChanged, Detail: why, Since: held.proven})
				well = false
			}
		}
		if well {
			held.proven = asOf
		}
	}
	for i := range h.hooks {
		hook := &h.hooks[i]
		if !hook.armed {
			continue
		}
		why := ""
		err := hook.check(h.engine.kernelSide)
		if err != nil && !(errors.Is(err, errRests) && h.quiet([]uint32{hook.site})) {
			why = err.Error()
			if err := hook.mend(h.engine); err != nil {
				why += ", and could not be armed again: " + err.Error()
			}
		}
		n := hook.mended.Load()
		if why == "" && n != hook.seen {
			why = "its link was lost, and made again"
		}
		hook.seen = n
		if why != "" {
			out = append(out, Trouble{Probe: hook.key.probe, Reason: evidence.GapLinkLost, Detail: hook.key.name + ": " + why})
		}
	}
	return out
}

// copiedUp adds the files of layers that are armed and that the container's upper
// directory has its own version of.
func (h *Handle) copiedUp(current map[string]bool, add func(Trouble)) {
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
			add(Trouble{Path: path, Reason: evidence.GapFileChanged, Detail: fmt.Sprintf("the upper directory was gone before this check: open %s: %v", h.target.Upper, upperErr)})
			continue
		}
		if covered, detail := inUpper(upper, path); covered {
			add(Trouble{Path: path, Reason: evidence.GapFileChanged, Detail: detail})
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
