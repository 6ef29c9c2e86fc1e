package probe

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"probity/runtime/process"
)

// To attach, as to detach, the kernel goes through all mappings of the file in
// the whole machine, and holds a lock meanwhile for which every fork(2) of the
// machine waits (register_for_each_vma takes dup_mmap_sem). How many there are
// is a container's choice: four processes with 65,000 mappings each of one file
// made others wait for 2 to 3 s for each site (seen on 6.18: 10 us for each
// mapping and site). So it is counted before anything is attached to a file that
// containers run already, and who has taken too much of that time with files of
// its own has no more of them armed.
const (
	// maxMappings bounds those of one file in all containers that have it: some
	// 40 ms for each site.
	maxMappings = 4096
	// countFor bounds the time for counting. What was not counted is too many.
	countFor = 2 * time.Second
	// crowdedFor is how long it is not counted again after there were too many.
	crowdedFor = 30 * time.Second
	// slowSite is a time for one site that only mappings take: waiting for the
	// kernel's grace periods takes tens of milliseconds, where the machine is
	// emulated some hundred.
	slowSite = time.Second
	// slowShare is how much longer than such an attachment took the file is left
	// alone afterwards.
	slowShare = 100
	// maxSlow bounds such times, of one container with files of its own.
	maxSlow = 3 * time.Second
)

// errCrowded reports that attaching would hold up the machine.
var errCrowded = errors.New("every fork of the machine would wait while it is attached to")

// crowded returns an error that wraps errCrowded if containers have mapped the
// file so often that nothing must be attached to it, or detached from it, now.
// more is one of them that is not known as such yet, with its own view.
func (e *Engine) crowded(s *sharedFile, more *Handle, view *held) error {
	now := e.cfg.BootTime()
	if until := s.leaveUntil.Load(); until > now {
		return fmt.Errorf("%w: too many mappings of %s were seen, it is looked again in %v", errCrowded, s.path, time.Duration(until-now).Round(time.Second))
	}
	c := census{until: time.Now().Add(countFor)}
	for _, h := range e.holders(s) {
		c.take(h, h.view(s))
	}
	if more != nil {
		c.take(more, view)
	}
	if c.err == nil {
		return nil
	}
	s.leaveUntil.Store(now + int64(crowdedFor))
	return fmt.Errorf("%w: the mappings of %s: %w", errCrowded, s.path, c.err)
}

// holders are the containers that have a file.
func (e *Engine) holders(s *sharedFile) []*Handle {
	e.mu.Lock()
	handles := slices.Collect(maps.Keys(e.handles))
	e.mu.Unlock()
	return slices.DeleteFunc(handles, func(h *Handle) bool { return h.view(s) == nil })
}

// view is how the container has a file, or nil if it does not.
func (h *Handle) view(s *sharedFile) *held {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.held {
		if h.held[i].file == s {
			view := h.held[i]
			return &view
		}
	}
	return nil
}

// census counts the mappings of a file in containers.
type census struct {
	n     int
	until time.Time
	err   error // why there are too many
}

// take counts those of one container.
func (c *census) take(h *Handle, view *held) {
	if c.err != nil || view == nil || h.target.Processes == nil {
		return
	}
	pids, whole, err := h.target.Processes()
	if err == nil && !whole {
		err = errors.New("a container has more processes or cgroups than are looked at")
	}
	c.err = err
	for _, pid := range pids {
		if c.err == nil && time.Now().After(c.until) {
			c.err = fmt.Errorf("%d were counted in %v, and not all processes", c.n, countFor)
		}
		if c.err != nil {
			return
		}
		c.process(pid, view)
	}
}

func (c *census) process(pid int, view *held) {
	p, err := process.Open(pid)
	if err == nil {
		defer p.Close()
		var all []process.Mapping
		all, err = p.Private()
		for _, m := range all {
			if view.is(m) || view.named(m) {
				c.n++
			}
		}
	}
	switch {
	case c.n > maxMappings:
		c.err = fmt.Errorf("there are more than %d", maxMappings)
	case err != nil && !errors.Is(err, process.ErrGone) && !errors.Is(err, os.ErrNotExist):
		c.err = err
	}
}

// slowed notes that attaching to a file, or detaching from it, took so long: if
// its mappings must have done that, it is left alone for a while.
func (e *Engine) slowed(s *sharedFile, took time.Duration) bool {
	if took < slowSite*time.Duration(max(1, len(s.points))) {
		return false
	}
	s.leaveUntil.Store(e.cfg.BootTime() + int64(took*slowShare))
	e.cfg.Log.Warn("attaching or detaching held up the machine", "file", s.path, "sites", len(s.points), "took", took)
	return true
}

// tooSlow returns an error that wraps errCrowded if a container's own files have
// held up the machine for too long already.
func (h *Handle) tooSlow() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.slow > maxSlow {
		return fmt.Errorf("%w: files of this container made them wait for %v already", errCrowded, h.slow.Round(time.Millisecond))
	}
	return nil
}

// blame lays the time that a file of a container's own took at its door.
func (h *Handle) blame(took time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slow += took
}
