package runtimes

import (
	"fmt"
	"strings"
)

// FailPolicy is docs/fail-policy.json: what became of containers under open and
// closed policies, runtime by runtime. TestFailPolicy makes it, and the table in
// docs/fail-policy.md is made of it.
type FailPolicy struct {
	Kernel   string            `json:"kernel"`
	Versions map[string]string `json:"versions"`
	Rows     []FailPolicyRow   `json:"rows"`
}

// FailPolicyRow is one container.
type FailPolicyRow struct {
	Runtime string `json:"runtime"`
	Agent   string `json:"agent"`           // one of the states of failPolicyStates
	Setup   string `json:"setup,omitempty"` // what an operator did besides; "" is nothing
	// Policy is "open", "closed", or "closed, not met": closed, and the container lacks
	// what a probe requires.
	Policy string `json:"policy"`
	// Started says whether the container's own program ran.
	Started bool `json:"started"`
	// Enforced is failPolicyEnforced of the run's last coverage line, or "no run"; ""
	// is a run without it.
	Enforced string `json:"enforced,omitempty"`
	Refused  string `json:"refused,omitempty"`
	// Gaps are the reasons of the run's gaps, or, where there is no run, of those of
	// the source and the node that last while it was started.
	Gaps []string `json:"gaps,omitempty"`
}

// failPolicyStates are the states of an agent, in the order of the table.
var failPolicyStates = []struct{ name, text string }{
	{"alive", "answers in time"},
	{"slow", "is alive, and past its deadline"},
	{"stopped", "hangs (SIGSTOP)"},
	{"dead", "is dead (SIGKILL)"},
}

// Table is the table of docs/fail-policy.md.
func (f FailPolicy) Table() string {
	var b strings.Builder
	b.WriteString("| runtime | the agent | policy | the container | evidence |\n|---|---|---|---|---|\n")
	for _, r := range f.Rows {
		agent := r.Agent
		for _, s := range failPolicyStates {
			if s.name == r.Agent {
				agent = s.text
			}
		}
		if r.Setup != "" {
			agent += "; " + r.Setup
		}
		became := "starts"
		if !r.Started {
			became = "**is refused**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", r.Runtime, agent, r.Policy, became, r.evidence())
	}
	return b.String()
}

func (r FailPolicyRow) evidence() string {
	var says []string
	switch r.Enforced {
	case "":
	case "no run":
		says = append(says, "no run")
	default:
		says = append(says, "`failPolicyEnforced: "+r.Enforced+"`")
	}
	if r.Refused != "" {
		says = append(says, "`refused: "+r.Refused+"`")
	}
	for _, g := range r.Gaps {
		says = append(says, "gap `"+g+"`")
	}
	if len(says) == 0 {
		return "no gap"
	}
	return strings.Join(says, ", ")
}

// caption says on what the table was made.
func (f FailPolicy) caption() string {
	return fmt.Sprintf("Linux %s, containerd %s, podman %s, runc %s, CRI-O %s.\n\n", f.Kernel, f.Versions["containerd (CRI)"], f.Versions["podman"], f.Versions["runc"], f.Versions["CRI-O (NRI)"])
}
