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
	patience = 1750 * time.Millisecond // until there must be a verdict, but for a moment
	lifetime = 2 * time.Second         // of the whole process
)

const usage = "usage: probity-hook createRuntime|poststop [--socket PATH] [--fail-policy PATH]"

// main asks, and decides what it means. Each step that may wait for somebody else
// has a bound of its own. There is no timer over all of them: when a process that was
// not let run goes on, what it was told and the end of its time are there at once, and
// it does what it was told.
func main() {
	begin := time.Now()
	o, ok := parse(os.Args[1:])
	d := o.unanswered()
	v := verdict{message: usage}
	if ok {
		v = o.ask(os.Stdin, begin.Add(patience))
	}
	code, message := v.settle(d)
	if message != "" {
		time.AfterFunc(lifetime-patience-moment, func() { os.Exit(code) }) // nobody may read it
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

// ask puts the question, and waits for the answer until end.
func (o options) ask(stdin io.Reader, end time.Time) verdict {
	state, err := readBefore(end, stdin)
	if err != nil {
		return verdict{message: "read the container's state: " + err.Error()}
	}
	left := max(0, time.Until(end)) // asked at least once, whatever the time
	a, err := wire.Ask(wire.Question{Path: o.socket, Stage: o.stage, State: state, Connect: min(connect, left), Answer: min(answer, left)})
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

// readBefore reads to the end, but one byte more than is sent at most, which shows
// that there is more. A pipe has no deadline of its own.
func readBefore(end time.Time, r io.Reader) (state []byte, err error) {
	done := make(chan struct{})
	go func() {
		state, err = io.ReadAll(io.LimitReader(r, wire.MaxBody+1))
		close(done)
	}()
	for range 2 { // once more: it may just not have been let run
		select {
		case <-done:
			return state, err
		case <-time.After(time.Until(end)):
			end = end.Add(moment)
		}
	}
	return nil, wire.ErrTimeout
}

// moment is how long something may take that waits for nobody.
const moment = 50 * time.Millisecond
