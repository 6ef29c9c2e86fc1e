// Package evidence is the vocabulary and the wire format of what Probity
// testifies: the four states and how they fold, the closed lists of reasons,
// the lines of a chunk, and the in-toto statement that covers a chunk.
//
// In: facts that evidence/witness has put together. Out: values and their
// canonical bytes. The package imports nothing else of this module and does no
// I/O. It trusts its caller to state facts; what it guarantees is shape: one
// spelling per value, so that equal facts have equal bytes. It is not a
// control: nothing here is signed (see evidence/sign) or durable (see
// evidence/spool).
//
// FORMAT.md beside this file is the same format for readers in other
// languages; testdata pins its bytes.
package evidence

import (
	"fmt"
	"strconv"
	"time"
)

// State is what the evidence says about one site, or one probe, of a container.
type State string

// The four states (FORMAT.md, "States").
const (
	Hit        State = "hit"
	ArmedNoHit State = "armedNoHit"
	Partial    State = "partial"
	NotArmed   State = "notArmed"
)

// States lists them all.
var States = []State{Hit, ArmedNoHit, Partial, NotArmed}

// ProbeType names the kernel mechanism that observed a site.
type ProbeType string

// The probe types, best first where one is preferred to another.
const (
	Uprobe        ProbeType = "uprobe"
	Uretprobe     ProbeType = "uretprobe"
	USDT          ProbeType = "usdt"
	Fentry        ProbeType = "fentry"
	Fexit         ProbeType = "fexit"
	RawTracepoint ProbeType = "rawTracepoint"
	Tracepoint    ProbeType = "tracepoint"
	Kprobe        ProbeType = "kprobe"
	Kretprobe     ProbeType = "kretprobe"
	UnknownProbe  ProbeType = "unknown"
)

// ProbeTypes lists them all.
var ProbeTypes = []ProbeType{Uprobe, Uretprobe, USDT, Fentry, Fexit, RawTracepoint, Tracepoint, Kprobe, Kretprobe, UnknownProbe}

// OfKernelFunction reports whether sites of this type are functions of the
// kernel: they lie in no file of the container.
func (p ProbeType) OfKernelFunction() bool {
	switch p {
	case Fentry, Fexit, Kprobe, Kretprobe:
		return true
	}
	return false
}

// GapReason says why a stretch of time, or a number of events, is not covered.
type GapReason string

// The closed list of gap reasons.
const (
	GapAdopted             GapReason = "adopted"             // running before us
	GapLateAttach          GapReason = "lateAttach"          // armed after the first instruction may have run
	GapAgentDown           GapReason = "agentDown"           // no agent and nothing that kept its maps
	GapRuntimeDisconnected GapReason = "runtimeDisconnected" // a source could not tell us
	GapRingFull            GapReason = "ringFull"            // event detail dropped; counters unaffected
	GapSetFull             GapReason = "setFull"             // a bounded set overflowed
	GapKernelMissed        GapReason = "kernelMissed"        // the kernel skipped the program
	GapUnarmedMapping      GapReason = "unarmedMapping"      // shared or writable executable mapping, or of a file that is not armed
	GapFileChanged         GapReason = "fileChanged"         // the container no longer runs the armed file
	GapLinkLost            GapReason = "linkLost"            // the attachment is gone, or what it counted could not be read
	GapBudgetDisarm        GapReason = "budgetDisarm"        // disarmed by budget
	GapStoodDown           GapReason = "stoodDown"           // stopped after its answer
	GapPolicyChanged       GapReason = "policyChanged"
	GapAttachFailed        GapReason = "attachFailed"
	GapAttributionLost     GapReason = "attributionLost" // a task left the container's cgroup subtree
	GapDecodeError         GapReason = "decodeError"
	GapSpoolDropped        GapReason = "spoolDropped" // evidence could not be written
	GapPowerLoss           GapReason = "powerLoss"
	GapSuspended           GapReason = "suspended" // the machine slept
	GapClockStep           GapReason = "clockStep" // the wall clock was set; boot times are what they were
	GapCoalesced           GapReason = "coalesced" // interim lines were left out, for later ones that say the same
)

