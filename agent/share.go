package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"probity/evidence/spool"
)

// Reading evidence is for a group. It costs no capability: the spool's directories
// have the group and the set-group-ID bit, so that what is made below them is the
// group's too, and files are made with 0640. Who made the directories (the package,
// by tmpfiles.d) has done all that is to be done; where the agent may, it does the
// same.

// sharedDir is the mode of the spool's directories: the group reads.
const sharedDir = 0o2750

// groupID finds a group by its name or number; 0 is none.
func groupID(name string) (int, error) {
	if name == "" {
		return 0, nil
	}
	id, err := strconv.ParseUint(name, 10, 31)
	if err != nil {
		g, err := user.LookupGroup(name)
		if err != nil {
			return 0, fmt.Errorf("group: %q is not a group of this machine: make it (groupadd --system %s), or leave the key out so that only root reads evidence", name, name)
		}
		if id, err = strconv.ParseUint(g.Gid, 10, 31); err != nil {
			return 0, fmt.Errorf("group: %q has the number %q: %w", name, g.Gid, err)
		}
	}
	if id == 0 {
		return 0, fmt.Errorf("group: %q is root's own: leave the key out so that only root reads evidence", name)
	}
	return int(id), nil
}

// Readers returns the number of the group that may read the spool; 0 is none. An agent
// does not start where there is an error.
func (c Config) Readers() (int, error) { return groupID(c.Group) }

// share makes the spool's directories the group's to read, and sees to it that the
// group gets there. The acknowledgements are not its to write: what every consumer
// has acknowledged may be removed.
func share(dir, state string, gid int) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("make the spool's directory: %w", err)
	}
	if err := shareAll(dir, gid); err != nil {
		return fmt.Errorf("give the spool to its readers' group: %w", err)
	}
	if err := checkAck(filepath.Join(dir, spool.AckDir), gid); err != nil {
		return err
	}
	if err := letThrough(filepath.Dir(dir), state, gid); err != nil {
		return fmt.Errorf("let the spool's readers' group through to it: %w", err)
	}
	return nil
}

// shareAll gives every directory of the spool to the group, and what is in those
// that were not the group's before.
func shareAll(dir string, gid int) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !d.IsDir():
			return nil
		case path == filepath.Join(dir, spool.AckDir):
			return fs.SkipDir // consumers' (checkAck)
		}
		if ok, err := isShared(path, gid); ok || err != nil {
			return err
		}
		// Its files first: who is killed on the way begins again with them.
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Type().IsRegular() {
				if err := os.Lchown(filepath.Join(path, e.Name()), -1, gid); err != nil {
					return byHand(dir, gid, err)
				}
			}
		}
		if err := os.Lchown(path, -1, gid); err != nil {
			return byHand(dir, gid, err)
		}
		if err := unix.Chmod(path, sharedDir); err != nil {
			return byHand(dir, gid, &fs.PathError{Op: "chmod", Path: path, Err: err})
		}
		// The kernel drops the bit without a word where the caller is not of the group.
		if ok, err := isShared(path, gid); !ok || err != nil {
			return byHand(dir, gid, errors.Join(fmt.Errorf("chmod %s: the set-group-ID bit was not kept", path), err))
		}
		return nil
	})
}

// byHand says what root can do that the agent, as it runs, may not.
func byHand(dir string, gid int, err error) error {
	return fmt.Errorf("%w; do it as root: chgrp -R %d %s && find %s -type d -exec chmod 2750 {} + (then see docs/privacy.md for %s)",
		err, gid, dir, dir, filepath.Join(dir, spool.AckDir))
}

func isShared(path string, gid int) (bool, error) {
	st, mode, err := ownerOf(path)
	return err == nil && int(st.Gid) == gid && mode&0o7077 == sharedDir&0o7077, err
}

func ownerOf(path string) (*syscall.Stat_t, uint32, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, 0, err
	}
	st := info.Sys().(*syscall.Stat_t)
	return st, st.Mode & 0o7777, nil
}

// checkAck makes the directory of acknowledgements for root alone to write, or
// leaves it to whom somebody gave it, but not to all readers.
func checkAck(dir string, gid int) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the directory of acknowledgements: %w", err)
	}
	st, mode, err := ownerOf(dir)
	switch {
	case err != nil:
		return fmt.Errorf("look at the directory of acknowledgements: %w", err)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is not a directory", dir)
	case int(st.Gid) == gid && mode&0o020 != 0, mode&0o002 != 0:
		return fmt.Errorf("who may read evidence could write %s, and what every consumer has acknowledged may be removed: give it to another group (chgrp probity-ack %s && chmod 1775 %s), or to root alone (chmod 0755 %s)", dir, dir, dir, dir)
	}
	return nil
}

// letThrough sees to it that the group can pass each directory above the spool. Of
// these only the state directory is the agent's to change: it lets the group pass,
// and neither list nor read what is there.
func letThrough(dir, state string, gid int) error {
	for dir = filepath.Clean(dir); ; dir = filepath.Dir(dir) {
		st, mode, err := ownerOf(dir)
		if err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return fmt.Errorf("%s is a symbolic link: name the spool by its real path", dir)
		}
		passes := mode&0o001 != 0
		if int(st.Gid) == gid {
			passes = mode&0o010 != 0
		}
		if !passes {
			if dir != filepath.Clean(state) {
				return fmt.Errorf("%s lets neither the group nor others pass (mode %04o): chmod o+x %s", dir, mode, dir)
			}
			if err := os.Lchown(dir, -1, gid); err != nil {
				return fmt.Errorf("%w; do it as root: chgrp %d %s && chmod 0710 %s", err, gid, dir, dir)
			}
			if err := os.Chmod(dir, 0o710); err != nil {
				return err
			}
		}
		if dir == "/" || dir == "." || !strings.HasPrefix(dir, "/") {
			return nil
		}
	}
}
