package agent

import (
	"fmt"
	"slices"
	"time"

	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/runtime/handoff"
	"probity/runtime/handoff/wire"
	"probity/runtime/nri"
	"probity/runtime/oci"
)

// This file is what keeps containers from starting, which only policies do that
// require probes. A start is answered under Agent.mu, by whoever comes first: the
// notice itself, or the source that does not wait for it any longer. Both come to
// the same answer, and the evidence says which.

// notInTime is why a start is refused that waited for too long.
const notInTime = "its required probes were not armed in time"

// required reports whether the probes have one without which a container must not
// start.
func required(probes []policy.Probe) bool { return slices.ContainsFunc(probes, policy.Probe.Required) }

// unmet says which requirement is not met by what was armed, or "". It names no
// path: those are the container's, and may have to be kept out of evidence.
func unmet(probes []policy.Probe, sites []probe.Site, searches []probe.Search) string {
	for _, p := range probes {
		if !p.Required() {
			continue
		}
		at := slices.IndexFunc(searches, func(s probe.Search) bool { return s.ProbeID == p.ID })
		found := false
		for _, s := range sites {
			absent := s.Reason == evidence.FileNotFound || s.Reason == evidence.SymbolNotFound
			switch {
			case s.Probe.ID != p.ID:
			case s.Armed:
				found = true
			case !absent || p.Requires == policy.RequireArmed:
				return fmt.Sprintf("probe %s is not armed: %s", p.ID, s.Reason)
			}
		}
		switch {
		case at < 0 || !searches[at].Complete:
			return fmt.Sprintf("probe %s: the search for what it is about was not complete", p.ID)
		case !found && p.Requires == policy.RequireArmed:
			return fmt.Sprintf("probe %s has nothing to arm", p.ID)
		}
	}
	return ""
}

// obeys reports whether who told of a start keeps the container from starting if it
// is told to. CRI-O only logs what a plugin answers to StartContainer; a user's hook has
// nothing refused.
func obeys(n container.Notice) bool {
	return n.Kind == container.Starting && !ofUsers(n.Source) && (n.Source == oci.Source || n.Identity.Runtime != container.CRIO)
}

// answerLocked is what the container of a run is told that does not wait longer: why
// it is refused, or "". With mu held.
func (a *Agent) answerLocked(l *live) string {
	select {
	case <-l.armed:
	default:
		if l.required && l.released == 0 {
			a.refuseLocked(l, notInTime)
		} else {
			a.releaseLocked(l)
		}
	}
	return l.refused
}

func (a *Agent) answer(l *live) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.answerLocked(l)
}

func (a *Agent) refuseLocked(l *live, why string) {
	if l.refused == "" {
		l.refused = why
		a.log.Warn("a container is refused", "run", l.id, "container", l.container, "reason", why)
	}
}

// armedLocked decides what becomes of a container whose arming is over. released is
// when it was let go, as far as is known. With mu held.
func (a *Agent) armedLocked(l *live, late bool, released int64) {
	switch {
	case !l.required || released != 0:
	case l.unmet != "":
		a.refuseLocked(l, l.unmet)
	case late:
		a.refuseLocked(l, notInTime)
	}
}

// requireLocked is told that a container waits for its requirements of which somebody
// else had told already, perhaps that it runs. With mu held.
func (a *Agent) requireLocked(l *live) {
	l.required = true
	select {
	case <-l.armed:
		if l.unmet != "" {
			a.refuseLocked(l, l.unmet)
		}
	default:
	}
}

// tellFailPolicy has the evidence say what came of the requirements.
func (a *Agent) tellFailPolicy(l *live, probes []policy.Probe, released int64) {
	a.mu.Lock()
	refused, unheard := l.refused, l.unheard
	a.mu.Unlock()
	switch e := l.earlier; {
	case e != nil && e.FailPolicyEnforced != nil:
		a.witness.FailPolicy(l.id, *e.FailPolicyEnforced, e.Refused)
	case required(probes):
		a.witness.FailPolicy(l.id, l.required && l.earlier == nil && released == 0 && !unheard, refused)
	}
}

// unheardLocked is told that nobody knows whether the container heard that it is
// refused: it may run. It reports whether the evidence may say otherwise by now.
// With mu held.
func (a *Agent) unheardLocked(l *live) bool {
	select {
	case <-l.armed:
		l.unheard = l.refused != ""
	default: // until it is armed, it may run unseen
		l.refused = ""
		a.releaseLocked(l)
	}
	return l.unheard
}

// mayRefuse returns why a container is refused of which only this is known, because
// it could not be looked at in time or at all; or "".
func (a *Agent) mayRefuse(id container.Identity, why string) string {
	name := a.inForce().MayRefuse(id)
	if name == "" {
		return ""
	}
	return fmt.Sprintf("%s, and policy %s may require probes of it", why, name)
}

// stranger returns why a container is refused that no policy selects as it seems,
// but may as it is: one that has an image or a name which could not be found out.
func (a *Agent) stranger(n container.Notice) string {
	switch id := n.Identity; {
	case !obeys(n) || id.Image.Name != "" && id.Name != "":
		return ""
	case id.Runtime == container.Runc || id.Runtime == container.Crun: // have neither
		return ""
	}
	return a.mayRefuse(n.Identity, "its image or name could not be found out")
}

// refuseStranger signs that a container was refused of which there is no run.
func (a *Agent) refuseStranger(n container.Notice, why string) string {
	a.log.Warn("a container is refused", "container", n.Identity.ID, "source", n.Source, "reason", why)
	a.witness.SourceMissed(n.Source, n.At, cgroup.BootTime(), "container "+n.Identity.ID+" was refused: "+why)
	return why
}

// unknown is all that is known of a container of which a hook could not tell.
var unknown = container.Identity{Cut: true}

// refusal is an answer to a hook.
func refusal(why string) handoff.Answer { return handoff.Answer{Refuse: why != "", Message: why} }

// refusalOf is an answer to NRI.
func refusalOf(why string) error {
	if why == "" {
		return nil
	}
	return fmt.Errorf("probity: %w: %s", nri.ErrRefused, why)
}

// checkFailPolicy reports what an operator may have forgotten: without an agent it is
// a file of his that says what the hook does.
func (a *Agent) checkFailPolicy() {
	for _, r := range []container.Runtime{container.Podman, container.Docker, container.Runc, container.Crun} {
		p := a.inForce().MayRefuse(container.Identity{Runtime: r, Cut: true})
		if p == "" {
			continue
		}
		if closed, err := wire.Closed(wire.DefaultFailPolicy); err != nil {
			a.problem("policy %s requires probes of containers of %s, which start without them while there is no agent: %v", p, r, err)
		} else if !closed {
			a.problem("policy %s requires probes of containers of %s, which start without them while there is no agent: %s does not say closed", p, r, wire.DefaultFailPolicy)
		}
		return
	}
}

// recentStart is how long after its notice a run may be meant by a source that only
// names a container.
const recentStart = 5 * time.Second
