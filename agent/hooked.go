package agent

import (
	"os"
	"slices"
	"time"

	"probity/bpf/policy"
	"probity/runtime/container"
	"probity/runtime/handoff/wire"
	"probity/runtime/nri"
)

// CRI-O only logs what a plugin answers to StartContainer, and fails a container whose
// createRuntime hook fails. So a container of its that a closed policy may refuse gets
// the hook. That is told what the kernel knows of the container; who it is CRI-O says
// when it is about to make it, and the agent keeps that until the hook asks.

// maxHooked bounds the containers that are remembered until they are removed; of more, the
// oldest are forgotten.
const maxHooked = 1024

// checkHook reports a policy that may refuse containers of CRI-O where they cannot be
// given the hook.
func (a *Agent) checkHook(set *policy.Set) {
	why := a.cannotHook()
	if why == "" || len(a.cfg.NRISockets) == 0 { // it could not tell us of them in any case
		return
	}
	for _, p := range set.Policies { // whatever else it selects by: nothing else is known yet
		if r := p.Select.Runtimes; p.Closed() && (len(r) == 0 || slices.Contains(r, container.CRIO)) {
			a.problem("policy %s requires probes, and containers of CRI-O start without them: they cannot be given the hook: %s", p.Name, why)
			return
		}
	}
}

// cannotHook says why a hook could not be run, or not be answered; or "".
func (a *Agent) cannotHook() string {
	if a.cfg.HookSocket == "none" {
		return "hookSocket is none"
	}
	switch st, err := os.Stat(a.cfg.HookProgram); {
	case err != nil:
		return err.Error()
	case !st.Mode().IsRegular() || st.Mode()&0o111 == 0:
		return a.cfg.HookProgram + " is no program"
	}
	return ""
}

// hooked is a container that was given a hook.
type hooked struct {
	at       int64
	identity container.Identity
}

// hookFor returns the hook for a container that CRI-O is about to make, or nil.
func (a *Agent) hookFor(n container.Notice) *nri.Hook {
	if a.inForce().MayRefuse(n.Identity) == "" || a.cannotHook() != "" {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	forgetOld(a.hooked, maxHooked, func(h hooked) int64 { return h.at }) // its hook has asked, or never will
	// Past the bound the hook asks about somebody unknown, whom a closed policy refuses.
	if len(a.hooked) < maxHooked {
		a.hooked[n.Identity.ID] = hooked{n.At, n.Identity}
	}
	return &nri.Hook{Path: a.cfg.HookProgram, Args: []string{"probity-hook", wire.CreateRuntime.String(), "--socket", a.cfg.HookSocket}, Timeout: hookTimeout}
}

// hookTimeout is when the runtime kills a hook, and fails the container: long after it has
// ended by itself, which takes two seconds, on a machine where nothing gets to run.
const hookTimeout = 30 * time.Second

// unhook forgets a container that is gone.
func (a *Agent) unhook(id string) {
	a.mu.Lock()
	delete(a.hooked, id)
	a.mu.Unlock()
}

// who fills in who a container of CRI-O is of which a hook tells.
func (a *Agent) who(id *container.Identity) {
	if id.Runtime != container.CRIO {
		return
	}
	a.mu.Lock()
	h, ok := a.hooked[id.ID]
	a.mu.Unlock()
	if !ok {
		return
	}
	path, cgroup := id.CgroupPath, id.CgroupID
	*id = h.identity
	id.CgroupPath, id.CgroupID = path, cgroup
}
