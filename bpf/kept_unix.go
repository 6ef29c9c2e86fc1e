package bpf

import (
	"os"

	"golang.org/x/sys/unix"
)

// dup makes a descriptor that nobody closes when f is forgotten.
func dup(f *os.File) (int, error) { return unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3) }

func closeFD(fd int) { _ = unix.Close(fd) }
