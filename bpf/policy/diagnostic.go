package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Diagnostic is one problem of one file. Line and Column begin with 1; a column
// is a character, not a byte.
type Diagnostic struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Message string `json:"message"`
}

func (d Diagnostic) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", d.File, d.Line, d.Column, d.Message)
}

// Diagnostics is an error that holds all problems that were found, file by
// file and in the order of their places.
type Diagnostics []Diagnostic

func (ds Diagnostics) Error() string {
	lines := make([]string, len(ds))
	for i, d := range ds {
		lines[i] = d.Error()
	}
	return strings.Join(lines, "\n")
}

// maxDiagnostics of one file: a megabyte can hold a hundred thousand mistakes,
// and nobody reads them.
const maxDiagnostics = 1000

// position is a place in a file.
type position struct{ line, column int }

// report collects the problems of one file.
type report struct {
	file  string
	found Diagnostics
}

func (r *report) add(at position, format string, args ...any) {
	if len(r.found) < maxDiagnostics {
		r.found = append(r.found, Diagnostic{r.file, max(at.line, 1), max(at.column, 1), fmt.Sprintf(format, args...)})
	} else if len(r.found) == maxDiagnostics {
		r.found = append(r.found, Diagnostic{r.file, max(at.line, 1), max(at.column, 1), fmt.Sprintf("more than %d problems, the rest is not listed", maxDiagnostics)})
	}
}

// err is the report as an error, sorted; nil if nothing was found.
func (r *report) err() error {
	if len(r.found) == 0 {
		return nil
	}
	slices.SortStableFunc(r.found, func(a, b Diagnostic) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return r.found
}
