package need

import (
	"bufio"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Root needs effective uid 0.
func Root(t testing.TB) {
	t.Helper()
	if uid := os.Geteuid(); uid != 0 {
		unmet(t, "root", "the effective uid is %d", uid)
	}
}

// BPF needs a kernel that loads a program of the type that uprobes use, for
// this process. It loads one: asking for a capability or a version would not
// see lockdown, a seccomp profile or a kernel built without BPF.
func BPF(t testing.TB) {
	t.Helper()
	Root(t)
	if err := loads(); err != nil {
		unmet(t, "bpf", "load a two-instruction program: %v", err)
	}
}

// loads asks once for the process. Kernels before 5.11 count what root has in all
// processes against RLIMIT_MEMLOCK, and give it back some time after it was let go:
// what is asked is not how much is left. The limit is as it was afterwards, since
// that the product lifts it by itself is a thing to test.
var loads = sync.OnceValue(func() error {
	var was unix.Rlimit
	lifted := unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}, &was) == nil // else the load says what is missing
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.Kprobe,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		License:      "Dual BSD/GPL",
	})
	if err == nil {
		err = prog.Close()
	}
	if lifted {
		err = errors.Join(err, unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &was, nil))
	}
	return err
})

// Tracefs needs a readable tracefs, and returns where it is. It mounts none:
// packages are tested side by side, and the first to unmount would take it
// from the others. scripts/test.sh mounts one for all of them.
func Tracefs(t testing.TB) string {
	t.Helper()
	for _, dir := range []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) != nil || int64(fs.Type) != unix.TRACEFS_MAGIC {
			continue
		}
		if _, err := os.ReadDir(dir + "/events"); err != nil {
			unmet(t, "tracefs", "read the events: %v", err)
		}
		return dir
	}
	unmet(t, "tracefs", "it is not mounted (mount -t tracefs tracefs /sys/kernel/tracing)")
	return ""
}

// Cgroup2 needs a cgroup2 mount, unified or the hybrid mode's, and returns its
// mount point.
func Cgroup2(t testing.TB) string {
	t.Helper()
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if field := strings.Fields(lines.Text()); len(field) > 2 && field[2] == "cgroup2" {
			return field[1]
		}
	}
	unmet(t, "cgroup2", "no cgroup2 file system is mounted")
	return ""
}

// Feature needs something that a kernel may have been built or set up without.
// why is what keeps it from offering that, nil if it does offer it. Only its
// name requires it.
func Feature(t testing.TB, name string, why error) {
	t.Helper()
	if why != nil {
		unmet(t, "feature:"+name, "%v", why)
	}
}

// Machine needs a machine of an architecture, as Go names them. Only its name
// requires it.
func Machine(t testing.TB, arch string) {
	t.Helper()
	if runtime.GOARCH != arch {
		unmet(t, "machine:"+arch, "this is %s", runtime.GOARCH)
	}
}

// KVM needs a device that makes virtual machines, and returns it. Only its name
// requires it: most machines that are virtual themselves have none.
func KVM(t testing.TB) *os.File {
	t.Helper()
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		unmet(t, "kvm", "%v", err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// SystemdMachine is the variable that says that this machine is there to be changed,
// and which directory has the product's package.
const SystemdMachine = "PROBITY_SYSTEMD"

// Systemd needs a machine whose first process is systemd, and on which anything may
// be installed, started and removed: it is made for the test. It returns the
// directory of the package. Only its name requires it.
func Systemd(t testing.TB) string {
	t.Helper()
	dir := os.Getenv(SystemdMachine)
	if dir == "" {
		unmet(t, "systemd", "a machine that may be changed: tests/kernels makes one, and says so by $%s", SystemdMachine)
	}
	Root(t)
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		unmet(t, "systemd", "systemd is not the first process: %v", err)
	}
	return dir
}

// SystemdBoot needs that everything is booted: a machine with systemd takes minutes.
// Only its name requires it.
func SystemdBoot(t testing.TB, everything bool) {
	t.Helper()
	if !everything {
		unmet(t, "systemd", "$PROBITY_BOOT=all boots a machine with it")
	}
}

// ClockMachine is the variable that says that this machine's clock may be set, and that
// it may be put to sleep.
const ClockMachine = "PROBITY_CLOCK"

// Clock needs a machine that is there for that: a clock is everybody's. Only its name
// requires it.
func Clock(t testing.TB) {
	t.Helper()
	if os.Getenv(ClockMachine) == "" {
		unmet(t, "clock", "a machine whose clock may be set: tests/kernels makes one, and says so by $%s", ClockMachine)
	}
	Root(t)
}
