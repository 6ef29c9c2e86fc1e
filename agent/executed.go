package agent

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/bpf/policy"
	"probity/bpf/probe"
	"probity/evidence"
	"probity/runtime/cgroup"
	"probity/runtime/image"
	"probity/runtime/process"
)

// Whatever a container executes is judged once, as the file that it was then: it
// is armed, or no probe is for it, or it is a gap of each probe that may be. What
// a path leads to is another file at any moment, so a file is known by what the
// kernel says of it.

// program is what was executed: a file, or a path where the kernel does not say
// which file it is.
type program struct {
	bpf.File
	path string
}

func (x appeared) program() program {
	if x.file == (bpf.File{}) {
		return program{path: x.path}
	}
	return program{File: x.file}
}

// claim reports whether what was executed is to be judged. It is not asked for
// again until it is disowned.
func (a *Agent) claim(x appeared) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	late := &x.l.late
	if late.execs[x.program()] {
		return false
	}
	if late.execs == nil || len(late.execs) == maxExecs { // then they are judged again
		late.execs = map[program]bool{}
	}
	late.execs[x.program()] = true
	return true
}

// disown has what was executed judged again when it is executed again.
func (a *Agent) disown(x appeared) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(x.l.late.execs, x.program())
}

// settle is how old a file's change must be for its next one to be told from it:
// clocks of file systems go in steps, of ten milliseconds at most.
const settle = 100 * time.Millisecond

// settled reports whether a file that changed then can be recognised: whatever is
// written into it from now on gives it another change time.
func settled(sec, nsec int64) bool { return time.Since(time.Unix(sec, nsec)) > settle }

