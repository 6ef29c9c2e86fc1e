// Package kernel says what the running kernel can do and can count, by trying.
//
// In: nothing but the running kernel, and a file of kernel types (BTF) where
// the kernel has none of its own. Out: [Facts], a value that prints, and the
// types for who loads programs.
//
// To try is to attach: every probe type is attached to something harmless (a
// program of 600 bytes that lives in memory and is run for it, and a kernel
// function that nobody else calls), made to run, and its count read. On return
// nothing of it is left: no process, file, program, map or link. What trying
// cannot tell goes by version and says so.
//
// It trusts the kernel. It is not a control: a fact is true of the moment it
// was found, and lockdown or a sysctl can change it.
package kernel

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"probity/runtime/cgroup"
)

// Facts are what matters of a kernel.
type Facts struct {
	Release string `json:"release"`
	Machine string `json:"machine"`
	// Cgroups is how this host arranges its cgroups: v2, hybrid or v1. On v1
	// containers cannot be told apart by cgroup id.
	Cgroups string `json:"cgroupMode"`
	// Tried is whether this process was allowed to try; if not, NotTried says why.
	Tried    bool        `json:"tried"`
	NotTried string      `json:"notTried,omitempty"`
	Types    []ProbeType `json:"probeTypes"` // in the order of [Types]
	Sets     []Set       `json:"sets"`       // in the order of [Sets]; given kernel types: see [Facts.WithBTF]

	UprobeMulti  Answer `json:"uprobeMulti"`  // many offsets of one file in one link (6.6)
	AttachCookie Answer `json:"attachCookie"` // one program for all sites of perf links (5.15)
	Semaphores   Answer `json:"semaphores"`   // USDT semaphores are raised by the kernel (4.20)
	Tracefs      Answer `json:"tracefs"`      // tracepoints by name
	RingBuffer   Answer `json:"ringBuffer"`   // 5.8
	TaskStorage  Answer `json:"taskStorage"`  // 5.11
	FetchAtomics Answer `json:"fetchAtomics"` // 5.12
	FuncIP       Answer `json:"funcIP"`       // bpf_get_func_ip in kprobes and uprobes (5.15)
	StackBuildID Answer `json:"stackBuildId"` // user stacks as build-id and offset
	// MaxSites is how many places in files may be armed in one container:
	// without uprobe_multi each costs a link of its own, and to detach one takes
	// the kernel up to a quarter of a second.
	MaxSites int `json:"maxSites"`
	// CountsMisses is whether a skipped run of a uprobe's or tracepoint's
	// program is always counted. [Facts.Type] has the answer for each type.
	CountsMisses Answer `json:"countsMisses"`
	// KernelBTF are the kernel's own types: trampolines need them, and nothing
	// else can stand in for them there.
	KernelBTF Answer `json:"kernelBTF"`
	// BTF is where programs that read kernel structures get their types from.
	BTF BTFSource `json:"btf"`

	Lockdown        string `json:"lockdown"`        // none, integrity, confidentiality, or why it is not known
	KprobeBlacklist string `json:"kprobeBlacklist"` // how many functions are on it, or why it is not known
	// UretprobeSyscall is what comes of a uretprobe in a process whose seccomp
	// profile does not know the system call that returns go through.
	UretprobeSyscall UretprobeSyscall `json:"uretprobeSyscall"`
	UretprobeReason  string           `json:"uretprobeReason,omitempty"`

	TookNs int64 `json:"tookNs,string"` // how long looking took
}

// ProbeType is what this kernel makes of one probe type.
type ProbeType struct {
	ProbeType string    `json:"probeType"`
	Supported bool      `json:"supported"`
	Mechanism Mechanism `json:"mechanism,omitempty"` // empty if not supported
	// Reason is why it is not supported, or why nothing better was taken.
	Reason string `json:"reason,omitempty"`
	// Fired is whether its program was seen to run.
	Fired  bool   `json:"fired"`
	Cookie Answer `json:"cookie"` // one program for many sites
	// CountsMisses is whether every run that the kernel skips is counted.
	CountsMisses bool   `json:"countsMisses"`
	MissesReason string `json:"missesReason,omitempty"`
}

// Set is what this kernel makes of one ready-made set.
type Set struct {
	Set          string    `json:"set"`
	Supported    bool      `json:"supported"`
	Mechanism    Mechanism `json:"mechanism,omitempty"`
	Hooks        []string  `json:"hooks,omitempty"` // the kernel's events that it needs
	Reason       string    `json:"reason,omitempty"`
	CountsMisses bool      `json:"countsMisses"`
	MissesReason string    `json:"missesReason,omitempty"`
}

