// Package kernel says what the running kernel can do and can count, by trying.
//
// In: nothing but the running kernel. Out: [Facts], a value that prints. It
// trusts the kernel and changes nothing in it.
package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// Facts are what matters of a kernel for the probe types we have.
type Facts struct {
	Release      string `json:"release"`
	Machine      string `json:"machine"`
	UprobeMulti  Answer `json:"uprobeMulti"`  // many offsets of one file in one link (6.6)
	AttachCookie Answer `json:"attachCookie"` // one program for all sites of perf links (5.15)
	Tracefs      Answer `json:"tracefs"`      // tracepoints by name
	KernelBTF    Answer `json:"kernelBTF"`    // needed by raw tracepoints that read kernel structs
	CountsMisses Answer `json:"countsMisses"` // whether a skipped program run is always counted (6.7)
}

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
		return Answer{Reason: err.Error()}
	}
	return Answer{Yes: true}
}

// Look asks the running kernel.
func Look() (Facts, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Facts{}, fmt.Errorf("uname: %w", err)
	}
	f := Facts{
		Release:      unix.ByteSliceToString(u.Release[:]),
		Machine:      unix.ByteSliceToString(u.Machine[:]),
		UprobeMulti:  answer(features.HaveBPFLinkUprobeMulti()),
		AttachCookie: answer(features.HaveProgramHelper(ebpf.Kprobe, asm.FnGetAttachCookie)),
		Tracefs:      answer(tracefs()),
	}
	_, err := os.Stat("/sys/kernel/btf/vmlinux")
	f.KernelBTF = answer(err)
	// A counter that never moves cannot be told by trying from one that is not
	// there, so this one answer goes by version: missed runs in trace_call_bpf,
	// which runs the programs of perf links, are counted from 6.7 on.
	if major, minor, ok := version(f.Release); !ok {
		f.CountsMisses = Answer{Reason: "kernel release " + strconv.Quote(f.Release) + " has no version"}
	} else if major < 6 || major == 6 && minor < 7 {
		f.CountsMisses = Answer{Reason: "kernels before 6.7 do not count every skipped program run"}
	} else {
		f.CountsMisses = Answer{Yes: true}
	}
	return f, nil
}

func tracefs() error {
	for _, dir := range []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"} {
		if _, err := os.Stat(filepath.Join(dir, "events/sched/sched_process_exec/id")); err == nil {
			return nil
		}
	}
	return errors.New("not mounted on /sys/kernel/tracing or /sys/kernel/debug/tracing")
}

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
