package main

import (
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// event is one line of go test -json (go doc test2json).
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

type key struct{ pkg, test string }

// tally counts the events and writes what a person wants to read.
type tally struct {
	w io.Writer

	output  map[key][]string // of tests and packages that have not ended
	needs   map[string]int   // tests skipped, by the need's name
	failing map[string]int   // failed tests, by package
	lines   []string         // one per package that passed
	bad     []string         // one per package that did not

	passed, failed, skipped int
}

func newTally(w io.Writer) *tally {
	return &tally{w: w, output: map[key][]string{}, needs: map[string]int{}, failing: map[string]int{}}
}

// why finds the need in a skipped test's output (package need).
var why = regexp.MustCompile(`needs ([a-z0-9]+(?::\S+)?): `)

func (t *tally) failures() int { return t.failed }

func (t *tally) raw(line string) { fmt.Fprint(t.w, line) }

// broken notes a failure that is nobody's test's.
func (t *tally) broken(err error) {
	t.failed++
	t.bad = append(t.bad, fmt.Sprintf("FAIL\t%v", err))
}

func (t *tally) add(e event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "output":
		// What a test that takes long says on the way.
		if text, said := strings.CutPrefix(e.Output, "progress: "); said {
			t.raw(text)
			return
		}
		t.output[k] = append(t.output[k], e.Output)
		return
	case "build-output":
		t.raw(e.Output)
		return
	case "pass", "fail", "skip":
	default:
		return
	}
	out := t.output[k]
	delete(t.output, k)
	if e.Test == "" {
		t.endPackage(e, out)
		return
	}
	switch e.Action {
	case "pass":
		t.passed++
	case "fail":
		t.failed++
		t.failing[e.Package]++
		fmt.Fprintf(t.w, "--- FAIL: %s %s (%.2fs)\n%s", e.Package, e.Test, e.Elapsed, body(out))
	case "skip":
		t.skipped++
		text := body(out)
		if m := why.FindStringSubmatch(text); m != nil {
			t.needs[m[1]]++
		}
		fmt.Fprintf(t.w, "--- SKIP: %s %s\n%s", e.Package, e.Test, text)
	}
}

func (t *tally) endPackage(e event, out []string) {
	switch e.Action {
	case "pass":
		t.lines = append(t.lines, fmt.Sprintf("ok  \t%s\t%.3fs", e.Package, e.Elapsed))
		fmt.Fprintln(t.w, t.lines[len(t.lines)-1])
	case "fail":
		if t.failing[e.Package] == 0 {
			t.failed++
		}
		// What belongs to no test, or to tests that never ended: a panic, a
		// data race, a leak.
		for _, k := range slices.SortedFunc(maps.Keys(t.output), func(a, b key) int { return strings.Compare(a.test, b.test) }) {
			if k.pkg == e.Package {
				fmt.Fprint(t.w, body(t.output[k]))
				delete(t.output, k)
			}
		}
		text := fmt.Sprintf("FAIL\t%s\t%.3fs", e.Package, e.Elapsed)
		if e.FailedBuild != "" {
			text = fmt.Sprintf("FAIL\t%s [build failed]", e.Package)
		}
		t.bad = append(t.bad, text)
		fmt.Fprintf(t.w, "%s%s\n", body(out), text)
	}
}

// body is a test's output without what the go command frames it with.
func body(out []string) string {
	var b strings.Builder
	for _, line := range out {
		trimmed := strings.TrimLeft(line, " ")
		framed := slices.ContainsFunc([]string{"=== ", "--- ", "PASS\n", "FAIL\n", "FAIL\t", "ok  \t", "exit status "}, func(prefix string) bool {
			return strings.HasPrefix(trimmed, prefix)
		})
		if !framed {
			b.WriteString(line)
		}
	}
	return b.String()
}

// finish writes the end and reports whether all is well.
func (t *tally) finish() bool {
	fmt.Fprintln(t.w)
	slices.Sort(t.lines)
	for _, line := range slices.Concat(t.lines, t.bad) {
		fmt.Fprintln(t.w, line)
	}
	if len(t.needs) > 0 {
		var names []string
		for _, name := range slices.Sorted(maps.Keys(t.needs)) {
			names = append(names, fmt.Sprintf("%s (%d)", name, t.needs[name]))
		}
		fmt.Fprintf(t.w, "skipped for what is not here: %s\n", strings.Join(names, ", "))
	}
	if t.passed+t.failed == 0 {
		fmt.Fprintln(t.w, "no test ran")
	}
	fmt.Fprintf(t.w, "%d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped)
	return t.failed == 0 && t.passed > 0
}
