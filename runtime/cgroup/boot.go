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
func BootTime() int64 { return read(unix.CLOCK_BOOTTIME) }

func read(clock int32) int64 {
	var ts unix.Timespec
	// It cannot fail: the clocks exist since Linux 2.6.39 and ts is ours.
	_ = unix.ClockGettime(clock, &ts)
	return ts.Nano()
}

// Clocks are three of the kernel's clocks at one moment, in nanoseconds. Whoever slews
// the clock (adjtime, NTP) slews all three alike: Boot moves against Mono only while
// the machine sleeps, and Wall against Boot only when somebody sets it.
type Clocks struct {
	Boot int64 // CLOCK_BOOTTIME
	Mono int64 // CLOCK_MONOTONIC, which stands while the machine sleeps
	Wall int64 // CLOCK_REALTIME
	// Within is how long the reading took: Boot is not off by more than that.
	Within int64
}

// Who is interrupted between two clocks reads them again: so often, unless they were
// read as quickly as this.
const (
	clockTries = 8
	clocksIn   = 20_000
)

// ReadClocks reads them together. A machine that goes to sleep between two readings
// does not come between the clocks: that reading takes long, and is not the shortest.
func ReadClocks() (best Clocks) {
	for i := range clockTries {
		c := Clocks{Boot: BootTime(), Mono: read(unix.CLOCK_MONOTONIC), Wall: read(unix.CLOCK_REALTIME)}
		c.Within = BootTime() - c.Boot
		if i == 0 || c.Within < best.Within {
			best = c
		}
		if best.Within <= clocksIn {
			break
		}
	}
	return best
}
