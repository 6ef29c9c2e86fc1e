// Command probity-hook is the OCI hook: an OCI runtime starts it once for each
// container, it hands the container's state to the agent and waits for leave
// to go on.
//
// In: a stage as the first argument, the state on stdin, at most 1 MiB of it,
// unparsed. Out: the exit status, which is 0 but for two cases, both at
// createRuntime and both for root only:
//
//   - an agent that runs as root (or as the hook's own user) answers "refuse",
//     which it does under a closed policy: 1, and stderr says why;
//   - no such agent answers in time, or the hook cannot ask it, and the file
//     /etc/probity/fail-policy says "closed" (see wire.Closed): 1, and stderr says so.
//
// So no failure of ours fails a container unless an operator wrote that file. The
// hook is silent when there is no agent, or when the caller may not talk to it
// (rootless containers), and the policy is open. It never runs longer than two
// seconds; who reads its stderr, or does not, changes nothing.
//
// It trusts root, and whoever may write the files that it is told of. It is not a
// control: a runtime that is told not to run hooks runs none.
package main

import (
	"errors"
	"io"
	"os"
	"time"

	"probity/runtime/handoff/wire"
)

const (
	connect  = 200 * time.Millisecond
	answer   = 1500 * time.Millisecond
	patience = 1800 * time.Millisecond // until there must be a verdict: stdin has no deadline of its own
	lifetime = 2 * time.Second         // of the whole process: nor has stderr
)

const usage = "usage: probity-hook createRuntime|poststop [--socket PATH] [--fail-policy PATH]"

func main() {
	end := time.AfterFunc(lifetime, func() { os.Exit(0) }) // not even a file could be read
	o, ok := parse(os.Args[1:])
	v := verdict{message: usage}
	if ok {
		asked := make(chan verdict, 1)
		go func() { asked <- o.ask(os.Stdin) }()
		select {
		case v = <-asked:
		case <-time.After(patience):
			v.message = "deadline passed"
		}
	}
	code, message := o.settle(v)
	end.Stop()
	if message != "" {
		time.AfterFunc(lifetime-patience, func() { os.Exit(code) }) // nobody may read it
		say(message)
	}
	os.Exit(code)
}

// options are what the command line says.
type options struct {
	stage      wire.Stage
	socket     string
	failPolicy string
}

// parse reads the command line. What it returns holds the stage, and so whether
// the container waits, also if the rest is wrong.
func parse(args []string) (o options, ok bool) {
	o = options{socket: wire.DefaultPath, failPolicy: wire.DefaultFailPolicy}
	if len(args) == 0 {
		return o, false
	}
	o.stage, ok = wire.ParseStage(args[0])
	for args = args[1:]; len(args) > 0; args = args[2:] {
		switch {
		case len(args) == 1:
			return o, false
		case args[0] == "--socket":
			o.socket = args[1]
		case args[0] == "--fail-policy":
			o.failPolicy = args[1]
		default:
			return o, false
		}
	}
	return o, ok
}

// ask puts the question.
func (o options) ask(stdin io.Reader) verdict {
	// One byte more than is taken, to see that there is more.
	state, err := io.ReadAll(io.LimitReader(stdin, wire.MaxBody+1))
	if err != nil {
		return verdict{message: "read the container's state: " + err.Error()}
	}
	a, err := wire.Ask(wire.Question{Path: o.socket, Stage: o.stage, State: state, Connect: connect, Answer: answer})
	switch {
	case errors.Is(err, wire.ErrAbsent):
		return verdict{}
	case err != nil:
		return verdict{message: err.Error()}
	case a.Uid != 0 && a.Uid != uint32(os.Geteuid()) && machineRoot():
		return verdict{message: "who listens on " + o.socket + " is neither root nor this user"}
	}
	message := a.Message
	if len(state) > wire.MaxBody {
		message = join("read the container's state: longer than 1 MiB", message)
	}
	return verdict{true, a.Verdict == wire.Refuse, message}
}
