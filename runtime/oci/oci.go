// Package oci turns what an OCI hook was given, the container's state, into a
// notice, and checks against the kernel what the state claims. It does the same with
// the states that runc and crun save of containers that run ([Existing]).
//
// In: the stage, the state's bytes, and the pid of the hook as the kernel gave
// it (see runtime/handoff). Out: a notice, or an error that says which claim
// does not hold. The state is believed for the container's id only: for its
// pid and bundle it is the question that is put to /proc.
//
// When [Notice] returns without error for createRuntime, then at one moment
// during the call
//
//   - the hook was on the host: in this process's user and pid namespaces, and
//     with its root directory or that of pid 1;
//   - init, the process with the claimed pid, was alive, a thread group's
//     leader, neither the hook nor one of its ancestors, and a child of one of
//     those ancestors: of the runtime, or of its monitor where the runtime
//     forked twice;
//   - init was in another mount namespace than the hook, but still had the
//     hook's root directory: it was about to enter the container;
//   - the claimed bundle was the working directory of the hook or of one of
//     those ancestors, and every directory on the way to it, like its
//     config.json, could be changed by nobody but root;
//   - the root filesystem that config.json names was a directory that init had
//     mounted, or worked in;
//   - init was in a cgroup of its own: neither the root cgroup nor the hook's
//     nor this process's.
//
// Hook and init are held by pidfds meanwhile, so no pid has changed hands.
//
// At poststop there is no process any more, and the notice only means "look
// now": of the state the id is taken, and the rest where it is still there.
//
// [UserNotice] is the same for the hook of a user's own (rootless) runtime, who is
// believed of his own only; its documentation says what differs.
//
// It trusts the kernel, and root: a root process that arranges its children
// and its working directory like a runtime is a runtime here. It is not a
// control for file systems that can block (a bundle on FUSE).
package oci

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"probity/runtime/cgroup"
	"probity/runtime/container"
)

// Source is the source of the notices of this package.
const Source = "hook"

// The stages.
const (
	CreateRuntime = "createRuntime"
	Poststop      = "poststop"
)

var (
	// ErrState: the state is not well formed.
	ErrState = errors.New("container state")
	// ErrPid: the claimed pid is not the container's, as far as /proc shows.
	ErrPid = errors.New("the claimed pid is not the container's")
	// ErrBundle: the claimed bundle is not the container's, or others than
	// root can change it, or it cannot be read.
	ErrBundle = errors.New("the claimed bundle is not the container's")
	// ErrSharedCgroup: the container has no cgroup of its own. Everything
	// else was found true, and the notice is returned with this error.
	ErrSharedCgroup = cgroup.ErrShared
)

// Notice returns what the state of a container at a hook stage means, checked
// as the package's documentation says. It reads files and may take
// milliseconds.
func Notice(stage string, state []byte, peerPid int) (container.Notice, error) {
	at := cgroup.BootTime()
	s, err := ParseState(state)
	if err != nil {
		return container.Notice{}, err
	}
	var n container.Notice
	switch stage {
	case CreateRuntime:
		var init *process
		if n, init, err = createRuntime(s, peerPid, 0); init != nil {
			init.release()
		}
	case Poststop:
		n, err = poststop(s)
	default:
		err = fmt.Errorf("%w: stage %q is not known", ErrState, stage)
	}
	if err != nil && !errors.Is(err, ErrSharedCgroup) {
		return container.Notice{}, fmt.Errorf("%s of container %s: %w", stage, s.ID, err)
	}
	n.Source, n.At, n.Identity.ID = Source, at, s.ID
	n.Identity.Image.DigestReason = "an OCI hook is not told the image"
	if verr := n.Validate(); verr != nil {
		return container.Notice{}, fmt.Errorf("%s of container %s: %w", stage, s.ID, verr)
	}
	if err != nil {
		err = fmt.Errorf("%s of container %s: %w", stage, s.ID, err)
	}
	return n, err
}

// createRuntime returns init held, whose notice it is, unless the notice is not
// believed.
func createRuntime(s specs.State, peerPid int, o owner) (n container.Notice, _ *process, err error) {
	if s.Status != specs.StateCreating && s.Status != specs.StateCreated {
		return n, nil, fmt.Errorf("%w: status %q", ErrState, s.Status)
	}
	hook, err := hold(peerPid)
	if err != nil {
		return n, nil, fmt.Errorf("look at the hook: %w", err)
	}
	defer hook.release()
	if err := onHost(hook, o); err != nil {
		return n, nil, fmt.Errorf("look at the hook: %w", err)
	}
	init, err := hold(s.Pid)
	if err != nil {
		return n, nil, fmt.Errorf("%w: %w", ErrPid, err)
	}
	if n, err = o.notice(s, hook, init); err != nil && !errors.Is(err, ErrSharedCgroup) {
		init.release()
		return n, nil, err
	}
	return n, init, err
}

