package probe

import (
	"debug/elf"
	"runtime"

	"probity/bpf/kernel"
	"probity/bpf/symbol"
)

// Machine is the instruction set of the host kernel.
type Machine struct {
	elf        elf.Machine
	breakpoint []byte // what uprobes write over an instruction
	// syscallPrefix is what the names of the kernel's functions that serve
	// system calls begin with (CONFIG_ARCH_HAS_SYSCALL_WRAPPER).
	syscallPrefix string
	// noUretprobe says why return probes of the kernel's would break programs
	// here; "" if they do not.
	noUretprobe string
}

// WithoutUretprobes returns a machine on which a function's return instructions
// are probed instead of using the kernel's return probes.
func (m Machine) WithoutUretprobes(why string) Machine {
	m.noUretprobe = why
	return m
}

// Host returns the machine that this program was built for.
func Host() Machine {
	switch runtime.GOARCH {
	case "arm64":
		// UPROBE_SWBP_INSN, brk #5 (arch/arm64/include/asm/uprobes.h), little endian.
		return Machine{elf: elf.EM_AARCH64, breakpoint: []byte{0xa0, 0x00, 0x20, 0xd4}, syscallPrefix: "__arm64_sys_"}
	default:
		return Machine{elf: elf.EM_X86_64, breakpoint: []byte{0xcc}, syscallPrefix: "__x64_sys_"} // int3
	}
}

// runs reports whether this kernel runs the file's code itself. 32-bit
// programs of a 64-bit kernel are left out: their sites cannot be proven yet.
func (m Machine) runs(f *symbol.File) bool {
	return f.Machine == m.elf && f.Class == elf.ELFCLASS64
}

// entryName is how the kernel names the function of a system call where that
// is not the call's own name (arch/x86/entry/syscalls/syscall_64.tbl,
// include/uapi/asm-generic/unistd.h).
func (m Machine) entryName(call string) string {
	switch call {
	case "stat", "fstat", "lstat", "uname":
		return "new" + call
	case "umount2":
		return "umount"
	case "sendfile":
		return "sendfile64"
	case "fadvise64":
		if m.elf == elf.EM_AARCH64 {
			return "fadvise64_64"
		}
	}
	return call
}

// On returns the host's machine with what its kernel was found to do.
func On(f kernel.Facts) Machine {
	m := Host()
	switch f.UretprobeSyscall {
	case kernel.SyscallKilled:
		m = m.WithoutUretprobes("this kernel returns through a system call, for which a seccomp profile kills the program")
	case kernel.SyscallUnknown:
		m = m.WithoutUretprobes("it is not known whether seccomp profiles kill a program that returns through this kernel's return probe: " + f.UretprobeReason)
	}
	return m
}
