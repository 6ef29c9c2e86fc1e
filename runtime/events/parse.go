package events

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/encoding/protowire"

	"probity/runtime/container"
)

const (
	maxName    = 76      // bytes of an id or a namespace (containerd, pkg/identifiers)
	maxMessage = 1 << 20 // bytes of one event; the longest part is TaskCreate's mounts
	maxPid     = 1 << 22 // PID_MAX_LIMIT on 64-bit kernels
)

// name is what containerd takes for an id or a namespace (pkg/identifiers).
var name = regexp.MustCompile(`^[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*$`)

// Event is one task event.
type Event struct {
	Namespace string
	// Kind is Created, when the task was there and nobody had asked it to run yet,
	// Started, Stopped or Removed.
	Kind container.Kind
	ID   string
	// Exec is the exec session whose end it is, or "" for the task's own.
	Exec string
	Pid  int
}

var (
	// ErrEvent is wrapped by what is returned of an event that is not as it must be.
	ErrEvent = errors.New("not a task event that can be used")
	// ErrTopic: the event is of a topic that Filter leaves out.
	ErrTopic = errors.New("another topic")
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrEvent}, args...)...)
}

// layout says which fields of a message are read (api/events/task.proto). They are
// read here, since containerd's package of these messages needs a module more.
type layout struct {
	kind          container.Kind
	message       string
	id, exec, pid protowire.Number
}

var layouts = map[string]layout{
	"/tasks/create": {container.Created, "containerd.events.TaskCreate", 1, 0, 6},
	"/tasks/start":  {container.Started, "containerd.events.TaskStart", 1, 0, 2},
	"/tasks/exit":   {container.Stopped, "containerd.events.TaskExit", 1, 2, 3},
	"/tasks/delete": {container.Removed, "containerd.events.TaskDelete", 1, 5, 2},
}

// Parse reads an event. What it returns without error is within the bounds.
func Parse(env *types.Envelope) (Event, error) {
	l, ok := layouts[env.GetTopic()]
	if !ok {
		return Event{}, fmt.Errorf("%w: %.64q", ErrTopic, env.GetTopic())
	}
	// containerd writes the message's bare name, where others write a URL before it.
	if got := env.GetEvent().GetTypeUrl(); got != l.message && got != "type.googleapis.com/"+l.message {
		return Event{}, invalid("topic %s with a %.80q", env.GetTopic(), got)
	}
	e, err := l.read(env.GetEvent().GetValue())
	if err != nil {
		return Event{}, err
	}
	e.Namespace = env.GetNamespace()
	if !valid(e.Namespace) {
		return Event{}, invalid("namespace %.80q", e.Namespace)
	}
	return e, nil
}

func (l layout) read(b []byte) (Event, error) {
	if len(b) > maxMessage {
		return Event{}, invalid("%d bytes, at most %d are taken", len(b), maxMessage)
	}
	var id, exec string
	var pid uint64
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return Event{}, invalid("%w", protowire.ParseError(n))
		}
		b = b[n:]
		switch {
		case num == l.id && typ == protowire.BytesType:
			id, n = protowire.ConsumeString(b)
		case num == l.exec && typ == protowire.BytesType:
			exec, n = protowire.ConsumeString(b)
		case num == l.pid && typ == protowire.VarintType:
			pid, n = protowire.ConsumeVarint(b)
		case num == l.id || num == l.exec || num == l.pid:
			return Event{}, invalid("field %d is of wire type %d", num, typ)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return Event{}, invalid("%w", protowire.ParseError(n))
		}
		b = b[n:]
	}
	if exec == id { // the task's own end has its id again, or none
		exec = ""
	}
	switch {
	case !valid(id):
		return Event{}, invalid("container id %.80q", id)
	case exec != "" && !valid(exec):
		return Event{}, invalid("exec id %.80q", exec)
	case pid > maxPid:
		return Event{}, invalid("pid %d: out of range", pid)
	}
	return Event{Kind: l.kind, ID: id, Exec: exec, Pid: int(pid)}, nil
}

func valid(s string) bool { return len(s) <= maxName && name.MatchString(s) }