// names are what the file may be called, as far as a probe's target goes by that:
// what led there, and what it is. Without any it may be called anything.
func (x appeared) names() (names []string) {
	if x.path == "" || x.file != (bpf.File{}) && x.name == "" {
		return nil
	}
	for _, n := range []string{x.name, x.path, x.interp} {
		if n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// mayBe reports whether a probe may be for the file.
func (x appeared) mayBe(p policy.Probe) bool {
	names := x.names()
	return len(names) == 0 && p.OfFiles() || slices.ContainsFunc(names, p.MayBe)
}

// anyMayBe reports whether any of the container's probes may be.
func (x appeared) anyMayBe() bool { return slices.ContainsFunc(x.l.probes, x.mayBe) }

// inImage reports whether it was found when the image was searched.
func (x appeared) inImage() bool {
	if x.interp != "" {
		return x.l.handle.InImage(x.interp, x.file)
	}
	return x.path != "" && x.l.handle.InImage(x.path, x.file)
}

// unarmed signs that a file was executed in which nothing was armed; real is its
// path, if that was found.
func (a *Agent) unarmed(x appeared, real, why string) {
	names := x.names()
	if real != "" {
		names = append([]string{real}, names...)
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !mayBe(x.l.probes, n) })
	switch {
	case len(names) > 0:
		for _, n := range names {
			a.witness.UnarmedMapping(x.l.id, n, x.from, 0, why)
		}
	case x.anyMayBe():
		a.witness.UnarmedFile(x.l.id, x.path, x.from, why)
	}
}

// executed judges what a container has executed. With l.checking held.
func (a *Agent) executed(x appeared) {
	l := x.l
	if _, err := a.look(l, x.pid, x.from); err != nil && !errors.Is(err, process.ErrGone) {
		a.log.Debug("look at a process", "container", l.container, "pid", x.pid, "err", err)
	}
	known := !x.anyMayBe() || l.handle.Knows(x.file) || x.inImage()
	if !known {
		if err := a.resolve(x); err != nil {
			a.unarmed(x, "", fmt.Sprintf("it was executed, and it is not known what it is: %v", err))
		}
		known = l.late.judged[x.file]
	}
	if !known || x.file == (bpf.File{}) || !settled(0, x.file.Ctime) {
		a.disown(x)
	}
}

// resolve finds the file that was executed, and judges it. Whatever leads to that
// file is good; a process that has another program by now, or a path at which
// another file is, does not.
func (a *Agent) resolve(x appeared) error {
	var errs []error
	if p, err := process.Open(x.pid); err == nil {
		defer p.Close()
		f, err := p.PathExe()
		if err == nil && x.file == (bpf.File{}) {
			err = p.Alive() // else it may be another's
		}
		done, err := a.take(x, x.pid, f, err)
		if done && (err == nil || !ended(p)) {
			return err
		}
		errs = append(errs, err)
	}
	p, root, err := a.rootOf(x.l)
	if err != nil {
		return err
	}
	defer p.Close()
	defer root.Close()
	for _, name := range x.paths(p.Pid) {
		f, err := image.Resolve(p.Pid, root, name)
		if done, err := a.take(x, p.Pid, f, err); done {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// paths are those at which the file may be, in the container's root: a path that
// is not absolute begins in a directory of which it is only a guess that the
// first process is there too.
func (x appeared) paths(pid int) (paths []string) {
	for _, p := range []string{x.interp, x.path} {
		switch {
		case p == "":
		case path.IsAbs(p):
			paths = append(paths, p)
		default:
			if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil {
				paths = append(paths, path.Join(dir, p))
			}
			paths = append(paths, path.Join("/", p))
		}
	}
	return paths
}

// errAnother reports that a file is not the one that was executed.
var errAnother = errors.New("another file is there")

// take judges a file that was opened by path only, if it is the one that was
// executed, and closes it. pid is of a process that reaches it.
func (a *Agent) take(x appeared, pid int, f *os.File, err error) (done bool, _ error) {
	if err != nil {
		return false, err
	}
	defer f.Close()
	is, err := fileOf(f)
	if err != nil {
		return false, err
	}
	if x.file != (bpf.File{}) && is != x.file {
		// An overlay may show a file under a device that is not its own.
		if is.Device, err = image.DeviceOf(pid, f); err != nil {
			return false, err
		}
		if is != x.file {
			return false, fmt.Errorf("%s: %w", f.Name(), errAnother)
		}
	}
	return true, a.judge(x, pid, f, is, is.Device)
}

// fileOf is what the kernel says of an open file, without asking its server.
func fileOf(f *os.File) (bpf.File, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_CTIME|unix.STATX_INO|unix.STATX_SIZE, &st); err != nil {
		return bpf.File{}, fmt.Errorf("look at %s: %w", f.Name(), err)
	}
	return bpf.File{Device: unix.Mkdev(st.Dev_major, st.Dev_minor), Inode: st.Ino, Ctime: st.Ctime.Sec*1e9 + int64(st.Ctime.Nsec), Size: int64(st.Size)}, nil
}

// judge arms what is wanted of a file, or signs that it ran unarmed. An error
// says that it could not be judged. dev is the device that its mount has.
func (a *Agent) judge(x appeared, pid int, f *os.File, is bpf.File, dev uint64) error {
	l := x.l
	if l.late.judged[is] || l.handle.Knows(is) {
		return nil
	}
	real, deleted, err := a.pathOf(l, f)
	if err != nil {
		return err
	}
	m, err := image.HoldMapped(pid, f, real, dev)
	inRoot := errors.Is(err, image.ErrInRoot)
	switch {
	case inRoot && dev != unix.Mkdev(l.rootDev[0], l.rootDev[1]):
		return fmt.Errorf("%s is in a root file system that the process has for itself", real)
	case !inRoot && err != nil:
		return err
	}
	if has(l.handle, real) { // something else is armed there: it may not live to see its next check
		a.witness.Checked(l.id, cgroup.BootTime(), a.troubles(l))
	}
	wanted := false
	if inRoot {
		wanted = a.inRoot(x, f, is, real, deleted)
	} else {
		wanted = a.addMapped(l, m, x.from)
		if p := path.Clean(x.path); p != real && path.IsAbs(p) && !wanted { // a symlink led there
			if m, err := image.HoldMapped(pid, f, p, dev); err == nil {
				wanted = a.addMapped(l, m, x.from)
			}
		}
	}
	if (!wanted || l.handle.Knows(is)) && settled(0, is.Ctime) {
		if len(l.late.judged) == maxOthers || l.late.judged == nil {
			l.late.judged = map[bpf.File]bool{}
		}
		l.late.judged[is] = true
	}
	return nil
}

// inRoot judges a file of the container's root. It is armed through its layer or
// the writable one, where a search finds it: through the root it would keep that
// from being unmounted. One that has no name there any more is not armed. It
// reports whether a probe is for it.
func (a *Agent) inRoot(x appeared, f *os.File, is bpf.File, real string, deleted bool) (wanted bool) {
	l, byName := x.l, map[string]bool{} // probes that name a file by its path, which a symlink may make this one
	for _, p := range l.probes {
		if p.File != "" && x.mayBe(p) {
			byName[p.ID] = true
		}
	}
	why := "it was executed, and could not be armed: it has no name any more, or was not found again"
	for _, at := range []string{real, path.Clean(x.path)} {
		m, err := image.Peek(f, at)
		if err != nil {
			wanted, why = true, err.Error()
			break
		}
		plan, doubt := a.planOne(l, m)
		m.Close()
		if doubt != "" {
			wanted, why = true, doubt
		}
		wanted = wanted || slices.ContainsFunc(plan.Sites, func(s probe.Site) bool { return s.File != nil })
	}
	if !wanted && len(byName) == 0 {
		return false
	}
	searched := a.search(x)
	for id := range byName {
		wanted = wanted || deleted || !searched[id]
	}
	if wanted && !l.handle.Knows(is) {
		a.unarmed(x, real, why)
	}
	return wanted
}

// mappedInRoot judges a file of the container's root that a process has mapped.
// With l.checking held.
func (a *Agent) mappedInRoot(l *live, p *process.Process, m process.Mapping, from int64) {
	x := appeared{l: l, pid: p.Pid, path: m.Path, from: from, why: evidence.GapUnarmedMapping}
	f, err := os.OpenFile(p.Link(m), unix.O_PATH, 0)
	if err == nil {
		defer f.Close()
		var is bpf.File
		if is, err = fileOf(f); err == nil {
			err = a.judge(x, p.Pid, f, is, unix.Mkdev(l.rootDev[0], l.rootDev[1]))
		}
	}
	if err != nil && !ended(p) {
		a.unarmed(x, "", err.Error())
	}
}

// ended reports whether a process executes nothing any more: one that has ended
// and was not waited for has nothing mapped.
func ended(p *process.Process) bool {
	_, err := p.Executable()
	return errors.Is(err, process.ErrGone)
}

// planOne plans a file alone. doubt says why it is not certain that no probe is
// for it.
func (a *Agent) planOne(l *live, m *image.Mapped) (plan probe.Plan, doubt string) {
	plan = probe.MakePlan(l.probes, probe.Appeared{Mapped: m, Inspector: a.inspect, Runs: command(l.notice)}, probe.On(a.kernel))
	for _, s := range plan.Searches {
		if !s.Complete {
			doubt = s.Why
		}
	}
	return plan, doubt
}

// pathOf is where a file of a container is, as it sees that itself.
func (a *Agent) pathOf(l *live, f *os.File) (name string, deleted bool, err error) {
	p, root, err := a.rootOf(l)
	if err != nil {
		return "", false, err
	}
	p.Close()
	defer root.Close()
	if name, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); err != nil {
		return "", false, fmt.Errorf("find where %s is: %w", f.Name(), err)
	}
	name, deleted = strings.CutSuffix(name, " (deleted)")
	at, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", root.Fd()))
	if err != nil {
		return "", false, fmt.Errorf("find where the container's root is: %w", err)
	}
	if below, ok := strings.CutPrefix(name, strings.TrimSuffix(at, "/")+"/"); ok {
		name = "/" + below
	}
	return name, deleted, nil
}
