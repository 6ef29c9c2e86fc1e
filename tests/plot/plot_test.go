package plot

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"strings"
	"testing"
)

// A picture is well-formed, has each curve, and no line over what is no point.
func TestPicture(t *testing.T) {
	dir := t.TempDir()
	x := []float64{0, 10, 20, 30, 40}
	p := Picture{Title: "a title", X: "minutes", Y: "MiB", Linear: true}
	if err := p.Write(dir, "p", x, Curve{"one", []float64{1, 2, math.NaN(), 4, 5}}, Curve{"none", make([]float64, 5)}); err != nil {
		t.Fatal(err)
	}
	svg, err := os.ReadFile(dir + "/p.svg")
	if err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(strings.NewReader(string(svg))); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v\n%s", err, svg)
		}
	}
	if n := strings.Count(string(svg), "<polyline"); n != 3 || strings.Contains(string(svg), "NaN") {
		t.Errorf("%d lines, want two of the first curve and one of the second\n%s", n, svg)
	}
	text, err := os.ReadFile(dir + "/p.csv")
	if want := "minutes,one,none\n0,1,0\n10,2,0\n20,NaN,0\n30,4,0\n40,5,0\n"; err != nil || string(text) != want {
		t.Errorf("%v, %q", err, text)
	}
	if s := (Picture{}).SVG([]float64{1, 100}, Curve{"c", []float64{1000, 10}}); strings.Count(s, "<circle") != 2 || !strings.Contains(s, ">1000<") {
		t.Errorf("decades:\n%s", s)
	}
}
