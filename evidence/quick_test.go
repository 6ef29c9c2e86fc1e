package evidence

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// Every observation of the vectors, which have every member, is read the quick
// way, and alike.
func TestQuickTakesVectors(t *testing.T) {
	var all string
	for _, name := range []string{"0000000000000007-00112233445566ff", "0000000000000008-00112233445566ff", "0000000000000009-00112233445566ff", "0000000000000010-00112233445566ff"} {
		b, err := os.ReadFile("testdata/" + name + ".ndjson")
		if err != nil {
			t.Fatal(err)
		}
		all += string(b)
	}
	n := 0
	for line := range strings.SplitSeq(all, "\n") {
		if !strings.HasPrefix(line, `{"kind":"observation"`) {
			continue
		}
		n++
		var quick, slow Observation
		if err := decodeCanonical(line, observationShape, reflect.ValueOf(&slow).Elem()); err != nil {
			t.Fatal(err)
		}
		if !quickObservation(line, &quick) || !reflect.DeepEqual(quick, slow) {
			t.Errorf("read as %+v, want %+v", quick, slow)
		}
	}
	if n == 0 {
		t.Fatal("the vectors have no observation")
	}
}
