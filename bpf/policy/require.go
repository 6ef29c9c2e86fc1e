package policy

import (
	"slices"

	"go.yaml.in/yaml/v4"

	"probity/runtime/container"
)

// The fail policies: what becomes of a container that a policy selects when its
// probes could not be armed in time.
const (
	FailOpen   = "open"   // it starts, and what it did unseen is signed
	FailClosed = "closed" // it does not start
)

// FailPolicies lists them both.
var FailPolicies = []string{FailOpen, FailClosed}

// What a probe requires before a container may start. A probe is armed in a
// container if the search for what it is about was complete and found something,
// and each site that was found is proven armed before the container's first
// instruction.
const (
	RequireNothing        = "nothing"
	RequireArmedIfPresent = "armedIfPresent" // armed, or a complete search found nothing to arm
	RequireArmed          = "armed"
)

// Requirements lists them all.
var Requirements = []string{RequireNothing, RequireArmedIfPresent, RequireArmed}

// Required reports whether a container that the probe is for must not start
// unless its requirement is met.
func (p Probe) Required() bool {
	return p.Requires == RequireArmed || p.Requires == RequireArmedIfPresent
}

// Closed reports whether some probe of the policy is required.
func (p Policy) Closed() bool { return slices.ContainsFunc(p.Probes, Probe.Required) }

// MayRefuse returns the name of a policy that requires probes and selects the
// container as far as is known of it, or "". A runtime, name or image that is empty
// may be any, so a selector that asks for one is taken to match; so it is with
// labels and annotations if the identity is cut. Without a pod it has none.
func (s *Set) MayRefuse(id container.Identity) string {
	for _, p := range s.Policies {
		sel := p.Select
		if id.Image.Name == "" {
			sel.Images = nil
		}
		if id.Name == "" {
			sel.Containers = nil
		}
		if id.Runtime == "" {
			sel.Runtimes = nil
		}
		if p.Closed() && sel.Match(id) {
			return p.Name
		}
	}
	return ""
}

// requirements fills in what the probes require that do not say it themselves.
func (w *walk) requirements(p *Policy, n *yaml.Node) {
	for i := range p.Probes {
		if pr := &p.Probes[i]; pr.Requires == "" && p.FailPolicy == FailClosed {
			pr.Requires = RequireArmed
		}
	}
	if p.FailPolicy == FailClosed && !p.Closed() {
		w.add(at(n), "failPolicy: closed, and no probe is required: it would not keep anything from starting")
	}
}
