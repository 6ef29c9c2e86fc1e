package main

import (
	"os"
	"syscall"

	"probity/runtime/handoff/wire"
)

// verdict is what came of asking. The zero value is no answer.
type verdict struct {
	answered bool // by the agent
	refuse   bool
	message  string
}

// settle returns the exit status, and what there is to say about it.
func (o options) settle(v verdict) (code int, message string) {
	message = v.message
	if o.stage == wire.CreateRuntime && machineRoot() {
		switch {
		case v.refuse:
			code, message = 1, "refused: "+v.message
		case !v.answered:
			closed, err := wire.Closed(o.failPolicy)
			if closed {
				code, message = 1, join("refused: no agent answered, and "+o.failPolicy+" says closed", message)
			} else if err != nil {
				message = join(err.Error(), message)
			}
		}
	}
	return code, message
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
