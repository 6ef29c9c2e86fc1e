package agent

import (
	"testing"

	"probity/bpf"
	"probity/bpf/probe"
	"probity/evidence"
)

// A line's counter is that of its file, and where the record of the links has another
// of its names, the only one that it can be.
func TestCounterOf(t *testing.T) {
	count := func(n uint64) bpf.Counter { return bpf.Counter{Count: n} }
	counters := []probe.KeptCounter{
		{Probe: "p", Path: "/lib/a", Offset: 16, Counter: count(1)},
		{Probe: "p", Path: "/lib/b", Offset: 16, Counter: count(2)},
		{Probe: "p", Path: "/lib/b", Offset: 16, Return: true, Counter: count(3)},
		{Probe: "q", Path: "/lib/a", Offset: 16, Counter: count(4)},
		{Probe: "p", Path: "/lib/a", Offset: 32, Counter: count(5)},
	}
	offset := func(n evidence.Uint64) *evidence.Uint64 { return &n }
	for _, c := range []struct {
		line evidence.Observation
		want int
	}{
		{evidence.Observation{ProbeID: "p", Path: "/lib/b", Offset: offset(16), ProbeType: evidence.Uprobe}, 1},
		{evidence.Observation{ProbeID: "p", Path: "/lib/b", Offset: offset(16), ProbeType: evidence.Uretprobe}, 2},
		{evidence.Observation{ProbeID: "q", Path: "/usr/lib/a", Offset: offset(16), ProbeType: evidence.USDT}, 3},
		{evidence.Observation{ProbeID: "p", Path: "/usr/lib/a", Offset: offset(16), ProbeType: evidence.Uprobe}, -1}, // of two
		{evidence.Observation{ProbeID: "p", Path: "/lib/a", Offset: offset(48), ProbeType: evidence.Uprobe}, -1},
		{evidence.Observation{ProbeID: "p", Path: "/lib/a", ProbeType: evidence.Uprobe}, -1},
	} {
		if got := counterOf(counters, &c.line); got != c.want {
			t.Errorf("%+v: %d, want %d", c.line, got, c.want)
		}
	}
}
