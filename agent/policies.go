package agent

import (
	"slices"
	"time"

	"probity/bpf/policy"
	"probity/evidence/redact"
	"probity/runtime/container"
)

// policies are policies in force, with what follows from them. They never change: a
// reload puts others in their place, for containers that start from then on. A run keeps
// those that it was armed under for as long as this agent lives.
type policies struct {
	*policy.Set
	key    []byte           // of the redactors' tokens; nil if no rule is keyed
	redact *redact.Redactor // of what is of no run, or of one that is not known
	since  time.Time
}

// put puts policies into force. The spool is open: the key of tokens is in its state
// directory.
func (a *Agent) put(set *policy.Set) error {
	p := &policies{Set: set, since: time.Now()}
	all := set.RedactAll()
	if slices.ContainsFunc(all, func(r policy.Rule) bool { return r.Keyed }) {
		var err error
		if p.key, err = redact.Key(a.cfg.State); err != nil {
			return err
		}
	}
	p.redact = redact.New(all, p.key, "")
	if a.engine != nil { // not beside the first starts: they would wait for it
		a.engine.Prepare(setsOf(set))
	}
	a.policies.Store(p)
	a.mu.Lock()
	clear(a.known) // other files of the same images may be wanted
	a.mu.Unlock()
	if len(set.Policies) == 0 {
		a.problem("no policy: nothing is probed (%s has no file *.yaml)", a.cfg.Policies)
	}
	a.checkFailPolicy()
	a.checkHook(set)
	return nil
}

// inForce are the policies for what begins now.
func (a *Agent) inForce() *policies { return a.policies.Load() }

// policiesOf are the policies for a container that ran before: those in force, unless its
// counters were kept. They are those of the policies that the agent began with, whatever
// was reloaded before it was told of the container.
func (a *Agent) policiesOf(id container.Identity) *policies {
	a.mu.Lock()
	defer a.mu.Unlock()
	if x := a.left[id.RunID()]; x != nil && x.kept {
		return a.first
	}
	return a.inForce()
}

// redactor is for lines that are of no run.
func (a *Agent) redactor() *redact.Redactor { return a.inForce().redact }

// Repoliced says which policies are in force, by their digests.
type Repoliced struct {
	Before   string `json:"before"`
	After    string `json:"after"`
	Policies int    `json:"policies"` // how many now
}

// setsOf lists the sets that any policy wants.
func setsOf(set *policy.Set) (sets []string) {
	for _, p := range set.Policies {
		for _, pr := range p.Probes {
			if pr.Set != "" && !slices.Contains(sets, pr.Set) {
				sets = append(sets, pr.Set)
			}
		}
	}
	return sets
}
