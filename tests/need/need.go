// Package need names what a test needs beyond an unprivileged Linux machine
// with Go, and looks for it.
//
// In: the machine, and two variables of the environment. Out: either a test
// that may go on, with the paths it asked for, or a test that is skipped with
// a sentence that says what is missing. Where PROBITY_REQUIRE names the need
// ("all", or a list of names separated by commas), the same skip is a failure,
// so that a green run in CI proves that nothing was left out.
//
// PROBITY_PEERS is the directory of the programs that are built from their Go
// modules (see scripts/peers.sh); by default it is probity/peers below the
// user's cache directory.
//
// What few machines have is required only by its name:
// "all" does not mean it.
//
// Every message begins with "needs NAME: "; tests/need/report counts them. The
// package trusts the machine's PATH. It changes nothing on the machine.
package need

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// Require is the variable that turns skips into failures.
const Require = "PROBITY_REQUIRE"

// Names lists the needs that "all" requires, and that PROBITY_REQUIRE may name
// besides it. A program's need is "command", or "command:NAME" for just one.
var Names = []string{"root", "bpf", "tracefs", "cgroup2", "podman", "runc", "containerd", "cosign", "runsc", "fuse", "libc", "file", "btf", "kernel", "command"}

// ByName lists the needs that only their name requires. A feature of the kernel
// and a machine's architecture are "feature:NAME" and "machine:NAME" as well.
var ByName = []string{"kvm", "qemu", "rustc", "node", "java", "otelcol", "systemd", "clock", "feature", "machine"}

// unmet ends the test: by a failure if the need is required, else by a skip.
func unmet(t testing.TB, name, format string, args ...any) {
	t.Helper()
	isRequired, unknown := required(os.Getenv(Require), name)
	if unknown != "" {
		t.Fatalf("%s=%s: %q is not a need; there are all, %s", Require, os.Getenv(Require), unknown, strings.Join(slices.Concat(Names, ByName), ", "))
	}
	if isRequired {
		t.Fatalf("needs "+name+": "+format+" ("+Require+" requires it)", args...)
	}
	t.Skipf("needs "+name+": "+format, args...)
}

// required reports whether list requires name. A misspelt name would require
// nothing and still look strict, so it is returned as unknown.
func required(list, name string) (yes bool, unknown string) {
	family, _, _ := strings.Cut(name, ":")
	for n := range strings.SplitSeq(list, ",") {
		n = strings.TrimSpace(n)
		switch {
		case n == "":
		case n == "all" && !slices.Contains(ByName, family), n == name, n == family:
			yes = true
		case n == "all", slices.Contains(Names, n), slices.Contains(ByName, n), strings.HasPrefix(n, "command:"), strings.HasPrefix(n, "feature:"), strings.HasPrefix(n, "machine:"):
		default:
			unknown = n
		}
	}
	return yes, unknown
}
