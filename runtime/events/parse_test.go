package events

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"

	"probity/runtime/container"
)

// message is a message as its fields are numbered in api/events/task.proto: a
// string is a string field, a number a varint.
type message struct {
	name   string
	fields map[protowire.Number]any
}

func envelope(t testing.TB, namespace, topic string, m message) *types.Envelope {
	t.Helper()
	var b []byte
	for num, v := range m.fields {
		switch v := v.(type) {
		case string:
			b = protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), v)
		case int:
			b = protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), uint64(v))
		default:
			t.Fatalf("field %d: %T", num, v)
		}
	}
	return &types.Envelope{Namespace: namespace, Topic: topic, Event: &anypb.Any{TypeUrl: "containerd.events." + m.name, Value: b}}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		topic string
		m     message
		want  Event
	}{
		{"/tasks/create", message{"TaskCreate", map[protowire.Number]any{1: "a", 2: "/b", 6: 7}}, Event{"moby", container.Created, "a", "", 7}},
		{"/tasks/start", message{"TaskStart", map[protowire.Number]any{1: "a", 2: 7}}, Event{"moby", container.Started, "a", "", 7}},
		{"/tasks/exit", message{"TaskExit", map[protowire.Number]any{1: "a", 2: "a", 3: 7}}, Event{"moby", container.Stopped, "a", "", 7}},
		{"/tasks/exit", message{"TaskExit", map[protowire.Number]any{1: "a", 2: "x-1", 3: 8}}, Event{"moby", container.Stopped, "a", "x-1", 8}},
		{"/tasks/delete", message{"TaskDelete", map[protowire.Number]any{1: "a", 2: 7}}, Event{"moby", container.Removed, "a", "", 7}},
		{"/tasks/delete", message{"TaskDelete", map[protowire.Number]any{1: "a", 5: "x-1", 2: 8}}, Event{"moby", container.Removed, "a", "x-1", 8}},
	} {
		env := envelope(t, "moby", c.topic, c.m)
		got, err := Parse(env)
		if err != nil || got != c.want {
			t.Errorf("%s %v: %+v, %v; want %+v", c.topic, c.m, got, err, c.want)
		}
		env.Event.TypeUrl = "type.googleapis.com/" + env.Event.TypeUrl
		if got, err := Parse(env); err != nil || got != c.want {
			t.Errorf("%s with a URL: %+v, %v", c.topic, got, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	start := func(id string, pid int) *types.Envelope {
		return envelope(t, "moby", "/tasks/start", message{"TaskStart", map[protowire.Number]any{1: id, 2: pid}})
	}
	in := func(namespace string) *types.Envelope {
		return envelope(t, namespace, "/tasks/start", message{"TaskStart", map[protowire.Number]any{1: "a", 2: 1}})
	}
	torn := start("abc", 1)
	torn.Event.Value = torn.Event.Value[:2]
	for what, c := range map[string]struct {
		env  *types.Envelope
		want error
	}{
		"nothing":           {nil, ErrTopic},
		"another topic":     {envelope(t, "moby", "/tasks/oom", message{"TaskOOM", map[protowire.Number]any{1: "a"}}), ErrTopic},
		"no message":        {&types.Envelope{Namespace: "moby", Topic: "/tasks/start"}, ErrEvent},
		"another's message": {envelope(t, "moby", "/tasks/start", message{"TaskExit", map[protowire.Number]any{1: "a"}}), ErrEvent},
		"torn":              {torn, ErrEvent},
		"wrong wire type":   {envelope(t, "moby", "/tasks/start", message{"TaskStart", map[protowire.Number]any{1: "a", 2: "7"}}), ErrEvent},
		"no namespace":      {in(""), ErrEvent},
		"path as namespace": {in("../moby"), ErrEvent},
		"no id":             {start("", 1), ErrEvent},
		"path as id":        {start("../a", 1), ErrEvent},
		"newline":           {start("a\n", 1), ErrEvent},
		"long namespace":    {in(strings.Repeat("a", 77)), ErrEvent},
		"long id":           {start(strings.Repeat("a", 77), 1), ErrEvent},
		"pid":               {start("a", 4194305), ErrEvent},
		"exec id":           {envelope(t, "moby", "/tasks/exit", message{"TaskExit", map[protowire.Number]any{1: "a", 2: "x/y"}}), ErrEvent},
		"long":              {envelope(t, "moby", "/tasks/create", message{"TaskCreate", map[protowire.Number]any{1: "a", 2: strings.Repeat("b", 1048576)}}), ErrEvent},
	} {
		if e, err := Parse(c.env); !errors.Is(err, c.want) || e != (Event{}) {
			t.Errorf("%s: %+v, %v; want %v", what, e, err, c.want)
		}
	}
	// containerd's own bounds: identifiers of 76 bytes; and the kernel's: pids of 2^22.
	at := start(strings.Repeat("a", 76), 4194304)
	at.Namespace = strings.Repeat("b", 76)
	if _, err := Parse(at); err != nil {
		t.Errorf("at the bounds: %v", err)
	}
}

// What is taken is always what container.Identity takes.
func FuzzParse(f *testing.F) {
	for topic, m := range map[string]message{
		"/tasks/create": message{"TaskCreate", map[protowire.Number]any{1: "a", 2: "/b", 6: 7}},
		"/tasks/start":  message{"TaskStart", map[protowire.Number]any{1: "a", 2: 7}},
		"/tasks/exit":   message{"TaskExit", map[protowire.Number]any{1: "a", 2: "x", 3: 7}},
		"/tasks/delete": message{"TaskDelete", map[protowire.Number]any{1: "a", 2: 7}},
	} {
		env := envelope(f, "moby", topic, m)
		f.Add(env.Namespace, topic, env.Event.TypeUrl, env.Event.Value)
	}
	f.Fuzz(func(t *testing.T, namespace, topic, url string, value []byte) {
		e, err := Parse(&types.Envelope{Namespace: namespace, Topic: topic, Event: &anypb.Any{TypeUrl: url, Value: value}})
		if err != nil {
			if e != (Event{}) {
				t.Fatalf("%+v with %v", e, err)
			}
			return
		}
		n := container.Notice{Source: "events", Kind: e.Kind, Pid: e.Pid, Identity: container.Identity{Runtime: container.Containerd, ID: e.ID}}
		if err := n.Validate(); err != nil || e.Namespace == "" {
			t.Fatalf("%+v: %v", e, err)
		}
	})
}
