package evidence

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// plainJSON is what Append promises, by encoding/json.
func plainJSON(l Line) ([]byte, error) {
	noNull(reflect.ValueOf(l).Elem())
	reflect.ValueOf(l).Elem().FieldByName("Kind").SetString(l.kind())
	return marshal(l)
}

// noNull makes empty lists of those that are nil: what has to be there is [], and what
// has not is left out.
func noNull(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			noNull(v.Elem())
		}
	case reflect.Slice:
		if v.IsNil() {
			v.Set(reflect.MakeSlice(v.Type(), 0, 0))
		}
		for i := range v.Len() {
			noNull(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				noNull(v.Field(i))
			}
		}
	}
}

func compareEncoders(t *testing.T, l Line) {
	t.Helper()
	want, wantErr := plainJSON(l)
	got, err := Append([]byte("before"), l)
	if tooLong := len(want) >= MaxLineBytes; tooLong || wantErr != nil {
		if err == nil || string(got) != "before" {
			t.Fatalf("taken, and it has %d bytes, %v", len(want), wantErr)
		}
		return
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, want)
	}
	if !bytes.Equal(got[len("before"):], want) {
		t.Fatalf("written as\n%s\nwant\n%s", got[len("before"):], want)
	}
}

// texts have what JSON escapes, what it must not, and what is not UTF-8.
var texts = []string{"", "", "a", "plain/path", "\"<&>\\", "\b\f\n\r\t\x00\x1f\x7f", "\u2028\u2029", "ü\U0010ffff", "\xff\xfe", "a\xc3(", "\ufffd", `\ufffd`, "é\xed\xa0\x80"}

// fill sets everything below v to something, often nothing.
func fill(r *rand.Rand, v reflect.Value, depth int) {
	switch x := v.Addr().Interface().(type) {
	case *Uint64:
		*x = Uint64([]uint64{0, 1, 9007199254740993, math.MaxUint64, r.Uint64()}[r.IntN(5)])
		return
	case *Loss:
		*x = Loss{N: r.Uint64() >> r.IntN(64)}
		if r.IntN(3) == 0 {
			*x = Loss{Unknowable: true}
		}
		return
	case *Time:
		*x = TimeOf(time.Unix(r.Int64N(1<<38)-1<<37, r.Int64N(1e9)))
		if y := x.t.Year(); r.IntN(4) == 0 || y < 0 || y > 9999 {
			*x = Time{}
		}
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(texts[r.IntN(len(texts))] + texts[r.IntN(len(texts))])
	case reflect.Int:
		v.SetInt([]int64{0, 1, -1, math.MaxInt64, int64(r.IntN(1e6))}[r.IntN(5)])
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	case reflect.Float64:
		v.SetFloat([]float64{0, 1, 0.95, -0.5, 1e-7, 1e-6, 1e21, 123456789, r.Float64(), math.Copysign(0, -1)}[r.IntN(10)])
	case reflect.Pointer:
		if r.IntN(2) == 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(r, v.Elem(), depth+1)
		}
	case reflect.Slice:
		if n := r.IntN(4); n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n-1, n))
			for i := range n - 1 {
				fill(r, v.Index(i), depth+1)
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(r, v.Field(i), depth+1)
		}
	}
}

// Whatever a line holds, both encoders write the same bytes.
func TestEncodersAgree(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 10_000 {
		l := []Line{new(Observation), new(Observation), new(Coverage), new(Gap)}[i%4]
		fill(r, reflect.ValueOf(l).Elem(), 0)
		compareEncoders(t, l)
	}
}

