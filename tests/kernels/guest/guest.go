// Package guest is what the host and the init of a virtual machine say to each
// other: the host packs one [Job] into the initial file system, the guest
// writes [Line]s to its serial console, each after [Mark] on a line of its own.
// Whatever else is on the console comes from the kernel.
package guest

import "fmt"

// JobPath is where the job lies in the guest.
const JobPath = "/job.json"

// Mark begins each line that is ours.
const Mark = "@probity "

// Job is what a guest is to do.
type Job struct {
	Cgroups Cgroups `json:"cgroups"`
	// Systemd has systemd as the first process: the steps are a service of it, when
	// the machine is up.
	Systemd bool   `json:"systemd,omitempty"`
	Steps   []Step `json:"steps"`
}

// Cgroups is how the cgroup hierarchies are mounted.
type Cgroups string

// The three ways that there are on real machines.
const (
	V2     Cgroups = "v2"     // cgroup2 on /sys/fs/cgroup
	Hybrid Cgroups = "hybrid" // v1 controllers, and cgroup2 without any on /sys/fs/cgroup/unified
	V1     Cgroups = "v1"     // v1 controllers, no cgroup2 mounted
)

// Step is one program to run. Steps run one after the other, and a failed one
// does not keep the others from running.
type Step struct {
	Name  string   `json:"name"`
	Dir   string   `json:"dir"`
	Args  []string `json:"args"`
	Env   []string `json:"env"`   // besides PATH and HOME
	Limit int      `json:"limit"` // seconds until it is killed
}

// Kind says what a line is about.
type Kind string

// The kinds of lines, in the order in which a whole run has them.
const (
	Up   Kind = "up"   // the guest runs: Release is its kernel
	Out  Kind = "out"  // Text is one line of a step's output
	End  Kind = "end"  // a step has ended with Exit, after Ms milliseconds
	Fail Kind = "fail" // the init itself could not do something: Text says what
	Down Kind = "down" // the last line: all steps have run
)

// Line is one message of the guest.
type Line struct {
	Kind    Kind   `json:"kind"`
	Release string `json:"release,omitempty"`
	Step    string `json:"step,omitempty"`
	Text    string `json:"text,omitempty"`
	Exit    int    `json:"exit,omitempty"`
	Ms      int64  `json:"ms,omitempty"`
}

// Power is the step of the machine whose power is cut (tests/kernels/power).
const Power = "power"

// PowerRun is the id of the i-th run that it writes lines of, and PowerLines how many.
func PowerRun(i int) string { return fmt.Sprintf("%032x", i) }

// PowerLines is how many lines it writes of the i-th run.
func PowerLines(i int) int { return 1 + i%7 }

// TPM is the step of the machine that has one (tests/kernels/tpm): how often it opens
// the key, and how much it signs each time.
const (
	TPM           = "tpm"
	TPMKeys       = 3
	TPMSignatures = 5
)
