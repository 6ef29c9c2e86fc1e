package evidence_test

import (
	"strings"
	"testing"

	"probity/evidence"
)

// Whatever a container chose to be long: the line can be written, what was left
// out is counted, and what other lines share is not changed.
func TestCut(t *testing.T) {
	c := vectors[1].header("SHA256:x").Clock
	for name, text := range map[string]string{"plain": "a", "escaped": "\x01", "wide": "\U0010ffff", "not UTF-8": "\xff"} {
		for _, n := range []int{0, 1, 100, 500, 513, 5000} {
			for _, many := range []int{0, 1, 63, 64, 65, 300} {
				o := vectorLines2(c)[1].(*evidence.Observation)
				o.InlinedAtMore = 7
				long := strings.Repeat(text, n/len(text))
				o.Demangled, o.InlinedAt, o.Stack = long, nil, &evidence.Stack{Frames: []evidence.Frame{}, More: 2, Truncated: true, Reason: "x"}
				off := evidence.Uint64(9)
				for range many {
					o.InlinedAt = append(o.InlinedAt, evidence.Instance{Offset: 1, In: long})
					o.Stack.Frames = append(o.Stack.Frames, evidence.Frame{Reason: "noBuildId", Offset: &off, Path: "/" + long, Symbol: long})
				}
				instances, stack := o.InlinedAt, o.Stack
				evidence.Cut(o)
				if _, err := evidence.Encode(o); err != nil {
					t.Fatalf("%s, %d of %d: %v", name, many, n, err)
				}
				if err := evidence.Validate(o); err != nil {
					t.Fatalf("%s, %d of %d: %v", name, many, n, err)
				}
				if got := len(o.InlinedAt) + int(o.InlinedAtMore); got != many+7 {
					t.Errorf("%s, %d of %d: %d instances", name, many, n, got)
				}
				if o.Stack != nil && len(o.Stack.Frames)+int(o.Stack.More) != many+2 {
					t.Errorf("%s, %d of %d: %d frames and %d", name, many, n, len(o.Stack.Frames), o.Stack.More)
				}
				if n < 100 && many < 64 && (len(o.InlinedAt) != many || o.Stack == nil || len(o.Stack.Frames) != many) {
					t.Errorf("%s, %d of %d: cut without need", name, many, n)
				}
				for i := range instances {
					if instances[i].In != long || stack.Frames[i].Symbol != long || stack.Frames[i].Offset == nil {
						t.Fatal("what was handed in is changed")
					}
				}
			}
		}
	}
}
