package main

import (
	"fmt"

	"probity/evidence"
	"probity/tests/runtimes"
)

// judge compares the evidence with what the three containers did.
func judge(s *stage, e runtimes.Evidence, ids summary, digest string) {
	s.say("What it says, beside what happened")
	for _, want := range []struct {
		role, id, probe, symbol string
		state                   evidence.State
		reason                  evidence.NotArmedReason
	}{
		{"caller", ids.Caller, "greet-hello", "greet_hello", evidence.Hit, ""},
		{"idle", ids.Idle, "greet-hello", "greet_hello", evidence.ArmedNoHit, ""},
		{"caller", ids.Caller, "greet-goodbye", "greet_goodbye", evidence.ArmedNoHit, ""},
		{"idle", ids.Idle, "greet-goodbye", "greet_goodbye", evidence.ArmedNoHit, ""},
		{"caller", ids.Caller, "caller", "caller_work", evidence.Hit, ""},
		{"idle", ids.Idle, "caller", "caller_work", evidence.Hit, ""},
		{"caller", ids.Caller, "caller", "caller_never", evidence.ArmedNoHit, ""},
		{"caller", ids.Caller, "greet-missing", "greet_missing", evidence.NotArmed, evidence.SymbolNotFound},
		{"caller", ids.Caller, "exec", "", evidence.Hit, ""},
		{"idle", ids.Idle, "exec", "", evidence.Hit, ""},
	} {
		o := e.Latest(want.id, want.probe, want.symbol)
		switch {
		case o == nil:
			s.Errorf("%s, %s %s: no evidence, want %s", want.role, want.probe, want.symbol, want.state)
		case o.State != want.state || o.Reason != want.reason || !o.Final:
			s.Errorf("%s, %s %s: %s %s, final %v; want %s %s, final", want.role, want.probe, want.symbol, o.State, o.Reason, o.Final, want.state, want.reason)
		case o.ImageDigest != digest:
			s.Errorf("%s, %s %s: image digest %q %s, want %s", want.role, want.probe, want.symbol, o.ImageDigest, o.ImageDigestReason, digest)
		default:
			text := string(o.State)
			if o.Reason != "" {
				text += ": " + string(o.Reason)
			}
			fmt.Fprintf(s.out, "%-10s %-14s %-14s %s\n", want.role, want.probe, want.symbol, text)
		}
	}
	if e.Mentions(ids.Unselected) {
		s.Errorf("the container that no policy selects is in the evidence")
		return
	}
	fmt.Fprintf(s.out, "%-10s is not mentioned: no policy selects it\n", "unselected")
}
