package process

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// Execution is what one execve of a process has made of it. Two are equal if there was
// none in between: another program is another file, and the same one again has its
// stack and the kernel's page elsewhere (AT_RANDOM, AT_SYSINFO_EHDR; only where the
// host has address randomisation switched off do these stay).
type Execution struct {
	Exe File
	Aux string // the auxiliary vector, as the kernel passed it
}

// maxAux is longer than any auxiliary vector: about 24 pairs of words.
const maxAux = 4096

// ExecutionOf looks at a process. No file system is asked.
func ExecutionOf(pid int) (e Execution, err error) {
	p, err := Open(pid)
	if err != nil {
		return e, err
	}
	defer p.Close()
	var st unix.Statx_t
	if err := unix.Statx(int(p.dir.Fd()), "exe", unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_INO, &st); err != nil {
		return e, fmt.Errorf("program of process %d: %w", pid, gone(err))
	}
	f, err := p.open("auxv")
	if err != nil {
		return e, err
	}
	defer f.Close()
	aux, err := io.ReadAll(io.LimitReader(f, maxAux))
	if err != nil {
		return e, fmt.Errorf("auxiliary vector of process %d: %w", pid, gone(err))
	}
	if len(aux) == 0 { // a zombie
		return e, fmt.Errorf("auxiliary vector of process %d: %w", pid, ErrGone)
	}
	return Execution{Exe: File{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino}, Aux: string(aux)}, nil
}
