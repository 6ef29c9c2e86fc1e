package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/symbol"
	"probity/evidence"
	"probity/runtime/image"
)

// Appeared is the file tree of one file, which a process of a container has
// mapped. It is a Finder.
type Appeared struct {
	*image.Mapped
	*Inspector
	Runs Command // what the container starts
}

var _ Finder = Appeared{}

// Command implements Finder.
func (a Appeared) Command() Command { return a.Runs }

// Lookup implements Finder.
func (a Appeared) Lookup(path string) (m image.Match, exec bool, err error) {
	if path != a.Path {
		return image.Match{}, false, fmt.Errorf("%s: %w", path, image.ErrNoFile)
	}
	return a.Match, true, nil
}

// Objects implements Finder.
func (a Appeared) Objects(want func(symbol.Identity) bool) (matches []image.Match, complete bool, why string) {
	id, err := a.identify(a.Match)
	switch {
	case doubted(err):
		return nil, false, err.Error()
	case err == nil && want(id):
		matches = []image.Match{a.Match}
	}
	return matches, true, ""
}

// siteKey says which site of a container one is, over all plans for it. The
// same path, copied up or overwritten since, is another file.
type siteKey struct {
	probe, path, symbol, marker string
	offset                      uint64
	ret                         bool
	stamp                       stamp
}

func identify(s *Site) siteKey {
	return siteKey{s.Probe.ID, s.File.Match.Path, s.Symbol, s.Marker, s.Offset, s.Return, s.File.stamp}
}

// Add arms what of a later plan the handle does not have yet: the container's
// files are not what they were. It returns the new sites, armed or refused;
// where a file is the same, so is its site, and nothing is returned of it. What
// of the plan belongs to no file is left out.
//
// The container runs meanwhile: what a new site's file did before it was armed
// was not seen, and it is the caller who knows since when that can have been.
// root is the container's root file system at this moment, and is closed as that
// of [Target] is; a plan of mapped files only needs none, and who had them mapped
// may be gone.
func (e *Engine) Add(ctx context.Context, h *Handle, root *os.File, plan Plan) []Site {
	defer root.Close()
	gone := map[stamp]bool{} // files that were detached: they are armed anew
	for _, held := range h.held {
		if held.file.gone() != nil {
			gone[held.stamp] = true
		}
	}
	known, failed := map[siteKey]bool{}, map[siteKey]bool{}
	for i := range h.Sites {
		switch s := &h.Sites[i]; {
		case s.File == nil || s.Armed && gone[s.File.stamp]:
		case s.Reason == evidence.AttachFailed:
			failed[identify(s)] = true // it need not fail again
		default:
			known[identify(s)] = true
		}
	}
	var more []Site
	for _, s := range plan.Sites {
		if s.File != nil && !known[identify(&s)] {
			more = append(more, s)
		}
	}
	for i := range more {
		h.retire(more[i].File)
	}
	for _, b := range batches(more, e.lateShare(h)) {
		if ctx.Err() != nil {
			b.refuse(evidence.AttachFailed, fmt.Errorf("given up: %w", ctx.Err()))
			continue
		}
		e.armBatch(h, b, root)
	}
	more = slices.DeleteFunc(more, func(s Site) bool { return !s.Armed && failed[identify(&s)] })
	for i := range more {
		if s := &more[i]; s.Armed {
			h.late += 1 + len(exitsOf(s))
		}
	}
	h.remember(more)
	return more
}

// maxRefused bounds the sites that are remembered because they were refused after a
// container's start. How many there are is its choice: each file that it makes has
// some. Of what is forgotten nothing is lost: it would be refused again.
const maxRefused = 4096

// remember keeps what was added. The sites that there were may be somebody else's
// too, and stay as they are.
func (h *Handle) remember(more []Site) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.first == 0 {
		h.first = len(h.Sites)
	}
	h.Sites = append(h.Sites, more...)
	for i := range more {
		if !more[i].Armed {
			h.refused++
		}
	}
	if h.refused <= maxRefused {
		return
	}
	rest := slices.Clone(h.Sites[:h.first])
	for _, s := range h.Sites[h.first:] {
		if !s.Armed && h.refused > maxRefused/2 {
			h.refused--
			continue
		}
		rest = append(rest, s)
	}
	h.Sites = rest
}

