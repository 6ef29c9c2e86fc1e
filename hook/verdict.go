package main

import (
	"os"
	"syscall"
	"time"

	"probity/runtime/handoff/wire"
)

// verdict is what came of asking. The zero value is no answer.
type verdict struct {
	answered bool // by the agent
	refuse   bool
	message  string
}

// unanswered is what an operator wants done without an answer.
type unanswered struct {
	refuse bool
	able   bool   // whether this hook may refuse at all
	why    string // of refuse, or what is wrong with what the operator wrote
}

// unanswered finds that out.
func (o options) unanswered() (u unanswered) {
	if o.stage != wire.CreateRuntime || !machineRoot() {
		return u
	}
	stuck := time.AfterFunc(lifetime, func() { os.Exit(0) }) // on a file system that does not answer
	defer stuck.Stop()
	closed, err := wire.Closed(o.failPolicy)
	switch {
	case closed:
		return unanswered{true, true, "refused: no agent answered, and " + o.failPolicy + " says closed"}
	case err != nil:
		u.why = err.Error()
	}
	u.able = true
	return u
}

// settle returns the exit status, and what there is to say about it.
func (v verdict) settle(u unanswered) (code int, message string) {
	switch {
	case v.answered && v.refuse && u.able:
		return 1, "refused: " + v.message
	case v.answered:
		return 0, v.message
	case u.refuse:
		code = 1
	}
	return code, join(u.why, v.message)
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + ": " + b
}

// say writes to stderr without package os, which ends the program by SIGPIPE when
// nobody can read it any more, and a hook that ends by a signal has failed.
func say(s string) {
	b := []byte("probity-hook: " + s + "\n")
	for len(b) > 0 {
		n, err := syscall.Write(2, b)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		b = b[n:]
	}
}

// machineRoot reports whether this is the machine's root. Root of a user namespace,
// as a user's own podman has one, is not: no container of his is ever refused.
func machineRoot() bool {
	if os.Geteuid() != 0 {
		return false
	}
	return string(wire.ReadStart("/proc/self/uid_map", 64)) == "         0          0 4294967295\n"
}
