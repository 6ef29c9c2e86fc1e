package probe

import (
	"errors"
	"slices"
)

// nest is an armed container among the others: containers may run within one
// another, and be armed in any order.
type nest struct {
	around []uint64 // Target.Around
	outer  uint64   // the first of them that is armed; 0: none is
}

// enter tells the kernel which armed container a new one is within, and which
// ones are within it.
func (e *Engine) enter(t Target) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := &nest{around: t.Around}
	if i := slices.IndexFunc(n.around, func(id uint64) bool { return e.nests[id] != nil }); i >= 0 {
		n.outer = n.around[i]
	}
	e.nests[t.Cgroup] = n
	errs := []error{e.obj.SetOuter(t.Cgroup, n.outer)}
	for id, in := range e.nests {
		at := slices.Index(in.around, t.Cgroup)
		if at < 0 || in.outer != 0 && slices.Index(in.around, in.outer) < at {
			continue
		}
		in.outer = t.Cgroup
		errs = append(errs, e.obj.SetOuter(id, in.outer))
	}
	return errors.Join(errs...)
}

// exit takes a container out: what is within it is within the one around it.
func (e *Engine) exit(cgroup uint64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.nests[cgroup]
	if n == nil {
		return nil
	}
	delete(e.nests, cgroup)
	var errs []error
	for id, in := range e.nests {
		if in.outer == cgroup {
			in.outer = n.outer
			errs = append(errs, e.obj.SetOuter(id, in.outer))
		}
	}
	return errors.Join(errs...)
}
