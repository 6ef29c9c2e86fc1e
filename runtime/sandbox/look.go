package sandbox

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"probity/runtime/image"
	"probity/runtime/process"
)

// maxDescriptors bounds how many of a process's descriptors are looked at, from
// the lowest. QEMU opens its virtual machine among the first twenty.
const maxDescriptors = 4096

// Look looks at a process. With an error the facts are those that were found
// all the same; it wraps [process.ErrGone] if the process has ended.
func Look(pid int) (f Facts, err error) {
	p, err := process.Open(pid)
	if err != nil {
		return f, err
	}
	defer p.Close()
	open, fdErr := p.Descriptors(maxDescriptors)
	f.Machine = slices.Contains(open, kvmMachine)
	maps, mapErr := p.Executable()
	for _, m := range maps {
		if _, k := library(m.Path); k != "" && !slices.Contains(f.Libraries, m.Path) {
			f.Libraries = append(f.Libraries, m.Path)
		}
	}
	exeErr := f.program(p, maps)
	return f, errors.Join(fdErr, mapErr, exeErr)
}

// program fills in what is known of the process's program.
func (f *Facts) program(p *process.Process, maps []process.Mapping) error {
	path, _, err := p.Exe()
	if err != nil {
		return err
	}
	f.Exe = path
	// Opening a file can block for ever, and even a stat of it: where it is, is
	// read from how it is mapped.
	i := slices.IndexFunc(maps, func(m process.Mapping) bool { return m.Path == path })
	if i < 0 {
		return fmt.Errorf("program %.256q of process %d: not mapped", path, p.Pid)
	}
	if err := image.LocalDevice(p.Pid, maps[i].File.Dev); err != nil {
		return fmt.Errorf("program %.256q of process %d: %w", path, p.Pid, err)
	}
	file, err := p.OpenExe()
	if err != nil {
		return err
	}
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return fmt.Errorf("program %.256q of process %d: %w", path, p.Pid, err)
	}
	if f.Program, err = readProgram(file, st.Size, path); err != nil {
		return fmt.Errorf("program %.256q of process %d: %w", path, p.Pid, err)
	}
	return nil
}