// GapReasons lists them all.
var GapReasons = []GapReason{
	GapAdopted, GapLateAttach, GapAgentDown, GapRuntimeDisconnected, GapRingFull, GapSetFull, GapKernelMissed,
	GapUnarmedMapping, GapFileChanged, GapLinkLost, GapBudgetDisarm, GapStoodDown, GapPolicyChanged, GapAttachFailed,
	GapAttributionLost, GapDecodeError, GapSpoolDropped, GapPowerLoss, GapSuspended, GapClockStep, GapCoalesced,
}

// DetailOnly reports whether such a gap costs detail and not coverage: counters,
// and so states, stay exact, and a line may be complete in spite of it.
func (r GapReason) DetailOnly() bool {
	switch r {
	case GapRingFull, GapSetFull, GapDecodeError, GapSpoolDropped, GapClockStep, GapCoalesced:
		return true
	}
	return false
}

// NotArmedReason says why a site or a probe was never armed.
type NotArmedReason string

// The closed list of reasons for not arming.
const (
	SymbolNotFound         NotArmedReason = "symbolNotFound"
	FileNotFound           NotArmedReason = "fileNotFound"
	UnprobeableInstruction NotArmedReason = "unprobeableInstruction"
	WouldBreakTarget       NotArmedReason = "wouldBreakTarget"
	KernelUnsupported      NotArmedReason = "kernelUnsupported"
	SandboxedRuntime       NotArmedReason = "sandboxedRuntime"
	ForeignArchitecture    NotArmedReason = "foreignArchitecture"
	ManagedCode            NotArmedReason = "managedCode"
	RemoteFilesystem       NotArmedReason = "remoteFilesystem"
	SharedCgroup           NotArmedReason = "sharedCgroup"
	OverBudget             NotArmedReason = "budget"
	PolicyRefused          NotArmedReason = "policyRefused"
	FileUnreadable         NotArmedReason = "fileUnreadable" // not a regular file, not a whole ELF, past the bounds
	AttachFailed           NotArmedReason = "attachFailed"
	EndedBeforeArmed       NotArmedReason = "endedBeforeArmed"
)

// NotArmedReasons lists them all.
var NotArmedReasons = []NotArmedReason{
	SymbolNotFound, FileNotFound, UnprobeableInstruction, WouldBreakTarget, KernelUnsupported, SandboxedRuntime,
	ForeignArchitecture, ManagedCode, RemoteFilesystem, SharedCgroup, OverBudget, PolicyRefused, FileUnreadable,
	AttachFailed, EndedBeforeArmed,
}

// Uint64 is a 64-bit value that JSON carries as a decimal string, because
// readers that follow RFC 8259 section 6 hold numbers as float64.
type Uint64 uint64

// MarshalText implements encoding.TextMarshaler.
func (u Uint64) MarshalText() ([]byte, error) { return strconv.AppendUint(nil, uint64(u), 10), nil }

// UnmarshalText implements encoding.TextUnmarshaler. It accepts exactly what
// MarshalText writes.
func (u *Uint64) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 10, 64)
	if err != nil || b[0] == '+' || b[0] == '0' && len(b) > 1 {
		return fmt.Errorf("%q is not a decimal 64-bit number in its shortest form", clip(string(b)))
	}
	*u = Uint64(n)
	return nil
}

// Loss is a loss counter: a number of events, or unknowable. The zero value is
// "0 events, and that was counted".
type Loss struct {
	N          uint64
	Unknowable bool
}

