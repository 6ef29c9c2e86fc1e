package bpf

// SyscallNumber is the number of a system call on this machine, by its name in
// the kernel's table. Calls that are newer than this program are not known.
func SyscallNumber(name string) (uint64, bool) {
	n, ok := syscallNumbers[name]
	return n, ok
}
