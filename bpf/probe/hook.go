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
}

// sharedHook is one armed (place in the kernel, probe), shared by every
// container and counted by reference.
type sharedHook struct {
	key  hookKey
	site uint32

	// mu serialises attaching, and guards the fields below.
	mu      sync.Mutex
	link    link.Link // nil: not attached
	prog    *bpf.Program
	typ     evidence.ProbeType // what the kernel took
	note    string             // why it is another type than was asked for
	refused refusal            // if it is not attached

	// Guarded by Engine.mu.
	refs      int
	idleSince int64 // boot time at which refs became 0
}

// arm attaches by the best way that this kernel takes. What failed for one
// container is tried again for the next: a module may have been loaded.
func (s *sharedHook) arm(obj *bpf.Objects, k kernelSide) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link != nil {
		return
	}
	s.refused = refusal{}
	var tried []error
	for _, w := range k.ways(s.key) {
		l, p, err := w.attach(obj, s.site)
		if err != nil {
			tried = append(tried, fmt.Errorf("%s: %w", w.typ, err))
			continue
		}
		s.link, s.prog, s.typ, s.note = l, p, w.typ, ""
		if len(tried) > 0 {
			s.note = errors.Join(tried...).Error()
		}
		return
	}
	s.refused = refusal{whyNot(tried), strings.ReplaceAll(errors.Join(tried...).Error(), "\n", "; ")}
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

// check says why the place is not armed any more, or nothing.
func (s *sharedHook) check(k kernelSide) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link == nil {
		return ""
	}
	if (s.typ == evidence.Kprobe || s.typ == evidence.Kretprobe) && k.kprobesOff() {
		return "all kprobes of this kernel were switched off"
	}
	if _, err := s.link.Info(); err != nil && !errors.Is(err, link.ErrNotSupported) { // perf events before 5.15 have no links
		return err.Error()
	}
	return ""
}

func (s *sharedHook) String() string { return s.key.name }

func (s *sharedHook) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link == nil {
		return nil
	}
	err := errors.Join(s.link.Close(), s.prog.Close())
	s.link, s.prog = nil, nil
	return err
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

func (e *Engine) armHook(h *Handle, s *Site) {
	hook, err := e.takeHook(hookKey{s.Probe.ID, s.Requested, s.Function + s.Event, s.Syscall})
	if err != nil {
		s.Reason, s.Detail = overBudget(err), err.Error()
		return
	}
	if err := e.obj.PutSlots(h.target.Cgroup, []uint32{hook.site}); err != nil {
		e.dropHook(hook)
		s.Reason, s.Detail = overBudget(err), err.Error()
		return
	}
	h.hooks = append(h.hooks, hook)
	hook.arm(e.obj, e.kernelSide)
	hook.mu.Lock()
	defer hook.mu.Unlock()
	if hook.link == nil {
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
	s.refs++
	return s, nil
}

func (e *Engine) dropHook(s *sharedHook) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.refs--; s.refs == 0 {
		s.idleSince = e.cfg.BootTime()
	}
}