// An Encoder writes what Append does, and takes what Validate does, whatever was
// written before: each member of a line is changed once.
func TestEncoder(t *testing.T) {
	u := Uint64(3)
	at := func(ns int64) Time { return TimeOf(time.Unix(1700000000, ns)) }
	entry := Observation{
		State: Hit, ProbeType: RawTracepoint, RunID: strings.Repeat("0a", 16), ContainerID: "c", Runtime: "crun", ImageDigest: "sha256:" + strings.Repeat("ab", 32),
		ProbeID: "files", RequestedProbeType: UnknownProbe, Path: "/etc/passwd", Set: SetFiles, Entry: &Entry{Device: "0:5", Inode: 7, Access: "read"},
		Count: &u, FirstAt: at(5), LastAt: at(999_999_999), Process: &Process{Pid: 1, Comm: "cat"}, Complete: true, From: at(0), To: at(1e9),
		Confidence: Confidence{Value: 0.5, Version: "1", Inputs: Inputs{ProbeType: "x", Attribution: "y", Symbol: "z", Losses: "none"}},
	}
	gaps := []SiteGap{{Reason: GapSetFull, From: at(1)}, {Reason: GapRingFull, From: at(1)}}
	var e Encoder
	agree := func(what string, o Observation) {
		t.Helper()
		want, err := Append(nil, &o)
		if err == nil {
			err = Validate(&o)
		}
		got, gotErr := e.Append([]byte("before"), &o)
		switch {
		case (err == nil) != (gotErr == nil) || err != nil && !strings.HasSuffix(gotErr.Error(), err.Error()):
			t.Errorf("%s: %v, want %v", what, gotErr, err)
		case err == nil && string(got) != "before"+string(want) || err != nil && string(got) != "before":
			t.Errorf("%s: %s\nwant %s", what, got, want)
		}
	}
	agree("the first", entry)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range reflect.TypeFor[Observation]().NumField() {
		name := reflect.TypeFor[Observation]().Field(i).Name
		for range 50 {
			o := entry
			fill(r, reflect.ValueOf(&o).Elem().Field(i), 0)
			agree(name, o)
			agree("the same after "+name, o)
			agree("back after "+name, entry)
		}
	}
	for _, g := range [][]SiteGap{gaps[:1], gaps[1:], gaps, slices.Clone(gaps[1:]), nil} {
		o := entry
		o.Gaps, o.Complete = g, false
		agree("gaps", o)
	}
	long := entry
	long.Path = strings.Repeat("\x01", MaxPath)
	for range 3 {
		agree("a path of many escapes", long)
		long.Entry = &Entry{Argument: long.Path, Access: "read"}
		long.Detail = strings.Repeat("\x01", MaxText)
	}
	for _, l := range []Line{&Gap{}, &Coverage{}, &Observation{}, &Gap{GapID: "g", Scope: ScopeNode, Reason: GapAgentDown, From: at(0)}} {
		want, err := Append(nil, l)
		if err == nil {
			err = Validate(l)
		}
		if got, gotErr := e.Append(nil, l); (err == nil) != (gotErr == nil) || err == nil && string(got) != string(want) {
			t.Errorf("%s: %s, %v", want, got, gotErr)
		}
	}
	agree("after the others", entry)
	e.Forget()
	agree("after it was forgotten", entry)
}

func TestEncodeBounds(t *testing.T) {
	for n := MaxLineBytes - 700; n < MaxLineBytes; n += 7 {
		compareEncoders(t, &Observation{Path: strings.Repeat("p", n)})
		compareEncoders(t, &Gap{Path: strings.Repeat("\x01", n/6)})
	}
	for _, year := range []int{-1, 10_000} {
		compareEncoders(t, &Observation{From: TimeOf(time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC))})
		compareEncoders(t, &Gap{From: TimeOf(time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC))})
	}
	compareEncoders(t, &Observation{Confidence: Confidence{Value: math.NaN()}})
}

func FuzzEncode(f *testing.F) {
	for _, s := range texts {
		f.Add(s, uint64(1), int64(5), 0.5)
	}
	f.Fuzz(func(t *testing.T, s string, n uint64, ns int64, value float64) {
		u := Uint64(n)
		compareEncoders(t, &Observation{
			Symbol: s, Path: s, Count: &u, Entries: u, Copies: int(ns), From: TimeOf(time.Unix(ns>>20, ns&1023)), Confidence: Confidence{Value: value, Version: s},
			Process: &Process{Pid: int(n >> 1), Comm: s}, Entry: &Entry{Address: s, Port: int(ns), Inode: u}, Stack: &Stack{Frames: []Frame{{Symbol: s}}},
		})
		compareEncoders(t, &Gap{Detail: s, Count: Loss{N: n}, From: TimeOf(time.Unix(ns, 0))})
	})
}

// The vectors' lines are written as they stand.
func TestEncodeVectors(t *testing.T) {
	for _, seq := range []int{7, 8} {
		b, err := os.ReadFile(fmt.Sprintf("testdata/%016d-00112233445566ff.ndjson", seq))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
		for _, line := range lines[1 : len(lines)-1] {
			l, err := Decode(line)
			if err != nil {
				t.Fatal(err)
			}
			compareEncoders(t, l)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	file, err := os.ReadFile("testdata/0000000000000008-00112233445566ff.ndjson")
	if err != nil {
		b.Fatal(err)
	}
	l, err := Decode(strings.Split(string(file), "\n")[10])
	if err != nil {
		b.Fatal(err)
	}
	b.Run("canonical", func(b *testing.B) {
		var buf []byte
		for b.Loop() {
			if buf, err = Append(buf[:0], l); err != nil {
				b.Fatal(err)
			}
		}
		b.SetBytes(int64(len(buf)))
	})
	b.Run("one after the other", func(b *testing.B) {
		var e Encoder
		var buf []byte
		for b.Loop() {
			if buf, err = e.Append(buf[:0], l); err != nil {
				b.Fatal(err)
			}
		}
		b.SetBytes(int64(len(buf)))
	})
	b.Run("encoding/json", func(b *testing.B) {
		for b.Loop() {
			if _, err := json.Marshal(l); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("validate", func(b *testing.B) {
		for b.Loop() {
			if err := Validate(l); err != nil {
				b.Fatal(err)
			}
		}
	})
}
