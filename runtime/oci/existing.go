package oci

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"probity/runtime/cgroup"
	"probity/runtime/container"
)

// The state directories of runc and crun as root runs them, which is also how
// podman does.
var StateDirs = []string{"/run/runc", "/run/crun"}

const (
	// MaxStates bounds the containers of one state directory that are looked at.
	MaxStates   = 1 << 14
	maxSaved    = 4 << 20 // bytes of a saved state; runc's has all of the configuration, 6 KiB and more
	savedByRunc = "state.json"
	savedByCrun = "status"
)

// ErrEnded: the saved state is of a container whose init has ended.
var ErrEnded = errors.New("the container has ended")

// ErrOutlived: the container's init has ended, and others run on in its cgroup, of
// whom nobody knows any more who they are.
var ErrOutlived = errors.New("its first process has ended, and others run on in its cgroup")

// SourceOf is the source of the notices of a state directory.
func SourceOf(dir string) string { return "state:" + dir }

// Saved is a container's directory in a runtime's. It is not the same if the id is
// used again, and may also differ once the state has been saved anew.
type Saved struct {
	ID      string
	inode   uint64 // which a file system may soon use again
	changed int64  // ns
}

// States lists the containers in a runtime's state directory, in the order of their
// ids. One that is not there has none.
func States(dir string) ([]Saved, error) {
	d, err := openTrusted(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the containers of %s: %w", dir, err)
	}
	defer d.Close()
	fd, err := unix.Openat(int(d.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("list the containers of %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	entries, err := f.ReadDir(MaxStates + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("list the containers of %s: %w", dir, err)
	}
	var states []Saved
	for _, e := range entries[:min(len(entries), MaxStates)] {
		// crun keeps files of its own there, whose names begin with a dot.
		id := e.Name()
		if !e.IsDir() || (container.Identity{Runtime: container.Runc, ID: id}).Validate() != nil || id[0] == '.' {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstatat(fd, id, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil { // or it is gone
			states = append(states, Saved{ID: id, inode: st.Ino, changed: st.Ctim.Nano()})
		}
	}
	slices.SortFunc(states, func(a, b Saved) int { return strings.Compare(a.ID, b.ID) })
	if len(entries) > MaxStates {
		return states, fmt.Errorf("list the containers of %s: more than %d", dir, MaxStates)
	}
	return states, nil
}

// Existing returns the notice of a container that runs already, as the state
// says that runc or crun saved in dir when they created it. The state is believed
// for the bundle only, and because nobody but root can have written it; for the
// rest it is the question that is put to /proc. On return without error, at one
// moment during the call
//
//   - init, the process with the saved pid, was alive, had started when the state
//     says, and was neither this process nor in its or pid 1's mount namespace or
//     root directory;
//   - it was in the saved cgroup or below it, which is neither the root nor one
//     that this process is in: that cgroup is the container's, also where init
//     has moved further down since;
//   - the bundle was as [Notice] wants it, and in no state directory;
//   - no other state among the claims had that process or, of a container that was
//     alive, that cgroup, one around it or one in it: who is whose would be a guess.
//
// Containers of engines that tell of them by other ways (containerd, CRI-O and
// docker, whose daemons know the pod and the image) are [ErrNotHere].
func Existing(dir, id string, claims *Claims) (container.Notice, error) {
	n, err := existing(dir, id, claims)
	if err != nil && !errors.Is(err, ErrSharedCgroup) {
		return container.Notice{}, fmt.Errorf("container %s of %s: %w", id, dir, err)
	}
	n.Source, n.Kind, n.At = SourceOf(dir), container.Existing, cgroup.BootTime()
	n.Identity.ID = id
	n.Identity.Image.DigestReason = "a saved state does not have the image"
	if verr := n.Validate(); verr != nil {
		return container.Notice{}, fmt.Errorf("container %s of %s: %w", id, dir, verr)
	}
	return n, err
}

// ErrNotHere: another source tells of the container.
var ErrNotHere = errors.New("another source tells of the container")

func existing(dir, id string, claims *Claims) (n container.Notice, err error) {
	own, err := ReadClaim(dir, id)
	if err != nil {
		return n, err
	}
	s := own.saved
	if s.id != "" && s.id != id {
		return n, fmt.Errorf("%w: it is of container %.64q", ErrState, s.id)
	}
	init, err := hold(s.pid)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, ErrEnded) {
		return n, ended(own.path, id, s, claims)
	}
	if err != nil {
		return n, fmt.Errorf("%w: %w", ErrPid, err)
	}
	defer init.release()
	if err := checkRunning(init, s.start); errors.Is(err, ErrEnded) {
		return n, ended(own.path, id, s, claims)
	} else if err != nil {
		return n, err
	}
	bundle, err := openTrusted(s.bundle)
	if err != nil {
		return n, fmt.Errorf("%w: %w", ErrBundle, err)
	}
	defer bundle.Close()
	if claims.holds(bundle.Name()) { // where names are containers', and not root's choice
		return n, fmt.Errorf("%w: %s is in a state directory", ErrBundle, bundle.Name())
	}
	c, err := readConfig(bundle, 0)
	if err != nil {
		return n, fmt.Errorf("%w: %w", ErrBundle, err)
	}
	runtime := s.runtime
	switch r := storageRuntime(id, bundle.Name(), c.annotations); r {
	case "":
	case container.Podman:
		runtime = r
	default:
		return n, fmt.Errorf("%w: %s", ErrNotHere, r)
	}
	n = container.Notice{
		Pid: s.pid, Bundle: bundle.Name(), Command: c.command, // its mounts are made
		Identity: container.Identity{Runtime: runtime, Name: nameOf(runtime, id, bundle.Name()), Annotations: c.annotations},
	}
	fs, err := cgroup.Find()
	if err != nil {
		return n, err
	}
	if err := claims.check(own.path, s, fs.Root); err != nil {
		return n, err
	}
	within := s.in(fs.Root)
	n.Identity.CgroupPath, n.Identity.CgroupID, err = fs.OfPidIn(s.pid, within)
	if errors.Is(err, ErrSharedCgroup) {
		if _, _, own := fs.OfPid(s.pid); own == nil { // it shares none, but the one that is claimed is the agent's too
			return container.Notice{}, fmt.Errorf("%w: its saved cgroup %s is around the agent too, and not the one that it is in", ErrPid, within)
		}
		n.Identity.CgroupPath, n.Identity.CgroupID, n.Identity.InitStart = "", 0, s.start
	} else if err != nil {
		return n, fmt.Errorf("%w: %w", ErrPid, err)
	}
	// Last: what was read above was its own if it still lives.
	if !init.alive() {
		return container.Notice{}, ended(own.path, id, s, claims)
	}
	return n, err
}

// ended tells a container of which nothing runs from one that init's end did not end,
// as it does not where the process namespace is shared. A cgroup that another one's
// state claims, or a container that another source tells of, is not looked at.
func ended(own, id string, s saved, claims *Claims) error {
	fs, err := cgroup.Find()
	if err != nil {
		return ErrEnded
	}
	in := s.in(fs.Root)
	if in == "" || claims.check(own, s, fs.Root) != nil {
		return ErrEnded
	}
	if alive, err := fs.Populated(in); err != nil || !alive {
		return ErrEnded
	}
	if bundle, err := openTrusted(s.bundle); err == nil {
		defer bundle.Close()
		c, err := readConfig(bundle, 0)
		if r := storageRuntime(id, bundle.Name(), c.annotations); err == nil && r != "" && r != container.Podman {
			return ErrEnded
		}
	}
	return fmt.Errorf("%w (%s)", ErrOutlived, in)
}

// checkRunning checks that a process can be the init of a container that has been
// entered, and is the one that started then.
func checkRunning(init *process, start uint64) error {
	began, err := StartTicks(init.pid)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPid, err)
	}
	if began != start { // its pid was given to somebody else
		return fmt.Errorf("%w: pid %d started at tick %d, not %d", ErrEnded, init.pid, began, start)
	}
	for _, what := range []string{"ns/mnt", "root"} {
		theirs, err := os.Stat(procPath(init.pid, what))
		if err != nil {
			return fmt.Errorf("%w: pid %d: %w", ErrPid, init.pid, err)
		}
		for _, host := range []int{os.Getpid(), 1} {
			ours, err := os.Stat(procPath(host, what))
			if err != nil && host != 1 { // which not every root may look at
				return fmt.Errorf("look at the agent itself: %w", err)
			}
			if err == nil && os.SameFile(ours, theirs) {
				return fmt.Errorf("%w: pid %d is in no container: its %s is that of pid %d", ErrPid, init.pid, what, host)
			}
		}
	}
	return nil
}

// saved is what is used of a state that runc or crun saved.
type saved struct {
	runtime container.Runtime
	id      string // "" where the state does not say it
	pid     int
	start   uint64 // in ticks since boot (proc_pid_stat(5), field 22)
	cgroup  string // of the cgroup2 hierarchy, below the mount or with it
	bundle  string
}

func readSaved(dir *os.File) (saved, error) {
	read := func(name string, parse func([]byte) (saved, error)) (saved, error) {
		f, err := owner(0).openFile(dir, name)
		if err != nil {
			return saved{}, err
		}
		defer f.Close()
		b, err := readAllBounded(f, maxSaved)
		if err != nil {
			return saved{}, err
		}
		s, err := parse(b)
		if err != nil {
			return saved{}, fmt.Errorf("%w: read %s: %w", ErrState, f.Name(), err)
		}
		return s, nil
	}
	s, err := read(savedByRunc, parseRuncState)
	if errors.Is(err, os.ErrNotExist) {
		s, err = read(savedByCrun, parseCrunStatus)
	}
	return s, err
}

// parseRuncState reads what is used of runc's state.json (libcontainer's State).
// It is written by the runtime, so members that are not used may be anything.
func parseRuncState(b []byte) (s saved, err error) {
	o, err := parseObject(b)
	if err != nil {
		return s, err
	}
	var config object
	var labels []string
	var cgroups map[string]string
	if err := errors.Join(o.member("id", &s.id), o.member("init_process_pid", &s.pid), o.member("init_process_start", &s.start),
		o.member("cgroup_paths", &cgroups), o.member("config", &config)); err != nil {
		return saved{}, err
	}
	if err := config.member("labels", &labels); err != nil {
		return saved{}, err
	}
	// Annotations are labels too, and one may be called "bundle": runc's own is the
	// last (specconv.CreateLibcontainerConfig).
	if n := len(labels); n > 0 {
		s.bundle, _ = strings.CutPrefix(labels[n-1], "bundle=")
	}
	s.runtime, s.cgroup = container.Runc, cgroups[""]
	return s, s.check()
}

// parseCrunStatus reads what is used of crun's status file (libcrun's status.c).
func parseCrunStatus(b []byte) (s saved, err error) {
	o, err := parseObject(b)
	if err != nil {
		return s, err
	}
	if err := errors.Join(o.member("pid", &s.pid), o.member("process-start-time", &s.start),
		o.member("cgroup-path", &s.cgroup), o.member("bundle", &s.bundle)); err != nil {
		return saved{}, err
	}
	s.runtime = container.Crun
	if s.cgroup != "" && !strings.HasPrefix(s.cgroup, "/") {
		s.cgroup = "/" + s.cgroup
	}
	return s, s.check()
}

func (s saved) check() error {
	switch {
	case s.pid <= 0 || s.pid > maxPid:
		return fmt.Errorf("pid %d: out of range", s.pid)
	case s.start == 0:
		return errors.New("it does not say when init started")
	case !path.IsAbs(s.bundle) || len(s.bundle) > container.MaxPath || strings.ContainsRune(s.bundle, 0):
		return fmt.Errorf("bundle %.64q: want an absolute path", s.bundle)
	case len(s.cgroup) > container.MaxPath || !utf8.ValidString(s.cgroup):
		return fmt.Errorf("cgroup path %.64q", s.cgroup)
	}
	return nil
}
