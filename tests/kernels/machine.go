// Package kernels boots real kernels in virtual machines and has the engine's
// own tests and a conformance run pass in each.
//
// In: machines.txt, which names the kernels; what scripts/kernels.sh has put
// into the cache; expect.json, which says what must work where. Out: passing
// tests, and with -write docs/kernels.md and docs/kernels.json. What must work
// is data, so that a regression cannot hide as a skip: a probe type that is
// expected and missing fails, and so does one that works and is not expected.
//
// QEMU emulates the processor (no KVM is needed): times in a guest compare
// with each other, not with a real machine's.
package kernels

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

//go:embed machines.txt
var table string

// Machine is one row of machines.txt: a kernel to boot.
type Machine struct {
	Name  string
	Suite string // Debian's release
	Arch  string // as Debian and Go name it
	// With is the userland; "" is that of the engine's tests, Bare is none: the guest
	// is what it is loaded with.
	With string
	// Disk is the unix socket of an NBD server: a disk with a write cache.
	Disk string
	// TPM is the unix socket on which swtpm takes QEMU's commands.
	TPM string
}

// Bare is no userland.
const Bare = "none"

// Machines lists the kernels of machines.txt, in its order.
func Machines() ([]Machine, error) {
	var out []Machine
	for line := range strings.Lines(table) {
		field := strings.Fields(line)
		switch {
		case len(field) == 0 || strings.HasPrefix(field[0], "#") || field[0] == "userland":
		case len(field) < 4 || field[0] != "kernel":
			return nil, fmt.Errorf("machines.txt: %q", line)
		case field[3] != "amd64" && field[3] != "arm64":
			return nil, fmt.Errorf("machines.txt: no QEMU is known for architecture %q", field[3])
		default:
			out = append(out, Machine{Name: field[1], Suite: field[2], Arch: field[3]})
		}
	}
	return out, nil
}

// qemu is the command line of the machine, without kernel and initrd.
func (m Machine) qemu() []string {
	// One thread for both processors: with a thread each, a processor ran into
	// code that the other was patching (int3 at a static branch, which the
	// kernel no longer knew of), and the kernel died of it; probes patch code.
	common := []string{"-accel", "tcg,thread=single", "-smp", "2", "-m", "2G", "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"}
	if m.Disk != "" {
		// Not NVMe, which no kernel would need a module for: QEMU's drops the bit that
		// forces a write onto the medium, and says all the same that it knows it. This
		// one does not, so the kernel flushes.
		common = append(common, "-blockdev", "driver=nbd,node-name=disk,server.type=unix,server.path="+m.Disk, "-device", "virtio-blk-pci,drive=disk")
	}
	if m.TPM != "" {
		common = append(common, "-chardev", "socket,id=chip,path="+m.TPM, "-tpmdev", "emulator,id=tpm,chardev=chip", "-device", "tpm-tis,tpmdev=tpm")
	}
	if m.Arch == "arm64" {
		// pauth-impdef: the architected algorithm of pointer authentication makes
		// an emulated kernel many times slower.
		return append([]string{"qemu-system-aarch64", "-machine", "virt", "-cpu", "max,pauth-impdef=on"}, common...)
	}
	// QEMU 7.2 crashes newer kernels with cx16 and la57.
	return append([]string{"qemu-system-x86_64", "-cpu", "max,-cx16,-la57"}, common...)
}

// QEMU is the program that emulates the machine.
func (m Machine) QEMU() string { return m.qemu()[0] }

// parameters is the kernel's command line.
func (m Machine) parameters() string {
	// On a busy host the timer may come too late for a check that panics.
	console := "ttyS0 no_timer_check"
	if m.Arch == "arm64" {
		console = "ttyAMA0"
	}
	// Mitigations cost an emulated processor most of its time. A kernel that has
	// hurt itself ends, instead of going on somehow. A process may write its own
	// text through /proc/PID/mem, as everywhere before 6.12: tests provoke that.
	return "console=" + console + " loglevel=4 oops=panic panic=-1 mitigations=off proc_mem.force_override=always"
}

// cached is the machine's files in dir, the cache of scripts/kernels.sh.
func (m Machine) kernel(dir string) string { return filepath.Join(dir, m.Name, "vmlinuz") }
func (m Machine) userland(dir string) string {
	if m.With == "" {
		m.With = "userland"
	}
	return filepath.Join(dir, m.With+"-"+m.Arch, "root.cpio")
}

// Release is the kernel's release as its package names it.
func (m Machine) Release(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, m.Name, "release"))
	if err != nil {
		return "", fmt.Errorf("read the release of kernel %s: %w", m.Name, err)
	}
	return strings.TrimSpace(string(b)), nil
}
