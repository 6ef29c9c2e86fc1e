package cgroup

import (
	"bytes"
	"fmt"
	"regexp"

	"golang.org/x/sys/unix"
)

var bootID = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// BootID returns the kernel's random id of this boot. Cgroup ids begin anew
// with each boot: a run is named by both.
func BootID() (string, error) {
	b, err := readBounded("/proc/sys/kernel/random/boot_id", 64)
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	id := bytes.TrimSuffix(b, []byte("\n"))
	if !bootID.Match(id) {
		return "", fmt.Errorf("read the boot id: %q is not a UUID", id)
	}
	return string(id), nil
}

// BootTime returns CLOCK_BOOTTIME in nanoseconds: the one place where evidence
// time is read.
func BootTime() int64 {
	var ts unix.Timespec
	// It cannot fail: the clock exists since Linux 2.6.39 and ts is ours.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return ts.Nano()
}