// notice is what is believed of the container whose hook and init are held.
func (o owner) notice(s specs.State, hook, init *process) (n container.Notice, err error) {
	line, err := checkInit(hook, init)
	if err != nil {
		return n, err
	}
	if o != 0 {
		if err := o.has(init); err != nil {
			return n, fmt.Errorf("%w: %w", ErrPid, err)
		}
	}
	bundle, err := o.open(s.Bundle)
	if err != nil {
		return n, fmt.Errorf("%w: %w", ErrBundle, err)
	}
	defer bundle.Close()
	if !slices.ContainsFunc(line, func(pid int) bool { return isDir(procPath(pid, "cwd"), bundle) }) {
		return n, fmt.Errorf("%w: %s is not where the hook or the runtime works", ErrBundle, s.Bundle)
	}
	c, err := readConfig(bundle, o)
	if err != nil {
		return n, fmt.Errorf("%w: %w", ErrBundle, err)
	}
	rootfs := c.rootfs
	if o != 0 {
		rootfs = c.rootfsOfUser
	}
	root, err := rootfs(bundle, init)
	if err != nil {
		return n, fmt.Errorf("%w: %w", ErrBundle, err)
	}
	runtime, err := runtimeOf(s.ID, bundle.Name(), c.annotations, line)
	if err != nil {
		return n, err
	}
	if o != 0 && runtime != container.Podman && runtime != container.Runc && runtime != container.Crun {
		return n, fmt.Errorf("%w: containers of %s are root's", ErrNotOwn, runtime)
	}
	n = container.Notice{
		Kind: container.Starting, Pid: s.Pid, Rootfs: root, Bundle: bundle.Name(), Mounts: c.mounts, Command: c.command,
		Identity: container.Identity{Runtime: runtime, User: uint32(o), Annotations: c.annotations},
	}
	if o != 0 {
		o.claims(&n.Identity, s.ID, bundle.Name())
	} else {
		n.Identity.Name = nameOf(runtime, s.ID, bundle.Name())
	}
	n.Identity.CgroupPath, n.Identity.CgroupID, err = ownCgroup(s.Pid, hook.pid)
	if err != nil && !errors.Is(err, ErrSharedCgroup) {
		return n, err
	}
	if err != nil {
		n.Shared = err.Error()
	}
	if err == nil && o != 0 && !Delegated(n.Identity.CgroupPath, uint32(o)) {
		return n, fmt.Errorf("%w: it is in %s, which is not delegated to uid %d", ErrNotOwn, n.Identity.CgroupPath, o)
	}
	// Last: what was read above was theirs if they still live.
	if !hook.alive() {
		return n, errors.New("the hook is gone")
	}
	if !init.alive() {
		return n, fmt.Errorf("%w: it has ended meanwhile", ErrPid)
	}
	return n, err
}

func poststop(s specs.State) (n container.Notice, err error) {
	if s.Status != specs.StateStopped {
		return n, fmt.Errorf("%w: status %q", ErrState, s.Status)
	}
	n.Kind = container.Stopped
	n.Identity.Runtime = storageRuntime(s.ID, s.Bundle, s.Annotations)
	bundle, err := openTrusted(s.Bundle)
	if err == nil {
		defer bundle.Close()
		if c, err := readConfig(bundle, 0); err == nil {
			n.Made = made(bundle)
			n.Identity.Annotations = c.annotations
			if r := storageRuntime(s.ID, bundle.Name(), c.annotations); r != "" {
				n.Identity.Runtime = r
			}
		}
	}
	if n.Identity.Runtime == "" {
		// The hook is registered at poststop for podman only, whose state
		// lacks the annotation by then.
		n.Identity.Runtime = container.Podman
	}
	return n, nil
}

// made is when the bundle's configuration was written, or 0.
func made(bundle *os.File) int64 {
	var st unix.Stat_t
	if err := unix.Fstatat(int(bundle.Fd()), "config.json", &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0
	}
	return max(cgroup.BootTime()-time.Since(time.Unix(st.Mtim.Unix())).Nanoseconds(), 0)
}

// ownCgroup returns the cgroup of pid if it is nobody else's.
func ownCgroup(pid, peer int) (path string, id uint64, err error) {
	fs, err := cgroup.Find()
	if err != nil {
		return "", 0, err
	}
	path, id, err = fs.OfPid(pid)
	if err != nil {
		return "", 0, err
	}
	theirs, err := fs.PathOf(peer)
	if err != nil {
		return "", 0, err
	}
	if theirs == path {
		return "", 0, fmt.Errorf("cgroup of pid %d: %w: the hook is in %s too", pid, ErrSharedCgroup, path)
	}
	return path, id, nil
}
