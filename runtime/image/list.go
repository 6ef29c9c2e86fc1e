package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// lister reads directories; its buffers are used again.
type lister struct {
	buf, attrs []byte
}

// read calls f for every name in the open directory, in the file system's
// order. It stats only what the directory does not tell.
func (l *lister) read(fd int, f func(name []byte, k kind) error) error {
	if l.buf == nil {
		l.buf = make([]byte, 64<<10)
	}
	for {
		n, err := unix.Getdents(fd, l.buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("getdents: %w", err)
		}
		if n == 0 {
			return nil
		}
		for b := l.buf[:n]; len(b) > 0; {
			// struct linux_dirent64: u64 ino, s64 off, u16 reclen, u8 type, name
			if len(b) < 20 {
				return errors.New("getdents: a record is cut short")
			}
			size := int(binary.NativeEndian.Uint16(b[16:]))
			if size < 20 || size > len(b) {
				return errors.New("getdents: a record has an impossible size")
			}
			typ, name := b[18], b[19:size]
			b = b[size:]
			if i := bytes.IndexByte(name, 0); i >= 0 {
				name = name[:i]
			}
			if len(name) == 0 || len(name) > maxName || string(name) == "." || string(name) == ".." {
				continue
			}
			k, err := kindOf(fd, name, typ)
			if err == unix.ENOENT { // removed meanwhile
				continue
			}
			if err != nil {
				return fmt.Errorf("stat %q: %w", name, err)
			}
			if err := f(name, k); err != nil {
				return err
			}
		}
	}
}

func kindOf(fd int, name []byte, typ byte) (kind, error) {
	switch typ {
	case unix.DT_REG:
		return regular, nil
	case unix.DT_LNK:
		return symlink, nil
	case unix.DT_DIR:
		return directory, nil
	case unix.DT_CHR, unix.DT_UNKNOWN: // a whiteout? or a file system without types
		return lstatAt(fd, string(name))
	}
	return special, nil
}

func lstatAt(fd int, name string) (kind, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return none, err
	}
	return kindOfStat(&st), nil
}

func kindOfStat(st *unix.Stat_t) kind {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return regular
	case unix.S_IFLNK:
		return symlink
	case unix.S_IFDIR:
		return directory
	case unix.S_IFCHR:
		if st.Rdev == 0 {
			return whiteout
		}
	}
	return special
}

func readlink(fd int, name string) (string, error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Readlinkat(fd, name, buf)
		switch {
		case err != nil:
			return "", fmt.Errorf("read link %q: %w", name, err)
		case n < len(buf):
			return string(buf[:n]), nil
		case len(buf) > maxLink:
			return "", fmt.Errorf("read link %q: longer than %d bytes", name, maxLink)
		}
		buf = make([]byte, 2*len(buf))
	}
}

// marks reads overlayfs's attributes of an open directory. Without
// CAP_SYS_ADMIN the kernel hides trusted.*: a directory then looks mergeable.
func (l *lister) marks(fd int) uint8 {
	if l.attrs == nil {
		l.attrs = make([]byte, maxAttr)
	}
	n, err := unix.Flistxattr(fd, l.attrs)
	if err != nil || n <= 0 || n > len(l.attrs) {
		return 0
	}
	var marks uint8
	for a := range bytes.SplitSeq(l.attrs[:n], []byte{0}) {
		ns, strange := uint8(opaqueTrusted), uint8(strangeTrusted)
		rest, ok := bytes.CutPrefix(a, []byte("trusted.overlay."))
		if !ok {
			if rest, ok = bytes.CutPrefix(a, []byte("user.overlay.")); !ok {
				continue
			}
			ns, strange = opaqueUser, strangeUser
		}
		switch string(rest) {
		case "opaque":
			var v [8]byte
			n, err := unix.Fgetxattr(fd, string(a), v[:])
			switch {
			case err == nil && n == 1 && v[0] == 'y':
				marks |= ns
			case err == nil && n == 1 && v[0] == 'x': // Linux 6.7: holds whiteouts that are attributes
				marks |= strange
			}
		case "redirect":
			marks |= strange
		}
	}
	return marks
}
