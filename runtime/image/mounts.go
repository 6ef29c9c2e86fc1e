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

// sort finds out whether what is mounted at dest is a directory.
func (r *Rootfs) sort(dest string, dir int, rel string) {
	fd, err := openat2(dir, rel, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	switch {
	case unix.Fstat(fd, &st) != nil:
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		r.Dirs = append(r.Dirs, dest)
	default:
		r.Files = append(r.Files, dest)
	}
}
