package kernels

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"strings"

	"probity/tests/kernels/guest"
)

//go:embed expect.json
var expectations []byte

// Expect says what must be so; it is expect.json.
type Expect struct {
	// Absent are needs (tests/need) that no guest meets, with the reason: their
	// tests may be skipped there, and nobody else's.
	Absent map[string]string `json:"absent"`
	// Skips are tests that cannot run in some machine, "machine package.Test"
	// with the reason.
	Skips map[string]string `json:"skips"`
	// Machines has what each kernel of machines.txt must do.
	Machines map[string]ExpectMachine `json:"machines"`
}

// ExpectMachine is what one kernel must do.
type ExpectMachine struct {
	// Sites is the bound on uprobe sites of one container, 0 if it is above
	// what the conformance run asks for.
	Sites      int                    `json:"sites"`
	ProbeTypes map[string]ExpectType  `json:"probeTypes"`
	Checks     map[string]ExpectCheck `json:"checks"`
	// WithoutTypes is what it must do where its own types (BTF) are hidden,
	// and GivenTypes where they are, and a file with them is named. Without
	// these two it is not booted so.
	WithoutTypes *ExpectMachine `json:"withoutTypes,omitempty"`
	GivenTypes   *ExpectMachine `json:"givenTypes,omitempty"`
}

// ExpectCheck is what must become of one check: with an empty Reason it holds,
// else it must not, for that reason.
type ExpectCheck struct {
	Used   string `json:"used,omitempty"`
	Reason string `json:"reason,omitempty"` // how the reason begins
}

// ExpectType is what one kernel must do for one probe type: with an empty
// Reason it works, else it must not, for that reason.
type ExpectType struct {
	Used         string `json:"used,omitempty"`
	Mechanism    string `json:"mechanism,omitempty"`
	CountsMisses bool   `json:"countsMisses"`
	Reason       string `json:"reason,omitempty"` // how the reason begins
}

// Expected reads expect.json.
func Expected() (e Expect, err error) {
	d := json.NewDecoder(strings.NewReader(string(expectations)))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return e, fmt.Errorf("expect.json: %w", err)
	}
	return e, nil
}

// Judge compares a report with what must be so, both ways: what ought to work
// and does not is a finding, and so is what ought not to and does.
func (e ExpectMachine) Judge(r guest.Report) (findings []string) {
	find := func(format string, args ...any) { findings = append(findings, fmt.Sprintf(format, args...)) }
	tried := map[string]bool{}
	for _, got := range r.Results {
		tried[got.Name] = true
		want, known := e.ProbeTypes[got.Name]
		switch {
		case !known:
			find("%s: expect.json says nothing of it", got.Name)
		case want.Reason == "" && !got.Works:
			find("%s: must work, and does not: %s", got.Name, got.Reason)
		case want.Reason == "" && (got.Used != want.Used || got.Mechanism != want.Mechanism):
			find("%s: served by %s (%s), want %s (%s)", got.Name, got.Used, got.Mechanism, want.Used, want.Mechanism)
		case want.Reason == "" && got.CountsMisses != want.CountsMisses:
			find("%s: counts misses: %v, want %v", got.Name, got.CountsMisses, want.CountsMisses)
		case want.Reason != "" && got.Works:
			find("%s: works, and expect.json says that it does not (%s): if that is so, say it there", got.Name, want.Reason)
		case want.Reason != "" && !strings.HasPrefix(got.Reason, want.Reason):
			find("%s: does not work because of %q, want %q", got.Name, got.Reason, want.Reason)
		}
	}
	for probeType := range e.ProbeTypes {
		if !tried[probeType] {
			find("%s: was not tried", probeType)
		}
	}
	checked := map[string]bool{}
	for _, got := range r.Checks {
		checked[got.Name] = true
		want, known := e.Checks[got.Name]
		switch {
		case !known:
			find("%s: expect.json says nothing of it", got.Name)
		case want.Reason == "" && !got.Works:
			find("%s: must hold, and does not: %s", got.Name, got.Reason)
		case want.Reason == "" && got.Used != want.Used:
			find("%s: by %s, want %s", got.Name, got.Used, want.Used)
		case want.Reason != "" && got.Works:
			find("%s: holds, and expect.json says that it does not (%s): if that is so, say it there", got.Name, want.Reason)
		case want.Reason != "" && !strings.HasPrefix(got.Reason, want.Reason):
			find("%s: does not hold because of %q, want %q", got.Name, got.Reason, want.Reason)
		}
	}
	for name := range e.Checks {
		if !checked[name] {
			find("%s: was not checked", name)
		}
	}
	if r.Sites.Most != e.Sites {
		find("the bound on sites is %d (%d of %d armed), want %d", r.Sites.Most, r.Sites.Armed, r.Sites.Asked, e.Sites)
	}
	return findings
}
