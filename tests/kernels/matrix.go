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
	Whole   bool     `json:"whole"`  // all of the engine's tests ran, and not only its core
	Kernels []Kernel `json:"kernels"`
}

// Kernel is what was found on one kernel.
type Kernel struct {
	Name    string `json:"name"`
	Suite   string `json:"debian"`
	Arch    string `json:"arch"`
	Release string `json:"release"`
	guest.Report
	// WithoutTypes and GivenTypes are as in [ExpectMachine]; nil if that was not tried.
	WithoutTypes *guest.Report  `json:"withoutTypes,omitempty"`
	GivenTypes   *guest.Report  `json:"givenTypes,omitempty"`
	Tests        map[string]int `json:"tests"`   // passed in the guest, by package
	TookS        float64        `json:"seconds"` // from the machine's start to its end
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
		columns(name, func(k Kernel) string { return works(name, k.Results) })
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

	b.WriteString("\n## What else must hold\n\nEach was made to happen, and compared exactly: which entries of a set and how often, which frames, how many pairs, how many hits. A set and a\nstack say by which probe type they are seen.\n\n")
	head("")
	for _, name := range m.checks() {
		columns(name, func(k Kernel) string { return holds(name, k.Checks) })
	}

	b.WriteString("\n## Sites\n\nBefore 6.6 there is no uprobe_multi and each site costs a link of its own: a container has at most so many, and those past the bound\nare `notArmed` with reason `budget`. There the kernel takes them away one after the other, each after grace periods of its own; that is done in the background,\nand so that who attaches meanwhile waits for one of them at most. Times are of an emulated processor: compare them with each other only.\n\n")
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
	columns("attach one of another container meanwhile, ms", func(k Kernel) string { return fmt.Sprintf("%.0f", k.Sites.BesidesMs) })

	b.WriteString("\n## Kernels without types\n\nWhat needs no types of the kernel (BTF) works where it has none in /sys, what needs them says so, and `--btf FILE` stands in for them: the same runs\nwith /sys/kernel/btf hidden. Before 5.15 nothing can be attributed without.\n\n| kernel | what | without | with `--btf FILE` |\n|---|---|---|---|\n")
	for _, k := range m.Kernels {
		if k.WithoutTypes == nil || k.GivenTypes == nil {
			continue
		}
		// Rows that say the same are one.
		var said []string
		what := map[string][]string{}
		row := func(name, without, given string) {
			cells := without + " | " + given
			if what[cells] == nil {
				said = append(said, cells)
			}
			what[cells] = append(what[cells], name)
		}
		for _, name := range m.names() {
			row(name, works(name, k.WithoutTypes.Results), works(name, k.GivenTypes.Results))
		}
		for _, name := range m.checks() {
			row(name, holds(name, k.WithoutTypes.Checks), holds(name, k.GivenTypes.Checks))
		}
		for _, cells := range said {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", k.Name, strings.Join(what[cells], ", "), cells)
		}
	}

	b.WriteString("\n## Cgroup modes\n\n`TestCgroupModes` boots one of these kernels with cgroups in the hybrid mode, where all is as on v2, and with v1 only, where every task has the\nroot's cgroup2 id: containers cannot be told apart, and each probe of each is signed as `notArmed` with reason `sharedCgroup`.\n")

	which := "Of this run it was the core of them; `make test-full` runs all."
	if m.Whole {
		which = "Of this run it was all of them."
	}
	b.WriteString("\n## The engine's own tests\n\nHow many passed in the guest; what was skipped is named in expect.json with the reason, else it fails. " + which + "\n\n")
	head("")
	for _, pkg := range engine {
		columns(pkg, func(k Kernel) string { return fmt.Sprint(k.Tests[pkg]) })
	}
	columns("the whole run, s", func(k Kernel) string { return fmt.Sprintf("%.0f", k.TookS) })
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

// checks lists the rows of what else must hold, likewise.
func (m Matrix) checks() (names []string) {
	for _, k := range m.Kernels {
		for _, c := range k.Checks {
			if !slices.Contains(names, c.Name) {
				names = append(names, c.Name)
			}
		}
	}
	return names
}

func works(name string, results []guest.Result) string {
	for _, r := range results {
		if r.Name == name {
			return served(r)
		}
	}
	return "not tried"
}

func holds(name string, checks []guest.Check) string {
	for _, c := range checks {
		switch {
		case c.Name != name:
		case !c.Works:
			return no(c.Reason)
		case strings.HasPrefix(name, "set ") || strings.Contains(name, "stack"):
			return c.Used
		default:
			return "yes"
		}
	}
	return "not tried"
}

// no is short: kernels.json has the whole reason.
func no(reason string) string {
	reason = strings.ReplaceAll(reason, "|", "\\|")
	if len(reason) > 100 {
		reason = reason[:100] + "..."
	}
	return "no: " + reason
}

func served(r guest.Result) string {
	switch {
	case !r.Works:
		return no(r.Reason)
	case r.Used != r.ProbeType && r.Mechanism == "": // `probity kernel` has none for the type that was asked for
		return "as **" + r.Used + "**"
	case r.Used != r.ProbeType:
		return "as **" + r.Used + "**: " + r.Mechanism
	}
	return r.Mechanism
}

// engine are the packages whose tests meet the kernel and run in each guest.
var engine = []string{"bpf", "bpf/kernel", "bpf/probe", "runtime/cgroup"}
