package runtimes

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// Matrix is docs/runtimes.json: how each scenario went under each runtime. TestScenarios
// makes it, and docs/runtimes.md is made of it.
type Matrix struct {
	Runtimes []MatrixRuntime `json:"runtimes"`
}

// MatrixRuntime is one runtime, as it was when it was last run.
type MatrixRuntime struct {
	Name string `json:"name"`
	// NotRun says why it has never been run; the rest is empty then.
	NotRun   string            `json:"notRun,omitempty"`
	Versions map[string]string `json:"versions,omitempty"` // by program
	Kernel   string            `json:"kernel,omitempty"`
	Cgroups  string            `json:"cgroups,omitempty"` // "unified" or "hybrid"
	Commit   string            `json:"commit,omitempty"`  // of this repository
	Rows     []MatrixRow       `json:"scenarios,omitempty"`
}

// MatrixRow is one scenario: Passed, Failed, or a reason after Cannot.
type MatrixRow struct {
	Scenario string `json:"scenario"`
	Lives    string `json:"agentLives"`
	Killed   string `json:"agentKilled"` // in the middle
}

// Results.
const (
	Passed = "passed"
	Failed = "failed"
	Cannot = "cannot: "
	NotRun = "not run: "
)

// ReadMatrix reads docs/runtimes.json.
func ReadMatrix(path string) (m Matrix, err error) {
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	return m, err
}

// Write writes it.
func (m Matrix) Write(path string) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// Put takes the results of a runtime in the place of those that are there, and returns
// those. What was not run now leaves what there is.
func (m *Matrix) Put(r MatrixRuntime, at int) (was MatrixRuntime) {
	i := slices.IndexFunc(m.Runtimes, func(x MatrixRuntime) bool { return x.Name == r.Name })
	if i < 0 {
		m.Runtimes = slices.Insert(m.Runtimes, min(at, len(m.Runtimes)), r)
		return r
	}
	was = m.Runtimes[i]
	if len(r.Rows) > 0 {
		m.Runtimes[i] = r
	}
	return was
}

// ReportMark begins the line of a result that TestScenarios prints with -report.
const ReportMark = "matrix: "

// row finds a scenario's.
func (r MatrixRuntime) row(scenario string) (MatrixRow, bool) {
	i := slices.IndexFunc(r.Rows, func(row MatrixRow) bool { return row.Scenario == scenario })
	if i < 0 {
		return MatrixRow{}, false
	}
	return r.Rows[i], true
}

// result is what the page says of a scenario: what was not run is not passed.
func (r MatrixRuntime) result(scenario string, of func(MatrixRow) string) string {
	if r.NotRun != "" {
		return NotRun + r.NotRun
	}
	row, ok := r.row(scenario)
	if !ok || of(row) == "" {
		return NotRun + "the scenario is newer than what was run"
	}
	return of(row)
}

// Page is what is generated of docs/runtimes.md.
func (m Matrix) Page(scenarios []string) string {
	var b strings.Builder
	b.WriteString("| | what ran | Linux | cgroups | commit |\n|---|---|---|---|---|\n")
	for _, r := range m.Runtimes {
		if r.NotRun != "" {
			fmt.Fprintf(&b, "| %s | %s%s | | | |\n", r.Name, NotRun, r.NotRun)
			continue
		}
		var programs []string
		for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
			programs = append(programs, name+" "+r.Versions[name])
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", r.Name, strings.Join(programs, ", "), r.Kernel, r.Cgroups, r.Commit)
	}
	var notes []string
	cell := func(result string) string {
		switch result {
		case Passed:
			return Passed
		case Failed:
			return "**" + Failed + "**"
		}
		i := slices.Index(notes, result)
		if i < 0 {
			notes = append(notes, result)
			i = len(notes) - 1
		}
		word, _, _ := strings.Cut(result, ":")
		return fmt.Sprintf("%s (%d)", word, i+1)
	}
	for _, of := range []struct {
		title string
		get   func(MatrixRow) string
	}{
		{"The agent lives", func(r MatrixRow) string { return r.Lives }},
		{"The agent is killed in the middle", func(r MatrixRow) string { return r.Killed }},
	} {
		fmt.Fprintf(&b, "\n### %s\n\n| scenario |", of.title)
		for _, r := range m.Runtimes {
			fmt.Fprintf(&b, " %s |", r.Name)
		}
		b.WriteString("\n|---|" + strings.Repeat("---|", len(m.Runtimes)) + "\n")
		for _, name := range scenarios {
			fmt.Fprintf(&b, "| %s |", name)
			for _, r := range m.Runtimes {
				fmt.Fprintf(&b, " %s |", cell(r.result(name, of.get)))
			}
			b.WriteString("\n")
		}
	}
	b.WriteString("\n")
	for i, note := range notes {
		fmt.Fprintf(&b, "%d. %s\n", i+1, note)
	}
	return b.String()
}
