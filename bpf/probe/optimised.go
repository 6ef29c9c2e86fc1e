package probe

import (
	"debug/elf"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"probity/runtime/process"
)

// From Linux 6.18 on, x86-64 kernels write a call over a probed five-byte nop
// once a process has run into the breakpoint there: it leads to a page of the
// kernel's own in that process, where a system call runs the probe
// (arch_uprobe_optimize). That is no tampering: such a page can be neither
// written nor moved, and whoever writes the same call himself runs the probe.
const (
	trampolinePage = "[uprobes-trampoline]"
	nearCall       = 0xe8
	nearCallLen    = 5
)

// optimised counts at how many of these addresses of a process, of which none
// reads as a breakpoint, the kernel has written such a call.
func optimised(machine Machine, p *process.Process, at []uintptr) (n int, err error) {
	if machine.elf != elf.EM_X86_64 || len(at) == 0 {
		return 0, nil
	}
	var pages []process.Mapping
	for _, a := range at {
		var code [nearCallLen]byte
		read, err := unix.ProcessVMReadv(p.Thread, []unix.Iovec{{Base: &code[0], Len: nearCallLen}}, []unix.RemoteIovec{{Base: a, Len: nearCallLen}}, 0)
		if err != nil || read != nearCallLen || code[0] != nearCall {
			continue
		}
		if pages == nil {
			if pages, err = p.Named(trampolinePage); err != nil || len(pages) == 0 {
				return n, err
			}
		}
		to := uint64(a) + nearCallLen + uint64(int64(int32(binary.LittleEndian.Uint32(code[1:]))))
		for _, m := range pages {
			if to == m.Start && !m.Writable {
				n++
				break
			}
		}
	}
	return n, nil
}
