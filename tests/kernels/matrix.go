package kernels

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"probity/tests/kernels/guest"
)

// Matrix is docs/kernels.json: what was found, and on what.
type Matrix struct {
	Date    string   `json:"date"`   // UTC
	Commit  string   `json:"commit"` // of the sources that ran
	Kernels []Kernel `json:"kernels"`
}

// Kernel is what was found on one kernel.
type Kernel struct {
	Name    string `json:"name"`
	Suite   string `json:"debian"`
	Arch    string `json:"arch"`
	Release string `json:"release"`
	guest.Report
	Tests map[string]int `json:"tests"` // passed in the guest, by package
}

// Markdown is docs/kernels.md.
func (m Matrix) Markdown() string {
	var b strings.Builder
	b.WriteString(`# Kernels

What the engine does on which kernel, from real boots: ` + "`make test-kernels`" + ` boots each in QEMU, runs the engine's own tests there, arms every
probe type, makes its event happen and compares the count. This page is made by it from [kernels.json](kernels.json); what must be so is
[tests/kernels/expect.json](../tests/kernels/expect.json), and a difference fails.

`)
	fmt.Fprintf(&b, "Made on %s of commit %s.\n\n", m.Date, m.Commit)

	columns := func(first string, cell func(Kernel) string) {
		b.WriteString("| " + first + " |")
		for _, k := range m.Kernels {
			b.WriteString(" " + cell(k) + " |")
		}
		b.WriteString("\n")
	}
	head := func(first string) {
		columns(first, func(k Kernel) string { return k.Name })
		b.WriteString("|---|" + strings.Repeat("---|", len(m.Kernels)) + "\n")
	}

	b.WriteString("## Probe types\n\nWhat each is served by. A count is exact in every cell without \"no\".\n\n")
	head("")
	columns("release", func(k Kernel) string { return k.Release })
	columns("architecture", func(k Kernel) string { return k.Arch })
	columns("from Debian", func(k Kernel) string { return k.Suite })
	for _, name := range m.names() {
		columns(name, func(k Kernel) string {
			for _, r := range k.Results {
				if r.Name == name {
					return served(r)
				}
			}
			return "not tried"
		})
	}
	columns("every skipped run is counted", func(k Kernel) string {
		var yes, no []string
		for _, r := range k.Results {
			switch {
			case !r.Works:
			case r.CountsMisses:
				yes = append(yes, r.Name)
			default:
				no = append(no, r.Name)
			}
		}
		switch {
		case len(no) == 0:
			return "yes"
		case len(yes) == 0:
			return "no: `unknowable`"
		}
		return "only " + strings.Join(yes, ", ")
	})

	b.WriteString("\n## Sites\n\nBefore 6.6 there is no uprobe_multi and each site costs a link of its own: a container has at most so many, and those past the bound\nare `notArmed` with reason `budget`. Times are of an emulated processor: compare them with each other only.\n\n")
	head("")
	columns("most sites of one container", func(k Kernel) string {
		if k.Sites.Most == 0 {
			return "20000"
		}
		return fmt.Sprint(k.Sites.Most)
	})
	columns("sites of one file, measured", func(k Kernel) string { return fmt.Sprint(k.Sites.Armed) })
	columns("attach them, ms", func(k Kernel) string { return fmt.Sprintf("%.0f", k.Sites.AttachMs) })
	columns("detach them, ms", func(k Kernel) string { return fmt.Sprintf("%.0f", k.Sites.DetachMs) })

	b.WriteString("\n## Cgroup modes\n\n`TestCgroupModes` boots one of these kernels with cgroups in the hybrid mode, where all is as on v2, and with v1 only, where every task has the\nroot's cgroup2 id: containers cannot be told apart, and each probe of each is signed as `notArmed` with reason `sharedCgroup`.\n")

	b.WriteString("\n## The engine's own tests\n\nHow many passed in the guest; none that could run there was skipped. A run without `-whole` takes the core of them only.\n\n")
	head("")
	for _, pkg := range engine {
		columns(pkg, func(k Kernel) string { return fmt.Sprint(k.Tests[pkg]) })
	}
	return b.String()
}

// Write writes kernels.json and kernels.md into dir.
func (m Matrix) Write(dir string) error {
	b, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "kernels.json"), append(b, '\n'), 0o644),
		os.WriteFile(filepath.Join(dir, "kernels.md"), []byte(m.Markdown()), 0o644),
	)
}

// names lists the rows, in the order of the conformance run.
func (m Matrix) names() (names []string) {
	for _, k := range m.Kernels {
		for _, r := range k.Results {
			if !slices.Contains(names, r.Name) {
				names = append(names, r.Name)
			}
		}
	}
	return names
}

func served(r guest.Result) string {
	switch {
	case !r.Works:
		return "no: " + strings.ReplaceAll(r.Reason, "|", "\\|")
	case r.Used != r.ProbeType:
		return "as **" + r.Used + "**: " + r.Mechanism
	}
	return r.Mechanism
}

// engine are the packages whose tests meet the kernel and run in each guest.
var engine = []string{"bpf", "bpf/probe", "runtime/cgroup"}
