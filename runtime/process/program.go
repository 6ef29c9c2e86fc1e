package process

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxMounts bounds what is read of a mount table, in bytes.
const maxMounts = 16 << 20

// OwnProgram reports whether the program that the process runs lies on a mount
// of the process's own mount namespace. A runtime's process that is about to
// become a container was started in another one, and its program lies there, as
// does a program that was executed from a memfd.
func (p *Process) OwnProgram() (bool, error) {
	var st unix.Statx_t
	// Nothing but the mount's id: no file system asks its server for that.
	if err := unix.Statx(int(p.dir.Fd()), "exe", unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st); err != nil {
		return false, fmt.Errorf("look at the program of process %d: %w", p.Pid, gone(err))
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return false, fmt.Errorf("look at the program of process %d: this kernel does not say which mount it is on", p.Pid)
	}
	f, err := p.open("mountinfo")
	if err != nil {
		return false, err
	}
	defer f.Close()
	ok, err := listed(io.LimitReader(f, maxMounts), st.Mnt_id)
	if err != nil {
		return false, fmt.Errorf("mounts of process %d: %w", p.Pid, gone(err))
	}
	return ok, nil
}

// listed reports whether a mount table (proc_pid_mountinfo(5)) has an id.
func listed(r io.Reader, id uint64) (bool, error) {
	want := append(strconv.AppendUint(nil, id, 10), ' ')
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 4096), maxLine)
	for lines.Scan() {
		if bytes.HasPrefix(lines.Bytes(), want) {
			return true, nil
		}
	}
	return false, lines.Err()
}
