package probe

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/cilium/ebpf/link"

	"probity/bpf"
	"probity/evidence"
)

// hookKey identifies a place in the kernel as one probe wants it.
type hookKey struct {
	probe     string
	requested evidence.ProbeType
	name      string // of a function, a system call or an event
	syscall   bool
	pair      bool // with its return
}

// sharedHook is one armed (place in the kernel, probe), shared by every
// container and counted by reference.
type sharedHook struct {
	key  hookKey
	site uint32

	// mu serialises attaching, and guards the fields below.
	mu      sync.Mutex
	links   []link.Link // none: not attached
	progs   []*bpf.Program
	typ     evidence.ProbeType // what the kernel took
	note    string             // why it is another type than was asked for
	refused refusal            // if it is not attached
	missed  uint64             // by links that are closed
	broken  bool               // it lost its links, and has no others yet

	usage
}

// arm attaches by the best way that this kernel takes. What failed for one
// container is tried again for the next: a module may have been loaded.
func (s *sharedHook) arm(e *Engine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.links) > 0 {
		return
	}
	s.refused = refusal{}
	var tried []error
	for _, w := range e.kernelSide.ways(s.key) {
		if err := s.try(e.obj, w); err != nil {
			tried = append(tried, fmt.Errorf("%s: %w", w.typ, errors.Join(err, s.unlink())))
			continue
		}
		s.attachedAt.Store(e.cfg.BootTime())
		if s.broken {
			s.broken = false
			s.mended.Add(1)
		}
		s.typ, s.note = w.typ, ""
		if len(tried) > 0 {
			s.note = errors.Join(tried...).Error()
		}
		return
	}
	s.refused = refusal{whyNot(tried), strings.ReplaceAll(errors.Join(tried...).Error(), "\n", "; ")}
}

// try attaches one way: the return first, so that each entry has one.
func (s *sharedHook) try(obj *bpf.Objects, w way) error {
	if s.key.pair {
		l, p, err := w.exit(obj, bpf.At{Site: s.site, Pair: true, Return: true})
		if err != nil {
			return fmt.Errorf("its return: %w", err)
		}
		s.links, s.progs = append(s.links, l), append(s.progs, p)
	}
	l, p, err := w.attach(obj, bpf.At{Site: s.site, Pair: s.key.pair})
	if err != nil {
		return err
	}
	s.links, s.progs = append(s.links, l), append(s.progs, p)
	return nil
}

// whyNot is the reason for a place that no way leads to: what may pass comes
// first, then what is wrong with the place, then what the kernel lacks.
func whyNot(tried []error) evidence.NotArmedReason {
	err := errors.Join(tried...)
	other := false
	for _, e := range tried {
		if !errors.Is(e, errNoPlace) && !errors.Is(e, errRefused) && !errors.Is(e, errUnsupported) {
			other = true
		}
	}
	switch {
	case other:
		return evidence.AttachFailed
	case errors.Is(err, errRefused):
		return evidence.UnprobeableInstruction
	case errors.Is(err, errNoPlace):
		return evidence.SymbolNotFound
	}
	return evidence.KernelUnsupported
}

// check says why the place is not armed any more. It must have been.
func (s *sharedHook) check(k kernelSide) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.broken:
		return errors.New("its link was lost")
	case len(s.links) == 0:
		return errRests
	}
	if (s.typ == evidence.Kprobe || s.typ == evidence.Kretprobe) && k.kprobesOff() {
		return errors.New("all kprobes of this kernel were switched off")
	}
	for _, l := range s.links {
		if _, err := l.Info(); err != nil && !errors.Is(err, link.ErrNotSupported) { // perf events before 5.15 have no links
			return err
		}
	}
	return nil
}

func (s *sharedHook) String() string { return s.key.name }

func (s *sharedHook) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unlink()
}

// unlink detaches. With mu held.
func (s *sharedHook) unlink() error {
	s.missed += s.skipped()
	var errs []error
	for _, l := range s.links {
		errs = append(errs, l.Close())
	}
	for _, p := range s.progs {
		errs = append(errs, p.Close())
	}
	s.links, s.progs = nil, nil
	s.attachedAt.Store(0)
	return errors.Join(errs...)
}

// armHooks arms the sites in the kernel.
func (e *Engine) armHooks(h *Handle) {
	for i := range h.Sites {
		s := &h.Sites[i]
		if s.Reason != "" || s.Armed || s.File != nil || s.Set != "" || s.Function == "" && s.Event == "" {
			continue
		}
		if err := errors.Join(e.lineage.ExecErr, e.lineage.ProcessErr); err != nil {
			s.Reason, s.Detail = evidence.KernelUnsupported, "which processes are the container's own cannot be seen: "+err.Error()
			continue
		}
		e.armHook(h, s)
	}
}

// paired reports whether the entry that the site is is paired with its return.
func paired(s *Site) bool {
	if s.File != nil {
		return s.Duration
	}
	return s.Probe.Duration && (s.Requested == evidence.Kprobe || s.Requested == evidence.Fentry)
}

func (e *Engine) armHook(h *Handle, s *Site) {
	pair := paired(s)
	hook, err := e.takeHook(hookKey{s.Probe.ID, s.Requested, s.Function + s.Event, s.Syscall, pair})
	if err != nil {
		s.Reason, s.Detail = overBudget(err), err.Error()
		return
	}
	slot := e.rules(s)
	slot.Site = hook.site
	err = e.obj.PutSlots(h.target.Cgroup, []bpf.Slot{slot})
	if err == nil && pair {
		if err = e.obj.PutDurations(h.target.Cgroup, []uint32{hook.site}); err != nil {
			err = errors.Join(err, e.obj.DeleteSlots(h.target.Cgroup, []uint32{hook.site}))
		}
	}
	if err != nil {
		e.drop(&hook.usage)
		s.Reason, s.Detail = overBudget(err), err.Error()
		return
	}
	hook.arm(e)
	hook.mu.Lock()
	defer hook.mu.Unlock()
	h.hooks = append(h.hooks, heldHook{hook, len(hook.links) > 0, hook.mended.Load()})
	if len(hook.links) == 0 {
		s.Reason, s.Detail = hook.refused.reason, hook.refused.detail
		return
	}
	s.Armed, s.Type, s.ID, s.Detail = true, hook.typ, hook.site, hook.note
}

func (e *Engine) takeHook(k hookKey) (*sharedHook, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errors.New("the engine is closed")
	}
	s := e.hooks[k]
	if s == nil {
		site, err := e.number(1)
		if err != nil {
			return nil, err
		}
		s = &sharedHook{key: k, site: site}
		e.hooks[k] = s
	}
	e.join(&s.usage)
	return s, nil
}
