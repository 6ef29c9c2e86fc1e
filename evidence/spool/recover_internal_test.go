package spool

import (
	"runtime"
	"testing"
	"unsafe"
	"weak"

	"probity/evidence"
)

// What is kept of a run, whether it is open or has ended, does not keep the chunk
// that its line was read from: a spool has more of them than there is memory.
func TestRecoveryLetsGoOfChunks(t *testing.T) {
	for _, final := range []bool{false, true} {
		b, err := evidence.Encode(&evidence.Coverage{
			RunID: "00000000000000000000000000000001", ContainerID: "c", Runtime: "podman", ImageDigestReason: "no image", BootID: "b",
			Attribution: "cgroup", Source: "hook", From: evidence.Time{}, Final: final,
		})
		if err != nil {
			t.Fatal(err)
		}
		r := newRecovery()
		chunk := weak.Make(&b[0])
		l, err := evidence.Decode(unsafe.String(&b[0], len(b)))
		if err != nil {
			t.Fatal(err)
		}
		r.see(evidence.Header{Chunk: "n"}, l)
		r.letGo()
		b, l = nil, nil
		runtime.GC()
		if chunk.Value() != nil {
			t.Errorf("final %v: the chunk is still in memory", final)
		}
		if got := r.runs["00000000000000000000000000000001"]; got == nil || got.final != final || !final && got.Coverage.ContainerID != "c" {
			t.Errorf("%+v", got)
		}
	}
}
