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

// maxIovecs is what one call of process_vm_readv takes (UIO_MAXIOV).
const maxIovecs = 1024

// patched reports for each file offset whether the instruction there reads as
// a breakpoint now.
func (c *canary) patched(offsets []uint64, breakpoint []byte) ([]bool, error) {
	at := make([]uintptr, len(offsets))
	for i, o := range offsets {
		at[i] = c.base + uintptr(o-c.start)
	}
	return patched(os.Getpid(), at, breakpoint)
}

// patched reports for each address of a process whether a breakpoint is there.
// Many are read by one system call: a start waits for this.
func patched(pid int, at []uintptr, breakpoint []byte) ([]bool, error) {
	out := make([]bool, 0, len(at))
	size := len(breakpoint)
	for len(at) > 0 {
		part := at[:min(len(at), maxIovecs)]
		at = at[len(part):]
		buf := make([]byte, len(part)*size)
		remote := make([]unix.RemoteIovec, len(part))
		for i, a := range part {
			remote[i] = unix.RemoteIovec{Base: a, Len: size}
		}
		n, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &buf[0], Len: uint64(len(buf))}}, remote, 0)
		if err == nil && n != len(buf) {
			err = unix.EFAULT // it read up to a page that is not there any more
		}
		if err != nil {
			return nil, fmt.Errorf("read the mapping of process %d at %#x: %w", pid, part[min(max(n, 0)/size, len(part)-1)], err) // n is -1 if nothing was read
		}
		for i := range part {
			out = append(out, bytes.Equal(buf[i*size:(i+1)*size], breakpoint))
		}
	}
	return out, nil
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
