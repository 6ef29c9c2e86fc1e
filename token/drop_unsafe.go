package main

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dropped is the argument of the process that has nothing left to give up.
const dropped = "--without-capabilities"

// drop gives up every capability and the way back to them, and keeps the memory,
// with the PIN in it, out of core dumps.
//
// Capabilities belong to threads, and Go has several: so one thread gives up its own
// and executes this program again, which then begins without. No new privileges
// makes that final: root would get all capabilities back by the execve.
func drop() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keep out of core dumps: %w", err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var has [2]unix.CapUserData
	if err := unix.Capget(&header, &has[0]); err != nil {
		return fmt.Errorf("read the capabilities: %w", err)
	}
	nnp, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil {
		return fmt.Errorf("read no_new_privs: %w", err)
	}
	if has == [2]unix.CapUserData{} && nnp == 1 {
		return nil
	}
	if len(os.Args) > 1 && os.Args[1] == dropped {
		return fmt.Errorf("capabilities were given up and are there again: %x", has)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("refuse new privileges: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear the ambient capabilities: %w", err)
	}
	none := [2]unix.CapUserData{}
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("give up the capabilities: %w", err)
	}
	// By its inode: the path may name another file by now.
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("execute again: %w", err)
	}
	return fmt.Errorf("execute again: %w", execveat(int(self.Fd()), []string{os.Args[0], dropped}, os.Environ()))
}

// execveat replaces this process by the program that is open as fd.
func execveat(fd int, argv, env []string) error {
	a, err := syscall.SlicePtrFromStrings(argv)
	if err != nil {
		return err
	}
	e, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return err
	}
	empty, err := syscall.BytePtrFromString("")
	if err != nil {
		return err
	}
	_, _, errno := syscall.RawSyscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(empty)), uintptr(unsafe.Pointer(&a[0])), uintptr(unsafe.Pointer(&e[0])), unix.AT_EMPTY_PATH, 0)
	return errno
}
