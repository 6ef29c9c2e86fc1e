package image

import (
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"probity/runtime/container"
)

// mounted sorts the mounts below prefix in a process's mount table.
func mounted(r *Rootfs, ms []mount, root *mount, prefix, proc string) {
	byID := make(map[int]*mount, len(ms))
	for i := range ms {
		byID[ms[i].id] = &ms[i]
	}
	fd, err := unix.Open(proc, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
	}
	for i := range ms {
		m := &ms[i]
		if m == root || m.point == prefix {
			continue
		}
		dest := m.point
		if prefix != "/" {
			dest = strings.TrimPrefix(m.point, prefix)
		}
		c := container.Mount{Destination: dest, Type: m.fstype, Source: m.root}
		if isPseudo(c) {
			r.Pseudo = append(r.Pseudo, c)
			continue
		}
		r.Mounts = append(r.Mounts, c)
		// Only where no mount on the way can hang is it looked at.
		hangs := err != nil
		for at, hops := m, 0; at != nil && at != root && !hangs; at, hops = byID[at.parent], hops+1 {
			hangs = hops > 64 || !localType(at.fstype) && !pseudoTypes[at.fstype] || at.fstype == "autofs"
		}
		if !hangs {
			r.sort(dest, fd, strings.TrimPrefix(m.point, "/"))
		}
	}
}

// configured takes the mounts from the notice, for a container whose mount
// namespace cannot be read.
func configured(r *Rootfs, ms []container.Mount) {
	for _, c := range ms {
		c.Destination = path.Clean("/" + c.Destination)
		if c.Destination == "/" {
			continue
		}
		if isPseudo(c) {
			r.Pseudo = append(r.Pseudo, c)
			continue
		}
		r.Mounts = append(r.Mounts, c)
		src := filepath.Clean(c.Source)
		if filepath.IsAbs(src) && localPath(src) == nil {
			r.sort(c.Destination, unix.AT_FDCWD, src)
		}
	}
}

// sort finds out whether what is mounted at dest is a directory, and whether it
// holds any program or library.
func (r *Rootfs) sort(dest string, dir int, rel string) {
	fd, err := openat2(dir, rel, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	switch {
	case unix.Fstat(fd, &st) != nil:
		return
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		r.Dirs = append(r.Dirs, dest)
	default:
		r.Files = append(r.Files, dest)
	}
	if r.inert(fd, kindOfStat(&st), 0) {
		r.Inert = append(r.Inert, dest)
	}
}

// Bounds on looking into mounts: what runtimes and Kubernetes put there on
// their own (hosts, resolv.conf, a token) is small.
const (
	maxMounted      = 256 // files and directories, of all mounts of a container
	maxMountedDepth = 8
)

// inert reports whether nothing at or below a file or directory, which is open
// by path, is an ELF file now.
func (r *Rootfs) inert(fd int, k kind, depth int) bool {
	if r.looked++; r.looked > maxMounted || depth > maxMountedDepth {
		return false
	}
	switch k {
	case regular:
		var magic [4]byte
		again, err := unix.Open(procFd(fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return false
		}
		defer unix.Close(again)
		n, err := unix.Pread(again, magic[:], 0)
		return err == nil && string(magic[:n]) != "\x7fELF"
	case directory:
	default:
		return true // nothing can be executed from a socket or a device that is no memory
	}
	list, err := unix.Open(procFd(fd), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(list)
	var below []string
	if err := new(lister).read(list, func(name []byte, k kind) error {
		if len(below) == maxMounted {
			return errFull
		}
		if k != symlink { // it leads to what is looked at where it is, or out of the mount
			below = append(below, string(name))
		}
		return nil
	}); err != nil {
		return false
	}
	for _, name := range below {
		sub, st, err := openPath(fd, name)
		if err != nil {
			return false
		}
		ok := r.inert(sub, kindOfStat(&st), depth+1)
		unix.Close(sub)
		if !ok {
			return false
		}
	}
	return true
}