// Types are the probe types, in the order in which Facts has them.
var Types = []string{"uprobe", "uretprobe", "usdt", "kprobe", "kretprobe", "fentry", "fexit", "tracepoint", "rawTracepoint"}

// Sets are the ready-made sets, likewise.
var Sets = []string{"exec", "libraries", "syscalls", "network", "files"}

// Mechanism is how a probe is attached.
type Mechanism string

// The mechanisms. The tracefs ones are taken where the kernel has no perf
// event of its own kind for the probe.
const (
	UprobeMulti   Mechanism = "uprobeMulti"   // one link for many offsets of a file
	PerfLink      Mechanism = "perfLink"      // one link per site, one program for all
	PerfEvent     Mechanism = "perfEvent"     // one event and one small program per site
	TracefsLink   Mechanism = "tracefsLink"   // like PerfLink, on an event made in tracefs
	TracefsEvent  Mechanism = "tracefsEvent"  // like PerfEvent, on an event made in tracefs
	Trampoline    Mechanism = "trampoline"    // a call patched into the function
	RawTracepoint Mechanism = "rawTracepoint" // the event's arguments as they are
)

// title is the mechanism in words.
func (m Mechanism) title() string {
	switch m {
	case UprobeMulti:
		return "uprobe_multi link"
	case PerfLink:
		return "perf link with cookie"
	case PerfEvent:
		return "perf event per site"
	case TracefsLink:
		return "tracefs event with cookie"
	case TracefsEvent:
		return "tracefs event per site"
	case RawTracepoint:
		return "raw tracepoint"
	}
	return string(m)
}

// UretprobeSyscall says what seccomp does to returns through a uretprobe.
type UretprobeSyscall string

// From 6.11 on x86-64, returns go through a system call of their own. A
// profile that does not list it killed the process, until seccomp was told to
// let it pass.
const (
	SyscallNotUsed UretprobeSyscall = "notUsed"
	SyscallPasses  UretprobeSyscall = "passesSeccomp"
	SyscallKilled  UretprobeSyscall = "killedBySeccomp"
	SyscallUnknown UretprobeSyscall = "unknown"
)

// The values of MaxSites.
const (
	SitesMulti  = 20000
	SitesSingle = 256
)

// Answer is yes, or no with the reason.
type Answer struct {
	Yes    bool   `json:"yes"`
	Reason string `json:"reason,omitempty"`
}

func (a Answer) String() string {
	if a.Yes {
		return "yes"
	}
	return "no: " + a.Reason
}

func answer(err error) Answer {
	if err != nil {
		return Answer{Reason: text(err)}
	}
	return Answer{Yes: true}
}

// Type returns the facts of one probe type; of a name that is none, that it is
// not supported.
func (f Facts) Type(name string) ProbeType {
	for _, t := range f.Types {
		if t.ProbeType == name {
			return t
		}
	}
	return ProbeType{ProbeType: name, Reason: "it was not looked for"}
}

// ErrNotTried is returned with facts of a kernel on which this process is not
// allowed to try.
var ErrNotTried = errors.New("not allowed to try")

// Look asks the running kernel, and takes some 100 ms for it. With ErrNotTried
// the facts hold what can be known without rights, and every probe type says
// why it was not tried.
func Look() (Facts, error) {
	began := time.Now()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Facts{}, fmt.Errorf("uname: %w", err)
	}
	f := Facts{
		Release:         unix.ByteSliceToString(u.Release[:]),
		Machine:         unix.ByteSliceToString(u.Machine[:]),
		Cgroups:         cgroupMode(),
		KernelBTF:       answer(ownBTF()),
		Tracefs:         answer(tracefs()),
		Lockdown:        lockdown(),
		KprobeBlacklist: kprobeBlacklist(),
		MaxSites:        SitesSingle,
	}
	f.BTF = BTFSource{Source: noBTF}
	if f.KernelBTF.Yes {
		f.BTF = BTFSource{Source: ownBTFPath}
	}
	err := f.try()
	f.TookNs = time.Since(began).Nanoseconds()
	return f, err
}

func cgroupMode() string {
	fs, err := cgroup.Find()
	if err != nil {
		return text(err)
	}
	return string(fs.Mode)
}

// version takes the two numbers at the head of a kernel release.
func version(release string) (major, minor int, ok bool) {
	a, rest, ok1 := strings.Cut(release, ".")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	major, err1 := strconv.Atoi(a)
	minor, err2 := strconv.Atoi(rest[:end])
	return major, minor, ok1 && err1 == nil && err2 == nil
}
