package bench

import (
	"encoding/csv"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Plots is the variable with the directory into which curves are written, as
// NAME.csv and NAME.svg. Without it they are only printed.
const Plots = "PROBITY_PLOTS"

// curve is one line of a plot; y belongs to the x at the same place.
type curve struct {
	name string
	y    []float64
}

// plot writes the samples and a picture of them, both axes logarithmic.
func plot(dir, name, title, xLabel, yLabel string, x []float64, curves ...curve) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write plot %s: %w", name, err)
	}
	f, err := os.Create(filepath.Join(dir, name+".csv"))
	if err != nil {
		return fmt.Errorf("write plot %s: %w", name, err)
	}
	defer f.Close()
	w := csv.NewWriter(f)
	head := []string{xLabel}
	for _, c := range curves {
		head = append(head, c.name)
	}
	_ = w.Write(head) // Error tells of all
	for i := range x {
		rec := []string{number64(x[i])}
		for _, c := range curves {
			rec = append(rec, number64(c.y[i]))
		}
		_ = w.Write(rec)
	}
	w.Flush()
	if err := w.Error(); err != nil {
		return fmt.Errorf("write plot %s: %w", name, err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".svg"), []byte(picture(title, xLabel, yLabel, x, curves)), 0o644); err != nil {
		return fmt.Errorf("write plot %s: %w", name, err)
	}
	return nil
}

func number64(v float64) string { return strconv.FormatFloat(v, 'g', 5, 64) }

// The picture's size and margins, in SVG units.
const (
	width, height             = 760.0, 420.0
	left, right, top1, bottom = 80.0, 200.0, 44.0, 56.0
)

var colours = []string{"#1b6ca8", "#c0392b", "#27834a", "#8e44ad", "#b9770e", "#34495e"}

// axis maps values to places, over whole decades.
type axis struct{ lo, hi, from, to float64 }

func newAxis(values []float64, from, to float64) axis {
	lo, hi := math.Inf(1), math.Inf(-1)
	for _, v := range values {
		if v > 0 {
			lo, hi = math.Min(lo, math.Floor(math.Log10(v))), math.Max(hi, math.Ceil(math.Log10(v)))
		}
	}
	if lo == hi {
		hi++
	}
	return axis{lo, hi, from, to}
}

func (a axis) at(v float64) float64 {
	if v <= 0 {
		return a.from
	}
	return a.from + (math.Log10(v)-a.lo)/(a.hi-a.lo)*(a.to-a.from)
}

func picture(title, xLabel, yLabel string, x []float64, curves []curve) string {
	var all []float64
	for _, c := range curves {
		all = append(all, c.y...)
	}
	h, v := newAxis(x, left, width-right), newAxis(all, height-bottom, top1)
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&s, `<rect width="100%%" height="100%%" fill="white"/><text x="%g" y="24" font-size="15">%s</text>`+"\n", left, title)
	for d := h.lo; d <= h.hi; d++ {
		p := h.at(math.Pow(10, d))
		fmt.Fprintf(&s, `<line x1="%.1f" y1="%g" x2="%.1f" y2="%g" stroke="#ddd"/><text x="%.1f" y="%g" text-anchor="middle">%s</text>`+"\n", p, top1, p, height-bottom, p, height-bottom+18, number64(math.Pow(10, d)))
	}
	for d := v.lo; d <= v.hi; d++ {
		p := v.at(math.Pow(10, d))
		fmt.Fprintf(&s, `<line x1="%g" y1="%.1f" x2="%g" y2="%.1f" stroke="#ddd"/><text x="%g" y="%.1f" text-anchor="end">%s</text>`+"\n", left, p, width-right, p, left-8, p+4, number64(math.Pow(10, d)))
	}
	fmt.Fprintf(&s, `<text x="%g" y="%g" text-anchor="middle">%s</text>`+"\n", (left+width-right)/2, height-14, xLabel)
	fmt.Fprintf(&s, `<text transform="translate(20 %g) rotate(-90)" text-anchor="middle">%s</text>`+"\n", (top1+height-bottom)/2, yLabel)
	for i, c := range curves {
		colour := colours[i%len(colours)]
		var points []string
		for j := range x {
			px, py := h.at(x[j]), v.at(c.y[j])
			points = append(points, fmt.Sprintf("%.1f,%.1f", px, py))
			fmt.Fprintf(&s, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", px, py, colour)
		}
		fmt.Fprintf(&s, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(points, " "), colour)
		y := top1 + 16 + 20*float64(i)
		fmt.Fprintf(&s, `<line x1="%g" y1="%g" x2="%g" y2="%g" stroke="%s" stroke-width="3"/><text x="%g" y="%g">%s</text>`+"\n", width-right+14, y-4, width-right+38, y-4, colour, width-right+44, y, c.name)
	}
	s.WriteString("</svg>\n")
	return s.String()
}
