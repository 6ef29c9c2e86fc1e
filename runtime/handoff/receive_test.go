package handoff

import (
	"bytes"
	"testing"

	"probity/runtime/handoff/wire"
)

func FuzzReceive(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("PRB1"))
	f.Add(append(wire.AppendHeader(nil, wire.CreateRuntime, 2), "{}"...))
	f.Add(append(wire.AppendHeader(nil, wire.Poststop, 2), "{}trailing"...))
	f.Add(wire.AppendHeader(nil, wire.CreateRuntime, wire.TooLong))
	f.Add([]byte("PRB1c\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		stage, body, err := receive(bytes.NewReader(in))
		if err != nil {
			if body != nil {
				t.Fatalf("a body with %v", err)
			}
			return
		}
		// What was accepted is what the other half sends for it.
		want := append(wire.AppendHeader(nil, stage, len(body)), body...)
		if len(body) == 0 || len(body) > wire.MaxBody || !bytes.HasPrefix(in, want) {
			t.Fatalf("%d bytes of stage %v from %x", len(body), stage, in)
		}
	})
}
