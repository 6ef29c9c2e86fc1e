package oci

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"probity/runtime/cgroup"
	"probity/runtime/container"
)

// ErrNotOwn: what a user says of is not his.
var ErrNotOwn = errors.New("it is not the user's own")

// UserSource is the source of the notices of a user's own runtime: evidence names it.
func UserSource(uid uint32) string { return fmt.Sprintf("rootless:%d", uid) }

// UserNotice is [Notice] for createRuntime, of the runtime that the user uid (not 0)
// runs by himself; uid is the kernel's word, as peerPid is. A user is believed of his
// own containers, and nothing that the kernel does not confirm: when it returns without
// error, or with [ErrSharedCgroup], then all that Notice says of root's holds, but that
//
//   - hook and init were in user namespaces of his, as was everyone between them and the
//     agent's, init at least in one; the hook may have been in the agent's;
//   - every directory on the way to the bundle was his or root's, and he could have
//     passed it himself; no symlink was followed that is not root's; config.json was his;
//   - the root file system is what init had mounted there, in its own mount namespace:
//     it was not looked at;
//   - init's cgroup was one that is delegated to him: below user@UID.service.
//
// Whatever the notice tells besides is his claim: id, runtime, names, annotations, the
// command. So it has no digest of an image. Init is held by the pidfd that is returned:
// while that is alive its pid is the same process.
//
// Nothing is looked up in a file system that he may serve himself (FUSE), and nothing of
// his process is read that such a one could hold up.
func UserNotice(state []byte, peerPid int, uid uint32) (container.Notice, *os.File, error) {
	at := cgroup.BootTime()
	if uid == 0 {
		return container.Notice{}, nil, fmt.Errorf("%w: uid 0 is no user", ErrNotOwn)
	}
	s, err := ParseState(state)
	if err != nil {
		return container.Notice{}, nil, err
	}
	n, init, err := createRuntime(s, peerPid, owner(uid))
	if init == nil {
		return container.Notice{}, nil, fmt.Errorf("%s of container %s of uid %d: %w", CreateRuntime, s.ID, uid, err)
	}
	n.Source, n.At, n.Identity.ID = UserSource(uid), at, s.ID
	if verr := n.Validate(); verr != nil {
		init.release()
		return container.Notice{}, nil, fmt.Errorf("%s of container %s of uid %d: %w", CreateRuntime, s.ID, uid, verr)
	}
	return n, init.fd, err
}

// Delegated reports whether a cgroup is below the one that systemd delegates to a user.
// Nobody but root makes a cgroup of that name there, and nobody but root and that user
// moves processes into what is below it.
func Delegated(path string, uid uint32) bool {
	rest, ok := strings.CutPrefix(path, fmt.Sprintf("/user.slice/user-%d.slice/user@%d.service/", uid, uid))
	return ok && rest != ""
}

// User returns an error unless a process is the user's: in the user namespace of this
// process, or in one of the user's own. One of the ids that are subordinate to a user
// (subuid(5)) is no user.
func User(pid int, uid uint32) error {
	if uid == 0 {
		return fmt.Errorf("%w: uid 0 is no user", ErrNotOwn)
	}
	_, err := owner(uid).namespaces(pid)
	return err
}

// has returns an error unless a process is in a user namespace of the user's.
func (o owner) has(p *process) error {
	depth, err := o.namespaces(p.pid)
	if err == nil && depth == 0 {
		err = fmt.Errorf("%w: pid %d is in the host's user namespace", ErrNotOwn, p.pid)
	}
	return err
}

// ioctl_ns(2); golang.org/x/sys has no names for them.
const (
	nsGetParent   = 0xb702
	nsGetOwnerUID = 0xb704
	maxUserNS     = 33 // as deep as the kernel lets them be nested
)

// namespaces returns how many user namespaces a process is in below that of this
// process, all of which must be the user's.
func (o owner) namespaces(pid int) (depth int, err error) {
	own, err := look("/proc/self/ns/user")
	if err != nil {
		return 0, err
	}
	fd, err := unix.Open(procPath(pid, "ns/user"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("pid %d: %w", pid, err)
	}
	defer func() { unix.Close(fd) }()
	for ; depth <= maxUserNS; depth++ {
		at, err := look(fmt.Sprintf("/proc/self/fd/%d", fd))
		if err != nil || at == own {
			return depth, err
		}
		uid, err := unix.IoctlGetUint32(fd, nsGetOwnerUID)
		if err != nil {
			return 0, fmt.Errorf("pid %d: whose its user namespace is: %w", pid, err)
		}
		if owner(uid) != o {
			return 0, fmt.Errorf("%w: pid %d is in a user namespace of uid %d, not %d", ErrNotOwn, pid, uid, o)
		}
		parent, err := unix.IoctlRetInt(fd, nsGetParent)
		if err != nil { // EPERM: it is not below ours
			return 0, fmt.Errorf("%w: pid %d is in a user namespace that is not below the agent's: %w", ErrNotOwn, pid, err)
		}
		unix.Close(fd)
		fd = parent
	}
	return 0, fmt.Errorf("%w: pid %d is in too many user namespaces", ErrNotOwn, pid)
}

// mounts are the types of file systems, by the ids of their mounts; nil does not ask.
type mounts map[int]string

// served returns what is needed to recognise a file system that a user serves himself
// (FUSE, by fusermount): a lookup in it may never come back, and not even SIGKILL ends
// who waits for it.
func (o owner) served() (mounts, error) {
	if o == 0 {
		return nil, nil
	}
	b, err := readBounded("/proc/self/mountinfo", maxMountinfo)
	if err != nil {
		return nil, err
	}
	types := mounts{}
	for line := range bytes.Lines(b) {
		head, tail, _ := bytes.Cut(line, []byte(" - "))
		id, err := strconv.Atoi(string(bytes.SplitN(head, []byte(" "), 2)[0]))
		if fields := bytes.Fields(tail); err == nil && len(fields) > 0 {
			types[id] = string(fields[0])
		}
	}
	return types, nil
}

// holds returns an error if a directory that was opened by path only is in one: then
// nothing below it may be named.
func (m mounts) holds(fd int) error {
	if m == nil {
		return nil
	}
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st); err != nil {
		return err
	}
	switch t, known := m[int(st.Mnt_id)]; {
	case !known:
		return errors.New("it was mounted just now")
	case strings.HasPrefix(t, "fuse"):
		return fmt.Errorf("it is on %s, which may never answer", t)
	}
	return nil
}

// claims fills in what the user's own storage says, marked as that. runc's and crun's
// containers have no other name than their id.
func (o owner) claims(to *container.Identity, id, bundle string) {
	to.Image.DigestReason = fmt.Sprintf("rootless: uid %d can write anything into the storage that his image comes from", o)
	if to.Runtime != container.Podman {
		to.Name = id
		return
	}
	c := o.stored(id, bundle)
	to.Name, to.Image.Name = c.name(), c.image()
	if container.ValidDigest("sha256:" + c.Image) {
		to.Image.DigestReason += ", which says that it is image id sha256:" + c.Image
	}
}
