package evidence

import (
	"strings"
	"testing"
	"time"
)

func TestSpell(t *testing.T) {
	names := []string{
		"/usr/lib/libz.so", "/a\nb", "/\u2028", "/\xff", "/\xfe", "/\uFFFD", "/\uFFFD\uFFFD", "/\xff\xff",
		"/" + strings.Repeat("\x01", 4094), "/" + strings.Repeat("\x01", 4093) + "\x02", "/" + strings.Repeat("\xff", 4094), "/" + strings.Repeat("a", 4094),
		"/" + strings.Repeat("\x01", 1300), "/" + strings.Repeat("\u00e9", 2047),
		strings.Repeat("s", 5000), strings.Repeat("s", 5000) + "t",
	}
	names = append(names, Spell(names[3]), Spell(names[8])) // a file may be called so, too
	was := map[string]string{}
	for _, n := range names {
		s := Spell(n)
		if other, twice := was[s]; twice {
			t.Errorf("%.60q and %.60q are both %.60q", other, n, s)
		}
		was[s] = n
		if line := appendText(nil, s); len(line) > maxSpelled+2 {
			t.Errorf("%.60q takes %d bytes", n, len(line))
		}
		if err := optional("path", s, MaxPath); err != nil {
			t.Errorf("%.60q: %v", n, err)
		}
	}
	for _, i := range []int{0, 1, 2, 11, 12, 13} {
		if Spell(names[i]) != names[i] {
			t.Errorf("%.60q is %.60q", names[i], Spell(names[i]))
		}
	}
}

// Whatever names a container chose, a hit has a line: else its author could make
// them so long that all lines before it fit, and it does not.
func TestHitIsWritable(t *testing.T) {
	at := TimeOf(time.Unix(1700000000, 1))
	worst := func(n int) string { return strings.Repeat("\x01", n) }
	count, offset := Uint64(1<<63), Uint64(1<<63)
	o := &Observation{
		State: Hit, ProbeType: Uretprobe, RequestedProbeType: Uretprobe, RunID: strings.Repeat("a", 32), ContainerID: strings.Repeat("c", 64), Runtime: "containerd",
		ImageDigestReason: worst(512), ProbeID: strings.Repeat("p", 64), Symbol: Spell(worst(4096)), Offset: &offset, Path: Spell("/" + worst(4094)),
		BuildID: strings.Repeat("b", 128), Origin: "upper", SymbolKind: "inlined", Inline: "unknown", Demangled: worst(1024), Wanted: strings.Repeat("w", 512),
		InlinedIn: worst(4096), Implements: worst(4096), Detail: worst(512), Count: &count, FirstAt: at, LastAt: at, From: at, To: at,
		Process:    &Process{Pid: 1 << 30, Comm: worst(15), Path: worst(255), Session: SessionExec},
		Confidence: Confidence{Value: 0.123456789, Version: "3", Inputs: Inputs{"uretprobe", "cgroup", "inlined", "some"}},
	}
	for _, r := range GapReasons {
		o.Gaps = append(o.Gaps, SiteGap{Reason: r, From: at, To: at, DurationNs: 1 << 63, Count: Loss{N: 1 << 63}})
	}
	Cut(o)
	b, err := Encode(o)
	if err == nil {
		err = Validate(o)
	}
	if err != nil {
		t.Fatalf("%d bytes: %v", len(b), err)
	}
	if o.Process == nil || o.Symbol == "" || o.Path == "" {
		t.Errorf("%+v", o)
	}
}
