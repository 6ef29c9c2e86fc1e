package probe

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// canary is a private executable mapping of a file, made by the agent so that
// the kernel analyses and patches the probed instructions in it.
//
// It is read with process_vm_readv and never by dereferencing: the file below
// may shrink, and a fault in the agent is not an answer.
type canary struct {
	base  uintptr
	len   uintptr
	start uint64 // file offset of base
}

// newCanary maps the pages of f from the lowest to the highest offset.
func newCanary(f *os.File, offsets []uint64, insn int) (*canary, error) {
	page := uint64(os.Getpagesize())
	lo, hi := offsets[0], offsets[0]
	for _, o := range offsets {
		lo, hi = min(lo, o), max(hi, o+uint64(insn))
	}
	lo -= lo % page
	n := uintptr((hi - lo + page - 1) / page * page)
	addr, _, errno := unix.Syscall6(unix.SYS_MMAP, 0, n, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE, f.Fd(), uintptr(lo))
	if errno != 0 {
		return nil, fmt.Errorf("map %d bytes at %#x executable: %w", n, lo, errno)
	}
	return &canary{base: addr, len: n, start: lo}, nil
}

// patched reports whether the instruction at the file offset reads as a
// breakpoint now.
func (c *canary) patched(offset uint64, breakpoint []byte) (bool, error) {
	buf := make([]byte, len(breakpoint))
	local := []unix.Iovec{{Base: &buf[0], Len: uint64(len(buf))}}
	remote := []unix.RemoteIovec{{Base: c.base + uintptr(offset-c.start), Len: len(buf)}}
	n, err := unix.ProcessVMReadv(os.Getpid(), local, remote, 0)
	if err != nil {
		return false, fmt.Errorf("read the mapping at %#x: %w", offset, err)
	}
	return n == len(buf) && bytes.Equal(buf, breakpoint), nil
}

// close unmaps. It is idempotent.
func (c *canary) close() error {
	if c == nil || c.base == 0 {
		return nil
	}
	_, _, errno := unix.Syscall(unix.SYS_MUNMAP, c.base, c.len, 0)
	c.base = 0
	if errno != 0 {
		return fmt.Errorf("unmap: %w", errno)
	}
	return nil
}
