package agent

import (
	"errors"
	"fmt"
	"io"

	"probity/bpf/probe"
	"probity/runtime/container"
	"probity/runtime/process"
	"probity/runtime/sandbox"
)

// sandbox says what runs the container's code, if that is not this kernel. What
// could not be looked at is a problem, not a verdict: it is armed as ever.
func (a *Agent) sandbox(l *live, n container.Notice) sandbox.Verdict {
	if n.Pid == 0 {
		return sandbox.Verdict{}
	}
	facts, err := sandbox.Look(n.Pid)
	if !alive(l.init) {
		return sandbox.Verdict{} // it may have been another's pid; the end is told elsewhere
	}
	v := facts.Judge()
	if v.Kind == "" && err != nil && !errors.Is(err, process.ErrGone) && !exiting(n.Pid) && n.Identity.User == 0 { // a user could fill the list
		a.problem("whether a sandbox runs container %s could not be told: %v", n.Identity.ID, err)
	}
	return v
}

// startsNative reports whether the program that the container starts is one
// that this kernel starts as a process; why says why not. When in doubt it is
// not, and nothing is claimed.
func startsNative(tree probe.Tree) (native bool, why string) {
	m, ok, why := probe.Entrypoint(tree)
	if !ok {
		return false, why
	}
	f, err := m.Open()
	if err != nil {
		return false, err.Error()
	}
	defer f.Close()
	head := make([]byte, sandbox.HeadSize)
	k, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return false, fmt.Sprintf("read %.256q: %v", m.Path, err)
	}
	if sandbox.Native(head[:k]) {
		return true, ""
	}
	return false, fmt.Sprintf("the container starts %.256q, which is neither an ELF file nor a script", m.Path)
}
