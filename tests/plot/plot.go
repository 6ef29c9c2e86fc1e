// Package plot draws curves: samples beside a picture of them, for the documents that
// measurements make (docs/scale.md, docs/soak.md).
package plot

import (
	"encoding/csv"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Curve is one line of a picture; Y belongs to the x at the same place. NaN is no point,
// and no line leads to it.
type Curve struct {
	Name string
	Y    []float64
}

// Picture says what a picture is of.
type Picture struct {
	Title, X, Y string
	// Linear has both axes begin with 0; else they are logarithmic, and each sample is a dot.
	Linear bool
}

// Write writes the samples and a picture of them, as NAME.csv and NAME.svg.
func (p Picture) Write(dir, name string, x []float64, curves ...Curve) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write plot %s: %w", name, err)
	}
	f, err := os.Create(filepath.Join(dir, name+".csv"))
	if err != nil {
		return fmt.Errorf("write plot %s: %w", name, err)
	}
	defer f.Close()
	w := csv.NewWriter(f)
	head := []string{p.X}
	for _, c := range curves {
		head = append(head, c.Name)
	}
	_ = w.Write(head) // Error tells of all
	for i := range x {
		rec := []string{number64(x[i])}
		for _, c := range curves {
			rec = append(rec, number64(c.Y[i]))
		}
		_ = w.Write(rec)
	}
	w.Flush()
	if err := w.Error(); err != nil {
		return fmt.Errorf("write plot %s: %w", name, err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".svg"), []byte(p.SVG(x, curves...)), 0o644); err != nil {
		return fmt.Errorf("write plot %s: %w", name, err)
	}
	return nil
}

func number64(v float64) string { return strconv.FormatFloat(v, 'g', 5, 64) }

// The picture's size and margins, in SVG units.
const (
	width, height            = 760.0, 420.0
	left, right, top, bottom = 80.0, 200.0, 44.0, 56.0
)

var colours = []string{"#1b6ca8", "#c0392b", "#27834a", "#8e44ad", "#b9770e", "#34495e"}

// axis maps values to places: over whole decades, or from 0 in round steps.
type axis struct {
	linear       bool
	lo, hi, step float64 // logarithms, unless linear
	from, to     float64
}

func newAxis(linear bool, values []float64, from, to float64) axis {
	lo, hi := math.Inf(1), math.Inf(-1)
	for _, v := range values {
		if v > 0 {
			lo, hi = math.Min(lo, v), math.Max(hi, v)
		}
	}
	if math.IsInf(hi, 0) { // nothing to show
		lo, hi = 1, 1
	}
	if linear {
		step := math.Pow(10, math.Floor(math.Log10(hi)))
		for hi/step < 4 {
			step /= 2
		}
		return axis{true, 0, math.Ceil(hi/step) * step, step, from, to}
	}
	lo, hi = math.Floor(math.Log10(lo)), math.Ceil(math.Log10(hi))
	if lo == hi {
		hi++
	}
	return axis{false, lo, hi, 1, from, to}
}

func (a axis) at(v float64) float64 {
	if !a.linear {
		if v <= 0 {
			return a.from
		}
		v = math.Log10(v)
	}
	return a.from + (v-a.lo)/(a.hi-a.lo)*(a.to-a.from)
}

// marks calls f with each place that has a line, and its value.
func (a axis) marks(f func(place, value float64)) {
	for v := a.lo; v <= a.hi+a.step/2; v += a.step {
		value := v
		if !a.linear {
			value = math.Pow(10, v)
		}
		f(a.at(value), value)
	}
}

// SVG is the picture.
func (p Picture) SVG(x []float64, curves ...Curve) string {
	var all []float64
	for _, c := range curves {
		all = append(all, c.Y...)
	}
	h, v := newAxis(p.Linear, x, left, width-right), newAxis(p.Linear, all, height-bottom, top)
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&s, `<rect width="100%%" height="100%%" fill="white"/><text x="%g" y="24" font-size="15">%s</text>`+"\n", left, p.Title)
	h.marks(func(at, value float64) {
		fmt.Fprintf(&s, `<line x1="%.1f" y1="%g" x2="%.1f" y2="%g" stroke="#ddd"/><text x="%.1f" y="%g" text-anchor="middle">%s</text>`+"\n", at, top, at, height-bottom, at, height-bottom+18, number64(value))
	})
	v.marks(func(at, value float64) {
		fmt.Fprintf(&s, `<line x1="%g" y1="%.1f" x2="%g" y2="%.1f" stroke="#ddd"/><text x="%g" y="%.1f" text-anchor="end">%s</text>`+"\n", left, at, width-right, at, left-8, at+4, number64(value))
	})
	fmt.Fprintf(&s, `<text x="%g" y="%g" text-anchor="middle">%s</text>`+"\n", (left+width-right)/2, height-14, p.X)
	fmt.Fprintf(&s, `<text transform="translate(20 %g) rotate(-90)" text-anchor="middle">%s</text>`+"\n", (top+height-bottom)/2, p.Y)
	for i, c := range curves {
		colour := colours[i%len(colours)]
		stroke := 2.0
		if p.Linear {
			stroke = 1
		}
		var points []string
		line := func() {
			if len(points) > 0 {
				fmt.Fprintf(&s, `<polyline points="%s" fill="none" stroke="%s" stroke-width="%g"/>`+"\n", strings.Join(points, " "), colour, stroke)
			}
			points = nil
		}
		for j := range x {
			if math.IsNaN(c.Y[j]) {
				line()
				continue
			}
			px, py := h.at(x[j]), v.at(c.Y[j])
			points = append(points, fmt.Sprintf("%.1f,%.1f", px, py))
			if !p.Linear {
				fmt.Fprintf(&s, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", px, py, colour)
			}
		}
		line()
		y := top + 16 + 20*float64(i)
		fmt.Fprintf(&s, `<line x1="%g" y1="%g" x2="%g" y2="%g" stroke="%s" stroke-width="3"/><text x="%g" y="%g">%s</text>`+"\n", width-right+14, y-4, width-right+38, y-4, colour, width-right+44, y, c.Name)
	}
	s.WriteString("</svg>\n")
	return s.String()
}