// MarshalText implements encoding.TextMarshaler.
func (l Loss) MarshalText() ([]byte, error) {
	if l.Unknowable {
		return []byte("unknowable"), nil
	}
	return Uint64(l.N).MarshalText()
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *Loss) UnmarshalText(b []byte) error {
	if string(b) == "unknowable" {
		*l = Loss{Unknowable: true}
		return nil
	}
	var u Uint64
	if err := u.UnmarshalText(b); err != nil {
		return err
	}
	*l = Loss{N: uint64(u)}
	return nil
}

// TimeLayout is the one spelling of a time: RFC 3339, UTC, nine digits.
const TimeLayout = "2006-01-02T15:04:05.000000000Z"

// Time is a time in a line. The zero value means absent.
type Time struct{ t time.Time }

// TimeOf returns t as a Time. It drops a monotonic reading, because that would
// be preferred to the wall time in every later subtraction.
func TimeOf(t time.Time) Time { return Time{t.Round(0).UTC()} }

// Std returns t as a time.Time.
func (t Time) Std() time.Time { return t.t }

// IsZero reports whether t is absent (used by the omitzero option).
func (t Time) IsZero() bool { return t.t.IsZero() }

func (t Time) String() string { return t.t.Format(TimeLayout) }

// MarshalText implements encoding.TextMarshaler.
func (t Time) MarshalText() ([]byte, error) {
	if y := t.t.Year(); y < 0 || y > 9999 {
		return nil, fmt.Errorf("year %d does not fit %s", y, TimeLayout)
	}
	return t.t.AppendFormat(make([]byte, 0, len(TimeLayout)), TimeLayout), nil
}

// UnmarshalText implements encoding.TextUnmarshaler. It accepts exactly what
// MarshalText writes.
func (t *Time) UnmarshalText(b []byte) error {
	v, ok := parseTime(string(b))
	if !ok {
		return fmt.Errorf("%q is not a time of the form %s", clip(string(b)), TimeLayout)
	}
	t.t = v
	return nil
}

// parseTime is time.Parse for TimeLayout alone; a verifier reads several times
// in every line, and this is a tenth of the cost.
func parseTime(s string) (time.Time, bool) {
	if len(s) != len(TimeLayout) || s[4] != '-' || s[7] != '-' || s[10] != 'T' || s[13] != ':' || s[16] != ':' || s[19] != '.' || s[29] != 'Z' {
		return time.Time{}, false
	}
	var n [7]int // year, month, day, hour, minute, second, nanosecond
	for i, at := range [7][2]int{{0, 4}, {5, 7}, {8, 10}, {11, 13}, {14, 16}, {17, 19}, {20, 29}} {
		for _, c := range []byte(s[at[0]:at[1]]) {
			d := c - '0'
			if d > 9 {
				return time.Time{}, false
			}
			n[i] = n[i]*10 + int(d)
		}
	}
	if n[3] > 23 || n[4] > 59 || n[5] > 59 {
		return time.Time{}, false
	}
	t := time.Date(n[0], time.Month(n[1]), n[2], n[3], n[4], n[5], n[6], time.UTC)
	if y, m, d := t.Date(); y != n[0] || int(m) != n[1] || d != n[2] {
		return time.Time{}, false // time.Date normalised a day that does not exist
	}
	return t, true
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}

// Clock relates boot time to wall time, as read once at one moment. Every time
// in a chunk is derived from boot time by the clock in the chunk's header.
type Clock struct {
	BootNs Uint64 `json:"bootNs"` // CLOCK_BOOTTIME, nanoseconds
	Wall   Time   `json:"wall"`   // CLOCK_REALTIME at that moment
}

// Time converts nanoseconds of CLOCK_BOOTTIME.
func (c Clock) Time(bootNs int64) Time {
	return TimeOf(c.Wall.t.Add(time.Duration(bootNs - int64(c.BootNs))))
}

// Boot converts back to nanoseconds of CLOCK_BOOTTIME; the inverse of Time for
// times of the same clock.
func (c Clock) Boot(t Time) int64 {
	return int64(c.BootNs) + int64(t.t.Sub(c.Wall.t))
}