// lateShare is what of a container's files may be armed after its start, besides
// what was armed then: a half of what a start may have, in its whole life. Those
// whose file has changed since count on: they keep their counters.
func (e *Engine) lateShare(h *Handle) bound {
	b := e.share()
	if rest := max(0, e.cfg.MaxSites/2-h.late); rest < b.most {
		return bound{rest, fmt.Sprintf("more than %d sites that appeared in one container after its start", e.cfg.MaxSites/2)}
	}
	return b
}

// Knows reports whether a file was planned as it is now: it is armed, or was
// refused for a reason that stays. Of an overlay's file the device is the overlay's, so the
// rest must do: nobody can give a file the number and the change time of one of
// the image, and a site of any other file is partial from its beginning.
// It may be called at any time.
func (h *Handle) Knows(f bpf.File) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.Sites, func(s Site) bool { return s.File != nil && s.Reason != evidence.AttachFailed && s.File.stamp.is(f) })
}

func (s stamp) is(f bpf.File) bool {
	return f.Inode != 0 && s.ino == f.Inode && s.ctime.Nano() == f.Ctime && s.size == f.Size
}

// InImage reports whether a path is that of a file of the image, which the
// search before the start has seen, and not of one that the container has put
// there since. If the file is known that was found there, it must be that one.
func (h *Handle) InImage(path string, file bpf.File) bool {
	find, ok := h.target.Files.(Finder)
	if !ok {
		return false
	}
	m, _, err := find.Lookup(path)
	if err != nil || m.Origin != image.FromLayer {
		return false
	}
	if file != (bpf.File{}) {
		f, err := m.Open()
		if err != nil {
			return false
		}
		defer f.Close()
		at, err := stampOf(f)
		return err == nil && at.is(file)
	}
	if h.target.Upper == "" {
		return true
	}
	upper, err := os.OpenFile(h.target.Upper, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return false
	}
	defer upper.Close()
	for _, p := range []string{path, m.Path} { // they differ by symlinks
		if own, _ := inUpper(int(upper.Fd()), p); own {
			return false
		}
	}
	return true
}

// errRewritten is why a file is detached whose bytes are not those that it was
// attached to.
var errRewritten = errors.New("the file was written in place")

// retire takes the links off a file that was written in place: the kernel keeps
// the instruction that it found when it was first asked to probe it, and would
// have every process run that one instead of what is there now. Other
// containers that have the file on a volume find it changed, too.
func (h *Handle) retire(now *File) {
	for i := range h.held {
		old := &h.held[i]
		if old.match.Path != now.Match.Path || old.stamp.dev != now.stamp.dev || old.stamp.ino != now.stamp.ino || old.stamp == now.stamp || old.file.gone() != nil {
			continue
		}
		h.engine.forget(old.file, errRewritten)
	}
}

// errClosed is why a file is detached that nobody needs any more.
var errClosed = errors.New("no container has it any more")

// forget detaches a shared file at once, and lets nobody join it any more. What
// of its sites is still in use is not armed from now on, for the given reason.
func (e *Engine) forget(s *sharedFile, why error) {
	e.mu.Lock()
	if e.files[s.key] == s {
		delete(e.files, s.key)
	}
	e.mu.Unlock()
	began := time.Now()
	if err := s.detach(why); err != nil {
		e.cfg.Log.Warn("detach", "file", s.path, "err", err)
	}
	if took := time.Since(began); e.slowed(s, took) {
		for _, h := range e.holders(s) {
			h.blame(took)
		}
	}
}

// NeedsLineage reports whether something is armed that counts for the
// container's own processes only, and not for its runtime's in the same cgroup.
func (h *Handle) NeedsLineage() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.Sites, func(s Site) bool { return s.Armed && s.File == nil && s.ID != 0 || s.Set != "" })
}

// AddProcess says that a process of the container ran before it was armed.
func (h *Handle) AddProcess(pid int) error {
	if h.target.Level == AnyLevel {
		return errors.New("the depth of the container's cgroup is not known")
	}
	return h.engine.obj.AddProcess(pid, h.target.Cgroup, h.target.Level)
}
