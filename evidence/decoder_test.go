package evidence_test

import (
	"reflect"
	"strings"
	"testing"

	"probity/evidence"
)

// alike holds a decoder that has read other lines against Decode.
func alike(t *testing.T, d *evidence.Decoder, line string) {
	t.Helper()
	got, err := d.Decode(line)
	want, wantErr := evidence.Decode(line)
	if (err == nil) != (wantErr == nil) || err != nil && err.Error() != wantErr.Error() {
		t.Fatalf("%q\nthe decoder says %v, Decode says %v", line, err, wantErr)
	}
	if err == nil && !reflect.DeepEqual(got, want) {
		t.Fatalf("%q\nreads as %+v\nnot as  %+v", line, got, want)
	}
}

// variants are a line with each member left out, and with each byte after a digit,
// a bracket or a quote changed or doubled: what could be taken for the line before.
func variants(line string) (out []string) {
	for i := range len(line) {
		switch c := line[i]; {
		case c == ',':
			if end := strings.Index(line[i+1:], `,"`); end >= 0 {
				out = append(out, line[:i]+line[i+1+end:])
			}
		case c >= '0' && c <= '9', c == '}', c == ']', c == '"', c == 'e':
			out = append(out, line[:i+1]+line[i:], line[:i]+line[i+1:], line[:i]+"1"+line[i+1:])
		}
	}
	return out
}

// A decoder reads every line as Decode does, whatever it has read before.
func TestDecoderAgrees(t *testing.T) {
	var d evidence.Decoder
	for _, v := range vectors {
		all := v.fileLines(t)
		lines := all[1 : len(all)-1]
		for _, a := range lines {
			for _, b := range lines {
				alike(t, &d, a)
				alike(t, &d, b)
			}
			for _, b := range variants(a) {
				alike(t, &d, a)
				alike(t, &d, b)
			}
		}
		for _, c := range invalidLines(t) {
			for _, a := range lines[1:4] {
				alike(t, &d, a)
				alike(t, &d, c.Line)
			}
		}
	}
}

// What a decoder returned stays as it was until it is told to forget it.
func TestDecoderKeeps(t *testing.T) {
	lines := vectors[1].fileLines(t)
	lines = lines[1 : len(lines)-1]
	var d evidence.Decoder
	for range 2 {
		var got, want []evidence.Line
		for range 20 { // more than it allocates together
			for _, x := range lines {
				l, err := d.Decode(x)
				if err != nil {
					t.Fatal(err)
				}
				w, err := evidence.Decode(x)
				if err != nil {
					t.Fatal(err)
				}
				got, want = append(got, l), append(want, w)
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatal("a line changed after it was read")
		}
		d.Reset()
	}
}

func FuzzDecoder(f *testing.F) {
	for _, v := range vectors {
		all := v.fileLines(f)
		lines := all[1 : len(all)-1]
		f.Add(strings.Join(lines, "\n"))
		for _, l := range lines {
			f.Add(l + "\n" + strings.Replace(l, `"offset":"4409"`, `"offset":"44090"`, 1) + "\n" + l)
			f.Add(l + "\n" + strings.Replace(l, `"copies":2`, `"copies":23`, 1) + "\n" + l)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		var d evidence.Decoder
		for line := range strings.SplitSeq(text, "\n") {
			alike(t, &d, line)
		}
	})
}

func BenchmarkDecoder(b *testing.B) {
	line := vectorFileLines(b)[2]
	other := strings.Replace(line, `"offset":"4409"`, `"offset":"4410"`, 1)
	var d evidence.Decoder
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		line, other = other, line
		if n%1000 == 0 {
			d.Reset()
		}
		l, err := d.Decode(line)
		if err != nil {
			b.Fatal(err)
		}
		if err := evidence.Validate(l); err != nil {
			b.Fatal(err)
		}
	}
}
