// Command probity-hook is the OCI hook: an OCI runtime starts it once for each
// container, it hands the container's state to the agent and waits for leave
// to go on.
//
// In: a stage as the first argument, the state on stdin, at most 1 MiB of it,
// unparsed. Out: the exit status. It is 0 whatever goes wrong here or in the
// agent, so that no failure of ours fails a container; it is 1 only if the
// agent answers "refuse" at createRuntime, which it does only under a closed
// policy, and then stderr says why. It is silent when there is no agent, or
// when the caller may not talk to it (rootless containers). It never runs
// longer than two seconds.
//
// It trusts whoever listens on the socket's path. It is not a control: a
// runtime that is told not to run hooks runs none.
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
	lifetime = 2 * time.Second // of the whole process: stdin has no deadline of its own
)

const usage = "usage: probity-hook createRuntime|poststop [--socket PATH]"

func main() {
	time.AfterFunc(lifetime, func() { os.Exit(0) })
	os.Exit(run(os.Args[1:], os.Stdin, os.Stderr))
}

// run returns the exit status.
func run(args []string, stdin io.Reader, stderr io.Writer) int {
	path, stage, ok := parse(args)
	if !ok {
		say(stderr, usage)
		return 0
	}
	// One byte more than is taken, to see that there is more.
	state, err := io.ReadAll(io.LimitReader(stdin, wire.MaxBody+1))
	if err != nil {
		say(stderr, "read the container's state: "+err.Error())
		return 0
	}
	if len(state) > wire.MaxBody {
		say(stderr, "read the container's state: longer than 1 MiB")
	}
	a, err := wire.Ask(wire.Question{Path: path, Stage: stage, State: state, Connect: connect, Answer: answer})
	switch {
	case errors.Is(err, wire.ErrAbsent):
		return 0
	case err != nil:
		say(stderr, err.Error())
		return 0
	case a.Verdict == wire.Refuse && stage == wire.CreateRuntime:
		say(stderr, "refused: "+a.Message)
		return 1
	case a.Message != "":
		say(stderr, a.Message)
	}
	return 0
}

func parse(args []string) (path string, stage wire.Stage, ok bool) {
	path = wire.DefaultPath
	if len(args) != 1 && !(len(args) == 3 && args[1] == "--socket") {
		return "", 0, false
	}
	if len(args) == 3 {
		path = args[2]
	}
	stage, ok = wire.ParseStage(args[0])
	return path, stage, ok
}

func say(w io.Writer, s string) { io.WriteString(w, "probity-hook: "+s+"\n") }
