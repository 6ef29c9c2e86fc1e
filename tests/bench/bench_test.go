// Package bench measures the budgets of docs/design.md. It asserts nothing: a
// figure is printed beside its budget, and both sides of it come from one run,
// taken in turn, because machines that are shared drift.
package bench

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// median of an odd or even number of figures.
func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	if n == 0 {
		return 0
	}
	return (v[(n-1)/2] + v[n/2]) / 2
}

// row prints one line of the table.
func row(b *testing.B, what, budget, format string, args ...any) {
	b.Helper()
	fmt.Printf("%-58s %-34s budget %s\n", what, fmt.Sprintf(format, args...), budget)
}

// judged is row for a figure that the budget can be held against.
func judged(b *testing.B, met bool, what, budget, format string, args ...any) {
	b.Helper()
	verdict := ": met"
	if !met {
		verdict = ": MISSED"
	}
	row(b, what, budget+verdict, format, args...)
}

// opened is the root of a container, for who closes it.
func opened(tb testing.TB, dir string) *os.File {
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(tb, err)
	return f
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// timed runs a whole process and returns its wall time in milliseconds.
func timed(tb testing.TB, cmd *exec.Cmd) float64 {
	tb.Helper()
	var out bytes.Buffer
	cmd.Stderr = &out
	start := time.Now()
	err := cmd.Run()
	ms := float64(time.Since(start).Microseconds()) / 1000
	if err != nil {
		tb.Fatalf("%v: %v\n%s", cmd.Args, err, out.String())
	}
	return ms
}

// number runs a program in a cgroup and reads the number it prints.
func number(tb testing.TB, cgroup *os.File, name string, args ...string) float64 {
	tb.Helper()
	cmd := exec.Command(name, args...)
	if cgroup != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	}
	out, err := cmd.Output()
	must(tb, err)
	v, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	must(tb, err)
	return v
}

// compile builds a C file of testdata.
func compile(tb testing.TB, src, out string, args ...string) {
	tb.Helper()
	b, err := exec.Command("gcc", append([]string{"-O2", "-static", "-o", out, filepath.Join("testdata", src)}, args...)...).CombinedOutput()
	if err != nil {
		tb.Fatalf("gcc: %v\n%s", err, b)
	}
}
