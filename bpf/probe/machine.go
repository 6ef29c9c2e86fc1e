package probe

import (
	"debug/elf"
	"runtime"

	"probity/bpf/symbol"
)

// Machine is the instruction set of the host kernel.
type Machine struct {
	elf        elf.Machine
	breakpoint []byte // what uprobes write over an instruction
}

// Host returns the machine that this program was built for.
func Host() Machine {
	switch runtime.GOARCH {
	case "arm64":
		// UPROBE_SWBP_INSN, brk #5 (arch/arm64/include/asm/uprobes.h), little endian.
		return Machine{elf.EM_AARCH64, []byte{0xa0, 0x00, 0x20, 0xd4}}
	default:
		return Machine{elf.EM_X86_64, []byte{0xcc}} // int3
	}
}

// runs reports whether this kernel runs the file's code itself. 32-bit
// programs of a 64-bit kernel are left out: their sites cannot be proven yet.
func (m Machine) runs(f *symbol.File) bool {
	return f.Machine == m.elf && f.Class == elf.ELFCLASS64
}
